"""Attention by its definition: loops over queries and keys, in float64. Slow, and what the fast forms are held to."""

import math

import torch
from torch import Tensor


def attend_by_loops(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp for (…, q_tokens, head_dim), (…, kv_tokens, head_dim), (…, kv_tokens, value_dim). All have
    the same leading axes, and the mask (q_tokens, kv_tokens) is for all of them."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    leading, outputs, logsumexps = query.shape[:-2], [], []
    for i in range(query.shape[-2]):
        visible = [j for j in range(key.shape[-2]) if mask is None or mask[i, j]]
        output, total = value.new_zeros(*leading, value.shape[-1]), query.new_zeros(*leading, 1)
        for j in visible:
            exponential = (scale * (query[..., i, :] * key[..., j, :]).sum(-1, keepdim=True)).exp()
            total = total + exponential
            output = output + exponential * value[..., j, :]
        outputs.append(output / total if visible else output)
        logsumexps.append(total[..., 0].log())
    return torch.stack(outputs, dim=-2), torch.stack(logsumexps, dim=-1)
