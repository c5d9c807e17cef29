"""A ring of past keys and values for every row of a batch and every head."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from attnlib._validate import check_count, check_same, check_shape, check_tensor
from attnlib.attend import without_autocast
from attnlib.memory.fetch import fetch
from attnlib.memory.hits import MemoryHits
from attnlib.memory.search import best_ids
from attnlib.memory.storage import read_file, write_file

SIZES = ("capacity", "num_heads", "head_dim", "value_dim", "batch_size")


class KVMemory:
    """Keep the last ``capacity`` keys and values of each row of a batch, and find the best for a query.

    Each row counts its memories from 0; the number is a memory's id, and no id of a row is given twice. Memory ``id``
    lies in slot ``id mod capacity``, so the oldest goes first. Rows advance on their own and never meet.

    Args:
        capacity: the most memories that a row holds.
        num_heads: how many heads; each has its own keys and values for every memory.
        head_dim: size of a key.
        value_dim: size of a value; the same as ``head_dim`` where it is left out.
        batch_size: how many rows.
        dtype: of keys and values; torch's default where it is left out.
        device: where they live; torch's default where it is left out.

    Attributes:
        capacity, num_heads, head_dim, value_dim, batch_size, dtype, device: as above.
        lengths: int64 tensor (batch_size,) on the CPU, how many memories each row holds.

    Raises:
        TypeError: a size is no int, ``dtype`` no floating-point dtype.
        ValueError: a size is below 1.

    Source: Wu et al. 2022 (Memorizing Transformers), section 3.1 and 3.2.

    >>> memory = KVMemory(capacity=3, num_heads=1, head_dim=1)
    >>> tokens = torch.tensor([10.0, 20.0, 30.0, 40.0]).reshape(1, 1, 4, 1)
    >>> memory.add(tokens, -tokens)  # the first of the four has to go
    >>> hits = memory.search(torch.ones(1, 1, 1, 1), top_k=2)
    >>> hits.scores.flatten(), hits.ids.flatten(), hits.values.flatten()
    (tensor([40., 30.]), tensor([3, 2]), tensor([-40., -30.]))
    """

    def __init__(
        self,
        capacity: int,
        num_heads: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        batch_size: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        value_dim = head_dim if value_dim is None else value_dim
        dtype = torch.get_default_dtype() if dtype is None else dtype
        sizes = {"capacity": capacity, "num_heads": num_heads, "head_dim": head_dim, "value_dim": value_dim}
        for name, size in {**sizes, "batch_size": batch_size}.items():
            check_count(name, size)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point dtype; got {dtype}")
        self.capacity, self.num_heads, self.batch_size = capacity, num_heads, batch_size
        self.head_dim, self.value_dim = head_dim, value_dim
        with torch.inference_mode(False):  # a memory may be made in inference mode and used outside
            self._keys = torch.zeros(batch_size, num_heads, capacity, head_dim, dtype=dtype, device=device)
            self._values = torch.zeros(batch_size, num_heads, capacity, value_dim, dtype=dtype, device=device)
        self._next = [0] * batch_size  # the id that each row gives next
        self._cleared = [0] * batch_size  # each row has forgotten the ids below this one

    @property
    def dtype(self) -> torch.dtype:
        return self._keys.dtype

    @property
    def device(self) -> torch.device:
        return self._keys.device

    @property
    def lengths(self) -> Tensor:
        return torch.tensor([len(ids) for ids in self._held()], device="cpu")

    def __len__(self) -> int:
        """How many memories the fullest row holds."""
        return max(len(ids) for ids in self._held())

    def __repr__(self) -> str:
        sizes = "capacity={0.capacity}, num_heads={0.num_heads}, head_dim={0.head_dim}, value_dim={0.value_dim}"
        return f"KVMemory({sizes.format(self)}, batch_size={self.batch_size}, lengths={self.lengths.tolist()})"

    @torch.no_grad()
    def add(self, key: Tensor, value: Tensor, mask: Tensor | None = None) -> None:
        """Store tokens, each row after its own last one; the oldest memories make room.

        Args:
            key: (batch, heads, tokens, head_dim); stored without its gradient.
            value: (batch, heads, tokens, value_dim); likewise.
            mask: boolean (batch, tokens), True = store; all where it is left out. Where a row stores more tokens than
                ``capacity``, its last ones remain, and the ids count all of them.

        Raises:
            TypeError: no tensors of the memory's dtype, or a mask that is not boolean.
            ValueError: a shape or a device does not fit.
        """
        sizes = {"batch": self.batch_size, "heads": self.num_heads}
        self._check("key", key, "batch heads tokens head_dim", {**sizes, "head_dim": self.head_dim})
        sizes["tokens"] = key.shape[2]
        self._check("value", value, "batch heads tokens value_dim", {**sizes, "value_dim": self.value_dim})
        if mask is None:
            mask = torch.ones(self.batch_size, key.shape[2], dtype=torch.bool, device=self.device)
        self._check_store_mask(mask, key.shape[2])
        place = mask.cumsum(-1)  # (batch, tokens): 1 for the first token that its row stores, then 2, …
        counts = mask.sum(-1)  # (batch,)
        stays = mask & (place > counts[:, None] - self.capacity)
        row, token = stays.nonzero(as_tuple=True)
        slot = (torch.tensor(self._next, device=self.device)[row] + place[row, token] - 1) % self.capacity
        self._keys[row, :, slot] = key[row, :, token]
        self._values[row, :, slot] = value[row, :, token]
        self._next = [end + count for end, count in zip(self._next, counts.tolist())]

    def search(self, query: Tensor, top_k: int, *, block_size: int | None = None) -> MemoryHits:
        """Find the memories whose keys have the greatest dot products with each query; every key is looked at.

        Args:
            query: (batch, heads, tokens, head_dim).
            top_k: how many to find for each token and head.
            block_size: how many keys are scored at a time; chosen for speed where it is left out. It changes memory and
                speed, not what is found.

        Returns:
            ``MemoryHits``, best first, of equal scores the newer first; where a row holds fewer than ``top_k``, the
            rest is masked. The found keys are scored again with ``query``, which so gets its gradient; the stored keys
            and values have none.

        Raises:
            TypeError: ``query`` is no tensor of the memory's dtype, ``top_k`` or ``block_size`` no int.
            ValueError: a shape or a device does not fit, ``top_k`` or ``block_size`` is below 1.
        """
        self._check_query(query, top_k)
        if block_size is not None:
            check_count("block_size", block_size)
        ids = torch.full((*query.shape[:3], top_k), -1, dtype=torch.int64, device=self.device)
        held = self._held()
        alike = all(of_row == held[0] for of_row in held)  # then all rows are searched together
        for row, of_row in enumerate(held[:1] if alike else held):
            if of_row:
                rows = slice(None) if alike else slice(row, row + 1)
                width = min(top_k, len(of_row))
                with without_autocast(self.device):
                    ids[rows, ..., :width] = best_ids(query[rows], self._keys[rows], of_row, width, block_size)
        return self._fetch(query, ids)

    def clear(self, rows: int | Sequence[int] | Tensor | None = None) -> None:
        """Forget all memories of some rows, or of all; the ids go on counting.

        Args:
            rows: a row, several, or a boolean tensor (batch,), True = forget; all where it is left out.

        Raises:
            TypeError: ``rows`` holds something else.
            ValueError: a row lies outside 0 … batch − 1, or a boolean tensor has another shape.
        """
        for row in self._check_rows(rows):
            self._cleared[row] = self._next[row]
            self._keys[row] = 0
            self._values[row] = 0

    def to(self, device: torch.device | str) -> "KVMemory":
        """Move keys and values to a device, and return this memory."""
        with torch.inference_mode(False):  # as when it was made
            self._keys, self._values = self._keys.to(device=device), self._values.to(device=device)
        return self

    def save(self, path: str | os.PathLike) -> None:
        """Write the memory to one file, in safetensors' format, with a checksum over all of it.

        The file is written beside ``path`` under a name that ends in ``.partial``, and then renamed: a crash leaves the
        old file as it was, and at worst the partial one beside it.

        Raises:
            OSError: the file cannot be written.
        """
        used = min(max(self._next), self.capacity)  # slots that were ever written
        tensors = {"keys": self._keys[:, :, :used], "values": self._values[:, :, :used]}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        for name, counters in (("next", self._next), ("cleared", self._cleared)):
            tensors[name] = torch.tensor(counters, device="cpu")
        write_file(path, tensors, {name: getattr(self, name) for name in SIZES})

    @classmethod
    def load(cls, path: str | os.PathLike, *, device: torch.device | str | None = None) -> "KVMemory":
        """Read the memory that ``save`` wrote, bit by bit the same; ids go on where they stood.

        Args:
            path: the file.
            device: where the memory shall live; torch's default where it is left out.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is truncated, altered, foreign, or of another format version. Nothing in it is executed.
        """
        tensors, sizes = read_file(path)
        if set(tensors) != {"keys", "values", "next", "cleared"} or set(sizes) != set(SIZES):
            raise ValueError(f"{path} does not hold what a KVMemory saves: {sorted(tensors)} and {sorted(sizes)}")
        try:
            memory = cls(**sizes, dtype=tensors["keys"].dtype, device=device)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} holds sizes that cannot be: {error}") from None
        ends, starts = tensors["next"], tensors["cleared"]
        counts = all(t.dtype == torch.int64 and t.shape == (memory.batch_size,) for t in (ends, starts))
        if not counts or not ((starts >= 0) & (starts <= ends)).all():
            raise ValueError(f"{path} holds counters that do not fit: {starts.tolist()} and {ends.tolist()}")
        memory._next, memory._cleared = ends.tolist(), starts.tolist()
        used = min(max(memory._next), memory.capacity)
        for name, ring in (("keys", memory._keys), ("values", memory._values)):
            if tensors[name].shape != ring[:, :, :used].shape or tensors[name].dtype != ring.dtype:
                raise ValueError(f"{path} holds {name} that do not fit its sizes: {tuple(tensors[name].shape)}")
            ring[:, :, :used] = tensors[name]
        return memory

    def _held(self) -> list[range]:
        """The ids that each row holds."""
        firsts = (max(cleared, end - self.capacity) for cleared, end in zip(self._cleared, self._next))
        return [range(first, end) for first, end in zip(firsts, self._next)]

    def _fetch(self, query: Tensor, ids: Tensor) -> MemoryHits:
        return fetch(query, self._keys, self._values, ids)

    def _keys_of(self, row: int, head: int) -> Tensor:
        """The keys that a row holds, oldest first: (length, head_dim)."""
        held = self._held()[row]
        return self._keys[row, head, torch.arange(held.start, held.stop, device=self.device) % self.capacity]

    def _check_query(self, query: Tensor, top_k: int) -> None:
        sizes = {"batch": self.batch_size, "heads": self.num_heads, "head_dim": self.head_dim}
        self._check("query", query, "batch heads tokens head_dim", sizes)
        check_count("top_k", top_k)

    def _check(self, name: str, tensor: Tensor, axes: str, sizes: dict[str, int]) -> None:
        check_tensor(name, tensor)
        check_shape(name, tensor, axes, sizes)
        check_same(memory=self._keys, **{name: tensor})

    def _check_store_mask(self, mask: object, tokens: int) -> None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a boolean tensor, True = store; got {got}")
        check_shape("mask", mask, "batch tokens", {"batch": self.batch_size, "tokens": tokens})
        if mask.device != self.device:
            raise ValueError(f"mask must be on the device of memory, {self.device}; got {mask.device}")

    def _check_rows(self, rows: int | Sequence[int] | Tensor | None) -> list[int]:
        if rows is None:
            return list(range(self.batch_size))
        if isinstance(rows, Tensor):
            if rows.dtype == torch.bool:
                check_shape("rows", rows, "batch", {"batch": self.batch_size})
                rows = rows.nonzero().flatten()
            rows = rows.flatten().tolist()
        rows = list(rows) if isinstance(rows, Sequence) else [rows]
        for row in rows:
            check_count("rows", row, at_least=0)
            if row >= self.batch_size:
                raise ValueError(f"rows must lie between 0 and batch - 1 = {self.batch_size - 1}; got {row}")
        return rows
