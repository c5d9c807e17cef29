"""Right answers that differ from the reference pass, and wrong ones that differ from the tables' are named."""

import einops
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnlib import MultiHeadAttention, MultiHeadAttentionWrapper, SelfAttention_v2
from attnlib.attend import Attended, attend, merge
from attnlib.checks import (
    check_causal_weights,
    check_combine_rounds,
    check_context_vectors,
    check_cosine_context,
    check_count_once,
    check_dropout,
    check_einsum_attention,
    check_hash,
    check_head_output,
    check_join_heads,
    check_joint,
    check_leak,
    check_linear,
    check_log_sum_exp,
    check_look_mask,
    check_loops_equation,
    check_matmul_equation,
    check_memory_keys,
    check_memory_scores,
    check_merge,
    check_multi_head,
    check_online_step,
    check_overlapping,
    check_parameter_count,
    check_same,
    check_scaled_weights,
    check_scores,
    check_scores_shape,
    check_self_attention,
    check_softmax,
    check_sort_and_undo,
    check_split_heads,
    check_topk_attention,
    check_two_columns,
    check_v2_from_v1,
    check_visible,
    check_weighted_average,
)
from attnlib.lsh import hash_buckets
from attnlib.memory import split_memory_heads


def same_in_a_loop(a, b):
    return all(abs(x - y) <= 1e-5 for x, y in zip(a.flatten().tolist(), b.flatten().tolist()))


def scores_with_loops(query, tokens):
    scores = torch.zeros(len(tokens)).to(query)
    for j in range(tokens.shape[0]):
        for c in range(tokens.shape[1]):
            scores[j] += query[c] * tokens[j, c]
    return scores


def softmax_row_by_row(scores):
    rows = [(row - row.max()).exp() for row in scores.reshape(-1, scores.shape[-1])]
    return torch.stack([row / row.sum() for row in rows]).reshape(scores.shape)


def contexts_with_loops(x):
    if x.ndim == 3:
        return torch.stack([contexts_with_loops(sentence) for sentence in x])
    return torch.stack([(x @ query).softmax(0) @ x for query in x])


def cosine_contexts_with_loops(x):
    rows = [torch.stack([query @ key / (query.norm() * key.norm()) for key in x]) for query in x]
    return torch.stack([row.softmax(0) @ x for row in rows])


def weights_with_loops(query, key):
    rows = [torch.stack([q @ k / len(q) ** 0.5 for k in key]) for q in query]
    return torch.stack([(row - row.max()).exp() / (row - row.max()).exp().sum() for row in rows])


def carried(v1, parameter=lambda weight: nn.Parameter(weight.detach().T.clone())):
    v2 = SelfAttention_v2(*v1.W_query.shape)
    for name in ("W_query", "W_key", "W_value"):
        getattr(v2, name).weight = parameter(getattr(v1, name))
    return v2


def carried_by_state_dict(v1):
    v2 = SelfAttention_v2(*v1.W_query.shape, qkv_bias=True)
    state = {f"{name}.weight": weight.T for name, weight in v1.state_dict().items()}
    v2.load_state_dict(state | {f"{name}.bias": torch.zeros(v1.W_query.shape[1]) for name in v1.state_dict()})
    return v2


def share_one(v1):
    v2 = carried(v1)
    v2.W_key.weight = nn.Parameter(v1.W_key.detach().T)
    return v2


def write_outside_no_grad(v1):
    v2 = SelfAttention_v2(*v1.W_query.shape)
    v2.W_query.weight.copy_(v1.W_query.T)
    return v2


def leave_one(v1):
    v2 = SelfAttention_v2(*v1.W_query.shape)
    v2.W_query, v2.W_key = carried(v1).W_query, carried(v1).W_key
    return v2


def upper(scores, diagonal):
    return torch.full(scores.shape[-2:], -torch.inf).triu(diagonal)


