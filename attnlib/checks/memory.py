"""Exercises of notebook 06: keys cut into heads, scores of memories, top-k attention, one softmax over two parts."""

import torch
from einops import rearrange
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw


def memory_keys(stacked: Tensor, heads: int) -> Tensor:
    return rearrange(stacked[..., 0, :], "b s k (h d) -> b h s d k", h=heads)


def memory_scores(query: Tensor, keys: Tensor) -> Tensor:
    return torch.einsum("bhsd,bhsdk->bhsk", query, keys) / query.shape[-1] ** 0.5


def topk_attention(query: Tensor, key: Tensor, value: Tensor, top_k: int) -> Tensor:
    scores, ids = (query @ key.mT / query.shape[-1] ** 0.5).topk(top_k)  # (tokens, top_k) each
    weights = torch.softmax(scores, dim=-1)
    return torch.einsum("tk,tkd->td", weights, value[ids])  # value[ids]: (tokens, top_k, value_dim)


def joint(local: Tensor, a: Tensor, remote: Tensor, b: Tensor) -> Tensor:  # a and b are the log-sum-exps
    share = torch.sigmoid(b - a).unsqueeze(-1)  # (..., tokens, 1)
    return share * remote + (1 - share) * local


def kept(scores: Tensor, top_k: int, fill: float = -torch.inf, dim: int = -1, largest: bool = True) -> Tensor:
    """Scores with all but the best along an axis filled."""
    ids = scores.topk(min(top_k, scores.shape[dim]), dim, largest).indices
    return scores.masked_fill(~torch.zeros_like(scores, dtype=torch.bool).scatter(dim, ids, True), fill)


KEY_SIZES = ((3, 4, 7, 6, 5), (2, 3, 5, 2, 7), (1, 1, 3, 5, 2), (1, 5, 1, 3, 1), (2, 3, 4, 1, 5), (2, 2, 2, 2, 2))
SCORE_SIZES = ((1, 1, 7, 6, 5), (5, 5, 5, 5, 5), (3, 4, 7, 6, 5), (2, 3, 5, 4, 7), (2, 3, 1, 2, 1), (2, 3, 2, 1, 4))

check_memory_keys = Exercise(
    "Check ``answer(stacked, heads)``: (b_s, seq_len, top_k, 2, embed_dim) to keys (b_s, heads, seq_len, head_dim, "
    "top_k).",
    memory_keys,
    [(*draw(61 + i, (b, s, k, 2, h * d)), h) for i, (b, h, s, d, k) in enumerate(KEY_SIZES)],
    """
    keys = stacked[..., 0, :]; by = lambda axes: rearrange(keys, f"b s k {axes}", h=heads)
    fit = lambda numbers: numbers.reshape(memory_keys(stacked, heads).shape)
    memory_keys(stacked.flip(-2), heads)  # These are the values: the keys are at index 0 of the axis of size 2.
    by("(h d) -> b h s k d")  # This is the layout of values: keys end in (head_dim, top_k).
    by("(h d) -> b s h d k")  # The heads are not brought forward: they come right after b_s.
    by("(h d) -> b s (h d) k")  # embed_dim is not cut: make (heads, head_dim) of it.
    by("(h d) -> b s k (h d)")  # Cut embed_dim into (heads, head_dim), then move axes.
    rearrange(keys, "b s k (h d) -> b h s d k", d=heads)  # This makes head_dim heads: use h=heads.
    by("(d h) -> b h s d k")  # Cut embed_dim into (heads, head_dim), not (head_dim, heads).
    fit(keys)  # view and reshape alone mix the numbers up: permute as well.
    fit(by("(h d) -> b s h d k"))  # Use permute in place of reshape.
    memory_keys(stacked, heads) / (stacked.shape[-1] // heads) ** 0.5  # The keys are not scaled: the scores are, later.
    """,
    "Right: (b_s, heads, seq_len, head_dim, top_k), and nothing is mixed up.",
)

