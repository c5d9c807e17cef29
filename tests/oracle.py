"""Attention by its definition: loops over queries and keys, in float64. Slow, and what the fast forms are held to."""

import math

import torch
from torch import Tensor


def attend_by_loops(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp for (q_tokens, head_dim), (kv_tokens, head_dim), (kv_tokens, value_dim)."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    outputs, logsumexps = [], []
    for i in range(len(query)):
        visible = [j for j in range(len(key)) if mask is None or mask[i, j]]
        output, total = (
            torch.zeros_like(value[0] if len(value) else query.new_zeros(value.shape[-1])),
            query.new_zeros(()),
        )
        for j in visible:
            exponential = (scale * (query[i] * key[j]).sum()).exp()
            total = total + exponential
            output = output + exponential * value[j]
        outputs.append(output / total if visible else output)
        logsumexps.append(total.log() if visible else query.new_tensor(-math.inf))
    return torch.stack(outputs), torch.stack(logsumexps)