def causal_with_loops(scores):
    rows = scores.reshape(-1, *scores.shape[-2:])
    result = torch.zeros_like(rows)
    for b, i in ((b, i) for b in range(len(rows)) for i in range(rows.shape[1])):
        result[b, i, : i + 1] = softmax_row_by_row(rows[b, i, : i + 1])
    return result.reshape(scores.shape)


def mask_with_loops(lengths, tokens):
    return torch.tensor(
        [[[key <= query and key < length for key in range(tokens)] for query in range(tokens)] for length in lengths]
    )


def leak_of(layer, x, position):
    return (layer(torch.cat([x[:position], x[position:] + 1]))[:position] - layer(x)[:position]).abs().max()


def changes_its_input(layer, x, position):
    before = layer(x.clone())
    x[position:] += 1
    return (layer(x) - before)[:position].abs().max()


def wrapper(x, seed=5, d_out=1, num_heads=2):
    if seed is not None:
        torch.manual_seed(seed)
    return MultiHeadAttentionWrapper(x.shape[2], d_out, x.shape[1], num_heads, dropout=0.0)(x)


def counted(d_in, d_out, num_heads, qkv_bias):
    with torch.device("meta"):
        layer = MultiHeadAttention(d_in, d_out, 7, 0.0, num_heads, qkv_bias)
    return sum(parameter.numel() for parameter in layer.parameters())


def multi_head_by_slices(query, key, value, num_heads):
    outputs = []
    for q, k, v in zip(*(x.chunk(num_heads, -1) for x in (query, key, value))):
        scores = q @ k.mT / q.shape[-1] ** 0.5
        outputs.append(torch.softmax(scores + upper(scores, 1), -1) @ v)
    return torch.cat(outputs, -1)


def multi_head_with_einops(query, key, value, num_heads, join="b h t c -> b t (h c)"):
    q, k, v = (einops.rearrange(x, "b t (h c) -> b h t c", h=num_heads) for x in (query, key, value))
    scores = torch.einsum("bhqc,bhkc->bhqk", q, k) * q.shape[-1] ** -0.5
    return einops.rearrange(causal_with_loops(scores) @ v, join)


