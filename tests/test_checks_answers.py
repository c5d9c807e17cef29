"""Right answers that differ from the reference pass, and wrong ones that differ from the tables' are named."""

import inspect

import einops
import pytest
import torch
from torch import nn

from attnlib import MultiHeadAttention, MultiHeadAttentionWrapper, SelfAttention_v2, checks
from attnlib.attend import Attended, merge  # noqa: F401 (rows use the first)
from attnlib.checks.exercise import IN_EVERY_TABLE
from attnlib.lsh import hash_buckets  # noqa: F401 (a row uses it)
from attnlib.memory import split_memory_heads  # noqa: F401 (a row uses it)


def softmax_rows(scores):
    rows = [(row - row.max()).exp() for row in scores.reshape(-1, scores.shape[-1])]
    return torch.stack([row / row.sum() for row in rows]).reshape(scores.shape)


def carried(v1, parameter=lambda weight: nn.Parameter(weight.detach().T.clone()), names=("query", "key", "value")):
    v2 = SelfAttention_v2(*v1.W_query.shape)
    for name in names:
        getattr(v2, f"W_{name}").weight = parameter(getattr(v1, f"W_{name}"))
    return v2


def upper(scores, diagonal=1):
    return torch.full(scores.shape[-2:], -torch.inf).triu(diagonal)


def look(lengths, tokens):
    places = range(tokens)
    return torch.tensor([[[key <= query and key < n for key in places] for query in places] for n in lengths])


def leak_of(layer, x, position):
    return (layer(torch.cat([x[:position], x[position:] + 1]))[:position] - layer(x)[:position]).abs().max()


def wrapper(x, seed=5, d_out=1, num_heads=2):
    if seed is not None:
        torch.manual_seed(seed)
    return MultiHeadAttentionWrapper(x.shape[2], d_out, x.shape[1], num_heads, dropout=0.0)(x)


def counted(d_in, d_out, num_heads, qkv_bias):
    return sum(p.numel() for p in MultiHeadAttention(d_in, d_out, 7, 0.0, num_heads, qkv_bias).parameters())


def many_heads(query, key, value, num_heads):
    q, k, v = (einops.rearrange(x, "b t (h c) -> b h t c", h=num_heads) for x in (query, key, value))
    scores = torch.einsum("bhqc,bhkc->bhqk", q, k) * q.shape[-1] ** -0.5
    return einops.rearrange((scores + upper(scores)).softmax(-1) @ v, "b h t c -> b t (h c)")


def in_words(x, W_query, W_key, W_value, scores="b q h d, b k h d -> b h q k"):
    query, key, value = (einops.einsum(x, w, "b t m, h m d -> b t h d") for w in (W_query, W_key, W_value))
    pattern = (einops.einsum(query, key, scores) / query.shape[-1] ** 0.5).softmax(-1)
    return einops.rearrange(einops.einsum(pattern, value, "b h q k, b k h d -> b h q d"), "b h q d -> b q h d")


def topk_masked(query, key, value, top_k):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.masked_fill(scores < scores.topk(top_k).values[:, -1:], -torch.inf).softmax(-1) @ value


def visible_in_loops(buckets, chunk_size):
    table = torch.zeros(len(buckets), len(buckets), dtype=torch.bool)
    for i in range(len(buckets)):
        table[i, [j for j in range(i) if buckets[j] == buckets[i]][-chunk_size:]] = True
    return table


def with_maximum(outputs, logsumexps):
    weights = (logsumexps - logsumexps.max(dim=0).values).exp()
    return torch.einsum("ptd,pt->td", outputs, weights) / weights.sum(0)[:, None]


def step_in_place(top, total, scores):
    new_top = max(top, scores.max())
    total *= torch.exp(top - new_top)
    total += torch.exp(scores - new_top).sum()
    return torch.stack([new_top, total])


def shares_in_loops(weights):
    rows = []
    for head in weights:
        n = len(head)
        shares = [[head[i, i - 1] for i in range(1, n)], [head[i, i + 1] for i in range(n - 1)], head[1:, 0]]
        rows.append(torch.stack([sum(share) / (n - 1) for share in shares]))
    return torch.stack(rows)


def topk_by_sorting(scores, top_k):
    places = scores.argsort(descending=True).argsort()
    return scores.masked_fill(places >= top_k, -torch.inf).softmax(-1)


