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
    if value.numel() == 0:
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
    """Output (heads, tokens, value_dim), log-sum-exp in base 2 (heads, tokens), +∞ for one that sees itself alone."""
    rule = Rule(chunk_size, num_buckets, is_causal, count_once, across_buckets, scale)
    state = SortedHeads(query_key, value, buckets, order, slot, real, rule)
    chunks, c, e = state.group * state.chunks, chunk_size, state.value_dim
    output = torch.empty_like(value, memory_format=torch.contiguous_format)
    logsumexp = state.new(*value.shape[:2])
    sums = state.new(state.num_hashes, chunks, c, e)  # Σ_j 2^(s_ij − top_i) v_j
    tops, totals = state.new(2, state.num_hashes, chunks, c, 1)  # top_i and Σ_j 2^(s_ij − top_i)
    for heads in state.groups():
        state.load(heads)
        for r in range(state.num_hashes):
            state.sort(r)
            for first, last in state.blocks():
                scores = state.scores(first, last)
                top = torch.amax(scores, -1, keepdim=True, out=tops[r, first:last])
                torch.sum(scores.sub_(top).exp2_(), -1, keepdim=True, out=totals[r, first:last])
                torch.bmm(scores, state.values, out=sums[r, first:last])
        sorted_rounds = sums.flatten(0, 2), tops.flatten(1), totals.flatten(1)
        _merge_rounds(state, *sorted_rounds, output[heads].flatten(0, 1), logsumexp[heads].flatten())
    return output, logsumexp


def _merge_rounds(
    state: SortedHeads, sums: Tensor, tops: Tensor, totals: Tensor, output: Tensor, logsumexp: Tensor
) -> None:
    """Undo the sorts and weight every round by its share of the total, for the heads that are loaded."""
    top, total = tops.gather(1, state.place), totals.gather(1, state.place)  # (num_hashes, count · tokens)
    highest = top.amax(0)
    alone = highest < -HUGE / 8
    weights = (top - highest).exp2_()
    whole = (weights * total).sum(0)
    logsumexp.copy_((whole.log2() + highest).masked_fill_(alone, torch.inf))
    weights.div_(whole).masked_fill_(alone, 0.0)
    values = state.table[1:, state.head_dim :]
    rounds = torch.arange(state.num_hashes, device=state.place.device)[:, None]
    for first, last in state.pieces():
        rows = (state.place[:, first:last] + rounds * tops.shape[1]).flatten()
        parts = sums.index_select(0, rows).unflatten(0, (state.num_hashes, -1))
        merged = parts.mul_(weights[:, first:last, None]).sum(0)
        output[first:last] = torch.where(alone[first:last, None], values[first:last], merged)
    if state.real is not None:
        output.masked_fill_(~state.real[state.heads].flatten()[:, None], 0.0)


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
    chunks, c, d, e = state.group * state.chunks, chunk_size, state.head_dim, state.value_dim
    grad_query_key, grad_value = torch.empty_like(query_key), torch.empty_like(value)
    # Of each token: the gradient of its output, Σ gradient · output, log-sum-exp. Row 0 stands for an empty place.
    d_output, inner, whole = (state.new(1 + state.group * state.tokens, n) for n in (e, 1, 1))
    d_output[0] = inner[0] = whole[0] = 0.0
    # In sorted order: gradients as key and as value, behind a chunk that nobody reads, and as query.
    d_key, d_value, d_query = state.new(1 + chunks, c, d), state.new(1 + chunks, c, e), state.new(chunks, c, d)
    d_key[0] = d_value[0] = 0.0
    d_sorted, scratch = state.new(state.block * c, e), state.new(state.block, c, 2 * c)
    for heads in state.groups():
        state.load(heads)
        total = state.count * state.tokens
        of_tokens = slice(1, 1 + total)
        d_output[of_tokens] = grad[heads].flatten(0, 1)
        if real is not None:
            d_output[of_tokens].masked_fill_(~real[heads].flatten()[:, None], 0.0)
        inner[of_tokens] = (d_output[of_tokens] * output[heads].flatten(0, 1)).sum(-1, keepdim=True)
        whole[of_tokens] = logsumexp[heads].reshape(-1, 1)
        as_key, as_value, as_query = (state.new(total, n).zero_() for n in (d, e, d))
        for r in range(state.num_hashes):
            state.sort(r)
            rows = state.rows[c:]
            sorted_inner, sorted_whole = (t[rows].view(-1, c, 1) for t in (inner, whole))
            for first, last in state.blocks():
                here = rows[first * c : last * c]
                d_out = torch.index_select(d_output, 0, here, out=d_sorted[: len(here)]).view(-1, c, e)
                weights = state.scores(first, last).sub_(sorted_whole[first:last]).exp2_()  # (block, c, 2c)
                d_scores = torch.bmm(d_out, state.values.mT, out=scratch[: last - first])
                d_scores.sub_(sorted_inner[first:last]).mul_(weights)
                query, flipped_weights, flipped_scores = state.query, weights.mT, d_scores.mT
                torch.bmm(flipped_weights[:, c:], d_out, out=d_value[first + 1 : last + 1])
                d_value[first:last].baddbmm_(flipped_weights[:, :c], d_out)
                torch.bmm(flipped_scores[:, c:], query, out=d_key[first + 1 : last + 1])
                d_key[first:last].baddbmm_(flipped_scores[:, :c], query)
                torch.bmm(d_scores, state.keys, out=d_query[first:last])
            for whole_grad, sorted_grad in ((as_key, d_key[1:]), (as_value, d_value[1:]), (as_query, d_query)):
                for first, last in state.pieces():
                    back = sorted_grad.flatten(0, 1).index_select(0, state.place[r, first:last])
                    whole_grad[first:last].add_(back)
        unit, inverse = state.table[of_tokens, :d], state.inverse_norm.flatten()[:, None]
        as_value += d_output[of_tokens] * (whole[of_tokens] == torch.inf)  # alone, a token's output is its value
        along = (unit * as_key).sum(-1, keepdim=True)
        as_query.mul_(scale).add_((as_key - unit * along).mul_(inverse / LOG2_E))
        grad_query_key[heads] = as_query.unflatten(0, (state.count, -1))
        grad_value[heads] = as_value.unflatten(0, (state.count, -1))
    return grad_query_key, grad_value


@lsh_forward.register_fake
def _(query_key, value, buckets, order, slot, real, *rule):
    dtype = torch.promote_types(value.dtype, torch.float32)
    output = torch.empty_like(value, memory_format=torch.contiguous_format)
    return output, value.new_empty(value.shape[:2], dtype=dtype)


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
