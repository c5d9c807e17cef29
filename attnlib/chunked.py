"""Attention that never holds more than one block of scores: the same average, merged block by block."""

import torch
from torch import Tensor

from attnlib._blocks import Blocks, Running
from attnlib._validate import check_count, check_options, check_qkv
from attnlib.attend import Attended


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

    Formula: as in ``attend``; with the keys cut into blocks b, ``Attended = merge_b(attend(query, key_b, value_b))``,
    merged as each block is seen (online softmax). The backward pass stores no scores either: each block's weights are
    computed anew.

    Args:
        query: (…, q_tokens, head_dim). Leading axes broadcast against those of key and value.
        key: (…, kv_tokens, head_dim).
        value: (…, kv_tokens, value_dim).
        mask: boolean, broadcasts to (…, q_tokens, kv_tokens), True = may attend. It is sliced, never copied whole.
        is_causal: hide the keys after each query too (upper-left alignment); blocks in the future cost nothing.
        scale: factor on the scores; ``1/√head_dim`` where it is left out.
        block_size: at most this many queries times this many keys have scores at one time, for each leading index.

    Returns:
        ``Attended(output, logsumexp)`` as from ``attend``, both differentiable once.

    Raises:
        TypeError: as ``attend``, or ``block_size`` is no int.
        ValueError: as ``attend``, or ``block_size`` is less than 1.
        NotImplementedError: when its gradient is differentiated again; ``attend`` can do that.

    Source: Dao et al. 2022 (FlashAttention), section 3.1; Rabe and Staats 2021, "Self-attention does not need O(n²)
    memory".

    >>> from attnlib.attend import attend
    >>> query, key, value = torch.randn(7, 5), torch.randn(11, 5), torch.randn(11, 3)
    >>> chunked = chunked_attend(query, key, value, block_size=2)
    >>> torch.allclose(chunked.output, attend(query, key, value).output, atol=1e-6)
    True
    """
    check_qkv(query, key, value, mask)
    check_options(is_causal, scale)
    check_count("block_size", block_size)
    if scale is None:
        scale = max(query.shape[-1], 1) ** -0.5
    blocks = Blocks(scale, block_size, mask, lead=0 if is_causal else None)
    return Attended(*_Chunked.apply(query, key, value, blocks))


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, blocks):
        running = Running.start(query, key, value)
        running.see(query, key, value, blocks)
        ctx.save_for_backward(query, key, value, *running, blocks.mask)
        ctx.blocks = blocks
        output, logsumexp = running.attended()
        return output.to(value.dtype), logsumexp

    @staticmethod
    def backward(ctx, *gradient):
        *saved, mask = ctx.saved_tensors
        return *_ChunkedGradient.apply(*saved, *gradient, ctx.blocks._replace(mask=mask)), None


class _ChunkedGradient(torch.autograd.Function):
    """A step of its own only so that a second derivative is an error, not a wrong number."""

    @staticmethod
    def forward(ctx, query, key, value, numerator, total, top, grad_output, grad_logsumexp, blocks):
        gradient = Attended(grad_output, grad_logsumexp)
        gradients = Running(numerator, total, top).gradients((query, key, value), gradient, blocks)
        return tuple(gradient.to(query.dtype) for gradient in gradients)

    @staticmethod
    def backward(ctx, *gradients):
        raise NotImplementedError("chunked_attend can be differentiated once, not twice; attend can")
