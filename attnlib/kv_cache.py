"""The keys and values of past tokens, kept so that generating the next one does not compute them again."""

import torch
from torch import Tensor

from attnlib._validate import check_boolean, check_count, check_device, check_shape, check_tensor
from attnlib.attend import blank

Angles = tuple[Tensor, Tensor]  # cosine and sine, each (batch or 1, 1, tokens, head_dim / 2)


class KVCache:
    """The keys and values of the tokens so far, for one layer.

    Each row of the batch counts its real tokens from 0, so rows may start at different columns (left padding) or stop
    early. With a window, ``append`` first drops the tokens that no new query may see; the others keep their positions.
    What is stored has no gradient.

    Args:
        window: how many tokens a query sees, itself included; default: all.
        sinks: how many of the first tokens stay although they are outside the window.

    Attributes:
        positions: int64 (batch, len(cache)), the position of each token held in its row, or −1 for padding.
        lengths: int64 (batch,), how many real tokens each row was given, those dropped included.

    Raises:
        TypeError, ValueError: ``window`` is not an int of at least 1 or None, or ``sinks`` one of at least 0; or there
            are sinks without a window.

    Source: Pope et al. 2022 (Efficiently Scaling Transformer Inference), section 2; windows with sinks: Xiao et al.
    2023 (StreamingLLM), section 3.2.

    >>> cache = KVCache(window=2, sinks=1)
    >>> for key in torch.rand(5, 1, 3, 1, 4):  # five tokens; one row, three heads
    ...     cache.append(key, key)
    >>> cache.positions, cache.lengths, cache.key.shape
    (tensor([[0, 3, 4]]), tensor([5]), torch.Size([1, 3, 3, 4]))
    """

    def __init__(self, *, window: int | None = None, sinks: int = 0) -> None:
        check_window(window, sinks)
        self.window, self.sinks = window, sinks
        self.positions, self.lengths = torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        self._key = self._value = torch.zeros(
            0, 0, 0, 0
        )  # (batch, heads, room, head_dim): the first len(self) are used
        self._newest, self._padded = 0, False  # how many tokens the last append brought; whether there is padding
        self._angles: Angles | None = None  # by which the queries of the newest tokens turn, as their keys did

    def __len__(self) -> int:
        """How many tokens are held in each row, padding included."""
        return self.positions.shape[1]

    @property
    def key(self) -> Tensor:
        """(batch, num_kv_heads, len(cache), head_dim)."""
        return self._key[:, :, : len(self)]

    @property
    def value(self) -> Tensor:
        """(batch, num_kv_heads, len(cache), value_dim)."""
        return self._value[:, :, : len(self)]

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held. Room for up to a quarter more, or 16 tokens, is reserved ahead."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.key, self.value))

    @torch.no_grad()
    def append(self, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> None:
        """Store the keys and values of the next tokens.

        Args:
            key, value: (batch, num_kv_heads, tokens, head_dim) and (batch, num_kv_heads, tokens, value_dim). The first
                append decides the sizes, the device and the dtype, to which later ones are converted.
            key_mask: boolean (batch, tokens), True = real; default: all are real. Padding is stored as zeros.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind, or does not fit; the cache is then as it was.
        """
        check_tensor("key", key)
        check_tensor("value", value)
        self._check_fits(key, value)
        check_device("value", value, "key", key.device)
        if key_mask is not None:
            check_boolean("key_mask", key_mask, "real token")
            check_shape("key_mask", key_mask, "batch tokens", {"batch": key.shape[0], "tokens": key.shape[2]})
            check_device("key_mask", key_mask, "key", key.device)
            padding = ~key_mask[:, None, :, None]
            key, value = blank(key, padding), blank(value, padding)
        self._append(key, value, key_mask, self._next_positions(key.shape[2], key_mask, key.device), None)

    def _append(
        self, key: Tensor, value: Tensor, key_mask: Tensor | None, positions: Tensor, angles: Angles | None
    ) -> None:
        """``append`` of what fits, at its positions (batch or 1, tokens)."""
        positions = positions.expand(len(key), -1)
        if not len(self.lengths):
            self._key, self._value = key[:, :, :0], value[:, :, :0]
            self.positions, self.lengths = positions[:, :0], positions.new_zeros(len(key))
        self._drop()
        first = len(self)
        self._key, self._value = _written(self._key, key, first), _written(self._value, value, first)
        self.positions = torch.cat([self.positions, positions], dim=1)
        self.lengths = self.lengths + (key.shape[2] if key_mask is None else key_mask.sum(1))
        self._newest, self._padded = key.shape[2], self._padded or key_mask is not None
        self._angles = angles

    def _next_positions(self, tokens: int, key_mask: Tensor | None, device: torch.device) -> Tensor:
        """Positions of the next tokens, (batch or 1, tokens); −1 for padding."""
        positions = torch.arange(tokens, device=device).unsqueeze(0) if key_mask is None else key_mask.cumsum(-1) - 1
        if len(self.lengths):
            positions = positions + self.lengths.unsqueeze(1)
        return positions if key_mask is None else positions.masked_fill(~key_mask, -1)

    def select_rows(self, rows: Tensor) -> "KVCache":
        """Make a cache of these rows: reordered or repeated for a beam search, or copied. This one stays as it is.

        Args:
            rows: int64 (new batch,), indices of rows of this cache, in any order and as often as you like.

        Raises:
            TypeError, ValueError, IndexError: ``rows`` is not a 1-D int64 tensor, or there is no such row.
        """
        if not isinstance(rows, Tensor) or rows.dtype != torch.int64:
            raise TypeError(f"rows must be an int64 tensor; got {getattr(rows, 'dtype', type(rows).__name__)}")
        check_shape("rows", rows, "batch")
        twin = KVCache(window=self.window, sinks=self.sinks)
        twin.positions, twin.lengths = self.positions[rows], self.lengths[rows]
        twin._key, twin._value = self.key[rows], self.value[rows]
        twin._newest, twin._padded = self._newest, self._padded
        if self._angles is not None:
            cos, sin = (part.expand(len(self.lengths), -1, -1, -1)[rows] for part in self._angles)
            twin._angles = cos, sin
        return twin

    def _check_fits(self, key: Tensor, value: Tensor) -> None:
        sizes: dict[str, int] = {}
        for name, new, held in (("key", key, self._key), ("value", value, self._value)):
            if len(self.lengths):
                sizes.update(batch=held.shape[0], num_kv_heads=held.shape[1], size=held.shape[3])
                check_device(name, new, "the cache", held.device)
            check_shape(name, new, "batch num_kv_heads tokens size", sizes)
            sizes = dict(zip(("batch", "num_kv_heads", "tokens"), new.shape))

    @property
    def _kept(self) -> int:
        """How many of the tokens held stay when others are appended."""
        return len(self) if self.window is None else min(len(self), self.window - 1 + self.sinks)

    def _drop(self) -> None:
        """Move the tokens that stay to the front, in order, and forget the others."""
        held, kept = len(self), self._kept
        if self.window is None or held == kept:
            return
        if self._padded:
            needed = (self.positions < self.sinks) | (self.positions > self.lengths[:, None] - self.window)
            needed &= self.positions >= 0
            order = needed.int().argsort(dim=1, stable=True)[:, held - kept :]  # (batch, kept): the needed come last
            self.positions = self.positions.masked_fill(~needed, -1).gather(1, order)
            for room in (self._key, self._value):
                room[:, :, :kept] = room.gather(2, order[:, None, :, None].expand(-1, room.shape[1], -1, room.shape[3]))
        else:
            first = held - self.window + 1
            self.positions = torch.cat([self.positions[:, : self.sinks], self.positions[:, first:]], dim=1)
            for room in (self._key, self._value):
                room[:, :, self.sinks : kept] = room[:, :, first:held].clone()


def _written(room: Tensor, new: Tensor, first: int) -> Tensor:
    """The room with new tokens from the first free column on; a larger one if it is full."""
    last = first + new.shape[2]
    if last > room.shape[2]:
        larger = room.new_empty(*room.shape[:2], last + max(last // 4, 16), room.shape[3])
        larger[:, :, :first] = room[:, :, :first]
        room = larger
    room[:, :, first:last] = new
    return room


def check_window(window: object, sinks: object) -> None:
    """A window of at least 1 or None, and sinks only with a window."""
    if window is not None:
        check_count("window", window)
    check_count("sinks", sinks, at_least=0)
    if sinks and window is None:
        raise ValueError(f"sinks need a window, because without one every token stays visible; got sinks={sinks}")
