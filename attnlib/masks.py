"""Who may see whom: boolean masks, True where a query may attend."""

import torch
from torch import Tensor

from attnlib._validate import check_count


def causal_mask(q_tokens: int, kv_tokens: int | None = None, *, device: torch.device | str | None = None) -> Tensor:
    """Let each query see the keys that do not come after it.

    Formula: ``mask[i, j] = (j <= i)``, aligned at the upper left, as ``is_causal=True`` of
    ``F.scaled_dot_product_attention`` is.

    Args:
        q_tokens: number of queries.
        kv_tokens: number of keys; the same as ``q_tokens`` where it is left out.
        device: where the mask is made.

    Returns:
        Boolean tensor (q_tokens, kv_tokens), True = may attend.

    Raises:
        TypeError: a number of tokens is not an int.
        ValueError: a number of tokens is negative.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.3.

    >>> causal_mask(3)
    tensor([[ True, False, False],
            [ True,  True, False],
            [ True,  True,  True]])
    """
    kv_tokens = q_tokens if kv_tokens is None else kv_tokens
    check_count("q_tokens", q_tokens, at_least=0)
    check_count("kv_tokens", kv_tokens, at_least=0)
    return torch.ones(q_tokens, kv_tokens, dtype=torch.bool, device=device).tril()


def padding_mask(lengths: Tensor, num_tokens: int) -> Tensor:
    """Mark the real tokens of sequences that were padded on the right to one length.

    Formula: ``mask[b, j] = (j < lengths[b])``. As a mask for attention give it the axes of heads and
    queries: ``padding_mask(lengths, n)[:, None, None, :]``.

    Args:
        lengths: integer tensor (batch,), the number of real tokens of each sequence.
        num_tokens: the padded length.

    Returns:
        Boolean tensor (batch, num_tokens), True = real, on the device of ``lengths``.

    Raises:
        TypeError: ``lengths`` is no integer tensor, or ``num_tokens`` no int.
        ValueError: ``lengths`` has not one axis, or a length lies outside 0 … num_tokens.

    >>> padding_mask(torch.tensor([2, 0, 3]), 3)
    tensor([[ True,  True, False],
            [False, False, False],
            [ True,  True,  True]])
    """
    check_count("num_tokens", num_tokens, at_least=0)
    is_tensor = isinstance(lengths, Tensor)
    if not is_tensor or lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        got = lengths.dtype if is_tensor else type(lengths).__name__
        raise TypeError(f"lengths must be an integer tensor; got {got}")
    if lengths.ndim != 1:
        raise ValueError(f"lengths must have shape (batch,); got {tuple(lengths.shape)}")
    lengths = lengths.long()  # not every unsigned dtype knows its smallest number
    if lengths.numel() and not 0 <= int(lengths.min()) <= int(lengths.max()) <= num_tokens:
        raise ValueError(f"lengths must lie between 0 and num_tokens={num_tokens}; got {lengths.tolist()}")
    return torch.arange(num_tokens, device=lengths.device) < lengths[:, None]  # (batch, num_tokens)
