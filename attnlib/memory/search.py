"""Exact search: the best keys of each query, in blocks, so that the scores of all keys are never held at once.

The search is a tournament. Sixteen keys form a group, and each group sends its best score. The top_k keys are in the
top_k groups, because top_k others beat any group outside them; and the best groups are found in the same way, among
groups of groups. With many keys, only the best score of each group is kept, and at the end the keys of the winning
groups are scored again.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from attnlib.memory.hits import best_first

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
def best_ids(query: Tensor, ring: Tensor, held: range, top_k: int) -> Tensor:
    """Find the ids whose keys have the greatest dot products with each query.

    Args:
        query: (batch, heads, tokens, head_dim).
        ring: keys (batch, heads, capacity, head_dim), contiguous; the key of an id is in slot ``id mod capacity``.
        held: the ids to search, the same for every row.
        top_k: how many to find; at most as many as are held.

    Returns:
        int64 (batch, heads, tokens, top_k), best first; of equal scores the greater id first. A score of NaN or −inf
        finds nothing, and the remaining ids are −1.
    """
    queries, keys = query.flatten(0, 1), ring.flatten(0, 1)  # (pairs, tokens, head_dim), (pairs, capacity, head_dim)
    queries = queries.to(torch.promote_types(query.dtype, torch.float32))
    pairs, tokens, _ = queries.shape
    found = torch.empty(pairs, tokens, top_k, dtype=torch.int64, device=query.device)
    few = len(held) <= max(FEW, FAN * top_k)
    at_once = max(1, ALL_SCORES // len(held), min(64, 4 * ALL_SCORES // len(held))) if few else QUERIES
    token_step = max(1, min(tokens, at_once))
    pair_step = max(1, at_once // token_step)
    for pair in range(0, pairs, pair_step):
        for token in range(0, tokens, token_step):
            part = slice(pair, pair + pair_step), slice(token, token + token_step)
            some_queries, some_keys = queries[part], keys[part[0]]
            if few:
                found[part] = _all_scored(some_queries, some_keys, held, top_k)
            else:
                found[part] = _tournament(some_queries, some_keys, held, top_k)
    return found.view(*query.shape[:3], top_k)


def top_newest(scores: Tensor, top_k: int) -> Tensor:
    """Positions of the top_k greatest entries of the last axis, in ascending order; of equal entries the last ones win.

    ``torch.topk`` may take any of the entries that tie for the last place, and the choice differs between machines. No
    entry may be NaN.
    """
    if scores.shape[-1] <= top_k:
        return torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape)
    position, tied = _play(scores, top_k)
    for row in tied.flatten().nonzero().flatten().split(max(1, BLOCK_SCORES // scores.shape[-1])):
        position.view(-1, top_k)[row] = _last_of_equals(scores.flatten(0, -2)[row], top_k)
    return position.sort(-1).values


def _play(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The tournament over the last axis: positions of the top_k greatest, and for each row whether the last of them
    tied with one that lost."""
    many, device = scores.shape[-1], scores.device
    if many <= 2 * FAN * max(top_k, FAN):
        best, position = scores.topk(top_k + 1)
        return position[..., :top_k].contiguous(), best[..., -1] == best[..., -2]
    groups = many // FAN  # group g has the entries g, g + groups, g + 2 · groups, …, a layout that is fast for amax
    maxima = scores[..., : groups * FAN].unflatten(-1, (FAN, groups)).amax(-2)
    winners, tied = _play(maxima, top_k)
    candidates = (winners.unsqueeze(-1) + torch.arange(0, groups * FAN, groups, device=device)).flatten(-2)
    rest = torch.arange(groups * FAN, many, device=device).expand(*candidates.shape[:-1], -1)
    candidates = torch.cat((candidates, rest), dim=-1)
    best, place = scores.gather(-1, candidates).topk(top_k + 1)
    return candidates.gather(-1, place[..., :top_k]), tied | (best[..., -1] == best[..., -2])


def _last_of_equals(scores: Tensor, top_k: int) -> Tensor:
    """``top_newest`` for rows (rows, many) in which entries tie for the last place."""
    floor = scores.topk(top_k).values[:, -1:]
    above = scores > floor
    equal = scores == floor
    places = top_k - above.sum(-1, keepdim=True)
    last_ones = equal.flip(-1).cumsum(-1, dtype=torch.int32).flip(-1) <= places
    return (above | (equal & last_ones)).nonzero()[:, 1].view(-1, top_k)


def _all_scored(query: Tensor, keys: Tensor, held: range, top_k: int) -> Tensor:
    """``best_ids`` with the scores of all keys held at once: (pairs, tokens, top_k)."""
    scores = [query @ keys[:, slots].to(query.dtype).mT for slots in _slots(held, keys.shape[1])]
    all_scores = _without_nan(scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1))  # (pairs, tokens, held)
    position = top_newest(all_scores, top_k)
    return _sorted(all_scores.gather(-1, position), position + held.start)


def _sorted(scores: Tensor, ids: Tensor) -> Tensor:
    """The ids, best first, with −1 in place of those whose score is −inf."""
    order = best_first(scores, ids)
    return ids.gather(-1, order).masked_fill_(scores.gather(-1, order) == -torch.inf, -1)


def _without_nan(scores: Tensor) -> Tensor:
    """Write −inf in place of NaN, which would win every comparison."""
    if scores.sum().isnan():
        scores.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return scores


