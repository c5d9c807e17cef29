"""LSH attention as its definition says it: visible keys found by loops, then one dense softmax in float64."""

import torch
from torch import Tensor


def count_meetings(
    buckets: list[list[int]], real: list[bool], *, chunk_size: int, is_causal: bool, across_buckets: bool
) -> Tensor:
    """In how many rounds query i sees key j, (tokens, tokens), for one head; `buckets[round][token]`."""
    tokens = len(real)
    met = [[0] * tokens for _ in range(tokens)]
    for bucket in buckets:
        order = sorted((i for i in range(tokens) if real[i]), key=lambda i: (bucket[i], i))
        for place, i in enumerate(order):
            for other, j in enumerate(order):
                if across_buckets or not is_causal:
                    near = other // chunk_size in (place // chunk_size, place // chunk_size - 1)
                else:
                    near = place - chunk_size <= other <= place
                allowed = i != j and (across_buckets or bucket[i] == bucket[j]) and (j < i or not is_causal)
                met[i][j] += near and allowed
    return torch.tensor(met, dtype=torch.float64).view(tokens, tokens)


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
    """What `lsh_attention` must give, in float64, with the buckets given: (batch, heads, num_hashes, tokens)."""
    batch, heads, tokens, _ = query_key.shape
    real = torch.ones(batch, tokens, dtype=torch.bool) if key_mask is None else key_mask
    met = torch.zeros(batch, heads, tokens, tokens, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            met[b, h] = count_meetings(
                buckets[b, h].tolist(),
                real[b].tolist(),
                chunk_size=chunk_size,
                is_causal=is_causal,
                across_buckets=across_buckets,
            )
    return dense(query_key, value, met, real, count_once=count_once, scale=1.0 if scale is None else scale)


def dense(query_key: Tensor, value: Tensor, met: Tensor, real: Tensor, *, count_once: bool, scale: float) -> Tensor:
    """The softmax over what was met, once or as often as met; alone, a real token sees itself."""
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
