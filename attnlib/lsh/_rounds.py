"""The rounds of LSH attention, forward and backward: sort, attend in blocks of chunks, undo the sort, merge.

Both passes go through heads and rounds in buffers that are allocated once, a block of chunks at a time, so that scores
are never all in memory and seldom leave the cache. Every move between the orders is a gather: no two threads ever add
to the same place, and results are the same every time.
"""

import torch
from torch import Tensor

from attnlib.lsh._sorted import HUGE, LOG2_E, Rule, SortedHeads


def attend_rounds(query_key: Tensor, value: Tensor, buckets: Tensor, key_mask: Tensor | None, rule: Rule) -> Tensor:
    """``lsh_attention`` with the buckets given: int64 (batch, heads, num_hashes, tokens)."""
    if value.numel() == 0 or buckets.shape[2] == 0:
        return value * 0.0
    batch, heads, _, tokens = buckets.shape
    real = None
    if key_mask is not None:
        buckets = buckets.masked_fill(~key_mask[:, None, None], rule.num_buckets)  # sorts last
        real = key_mask[:, None].expand(batch, heads, tokens).flatten(0, 1)
    buckets = buckets.flatten(0, 1)  # (batch · heads, num_hashes, tokens)
    order = buckets.argsort(dim=-1, stable=True)
    places = torch.arange(tokens, device=order.device).expand_as(order)
    slot = torch.empty_like(order).scatter_(-1, order, places)
    buckets, order, slot = (t.to(torch.int32) for t in (buckets, order, slot))
    output, _ = lsh_forward(query_key.flatten(0, 1), value.flatten(0, 1), buckets, order, slot, real, *rule)
    return output.unflatten(0, (batch, heads))


