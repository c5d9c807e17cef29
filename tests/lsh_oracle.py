"""LSH attention by its definition: who sees whom as a matrix, then one dense softmax in float64."""

import torch
from torch import Tensor


def count_meetings(buckets: Tensor, real: Tensor, *, chunk_size: int, is_causal: bool, across_buckets: bool) -> Tensor:
    """In how many rounds query i sees key j, (tokens, tokens), for one head with buckets (num_hashes, tokens)."""
    position = torch.arange(len(real))
    met = torch.zeros(len(real), len(real), dtype=torch.float64)
    for bucket in buckets:
        rank = bucket * len(real) + position
        place = ((rank < rank[:, None]) & real).sum(1)  # how many real tokens come before, in sorted order
        if across_buckets or not is_causal:
            chunk = place // chunk_size
            back = chunk[:, None] - chunk
            near = (back == 0) | (back == 1)
        else:
            back = place[:, None] - place
            near = (back >= 0) & (back <= chunk_size)
        before = position < position[:, None] if is_causal else position != position[:, None]
        same = across_buckets | (bucket == bucket[:, None])
        met += near & before & same & real & real[:, None]
    return met


def oracle(
    query_key: Tensor,
    value: Tensor,
    buckets: Tensor,
    *,
    chunk_size: int,
    is_causal: bool = False,
    key_mask: Tensor | None = None,
    count_once: bool = True,
    across_buckets: bool = False,
    scale: float | None = None,
) -> Tensor:
    """The output that `lsh_attention` should give, in float64, for buckets (batch, heads, num_hashes, tokens)."""
    batch, heads, tokens, _ = query_key.shape
    real = torch.ones(batch, tokens, dtype=torch.bool) if key_mask is None else key_mask
    met = torch.zeros(batch, heads, tokens, tokens, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            met[b, h] = count_meetings(
                buckets[b, h],
                real[b],
                chunk_size=chunk_size,
                is_causal=is_causal,
                across_buckets=across_buckets,
            )
    return dense(query_key, value, met, real, count_once=count_once, scale=1.0 if scale is None else scale)


def dense(query_key: Tensor, value: Tensor, met: Tensor, real: Tensor, *, count_once: bool, scale: float) -> Tensor:
    """Softmax over the keys met, counted once or once per meeting; a real token that meets none sees itself."""
    alone = (met.sum(-1) == 0) & real[:, None]
    met = met + torch.diag_embed(alone.to(torch.float64))
    if count_once:
        met = met.clamp(max=1.0)
    norm = query_key.double().norm(dim=-1, keepdim=True)
    key = query_key.double() / torch.where(norm == 0, 1.0, norm)
    scores = scale * query_key.double() @ key.mT + met.log()
    seen = (met.sum(-1, keepdim=True) > 0).expand_as(value)
    weights = scores.masked_fill(met.sum(-1, keepdim=True) == 0, 0.0).softmax(-1)
    value = torch.where(real[:, None, :, None], value.double(), 0.0)
    return torch.where(seen, weights @ value, 0.0)