def outside_no_grad(v1):
    SelfAttention_v2(*v1.W_query.shape).W_query.weight.copy_(v1.W_query.T)


# Each row: the exercise, and expressions in its arguments that are right.
RIGHT = """
weighted_average: (weights[:, None] * values).sum(0); values.T @ weights; (weights @ values).tolist()
same: torch.allclose(a, b, rtol=0, atol=1e-5); not ((a - b).abs() > 1e-5).any(); (a - b).abs().max() < 1e-5
scores_shape: (*query.shape[:-1], key.shape[-2]); [*query.shape[:3], key.shape[2]]; query.shape[:3] + key.shape[2:3]
scores: [token @ query for token in tokens]; (tokens * query).sum(-1)
softmax: softmax_rows(scores); (scores - scores.logsumexp(-1, keepdim=True)).exp()
softmax: (e := (scores - scores.max(-1, keepdim=True).values).exp()) / e.sum(-1)[..., None]
context_vectors: F.scaled_dot_product_attention(tokens, tokens, tokens, scale=1.0)
cosine_context: F.cosine_similarity(tokens[:, None], tokens[None], dim=-1).softmax(-1) @ tokens
scaled_weights: softmax_rows(query @ key.T / query.shape[1] ** 0.5); ((query / len(query.T) ** 0.5) @ key.T).softmax(1)
self_attention: F.scaled_dot_product_attention(x @ W_query, x @ W_key, x @ W_value)
linear: F.linear(x, weight, bias); torch.einsum("...i,oi->...o", x, weight) + bias
v2_from_v1: carried(v1)
causal_weights: (scores + upper(scores)).softmax(-1)
causal_weights: scores.masked_fill(upper(scores).isinf(), torch.finfo(scores.dtype).min).softmax(-1)
look_mask: look(lengths, tokens)
look_mask: (torch.arange(tokens) < lengths.view(-1, 1, 1)).logical_and(torch.ones(tokens, tokens).tril())
dropout: torch.where(keep, weights / (1 - p), 0.0)
leak: leak_of(layer, x, position); float(leak_of(layer, x, position))
two_columns: wrapper(x); wrapper(x, num_heads=4)[..., :2]
split_heads: einops.rearrange(x, "b t (h c) -> b h t c", h=num_heads); torch.stack(x.chunk(num_heads, -1), 1)
join_heads: torch.cat(list(heads.unbind(1)), -1); einops.rearrange(heads, "b h t c -> b t (h c)")
parameter_count: counted(d_in, d_out, num_heads, qkv_bias); d_out * (3 * d_in + 3 * qkv_bias + d_out + 1)
multi_head: many_heads(query, key, value, num_heads)
loops_equation: "hqk->hk"; " a b c->a c\\n"; "h q k -> h k"
matmul_equation: "nti,ntj"; "n t i, n t j -> i j\\n"; "btr,btc->rc"
head_output: torch.cat([pattern[:, h] @ value[:, :, h] for h in range(value.shape[2])], dim=-1)
einsum_attention: in_words(x, W_query, W_key, W_value)
memory_keys: stacked[..., 0, :].unflatten(-1, (heads, -1)).permute(0, 3, 1, 4, 2); split_memory_heads(stacked, heads)[0]
memory_scores: (query.unsqueeze(-2) @ keys).squeeze(-2) / query.shape[-1] ** 0.5
topk_attention: topk_masked(query, key, value, top_k)
joint: merge([Attended(local, a), Attended(remote, b)]).output
joint: local + (remote - local) / (1 + (a - b).exp())[..., None]
hash: hash_buckets(vectors[None, None], directions[None, None])[0, 0, 0]
sort_and_undo: torch.stack([o := buckets.sort(stable=True).indices, o.argsort()])
combine_rounds: with_maximum(outputs, logsumexps)
visible: visible_in_loops(buckets, chunk_size)
count_once: torch.where(seen, scores - seen.sum(0).log(), -torch.inf)
log_sum_exp: (top := scores.max(-1).values) + torch.log(torch.exp(scores - top[..., None]).sum(-1))
merge: with_maximum(outputs, logsumexps); merge([Attended(*part) for part in zip(outputs, logsumexps)]).output
online_step: step_in_place(top, total, scores)
overlapping: scores[seen.any(0)].softmax(0) @ values[seen.any(0)]; (scores + seen.any(0).log()).softmax(-1) @ values
masked_mean: torch.stack([text[real].mean(0) for text, real in zip(states, key_mask)])
masked_mean: states.masked_fill(~key_mask[..., None], torch.nan).nanmean(1)
head_shares: shares_in_loops(weights)
topk_weights: topk_by_sorting(scores, top_k)
search: (questions @ (documents / documents.norm(dim=-1, keepdim=True)).T).topk(top_k).indices
search: F.cosine_similarity(questions[:, None], documents, dim=-1).argsort(descending=True)[:, :top_k]
"""

