"""Attention for generating one token at a time: query heads share key heads, and a cache holds the past."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlib._fused import fused_attention
from attnlib._validate import check_bool, check_counts, check_device, check_divisible, check_input, check_probability
from attnlib.attend import _attention_weights, active_dropout, blank, hide_padding
from attnlib.kv_cache import Angles, KVCache, check_window
from attnlib.positions import check_base, check_even, cos_sin, turn

QUERY_BLOCK = 128  # queries that share a mask, at least


class GroupedQueryAttention(nn.Module):
    """Causal multi-head attention for generating: several query heads share a key head, and a cache holds the past.

    Formula: that of ``MultiHeadAttention``, but query head h uses the keys and values of head
    ``h // (num_heads / num_kv_heads)``; queries and keys are turned by ``rotate``; and with a window, a query sees the
    keys of ``sliding_window_mask``. With as many key heads as heads, and ``rotary=False``, it equals
    ``MultiHeadAttention``; one key head is multi-query attention.

    ``forward`` only reads the cache, ``append`` only writes it. Call ``append`` first, because a token sees itself.
    However the tokens are split into calls, the outputs are those of one call on all of them without a cache.

    Args:
        d_in, d_out, context_length, num_heads: as in ``MultiHeadAttention``. At most ``context_length`` tokens are in x
            or held in the cache; a cache with a window goes on for ever.
        num_kv_heads: number of heads of keys and values; it divides ``num_heads``.
        rotary: turn queries and keys by their positions; False leaves order to the causal mask.
        base: as in ``rotate``. The layout is "halves"; ``convert_rotary_layout`` converts weights for "pairs".
        window: how many tokens a query sees, itself included; default: all before it.
        sinks: how many of the first tokens every query sees as well.
        dropout: share of the weights dropped while training, 0 … 1.
        qkv_bias: whether W_query, W_key and W_value have a bias; ``out_proj`` always has one.

    Attributes:
        W_query: ``nn.Linear(d_in, d_out)``; W_key, W_value: ``nn.Linear(d_in, num_kv_heads · head_dim)``;
            out_proj: ``nn.Linear(d_out, d_out)``; created in this order. dropout: ``nn.Dropout``.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, heads do not divide d_out, key heads do not divide
            heads, or head_dim is odd and cannot turn.

    Source: Shazeer 2019 (Fast Transformer Decoding); Ainslie et al. 2023 (GQA), section 2.2.

    >>> layer = GroupedQueryAttention(d_in=3, d_out=8, context_length=6, num_heads=4, num_kv_heads=2)
    >>> x, cache = torch.rand(5, 6, 3), layer.new_cache()
    >>> outputs = []
    >>> for token in x.split(1, dim=1):
    ...     layer.append(token, cache)
    ...     outputs.append(layer(token, cache))
    >>> torch.allclose(torch.cat(outputs, dim=1), layer(x), atol=1e-6), cache.nbytes  # 2 · 5 · 2 · 6 · 2 numbers
    (True, 960)
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        num_heads: int,
        num_kv_heads: int,
        *,
        rotary: bool = True,
        base: float = 10000.0,
        window: int | None = None,
        sinks: int = 0,
        dropout: float = 0.0,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        check_counts(d_in=d_in, d_out=d_out, context_length=context_length, num_heads=num_heads)
        check_counts(num_kv_heads=num_kv_heads)
        check_divisible(d_out, num_heads)
        if num_heads % num_kv_heads:
            raise ValueError(
                f"num_heads must be divisible by num_kv_heads; got num_heads={num_heads}, num_kv_heads={num_kv_heads}"
            )
        check_bool("rotary", rotary)
        head_dim = d_out // num_heads
        if rotary:
            check_even(head_dim)
        check_base(base)
        check_window(window, sinks)
        check_probability("dropout", dropout)
        self.d_in, self.context_length, self.num_heads, self.num_kv_heads = (
            d_in,
            context_length,
            num_heads,
            num_kv_heads,
        )
        self.head_dim, self.rotary, self.base, self.window, self.sinks = head_dim, rotary, base, window, sinks
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key, self.W_value = (nn.Linear(d_in, num_kv_heads * head_dim, bias=qkv_bias) for _ in range(2))
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)

    def new_cache(self) -> KVCache:
        """Make an empty cache with this layer's window. Each layer of a model needs its own."""
        return KVCache(window=self.window, sinks=self.sinks)

    def append(self, x: Tensor, cache: KVCache, key_mask: Tensor | None = None) -> None:
        """Store the keys and values of x in the cache, without their gradient; then call ``forward(x, cache)``.

        Arguments as for ``forward``; ``key_mask`` marks the real tokens of x. After an error, the cache is as it was.
        """
        if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():  # what is stored there could not be used elsewhere
                return self.append(x, cache, key_mask)
        rows, real = self._rows(x, key_mask)
        self._check_cache(cache, rows)
        held, new = cache._kept, rows.shape[1]
        if held + new > self.context_length:
            limit = f"context_length={self.context_length}"
            raise ValueError(f"cache must hold at most {limit} tokens; got {held} and {new} more")
        positions = cache._next_positions(new, real)
        angles = self._next_angles(cache, positions, rows) if self.rotary else None
        key, value = self._key_value(rows, angles)
        if cache._sizes != (rows.shape[0], self.num_kv_heads, self.head_dim, self.head_dim):
            cache._check_fits(key, value)
        return cache._append(key, value, real, positions, angles)

    def forward(self, x: Tensor, cache: KVCache | None = None, key_mask: Tensor | None = None) -> Tensor:
        """Compute the context vectors of x. Nothing is stored; that is what ``append`` is for.

        With a cache, x gives queries only, so gradients reach it through them alone; call ``backward`` before the next
        ``append``.

        Args:
            x: (batch, tokens, d_in), or (tokens, d_in) as a single row.
            cache: from ``new_cache``; its newest tokens are those of x. Default: x is all there is.
            key_mask: boolean (batch, tokens), or (tokens,) like x, True = a real token; default: all are real. No token
                sees padding, which may hold anything, and positions count real tokens only. A cache knows what is
                padding: pass it to ``append`` instead.

        Returns:
            (batch, tokens, d_out), or (tokens, d_out). For padding, it is what ``out_proj`` makes of zeros.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind or shape, x or the cache has too many tokens, or the
                newest tokens of the cache cannot be those of x.
        """
        query, key, value, positions, real = self._prepare(x, cache, key_mask)
        joined = self._contexts(query, key, value, positions, real)  # (batch, tokens, d_out)
        context = self.out_proj(blank(joined, None if real is None else real[:, None]))
        return context if x.ndim == 3 else context.squeeze(0)

    def attention_weights(self, x: Tensor, cache: KVCache | None = None, key_mask: Tensor | None = None) -> Tensor:
        """Weights before dropout, (…, num_heads, tokens, kv_tokens), with the keys in the order of the cache. Rows sum
        to one, or to zero for padding. Arguments as in ``forward``."""
        query, key, _, positions, _ = self._prepare(x, cache, key_mask)
        key = key.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
        first, last = key.shape[2] - query.shape[2], key.shape[2]
        weights = _attention_weights(query, key, self._visible(first, last, 0, positions, key.device))
        return weights if x.ndim == 3 else weights.squeeze(0)

    def _prepare(
        self, x: Tensor, cache: KVCache | None, key_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Query, key and value, each (batch, its heads, its tokens, head_dim); the positions of the keys (batch,
        kv_tokens) and which tokens of x are real (batch, tokens), both None if there is no padding."""
        rows, real = self._rows(x, key_mask)
        tokens = rows.shape[1]
        if cache is None:
            positions = KVCache()._next_positions(tokens, real)
            columns = torch.arange(tokens, device=rows.device)[None] if positions is None else positions
            angles = self._angles(columns, rows) if self.rotary else None
            key, value = self._key_value(rows, angles)
        else:
            self._check_cache(cache, rows)
            if key_mask is not None:
                raise ValueError("key_mask belongs to append, which tells the cache; do not give it to forward as well")
            if tokens != cache._newest or not cache._sizes:
                stored = f"batch={cache._key.shape[0]}, tokens={cache._newest}"
                raise ValueError(f"x must be what append(x, cache) stored last, {stored}; got {tuple(x.shape)}")
            key, value, positions, angles = cache.key, cache.value, None, cache._angles
            if cache._padded is not None:
                positions = cache.positions
                real = positions[:, len(cache) - tokens :] >= 0
                rows = blank(rows, real[:, None])
            if angles is None and self.rotary:
                angles = self._angles(cache.positions[:, len(cache) - tokens :], rows)
        query = self._split(self.W_query(rows), self.num_heads, angles)
        if key.dtype != query.dtype:
            key, value = key.to(query.dtype), value.to(query.dtype)
        return query, key, value, positions, real

    def _rows(self, x: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x as (batch, tokens, d_in) with zeros as padding, and which tokens are real, (batch, tokens)."""
        check_input(x, self.d_in, self.context_length)
        x, _ = hide_padding(x, key_mask)
        if x.ndim == 2:
            x, key_mask = x.unsqueeze(0), None if key_mask is None else key_mask.unsqueeze(0)
        return x, key_mask

    def _check_cache(self, cache: object, rows: Tensor) -> None:
        if not isinstance(cache, KVCache):
            raise TypeError(f"cache must be a KVCache; got {type(cache).__name__}")
        if cache.window is not None and (cache.window, cache.sinks) != (self.window, self.sinks):
            expected, got = (f"window={one.window}, sinks={one.sinks}" for one in (self, cache))
            raise ValueError(f"cache must have the layer's {expected}, or no window; got {got}")
        if cache._sizes:
            if cache._sizes[0] != rows.shape[0]:
                raise ValueError(f"x must have the batch of the cache, {cache._sizes[0]}; got {rows.shape[0]}")
            check_device("x", rows, "the cache", cache._key.device)

    def _angles(self, positions: Tensor, rows: Tensor) -> Angles:
        cos, sin = cos_sin(positions.unsqueeze(1), self.head_dim, self.base)
        dtype = torch.promote_types(rows.dtype, torch.float32)
        return cos.to(dtype), sin.to(dtype)

    def _next_angles(self, cache: KVCache, positions: Tensor | None, rows: Tensor) -> Angles:
        """Angles of the tokens after those of the cache; for a single one without padding, computed 64 at a time."""
        count, tokens = cache._count, rows.shape[1]
        if positions is not None:
            return self._angles(positions, rows)
        if tokens != 1:
            return self._angles(torch.arange(count, count + tokens, device=rows.device)[None], rows)
        wanted = self.base, self.head_dim, rows.dtype
        made, first, angles = cache._ahead
        if made != wanted or count - first >= len(angles):
            first, positions = count, torch.arange(count, count + 64, device=rows.device)[None]
            angles = list(zip(*(part.split(1, dim=2) for part in self._angles(positions, rows))))
            cache._ahead = wanted, first, angles
        return angles[count - first]

    def _key_value(self, rows: Tensor, angles: Angles | None) -> tuple[Tensor, Tensor]:
        return self._split(self.W_key(rows), self.num_kv_heads, angles), self._split(
            self.W_value(rows), self.num_kv_heads
        )

    def _split(self, projected: Tensor, num_heads: int, angles: Angles | None = None) -> Tensor:
        """(batch, num_heads, tokens, head_dim), turned by the angles."""
        batch, tokens, _ = projected.shape
        if tokens == 1:
            heads = projected.view(batch, num_heads, 1, self.head_dim)
        else:
            heads = projected.view(batch, tokens, num_heads, self.head_dim).transpose(1, 2)
        return heads if angles is None else turn(heads, angles)

    def _contexts(
        self, query: Tensor, key: Tensor, value: Tensor, positions: Tensor | None, real: Tensor | None
    ) -> Tensor:
        """(batch, tokens, d_out), a block of queries at a time where each query needs a mask of its own."""
        tokens, kv_tokens = query.shape[2], key.shape[2]
        compiling = torch.compiler.is_compiling()  # a compiler wants one graph for any number of tokens
        all_past = self.window is None or (not compiling and kv_tokens <= self.window + self.sinks)
        if all_past and (tokens == kv_tokens or (tokens == 1 and real is None)):
            mask = None if real is None else real[:, None, None]
            return self._attend(query, key, value, mask, bool(tokens == kv_tokens))
        start, block, blocks = kv_tokens - tokens, max(self.window or 0, QUERY_BLOCK), []
        for first in [start] if compiling or tokens <= block else range(start, kv_tokens, block):
            last = kv_tokens if compiling else min(first + block, kv_tokens)
            low = 0 if self.window is None or real is not None else max(first - self.window + 1, 0)
            part, (keys, values) = (
                query[:, :, first - start : last - start],
                (self._columns(t, low, last) for t in (key, value)),
            )
            blocks.append(self._attend(part, keys, values, self._visible(first, last, low, positions, key.device)))
        return torch.cat(blocks, dim=1)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        batch, num_heads, tokens, head_dim = query.shape
        group, dropout_p = num_heads // self.num_kv_heads, active_dropout(self.dropout)
        if tokens == 1:  # the group can stand on the axis of tokens; with one key, is_causal hides nothing
            query = query.reshape(batch, self.num_kv_heads, group, head_dim)
            if mask is None:
                heads = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p)
            else:
                heads = fused_attention(query, key, value, mask, dropout_p=dropout_p)
            return heads.reshape(batch, 1, num_heads * head_dim)
        if group > 1:
            query, key, value = query.unflatten(1, (-1, group)), key.unsqueeze(2), value.unsqueeze(2)
            mask = None if mask is None else mask.unsqueeze(2)
        heads = fused_attention(query, key, value, mask, is_causal, None, dropout_p)
        return heads.reshape(batch, num_heads, tokens, head_dim).transpose(1, 2).flatten(2)

    def _columns(self, tensor: Tensor, low: int, last: int) -> Tensor:
        """(…, …, columns, …) from ``low`` to ``last``, after the sinks."""
        if not (self.sinks and low):
            return tensor[:, :, low:last]
        return torch.cat([tensor[:, :, : min(self.sinks, low)], tensor[:, :, low:last]], dim=2)

    def _visible(self, first: int, last: int, low: int, positions: Tensor | None, device: torch.device) -> Tensor:
        """Which keys, as ``_columns`` gives them, the queries from column ``first`` to ``last`` see: a mask (batch or
        1, 1, queries, keys). Without padding, a column says as much as a position."""
        columns = torch.arange(last, device=device)[None] if positions is None else positions
        query, key = columns[:, None, first:last, None], self._columns(columns[:, None, :, None], low, last).mT
        mask = (key >= 0) & (key <= query)
        return mask if self.window is None else mask & ((key > query - self.window) | (key < self.sinks))