# Notebooks 00 to 04: (check, answer), and (check, answer, words of the verdict).
RIGHT_00_TO_04 = [
    (check_weighted_average, lambda w, values: (w[:, None] * values).sum(0)),
    (check_weighted_average, lambda w, values: values.T @ w),
    (check_weighted_average, lambda w, values: sum(w[i] * values[i] for i in range(len(w)))),
    (check_weighted_average, lambda w, values: torch.einsum("t,td->d", w, values).tolist()),
    (check_same, lambda a, b: torch.allclose(a, b, rtol=0, atol=1e-5)),
    (check_same, same_in_a_loop),
    (check_same, lambda a, b: not ((a - b).abs() > 1e-5).any()),
    (check_same, lambda a, b: bool((a - b).max() <= 1e-5 and (b - a).max() <= 1e-5)),
    (check_same, lambda a, b: (a - b).abs().max() < 1e-5),
    (check_scores_shape, lambda query, key: (*query.shape[:-1], key.shape[-2])),
    (check_scores_shape, lambda query, key: [*query.shape[:3], key.shape[2]]),
    (check_scores_shape, lambda query, key: query.shape[:3] + key.shape[2:3]),
    (check_scores, scores_with_loops),
    (check_scores, lambda query, x: [token @ query for token in x]),
    (check_scores, lambda query, x: (x * query).sum(-1)),
    (check_softmax, softmax_row_by_row),
    (check_softmax, lambda s: (s - s.logsumexp(-1, keepdim=True)).exp()),
    (check_softmax, lambda s: (e := (s - s.max(-1, keepdim=True).values).exp()) / e.sum(-1)[..., None]),
    (check_context_vectors, contexts_with_loops),
    (check_context_vectors, lambda x: F.softmax(torch.einsum("...qd,...kd->...qk", x, x), -1) @ x),
    (check_context_vectors, lambda x: F.scaled_dot_product_attention(x, x, x, scale=1.0)),
    (check_cosine_context, cosine_contexts_with_loops),
    (check_cosine_context, lambda x: F.cosine_similarity(x[:, None], x[None], dim=-1).softmax(-1) @ x),
    (check_scaled_weights, weights_with_loops),
    (check_scaled_weights, lambda q, k: F.softmax(torch.einsum("qd,kd->qk", q / q.shape[1] ** 0.5, k), 1)),
    (check_self_attention, lambda x, q, k, v: F.scaled_dot_product_attention(x @ q, x @ k, x @ v)),
    (check_self_attention, lambda x, q, k, v: weights_with_loops(x @ q, x @ k) @ x @ v),
    (check_linear, F.linear),
    (check_linear, lambda x, weight, bias: torch.einsum("...i,oi->...o", x, weight) + bias),
    (check_v2_from_v1, carried),
    (check_v2_from_v1, carried_by_state_dict),
    (check_causal_weights, causal_with_loops),
    (check_causal_weights, lambda s: (s + upper(s, 1)).softmax(-1)),
    (check_causal_weights, lambda s: s.masked_fill(upper(s, 1).isinf(), torch.finfo(s.dtype).min).softmax(-1)),
    (check_look_mask, mask_with_loops),
    (check_look_mask, lambda n, t: (torch.arange(t) < n.view(-1, 1, 1)).logical_and(torch.ones(t, t).tril())),
    (check_dropout, lambda w, keep, p: torch.where(keep, w / (1 - p), 0.0)),
    (check_leak, leak_of),
    (check_leak, lambda *arguments: float(leak_of(*arguments))),
    (check_two_columns, wrapper),
    (check_two_columns, lambda x: wrapper(x, num_heads=4)[..., :2]),
    (check_split_heads, lambda x, h: einops.rearrange(x, "b t (h c) -> b h t c", h=h)),
    (check_split_heads, lambda x, h: torch.stack(x.chunk(h, -1), 1)),
    (check_split_heads, lambda x, h: x.unflatten(-1, (h, -1)).permute(0, 2, 1, 3)),
    (check_join_heads, lambda x: einops.rearrange(x, "b h t c -> b t (h c)")),
    (check_join_heads, lambda x: torch.cat(list(x.unbind(1)), -1)),
    (check_join_heads, lambda x: x.transpose(1, 2).contiguous().view(len(x), x.shape[2], -1)),
    (check_parameter_count, counted),
    (check_parameter_count, lambda i, o, heads, bias: o * (3 * i + 3 * bias + o + 1)),
    (check_multi_head, multi_head_by_slices),
    (check_multi_head, multi_head_with_einops),
    (check_cosine_context, lambda x: (e := (F.normalize(x) @ F.normalize(x).T).exp()) / e.sum(-1, keepdim=True) @ x),
]
WRONG_00_TO_04 = [
    (check_same, lambda a, b: bool((a - b).abs().max() < 8e-6), "difference is 9e-06; True is right"),
    (check_same, lambda a, b: bool((a - b).abs().max() < 2e-5), "difference is 1.2e-05; False is right"),
    (check_same, lambda a, b: torch.testing.assert_close(a, b), "Return True or False instead"),
    (check_scores_shape, lambda query, key: (query @ key.mT).shape, "do without matmul()"),
    (
        check_scores_shape,
        lambda query, key: (*query.shape[:1], *key.shape[:1], 1),
        "4 numbers in a tuple; it returned 3",
    ),
    (check_scores, lambda query, x: torch.ones(4), "right shape, but"),
    (check_softmax, lambda s: s.softmax(-1), "do without softmax()"),
    (check_softmax, lambda s: torch.nn.LogSoftmax(-1)(s).exp(), "do without log_softmax()"),
    (check_softmax, lambda s: (e := s.exp()) / e.sum(-1), "keepdim=True"),
    (check_context_vectors, lambda x: (x @ x.T).softmax(-1) @ x, "Right for tokens (4, 4). But for tokens (7, 2, 3)"),
    (check_context_vectors, lambda x: (x @ x.T).softmax(-1) @ x, ".T reverses all axes"),
    (check_context_vectors, lambda x: torch.stack([(q @ x.T).softmax(0) @ x for q in x]), "But for tokens (7, 2, 3)"),
    (check_context_vectors, lambda x: (x @ x.mT).softmax(2) @ x, "Count axes from the end"),
    (check_context_vectors, lambda x: (x @ x.transpose(1, 2)).softmax(-1) @ x, "Count axes from the end"),
    (check_scaled_weights, lambda q, k: weights_with_loops(q, k)[:1], "should return the shape"),
    (check_scaled_weights, lambda q, k: (q @ k / q.shape[-1] ** 0.5).softmax(-1), "The transpose is missing"),
    (check_self_attention, lambda x, q, k, v: F.scaled_dot_product_attention(x @ q, x @ v, x @ k), "Key and value"),
    (check_linear, lambda x, weight, bias: torch.addmm(bias, x, weight.T), "Right for x (5, 3) and weight (2, 3)"),
    (check_linear, lambda x, weight, bias: (weight @ x.transpose(0, 1)).T + bias, "But for x (2, 5, 3)"),
    (check_v2_from_v1, write_outside_no_grad, "Write into a parameter under torch.no_grad()"),
    (check_v2_from_v1, share_one, "shares weights with v1"),
    (check_v2_from_v1, leave_one, "still drawn at random"),
    (check_v2_from_v1, lambda v1: SelfAttention_v2(*v1.W_query.shape, qkv_bias=True), "has no bias here"),
    (check_v2_from_v1, lambda v1: 3, "Return a new SelfAttention_v2"),
    (check_v2_from_v1, lambda v1: carried(v1, lambda w: nn.Parameter(w.T.clone(), False)), "are frozen"),
    (check_causal_weights, lambda s: s.masked_fill(upper(s, 1).isinf(), -50.0).softmax(-1), "a finite number"),
    (check_causal_weights, lambda s: (e := s.exp().tril()) / e.sum(-1, keepdim=True), "overflow"),
    (check_causal_weights, lambda s: (w := s.softmax(-1).tril()) / (w.sum(-1, keepdim=True) + 1e-9), "round to 0"),
    (check_look_mask, lambda n, t: mask_with_loops(n, t).float(), "boolean tensor"),
    (check_look_mask, lambda n, t: mask_with_loops(n, t)[-1], "should return the shape"),
    (check_dropout, lambda w, keep, p: F.dropout(w, p), "Two calls give different numbers"),
    (check_leak, changes_its_input, "changes its input"),
    (check_leak, lambda layer, x, position: bool(leak_of(layer, x, position) > 1e-6), "return how large"),
    (check_leak, lambda layer, x, position: leak_of(layer, x, 4), "use position"),
    (check_two_columns, lambda x: wrapper(x, seed=None), "right before you make the wrapper"),
    (check_two_columns, lambda x: wrapper(x, seed=6), "has the right shape, but"),
    (check_split_heads, lambda x, h: x, "should return the shape"),
    (check_join_heads, lambda x: x.transpose(1, 2).view(len(x), x.shape[2], -1), "RuntimeError"),
    (check_parameter_count, lambda i, o, heads, bias: 150, "gives 150"),
    (
        check_multi_head,
        lambda q, k, v, h: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "do without scaled_dot_product_attention()",
    ),
    (check_multi_head, lambda *x: multi_head_with_einops(*x, join="b h t c -> b t (c h)"), "alternate in the join"),
    (check_multi_head, lambda q, k, v, h: multi_head_by_slices(q, k, v, 1), "a single head"),
    (check_parameter_count, lambda i, o, h, bias: counted(o, o, h, bias), "d_in · d_out weights"),
    (check_cosine_context, lambda x: (x @ x.T / x.norm() ** 2).softmax(-1) @ x, "All tokens share one length"),
]


