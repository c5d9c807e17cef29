"""An approximate index over a memory, for when missing some of the best is acceptable: inverted lists, by faiss."""

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

from attnlib._validate import check_counts
from attnlib.memory.hits import MemoryHits
from attnlib.memory.kv_memory import KVMemory


class IVFIndex:
    """A view of a ``KVMemory`` that compares a query with only some of the keys, so it may miss the best.

    Formula: k-means divides the keys of each row and head into ``num_lists`` lists; a query is compared with the keys
    of the ``num_probes`` lists whose centres score best. It misses little if the keys form clusters, and most if they
    point in all directions: measure it with ``recall``. The index is rebuilt at the first search after its memory has
    changed or was replaced. A key that holds NaN or ∞ is never found.

    ``num_lists`` is by default about the square root of the number of memories. ImportError: faiss is not installed.
    TypeError, ValueError: ``memory`` is not a ``KVMemory``, or a number is not a positive int.

    Source: Jégou et al. 2011, "Product Quantization for Nearest Neighbor Search", section IV (inverted lists).

    >>> memory = KVMemory(capacity=500, num_heads=1, head_dim=8)
    >>> memory.add(torch.randn(1, 1, 500, 8), torch.randn(1, 1, 500, 8))
    >>> index = IVFIndex(memory, num_lists=5, num_probes=5)  # all lists
    >>> index.recall(torch.randn(1, 1, 20, 8), top_k=3)
    1.0
    """

    def __init__(self, memory: KVMemory, *, num_lists: int | None = None, num_probes: int = 8) -> None:
        if not isinstance(memory, KVMemory):
            raise TypeError(f"memory must be a KVMemory; got {type(memory).__name__}")
        check_counts(num_lists=1 if num_lists is None else num_lists, num_probes=num_probes)
        if importlib.util.find_spec("faiss") is None:
            raise ImportError("IVFIndex needs faiss, which is not installed; run: pip install faiss-cpu")
        self.memory, self.num_lists, self.num_probes = memory, num_lists, num_probes
        self._built_from: tuple[KVMemory, int] | None = None  # a memory, and how often it had been written
        self._indexes: dict[tuple[int, int], Any] = {}  # of each row and head

    def search(self, query: Tensor, top_k: int) -> MemoryHits:
        """Find good memories, in the form that ``KVMemory.search`` returns, though not always the best. If the lists
        searched hold fewer than ``top_k``, the rest is masked."""
        self.memory._check_query(query, top_k)
        if self._built_from != (self.memory, self.memory._writes):
            held, heads = self.memory._held(), range(self.memory.num_heads)
            self._indexes = {(row, head): self._build(row, head, ids) for row, ids in enumerate(held) for head in heads}
            self._built_from = self.memory, self.memory._writes
        ids = torch.full((*query.shape[:3], top_k), -1, dtype=torch.int64, device="cpu")
        queries = query.detach().float().cpu().contiguous().numpy()
        for place, index in self._indexes.items():
            if index is not None:
                ids[place] = torch.from_numpy(index.search(queries[place], top_k)[1])
        return self.memory._fetch(query, ids.to(query.device))

    def recall(self, query: Tensor, top_k: int) -> float:
        """The share, 0 … 1, of the memories found by exact search that this index finds too; 1 if there are none."""
        exact, found = self.memory.search(query.detach(), top_k), self.search(query.detach(), top_k)
        hit = (exact.ids.unsqueeze(-1) == found.ids.unsqueeze(-2)).any(-1) & exact.mask
        return (hit.sum() / exact.mask.sum()).item() if exact.mask.any() else 1.0

    def _build(self, row: int, head: int, held: range) -> Any:
        """A faiss index of the keys with these ids; None if there are none."""
        import faiss

        ids = torch.arange(held.start, held.stop, device="cpu")
        slots = (ids % self.memory.capacity).to(self.memory.device)
        keys = self.memory._keys[row, head, slots].float().cpu()
        finite = keys.isfinite().all(-1)  # faiss takes no others
        keys, ids = keys[finite], ids[finite]  # (memories, head_dim), (memories,)
        if not len(ids):
            return None
        num_lists = self.num_lists or min(math.isqrt(len(ids)), len(ids) // 39)  # faiss wants 39 keys a list
        num_lists = max(1, min(num_lists, len(ids)))
        index: Any = faiss.index_factory(self.memory.head_dim, f"IVF{num_lists},Flat", faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1
        index.train(keys.numpy())
        index.add_with_ids(keys.numpy(), ids.numpy())
        index.nprobe = min(self.num_probes, num_lists)
        return index
