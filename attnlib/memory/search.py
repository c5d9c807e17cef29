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

    ``query`` is (batch, heads, tokens, head_dim), ``ring`` is contiguous (batch, heads, capacity, head_dim) with the
    key of an id in slot ``id mod capacity``, and ``held`` are the ids to search in every row, at least ``top_k``.
    Returns int64 (batch, heads, tokens, top_k), best first; of equal scores the greater id first. A score of NaN or
    −inf finds nothing, and the remaining ids are −1.
    """
    queries, keys = query.flatten(0, 1), ring.flatten(0, 1)  # (pairs, tokens, head_dim), (pairs, capacity, head_dim)
    queries = queries.to(torch.promote_types(query.dtype, torch.float32))
    pairs, tokens, _ = queries.shape
    found = torch.empty(pairs, tokens, top_k, dtype=torch.int64, device=query.device)
    search, at_once = _tournament, QUERIES
    if len(held) <= max(FEW, FAN * top_k):
        search, at_once = _all_scored, max(1, ALL_SCORES // len(held), min(64, 4 * ALL_SCORES // len(held)))
    token_step = max(1, min(tokens, at_once))
    pair_step = max(1, at_once // token_step)
    for pair in range(0, pairs, pair_step):
        for token in range(0, tokens, token_step):
            part = slice(pair, pair + pair_step), slice(token, token + token_step)
            found[part] = search(queries[part], keys[part[0]], held, top_k)
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


def _found(scores: Tensor, ids: Tensor, top_k: int) -> Tensor:
    """The ids of the top_k best scores, best first, −1 in place of those whose score is −inf."""
    position = top_newest(scores, top_k)
    scores, ids = scores.gather(-1, position), ids.expand_as(scores).gather(-1, position)
    order = best_first(scores, ids)
    return ids.gather(-1, order).masked_fill_(scores.gather(-1, order) == -torch.inf, -1)


def _all_scored(query: Tensor, keys: Tensor, held: range, top_k: int) -> Tensor:
    """``best_ids`` with the scores of all keys held at once: (pairs, tokens, top_k)."""
    parts = [keys[:, slots.start : slots.stop] for slots in _slots(held, keys.shape[1]) if slots]
    scores = [query @ part.to(query.dtype).mT for part in parts]
    all_scores = _without_nan(scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1))  # (pairs, tokens, held)
    return _found(all_scores, torch.arange(held.start, held.stop, device=query.device), top_k)


def _without_nan(scores: Tensor) -> Tensor:
    """Write −inf in place of NaN, which would win every comparison."""
    if scores.sum().isnan():
        scores.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return scores


def _tournament(query: Tensor, keys: Tensor, held: range, top_k: int) -> Tensor:
    """``best_ids`` for many keys: (pairs, tokens, top_k)."""
    pairs, tokens, _ = query.shape
    find_maxima = _group_maxima(query)
    scores = query.new_empty(pairs, tokens, 0)  # of the best groups so far
    firsts = torch.empty(pairs, tokens, 0, dtype=torch.int64, device=query.device)  # the first id of each
    older, newer = _slots(held, keys.shape[1])
    before, after = len(older) % GROUP, len(newer) % GROUP  # the first and last ids, too few to form a group
    next_id = held.start + before
    for slots in (older[before:], newer[: len(newer) - after]):
        for start in range(slots.start, slots.stop, WINDOW * GROUP):
            some = keys[:, start : min(start + WINDOW * GROUP, slots.stop)]
            maxima = find_maxima(some)  # (pairs, tokens, groups)
            winners = top_newest(maxima, top_k)  # (pairs, tokens, top_k)
            scores = torch.cat((scores, maxima.gather(-1, winners)), dim=-1)
            firsts = torch.cat((firsts, next_id + winners * GROUP), dim=-1)
            stay = top_newest(scores, top_k)
            scores, firsts = scores.gather(-1, stay), firsts.gather(-1, stay)
            next_id += some.shape[1]
    ends = ((held.start, held.start + before), (held.stop - after, held.stop))
    first, last = (torch.arange(*ids, device=query.device).expand(pairs, tokens, -1) for ids in ends)
    grouped = (firsts.unsqueeze(-1) + torch.arange(GROUP, device=query.device)).flatten(-2)
    return _best_candidates(query, keys, torch.cat((first, grouped, last), dim=-1), top_k)  # ids in ascending order


def _group_maxima(query: Tensor) -> Callable[[Tensor], Tensor]:
    """Make a function from keys (pairs, groups · GROUP, head_dim) to the best score of each group, (pairs, tokens,
    groups). Each call overwrites the result of the one before, which saves allocating fresh memory."""
    pairs, tokens, _ = query.shape
    at_once = BLOCK_SCORES if query.device.type == "cpu" else 8 * BLOCK_SCORES  # fewer, larger kernels
    step = max(FAN, at_once // (pairs * tokens) // GROUP)  # groups
    columns = query.mT.contiguous()  # (pairs, head_dim, tokens)
    block = query.new_empty(pairs * step * GROUP * tokens)
    window = query.new_empty(pairs, tokens, WINDOW + PAD)

    def find(keys: Tensor) -> Tensor:
        groups = keys.shape[1] // GROUP
        for start in range(0, groups, step):
            stop = min(start + step, groups)
            some = keys[:, start * GROUP : stop * GROUP].to(query.dtype)
            scores = block[: pairs * some.shape[1] * tokens].view(pairs, -1, tokens)
            torch.bmm(some, columns, out=scores)  # (pairs, keys, tokens)
            groups_of_keys = scores.unflatten(1, (stop - start, GROUP))
            maxima = groups_of_keys.amax(2)  # (pairs, groups, tokens)
            if maxima.sum().isnan():
                maxima = _without_nan(groups_of_keys).amax(2)
            window[..., start:stop] = maxima.mT.contiguous()
        return window[..., :groups]

    return find


def _best_candidates(query: Tensor, keys: Tensor, ids: Tensor, top_k: int) -> Tensor:
    """The best of the keys with these ids, (pairs, tokens, candidates) in ascending order: (pairs, tokens, top_k)."""
    (pairs, tokens, head_dim), candidates, capacity = query.shape, ids.shape[-1], keys.shape[1]
    first_slots = torch.arange(0, pairs * capacity, capacity, device=query.device)
    slots = (first_slots[:, None, None] + ids % capacity).flatten(0, 1)  # (pairs * tokens, candidates)
    flat_keys, flat_query, ids = keys.flatten(0, 1), query.flatten(0, 1).unsqueeze(1), ids.flatten(0, 1)
    scores = query.new_empty(pairs * tokens, 1, candidates)
    step = max(1, CANDIDATES // (candidates * head_dim))
    for start in range(0, pairs * tokens, step):
        some = slots[start : start + step]
        found = flat_keys.index_select(0, some.flatten()).view(len(some), candidates, head_dim).to(query.dtype)
        torch.bmm(flat_query[start : start + step], found.mT, out=scores[start : start + step])
    return _found(_without_nan(scores).squeeze(1), ids, top_k).view(pairs, tokens, top_k)


def _slots(held: range, capacity: int) -> tuple[range, range]:
    """The slots of these ids, oldest first: up to the end of the ring, then from its start if they wrap around."""
    start = held.start % capacity
    stop = min(start + len(held), capacity)
    return range(start, stop), range(start + len(held) - stop)
