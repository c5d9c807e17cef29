"""A ring of past keys and values for every row of a batch and every head."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attnlib._checks import check_count, check_same, check_shape, check_tensor
from attnlib.memory.hits import MemoryHits
from attnlib.memory.search import best_positions


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
        lengths: int64 tensor (batch_size,), how many memories each row holds.

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
        return torch.tensor([len(ids) for ids in self._ids()])

    def __len__(self) -> int:
        """How many memories the fullest row holds."""
        return max(len(ids) for ids in self._ids())

    def __repr__(self) -> str:
        sizes = "capacity={0.capacity}, num_heads={0.num_heads}, head_dim={0.head_dim}, value_dim={0.value_dim}"
        return f"KVMemory({sizes.format(self)}, batch_size={self.batch_size}, lengths={self.lengths.tolist()})"

    def _ids(self) -> list[range]:
        """The ids that each row holds."""
        firsts = (max(cleared, end - self.capacity) for cleared, end in zip(self._cleared, self._next))
        return [range(first, end) for first, end in zip(firsts, self._next)]

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

    def search(self, query: Tensor, top_k: int, *, block_size: int = 8192) -> MemoryHits:
        """Find the memories whose keys have the greatest dot products with each query: all are looked at.

        Args:
            query: (batch, heads, tokens, head_dim).
            top_k: how many to find for each token and head.
            block_size: how many keys are scored at a time; it changes memory and speed, not what is found.

        Returns:
            ``MemoryHits``, best first, of equal scores the newer first; where a row holds fewer than ``top_k``, the
            rest is masked. The found keys are scored again with ``query``, which so gets its gradient; the stored keys
            and values have none.

        Raises:
            TypeError: ``query`` is no tensor of the memory's dtype, ``top_k`` or ``block_size`` no int.
            ValueError: a shape or a device does not fit, ``top_k`` or ``block_size`` is below 1.
        """
        self._check_search(query, top_k)
        check_count("block_size", block_size)
        ids = self._ids()
        found = query.new_full((*query.shape[:3], top_k), -1, dtype=torch.int64)
        alike = all(row == ids[0] for row in ids)  # then all rows are searched together
        for rows, held in [(slice(None), ids[0])] if alike else [(slice(i, i + 1), r) for i, r in enumerate(ids)]:
            if held:
                width = min(top_k, len(held))
                with torch.no_grad():
                    positions = best_positions(query[rows], self._segments(rows, held), width, block_size)
                found[rows, ..., :width] = held.start + positions
        return self._fetch(query, found)

    def _fetch(self, query: Tensor, ids: Tensor) -> MemoryHits:
        """Bring back the memories with these ids, (batch, heads, tokens, top_k), −1 = none, best first."""
        mask = ids >= 0  # (batch, heads, tokens, top_k)
        pairs = torch.arange(self.batch_size * self.num_heads, device=self.device)
        flat = (pairs.view(self.batch_size, self.num_heads, 1, 1) * self.capacity + ids % self.capacity).flatten()
        keys, values = (
            stored.flatten(0, 2).index_select(0, flat).view(*ids.shape, -1).masked_fill(~mask[..., None], 0)
            for stored in (self._keys, self._values)
        )  # (batch, heads, tokens, top_k, dim): copies, which later writes leave as they are
        dtype = torch.promote_types(query.dtype, torch.float32)
        scores = (query.unsqueeze(-2).to(dtype) * keys.to(dtype)).sum(-1).masked_fill(~mask, -torch.inf)
        newest_first = ids.argsort(-1, descending=True)
        order = newest_first.gather(
            -1, scores.detach().gather(-1, newest_first).argsort(dim=-1, descending=True, stable=True)
        )
        wide = order.unsqueeze(-1)
        return MemoryHits(
            keys.take_along_dim(wide, -2),
            values.take_along_dim(wide, -2),
            scores.gather(-1, order),
            ids.gather(-1, order),
            mask.gather(-1, order),
        )

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
        self._keys, self._values = self._keys.to(device), self._values.to(device)
        return self

    def _segments(self, rows: slice, held: range) -> list[Tensor]:
        """The keys with these ids, oldest first: one piece of the ring, or two where they run over its end."""
        start, stop = held.start % self.capacity, held.start % self.capacity + len(held)
        keys = self._keys[rows]
        if stop <= self.capacity:
            return [keys[:, :, start:stop]]
        return [keys[:, :, start:], keys[:, :, : stop - self.capacity]]

    def _check(self, name: str, tensor: Tensor, axes: str, sizes: dict[str, int]) -> None:
        check_tensor(name, tensor)
        check_shape(name, tensor, axes, sizes)
        check_same(memory=self._keys, **{name: tensor})

    def _check_search(self, query: Tensor, top_k: int) -> None:
        sizes = {"batch": self.batch_size, "heads": self.num_heads, "head_dim": self.head_dim}
        self._check("query", query, "batch heads tokens head_dim", sizes)
        check_count("top_k", top_k)

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
        rows = [rows] if isinstance(rows, int) else list(rows)
        for row in rows:
            check_count("rows", row, at_least=0)
            if row >= self.batch_size:
                raise ValueError(f"rows must lie between 0 and batch - 1 = {self.batch_size - 1}; got {row}")
        return rows
