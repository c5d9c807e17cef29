"""Exact search: the best keys of each query, in blocks, so that the scores of all keys are never held at once.

The search is a tournament. Sixteen keys form a group, and each group sends its best score. The top_k keys are in the
top_k groups, because top_k others beat any group outside them; and the best groups are found in the same way, among
groups of groups. With many keys, only the best score of each group is kept, and at the end the keys of the winning
groups are scored again.
"""

import torch
from torch import Tensor

QUERIES = 512  # searched together
BLOCK_SCORES = 2**19  # of one block of keys: 2 MiB in float32, which stay in the cache until their groups are formed
ALL_SCORES = 2**20  # if those of all keys are held, for fewer queries at a time: 4 MiB in float32, or 16 for 64
WINDOW = 8192  # groups between two rounds: 16 MiB for 512 queries in float32
CANDIDATES = 2**19  # numbers in the keys of the winning groups that are scored at a time: 2 MiB in float32
GROUP = 16  # keys
PAD = 32  # keeps the rows of a window in different cache lines
FAN = 16  # entries in a group of groups
FEW = 2**16  # up to this many keys, the scores of all keys are held


@torch.no_grad()
def best_slots(query: Tensor, ring: Tensor, held: list[slice], top_k: int) -> Tensor:
    """Find the slots whose keys have the greatest dot products with each query, best first.

    A score of NaN or −inf finds nothing. Of equal scores that compete for the last place, either may win.

    Args:
        query: (batch, heads, tokens, head_dim).
        ring: keys (batch, heads, capacity, head_dim), contiguous.
        held: the slots to search, the same for every row.
        top_k: how many to find; at most as many as are held.

    Returns:
        int64 (batch, heads, tokens, top_k); −1 where nothing was found.
    """
    queries, keys = query.flatten(0, 1), ring.flatten(0, 1)  # (pairs, tokens, head_dim), (pairs, capacity, head_dim)
    queries = queries.to(torch.promote_types(query.dtype, torch.float32))
    pairs, tokens, _ = queries.shape
    found = torch.empty(pairs, tokens, top_k, dtype=torch.int64, device=query.device)
    many = sum(slots.stop - slots.start for slots in held)
    few = many <= max(FEW, FAN * top_k)
    at_once = max(1, ALL_SCORES // many, min(64, 4 * ALL_SCORES // many)) if few else QUERIES
    token_step = max(1, min(tokens, at_once))
    pair_step = max(1, at_once // token_step)
    find = _among_few if few else _among_many
    for pair in range(0, pairs, pair_step):
        for token in range(0, tokens, token_step):
            part = slice(pair, pair + pair_step), slice(token, token + token_step)
            found[part] = find(queries[part], keys[part[0]], held, top_k)
    return found.view(*query.shape[:3], top_k)


def top_positions(scores: Tensor, top_k: int) -> Tensor:
    """Positions of the ``top_k`` greatest entries of the last axis, greatest first, by a tournament."""
    many = scores.shape[-1]
    if many <= 2 * FAN * max(top_k, FAN):
        return scores.topk(min(top_k, many)).indices
    groups = many // FAN  # group g has the entries g, g + groups, g + 2 · groups, …, a layout that is fast for amax
    winners = top_positions(scores[..., : groups * FAN].unflatten(-1, (FAN, groups)).amax(-2), top_k)
    candidates = (winners.unsqueeze(-1) + torch.arange(0, groups * FAN, groups, device=scores.device)).flatten(-2)
    rest = torch.arange(groups * FAN, many, device=scores.device).expand(*candidates.shape[:-1], -1)
    candidates = torch.cat((candidates, rest), dim=-1)
    return candidates.gather(-1, scores.gather(-1, candidates).topk(top_k).indices)


def _among_few(query: Tensor, keys: Tensor, held: list[slice], top_k: int) -> Tensor:
    """``best_slots`` with the scores of all keys held at once: (pairs, tokens, top_k)."""
    parts = [query @ keys[:, slots].to(query.dtype).mT for slots in held]
    scores = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)  # cat would copy a single one
    return _best(
        scores, torch.cat([torch.arange(slots.start, slots.stop, device=query.device) for slots in held]), top_k
    )


def _among_many(query: Tensor, keys: Tensor, held: list[slice], top_k: int) -> Tensor:
    """``best_slots`` by the best score of each group of keys: (pairs, tokens, top_k)."""
    pairs, tokens, _ = query.shape
    at_once = BLOCK_SCORES if query.device.type == "cpu" else 8 * BLOCK_SCORES  # fewer, larger kernels
    size = GROUP * max(FAN, at_once // (pairs * tokens * GROUP))  # keys in a block
    columns = query.mT.contiguous()  # (pairs, head_dim, tokens)
    block = query.new_empty(pairs * size * tokens)  # both reused, which saves allocating fresh memory
    window = query.new_empty(pairs, tokens, WINDOW + PAD)
    scores = query.new_empty(pairs, tokens, 0)  # of the best groups so far
    firsts = torch.empty(pairs, tokens, 0, dtype=torch.int64, device=query.device)  # the first slot of each
    singles = []  # slots that fill no group
    for slots in held:
        end = slots.stop - (slots.stop - slots.start) % GROUP
        singles.append(torch.arange(end, slots.stop, device=query.device))
        for start in range(slots.start, end, WINDOW * GROUP):
            groups = 0
            for some in keys[:, start : min(start + WINDOW * GROUP, end)].split(size, dim=1):
                out = block[: pairs * some.shape[1] * tokens].view(pairs, -1, tokens)
                in_groups = torch.bmm(some.to(query.dtype), columns, out=out).unflatten(1, (-1, GROUP))
                maxima = in_groups.amax(2)  # (pairs, groups, tokens)
                if maxima.sum().isnan():
                    maxima = _without_nan(in_groups).amax(2)
                window[..., groups : groups + maxima.shape[1]] = maxima.mT.contiguous()
                groups += maxima.shape[1]
            winners = top_positions(window[..., :groups], top_k)
            scores = torch.cat((scores, window.gather(-1, winners)), dim=-1)
            firsts = torch.cat((firsts, start + winners * GROUP), dim=-1)
            scores, stay = scores.topk(min(top_k, scores.shape[-1]))
            firsts = firsts.gather(-1, stay)
    grouped = (firsts.unsqueeze(-1) + torch.arange(GROUP, device=query.device)).flatten(-2)
    candidates = torch.cat((grouped, torch.cat(singles).expand(pairs, tokens, -1)), dim=-1)
    return _best(_scores(query, keys, candidates), candidates, top_k)


def _scores(query: Tensor, keys: Tensor, slots: Tensor) -> Tensor:
    """Score each query's own slots, (pairs, tokens, candidates), a few queries at a time."""
    (pairs, tokens, head_dim), capacity, candidates = query.shape, keys.shape[1], slots.shape[-1]
    starts = capacity * torch.arange(pairs, device=query.device)
    slots = (starts[:, None, None] + slots).flatten(0, 1)  # (pairs * tokens, candidates)
    keys, query = keys.flatten(0, 1), query.flatten(0, 1).unsqueeze(1)
    scores = query.new_empty(pairs * tokens, 1, candidates)
    step = max(1, CANDIDATES // (candidates * head_dim))
    for start in range(0, pairs * tokens, step):
        some = slots[start : start + step]
        found = keys.index_select(0, some.flatten()).view(len(some), candidates, head_dim).to(query.dtype)
        torch.bmm(query[start : start + step], found.mT, out=scores[start : start + step])
    return scores.view(pairs, tokens, candidates)


def _best(scores: Tensor, slots: Tensor, top_k: int) -> Tensor:
    """The slots with the greatest scores, best first; −1 for NaN and −inf."""
    best = top_positions(_without_nan(scores), top_k)
    return slots.expand_as(scores).gather(-1, best).masked_fill_(scores.gather(-1, best) == -torch.inf, -1)


def _without_nan(scores: Tensor) -> Tensor:
    """Write −inf in place of NaN, which would win every comparison."""
    return scores.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf) if scores.sum().isnan() else scores