# Each row: the exercise, an expression that is wrong, and words of what is said about it.
WRONG = """
same: bool((a - b).abs().max() < 8e-6)  # difference is 9e-06; True is right
same: bool((a - b).abs().max() < 2e-5)  # difference is 1.2e-05; False is right
same: torch.testing.assert_close(a, b)  # Return True or False instead
scores_shape: (query @ key.mT).shape  # do without matmul()
softmax: scores.softmax(-1)  # do without softmax()
softmax: nn.LogSoftmax(-1)(scores).exp()  # do without log_softmax()
context_vectors: (tokens @ tokens.T).softmax(-1) @ tokens  # Right for tokens (4, 4). But for tokens (7, 2, 3)
context_vectors: (tokens @ tokens.T).softmax(-1) @ tokens  # .T reverses all axes
context_vectors: (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens  # Count axes from the end
cosine_context: (tokens @ tokens.T / tokens.norm() ** 2).softmax(-1) @ tokens  # All tokens share one length
linear: (weight @ x.transpose(0, 1)).T + bias  # But for x (2, 5, 3)
v2_from_v1: outside_no_grad(v1)  # Write into a parameter under torch.no_grad()
v2_from_v1: carried(v1, names=("query", "key"))  # still drawn at random
v2_from_v1: 3  # return a SelfAttention_v2
v2_from_v1: carried(v1, lambda w: nn.Parameter(w.T.clone(), False))  # are frozen
causal_weights: scores.masked_fill(upper(scores).isinf(), -50.0).softmax(-1)  # a finite number
causal_weights: (w := scores.softmax(-1).tril()) / (w.sum(-1, keepdim=True) + 1e-9)  # round to 0
dropout: F.dropout(weights, p)  # Two calls give different numbers
two_columns: wrapper(x, seed=None)  # right before you make the wrapper
join_heads: heads.transpose(1, 2).view(len(heads), heads.shape[2], -1)  # RuntimeError
multi_head: F.scaled_dot_product_attention(query, key, value, is_causal=True)  # without scaled_dot_product_attention()
loops_equation: "head key query -> head key"  # you wrote `head query key -> head query`. But
loops_equation: "h q -> h"  # but its shape is
loops_equation: ("h q k", "h k")  # raised
matmul_equation: "n t i, m s j -> i j"  # `batch` and `token` must have the same name
matmul_equation: "n i t, n t j -> i j"  # two sizes
matmul_equation: "t i, t j -> i j"  # need no name.
einsum_attention: in_words(x, W_query, W_key, W_value, "b t h d, b t h d -> b h t t")  # need two names
einsum_attention: in_words(x, W_query, W_key, W_value).view(*x.shape[:2], len(W_query), -1)  # do without view()
einsum_attention: x[:, None] @ W_query  # do without matmul()
sort_and_undo: (buckets.argsort(stable=True), buckets.argsort(stable=True))  # make them one tensor
log_sum_exp: torch.special.logsumexp(scores, dim=-1)  # do without logsumexp()
"""


def judged(row):
    """The verdict on each expression of a row."""
    name, _, codes = row.partition(": ")
    check = getattr(checks, f"check_{name}")
    parameters, names = ", ".join(inspect.signature(check.reference).parameters), IN_EVERY_TABLE | globals()
    return [check(eval(f"lambda {parameters}: {code}", names)) for code in codes.split("; ")]


@pytest.mark.parametrize("row", RIGHT.strip().splitlines())
def test_right_answers_pass(row):
    for verdict in judged(row):
        verdict.require()


@pytest.mark.filterwarnings("ignore:The use of `x.T`")  # as learners write it
@pytest.mark.parametrize("row", WRONG.strip().splitlines())
def test_wrong_answers_are_named(row):
    answer, _, words = row.partition("  # ")
    (verdict,) = judged(answer)
    assert not verdict.passed
    assert words in verdict.message
    assert not verdict.message.endswith("..")
