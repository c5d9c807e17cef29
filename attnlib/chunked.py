"""Attention that never holds more than one block of scores: the same average, built up block by block."""

import torch
from torch import Tensor

from attnlib._online_softmax import Blocks, OnlineSoftmax
from attnlib._validate import check_counts, check_qkv
from attnlib.attend import Attended, blank


def chunked_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    block_size: int = 256,
) -> Attended:
    """Compute what ``attend`` computes, one block of scores at a time, in memory linear in the tokens.

    Formula: ``merge_b(attend(query, key_b, value_b))`` over blocks b of the keys, each merged as soon as it is computed
    (online softmax). The backward pass recomputes the weights of each block, so it stores no scores either.

    Other arguments, result and errors are as in ``attend``. ``torch.vmap`` works.

    Args:
        is_causal: as in ``attend``. Blocks in the future cost nothing.
        block_size: for each leading index, at most this many queries times this many keys have scores at one time.

    Raises:
        NotImplementedError: its gradient is differentiated again; use ``attend`` for that.

    Source: Dao et al. 2022 (FlashAttention), section 3.1; Rabe and Staats 2021, "Self-attention does not need O(n²)
    memory".

    >>> from attnlib.attend import attend
    >>> query, key, value = torch.randn(7, 5), torch.randn(11, 5), torch.randn(11, 3)
    >>> chunked = chunked_attend(query, key, value, block_size=2)
    >>> torch.allclose(chunked.output, attend(query, key, value).output, atol=1e-6)
    True
    """
    check_qkv(query, key, value, mask, is_causal, scale)
    check_counts(block_size=block_size)
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
    blocks = Blocks(scale, block_size, lead=0 if is_causal else None)
    key, value = blank(key, mask), blank(value, mask)
    return Attended(*_Chunked.apply(query, key, value, mask, blocks)[:2])


class _Chunked(torch.autograd.Function):
    """Output and log-sum-exp, and what the backward pass needs: numerator, total and top."""

    @staticmethod
    def forward(query, key, value, mask, blocks):
        softmax = OnlineSoftmax.start(query, key, value)
        softmax.update(query, key, value, blocks._replace(mask=mask))
        output, logsumexp = softmax.attended()
        return output.to(value.dtype), logsumexp, softmax.numerator, softmax.total, softmax.top

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, ctx.blocks = inputs
        ctx.save_for_backward(*tensors, *outputs[2:])
        ctx.mark_non_differentiable(*outputs[2:])

    @staticmethod
    def backward(ctx, grad_output, grad_logsumexp, *_):
        return *_ChunkedGradient.apply(*ctx.saved_tensors, grad_output, grad_logsumexp, ctx.blocks), None, None

    @staticmethod
    def vmap(info, in_dims, *inputs):
        *tensors, blocks = inputs
        return _Chunked.apply(*_batch_first(tensors, in_dims, info.batch_size), blocks), (0,) * 5


class _ChunkedGradient(torch.autograd.Function):
    """A separate step, so that a second derivative raises an error instead of giving a wrong number."""

    @staticmethod
    def forward(query, key, value, mask, numerator, total, top, grad_output, grad_logsumexp, blocks):
        softmax, gradient = OnlineSoftmax(numerator, total, top), Attended(grad_output, grad_logsumexp)
        gradients = softmax.gradients((query, key, value), gradient, blocks._replace(mask=mask))
        return tuple(gradient.to(query.dtype) for gradient in gradients)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        pass

    @staticmethod
    def backward(ctx, *gradients):
        raise NotImplementedError("chunked_attend can be differentiated once; to differentiate twice, use attend")

    @staticmethod
    def vmap(info, in_dims, *inputs):
        *tensors, blocks = inputs
        return _ChunkedGradient.apply(*_batch_first(tensors, in_dims, info.batch_size), blocks), (0,) * 3


def _batch_first(tensors: list[Tensor | None], dims: tuple[int | None, ...], size: int) -> list[Tensor | None]:
    """Move the axis that vmap maps over to the front of every tensor, and line up the leading axes behind it."""
    trailing = (2, 2, 2, 2, 2, 1, 1, 2, 1)  # axes after the leading ones, in the order of _ChunkedGradient.forward
    leading = max(t.ndim - (dim is not None) for t, dim in zip(tensors[:3], dims) if t is not None) - 2
    batched: list[Tensor | None] = []
    for tensor, dim, own in zip(tensors, dims, trailing):
        if tensor is not None:
            tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            tensor = tensor[(slice(None), *[None] * (1 + leading + own - tensor.ndim))]
        batched.append(tensor)
    return batched
