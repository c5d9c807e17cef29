"""Who may see whom: boolean masks, True where a query may attend."""

import torch
from torch import Tensor

from attnlib._validate import check_count


def causal_mask(q_tokens: int, kv_tokens: int | None = None, *, device: torch.device | str | None = None) -> Tensor:
    """Let each query see the keys that do not come after it.

    Formula: ``mask[i, j] = (j <= i)``, aligned at the upper left, as ``is_causal=True`` of
    ``F.scaled_dot_product_attention`` is.

    Returns:
        Boolean tensor (q_tokens, kv_tokens), True = may attend; by default there are as many keys as queries.

    Raises:
        TypeError, ValueError: a number of tokens is not an int, or is negative.

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

    Formula: ``mask[b, j] = (j < lengths[b])``. Layers take it as ``key_mask``. As a ``mask`` for ``attention`` it needs
    axes for heads and queries: ``padding_mask(lengths, n)[:, None, None, :]``.

    Args:
        lengths: integer tensor (batch,), the number of real tokens of each sequence.
        num_tokens: the padded length.

    Returns:
        Boolean tensor (batch, num_tokens), True = real, on the device of ``lengths``.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or shape, or a length is outside 0 … num_tokens. Lengths
            cannot be read, and are not checked, under ``torch.compile``, ``torch.export`` and ``vmap`` and on meta.

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
    lengths = lengths.long()  # torch cannot take the minimum of every unsigned dtype
    if not torch.compiler.is_compiling() and lengths.numel():
        try:
            fits = 0 <= int(lengths.min()) <= int(lengths.max()) <= num_tokens
        except RuntimeError:  # torch's error where there are no values to read
            fits = True
        if not fits:
            raise ValueError(f"lengths must lie between 0 and num_tokens={num_tokens}; got {lengths.tolist()}")
    return torch.arange(num_tokens, device=lengths.device) < lengths[:, None]  # (batch, num_tokens)
