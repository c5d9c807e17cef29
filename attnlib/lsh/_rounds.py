"""The rounds of LSH attention: sort, cut into chunks, attend, undo the sort, merge."""

import torch
from torch import Tensor

FAR = 2**30  # the code of padding: no difference with it ever lies in a visible range


def attend_rounds(
    query_key: Tensor,
    value: Tensor,
    buckets: Tensor,
    key_mask: Tensor | None,
    *,
    chunk_size: int,
    is_causal: bool,
    count_once: bool,
    across_buckets: bool,
    scale: float,
) -> Tensor:
    """``lsh_attention`` with the buckets given: int64 (batch, heads, num_hashes, tokens)."""
    batch, _, rounds, tokens = buckets.shape
    if value.numel() == 0:
        return torch.zeros_like(value)
    dtype = torch.promote_types(value.dtype, torch.float32)
    query, values = query_key.to(dtype), value.to(dtype)
    norm = query.norm(dim=-1, keepdim=True)
    key = query / norm.masked_fill(norm == 0, 1.0)
    query = query * scale
    padding = torch.zeros(batch, tokens, dtype=torch.bool, device=value.device) if key_mask is None else ~key_mask
    padding = padding[:, None, :]  # (batch, 1, tokens)
    if key_mask is not None:
        query, key, values = (t.masked_fill(padding[..., None], 0.0) for t in (query, key, values))
        buckets = buckets.masked_fill(padding[:, :, None], int(buckets.max()) + 1)

    c = chunk_size
    chunks = -(-tokens // c)
    order = buckets.argsort(dim=-1, stable=True)  # (batch, heads, num_hashes, tokens)
    slot = torch.empty_like(order).scatter_(-1, order, torch.arange(tokens, device=order.device).expand_as(order))
    if across_buckets:
        code, low, high = slot // c, 0, 1
    elif is_causal:
        code, low, high = slot + buckets * c, 1, c
    else:
        code, low, high = slot // c + 2 * buckets, 0, 1
    code = code.masked_fill(padding[:, :, None], FAR)

    def extend(t: Tensor, fill: float, axis: int) -> Tensor:  # one more entry, for empty places
        shape = list(t.shape)
        shape[axis] = 1
        return torch.cat([t, t.new_full(shape, fill)], axis)

    query, key, values = (extend(t, 0.0, 2) for t in (query, key, values))
    code = extend(code, FAR, 3)
    position = torch.arange(tokens + 1, device=value.device)
    place = torch.nn.functional.pad(order, (0, chunks * c - tokens), value=tokens)

    def take(t: Tensor, at: Tensor) -> Tensor:  # t (batch, heads, tokens + 1, d), at (batch, heads, …)
        flat = at.flatten(2)
        return t.gather(2, flat[..., None].expand(*flat.shape, t.shape[-1])).unflatten(2, at.shape[2:])

    outputs, logsumexps = [], []
    for r in range(rounds):
        own = place[:, :, r].unflatten(-1, (chunks, c))  # (batch, heads, chunks, c)
        before = torch.nn.functional.pad(own[:, :, :-1], (0, 0, 1, 0), value=tokens)
        seen = torch.cat([before, own], -1)  # (batch, heads, chunks, 2c)
        scores = take(query, own) @ take(key, seen).mT

        def sees(s: int, own: Tensor = own, seen: Tensor = seen) -> Tensor:
            at = code[:, :, s, :, None]
            gap = take(at, own) - take(at, seen).mT
            return (gap >= low) & (gap <= high)

        visible = sees(r)
        if is_causal:
            visible &= position[own][..., :, None] > position[seen][..., None, :]
        else:
            visible &= position[own][..., :, None] != position[seen][..., None, :]
        if count_once:
            for s in range(r):
                visible &= ~sees(s)
        scores = scores.masked_fill(~visible, -torch.inf)
        top = scores.detach().amax(-1, keepdim=True)
        top = top.masked_fill(top == -torch.inf, 0.0)
        exponentials = (scores - top).exp()
        total = exponentials.sum(-1, keepdim=True)
        empty = total == 0
        logsumexp = (total.masked_fill(empty, 1.0).log() + top).masked_fill(empty, -torch.inf)
        output = exponentials @ take(values, seen) / total.masked_fill(empty, 1.0)
        undo = slot[:, :, r]
        outputs.append(take(output.flatten(2, 3), undo))
        logsumexps.append(take(logsumexp.flatten(2, 3), undo))
    logsumexp = torch.stack(logsumexps)  # (num_hashes, batch, heads, tokens, 1)
    top = logsumexp.detach().amax(0)
    alone = top == -torch.inf
    share = (logsumexp - top.masked_fill(alone, 0.0)).exp()
    share = share / share.sum(0).masked_fill(alone, 1.0)
    merged = (share * torch.stack(outputs)).sum(0)
    merged = torch.where(alone, values[:, :, :tokens], merged)
    return merged.to(value.dtype)
