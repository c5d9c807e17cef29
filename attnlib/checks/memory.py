"""Exercises of notebook 06: keys cut into heads, scores of memories, top-k attention, one softmax over two parts."""

import torch
from einops import rearrange
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw
from attnlib.checks.merging import MERGE_ROWS, PARTS, parts
from attnlib.checks.self_attention import SCALE_ROWS


def memory_keys(stacked: Tensor, heads: int) -> Tensor:
    """(b_s, seq_len, top_k, 2, embed_dim) to keys (b_s, heads, seq_len, head_dim, top_k)."""
    return rearrange(stacked[..., 0, :], "b s k (h d) -> b h s d k", h=heads)


def memory_scores(query: Tensor, keys: Tensor) -> Tensor:
    """(b_s, heads, seq_len, head_dim) and (…, head_dim, top_k) to scaled scores (b_s, heads, seq_len, top_k)."""
    return torch.einsum("bhsd,bhsdk->bhsk", query, keys) / query.shape[-1] ** 0.5


def topk_attention(query: Tensor, key: Tensor, value: Tensor, top_k: int) -> Tensor:
    """(tokens, head_dim), (memories, head_dim) and (memories, value_dim) to averages over the top_k best memories."""
    scores, ids = (query @ key.mT / query.shape[-1] ** 0.5).topk(top_k)  # (tokens, top_k) each
    weights = torch.softmax(scores, dim=-1)
    return torch.einsum("tk,tkd->td", weights, value[ids])  # value[ids]: (tokens, top_k, value_dim)


def joint(local: Tensor, a: Tensor, remote: Tensor, b: Tensor) -> Tensor:
    """Outputs (…, tokens, dim) and log-sum-exps a and b (…, tokens) to one softmax over both; either may be empty."""
    share = torch.sigmoid(b - a).unsqueeze(-1)  # (..., tokens, 1)
    return share * remote + (1 - share) * local


def kept(scores: Tensor, top_k: int, fill: float = -torch.inf, dim: int = -1, largest: bool = True) -> Tensor:
    """Scores with all but the best along an axis filled."""
    ids = scores.topk(min(top_k, scores.shape[dim]), dim, largest).indices
    return scores.masked_fill(~torch.zeros_like(scores, dtype=torch.bool).scatter(dim, ids, True), fill)


# Mistakes with the top k. A table says what its scores are, `s`, and what `average` makes of weights.
TOPK_ROWS = """
average(s.softmax(-1))  # All keys have a weight: keep the top_k best of each query.
average(kept(s.softmax(-1), top_k, 0.0))  # The weights do not sum to one: take the top_k first, then the softmax.
average(kept(s, top_k, 0.0).softmax(-1))  # exp(0) is 1: leave the others out, or fill with −inf.
average(kept(s, top_k, -100.0).softmax(-1))  # Real scores may be lower than that: fill with −inf.
average(kept(s, top_k, largest=False).softmax(-1))  # These are the worst keys: keep the largest scores.
columns = kept(s, top_k, dim=-2).softmax(-1); across = kept(s, top_k).softmax(-2)
average(columns); average(columns.nan_to_num())  # These are the best queries of a key: use dim=-1.
average(across); average(across.nan_to_num())  # The softmax runs over the queries: use dim=-1.
average(kept(s, top_k + 1).softmax(-1))  # One key too many is kept.
average(kept(s, max(top_k - 1, 1)).softmax(-1))  # One key too few: the last one is dropped.
average(share(kept(s, top_k).isfinite().to(s.dtype)))  # All weights are equal: take the softmax of the best scores.
"""

KEY_SIZES = ((3, 4, 7, 6, 5), (2, 3, 5, 2, 7), (1, 1, 3, 5, 2), (1, 5, 1, 3, 1), (2, 3, 4, 1, 5), (2, 2, 2, 2, 2))
STACKED = [(*draw(61 + i, (b, s, k, 2, h * d)), h) for i, (b, h, s, d, k) in enumerate(KEY_SIZES)]
KEYS_TABLE = """
Right: (b_s, heads, seq_len, head_dim, top_k), and nothing is mixed up.
keys = stacked[..., 0, :]; by = lambda axes: rearrange(keys, f"b s k {axes}", h=heads)
fit = lambda numbers: numbers.reshape(memory_keys(stacked, heads).shape)
memory_keys(stacked.flip(-2), heads)  # These are the values: the keys are at index 0 of the axis of size 2.
by("(h d) -> b h s k d")  # This is the layout of values: keys end in (head_dim, top_k).
by("(h d) -> b s h d k")  # The heads are not brought forward: they come right after b_s.
by("(h d) -> b s (h d) k"); by("(h d) -> b s k (h d)")  # embed_dim is not cut: make (heads, head_dim) of it.
rearrange(keys, "b s k (h d) -> b h s d k", d=heads)  # This makes head_dim heads: use h=heads.
by("(d h) -> b h s d k")  # Cut embed_dim into (heads, head_dim), not (head_dim, heads).
fit(keys); fit(by("(h d) -> b s h d k"))  # view and reshape alone mix the numbers up: permute as well.
memory_keys(stacked, heads) / (stacked.shape[-1] // heads) ** 0.5  # The keys are not scaled: the scores are, later.
"""
check_memory_keys = Exercise(memory_keys, STACKED, KEYS_TABLE)

