"""The keys and values of past tokens, kept so that generating the next one does not compute them again."""

from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlib._validate import check_counts, check_device, check_key_mask, check_shape, check_tensor
from attnlib.attend import blank

Angles = tuple[Tensor, Tensor]  # as from ``cos_sin``, each (batch or 1, 1, tokens, head_dim)


class KVCache:
    """The keys and values of the tokens so far, for one layer.

    Each row of the batch counts its real tokens from 0, so rows may start at different columns (left padding) or stop
    early. With a window, ``append`` first drops the tokens that no new query may see; the others keep their positions.
    What is stored has no gradient.

    Args:
        window: how many tokens a query sees, itself included, at least 1; default: all.
        sinks: how many of the first tokens stay although they are outside the window; they need a window.

    Source: Pope et al. 2022 (Efficiently Scaling Transformer Inference), section 2; sinks: Xiao et al. 2023
    (StreamingLLM), section 3.2.

    >>> cache = KVCache(window=2, sinks=1)
    >>> for key in torch.rand(5, 1, 3, 1, 4):  # five tokens; one row, three heads
    ...     cache.append(key, key)
    >>> cache.positions, cache.lengths, cache.key.shape
    (tensor([[0, 3, 4]]), tensor([5]), torch.Size([1, 3, 3, 4]))
    """

    def __init__(self, *, window: int | None = None, sinks: int = 0) -> None:
        if window is not None:
            check_counts(window=window)
        check_counts(at_least=0, sinks=sinks)
        if sinks and window is None:
            raise ValueError(f"sinks need a window, because without one every token stays visible; got sinks={sinks}")
        self.window, self.sinks = window, sinks
        self._key = self._value = torch.zeros(0, 0, 0, 0)  # (batch, heads, room, size); columns are in use
        self._first = self._last = 0  # from this one on, and before that one
        self._sizes: tuple[int, ...] = ()  # batch, num_kv_heads, head_dim and value_dim, from the first append on
        self._count = self._newest = 0  # how many tokens came in all, and how many the last append brought
        self._padded: tuple[Tensor, Tensor] | None = None  # positions and lengths, once there is padding
        self._angles: Angles | None = None  # by which the queries of the newest tokens turn, as their keys did
        self._ahead: dict[object, list[Angles]] = {}  # of later tokens, for the layer that computed them

    def __len__(self) -> int:
        """How many tokens are held in each row, padding included."""
        return self._last - self._first

    @property
    def positions(self) -> Tensor:
        """int64 (batch, len(cache)), the position of each token held in its row, or −1 for padding."""
        if self._padded:
            return self._padded[0]
        columns = torch.arange(len(self), device=self._key.device)
        columns[self.sinks :] += self._count - len(self)  # those dropped were after the sinks
        return columns.expand(self._key.shape[0], -1)

    @property
    def lengths(self) -> Tensor:
        """int64 (batch,), how many real tokens each row was given, those dropped included."""
        rows = self._key.shape[:1]
        return self._padded[1] if self._padded else torch.full(rows, self._count, device=self._key.device)

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

        ``key`` and ``value`` are (batch, num_kv_heads, tokens, head_dim) and (…, value_dim). The first append decides
        the sizes, the device and the dtype, to which later ones are converted. ``key_mask`` is boolean (batch, tokens),
        True = real; default: all are. Padding is stored as zeros. Raises a TypeError or ValueError if an argument is of
        the wrong kind or does not fit, and changes nothing then.
        """
        self._check_fits(key, value)
        if key_mask is not None:
            check_key_mask(key_mask, key[:, 0])
            key, value = (blank(tensor, key_mask[:, None, None]) for tensor in (key, value))
        self._append(key, value, self._next_positions(key.shape[2], key_mask), None)

    def _append(self, key: Tensor, value: Tensor, positions: Tensor | None, angles: Angles | None) -> None:
        """``append`` of what fits, at positions from ``_next_positions``."""
        tokens = key.shape[2]
        if not self._sizes:
            self._key, self._value = key[:, :, :0], value[:, :, :0]
            self._sizes = *key.shape[:2], key.shape[3], value.shape[3]
        self._drop()
        if self._last + tokens > self._key.shape[2]:
            pad = 0, 0, 0, tokens + max((len(self) + tokens) // 4, 16)
            self._key, self._value = (F.pad(used, pad) for used in (self.key, self.value))
            self._first, self._last = 0, len(self)
        if positions is not None:
            lengths = self.lengths + (positions >= 0).sum(1)
            self._padded = torch.cat([self.positions, positions], dim=1), lengths
        self._key.narrow(2, self._last, tokens).copy_(key)
        self._value.narrow(2, self._last, tokens).copy_(value)
        self._last, self._count, self._newest = self._last + tokens, self._count + tokens, tokens
        self._angles = angles

    def _next_positions(self, tokens: int, real: Tensor | None) -> Tensor | None:
        """Positions of the next tokens, (batch, tokens), −1 for padding; None as long as no row has padding."""
        if real is None:
            if self._padded is None:
                return None
            real = torch.ones(self._sizes[0], tokens, dtype=torch.bool, device=self._key.device)
        positions = real.cumsum(1) - 1 + (self.lengths[:, None] if self._sizes else 0)
        return positions.masked_fill(~real, -1)

    def select_rows(self, rows: Tensor) -> "KVCache":
        """A cache of these rows, int64 (new batch,): reordered or repeated for a beam search, or copied. TypeError,
        ValueError, IndexError: ``rows`` is not a 1-D int64 tensor, or there is no such row."""
        if not isinstance(rows, Tensor) or rows.dtype != torch.int64:
            raise TypeError(f"rows must be an int64 tensor; got {getattr(rows, 'dtype', type(rows).__name__)}")
        check_shape("rows", rows, "batch")
        twin = copy(self)
        twin._key, twin._value, twin._first, twin._last = self.key[rows], self.value[rows], 0, len(self)
        twin._sizes = self._sizes and (len(rows), *self._sizes[1:])
        if self._padded:
            twin._padded = self._padded[0][rows], self._padded[1][rows]
        twin._angles = None  # computed again if needed
        return twin

    def _check_fits(self, key: Tensor, value: Tensor) -> None:
        sizes = dict(zip(("batch", "num_kv_heads", "head_dim", "value_dim"), self._sizes))
        check_tensor("key", key, "batch num_kv_heads tokens head_dim", sizes)
        sizes.update(zip(("batch", "num_kv_heads", "tokens"), key.shape))
        check_tensor("value", value, "batch num_kv_heads tokens value_dim", sizes)
        if self._sizes:
            check_device("key", key, "the cache", self._key.device)
        check_device("value", value, "key", key.device)

    def _kept(self) -> int:
        """How many of the tokens held stay when others are appended."""
        return len(self) if self.window is None else min(len(self), self.window - 1 + self.sinks)

    def _drop(self) -> None:
        """Forget the tokens that no new query may see; those that stay are in order, side by side."""
        dropped = len(self) - self._kept()
        if self.window is None or not dropped:
            return
        if self._padded is None:  # the sinks move up to the window
            parts = [used[:, :, : self.sinks].clone() for used in (self.key, self.value) if self.sinks]
        else:
            positions, lengths = self._padded
            recent = positions > lengths[:, None] - self.window
            needed = (positions >= 0) & (recent | (positions < self.sinks))
            order = needed.int().argsort(dim=1, stable=True)[:, dropped:]  # (batch, kept): those needed come last
            self._padded = positions.masked_fill(~needed, -1).gather(1, order), lengths
            order = order[:, None, :, None].expand(-1, self._sizes[1], -1, -1)
            parts = [used.gather(2, order.expand(-1, -1, -1, used.shape[3])) for used in (self.key, self.value)]
        for room, part in zip((self._key, self._value), parts):
            room.narrow(2, self._first + dropped, part.shape[2]).copy_(part)
        self._first += dropped
