"""Top-k search in a memory that is dealt out over several processes."""

import hashlib

import torch
import torch.distributed as dist
from torch import Tensor

from attnlib.memory import KVMemory, MemoryHits
from attnlib.memory.hits import best_first, score_keys
from attnlib.sharded.ring_attention import Ring


def sharded_search(
    memory: KVMemory, query: Tensor, top_k: int, *, group: dist.ProcessGroup | None = None
) -> MemoryHits:
    """Find the best memories of all processes for one query: local top-k, gathered candidates, global top-k.

    Memories are dealt out like playing cards. Number them within each row of the whole memory; then, of N processes,
    rank r holds numbers ``r, r + N, r + 2N, …``. So memory i of rank r is number ``i · N + r`` of the whole, and
    the numbers of memories held never differ by more than one. ``memory.add(key, value, numbers % N == r)`` deals; N
    memories of capacity C then forget exactly what one of capacity N · C would forget.

    Formula: ``top_k(∪_r top_k(memory_r))``, which equals ``top_k(∪_r memory_r)``.

    ``memory`` is this process's share, like the others in everything but its contents. ``query`` and ``top_k`` are as
    for ``KVMemory.search``, and the same on every process of ``group`` (default: all processes).

    Returns ``MemoryHits`` with ids of the whole memory, the same on every process: what ``KVMemory.search`` promises
    for one memory that holds everything. The gradient flows to this process's ``query``.

    TypeError, ValueError: as ``KVMemory.search``; or queries, top_k or memories differ: then all processes raise.
    RuntimeError, ConnectionError: as ``sharded_attend``.

    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # a group of one
    >>> memory = KVMemory(capacity=3, num_heads=1, head_dim=1)
    >>> tokens = torch.tensor([10.0, 30.0, 20.0]).reshape(1, 1, 3, 1)
    >>> memory.add(tokens, tokens)
    >>> sharded_search(memory, torch.ones(1, 1, 1, 1), top_k=2).ids.flatten()
    tensor([1, 2])
    >>> dist.destroy_process_group()
    """
    ring = Ring(group)

    def facts() -> dict[str, object]:
        if not isinstance(memory, KVMemory):
            raise TypeError(f"memory must be a KVMemory; got {type(memory).__name__}")
        memory._check_query(query, top_k)
        content = query.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        digest = f"SHA-256 {hashlib.sha256(content).hexdigest()[:16]}…"
        return {"top_k": top_k, "value_dim of memory": memory.value_dim, "content of query": digest}

    ring.agree(facts, {"query": query})
    with torch.no_grad():
        local = memory.search(query, top_k)
    ids = torch.where(local.mask, local.ids * ring.size + ring.rank, -1)
    shares = ring.gather([local.keys, local.values, ids])
    keys, values, ids = (torch.cat(parts, dim=3) for parts in zip(*shares))  # (batch, heads, tokens, N · top_k, …)
    scores = score_keys(query, keys, ids >= 0)  # scored once, all alike: these numbers also set the order
    order = best_first(scores.detach(), ids)[..., :top_k]
    keys, values = (tensor.take_along_dim(order[..., None], dim=3) for tensor in (keys, values))
    ids = ids.gather(-1, order)
    return MemoryHits(keys, values, scores.gather(-1, order), ids, ids >= 0)
