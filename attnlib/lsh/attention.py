"""Attention among tokens that share a bucket: in each round sort, attend in blocks of chunks, unsort; then merge.

The passes forward and backward work through heads and rounds in buffers that are allocated once, one block of chunks at
a time, so scores never fill the memory and seldom leave the cache. Moving between the two orders is always a gather. No
two threads ever add to the same place, so results are the same every time.
"""

import torch
from torch import Tensor

from attnlib._validate import check_bool, check_counts, check_key_mask, check_options, check_same, check_tensor
from attnlib.attend import blank
from attnlib.lsh._sorted import HUGE, LOG2_E, Group, Heads, Layout, Round, Rule
from attnlib.lsh.hashing import check_rotations, find_buckets, no_vmap


def lsh_attention(
    query_key: Tensor,
    value: Tensor,
    rotations: Tensor,
    *,
    chunk_size: int,
    is_causal: bool = False,
    key_mask: Tensor | None = None,
    count_once: bool = True,
    across_buckets: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Let each token attend to the tokens that share its bucket in at least one of several rounds of hashing.

    Formula: ``output_i = Σ_j exp(s_ij) v_j / Σ_j exp(s_ij)`` with ``s_ij = scale · q_i · q_j / ‖q_j‖``: queries and
    keys are the same vectors, with the keys scaled to length 1. j runs over the tokens that i sees in at least one
    round. A round sorts the tokens by (bucket, position) and cuts them into chunks. Token i sees the tokens of its
    bucket that are in its own chunk or the one before; the first chunk does not wrap around to the last. A token sees
    itself only if it sees nothing else in any round.

    With ``is_causal``, token i sees the tokens of its bucket that come at most ``chunk_size`` places before it in the
    sorted order. As long as the number of buckets does not depend on the length, **a forward pass on a prefix then
    equals the forward pass on the whole.** With ``across_buckets`` as well, later positions in its two chunks are
    hidden: no value leaks back, but a later token shifts the borders of the chunks, so a prefix gives other outputs.

    Args:
        query_key: (batch, heads, tokens, head_dim). The key of a zero vector is zero.
        value: (batch, heads, tokens, value_dim).
        rotations: (heads or 1, num_hashes, head_dim, num_buckets // 2), from ``random_rotations``.
        chunk_size: number of sorted tokens in a chunk.
        is_causal: hide later tokens.
        key_mask: boolean (batch, tokens), True = real token. Padding may be anywhere and hold anything, even NaN: no
            token sees it, and its output and its gradient are zero.
        count_once: count a key once even if several rounds show it, so the output approaches full attention as the
            number of rounds grows (the paper subtracts log N_ij from the scores, which gives the same output). If
            False, it counts once per round that shows it, as in most implementations, and the limit is different.
        across_buckets: ignore the buckets after sorting, so that the chunks alone decide.
        scale: factor on the scores; default: 1.0, so scores reach ‖q_i‖. The paper's is ``head_dim ** -0.5``.

    Returns (batch, heads, tokens, value_dim) in the dtype of ``value``. NotImplementedError: under ``torch.vmap``, or
    if its gradient is differentiated again; ``attend`` with a mask can do both. TypeError, ValueError: an argument is
    of the wrong kind, dtypes or devices differ, or a shape does not fit.

    Source: Kitaev et al. 2020, "Reformer", section 2; N_ij, the rounds in which i sees j, is in its appendix A.

    >>> from attnlib.lsh import random_rotations
    >>> x = torch.randn(2, 3, 50, 5)
    >>> rotations = random_rotations(head_dim=5, num_buckets=4, num_hashes=2)
    >>> whole = lsh_attention(x, x, rotations, chunk_size=8, is_causal=True)
    >>> prefix = lsh_attention(x[:, :, :20], x[:, :, :20], rotations, chunk_size=8, is_causal=True)
    >>> torch.allclose(prefix, whole[:, :, :20], atol=1e-6)
    True
    """
    check_tensor("query_key", query_key, "batch heads tokens head_dim")
    sizes = dict(zip(("batch", "heads", "tokens"), query_key.shape))
    check_tensor("value", value, "batch heads tokens value_dim", sizes)
    check_same(query_key=query_key, value=value)
    check_rotations(rotations, query_key, "query_key")
    check_counts(chunk_size=chunk_size)
    check_options(is_causal, scale)
    check_bool("count_once", count_once)
    check_bool("across_buckets", across_buckets)
    if key_mask is not None:
        check_key_mask(key_mask, query_key[:, 0])
    scale = 1.0 if scale is None else float(scale)
    rule = Rule(chunk_size, 2 * rotations.shape[-1], is_causal, count_once, across_buckets, scale)
    return attend_rounds(query_key, value, rotations, key_mask, rule)


def attend_rounds(query_key: Tensor, value: Tensor, rotations: Tensor, key_mask: Tensor | None, rule: Rule) -> Tensor:
    """``lsh_attention`` without its checks."""
    if value.numel() == 0:
        return value * 0.0
    batch, heads, tokens, _ = query_key.shape
    rule = rule._replace(chunk_size=min(rule.chunk_size, tokens))  # no buffers for places that stay empty
    real = None if key_mask is None else key_mask[:, None, None]  # (batch, 1, 1, tokens)
    query_key, value = blank(query_key, real), blank(value, real)
    buckets = find_buckets(query_key.detach(), rotations.detach())
    if real is not None:
        buckets = buckets.masked_fill(~real, rule.num_buckets)  # padding sorts last
    buckets = buckets.flatten(0, 1)  # (batch · heads, num_hashes, tokens)
    hashed = torch.stack((buckets, buckets.argsort(dim=-1, stable=True)), dim=1).to(torch.int32)
    output, _ = _Rounds.apply(query_key.flatten(0, 1), value.flatten(0, 1), hashed, rule)
    return blank(output.unflatten(0, (batch, heads)), real)


@torch.library.custom_op("attnlib::lsh_forward", mutates_args=())
def lsh_forward(
    query_key: Tensor, value: Tensor, hashed: Tensor, sizes: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Output (heads, tokens, value_dim) and log-sum-exp (heads, tokens), in base 2, +∞ for a token that sees itself."""
    layout = Layout(Heads(query_key, value, hashed), Rule._make([*sizes, scale]))
    chunks, c, e = layout.group * layout.chunks, layout.rule.chunk_size, layout.value_dim
    output = torch.empty_like(value, memory_format=torch.contiguous_format)
    logsumexp = value.new_empty(value.shape[:2], dtype=torch.promote_types(value.dtype, torch.float32))
    sums = layout.new(layout.num_hashes, chunks, c, e)  # Σ_j 2^(s_ij − top_i) v_j
    tops, totals = layout.new(2, layout.num_hashes, chunks, c, 1)  # top_i and Σ_j 2^(s_ij − top_i)
    for group in layout.groups():
        for r in range(layout.num_hashes):
            sorted_heads = Round(group, r)
            for first, last in group.blocks:
                scores, _, _, values = sorted_heads.block(first, last)
                top = torch.amax(scores, -1, keepdim=True, out=tops[r, first:last])
                torch.sum(scores.sub_(top).exp2_(), -1, keepdim=True, out=totals[r, first:last])
                torch.bmm(scores, values, out=sums[r, first:last])
        sorted_rounds = sums.flatten(0, 2), tops.flatten(1), totals.flatten(1)
        _merge_rounds(group, *sorted_rounds, output[group.heads].flatten(0, 1), logsumexp[group.heads].flatten())
    return output, logsumexp


def _merge_rounds(group: Group, sums: Tensor, tops: Tensor, totals: Tensor, output: Tensor, logsumexp: Tensor) -> None:
    """Unsort the rounds and weight each by its share of the total."""
    top, total = tops.gather(1, group.place), totals.gather(1, group.place)  # (num_hashes, count · tokens)
    highest = top.amax(0)
    alone = highest < -HUGE / 8
    weights = (top - highest).exp2_()
    whole = (weights * total).sum(0)
    logsumexp.copy_((whole.log2() + highest).masked_fill_(alone, torch.inf))
    weights.div_(whole).masked_fill_(alone, 0.0)
    values = group.table[:, group.layout.head_dim :]
    rounds = torch.arange(len(top), device=top.device)[:, None]
    for first, last in group.pieces:
        rows = (group.place[:, first:last] + rounds * tops.shape[1]).flatten()
        parts = sums.index_select(0, rows).unflatten(0, (len(top), -1))
        merged = parts.mul_(weights[:, first:last, None]).sum(0)
        output[first:last] = torch.where(alone[first:last, None], values[first:last], merged)


@torch.library.custom_op("attnlib::lsh_backward", mutates_args=())
def lsh_backward(
    grad: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    query_key: Tensor,
    value: Tensor,
    hashed: Tensor,
    sizes: list[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of query_key and value."""
    layout = Layout(Heads(query_key, value, hashed), Rule._make([*sizes, scale]))
    chunks, c, d, e = layout.group * layout.chunks, layout.rule.chunk_size, layout.head_dim, layout.value_dim
    grad_query_key, grad_value = torch.empty_like(query_key), torch.empty_like(value)
    # For each token: the gradient of its output, Σ gradient · output, log-sum-exp. Row 0 is for an empty place.
    d_output, inner, whole = (layout.new(1 + layout.group * layout.tokens, n) for n in (e, 1, 1))
    d_output[0] = inner[0] = whole[0] = 0.0
    # In sorted order: gradients as key and as value, behind a chunk that nobody reads, and as query.
    d_key, d_value, d_query = layout.new(1 + chunks, c, d), layout.new(1 + chunks, c, e), layout.new(chunks, c, d)
    d_key[0] = d_value[0] = 0.0
    d_sorted, scratch = layout.new(layout.block * c, e), layout.new(layout.block, c, 2 * c)
    for group in layout.groups():
        which, total = group.heads, len(group.table)
        of_tokens = slice(1, 1 + total)
        d_output[of_tokens] = grad[which].flatten(0, 1)
        inner[of_tokens] = (d_output[of_tokens] * output[which].flatten(0, 1)).sum(-1, keepdim=True)
        whole[of_tokens] = logsumexp[which].reshape(-1, 1)
        as_key, as_value, as_query = (layout.new(total, n).zero_() for n in (d, e, d))
        for r in range(layout.num_hashes):
            sorted_heads = Round(group, r)
            rows = sorted_heads.rows[c:]
            sorted_inner, sorted_whole = (t[rows].view(-1, c, 1) for t in (inner, whole))
            for first, last in group.blocks:
                here = rows[first * c : last * c]
                d_out = torch.index_select(d_output, 0, here, out=d_sorted[: len(here)]).view(-1, c, e)
                scores, query, keys, values = sorted_heads.block(first, last)
                weights = scores.sub_(sorted_whole[first:last]).exp2_()  # (block, c, 2c)
                d_scores = torch.bmm(d_out, values.mT, out=scratch[: last - first])
                d_scores.sub_(sorted_inner[first:last]).mul_(weights)
                flipped_weights, flipped_scores = weights.mT, d_scores.mT
                torch.bmm(flipped_weights[:, c:], d_out, out=d_value[first + 1 : last + 1])
                d_value[first:last].baddbmm_(flipped_weights[:, :c], d_out)
                torch.bmm(flipped_scores[:, c:], query, out=d_key[first + 1 : last + 1])
                d_key[first:last].baddbmm_(flipped_scores[:, :c], query)
                torch.bmm(d_scores, keys, out=d_query[first:last])
            for whole_grad, sorted_grad in ((as_key, d_key[1:]), (as_value, d_value[1:]), (as_query, d_query)):
                for first, last in group.pieces:
                    whole_grad[first:last] += sorted_grad.flatten(0, 1).index_select(0, group.place[r, first:last])
        unit = group.table[:, :d]
        as_value += d_output[of_tokens] * (whole[of_tokens] == torch.inf)  # the output of a token alone is its value
        along = (unit * as_key).sum(-1, keepdim=True)
        as_query.mul_(scale).add_((as_key - unit * along).mul_(group.inverse_norm / LOG2_E))
        grad_query_key[which] = as_query.unflatten(0, (-1, layout.tokens))
        grad_value[which] = as_value.unflatten(0, (-1, layout.tokens))
    return grad_query_key, grad_value


@lsh_forward.register_fake
def _(query_key, value, *rest):
    dtype = torch.promote_types(value.dtype, torch.float32)
    output = torch.empty_like(value, memory_format=torch.contiguous_format)
    return output, value.new_empty(value.shape[:2], dtype=dtype)


@lsh_backward.register_fake
def _(grad, output, logsumexp, query_key, value, *rest):
    return torch.empty_like(query_key), torch.empty_like(value)


class _Rounds(torch.autograd.Function):
    vmap = staticmethod(no_vmap)

    @staticmethod
    def forward(query_key, value, hashed, rule):
        return lsh_forward(query_key, value, hashed, *rule.packed())

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, ctx.rule = inputs
        ctx.save_for_backward(*outputs, *tensors)
        ctx.mark_non_differentiable(outputs[1])

    @staticmethod
    def backward(ctx, grad, _):
        return *_RoundsGradient.apply(grad, *ctx.saved_tensors, ctx.rule), None, None


class _RoundsGradient(torch.autograd.Function):
    """A separate step, so that a second derivative raises an error instead of giving a wrong number."""

    @staticmethod
    def forward(grad, output, logsumexp, query_key, value, hashed, rule):
        return lsh_backward(grad, output, logsumexp, query_key, value, hashed, *rule.packed())

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError("lsh_attention can be differentiated once; to differentiate twice, use attend")
