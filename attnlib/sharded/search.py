"""Top-k search in a memory that is dealt out over several processes."""

import torch
import torch.distributed as dist
from torch import Tensor

from attnlib._validate import check_count, check_same, check_shape, check_tensor
from attnlib.memory import KVMemory, MemoryHits
from attnlib.sharded.agreement import agree
from attnlib.sharded.ring import Ring


def sharded_search(
    memory: KVMemory, query: Tensor, top_k: int, *, group: dist.ProcessGroup | None = None
) -> MemoryHits:
    """Find the best memories of all processes for one query: local top-k, gathered candidates, global top-k.

    Memories are dealt out like cards: of N processes, rank r holds the memories whose number in the whole, counted in
    each row, is ``r, r + N, r + 2N …``. So memory i of rank r is number ``i · N + r`` of the whole, and all processes
    hold equally many at any time. ``memory.add(key, value, numbers % N == r)`` deals; N memories of capacity C then
    forget what one of capacity N · C would forget.

    Formula: ``top_k(∪_r top_k(memory_r))``, which is ``top_k(∪_r memory_r)``.

    Args:
        memory: this process's share, equal in everything but its contents to that of the others.
        query: (batch, heads, tokens, head_dim), the same on every process.
        top_k: how many to find for each token and head.
        group: the processes; the default group where it is left out.

    Returns:
        ``MemoryHits`` with the ids of the whole, the same on every process: what one memory that holds everything
        would bring back. The found keys are scored again with this process's ``query``, which so gets its gradient.

    Raises:
        TypeError, ValueError: as ``KVMemory.search``; or queries, top_k or memories differ: then all processes raise,
            and the message names the rank.
        RuntimeError: torch.distributed is not initialised.
        ConnectionError: a process died, or did not answer within the time-out of the group; the message names its rank.

    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # a group of one
    >>> memory = KVMemory(capacity=3, num_heads=1, head_dim=1)
    >>> tokens = torch.tensor([10.0, 30.0, 20.0]).reshape(1, 1, 3, 1)
    >>> memory.add(tokens, tokens)
    >>> sharded_search(memory, torch.ones(1, 1, 1, 1), top_k=2).ids.flatten()
    tensor([1, 2])
    >>> dist.destroy_process_group()
    """
    ring = Ring(group)

    def check() -> None:
        if not isinstance(memory, KVMemory):
            raise TypeError(f"memory must be a KVMemory; got {type(memory).__name__}")
        check_tensor("query", query)
        sizes = {"batch": memory.batch_size, "heads": memory.num_heads, "head_dim": memory.head_dim}
        check_shape("query", query, "batch heads tokens head_dim", sizes)
        check_count("top_k", top_k)
        check_same(memory=torch.empty(0, dtype=memory.dtype, device=memory.device), query=query)
        facts.update({"content of query": _fingerprint(query), "value_dim of memory": memory.value_dim})

    facts = {"top_k": top_k}
    agree(ring, check, {"query": query}, facts)
    with torch.no_grad():
        local = memory.search(query, top_k)
    ids = torch.where(local.mask, local.ids * ring.size + ring.rank, -1)
    mine = [local.keys, local.values, local.scores.detach(), ids]
    packets = ring.gather(_to_bytes(mine))
    everybody = zip(*(_from_bytes(packet, mine) for packet in packets))
    keys, values, scores, ids = (torch.cat(parts, dim=3) for parts in everybody)  # (batch, heads, tokens, N · top_k, …)
    newest_first = ids.argsort(dim=-1, descending=True)
    best_first = scores.gather(-1, newest_first).argsort(dim=-1, descending=True, stable=True)
    order = newest_first.gather(-1, best_first)[..., :top_k]  # of equal scores the newer first, as in one memory
    keys, values = (tensor.take_along_dim(order[..., None], dim=3) for tensor in (keys, values))
    ids = ids.gather(-1, order)
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query[..., None, :].to(wide) * keys.to(wide)).sum(-1)  # (batch, heads, tokens, top_k)
    return MemoryHits(keys, values, scores.masked_fill(ids < 0, -torch.inf), ids, ids >= 0)


def _fingerprint(tensor: Tensor) -> int:
    """A whole number that all but surely differs where the bits do, and does not depend on the order of summation."""
    data = _to_bytes([tensor]).to(torch.int64)
    return int((data * (torch.arange(len(data), device=data.device) % 65521 + 1)).sum())


def _to_bytes(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.contiguous().flatten().view(torch.uint8) for tensor in tensors])


def _from_bytes(packet: Tensor, like: list[Tensor]) -> list[Tensor]:
    parts = packet.split([tensor.numel() * tensor.element_size() for tensor in like])
    return [part.clone().view(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, like)]
