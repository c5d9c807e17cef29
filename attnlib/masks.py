"""Which tokens may see which: boolean masks, True where a query may attend."""

from contextlib import suppress

import torch
from torch import Tensor

from attnlib._validate import check_choice, check_counts, check_shape

Device = torch.device | str | None


def causal_mask(
    q_tokens: int, kv_tokens: int | None = None, *, align: str = "upper_left", device: Device = None
) -> Tensor:
    """Let each query see the keys that do not come after it: (q_tokens, kv_tokens), True = may attend.

    Formula: ``mask[i, j] = (j <= i + shift)``. With ``align="upper_left"``, as with ``is_causal=True`` of
    ``F.scaled_dot_product_attention``, the shift is 0: the first query is the first token. With "lower_right", it is
    ``kv_tokens - q_tokens``: the last query is the last token, as it is when older keys come from a cache. By default,
    there are as many keys as queries. Raises a TypeError or ValueError if a number is not an int or is negative, or
    ``align`` is neither of the two.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.3.

    >>> causal_mask(3)
    tensor([[ True, False, False],
            [ True,  True, False],
            [ True,  True,  True]])
    >>> causal_mask(2, 4, align="lower_right")
    tensor([[ True,  True,  True, False],
            [ True,  True,  True,  True]])
    """
    kv_tokens = q_tokens if kv_tokens is None else kv_tokens
    check_counts(at_least=0, q_tokens=q_tokens, kv_tokens=kv_tokens)
    check_choice("align", align, "upper_left", "lower_right")
    shift = 0 if align == "upper_left" else kv_tokens - q_tokens
    return torch.ones(q_tokens, kv_tokens, dtype=torch.bool, device=device).tril(shift)


def sliding_window_mask(q_tokens: int, kv_tokens: int, window: int, *, sinks: int = 0, device: Device = None) -> Tensor:
    """Let each query see itself, the few tokens before it, and the first few: (q_tokens, kv_tokens), True = may attend.

    Formula: ``mask[i, j] = (j <= p) and (j > p - window or j < sinks)`` with ``p = i + kv_tokens - q_tokens``. The
    queries are the last tokens, as with ``causal_mask(..., align="lower_right")``. Combine masks with ``&``.

    Args:
        window: how many tokens a query sees, itself included, as in Mistral; at least 1.
        sinks: how many of the first tokens every later query sees as well. Errors are as in ``causal_mask``.

    Source: Beltagy et al. 2020 (Longformer), section 3.1; sinks: Xiao et al. 2023 (StreamingLLM), section 3.2.

    >>> sliding_window_mask(3, 5, window=2, sinks=1)
    tensor([[ True,  True,  True, False, False],
            [ True, False,  True,  True, False],
            [ True, False, False,  True,  True]])
    """
    check_counts(at_least=0, kv_tokens=kv_tokens, sinks=sinks)
    check_counts(window=window)
    past = causal_mask(q_tokens, kv_tokens, align="lower_right", device=device)
    recent = past.triu(kv_tokens - q_tokens - window + 1)
    return recent | (past & (torch.arange(kv_tokens, device=device) < sinks))


def padding_mask(lengths: Tensor, num_tokens: int) -> Tensor:
    """Mark the real tokens of sequences that were padded on the right to a common length.

    Formula: ``mask[b, j] = (j < lengths[b])``, a boolean (batch, num_tokens). Layers take it as ``key_mask``. As a
    ``mask`` for ``attention`` it needs axes for heads and queries: ``padding_mask(lengths, n)[:, None, None, :]``.

    ``lengths`` is an integer tensor (batch,), the number of real tokens of each sequence, on the device where the mask
    is wanted; ``num_tokens`` is the padded length. Raises a TypeError or ValueError if an argument is of the wrong kind
    or shape, or a length is outside 0 … num_tokens. Lengths are not compared under ``torch.compile``, ``torch.export``
    or ``vmap``, or on meta.

    >>> padding_mask(torch.tensor([2, 0, 3]), 3)
    tensor([[ True,  True, False],
            [False, False, False],
            [ True,  True,  True]])
    """
    check_counts(at_least=0, num_tokens=num_tokens)
    kind = lengths.dtype if isinstance(lengths, Tensor) else type(lengths)
    if not isinstance(kind, torch.dtype) or kind.is_floating_point or kind.is_complex or kind == torch.bool:
        raise TypeError(f"lengths must be an integer tensor; got {getattr(kind, '__name__', kind)}")
    check_shape("lengths", lengths, "batch")
    lengths = lengths.long()  # torch cannot compare every unsigned dtype
    if not torch.compiler.is_compiling():
        with suppress(RuntimeError):  # raised by torch where there are no values to read
            if ((lengths < 0) | (lengths > num_tokens)).any():
                raise ValueError(f"lengths must lie between 0 and num_tokens={num_tokens}; got {lengths.tolist()}")
    return torch.arange(num_tokens, device=lengths.device) < lengths[:, None]  # (batch, num_tokens)
