"""Exercises of notebook 09: a step with a cache, rotary positions, shared key heads, a window with sinks, bytes."""

import torch
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw
from attnlib.checks.self_attention import SCALE_ROWS


def cache_step(query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor) -> Tensor:
    """The new tokens' outputs (new, value_dim), from their queries, keys and values, and from what the cache holds."""
    keys, values = torch.cat([past_key, key]), torch.cat([past_value, value])  # (held + new, …)
    scores = query @ keys.T / query.shape[-1] ** 0.5  # (new, held + new)
    visible = torch.ones_like(scores, dtype=torch.bool).tril(len(past_key))
    return torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1) @ values  # (new, value_dim)


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """x (…, tokens, head_dim), with components i and i + head_dim / 2 turned by position · base^(−2i / head_dim)."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * base ** (-torch.arange(half) / half)  # (tokens, half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1)


def expand_heads(key: Tensor, num_heads: int) -> Tensor:
    """(batch, kv_heads, tokens, head_dim) to (batch, num_heads, tokens, head_dim)."""
    return key.repeat_interleave(num_heads // key.shape[1], dim=1)  # (batch, num_heads, tokens, head_dim)


def window_mask(q_tokens: int, kv_tokens: int, window: int, sinks: int) -> Tensor:
    """A boolean mask (q_tokens, kv_tokens), True = may see; the queries are the last q_tokens of the kv_tokens."""
    query = torch.arange(kv_tokens - q_tokens, kv_tokens)[:, None]  # the queries are the last tokens
    key = torch.arange(kv_tokens)
    return (key <= query) & ((key > query - window) | (key < sinks))


def cache_bytes(config: dict, tokens: int, bytes_per_number: int) -> int:
    """The bytes of a model's cache, from its configuration."""
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    return 2 * config["num_hidden_layers"] * kv_heads * head_dim * tokens * bytes_per_number


STEPS = ((3, 4, 5, 2), (1, 4, 5, 3), (1, 0, 3, 3), (5, 0, 2, 7), (2, 7, 3, 3), (7, 2, 4, 4), (1, 130, 6, 2))
CACHES = [draw(91 + i, (n, d), (n, d), (n, v), (m, d), (m, v), scale=2.0) for i, (n, m, d, v) in enumerate(STEPS)]
STEP_TABLE = f"""
Right: one new token or several, with an empty cache and a long one.
d = query.shape[-1]; held = len(past_key); keys = torch.cat([past_key, key]); s = query @ keys.T / d**0.5
over = lambda n: cache_step(query * (d / n) ** 0.5, key, value, past_key, past_value); right = over(d)
values = torch.cat([past_value, value]); new_first = torch.cat([value, past_value])
hide = lambda scores, shift=0, fill=-torch.inf: scores.where(torch.ones_like(s).tril(held + shift) > 0, fill)
attend = lambda scores, values: scores.softmax(-1).nan_to_num() @ values
attend(hide(s, -held), values)  # Queries see the first keys only: they are the last tokens, so use tril(held).
attend(s, values)  # New tokens see the new tokens after them: hide what comes later, tril(held).
attend(query @ past_key.T / d**0.5, past_value)  # New tokens do not see themselves: join them to the cache.
attend(hide(s, -1), values); attend(hide(s, 1), values)  # A token sees itself, and none after it: tril(held).
cache_step(query, key, value, key[:0], value[:0])  # The cache is not used: join it with the new ones.
over(value.shape[-1])  # The root is of value_dim: a score adds head_dim products.
over(len(query)); over(len(keys))  # The root is of a number of tokens: take head_dim.
attend(hide(query @ torch.cat([key, past_key]).T / d**0.5), new_first)  # New keys come first: put the cache first.
attend(hide(s), new_first)  # Keys and values are joined in different orders: the cache comes first in both.
hide(s).softmax(0) @ values  # The softmax runs over the queries: each row must sum to one, dim=-1.
attend(hide(s, fill=0.0), values)  # Hidden scores are 0 and keep a weight: fill them with −∞ before the softmax.
s.softmax(-1).tril(held) @ values  # Weights hidden after the softmax do not sum to one: hide scores before it.
s.where(~hide(s).isfinite(), -torch.inf).softmax(-1) @ values  # True and False are swapped: this shows what to hide.
right[-1:]  # This is the last token only: return a row for each new token.
{SCALE_ROWS}"""
check_cache_step = Exercise(cache_step, CACHES, STEP_TABLE, forbidden=("scaled_dot_product_attention",))

