"""The keys and values of past tokens, kept so that generating the next one does not compute them again."""

from copy import copy

import torch
from torch import Tensor

from attnlib._validate import check_boolean, check_count, check_device, check_shape, check_tensor
from attnlib.attend import blank

Angles = tuple[Tensor, Tensor]  # as from ``cos_sin``, each (batch or 1, 1, tokens, head_dim)


class KVCache:
    """The keys and values of the tokens so far, for one layer.

    Each row of the batch counts its real tokens from 0, so rows may start at different columns (left padding) or stop
    early. With a window, ``append`` first drops the tokens that no new query may see; the others keep their positions.
    What is stored has no gradient.

    Args:
        window: how many tokens a query sees, itself included; default: all.
        sinks: how many of the first tokens stay although they are outside the window.

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
        self._key = self._value = torch.zeros(0, 0, 0, 0)  # (batch, heads, room, size); the columns in use are
        self._first = self._last = 0  # from this one on, and before that one
        self._count = self._newest = 0  # how many tokens came in all, and how many the last append brought
        self._padded: tuple[Tensor, Tensor] | None = None  # positions and lengths, as soon as there is padding
        self._angles: Angles | None = None  # by which the queries of the newest tokens turn, as their keys did
        self._ahead: tuple[object, int, list[Angles]] = None, 0, []  # for which layer, from which position on, angles
        self._sizes: tuple[int, ...] = ()  # batch, num_kv_heads, head_dim and value_dim, after the first append

    def __len__(self) -> int:
        """How many tokens are held in each row, padding included."""
        return self._last - self._first

    @property
    def positions(self) -> Tensor:
        """int64 (batch, len(cache)), the position of each token held in its row, or −1 for padding."""
        if self._padded is not None:
            return self._padded[0]
        columns = torch.arange(len(self), device=self._key.device)
        columns[self.sinks :] += self._count - len(self)  # those dropped were after the sinks
        return columns.expand(self._key.shape[0], -1)

    @property
    def lengths(self) -> Tensor:
        """int64 (batch,), how many real tokens each row was given, those dropped included."""
        if self._padded is not None:
            return self._padded[1]
        return torch.full((self._key.shape[0],), self._count, device=self._key.device)

    @property
    def key(self) -> Tensor:
        """(batch, num_kv_heads, len(cache), head_dim)."""
        return self._key.narrow(2, self._first, len(self))

    @property
    def value(self) -> Tensor:
        """(batch, num_kv_heads, len(cache), value_dim)."""
        return self._value.narrow(2, self._first, len(self))

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held. Room for up to a quarter more, or 16 tokens, is reserved ahead."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.key, self.value))

    @torch.inference_mode(False)  # what is stored in inference mode can be used and added to outside of it
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
            key, value = (blank(tensor, key_mask[:, None, None]) for tensor in (key, value))
        self._append(key, value, key_mask, self._next_positions(key.shape[2], key_mask), None)

    def _append(
        self, key: Tensor, value: Tensor, real: Tensor | None, positions: Tensor | None, angles: Angles | None
    ) -> None:
        """``append`` of what fits, at its positions (batch, tokens), or None if no row has padding."""
        tokens = key.shape[2]
        if not self._sizes:
            self._key, self._value = key[:, :, :0], value[:, :, :0]
            self._sizes = *key.shape[:2], key.shape[3], value.shape[3]
        self._drop()
        if self._last + tokens > self._key.shape[2]:
            self._key, self._value = _larger(self.key, tokens), _larger(self.value, tokens)
            self._first, self._last = 0, len(self)
        if positions is not None:
            lengths = self.lengths + (tokens if real is None else real.sum(1))
            self._padded = torch.cat([self.positions, positions], dim=1), lengths
        self._key.narrow(2, self._last, tokens).copy_(key)
        self._value.narrow(2, self._last, tokens).copy_(value)
        self._last, self._count, self._newest = self._last + tokens, self._count + tokens, tokens
        self._angles = angles

    def _next_positions(self, tokens: int, real: Tensor | None) -> Tensor | None:
        """Positions of the next tokens, (batch, tokens), −1 for padding; None as long as no row has padding."""
        if real is None:
            return (
                None
                if self._padded is None
                else self.lengths[:, None] + torch.arange(tokens, device=self.lengths.device)
            )
        steps = real.cumsum(-1) - 1
        if self._sizes:
            steps = steps + self.lengths[:, None]
        return steps.masked_fill(~real, -1)

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
        twin = copy(self)
        twin._key, twin._value, twin._first, twin._last = self.key[rows], self.value[rows], 0, len(self)
        twin._sizes = self._sizes and (len(rows), *self._sizes[1:])
        if self._padded is not None:
            twin._padded = self._padded[0][rows], self._padded[1][rows]
        if self._angles is not None and self._angles[0].shape[0] > 1:
            twin._angles = self._angles[0][rows], self._angles[1][rows]
        return twin

    def _check_fits(self, key: Tensor, value: Tensor) -> None:
        sizes: dict[str, int] = {}
        for name, new, held in (("key", key, self._key), ("value", value, self._value)):
            if self._sizes:
                sizes.update(batch=held.shape[0], num_kv_heads=held.shape[1], size=held.shape[3])
                check_device(name, new, "the cache", held.device)
            check_shape(name, new, "batch num_kv_heads tokens size", sizes)
            sizes = dict(zip(("batch", "num_kv_heads", "tokens"), new.shape))

    @property
    def _kept(self) -> int:
        """How many of the tokens held stay when others are appended."""
        return len(self) if self.window is None else min(len(self), self.window - 1 + self.sinks)

    def _drop(self) -> None:
        """Forget the tokens that no new query may see; those that stay are in order, side by side."""
        dropped = len(self) - self._kept
        if self.window is None or not dropped:
            return
        if self._padded is None:  # the sinks move up to the window
            parts = [room.narrow(2, self._first, self.sinks).clone() for room in (self._key, self._value) if self.sinks]
        else:
            positions, lengths = self._padded
            needed = (positions < self.sinks) | (positions > lengths[:, None] - self.window)
            needed &= positions >= 0
            order = needed.int().argsort(dim=1, stable=True)[:, dropped:]  # (batch, kept): the needed come last
            self._padded = positions.masked_fill(~needed, -1).gather(1, order), lengths
            index = order[:, None, :, None]
            parts = [t.gather(2, index.expand(-1, t.shape[1], -1, t.shape[3])) for t in (self.key, self.value)]
        for room, part in zip((self._key, self._value), parts):
            room.narrow(2, self._first + dropped, part.shape[2]).copy_(part)
        self._first += dropped


def _larger(used: Tensor, tokens: int) -> Tensor:
    """A copy of the columns in use, with room for more tokens."""
    kept = used.shape[2]
    room = used.new_empty(*used.shape[:2], kept + tokens + max((kept + tokens) // 4, 16), used.shape[3])
    room[:, :, :kept] = used
    return room


def check_window(window: object, sinks: object) -> None:
    """A window of at least 1 or None, and sinks only with a window."""
    if window is not None:
        check_count("window", window)
    check_count("sinks", sinks, at_least=0)
    if sinks and window is None:
        raise ValueError(f"sinks need a window, because without one every token stays visible; got sinks={sinks}")
