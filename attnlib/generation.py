"""Attention for generating one token at a time: query heads share key heads, and a cache holds the past."""

import torch
from torch import Tensor, nn

from attnlib._fused import fused_attention
from attnlib._validate import check_bool, check_counts, check_device, check_divisible, check_input, check_probability
from attnlib.attend import _attention_weights, active_dropout, blank, hide_padding
from attnlib.kv_cache import Angles, KVCache, check_window
from attnlib.multi_head import _split_heads
from attnlib.positions import check_base, check_even, cos_sin, turn


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

    @torch.no_grad()
    def append(self, x: Tensor, cache: KVCache, key_mask: Tensor | None = None) -> None:
        """Store the keys and values of x in the cache, without their gradient; then call ``forward(x, cache)``.

        Arguments as for ``forward``; ``key_mask`` marks the real tokens of x. After an error, the cache is as it was.
        """
        rows, real = self._rows(x, key_mask)
        self._check_cache(cache, rows)
        if cache._kept + rows.shape[1] > self.context_length:
            limit, held, new = self.context_length, cache._kept, rows.shape[1]
            raise ValueError(f"cache must hold at most context_length={limit} tokens; got {held} and {new} more")
        positions = cache._next_positions(rows.shape[1], real, rows.device)
        angles = self._angles(positions, rows)
        key, value = self._key_value(rows, angles)
        cache._check_fits(key, value)
        cache._append(key, value, real, positions, angles)

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
        query, key, value, (mask, is_causal), padding = self._prepare(x, cache, key_mask)
        heads = query.unflatten(1, (self.num_kv_heads, -1))  # (batch, num_kv_heads, group, tokens, head_dim)
        if 1 in heads.shape[2:4]:  # one head or one token: the group can stand on the axis of tokens
            heads = heads.flatten(2, 3)  # one token and one key: is_causal hides nothing
        else:
            key, value, mask = key.unsqueeze(2), value.unsqueeze(2), None if mask is None else mask.unsqueeze(2)
        heads = fused_attention(heads, key, value, mask, is_causal, None, active_dropout(self.dropout))
        joined = heads.reshape(query.shape).transpose(1, 2).flatten(2)  # (batch, tokens, d_out)
        context = self.out_proj(blank(joined, padding))
        return context if x.ndim == 3 else context.squeeze(0)

    def attention_weights(self, x: Tensor, cache: KVCache | None = None, key_mask: Tensor | None = None) -> Tensor:
        """Weights before dropout, (…, num_heads, tokens, kv_tokens), with the keys in the order of the cache. Rows sum
        to one, or to zero for padding. Arguments as in ``forward``."""
        query, key, _, visible, padding = self._prepare(x, cache, key_mask)
        key = key.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
        weights = blank(_attention_weights(query, key, *visible), None if padding is None else padding.unsqueeze(1))
        return weights if x.ndim == 3 else weights.squeeze(0)

    def _prepare(
        self, x: Tensor, cache: KVCache | None, key_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor | None, bool], Tensor | None]:
        """Query, key and value, each (batch, its heads, its tokens, head_dim); who sees whom; and what is padding in x,
        (batch, tokens, 1), or None if no key is."""
        rows, real = self._rows(x, key_mask)
        tokens = rows.shape[1]
        if cache is None:
            positions = KVCache()._next_positions(tokens, real, rows.device)
            angles = self._angles(positions, rows)
            key, value = self._key_value(rows, angles)
        else:
            self._check_cache(cache, rows)
            if key_mask is not None:
                raise ValueError("key_mask belongs to append, which tells the cache; do not give it to forward as well")
            if rows.shape[:2] != (len(cache.lengths), cache._newest):
                stored = f"batch={len(cache.lengths)}, tokens={cache._newest}"
                raise ValueError(f"x must be what append(x, cache) stored last, {stored}; got {tuple(x.shape)}")
            key, value = cache.key, cache.value
            positions = cache.positions if cache._padded else cache.positions[:1]  # without padding, rows are alike
            newest = positions[:, len(cache) - tokens :]
            real = newest >= 0 if cache._padded else None
            angles = self._angles(newest, rows) if cache._angles is None else cache._angles
        padding = None if real is None else ~real.unsqueeze(-1)
        query = self._turned(self.W_query(blank(rows, padding)), self.num_heads, angles)
        return query, key.to(query.dtype), value.to(query.dtype), self._visible(positions, tokens, real), padding

    def _rows(self, x: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x as (batch, tokens, d_in) with zeros as padding, and which tokens are real, (batch, tokens)."""
        check_input(x, self.d_in, self.context_length)
        rows, _, padding = hide_padding(x, key_mask)
        rows = rows if x.ndim == 3 else rows.unsqueeze(0)
        return rows, None if padding is None else ~padding.view(rows.shape[:2])

    def _check_cache(self, cache: object, rows: Tensor) -> None:
        if not isinstance(cache, KVCache):
            raise TypeError(f"cache must be a KVCache; got {type(cache).__name__}")
        if cache.window is not None and (cache.window, cache.sinks) != (self.window, self.sinks):
            expected, got = (f"window={one.window}, sinks={one.sinks}" for one in (self, cache))
            raise ValueError(f"cache must have the layer's {expected}, or no window; got {got}")
        if len(cache.lengths) not in (0, len(rows)):
            raise ValueError(f"x must have the batch of the cache, {len(cache.lengths)}; got {len(rows)}")
        if len(cache.lengths):
            check_device("x", rows, "the cache", cache.lengths.device)

    def _angles(self, positions: Tensor, rows: Tensor) -> Angles | None:
        if not self.rotary:
            return None
        cos, sin = cos_sin(positions.unsqueeze(1), self.head_dim, self.base)
        dtype = torch.promote_types(rows.dtype, torch.float32)
        return cos.to(dtype), sin.to(dtype)

    def _key_value(self, rows: Tensor, angles: Angles | None) -> tuple[Tensor, Tensor]:
        """Each (batch, num_kv_heads, tokens, head_dim)."""
        value = _split_heads(self.W_value(rows), self.num_kv_heads)
        return self._turned(self.W_key(rows), self.num_kv_heads, angles), value

    def _turned(self, projected: Tensor, num_heads: int, angles: Angles | None) -> Tensor:
        """(batch, num_heads, tokens, head_dim)."""
        heads = _split_heads(projected, num_heads)
        return heads if angles is None else turn(heads, angles)

    def _visible(self, positions: Tensor, tokens: int, real: Tensor | None) -> tuple[Tensor | None, bool]:
        """Which of the keys at these positions the last ``tokens`` of them see: a mask (batch or 1, 1, tokens or 1,
        kv_tokens), or None, and whether later keys are hidden as well."""
        kv_tokens = positions.shape[1]
        compiling = torch.compiler.is_compiling()  # a compiler wants one graph for any number of tokens
        all_past = self.window is None or (not compiling and kv_tokens <= self.window + self.sinks)
        if all_past and (tokens == kv_tokens or (tokens == 1 and real is None)):
            return None if real is None else real[:, None, None], bool(tokens == kv_tokens)
        query, key = positions[:, kv_tokens - tokens :, None], positions[:, None]
        mask = (key >= 0) & (key <= query)  # (batch or 1, tokens, kv_tokens)
        if self.window is not None:
            mask = mask & ((key > query - self.window) | (key < self.sinks))
        return mask.unsqueeze(1), False