TURNS = [((3, 8), [0, 4, 9], 10_000.0), ((5, 2), [0, 1, 2, 3, 4], 10_000.0), ((2, 3, 5, 6), [7, 8, 9, 10, 11], 5e5)]
TURNS += [((1, 12), [130], 100.0), ((3, 1, 4), [2], 10.0), ((2, 7, 4), [1, 3, 3, 0, 12, 5, 4], 10_000.0)]
ROTATED = [(*draw(i, shape), torch.tensor(places), base) for i, (shape, places, base) in enumerate(TURNS)]
ROTATE_TABLE = """
Right: any positions, any base, with heads and without.
half = x.shape[-1] // 2; angles = positions[:, None] * base ** (-torch.arange(half) / half)
cos = angles.cos(); sin = angles.sin(); a = x[..., :half]; b = x[..., half:]; new = a * cos - b * sin
pairs = lambda y: torch.stack(y.chunk(2, -1), -1).flatten(-2); halves = torch.cat([x[..., ::2], x[..., 1::2]], -1)
rotate(x, -positions, base)  # It turns the other way: the first half is a cos θ − b sin θ.
pairs(rotate(halves, positions, base))  # Neighbours turn together: pair i with i + head_dim / 2.
pairs(rotate(x, positions, base))  # The halves are interleaved: put one after the other.
rotate(x, torch.arange(len(positions)), base); rotate(x, positions + 1, base)  # These are not the given positions.
rotate(x, positions, 10_000.0)  # The base is fixed at 10,000: use the argument.
rotate(x, positions, 1 / base)  # Later pairs turn faster: the power of the base must be negative.
by = lambda power: rotate(x, positions, base**power)
by(0.5); by(2); by(half); by(2 * half)  # The power of the base must be −2i / head_dim.
rotate(x, positions * base ** (-1 / half), base)  # The pairs are counted from 1: the first i is 0.
rotate(x, positions, 1.0)  # All pairs turn by the same angle: later ones turn more slowly.
rotate(x, positions * torch.pi / 180, base); rotate(x, positions * 2 * torch.pi, base)  # Angles are in radians already.
torch.cat([a * cos + b * sin, a * sin + b * cos], -1)  # Both signs are plus: the first half is a cos θ − b sin θ.
torch.cat([a * sin - b * cos, a * cos + b * sin], -1)  # Sine and cosine are swapped: a cos θ − b sin θ comes first.
torch.cat([new, new * sin + b * cos], -1)  # The second half uses the new a: keep the old.
torch.cat([a * cos, a * sin + b * cos], -1); x * torch.cat([cos, cos], -1)  # A sine is missing: a turn mixes both.
rotate(x, positions, base).roll(half, -1)  # The halves are swapped: a cos θ − b sin θ comes first.
"""
check_rotate = Exercise(rotate, ROTATED, ROTATE_TABLE)

KEY_HEADS = (((2, 2, 5, 3), 6), ((1, 3, 4, 2), 6), ((2, 1, 3, 5), 4), ((3, 4, 2, 2), 4), ((2, 3, 1, 2), 12))
EXPANDED = [(*draw(11 + i, shape), num_heads) for i, (shape, num_heads) in enumerate(KEY_HEADS)]
EXPAND_TABLE = """
Right: neighbouring query heads share a key head, and with one head each, nothing changes.
group = num_heads // key.shape[1]; shared = lambda head: head.expand(-1, num_heads, -1, -1)
key.repeat(1, group, 1, 1)  # The key heads alternate, but neighbours share one: use repeat_interleave.
key.repeat_interleave(group)  # Without dim, everything is flattened: the heads are axis 1.
by = lambda times, axis: key.repeat_interleave(times, axis)
by(num_heads, 1); by(key.shape[1], 1)  # The number of copies is wrong: each head needs num_heads // kv_heads.
by(group, 0); by(group, 2); by(group, 3)  # Repeat axis 1, the heads.
shared(key[:, :1]); shared(key[:, -1:])  # All query heads get one key head: head h gets key head h // group.
shared(key.mean(1, True)); shared(key.sum(1, True))  # The key heads are added or averaged: each stays what it is.
key[:, :, None].expand(-1, -1, group, -1, -1)  # The copies have their own axis: flatten it into the heads.
key  # Nothing is repeated: there must be num_heads heads.
"""
check_expand_heads = Exercise(expand_heads, EXPANDED, EXPAND_TABLE)

