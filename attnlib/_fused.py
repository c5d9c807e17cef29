"""PyTorch's fused kernel for every shape and mask that ``attention`` takes."""

import torch
import torch.nn.functional as F
from torch import Tensor

MASK_BLOCK = 2**20  # entries of a mask that are converted for the kernel at once


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """``attention`` without its checks: brings every case into the form that PyTorch fuses.

    That is four axes, all expanded, one size for keys and values, and a mask or ``is_causal``, but not both. With both,
    a query that sees no key gets an average of the hidden values, so those must be zero, or its output unused.
    """
    if scale is not None and scale <= 0:  # with is_causal, PyTorch's CPU kernel multiplies −inf by the scale
        query, scale = query * (-1.0 if scale else 0.0), -scale or 1.0
    fits = query.ndim == 4 and query.shape[:2] == key.shape[:2] == value.shape[:2] and key.shape[-1] == value.shape[-1]
    if fits and mask is None and query.stride(-1) == key.stride(-1) == value.stride(-1) == 1:
        return F.scaled_dot_product_attention(query, key, value, None, dropout_p, is_causal, scale=scale)
    if mask is not None and (mask.ndim == 0 or mask.shape[-1] == 1):  # each query sees all keys or none
        return fused_attention(query, key, value, None, is_causal, scale, dropout_p).masked_fill(~mask, 0.0)

    leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    (q_tokens, head_dim), (kv_tokens, value_dim) = query.shape[-2:], value.shape[-2:]
    scale = max(head_dim, 1) ** -0.5 if scale is None else scale
    query, key, value = (_on_four_axes(tensor.expand(*leading, -1, -1), leading) for tensor in (query, key, value))
    alike = mask is None or mask.ndim == 1 or mask.shape[-2] == 1  # for all queries
    if mask is not None and alike:
        mask = _on_four_axes(torch.atleast_2d(mask), leading)
        if is_causal:
            query, key = _hide_by_score(query, key, mask, scale)
            mask = None
    width = max(query.shape[-1], value_dim)
    query, key, value = (_widened(tensor, width) for tensor in (query, key, value))
    if mask is None or alike:
        output = F.scaled_dot_product_attention(query, key, value, mask, dropout_p, is_causal, scale=scale)
    else:  # the kernel converts such a mask, so it gets a block of rows at a time
        rows, starts = q_tokens, range(1)
        if not torch.compiler.is_compiling():  # a compiler wants one graph for any number of tokens
            rows = max(64, MASK_BLOCK // max(_on_four_axes(mask[..., :1, :], leading).numel(), 1))
            starts = range(0, max(q_tokens, 1), rows)
        blocks = []
        for first in starts:
            last = min(first + rows, kv_tokens) if is_causal else kv_tokens
            visible = mask[..., first : first + rows, :last]
            visible = _on_four_axes(visible.tril(first) if is_causal else visible, leading)
            part = query[..., first : first + rows, :], key[..., :last, :], value[..., :last, :]
            blocks.append(F.scaled_dot_product_attention(*part, visible, dropout_p, scale=scale))
        output = torch.cat(blocks, dim=-2)
    return output[..., :value_dim].reshape(*leading, q_tokens, value_dim)


def _on_four_axes(tensor: Tensor, leading: torch.Size) -> Tensor:
    """(batch, heads, …, …) from (*leading, …, …), or fewer axes in front: all leading axes but the last become one."""
    if len(leading) > 2 and tensor.ndim > 3:
        return tensor.expand(*leading[:-1], *tensor.shape[-3:]).flatten(0, -4)
    return tensor[(None,) * (4 - tensor.ndim)]


def _widened(tensor: Tensor, width: int) -> Tensor:
    """Pad the last axis with zeros up to ``width``, with contiguous rows, as the kernel requires."""
    if tensor.shape[-1] < width:
        return F.pad(tensor, (0, width - tensor.shape[-1]))
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _hide_by_score(query: Tensor, key: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Hide keys from all queries without a mask: one more component, which gives hidden keys a score of −2⁹⁶.

    Visible keys have 0 there, which changes none of their scores. float16 holds 2¹⁵ at most, and gives −2³⁰ · scale.
    """
    dtypes, kind = {query.dtype}, query.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):  # meta has no autocast
        dtypes.add(torch.get_autocast_dtype(kind))
    in_query, most = (2.0**15, 2.0**15) if torch.float16 in dtypes else (2.0**48, 2.0**100)
    hidden = torch.zeros_like(key[..., :1]).masked_fill(~mask.mT, -min(2.0**48 / scale, most))
    return F.pad(query, (0, 1), value=in_query), torch.cat([key, hidden], dim=-1)
