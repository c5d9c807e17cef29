"""Exercises of notebook 09: a step with a cache, rotary positions, shared key heads, a window with sinks, bytes."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw


def cache_step(query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor) -> Tensor:
    keys, values = torch.cat([past_key, key]), torch.cat([past_value, value])  # (held + new, …)
    scores = query @ keys.T / query.shape[-1] ** 0.5  # (new, held + new)
    visible = torch.ones_like(scores, dtype=torch.bool).tril(len(past_key))
    return torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1) @ values  # (new, value_dim)


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    half = x.shape[-1] // 2
    angles = positions[:, None] * base ** (-torch.arange(half) / half)  # (tokens, half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1)


def expand_heads(key: Tensor, num_heads: int) -> Tensor:
    return key.repeat_interleave(num_heads // key.shape[1], dim=1)  # (batch, num_heads, tokens, head_dim)


def window_mask(q_tokens: int, kv_tokens: int, window: int, sinks: int) -> Tensor:
    query = torch.arange(kv_tokens - q_tokens, kv_tokens)[:, None]  # the queries are the last tokens
    key = torch.arange(kv_tokens)
    return (key <= query) & ((key > query - window) | (key < sinks))


def cache_bytes(config: dict, tokens: int, bytes_per_number: int) -> int:
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    return 2 * config["num_hidden_layers"] * kv_heads * head_dim * tokens * bytes_per_number


def attended(scores: Tensor, value: Tensor, past_value: Tensor) -> Tensor:
    return torch.softmax(scores, dim=-1).nan_to_num() @ torch.cat([past_value, value])


def scored(query: Tensor, key: Tensor, past_key: Tensor, shift: int = 0, fill: float = -torch.inf) -> Tensor:
    """Scores of a step whose mask is shifted, or fills what it hides with another number."""
    scores = query @ torch.cat([past_key, key]).T / query.shape[-1] ** 0.5
    visible = torch.ones_like(scores, dtype=torch.bool).tril(len(past_key) + shift)
    return scores.masked_fill(~visible, fill)


def shifted(shift: int, query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor) -> Tensor:
    return attended(scored(query, key, past_key, shift), value, past_value)


def scaled(by: Callable[[Tensor, Tensor], float], query: Tensor, key: Tensor, value: Tensor, *past: Tensor) -> Tensor:
    """A step whose scores are divided by another number."""
    return cache_step(query * query.shape[-1] ** 0.5 / by(query, value), key, value, *past)


def turned_over(query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor) -> Tensor:
    """New keys and values before the old ones."""
    scores = query @ torch.cat([key, past_key]).T / query.shape[-1] ** 0.5
    visible = torch.ones_like(scores, dtype=torch.bool).tril(len(past_key))
    return attended(scores.masked_fill(~visible, -torch.inf), past_value, value)


def turned(x: Tensor, angles: Tensor, sign: float = 1.0, plus: float = -1.0) -> Tensor:
    """Components i and i + head_dim / 2 turned by other angles, the other way, or with another sign."""
    (a, b), cos, sin = x.chunk(2, dim=-1), angles.cos(), sign * angles.sin()
    return torch.cat([a * cos + plus * b * sin, a * sin + b * cos], dim=-1)


def fan(x: Tensor, positions: Tensor, base: float, power: float = -2.0) -> Tensor:
    """The angles, with another power of the base per component."""
    return positions[:, None] * base ** (power * torch.arange(x.shape[-1] // 2) / x.shape[-1])


def in_pairs(x: Tensor) -> Tensor:
    """From halves to the order of pairs: 0, half, 1, half + 1 …"""
    return torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)


def in_halves(x: Tensor) -> Tensor:
    return torch.cat([x[..., ::2], x[..., 1::2]], dim=-1)


def later(q_tokens: int, kv_tokens: int) -> Tensor:
    """The keys after each query."""
    return ~window_mask(q_tokens, kv_tokens, kv_tokens, 0)


def head_dim(config: dict) -> int:
    return config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])


def kv_heads(config: dict) -> int:
    return config.get("num_key_value_heads", config["num_attention_heads"])


def without(config: dict, name: str) -> dict:
    return {key: value for key, value in config.items() if key != name}


def per_token(config: dict) -> int:
    """Numbers of all keys and values of one token."""
    return 2 * config["num_hidden_layers"] * kv_heads(config) * head_dim(config)


STEPS = ((3, 4, 5, 2), (1, 4, 5, 3), (1, 0, 3, 3), (5, 0, 2, 7), (2, 7, 3, 3), (7, 2, 4, 4), (1, 130, 6, 2))
KEY_HEADS = (((2, 2, 5, 3), 6), ((1, 3, 4, 2), 6), ((2, 1, 3, 5), 4), ((3, 4, 2, 2), 4), ((2, 3, 1, 2), 12))
WINDOWS = (
    (3, 8, 2, 1),
    (6, 6, 3, 0),
    (6, 6, 2, 1),
    (1, 7, 3, 2),
    (5, 5, 9, 0),
    (1, 1, 1, 0),
    (4, 9, 1, 3),
    (7, 7, 2, 9),
)
MODELS = [
    {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8},
    {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12},
    {"hidden_size": 3072, "num_attention_heads": 16, "num_hidden_layers": 28, "head_dim": 256},
    {"hidden_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1, "head_dim": 128},
    {"hidden_size": 512, "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 2, "head_dim": 256},
]

check_cache_step = Exercise(
    "Check ``answer(query, key, value, past_key, past_value)``: the new tokens' outputs (new, value_dim), from their "
    "queries, keys and values, and from what the cache holds.",
    cache_step,
    [
        draw(91 + i, (new, d), (new, d), (new, v), (held, d), (held, v), scale=2.0)
        for i, (new, held, d, v) in enumerate(STEPS)
    ],
    {
        "Queries see the first keys only: they are the last tokens, so shift the mask, tril(held).": (
            lambda q, k, v, *past: shifted(-len(past[0]), q, k, v, *past)
        ),
        "New tokens see the new tokens after them: hide what comes later, tril(held).": partial(shifted, 999),
        "New tokens do not see themselves: join their keys and values to the cache's.": (
            lambda q, k, v, *past: torch.softmax(q @ past[0].T / q.shape[-1] ** 0.5, dim=-1) @ past[1]
        ),
        "A token does not see itself: the mask's diagonal is at held.": partial(shifted, -1),
        "A token sees the one after it: the mask's diagonal is at held.": partial(shifted, 1),
        "The cache is not used: join its keys and values with the new ones.": (
            lambda q, k, v, *past: cache_step(q, k, v, k[:0], v[:0])
        ),
        "The scores are not divided by the root of head_dim.": partial(scaled, lambda q, v: 1.0),
        "The scores are divided by head_dim: take its root.": partial(scaled, lambda q, v: q.shape[-1]),
        "The scores are multiplied by the root: divide by it.": partial(scaled, lambda q, v: q.shape[-1] ** -0.5),
        "The root is of value_dim: a score adds head_dim products.": partial(scaled, lambda q, v: v.shape[-1] ** 0.5),
        "The root is of the number of tokens: take head_dim.": partial(scaled, lambda q, v: len(q) ** 0.5),
        "The new keys come before the old ones: the cache comes first.": turned_over,
        "Keys and values are joined in different orders: the cache comes first in both.": (
            lambda q, k, v, *past: attended(scored(q, k, past[0]), past[1], v)
        ),
        "The softmax runs over the queries: each row must sum to one, dim=-1.": (
            lambda q, k, v, *past: torch.softmax(scored(q, k, past[0], 999), dim=0) @ torch.cat([past[1], v])
        ),
        "Hidden scores are 0 and keep a weight: fill them with −∞ before the softmax.": (
            lambda q, k, v, *past: attended(scored(q, k, past[0], fill=0.0), v, past[1])
        ),
        "This is the last token only: return a row for each new token.": lambda *all: cache_step(*all)[-1:],
        "The new keys are in the result: return the outputs alone.": lambda *all: torch.cat([cache_step(*all), all[2]]),
    },
    "Right: one new token or several, with an empty cache and a long one.",
    forbidden=("scaled_dot_product_attention",),
)

check_rotate = Exercise(
    "Check ``answer(x, positions, base)``: x (…, tokens, head_dim), components i and i + head_dim / 2 turned by the "
    "angle position · base^(−2i / head_dim).",
    rotate,
    [
        (*draw(2, (3, 8)), torch.tensor([0, 4, 9]), 10_000.0),
        (*draw(1, (5, 2)), torch.arange(5), 10_000.0),
        (*draw(3, (2, 3, 5, 6)), torch.tensor([7, 8, 9, 10, 11]), 500_000.0),
        (*draw(4, (1, 12)), torch.tensor([130]), 100.0),
        (*draw(5, (3, 1, 4)), torch.tensor([2]), 10.0),
        (*draw(6, (2, 7, 4)), torch.tensor([1, 3, 3, 0, 12, 5, 4]), 10_000.0),
    ],
    """
    turned(x, -fan(x, positions, base))  # It turns the other way: the first half is a cos θ − b sin θ.
    in_pairs(turned(in_halves(x), fan(x, positions, base)))  # Neighbours turn together: pair i with i + head_dim / 2.
    in_pairs(turned(x, fan(x, positions, base)))  # The halves are interleaved: put one after the other.
    turned(x, fan(x, torch.arange(len(positions)), base))  # Positions are counted from 0: use those that are given.
    turned(x, fan(x, positions + 1, base))  # All positions are one too large: use them as they are.
    turned(x, fan(x, positions, 10_000.0))  # The base is fixed at 10,000: use the argument.
    turned(x, fan(x, positions, base, 2.0))  # Later pairs turn faster: the power of the base is negative.
    turned(x, fan(x, positions, base, -1.0))  # The power is −i / head_dim: it must be −2i / head_dim.
    turned(x, fan(x, positions, base, -4.0))  # The power is −4i / head_dim: it must be −2i / head_dim.
    turned(x, fan(x, positions, base, 0.0))  # All pairs turn by the same angle: later ones turn more slowly.
    turned(x, fan(x, positions, base) * torch.pi / 180)  # The angle is in radians: do not convert it.
    turned(x, fan(x, positions, base) * 2 * torch.pi)  # The angle is not multiplied by 2π.
    turned(x, fan(x, positions, base), plus=1.0)  # Both signs are plus: the first half is a cos θ − b sin θ.
    turned(x, fan(x, positions, base), plus=0.0)  # The term b sin θ is missing: a turn mixes both components.
    x * fan(x, positions, base).cos().repeat(1, 2)  # The sines are missing: a turn mixes both components.
    turned(x, fan(x, positions, base)).roll(x.shape[-1] // 2, -1)  # The halves are swapped: cos · a − sin · b is first.
    turned(x, fan(x, positions, base)) + x  # The old x is added: return the turned components alone.
    """,
    "Right: any positions, any base, with heads and without.",
)

check_expand_heads = Exercise(
    "Check ``answer(key, num_heads)``: (batch, kv_heads, tokens, head_dim) to (batch, num_heads, tokens, head_dim).",
    expand_heads,
    [(*draw(11 + i, shape), num_heads) for i, (shape, num_heads) in enumerate(KEY_HEADS)],
    """
    key.repeat(1, num_heads // key.shape[1], 1, 1)  # The key heads alternate: neighbours share one, repeat_interleave.
    key.repeat_interleave(num_heads, 1)  # There are too many heads: repeat each num_heads // num_kv_heads times.
    key.repeat_interleave(key.shape[1], 1)  # Repeat each head num_heads // num_kv_heads times, not num_kv_heads times.
    key.repeat_interleave(num_heads // key.shape[1], 0)  # The batch is repeated: the heads are axis 1.
    key.repeat_interleave(num_heads // key.shape[1], 2)  # The tokens are repeated: the heads are axis 1.
    key.repeat_interleave(num_heads // key.shape[1], 3)  # The numbers of a key are repeated: the heads are axis 1.
    key[:, :1].expand(-1, num_heads, -1, -1)  # All query heads get key head 0: head h gets key head h // group.
    key[:, -1:].expand(-1, num_heads, -1, -1)  # All query heads get the last key head: head h gets key head h // group.
    key.flip(1).repeat_interleave(num_heads // key.shape[1], 1)  # The heads are in reverse: key head 0 comes first.
    key.mean(1, True).expand(-1, num_heads, -1, -1)  # The key heads are averaged: each must stay what it is.
    key.sum(1, True).expand(-1, num_heads, -1, -1)  # The key heads are added: each must stay what it is.
    key[:, :, None].expand(-1, -1, num_heads // key.shape[1], -1, -1)  # The copies are an axis: flatten it.
    key[:, torch.arange(num_heads).clamp(max=key.shape[1] - 1)]  # Only the last head is repeated: repeat each of them.
    key.mT.repeat_interleave(num_heads // key.shape[1], 1)  # Tokens and head_dim are swapped: leave them as they are.
    key  # Nothing is repeated: there must be num_heads of them.
    """,
    "Right: neighbouring query heads share a key head, and with one head each, nothing changes.",
)

check_window_mask = Exercise(
    "Check ``answer(q_tokens, kv_tokens, window, sinks)``: a boolean mask (q_tokens, kv_tokens), True = may see; the "
    "queries are the last q_tokens of the kv_tokens.",
    window_mask,
    WINDOWS,
    {
        "The sinks are missing: the first keys stay visible.": lambda q, k, w, s: window_mask(q, k, w, 0),
        "Later keys are visible: a query sees no key after itself.": lambda q, k, w, s: (
            window_mask(q, k, w, s) | later(q, k)
        ),
        "A sink is seen before its time: key <= query holds for sinks as well.": (
            lambda q, k, w, s: window_mask(q, k, w, s) | (torch.arange(k) < s)
        ),
        "The window is one too wide: it counts the token itself.": lambda q, k, w, s: window_mask(q, k, w + 1, s),
        "The window is one too narrow: it is the token itself and window − 1 before it.": (
            lambda q, k, w, s: window_mask(q, k, w - 1, s)
        ),
        "A token does not see itself: key <= query.": lambda q, k, w, s: (
            window_mask(q, k, w, s) & ~window_mask(q, k, 1, 0)
        ),
        "There is one sink too many: they are keys 0 to sinks − 1.": lambda q, k, w, s: window_mask(q, k, w, s + 1),
        "A key is visible in the window or as a sink: use |, not &.": (
            lambda q, k, w, s: window_mask(q, k, w, 0) & (torch.arange(k) < s)
        ),
        "The window is not used: this is a causal mask.": lambda q, k, w, s: ~later(q, k),
        "Window and sinks are swapped.": lambda q, k, w, s: window_mask(q, k, s, w),
        "The window reaches into the future: it holds the last keys, not the next ones.": (
            lambda q, k, w, s: window_mask(k, k, w, 0).T[k - q :] | (later(q, k) & (torch.arange(k) < s))
        ),
        "The queries are taken for the first tokens: they are the last ones.": (
            lambda q, k, w, s: window_mask(k, k, w, s)[:q]
        ),
        "All queries have the window of the last one: each has its own.": (
            lambda q, k, w, s: window_mask(1, k, w, s) & ~later(q, k)
        ),
        "True and False are swapped: True means that the key may be seen.": lambda *sizes: ~window_mask(*sizes),
        "Rows and columns are swapped: a row is a query.": lambda *sizes: window_mask(*sizes).T,
    },
    "Right: the last few tokens, the token itself among them, and the first few, never a later one.",
    describe=lambda q, k, window, sinks: f"q_tokens={q}, kv_tokens={k}, window={window}, sinks={sinks}",
)

check_cache_bytes = Exercise(
    "Check ``answer(config, tokens, bytes_per_number)``: the bytes of a model's cache, from its configuration.",
    cache_bytes,
    list(zip(MODELS, (1, 1024, 8000, 3, 4096), (2, 4, 2, 4, 1))),
    """
    per_token(config) // 2 * tokens * bytes_per_number  # Half is missing: keys and values are both stored.
    per_token(config) * 2 * tokens * bytes_per_number  # It is twice too much: count keys once and values once.
    2 * kv_heads(config) * head_dim(config) * tokens * bytes_per_number  # The layers are missing: each has a cache.
    per_token(without(config, "num_key_value_heads")) * tokens * bytes_per_number  # Count key heads, not all heads.
    2 * config["num_hidden_layers"] * config["hidden_size"] * tokens * bytes_per_number  # hidden_size is for all heads.
    per_token(without(config, "head_dim")) * tokens * bytes_per_number  # Where the configuration has head_dim, use it.
    per_token(config) * tokens  # These are numbers: multiply by bytes_per_number.
    per_token(config) * bytes_per_number  # This is for one token: multiply by tokens.
    per_token(config) * tokens**2 * bytes_per_number  # The tokens are squared: a key is stored once.
    per_token(config) * tokens * bytes_per_number * 8  # These are bits: a byte is one.
    per_token(config) * tokens * bytes_per_number / 2**10  # This is in KiB: return bytes.
    per_token(config) * tokens * bytes_per_number / 2**20  # This is in MiB: return bytes.
    per_token(config) * tokens * 2  # Two bytes per number are fixed: use bytes_per_number.
    per_token(config) // kv_heads(config) * tokens * bytes_per_number  # One key head is counted: there are more.
    per_token(config) // head_dim(config) * tokens * bytes_per_number  # A key has head_dim numbers: multiply by it.
    """,
    "Right: for each layer a key and a value per token and key head.",
    describe=lambda config, tokens, size: f"{config}, tokens={tokens}, bytes_per_number={size}",
)