SCORE_SIZES = ((1, 1, 7, 6, 5), (5, 5, 5, 5, 5), (3, 4, 7, 6, 5), (2, 3, 5, 4, 7), (2, 3, 1, 2, 1), (2, 3, 2, 1, 4))
FOUND = [draw(71 + i, sizes[:4], sizes) for i, sizes in enumerate(SCORE_SIZES)]  # the first ones let query @ keys run
SCORES_TABLE = """
Right: one scaled score for each token, head and memory.
d = query.shape[-1]; over = lambda n, names="bhsd,bhsdk->bhsk": torch.einsum(names, query, keys) / n**0.5
over(keys.shape[-1]); over(query.shape[1]); over(query.shape[2]); over(query.shape[1] * d)  # Wrong root: use √head_dim.
memory_scores(query, keys).softmax(-1)  # These are weights, after the softmax: return the scores before it.
query.unsqueeze(2) @ keys; query @ keys  # Queries meet every token's memories, and the scale is missing.
query[..., None] * keys / d**0.5  # The products are not summed: leave d out right of the arrow.
(query[..., None] * keys).sum(-1)  # The sum runs over top_k: it must run over head_dim, dim=-2.
over(d, "bhsd,bhtdk->bhsk")  # seq_len needs one name: here its keys are summed.
over(d, "bhsd,bhsdk->bshk")  # The order is (b_s, heads, seq_len, top_k).
over(d, "bhsd,bhsdk->bsk")  # The heads are added up: h must stay.
over(1)  # The scale is missing: divide the scores by √head_dim.
over(d**2)  # The scores are divided by head_dim: divide by its square root, once.
over(1 / d)  # The scores are multiplied by √head_dim: divide them.
"""
check_memory_scores = Exercise(memory_scores, FOUND, SCORES_TABLE)

SIZES = ((5, 7, 3, 4, 5), (7, 11, 5, 3, 4), (3, 13, 4, 6, 2), (5, 5, 3, 2, 5), (2, 7, 6, 5, 1), (1, 3, 2, 1, 2))
LOOKUPS = [(*draw(81 + i, (n, d), (m, d), (m, v), scale=2.0), k) for i, (n, m, d, v, k) in enumerate(SIZES)]
LOOKUPS += [(*draw(87, (6, 2), (130, 2), (130, 3), scale=2.0), 7), (*draw(88, (4, 5), (9, 5), (9, 3), scale=20.0), 3)]
QUERY, KEY, VALUE = draw(90, (3, 4), (6, 4), (6, 2), scale=2.0)
LOOKUPS += [(QUERY / 10, KEY / 10, VALUE, 4), (QUERY.double(), KEY.double(), VALUE.double(), 2)]
LOOKUPS += [(20 * QUERY.abs(), -20 * KEY.abs(), VALUE, 3)]  # all scores far below 0
TOPK_TABLE = f"""
Right: each token averages over its own top_k memories.
d = query.shape[-1]; s = query @ key.mT / d**0.5; average = lambda weights: weights @ value
over = lambda n: topk_attention(query * (d / n) ** 0.5, key, value, top_k)
top = s.topk(top_k); best = top.values.softmax(-1)
weighed = lambda weights: torch.einsum("tk,tkd->td", weights, value[top.indices])
over(top_k)  # The scale is √top_k: it must be √head_dim.
weighed(top.values.softmax(0))  # The softmax runs over the tokens: use dim=-1, top_k.
weighed(top.values)  # The scores are used as weights: take their softmax.
topk_attention(query, key, key, top_k)  # The keys are averaged: average the values.
best @ value[top.indices]  # A plain @ mixes tokens: use unsqueeze(-2).
topk_attention(query, key[:top_k], value[:top_k], top_k)  # These are the first top_k memories: take the best ones.
best  # These are the weights: average the values with them.
{SCALE_ROWS}{TOPK_ROWS}"""
check_topk_attention = Exercise(topk_attention, LOOKUPS, TOPK_TABLE)

STACKS = [*PARTS, parts(92, (2, 2, 3, 7, 5)), parts(93, (3, 1, 2, 5, 4))]  # the last two with a batch and heads
PAIRS = [(x[i], a[i], x[i + 1], a[i + 1]) for x, a in STACKS for i in range(len(x) - 1)]
JOINT_TABLE = f"""
Right: exactly one softmax over both, with large scores and with an empty part.
outputs = torch.stack([local, remote]); logsumexps = torch.stack([a, b])
mixed = lambda x, y: x[..., None] * local + y[..., None] * remote
below = lambda top: mixed((a - top).exp(), (b - top).exp()) / ((a - top).exp() + (b - top).exp())[..., None]
(b - a).sigmoid() * remote + (a - b).sigmoid() * local  # The shares meet the wrong axis: unsqueeze(-1).
joint(local, a, remote, b) + (b - a).sigmoid()[..., None] * local  # The share of local is missing: it is 1 − share.
torch.where((b > a)[..., None], remote, local)  # Only the larger part is kept: each counts by its share.
joint(remote, a, local, b)  # The shares are swapped: local is weighted with the share of remote.
below(a); below(b)  # exp(b − a) overflows if b is far above a, and exp(a − b) if a is: use a sigmoid.
mixed(1 - b.sigmoid(), b.sigmoid()); mixed(a.sigmoid(), b.sigmoid())  # Each share depends on the difference b − a.
(b - a).sigmoid()  # These are the weights of the parts: average the outputs with them.
{MERGE_ROWS}"""
check_joint = Exercise(joint, PAIRS, JOINT_TABLE)