check_memory_scores = Exercise(
    "Check ``answer(query, keys)``: (b_s, heads, seq_len, head_dim) and (b_s, heads, seq_len, head_dim, top_k) to "
    "scaled scores (b_s, heads, seq_len, top_k).",
    memory_scores,
    [draw(71 + i, sizes[:4], sizes) for i, sizes in enumerate(SCORE_SIZES)],  # the first ones let query @ keys run
    """
    d = query.shape[-1]; dots = lambda size=1, names="bhsd,bhsdk->bhsk": torch.einsum(names, query, keys) / size**0.5
    dots()  # The scores are not scaled: divide by the root of head_dim.
    dots(d**2)  # The scores are divided by head_dim: divide by its root, once.
    dots(keys.shape[-1]); dots(query.shape[1]); dots(query.shape[2]); dots(query.shape[1] * d)  # Use √head_dim.
    dots(1 / d)  # The scores are multiplied by the root of head_dim: divide by it.
    memory_scores(query, keys).softmax(-1)  # These are weights, after the softmax: return the scores before it.
    query.unsqueeze(2) @ keys; query @ keys  # Queries meet every token's memories, and the scale is missing.
    query[..., None] * keys / d**0.5  # The products are not summed: d is missing right of the arrow.
    (query[..., None] * keys).sum(-1)  # The sum runs over top_k: it must run over head_dim, dim=-2.
    dots(d, "bhsd,bhtdk->bhsk")  # seq_len needs one name: here its keys are summed.
    dots(d, "bhsd,bhsdk->bshk")  # The order is (b_s, heads, seq_len, top_k).
    dots(d, "bhsd,bhsdk->bsk")  # The heads are added up: h must stay.
    """,
    "Right: one scaled score for each token, head and memory.",
)


def _search(seed: int, tokens: int, memories: int, dim: int, value_dim: int, top_k: int, size: float = 2.0) -> tuple:
    query, key, value = draw(seed, (tokens, dim), (memories, dim), (memories, value_dim))
    return size * query, size * key, value, top_k


SEARCHES = [_search(81, 5, 7, 3, 4, 5), _search(82, 7, 11, 5, 3, 4), _search(83, 3, 13, 4, 6, 2)]
SEARCHES += [_search(84, 5, 5, 3, 2, 5), _search(85, 2, 7, 6, 5, 1), _search(86, 1, 3, 2, 1, 2)]
SEARCHES += [_search(87, 6, 130, 2, 3, 7), _search(88, 4, 9, 5, 3, 3, 20.0), _search(89, 3, 8, 4, 2, 4, 0.1)]
query, key, value, _ = _search(90, 3, 6, 4, 2, 3)  # all scores far below 0
SEARCHES += [(query.abs() * 20, -key.abs() * 20, value, 3), (query.double(), key.double(), value.double(), 2)]

check_topk_attention = Exercise(
    "Check ``answer(query, key, value, top_k)``: (tokens, head_dim), (memories, head_dim) and (memories, value_dim) to "
    "(tokens, value_dim), each token averaging over its own top_k memories.",
    topk_attention,
    SEARCHES,
    """
    root = query.shape[-1] ** 0.5; s = query @ key.mT / root; top = s.topk(top_k); best = top.values.softmax(-1)
    weighed = lambda weights, ids: torch.einsum("tk,tkd->td", weights, value[ids])
    over = lambda size: topk_attention(query * root / size**0.5, key, value, top_k)
    s.softmax(-1) @ value  # All memories are averaged: keep the top_k best scores of each token.
    kept(s.softmax(-1), top_k, 0.0) @ value  # Take the top_k first, so that weights sum to one.
    kept(s, top_k, 0.0).softmax(-1) @ value  # exp(0) is 1: leave the others out, or use −inf.
    kept(s, top_k, -100.0).softmax(-1) @ value  # Real scores may be lower than that: use −inf.
    over(1)  # The scores are not scaled: divide by the root of head_dim.
    over(query.shape[-1] ** 2)  # The scores are divided by head_dim: use its root, once.
    over(1) / root  # The scale comes after the softmax: scale the scores.
    over(top_k)  # The scale is √top_k: it must be √head_dim.
    weighed(top.values.softmax(0), top.indices)  # The softmax runs over the tokens: use dim=-1, top_k.
    weighed(top.values, top.indices)  # The scores are used as weights: take their softmax.
    topk_attention(query, key, key, top_k)  # The keys are averaged: average the values.
    best @ value[top.indices]  # A plain @ mixes tokens: use unsqueeze(-2).
    weighed(0 * best + 1 / top_k, top.indices)  # The values are averaged equally: use the softmax.
    low = s.topk(top_k, largest=False)
    weighed(low.values.softmax(-1), low.indices)  # These are the worst memories: keep the largest scores.
    topk_attention(-query, key, value, top_k)  # The sign is wrong, so the worst memories count most.
    topk_attention(query, key[:top_k], value[:top_k], top_k)  # These are the first top_k memories: take the best ones.
    best  # These are the weights: average the values with them.
    """,
    "Right: each token averages over its own top_k memories.",
)


