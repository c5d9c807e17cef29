"""Attention for generating one token at a time: query heads share key heads, and a cache holds the past."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlib._fused import fused_attention
from attnlib._validate import check_bool, check_counts, check_device, check_divisible, check_input
from attnlib.attend import _scores, _softmax, blank, hide_padding
from attnlib.kv_cache import Angles, KVCache
from attnlib.positions import check_rotary, cos_sin, turn

QUERY_BLOCK = 128  # queries that share a mask, at least


class GroupedQueryAttention(nn.Module):
    """Causal multi-head attention for generating: several query heads share a key head, and a cache holds the past.

    Formula: that of ``MultiHeadAttention``, but query head h uses the keys and values of head
    ``h // (num_heads / num_kv_heads)``; queries and keys are turned by ``rotate``; and with a window, a query sees the
    keys of ``sliding_window_mask``. With as many key heads as heads, and ``rotary=False``, it equals
    ``MultiHeadAttention`` without dropout; one key head is multi-query attention.

    ``forward`` only reads the cache, ``append`` only writes it. Call ``append`` first, because a token sees itself.
    However the tokens are split into calls, the outputs are those of one call on all of them without a cache.

    On NVIDIA GPUs, PyTorch may choose cuDNN's kernel, which makes a plan for each new number of keys: 70 ms per token
    on an H100. Call ``torch.backends.cuda.enable_cudnn_sdp(False)`` before you generate; a step then takes 0.5 ms.

    Args:
        d_in, d_out, context_length, num_heads, qkv_bias: as in ``MultiHeadAttention``. At most ``context_length``
            tokens are in x or held in the cache; with a window, generation can go on for ever.
        num_kv_heads: number of heads of keys and values; it divides ``num_heads``.
        rotary, base: turn queries and keys as ``rotate`` does, with layout "halves" (``convert_rotary_layout`` converts
            weights for "pairs"). Without it, order is left to the causal mask.
        window, sinks: as in ``sliding_window_mask``; default: a query sees all tokens before it.

    W_query, W_key, W_value and out_proj are as in ``MultiHeadAttention``, created in this order, but W_key and W_value
    have num_kv_heads · head_dim outputs. TypeError, ValueError: an argument is of the wrong kind or does not fit.

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
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        check_counts(d_in=d_in, d_out=d_out, context_length=context_length)
        check_counts(num_heads=num_heads, num_kv_heads=num_kv_heads)
        check_divisible(d_out=d_out, num_heads=num_heads)
        check_divisible(num_heads=num_heads, num_kv_heads=num_kv_heads)
        head_dim = d_out // num_heads
        check_bool("rotary", rotary)
        check_rotary(head_dim if rotary else 0, base)
        self.d_in, self.context_length, self.head_dim = d_in, context_length, head_dim
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.rotary, self.base, self.window, self.sinks = rotary, base, window, sinks
        self.new_cache()  # raises an error if window and sinks do not fit together
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key, self.W_value = (nn.Linear(d_in, num_kv_heads * head_dim, bias=qkv_bias) for _ in range(2))
        self.out_proj = nn.Linear(d_out, d_out)

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
        rows, real = self._rows(x, cache, key_mask)
        held, tokens = cache._kept(), rows.shape[1]
        if held + tokens > self.context_length:
            limit = f"context_length={self.context_length}"
            raise ValueError(f"cache must hold at most {limit} tokens; got {held} and {tokens} more")
        positions = cache._next_positions(tokens, real)
        key, value, angles = self._key_value(rows, positions, cache)
        if cache._sizes[1:] != (self.num_kv_heads, self.head_dim, self.head_dim):
            cache._check_fits(key, value)
        return cache._append(key, value, positions, angles)

    def forward(self, x: Tensor, cache: KVCache | None = None, key_mask: Tensor | None = None) -> Tensor:
        """Compute the context vectors of x, (…, tokens, d_out). Nothing is stored; that is what ``append`` is for.

        With a cache, x gives queries only, so gradients reach it through them alone; call ``backward`` before the next
        ``append``. With a window, no mask is larger than a block of queries by the keys that they see. The context
        vectors of padding are what ``out_proj`` makes of zeros.

        Args:
            x: (batch, tokens, d_in), or (tokens, d_in) as a single row.
            cache: from ``new_cache``; its newest tokens are those of x. Default: x is all there is.
            key_mask: boolean, like x without d_in, True = a real token; default: all are. No token sees padding, which
                may hold anything, and positions count real tokens only. With a cache, give it to ``append`` instead.

        TypeError, ValueError: an argument is of the wrong kind, does not fit, or has too many tokens.
        """
        context = self.out_proj(self._contexts(*self._prepare(x, cache, key_mask)))
        return context if x.ndim == 3 else context.squeeze(0)

    def attention_weights(self, x: Tensor, cache: KVCache | None = None, key_mask: Tensor | None = None) -> Tensor:
        """Weights before dropout, (…, num_heads, tokens, kv_tokens), with the keys in the order of the cache. Rows sum
        to one, or to zero for padding. Arguments as in ``forward``."""
        query, key, _, positions = self._prepare(x, cache, key_mask)
        key = key.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
        places = torch.arange(key.shape[2], device=key.device)[None] if positions is None else positions
        first = key.shape[2] - query.shape[2]
        scores = _scores(query, key, self._visible(places[:, first:], places), False, None)
        weights = _softmax(scores)[0].to(query.dtype)
        return weights if x.ndim == 3 else weights.squeeze(0)

    def _prepare(
        self, x: Tensor, cache: KVCache | None, key_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Query, key and value, each (batch, its heads, its tokens, head_dim), and the positions of the keys, (batch,
        kv_tokens), with −1 for padding, or None if there is none."""
        rows, real = self._rows(x, KVCache() if cache is None else cache, key_mask)
        tokens = rows.shape[1]
        if cache is None:
            positions = KVCache()._next_positions(tokens, real)
            key, value, angles = self._key_value(rows, positions, KVCache())
        else:
            if real is not None:
                raise ValueError("key_mask belongs to append, which tells the cache; do not give it to forward as well")
            if tokens != cache._newest or not cache._sizes:
                stored = f"batch={cache._key.shape[0]}, tokens={cache._newest}"
                raise ValueError(f"x must be what append(x, cache) stored last, {stored}; got {tuple(x.shape)}")
            key, value, positions, angles = cache.key, cache.value, None, cache._angles
            if cache._padded:
                positions = cache.positions
                rows = blank(rows, positions[:, None, len(cache) - tokens :] >= 0)
            if angles is None and self.rotary:  # someone called cache.append
                angles = self._angles(rows, cache.positions[:, len(cache) - tokens :])
        query = self._split(self.W_query(rows), self.num_heads, angles)
        return query, key.to(query.dtype), value.to(query.dtype), positions

    def _rows(self, x: Tensor, cache: object, key_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x as (batch, tokens, d_in) with zeros as padding, and which tokens are real, (batch, tokens)."""
        check_input(x, self.d_in, self.context_length)
        x, _ = hide_padding(x, key_mask)
        if x.ndim == 2:
            x, key_mask = x.unsqueeze(0), None if key_mask is None else key_mask.unsqueeze(0)
        if not isinstance(cache, KVCache):
            raise TypeError(f"cache must be a KVCache; got {type(cache).__name__}")
        if cache.window is not None and (cache.window, cache.sinks) != (self.window, self.sinks):
            expected, got = (f"window={one.window}, sinks={one.sinks}" for one in (self, cache))
            raise ValueError(f"cache must have the layer's {expected}, or no window; got {got}")
        if cache._sizes:
            if cache._sizes[0] != x.shape[0]:
                raise ValueError(f"x must have the cache's batch size, {cache._sizes[0]}; got {x.shape[0]}")
            check_device("x", x, "the cache", cache._key.device)
        return x, key_mask

    def _key_value(self, x: Tensor, positions: Tensor | None, cache: KVCache) -> tuple[Tensor, Tensor, Angles | None]:
        """Keys and values of the tokens after those of the cache, and the angles by which the keys are turned."""
        angles = self._next_angles(x, positions, cache) if self.rotary else None
        key = self._split(self.W_key(x), self.num_kv_heads, angles)
        return key, self._split(self.W_value(x), self.num_kv_heads), angles

    def _next_angles(self, rows: Tensor, positions: Tensor | None, cache: KVCache) -> Angles:
        """For the tokens after those of the cache; for a single one without padding, they are computed 64 at a time."""
        tokens, count = rows.shape[1], cache._count
        if positions is not None or tokens != 1:
            later = torch.arange(count, count + tokens, device=rows.device)[None]
            return self._angles(rows, later if positions is None else positions)
        wanted = self.base, self.head_dim, rows.dtype, count // 64
        if wanted not in cache._ahead:
            positions = torch.arange(64, device=rows.device)[None] + count // 64 * 64
            cache._ahead = {wanted: list(zip(*(part.split(1, 2) for part in self._angles(rows, positions))))}
        return cache._ahead[wanted][count % 64]

    def _angles(self, rows: Tensor, positions: Tensor) -> Angles:
        """For rows at their positions, (batch or 1, tokens)."""
        dtype = torch.promote_types(rows.dtype, torch.float32)
        cos, sin = cos_sin(positions.unsqueeze(1), self.head_dim, self.base)
        return cos.to(dtype), sin.to(dtype)

    def _split(self, projected: Tensor, num_heads: int, angles: Angles | None = None) -> Tensor:
        """(batch, num_heads, tokens, head_dim), turned by the angles."""
        batch, tokens, _ = projected.shape
        if tokens == 1:  # no transpose
            heads = projected.view(batch, num_heads, 1, self.head_dim)
        else:
            heads = projected.view(batch, tokens, num_heads, self.head_dim).transpose(1, 2)
        return heads if angles is None else turn(heads, angles)

    def _contexts(self, query: Tensor, key: Tensor, value: Tensor, positions: Tensor | None) -> Tensor:
        """(batch, tokens, d_out), zeros for padding; a block of queries at a time where each needs its own mask."""
        tokens, kv_tokens = query.shape[2], key.shape[2]
        real = None if positions is None else positions[:, None, kv_tokens - tokens :] >= 0  # (batch, 1, tokens)
        compiling = torch.compiler.is_compiling()  # a compiler wants one graph for any number of tokens
        all_past = self.window is None or (not compiling and kv_tokens <= self.window + self.sinks)
        if all_past and (tokens == kv_tokens or (tokens == 1 and real is None)):
            mask = None if real is None else real[:, None]
            return blank(self._attend(query, key, value, mask, bool(tokens == kv_tokens)), real)
        columns = torch.arange(kv_tokens, device=key.device)  # without padding, they say as much as positions
        places = columns[None] if positions is None else positions
        start, block, blocks = kv_tokens - tokens, max(self.window or 0, QUERY_BLOCK), []
        for first in [start] if compiling or tokens <= block else range(start, kv_tokens, block):
            last = kv_tokens if compiling else min(first + block, kv_tokens)
            low = 0 if self.window is None or real is not None else max(first - self.window + 1, 0)
            seen = torch.cat([columns[: min(self.sinks, low)], columns[low:last]])
            mask = self._visible(places[:, first:last], places[:, seen])
            keys, values = (t.index_select(2, seen) if low else t[:, :, :last] for t in (key, value))
            blocks.append(self._attend(query[:, :, first - start : last - start], keys, values, mask, False))
        return blank(torch.cat(blocks, dim=1), real)

    def _visible(self, query: Tensor, key: Tensor) -> Tensor:
        """Who sees whom, (batch or 1, 1, tokens, kv_tokens), by positions (batch or 1, …)."""
        query, key = query[:, None, :, None], key[:, None, None]
        mask = (key >= 0) & (key <= query)
        return mask if self.window is None else mask & ((key > query - self.window) | (key < self.sinks))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        """(batch, tokens, d_out) of key heads that their group of query heads shares."""
        batch, num_heads, tokens, head_dim = query.shape
        group = num_heads // self.num_kv_heads
        if tokens == 1:  # the group can take the place of the tokens; with one key, is_causal hides nothing
            query = query.reshape(batch, self.num_kv_heads, group, head_dim)
            attend = F.scaled_dot_product_attention if mask is None else fused_attention
            return attend(query, key, value, mask).reshape(batch, 1, num_heads * head_dim)
        if group > 1:
            query, key, value = query.unflatten(1, (-1, group)), key.unsqueeze(2), value.unsqueeze(2)
            mask = None if mask is None else mask.unsqueeze(2)
        heads = fused_attention(query, key, value, mask, is_causal)
        return heads.reshape(batch, num_heads, tokens, head_dim).transpose(1, 2).flatten(2)