@torch.library.custom_op("attnlib::lsh_forward", mutates_args=())
def lsh_forward(
    query_key: Tensor,
    value: Tensor,
    buckets: Tensor,
    order: Tensor,
    slot: Tensor,
    real: Tensor | None,
    chunk_size: int,
    num_buckets: int,
    is_causal: bool,
    count_once: bool,
    across_buckets: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output (heads, tokens, value_dim) and log-sum-exp in base 2 (heads, tokens), +∞ for one that sees itself alone."""
    rule = Rule(chunk_size, num_buckets, is_causal, count_once, across_buckets, scale)
    state = SortedHeads(query_key, value, buckets, order, slot, real, rule)
    c, width = chunk_size, state.group * state.width
    output = torch.empty_like(value)
    logsumexp = state.new(*value.shape[:2])
    sums = state.new(state.num_hashes, width, state.value_dim)  # Σ_j exp(s_ij − top_i) v_j
    totals = state.new(2, state.num_hashes, width)  # top_i and Σ_j exp(s_ij − top_i)
    for heads in state.groups():
        state.load(heads)
        for r in range(state.num_hashes):
            state.sort(r)
            for first, last in state.blocks():
                here = slice(first * c, last * c)
                scores = state.scores(first, last)
                top, total = (t[r, here].view(-1, c, 1) for t in totals)
                torch.amax(scores, -1, keepdim=True, out=top)
                torch.sum(scores.sub_(top).exp2_(), -1, keepdim=True, out=total)
                torch.bmm(scores, state.values(first, last), out=sums[r, here].view(-1, c, state.value_dim))
        _merge_rounds(state, sums, totals, output[heads].flatten(0, 1), logsumexp[heads].flatten())
    return output, logsumexp


def _merge_rounds(state: SortedHeads, sums: Tensor, totals: Tensor, output: Tensor, logsumexp: Tensor) -> None:
    """Undo the sorts and weight every round by its share of the total, for the heads that are loaded."""
    top, total = (t.gather(1, state.place) for t in totals)  # (num_hashes, count · tokens)
    highest = top.amax(0)
    alone = highest < -HUGE / 8
    weights = (top - highest).exp2_()
    whole = (weights * total).sum(0)
    logsumexp.copy_((whole.log2() + highest).masked_fill_(alone, torch.inf))
    weights.div_(whole).masked_fill_(alone, 0.0)
    values = state.table[1:, state.head_dim :]
    rounds = torch.arange(state.num_hashes, device=state.place.device)[:, None]
    for first, last in _pieces(state):
        rows = (state.place[:, first:last] + rounds * sums.shape[1]).flatten()
        parts = sums.flatten(0, 1).index_select(0, rows).unflatten(0, (state.num_hashes, -1))
        merged = parts.mul_(weights[:, first:last, None]).sum(0)
        lonely = alone[first:last, None]
        output[first:last] = torch.where(lonely, values[first:last], merged)
    if state.real is not None:
        output.masked_fill_(~state.real[state.heads].flatten()[:, None], 0.0)


def _pieces(state: SortedHeads):
    """Runs of tokens, over all heads of the group, that fit the cache together with their rounds."""
    total, size = state.count * state.tokens, state.block * state.chunk_size
    for first in range(0, total, size):
        yield first, min(first + size, total)


@torch.library.custom_op("attnlib::lsh_backward", mutates_args=())
def lsh_backward(
    grad: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    query_key: Tensor,
    value: Tensor,
    buckets: Tensor,
    order: Tensor,
    slot: Tensor,
    real: Tensor | None,
    chunk_size: int,
    num_buckets: int,
    is_causal: bool,
    count_once: bool,
    across_buckets: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of query_key and value."""
    rule = Rule(chunk_size, num_buckets, is_causal, count_once, across_buckets, scale)
    state = SortedHeads(query_key, value, buckets, order, slot, real, rule)
    c, d, e = chunk_size, state.head_dim, state.value_dim
    grad_query_key, grad_value = torch.empty_like(query_key), torch.empty_like(value)
    # Per token: the gradient of its output, Σ grad · output, log-sum-exp. Row 0 belongs to empty places.
    token = state.new(1 + state.group * state.tokens, e + 2)
    sorted_token = state.new(state.group * state.width, e + 2)
    token[0] = 0.0
    # In sorted order, a chunk before the first included: gradients as keys, as values, as queries.
    sorted_grads = state.new((1 + state.group * state.chunks) * c, 2 * d + e)
    sorted_grads[:c] = 0.0
    d_weights = state.new(state.block, c, 2 * c)
    d_key, d_value = state.new(state.block, 2 * c, d), state.new(state.block, 2 * c, e)
    d_query, d_output = state.new(state.block, c, d), state.new(state.block, c, e)
    for heads in state.groups():
        state.load(heads)
        total = state.count * state.tokens
        here = token[1 : 1 + total]
        here[:, :e] = grad[heads].flatten(0, 1)
        if real is not None:
            here[:, :e].masked_fill_(~real[heads].flatten()[:, None], 0.0)
        here[:, e] = (here[:, :e] * output[heads].flatten(0, 1)).sum(-1)
        here[:, e + 1] = logsumexp[heads].flatten()
        grads = state.new(total, 2 * d + e).zero_()
        for r in range(state.num_hashes):
            state.sort(r)
            torch.index_select(token, 0, state.rows, out=sorted_token[: len(state.rows)])
            for first, last in state.blocks():
                n = last - first
                rows = sorted_token[first * c : last * c].view(n, c, -1)
                d_out = d_output[:n].copy_(rows[..., :e])
                weights = state.scores(first, last).sub_(rows[..., e + 1 :]).exp2_()  # (block, c, 2c)
                torch.bmm(weights.mT, d_out, out=d_value[:n])
                d_scores = torch.bmm(d_out, state.values(first, last).mT, out=d_weights[:n])
                d_scores.sub_(rows[..., e : e + 1]).mul_(weights)
                torch.bmm(d_scores.mT, state.query[:n], out=d_key[:n])
                torch.bmm(d_scores, state.keys(first, last), out=d_query[:n])
                own = sorted_grads[(first + 1) * c : (last + 1) * c].view(n, c, -1)
                before = sorted_grads[first * c : last * c].view(n, c, -1)
                own[..., :d], own[..., d : d + e], own[..., d + e :] = d_key[:n, c:], d_value[:n, c:], d_query[:n]
                before[..., :d] += d_key[:n, :c]
                before[..., d : d + e] += d_value[:n, :c]
            for first, last in _pieces(state):
                grads[first:last] += sorted_grads[c:].index_select(0, state.place[r, first:last])
        key, inverse = state.table[1 : 1 + total, :d], state.inverse_norm.flatten()[:, None]
        d_unit, d_scaled = grads[:, :d] / LOG2_E, grads[:, d + e :]
        along = (key * d_unit).sum(-1, keepdim=True)
        d_total = (d_unit - key * along) * inverse + d_scaled * scale
        grad_query_key[heads] = d_total.unflatten(0, (state.count, -1)).to(query_key.dtype)
        alone = here[:, e + 1 :] == torch.inf
        grad_value[heads] = (grads[:, d : d + e] + here[:, :e] * alone).unflatten(0, (state.count, -1)).to(value.dtype)
    return grad_query_key, grad_value


@lsh_forward.register_fake
def _(query_key, value, buckets, order, slot, real, *rule):
    dtype = torch.promote_types(value.dtype, torch.float32)
    return torch.empty_like(value), value.new_empty(value.shape[:2], dtype=dtype)


@lsh_backward.register_fake
def _(grad, output, logsumexp, query_key, value, *rest):
    return torch.empty_like(query_key), torch.empty_like(value)


def _setup_context(ctx, inputs, output):
    query_key, value, buckets, order, slot, real, *rule = inputs
    ctx.save_for_backward(*output, query_key, value, buckets, order, slot, real)
    ctx.rule = rule


def _backward(ctx, grad, _):
    return (*lsh_backward(grad, *ctx.saved_tensors, *ctx.rule), *[None] * (4 + len(ctx.rule)))


lsh_forward.register_autograd(_backward, setup_context=_setup_context)