def _two(seed: int, *shape: int, local: Tensor | float = 2.0, remote: Tensor | float = 2.0) -> tuple[Tensor, ...]:
    a, a_sums, b, b_sums = draw(seed, shape, shape[:-1], shape, shape[:-1])
    return a, a_sums + local, b, b_sums + remote


def _joint_cases() -> list[tuple[Tensor, ...]]:
    cases = [_two(91, 3, 1, 4, 4), _two(92, 2, 3, 7, 5), _two(93, 1, 2, 5, 4), _two(94, 6, 3, local=0.0, remote=0.0)]
    cases += [_two(95, 2, 1, 3, 5, local=300.0, remote=299.0), _two(96, 1, 1, 1, local=-300.0, remote=-301.0)]
    far = torch.tensor([300.0, -300.0, 0.0, 300.0])
    cases += [_two(97, 2, 4, 3, local=far, remote=far), _two(98, 2, 4, 3, local=far, remote=-far)]  # tokens; parts
    a, a_sums, b, b_sums = _two(99, 1, 2, 3, 5)
    empty = torch.full_like(b_sums, -torch.inf)
    cases += [(a, a_sums, torch.zeros_like(b), empty), (torch.zeros_like(a), empty, b, b_sums)]
    return [*cases, tuple(x.double() for x in _two(100, 2, 3, 2, local=1000.0, remote=1000.0))]


check_joint = Exercise(
    "Check ``answer(local, a, remote, b)``: outputs (…, tokens, value_dim) and "
    "log-sum-exps a and b (…, tokens) to the output of one softmax over both; either part may be empty.",
    joint,
    _joint_cases(),
    """
    mixed = lambda a, b: a[..., None] * local + b[..., None] * remote
    ratio = lambda a, b: mixed(a / (a + b), b / (a + b)); below = lambda top: ratio((a - top).exp(), (b - top).exp())
    (local + remote) / 2  # The parts are averaged equally: the one with the larger log-sum-exp counts for more.
    local + remote  # The parts are added up: their shares must sum to one.
    (b - a).sigmoid() * remote + (a - b).sigmoid() * local  # The shares meet the wrong axis: unsqueeze(-1).
    joint(local, a, remote, b) + (b - a).sigmoid()[..., None] * local  # The share of local is missing: it is 1 − share.
    torch.where((b > a)[..., None], remote, local)  # Only the larger part is kept: each counts by its share.
    joint(remote, a, local, b)  # The shares are swapped: local is weighted with the share of remote.
    ratio(a, b)  # The log-sum-exps are used as weights: take their exponentials.
    below(0)  # exp overflows or rounds to 0: use a sigmoid of the difference.
    below(max(a.max(), b.max()))  # Each token needs its own maximum: torch.maximum(a, b).
    below(a)  # exp(b − a) overflows if b is far above a.
    below(b)  # exp(a − b) overflows if a is far above b.
    mixed(a.exp(), b.exp())  # The weights do not sum to one: divide them by their sum.
    mixed(a.softmax(-1), b.softmax(-1))  # The softmax runs over tokens: the two parts compete.
    mixed(1 - b.sigmoid(), b.sigmoid())  # This share ignores a: the difference b − a counts.
    mixed(a.sigmoid(), b.sigmoid())  # Each share depends on the difference of both.
    torch.stack([a, b]).softmax(0); (b - a).sigmoid()  # These are the shares: weight the outputs with them.
    """,
    "Right: exactly one softmax over both, with large scores and with an empty part.",
)