def _tournament(query: Tensor, keys: Tensor, held: range, top_k: int) -> Tensor:
    """``best_ids`` for many keys: (pairs, tokens, top_k)."""
    pairs, tokens, _ = query.shape
    group = GROUP
    at_once = BLOCK_SCORES if query.device.type == "cpu" else 8 * BLOCK_SCORES  # fewer, larger kernels
    block = max(FAN * group, at_once // (pairs * tokens))
    find_maxima = _group_maxima(query, group, max(1, block // group))
    scores = query.new_empty(pairs, tokens, 0)  # of the best groups so far
    firsts = torch.empty(pairs, tokens, 0, dtype=torch.int64, device=query.device)  # the first id of each
    singles = []  # ids too few to form a group: at the start of the older slots, at the end of the newer
    next_id = held.start
    for index, slots in enumerate(_slots(held, keys.shape[1])):
        size = slots.stop - slots.start
        single = size % group
        if index == 0:
            singles.append(range(next_id, next_id + single))
            next_id, slots = next_id + single, slice(slots.start + single, slots.stop)
        else:
            singles.append(range(held.stop - single, held.stop))
            slots = slice(slots.start, slots.stop - single)
        for start in range(slots.start, slots.stop, WINDOW * group):
            some = keys[:, start : min(start + WINDOW * group, slots.stop)]
            maxima = find_maxima(some)  # (pairs, tokens, groups)
            winners = top_newest(maxima, top_k)  # (pairs, tokens, top_k)
            scores = torch.cat((scores, maxima.gather(-1, winners)), dim=-1)
            firsts = torch.cat((firsts, next_id + winners * group), dim=-1)
            stay = top_newest(scores, top_k)
            scores, firsts = scores.gather(-1, stay), firsts.gather(-1, stay)
            next_id += some.shape[1]
    within = torch.arange(group, device=query.device)
    grouped = (firsts.unsqueeze(-1) + within).flatten(-2)  # (pairs, tokens, groups * group), ascending
    before, after = (
        torch.tensor(list(ids), dtype=torch.int64, device=query.device).expand(pairs, tokens, -1)
        for ids in (*singles, range(0))[:2]
    )
    return _best_candidates(query, keys, torch.cat((before, grouped, after), dim=-1), top_k)


def _group_maxima(query: Tensor, group: int, groups_at_once: int) -> Callable[[Tensor], Tensor]:
    """Make a function from keys (pairs, groups · group, head_dim) to the best score of each group, (pairs, tokens,
    groups). Each call overwrites the result of the one before, which saves allocating fresh memory."""
    pairs, tokens, _ = query.shape
    columns = query.mT.contiguous()  # (pairs, head_dim, tokens)
    block = query.new_empty(pairs * groups_at_once * group * tokens)
    window = query.new_empty(pairs, tokens, WINDOW + PAD)

    def find(keys: Tensor) -> Tensor:
        groups = keys.shape[1] // group
        for start in range(0, groups, groups_at_once):
            stop = min(start + groups_at_once, groups)
            some = keys[:, start * group : stop * group].to(query.dtype)
            scores = block[: pairs * some.shape[1] * tokens].view(pairs, -1, tokens)
            torch.bmm(some, columns, out=scores)  # (pairs, keys, tokens)
            groups_of_keys = scores.unflatten(1, (stop - start, group))
            maxima = groups_of_keys.amax(2)  # (pairs, groups, tokens)
            if maxima.sum().isnan():
                maxima = _without_nan(groups_of_keys).amax(2)
            window[..., start:stop] = maxima.mT.contiguous()
        return window[..., :groups]

    return find


def _best_candidates(query: Tensor, keys: Tensor, ids: Tensor, top_k: int) -> Tensor:
    """Score the keys with these ids, (pairs, tokens, candidates) in ascending order; return the best, best first."""
    pairs, tokens, head_dim = query.shape
    capacity, candidates = keys.shape[1], ids.shape[-1]
    first_slots = capacity * torch.arange(pairs, device=query.device)
    slots = (first_slots[:, None, None] + ids % capacity).flatten(0, 1)  # (pairs * tokens, candidates)
    flat_keys, flat_query, ids = keys.flatten(0, 1), query.flatten(0, 1).unsqueeze(1), ids.flatten(0, 1)
    scores = query.new_empty(pairs * tokens, 1, candidates)
    step = max(1, CANDIDATES // (candidates * head_dim))
    for start in range(0, pairs * tokens, step):
        some = slots[start : start + step]
        found = flat_keys.index_select(0, some.flatten()).view(len(some), candidates, head_dim).to(query.dtype)
        torch.bmm(flat_query[start : start + step], found.mT, out=scores[start : start + step])
    scores = _without_nan(scores).squeeze(1)
    position = top_newest(scores, top_k)  # (pairs * tokens, top_k)
    return _sorted(scores.gather(-1, position), ids.gather(-1, position)).view(pairs, tokens, top_k)


def _slots(held: range, capacity: int) -> list[slice]:
    """The slots of these ids in the ring, oldest first: one slice, or two if they wrap around its end."""
    start = held.start % capacity
    stop = start + len(held)
    if stop <= capacity:
        return [slice(start, stop)]
    return [slice(start, capacity), slice(0, stop - capacity)]
