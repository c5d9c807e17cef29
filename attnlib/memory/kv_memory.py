"""A ring of past keys and values for every row of a batch and every head."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from attnlib._validate import check_counts, check_dtype, check_key_mask, check_same, check_tensor
from attnlib.attend import without_autocast
from attnlib.memory.hits import MemoryHits, best_first, score_keys
from attnlib.memory.search import best_ids
from attnlib.memory.storage import read_file, write_file

SIZES = ("capacity", "num_heads", "head_dim", "value_dim", "batch_size")
ADVICE = "call remember after backward, or read outside the checkpoint: checkpoint(layer, x, layer.read(x, memory))"
Method = TypeVar("Method", bound=Callable)


def _uncompiled(method: Method) -> Method:
    """A method that ``torch.compile`` leaves to Python, because it depends on how much the memory holds."""
    refusal = "{} cannot search or write a KVMemory; search it first, and pass on the hits: layer(x, hits)"

    @functools.wraps(method)
    def run(*args, **kwargs):
        if torch.compiler.is_dynamo_compiling():
            return torch.compiler.disable(method)(*args, **kwargs)
        if torch.compiler.is_compiling():
            raise NotImplementedError(refusal.format("torch.export"))
        try:
            return method(*args, **kwargs)
        except RuntimeError as error:
            if "vmap" in str(error) or "Batching rule" in str(error):
                raise NotImplementedError(refusal.format("torch.vmap")) from error
            raise

    return run  # type: ignore[return-value]


class _SameContents(torch.autograd.Function):
    """Pass a tensor on. Under a checkpoint that is not reentrant, what ctx holds is of the first run, what it saves is
    of the second. A reentrant one runs forward first without gradients, then within backward, where ctx is new."""

    @staticmethod
    def forward(output, writes, memory):
        return output.view_as(output)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, writes, ctx.memory = inputs
        ctx.save_for_backward(writes)
        ctx.writes, ctx.recomputed = writes.item(), _in_backward()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.saved_tensors[0].item() != ctx.writes:
            raise RuntimeError(f"a checkpoint is recomputed, but the memory has changed since it was read; {ADVICE}")
        if ctx.recomputed:
            ctx.memory._awaited = max(0, ctx.memory._awaited - 1)
        return gradient, None, None


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1  # how torch.utils.checkpoint itself finds out


class KVMemory:
    """Keep the last ``capacity`` keys and values of each row of a batch, and find the best for a query.

    Each row numbers its memories from 0, and never reuses a number. Memory number ``id`` is kept in slot
    ``id mod capacity``, so a new memory replaces the oldest. Rows fill independently.

    Args:
        capacity: the largest number of memories in a row.
        num_heads: number of heads; each has its own keys and values for every memory.
        head_dim, value_dim: sizes of a key and of a value; default of the latter: ``head_dim``.
        batch_size: number of rows.
        dtype, device: of keys and values; default: torch's default.

    The arguments are attributes too, and ``lengths``, int64 (batch_size,) on the CPU, is how many memories each row
    holds. TypeError, ValueError: a size is not a positive int, or ``dtype`` is not a floating-point dtype.

    Source: Wu et al. 2022 (Memorizing Transformers), section 3.1 and 3.2.

    >>> memory = KVMemory(capacity=3, num_heads=1, head_dim=1)
    >>> tokens = torch.tensor([10.0, 20.0, 30.0, 40.0]).reshape(1, 1, 4, 1)
    >>> memory.add(tokens, -tokens)  # there is no room for the first of the four
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
        sizes = capacity, num_heads, head_dim, value_dim, batch_size
        check_counts(**dict(zip(SIZES, sizes)))
        check_dtype(dtype)
        self.capacity, self.num_heads, self.head_dim, self.value_dim, self.batch_size = sizes
        self.dtype = dtype
        with torch.inference_mode(False):  # a memory may be made in inference mode and used outside it
            self._keys = torch.zeros(batch_size, num_heads, capacity, head_dim, dtype=dtype, device=device)
            self._values = self._keys.new_zeros(batch_size, num_heads, capacity, value_dim)
        self._next = [0] * batch_size  # each row's next id
        self._cleared = [0] * batch_size  # each row has forgotten the ids below this one
        self._writes = 0  # how often anything was changed
        self._awaited = 0  # forwards without gradients that a reentrant checkpoint may still recompute

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
        sizes = ", ".join(f"{name}={getattr(self, name)}" for name in SIZES)
        return f"KVMemory({sizes}, lengths={self.lengths.tolist()})"

    @_uncompiled
    def add(self, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> None:
        """Store tokens after the last one of each row, replacing the oldest memories if necessary.

        ``key`` and ``value`` are (batch, heads, tokens, head_dim) and (…, value_dim), stored without their gradient.
        ``key_mask`` is boolean (batch, tokens), True = store; default: store all. If a row stores more tokens than
        ``capacity``, its last ones remain, and the ids count all of them.

        TypeError, ValueError: a dtype, a shape or a device does not fit the memory, or the mask is not boolean.
        RuntimeError: a reentrant checkpoint may have read the memory and not yet been recomputed, however many other
        forwards have read it since. A forward without gradients looks the same, so after one, change the memory under
        ``torch.no_grad()``, where it is always allowed.
        """
        self._check("key", key, "tokens head_dim", head_dim=self.head_dim)
        self._check("value", value, "tokens value_dim", tokens=key.shape[2], value_dim=self.value_dim)
        if key_mask is None:
            key_mask = torch.ones(self.batch_size, key.shape[2], dtype=torch.bool, device=self.device)
        check_key_mask(key_mask, key[:, 0])
        self._before_a_change()
        place = key_mask.cumsum(-1)  # (batch, tokens): 1 for the first token that its row stores, then 2, …
        counts = key_mask.sum(-1)  # (batch,)
        row, token = (key_mask & (place > counts[:, None] - self.capacity)).nonzero(as_tuple=True)
        slot = (torch.tensor(self._next, device=self.device)[row] + place[row, token] - 1) % self.capacity
        self._keys[row, :, slot] = key.detach()[row, :, token]
        self._values[row, :, slot] = value.detach()[row, :, token]
        self._next = [end + count for end, count in zip(self._next, counts.tolist())]

    @_uncompiled
    def search(self, query: Tensor, top_k: int) -> MemoryHits:
        """Find the memories whose keys have the greatest dot products with each query; every key is compared.

        ``query`` is (batch, heads, tokens, head_dim). If fewer than ``top_k`` are found for a token and head, the rest
        of its hits is masked. A memory whose score is NaN or −inf is never found. Rounding may decide which of equal
        keys are found; where the products are exact, as with whole numbers, the newer are.

        TypeError, ValueError: dtype, shape or device of ``query`` do not fit, or ``top_k`` is not a positive int.
        """
        self._check_query(query, top_k)
        ids = torch.full((*query.shape[:3], top_k), -1, dtype=torch.int64, device=self.device)
        held = self._held()
        alike = all(of_row == held[0] for of_row in held)  # then all rows are searched together
        with without_autocast(self.device):
            for row, of_row in enumerate(held[:1] if alike else held):
                rows, width = slice(None) if alike else slice(row, row + 1), min(top_k, len(of_row))
                if of_row:
                    ids[rows, ..., :width] = best_ids(query[rows], self._keys[rows], of_row, width)
        return self._fetch(query, ids)

    def clear(self, rows: int | Sequence[int] | Tensor | None = None) -> None:
        """Forget all memories of some rows, or of all rows. Ids are not reused.

        ``rows`` is one row, several, or a boolean tensor (batch,), True = forget. ValueError: it is something else, or
        there is no such row. RuntimeError: as for ``add``.
        """
        places = torch.arange(self.batch_size, device=self.device)
        try:
            chosen = places[list(rows) if isinstance(rows, tuple) else rows].flatten().tolist()
        except (IndexError, RuntimeError, TypeError):
            chosen = None
        if chosen is None or isinstance(rows, bool):
            raise ValueError(f"rows must be rows of the batch, which has {self.batch_size}; got {rows}")
        self._before_a_change()
        for row in chosen:
            self._cleared[row] = self._next[row]
            self._keys[row] = 0
            self._values[row] = 0

    def to(self, device: torch.device | str) -> "KVMemory":
        """Move keys and values to a device, and return this memory."""
        with torch.inference_mode(False):  # as in __init__
            self._keys, self._values = self._keys.to(device=device), self._values.to(device=device)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Copy the contents: keys and values of all slots ever used, and each row's counters."""
        used = min(max(self._next), self.capacity)
        rings = {"keys": self._keys[:, :, :used].clone(), "values": self._values[:, :, :used].clone()}
        counters = {"next": self._next, "cleared": self._cleared}
        return rings | {name: torch.tensor(counts, device="cpu") for name, counts in counters.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace the contents with those of a memory of the same sizes and dtype, on any device.
        ValueError: they do not fit, and this memory stays as it was. RuntimeError: as for ``add``."""
        if set(state) != {"keys", "values", "next", "cleared"}:
            raise ValueError(f"state must hold keys, values, next and cleared; got {sorted(state)}")
        ends, starts = state["next"], state["cleared"]
        counts = all(t.dtype == torch.int64 and t.shape == (self.batch_size,) for t in (ends, starts))
        if not counts or not ((starts >= 0) & (starts <= ends)).all():
            raise ValueError(f"state holds counters that do not fit: {starts.tolist()} and {ends.tolist()}")
        used = min(int(ends.max()), self.capacity)
        rings = {"keys": self._keys, "values": self._values}
        for name, ring in rings.items():
            expected, got = ((tuple(t.shape), t.dtype) for t in (ring[:, :, :used], state[name]))
            if expected != got:
                raise ValueError(f"{name} must be {expected[0]}, {expected[1]}; got {got[0]}, {got[1]}")
        self._before_a_change()
        for name, ring in rings.items():
            ring[:, :, :used] = state[name]
            ring[:, :, used:] = 0
        self._next, self._cleared = ends.tolist(), starts.tolist()

    def save(self, path: str | os.PathLike) -> None:
        """Write the memory to a single safetensors file, with a checksum. A crash leaves the old file as it was, with
        at worst an unfinished one beside it, whose name ends in ``.partial``. OSError: the file cannot be written."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_file(path, tensors, {name: getattr(self, name) for name in SIZES})

    @classmethod
    def load(cls, path: str | os.PathLike, *, device: torch.device | str | None = None) -> "KVMemory":
        """Read the memory that ``save`` wrote, bit for bit, onto a device; its ids continue where they stopped.
        OSError: the file cannot be read. ValueError: it is damaged, foreign, or of another format version."""
        tensors, sizes = read_file(path)
        try:
            memory = cls(**sizes, dtype=tensors["keys"].dtype, device=device)
            memory.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold a memory: {error}") from None
        return memory

    def _held(self) -> list[range]:
        """The ids that each row holds."""
        firsts = (max(cleared, end - self.capacity) for cleared, end in zip(self._cleared, self._next))
        return [range(first, end) for first, end in zip(firsts, self._next)]

    def _fetch(self, query: Tensor, ids: Tensor) -> MemoryHits:
        """The memories with these ids, −1 = none, best first; their scores carry the gradient of the query."""
        keys = self._copy(self._keys, ids)  # (batch, heads, tokens, top_k, head_dim)
        scores = score_keys(query, keys, ids >= 0)
        found = ids.masked_fill(~(scores > -torch.inf), -1)  # NaN and −inf find nothing
        scores = scores.masked_fill(found < 0, -torch.inf)
        order = best_first(scores.detach(), found)
        found = found.gather(-1, order)
        if not torch.equal(found, ids):  # the search rounded differently
            ids, scores, keys = found, scores.gather(-1, order), self._copy(self._keys, found)
        return MemoryHits(keys, self._copy(self._values, ids), scores, ids, ids >= 0)

    @torch.no_grad()
    def _copy(self, ring: Tensor, ids: Tensor) -> Tensor:
        """A copy that later writes do not change; 0 for id −1."""
        pairs = torch.arange(self.batch_size * self.num_heads, device=ring.device).view(*ring.shape[:2], 1, 1)
        slots = (pairs * self.capacity + ids % self.capacity).flatten()
        copy = ring.flatten(0, 2).index_select(0, slots).view(*ids.shape, ring.shape[-1])
        return copy.masked_fill_(ids.unsqueeze(-1) < 0, 0)

    @_uncompiled
    def _guard(self, output: Tensor) -> Tensor:
        """What a forward computed from this memory. If a checkpoint recomputes it from other contents, that fails."""
        if not torch.is_grad_enabled() and not _in_backward():
            self._awaited += 1
        return _SameContents.apply(output, torch.tensor(self._writes, device="cpu"), self)

    def _before_a_change(self) -> None:
        """Refuse changes while a reentrant checkpoint may still recompute what it read. Under no_grad there is none."""
        if self._awaited and torch.is_grad_enabled():
            read = "the memory was read by a forward without gradients and is now changed with them"
            advice = f"In a reentrant checkpoint, {ADVICE}. Otherwise, change it under torch.no_grad() too"
            raise RuntimeError(f"{read}. {advice}")
        self._awaited = 0
        self._writes += 1

    def _check_query(self, query: Tensor, top_k: int) -> None:
        self._check("query", query, "tokens head_dim", head_dim=self.head_dim)
        check_counts(top_k=top_k)

    def _check(self, name: str, tensor: Tensor, axes: str, **sizes: int) -> None:
        sizes |= {"batch": self.batch_size, "heads": self.num_heads}
        check_tensor(name, tensor, f"batch heads {axes}", sizes)
        check_same(memory=self._keys, **{name: tensor})
