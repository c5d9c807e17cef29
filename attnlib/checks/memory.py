"""Exercises of notebook 06: keys cut into heads, scores of memories, top-k attention, one softmax over two parts."""

from collections.abc import Callable

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


def keys_by(stacked: Tensor, heads: int, pattern: str) -> Tensor:
    """The keys, or what another pattern makes of them."""
    return rearrange(stacked[..., 0, :], pattern, h=heads)


def right_shape(numbers: Tensor, stacked: Tensor, heads: int) -> Tensor:
    """The mistake of reading numbers in the order in which they lie."""
    return numbers.reshape(memory_keys(stacked, heads).shape)


def kept(scores: Tensor, top_k: int, fill: float = -torch.inf) -> Tensor:
    """Scores with all but the best of each row filled."""
    best = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(top_k).indices, True)
    return scores.masked_fill(~best, fill)


def dots(query: Tensor, keys: Tensor, size: float = 1.0, equation: str = "bhsd,bhsdk->bhsk") -> Tensor:
    return torch.einsum(equation, query, keys) / size**0.5


def scaled(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.mT / query.shape[-1] ** 0.5


def best(query: Tensor, key: Tensor, top_k: int) -> Tensor:
    return scaled(query, key).topk(top_k)[0].softmax(-1)


def weigh(query: Tensor, key: Tensor, value: Tensor, top_k: int, by: Callable = lambda s: s.softmax(-1)) -> Tensor:
    """Top-k attention with other weights: ``by`` makes them from the scaled scores."""
    scores, ids = scaled(query, key).topk(top_k)
    return torch.einsum("tk,tkd->td", by(scores), value[ids])


def by_size(query: Tensor, key: Tensor, value: Tensor, top_k: int) -> Tensor:
    """Top-k attention that takes the scores furthest from 0."""
    scores = scaled(query, key)
    ids = scores.abs().topk(top_k).indices
    return torch.einsum("tk,tkd->td", scores.gather(-1, ids).softmax(-1), value[ids])


def worst(query: Tensor, key: Tensor, value: Tensor, top_k: int) -> Tensor:
    """Attention to the memories with the smallest scores."""
    scores, ids = scaled(query, key).topk(top_k, largest=False)
    return torch.einsum("tk,tkd->td", scores.softmax(-1), value[ids])


def over(query: Tensor, key: Tensor, value: Tensor, top_k: int, size: float) -> Tensor:
    """Top-k attention with scores divided by the root of another size."""
    return topk_attention(query * (query.shape[-1] / size) ** 0.5, key, value, top_k)


def mixed(local: Tensor, a: Tensor, remote: Tensor, b: Tensor) -> Tensor:
    """The sum of both outputs with these weights."""
    return a[..., None] * local + b[..., None] * remote


def below(top: Tensor | float, local: Tensor, a: Tensor, remote: Tensor, b: Tensor) -> Tensor:
    """The exponentials as weights, after this top was subtracted."""
    a, b = (a - top).exp(), (b - top).exp()
    return mixed(local, a / (a + b), remote, b / (a + b))


KEY_SIZES = ((3, 4, 7, 6, 5), (2, 3, 5, 2, 7), (1, 1, 3, 5, 2), (1, 5, 1, 3, 1), (2, 3, 4, 1, 5), (2, 2, 2, 2, 2))
SCORE_SIZES = ((1, 1, 7, 6, 5), (5, 5, 5, 5, 5), (3, 4, 7, 6, 5), (2, 3, 5, 4, 7), (2, 3, 1, 2, 1), (2, 3, 2, 1, 4))

check_memory_keys = Exercise(
    "Check ``answer(stacked, heads)``: (b_s, seq_len, top_k, 2, embed_dim) to keys (b_s, heads, seq_len, head_dim, "
    "top_k).",
    memory_keys,
    [(*draw(61 + i, (b, s, k, 2, h * d)), h) for i, (b, h, s, d, k) in enumerate(KEY_SIZES)],
    """
    memory_keys(stacked.flip(-2), heads)  # These are the values: the keys are at index 0 of the axis of size 2.
    memory_keys(stacked.sum(-2, True), heads)  # Keys and values are added: take index 0 of the axis of size 2.
    keys_by(stacked, heads, "b s k (h d) -> b h s k d")  # This is the layout of values: keys end in (head_dim, top_k).
    keys_by(stacked, heads, "b s k (h d) -> b s h d k")  # The heads are not brought forward: they come right after b_s.
    keys_by(stacked, heads, "b s k (h d) -> b s (h d) k")  # embed_dim is not cut: make (heads, head_dim) of it.
    keys_by(stacked, heads, "b s k (h d) -> b s k (h d)")  # Cut embed_dim into (heads, head_dim), then move axes.
    rearrange(stacked[..., 0, :], "b s k (h d) -> b h s d k", d=heads)  # This makes head_dim heads: use h=heads.
    keys_by(stacked, heads, "b s k (d h) -> b h s d k")  # Cut embed_dim into (heads, head_dim), not (head_dim, heads).
    right_shape(stacked[..., 0, :], stacked, heads)  # view and reshape alone mix the numbers up: permute as well.
    right_shape(keys_by(stacked, heads, "b s k (h d) -> b s h d k"), stacked, heads)  # Use permute in place of reshape.
    memory_keys(stacked, heads) / (stacked.shape[-1] // heads) ** 0.5  # The keys are not scaled: the scores are, later.
    """,
    "Right: (b_s, heads, seq_len, head_dim, top_k), and nothing is mixed up.",
)

check_memory_scores = Exercise(
    "Check ``answer(query, keys)``: (b_s, heads, seq_len, head_dim) and (b_s, heads, seq_len, head_dim, top_k) to "
    "scaled scores (b_s, heads, seq_len, top_k).",
    memory_scores,
    [draw(71 + i, sizes[:4], sizes) for i, sizes in enumerate(SCORE_SIZES)],  # in the first ones query @ keys runs
    """
    dots(query, keys)  # The scores are not scaled: divide by the root of head_dim.
    dots(query, keys, query.shape[-1] ** 2)  # The scores are divided by head_dim: divide by its root, once.
    dots(query, keys, keys.shape[-1])  # The scale is √top_k: it must be √head_dim.
    dots(query, keys, query.shape[1])  # The scale is √heads: it must be √head_dim.
    dots(query, keys, query.shape[2])  # The scale is √seq_len: it must be √head_dim.
    dots(query, keys, query.shape[1] * query.shape[3])  # The scale is √embed_dim: it must be √head_dim.
    dots(query, keys, 1 / query.shape[-1])  # The scores are multiplied by the root of head_dim: divide by it.
    memory_scores(query, keys).softmax(-1)  # These are weights, after the softmax: return the scores before it.
    query.unsqueeze(2) @ keys; query @ keys  # Queries meet every token's memories, and the scale is missing.
    query[..., None] * keys / query.shape[-1] ** 0.5  # The products are not summed: d is missing right of the arrow.
    (query[..., None] * keys).sum(-1)  # The sum runs over top_k: it must run over head_dim, dim=-2.
    dots(query, keys, query.shape[-1], "bhsd,bhtdk->bhsk")  # seq_len needs one name: here its keys are summed.
    dots(query, keys, query.shape[-1], "bhsd,bhsdk->bshk")  # The order is (b_s, heads, seq_len, top_k).
    dots(query, keys, query.shape[-1], "bhsd,bhsdk->bsk")  # The heads are added up: h must stay.
    """,
    "Right: one scaled score for each token, head and memory.",
)


def _search(seed: int, tokens: int, memories: int, dim: int, value_dim: int, top_k: int, size: float = 2.0) -> tuple:
    query, key, value = draw(seed, (tokens, dim), (memories, dim), (memories, value_dim))
    return size * query, size * key, value, top_k


SEARCHES = [_search(81, 5, 7, 3, 4, 5), _search(82, 7, 11, 5, 3, 4), _search(83, 3, 13, 4, 6, 2)]
SEARCHES += [_search(84, 5, 5, 3, 2, 5), _search(85, 2, 7, 6, 5, 1), _search(86, 1, 3, 2, 1, 2)]
SEARCHES += [_search(87, 6, 130, 2, 3, 7), _search(88, 4, 9, 5, 3, 3, 20.0)]  # scores in the hundreds
SEARCHES += [_search(89, 3, 8, 4, 2, 4, 0.1)]  # scores that are almost equal
_below = _search(90, 3, 6, 4, 2, 3)  # all scores far below 0
SEARCHES += [(_below[0].abs() * 20, -_below[1].abs() * 20, *_below[2:])]
SEARCHES += [tuple(x.double() if isinstance(x, Tensor) else x for x in SEARCHES[1])]

check_topk_attention = Exercise(
    "Check ``answer(query, key, value, top_k)``: (tokens, head_dim), (memories, head_dim) and (memories, value_dim) to "
    "(tokens, value_dim), each token averaging over its own top_k memories.",
    topk_attention,
    SEARCHES,
    """
    scaled(query, key).softmax(-1) @ value  # All memories are averaged: keep the top_k best scores of each token.
    kept(scaled(query, key).softmax(-1), top_k, 0.0) @ value  # Take the top_k first, so that weights sum to one.
    kept(scaled(query, key), top_k, 0.0).softmax(-1) @ value  # exp(0) is 1: leave the others out, or use −inf.
    kept(scaled(query, key), top_k, -100.0).softmax(-1) @ value  # Real scores may be lower than that: use −inf.
    over(query, key, value, top_k, 1)  # The scores are not scaled: divide by the root of head_dim.
    over(query, key, value, top_k, query.shape[-1] ** 2)  # The scores are divided by head_dim: use its root, once.
    over(query, key, value, top_k, 1) / query.shape[-1] ** 0.5  # The scale comes after the softmax: scale the scores.
    over(query, key, value, top_k, top_k)  # The scale is √top_k: it must be √head_dim.
    weigh(query, key, value, top_k, lambda s: s.softmax(0))  # The softmax runs over the tokens: use dim=-1, top_k.
    weigh(query, key, value, top_k, lambda s: s)  # The scores are used as weights: take their softmax.
    weigh(query, key, key, top_k)  # The keys are averaged: average the values.
    best(query, key, top_k) @ value[scaled(query, key).topk(top_k)[1]]  # A plain @ mixes tokens: use unsqueeze(-2).
    best(query, key, top_k) @ value[:top_k]  # The first top_k values are averaged: take value[ids].
    weigh(query, key, value, top_k, lambda s: 0 * s + 1 / top_k)  # The values are averaged equally: use the softmax.
    by_size(query, key, value, top_k)  # Scores are compared by size, so one far below 0 is kept: drop the abs.
    topk_attention(-query, key, value, top_k)  # The sign is wrong, so the worst memories count most.
    worst(query, key, value, top_k)  # These are the worst memories: keep the largest scores.
    topk_attention(query, key[:top_k], value[:top_k], top_k)  # These are the first top_k memories: take the best ones.
    best(query, key, top_k)  # These are the weights: average the values with them.
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
    (local + remote) / 2  # The parts are averaged equally: the one with the larger log-sum-exp counts for more.
    local + remote  # The parts are added up: their shares must sum to one.
    (b - a).sigmoid() * remote + (a - b).sigmoid() * local  # The shares meet the wrong axis: unsqueeze(-1).
    joint(local, a, remote, b) + (b - a).sigmoid()[..., None] * local  # The share of local is missing: it is 1 − share.
    torch.where((b > a)[..., None], remote, local)  # Only the larger part is kept: each counts by its share.
    joint(remote, a, local, b)  # The shares are swapped: local is weighted with the share of remote.
    mixed(local, a / (a + b), remote, b / (a + b))  # The log-sum-exps are used as weights: take their exponentials.
    below(0.0, local, a, remote, b)  # exp overflows or rounds to 0: use a sigmoid of the difference.
    below(max(a.max(), b.max()), local, a, remote, b)  # Each token needs its own maximum: torch.maximum(a, b).
    below(a, local, a, remote, b)  # exp(b − a) overflows if b is far above a.
    below(b, local, a, remote, b)  # exp(a − b) overflows if a is far above b.
    mixed(local, a.exp(), remote, b.exp())  # The weights do not sum to one: divide them by their sum.
    mixed(local, a.softmax(-1), remote, b.softmax(-1))  # The softmax runs over tokens: the two parts compete.
    mixed(local, 1 - b.sigmoid(), remote, b.sigmoid())  # This share ignores a: the difference b − a counts.
    mixed(local, a.sigmoid(), remote, b.sigmoid())  # Each share depends on the difference of both.
    torch.stack([a, b]).softmax(0); (b - a).sigmoid()  # These are the shares: weight the outputs with them.
    """,
    "Right: exactly one softmax over both, with large scores and with an empty part.",
)
