"""Bringing memories back by their ids."""

import torch
from torch import Tensor

from attnlib.attend import without_autocast
from attnlib.memory.hits import MemoryHits
from attnlib.memory.search import best_first


def fetch(query: Tensor, keys: Tensor, values: Tensor, ids: Tensor) -> MemoryHits:
    """Copy what is stored under these ids, and score the keys again with the live query.

    Args:
        query: (batch, heads, tokens, head_dim); the scores pass their gradient on to it.
        keys: the ring, (batch, heads, capacity, head_dim), contiguous.
        values: the ring, (batch, heads, capacity, value_dim), contiguous.
        ids: (batch, heads, tokens, top_k), −1 = none.

    Returns:
        ``MemoryHits``, best first, of equal scores the newer first.
    """
    found, scores = _score(query, keys, ids)
    in_order = ids.gather(-1, best_first(scores.detach(), ids))
    if not torch.equal(in_order, ids):  # the search rounded otherwise
        ids = in_order
        found, scores = _score(query, keys, ids)
    return MemoryHits(found, _copy(values, ids), scores, ids, ids >= 0)


def _score(query: Tensor, keys: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    found = _copy(keys, ids)  # (batch, heads, tokens, top_k, head_dim)
    dtype = torch.promote_types(query.dtype, torch.float32)
    with without_autocast(query.device):
        scores = (query.unsqueeze(-2).to(dtype) @ found.to(dtype).mT).squeeze(-2)  # (batch, heads, tokens, top_k)
    return found, scores.masked_fill(ids < 0, -torch.inf)


@torch.no_grad()
def _copy(stored: Tensor, ids: Tensor) -> Tensor:
    """A copy, which later writes leave as it is; 0 for id −1."""
    batch, heads, capacity, _ = stored.shape
    pairs = torch.arange(batch * heads, device=stored.device).view(batch, heads, 1, 1)
    slots = (pairs * capacity + ids % capacity).flatten()
    copy = stored.flatten(0, 2).index_select(0, slots).view(*ids.shape, stored.shape[-1])
    return copy.masked_fill_((ids < 0).unsqueeze(-1), 0)