WINDOWS = [(3, 8, 2, 1), (6, 6, 3, 0), (6, 6, 2, 1), (1, 7, 3, 2), (5, 5, 9, 0), (1, 1, 1, 0)]
WINDOWS += [(4, 9, 1, 3), (7, 7, 2, 9)]
WINDOW_TABLE = """
Right: the last few tokens, the token itself among them, and the first few, never a later one.
mask = lambda q=q_tokens, k=kv_tokens, w=window, s=sinks: window_mask(q, k, w, s)
past = mask(w=kv_tokens); first = torch.arange(kv_tokens) < sinks
mask(s=0)  # The sinks are missing: the first keys stay visible.
mask() | ~past  # Later keys are visible: a query sees no key after itself.
mask() | first  # A sink is seen before its time: key <= query holds for sinks as well.
mask(w=window + 1); mask(w=window - 1)  # The window holds the token itself and window − 1 tokens before it.
mask() & ~mask(w=1, s=0)  # A token does not see itself: key <= query.
mask(s=sinks + 1)  # There is one sink too many: they are keys 0 to sinks − 1.
mask(s=0) & first  # A key is visible in the window or as a sink: use |, not &.
past  # The window is not used: this is a causal mask.
mask(w=sinks, s=window)  # Window and sinks are swapped.
mask(kv_tokens, s=0).T[-q_tokens:] | (~past & first)  # The window reaches into the future: it holds the last keys.
mask() | mask(kv_tokens, s=0).T[-q_tokens:]  # The window reaches both ways: a query sees no key after itself.
mask(kv_tokens)[:q_tokens]  # The queries are taken for the first tokens: they are the last ones.
mask(1) & past  # All queries have the window of the last one: each has its own.
~mask()  # True and False are swapped: True means that the key may be seen.
mask().T  # Rows and columns are swapped: a row is a query.
"""
check_window_mask = Exercise(window_mask, WINDOWS, WINDOW_TABLE)

MODELS = [
    {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8},
    {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12},
    {"hidden_size": 3072, "num_attention_heads": 16, "num_hidden_layers": 28, "head_dim": 256},
    {"hidden_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1, "head_dim": 128},
    {"hidden_size": 512, "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 2, "head_dim": 256},
]
BYTES_TABLE = """
Right: for each layer a key and a value per token and key head.
queries = config["num_attention_heads"]; heads = config.get("num_key_value_heads", queries)
wide = config["hidden_size"]; d = config.get("head_dim", wide // queries); two = 2 * config["num_hidden_layers"]
n = tokens * bytes_per_number; right = two * heads * d * n
right / 2; right * 2  # Keys and values are both stored, once each.
2 * heads * d * n  # The layers are missing: each has a cache.
two * queries * d * n; two * wide * n  # These are all query heads: count the key heads.
two * heads * (wide // queries) * n  # Where the configuration has head_dim, use it.
two * heads * d * tokens  # These are numbers: multiply by bytes_per_number.
two * heads * d * bytes_per_number; right * tokens  # Each token is stored once: multiply by tokens, once.
two * heads * config.get("head_dim", wide // heads) * n  # head_dim is hidden_size // num_attention_heads.
right / 8; right * 8  # bytes_per_number counts bytes already, and bytes are what to return.
right / 2**10; right / 2**20  # This is in KiB or MiB: return bytes.
two * heads * d * tokens * 2  # Two bytes per number are fixed: use bytes_per_number.
two * d * n  # One key head is counted: there are more.
two * heads * n  # A key has head_dim numbers: multiply by it.
"""
check_cache_bytes = Exercise(cache_bytes, list(zip(MODELS, (1, 1024, 8000, 3, 4096), (2, 4, 2, 4, 1))), BYTES_TABLE)