def attention_by_torch(x, *weights):
    query, key, value = (torch.einsum("btm,hmd->bhtd", x, weight) for weight in weights)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def attention_in_words(x, W_query, W_key, W_value, scores="b q h d, b k h d -> b h q k"):
    query, key, value = (einops.einsum(x, w, "b t m, h m d -> b t h d") for w in (W_query, W_key, W_value))
    pattern = (einops.einsum(query, key, scores) / query.shape[-1] ** 0.5).softmax(-1)
    return einops.rearrange(einops.einsum(pattern, value, "b h q k, b k h d -> b h q d"), "b h q d -> b q h d")


def keys_in_loops(stacked, heads):
    b_s, seq_len, top_k, _, embed_dim = stacked.shape
    keys = torch.zeros(b_s, heads, seq_len, embed_dim // heads, top_k)
    for place in range(embed_dim):
        keys[:, place // keys.shape[3], :, place % keys.shape[3]] = stacked[:, :, :, 0, place]
    return keys


def topk_in_loops(query, key, value, top_k):
    rows = []
    for q in query:
        best = sorted(range(len(key)), key=lambda m: -float(q @ key[m]))[:top_k]
        rows.append((key[best] @ q / len(q) ** 0.5).softmax(0) @ value[best])
    return torch.stack(rows)


def topk_masked(query, key, value, top_k):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.masked_fill(scores < scores.topk(top_k).values[:, -1:], -torch.inf).softmax(-1) @ value


def joint_by_logarithms(local, a, remote, b):
    both = torch.logaddexp(a, b)
    return (a - both).exp()[..., None] * local + (b - both).exp()[..., None] * remote


def order_in_loops(buckets):
    order = sorted(range(len(buckets)), key=lambda t: (int(buckets[t]), t))
    undo = torch.zeros(len(buckets), dtype=torch.long)
    undo[torch.tensor(order)] = torch.arange(len(buckets))
    return torch.stack([torch.tensor(order), undo])


def rounds_as_keys(outputs, logsumexps):
    """A single key with score z and value o has the output o and the log-sum-exp z."""
    one = torch.ones(logsumexps.shape[1], 1, 1, dtype=outputs.dtype)
    parts = [attend(one, z[:, None, None], o[:, None], scale=1.0) for o, z in zip(outputs, logsumexps)]
    return merge(parts).output[:, 0]


def with_maximum(outputs, logsumexps):
    weights = (logsumexps - logsumexps.max(dim=0).values).exp()
    return torch.einsum("ptd,pt->td", outputs, weights) / weights.sum(0)[:, None]


def visible_in_loops(buckets, chunk_size):
    table = torch.zeros(len(buckets), len(buckets), dtype=torch.bool)
    for i in range(len(buckets)):
        table[i, [j for j in range(i) if buckets[j] == buckets[i]][-chunk_size:]] = True
    return table


def visible_by_undo(buckets, chunk_size):
    undo = order_in_loops(buckets)[1]
    gap = undo.unsqueeze(1) - undo.unsqueeze(0)
    return torch.eq(buckets.unsqueeze(1), buckets) & (gap > 0) & (gap < chunk_size + 1)


def once_in_loops(scores, seen):
    result = torch.full(seen.shape, -torch.inf)
    for r, i, j in seen.nonzero().tolist():
        result[r, i, j] = scores[i, j] - torch.log(seen[:, i, j].sum())
    return result


def step_in_place(top, total, scores):
    new_top = max(top, scores.max())
    total *= torch.exp(top - new_top)
    total += torch.exp(scores - new_top).sum()
    return torch.stack([new_top, total])


def step_with_all(top, total, scores):
    everything = torch.cat([(top + total.log())[None], scores])
    new_top = torch.cat([top[None], scores]).max()
    return new_top, (everything.logsumexp(0) - new_top).exp()


def parts_merged(scores, values, seen):
    once = scores - seen.sum(0).log()
    parts = [attend(torch.ones(1, 1).to(scores), once[row, None], values[row], scale=1.0) for row in seen]
    return merge(parts).output[0]


def two_names_missing(x, W_query, W_key, W_value):
    return attention_in_words(x, W_query, W_key, W_value, scores="b t h d, b t h d -> b h t t")


def scaled_late(x, *weights):
    query, key, value = (torch.einsum("btm,hmd->bthd", x, weight) for weight in weights)
    pattern = torch.einsum("bqhd,bkhd->bhqk", query, key).softmax(-1) / query.shape[-1] ** 0.5
    return torch.einsum("bhqk,bkhd->bqhd", pattern, value)


def viewed(x, *weights):
    return attention_in_words(x, *weights).view(*x.shape[:2], len(weights[0]), -1)


# Notebooks 05 to 08.
RIGHT_05_TO_08 = [
    *((check_loops_equation, lambda text=text: text) for text in ("hqk->hk", " a b c->a c\n", "h q k -> h k")),
    *((check_matmul_equation, lambda text=text: text) for text in ("nti,ntj", "n t i, n t j -> i j\n", "btr,btc->rc")),
    (check_head_output, lambda p, v: torch.cat([p[:, h] @ v[:, :, h] for h in range(v.shape[2])], dim=-1)),
    (check_head_output, lambda p, v: (p @ v.transpose(1, 2)).transpose(1, 2).flatten(2)),
    (check_einsum_attention, attention_by_torch),
    (check_einsum_attention, attention_in_words),
    (check_memory_keys, keys_in_loops),
    (check_memory_keys, lambda s, h: s.unbind(-2)[0].unflatten(-1, (h, -1)).permute(0, 3, 1, 4, 2)),
    (check_memory_keys, lambda s, h: split_memory_heads(s, h)[0]),
    (check_memory_scores, lambda q, k: (q.unsqueeze(-2) @ k).squeeze(-2) / q.shape[-1] ** 0.5),
    (check_memory_scores, lambda q, k: (q[..., None] * k / q.shape[-1] ** 0.5).sum(-2)),
    (check_topk_attention, topk_in_loops),
    (check_topk_attention, topk_masked),
    (check_joint, lambda a, x, b, y: merge([Attended(a, x), Attended(b, y)]).output),
    (check_joint, lambda a, x, b, y: (torch.stack([x, y]).softmax(0)[..., None] * torch.stack([a, b])).sum(0)),
    (check_joint, lambda a, x, b, y: a + (b - a) / (1 + (x - y).exp())[..., None]),
    (check_joint, joint_by_logarithms),
    (check_hash, lambda x, r: hash_buckets(x[None, None], r[None, None])[0, 0, 0]),
    (check_hash, lambda x, r: (x @ torch.cat([r, -r], dim=1)).max(dim=1).indices),
    (check_sort_and_undo, order_in_loops),
    (check_sort_and_undo, lambda b: torch.stack([o := b.sort(stable=True).indices, o.argsort()])),
    (check_combine_rounds, rounds_as_keys),
    (check_combine_rounds, with_maximum),
    (check_visible, visible_in_loops),
    (check_visible, visible_by_undo),
    (check_count_once, once_in_loops),
    (check_count_once, lambda s, m: torch.where(m, s - m.sum(0).log(), -torch.inf)),
    (check_log_sum_exp, lambda s: (t := s.max(-1).values) + torch.log(torch.exp(s - t[..., None]).sum(-1))),
    (check_log_sum_exp, lambda s: (s.double() - s.amax()).exp().sum(-1).log() + s.amax() if s.ndim < 2 else
     torch.stack([row.sub(row.max()).exp().sum().log() + row.max() for row in s.flatten(0, -2)]).view(s.shape[:-1])),
    (check_merge, with_maximum),
    (check_merge, lambda o, z: merge([Attended(*part) for part in zip(o, z)]).output),
    (check_online_step, step_in_place),
    (check_online_step, step_with_all),
    (check_overlapping, parts_merged),
    (check_overlapping, lambda s, v, seen: s[seen.any(0)].softmax(0) @ v[seen.any(0)]),
    (check_overlapping, lambda s, v, seen: (s + seen.any(0).log()).softmax(-1) @ v),
]  # fmt: skip
WRONG_05_TO_08 = [
    (check_loops_equation, lambda: "head key query -> head key", "you wrote `head query key -> head query`. But"),
    (check_loops_equation, lambda: "h q -> h", "but its shape is"),
    (check_loops_equation, lambda: ("h q k", "h k"), "raised"),
    (check_matmul_equation, lambda: "n t i, m s j -> i j", "`batch` and `token` must have the same name"),
    (check_matmul_equation, lambda: "n i t, n t j -> i j", "two sizes"),
    (check_einsum_attention, two_names_missing, "tokens needs two names in the scores"),
    (check_einsum_attention, viewed, "do without view()"),
    (check_einsum_attention, lambda x, *w: x[:, None] @ w[0], "do without matmul()"),
    (check_matmul_equation, lambda: "t i, t j -> i j", "need no name."),
    (check_einsum_attention, scaled_late, "inside the softmax"),
    (check_memory_keys, lambda s, h: s[..., 0, :].view(len(s), h, s.shape[1], -1, s.shape[2]), "mix the numbers up"),
    (check_topk_attention, lambda q, k, v, n: (q @ k.mT).topk(n).softmax(-1), "no attribute 'softmax'"),
    (check_joint, lambda a, x, b, y: torch.sigmoid(y - x) * b + torch.sigmoid(x - y) * a, "the wrong axis"),
    (check_hash, lambda x, r: torch.cat([x @ r, -x @ r]).argmax(-1), "should return the shape"),
    (check_sort_and_undo, lambda b: (b.argsort(stable=True), b.argsort(stable=True)), "make them one tensor"),
    (check_visible, lambda b, c: visible_in_loops(b, c).float(), "return a boolean tensor"),
    (check_count_once, lambda s, m: (s - m.sum(0).log()).masked_fill(m, -torch.inf), "wrong way around"),
    (check_log_sum_exp, lambda s: torch.logsumexp(s, dim=-1), "do without logsumexp()"),
    (check_log_sum_exp, lambda s: torch.special.logsumexp(s, dim=-1), "do without logsumexp()"),
    (check_log_sum_exp, lambda s: (s - s.max(-1)).exp(), "raised TypeError"),
    (check_merge, lambda o, z: (z.softmax(0) * o).sum(0), "the wrong axis"),
    (check_online_step, lambda t, n, s: (t, n), "Nothing changed"),
    (check_online_step, lambda t, n, s: torch.stack([t.maximum(s.max()), n + s.exp().sum()]), "new top before exp"),
    (check_overlapping, lambda s, v, seen: (w := s.exp() * seen.any(0)) @ v / w.sum(), "exp overflows"),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT_00_TO_04 + RIGHT_05_TO_08)
def test_right_answers_pass(check, answer):
    check(answer).require()


@pytest.mark.filterwarnings("ignore:The use of `x.T`")  # as learners write it
@pytest.mark.parametrize(("check", "answer", "words"), WRONG_00_TO_04 + WRONG_05_TO_08)
def test_wrong_answers_are_named(check, answer, words):
    verdict = check(answer)
    assert not verdict.passed
    assert words in verdict.message
    assert not verdict.message.endswith("..")
