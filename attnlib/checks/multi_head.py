"""Exercises of notebook 04: the size of a head, splitting and joining heads, counting parameters, all of it."""

import torch
from torch import Tensor

from attnlib.checks.causal import CAUSAL_ROWS, causal_weights, hidden, later  # noqa: F401 (the rows use them)
from attnlib.checks.exercise import Exercise, draw
from attnlib.checks.self_attention import SCALE_ROWS
from attnlib.multi_head import MultiHeadAttention, MultiHeadAttentionWrapper  # noqa: F401 (a table uses the first)


def two_columns(x: Tensor) -> Tensor:
    """Seed 5, then a wrapper of two heads without dropout, whose output is (batch, tokens, 2)."""
    torch.manual_seed(5)
    wrapper = MultiHeadAttentionWrapper(x.shape[-1], 1, x.shape[-2], num_heads=2, dropout=0.0)
    return wrapper(x)  # (batch, tokens, 2)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(batch, tokens, d_out) to (batch, num_heads, tokens, head_dim)."""
    batch, tokens, d_out = x.shape
    return x.view(batch, tokens, num_heads, d_out // num_heads).transpose(1, 2)


def join_heads(heads: Tensor) -> Tensor:
    """(batch, num_heads, tokens, head_dim) to (batch, tokens, num_heads · head_dim)."""
    return heads.transpose(1, 2).flatten(-2)  # (batch, tokens, num_heads * head_dim)


def parameter_count(d_in: int, d_out: int, num_heads: int, qkv_bias: bool) -> int:
    """The number of parameters of ``MultiHeadAttention``."""
    projection = d_in * d_out + (d_out if qkv_bias else 0)
    return 3 * projection + d_out * d_out + d_out


def multi_head(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """Causal, from (batch, tokens, d_out) to the same shape."""
    batch, tokens, d_out = query.shape
    sizes = (batch, tokens, num_heads, d_out // num_heads)
    query, key, value = (part.view(sizes).transpose(1, 2) for part in (query, key, value))
    scores = query @ key.mT / query.shape[-1] ** 0.5  # (batch, num_heads, tokens, tokens)
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(diagonal=1)
    weights = torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1)
    return (weights @ value).transpose(1, 2).flatten(-2)  # (batch, tokens, d_out)


def alternate(x: Tensor, num_heads: int) -> Tensor:
    """The mistake that gives head 0 every num_heads-th column."""
    return x.view(*x.shape[:2], -1, num_heads).permute(0, 3, 1, 2)


COLUMNS = [draw(3, (2, 6, 3)), draw(4, (3, 5, 4)), draw(5, (1, 1, 2)), draw(6, (2, 130, 2), scale=30.0)]
COLUMNS_TABLE = """
Right: two heads with one column each make two columns.
made = lambda out, n, p=0.0, **bias: MultiHeadAttentionWrapper(x.shape[2], out, x.shape[1], n, dropout=p, **bias)(x)
wrapped = lambda *sizes, seed=5, **options: torch.manual_seed(seed) and made(*sizes, **options)
wrapped(2, 2); wrapped(2, 2)[..., ::2]; wrapped(2, 2)[..., 2:]  # The output has num_heads · d_out columns: use d_out=1.
wrapped(2, 1)  # Both columns come from one head: make two heads, with d_out=1 each.
wrapped(1, 2, 0.1); wrapped(1, 2, 0.5)  # Dropout is on (the wrapper's default is 0.1): pass dropout=0.0.
wrapped(1, 1); wrapped(1, 1).repeat(1, 1, 2)  # This is one head with one column: the wrapper needs num_heads=2.
wrapped(1, 2, qkv_bias=True)  # The Linears have a bias: leave qkv_bias out.
torch.manual_seed(5) and MultiHeadAttention(x.shape[2], 2, x.shape[1], 0.0, 2)(x)  # This has out_proj: use the wrapper.
wrapped(1, 2, seed=0)  # The seed is not 5: call torch.manual_seed(5).
"""
CHANCE = "call torch.manual_seed(5) right before you make the wrapper."
check_two_columns = Exercise(two_columns, COLUMNS, COLUMNS_TABLE, chance=CHANCE)

SPLIT_SIZES = (((2, 5, 12), 3), ((3, 7, 10), 2), ((2, 3, 5), 1), ((1, 4, 6), 6), ((3, 130, 4), 2), ((1, 1, 6), 2))
SPLIT_TABLE = """
Right: each head keeps all tokens and its own columns.
straight = x.view(x.shape[0], num_heads, x.shape[1], -1); uncrossed = x.view(*x.shape[:2], num_heads, -1)
straight  # A straight view mixes the tokens: view to (…, heads, head_dim), then transpose.
uncrossed  # The tokens are still before the heads: the heads must be axis 1.
alternate(x, num_heads)  # The columns of a head alternate: view them as (heads, head_dim).
x.view(*x.shape[:2], -1, num_heads).transpose(1, 2)  # num_heads is not a head's width: it is d_out // num_heads.
uncrossed.transpose(2, 3)  # Heads and head_dim are swapped: the heads must be axis 1.
x.mT.reshape(x.shape[0], num_heads, x.shape[1], -1)  # A transpose before the view mixes the tokens: view first.
torch.stack(x.chunk(num_heads, dim=-1))  # The heads come before the batch: they must be axis 1.
split_heads(x, num_heads)[:, 0]  # This is the first head only: return all of them.
"""
check_split_heads = Exercise(split_heads, [(*draw(5, shape), heads) for shape, heads in SPLIT_SIZES], SPLIT_TABLE)

JOIN_SIZES = ((2, 3, 5, 4), (3, 2, 7, 5), (2, 1, 3, 6), (1, 4, 1, 2), (2, 2, 130, 3), (2, 3, 3, 3))
JOIN_TABLE = """
Right: the heads are side by side, token by token.
heads.reshape(heads.shape[0], heads.shape[2], -1)  # A reshape without transpose(1, 2) mixes the tokens.
heads.transpose(1, 2)  # The heads and head_dim are still two axes: flatten the last two.
heads.permute(0, 2, 3, 1).flatten(-2)  # The columns of the heads alternate: keep each head's columns together.
heads.flatten(1, 2)  # The heads are below each other: put them side by side, along the last axis.
heads.flatten(-2)  # The tokens and head_dim became one axis: bring the tokens before the heads first.
heads.transpose(1, 2).flatten(1, 2)  # The tokens and the heads became one axis: flatten the last two, flatten(-2).
heads.mean(1); heads.sum(1); heads[:, 0]  # The heads are averaged, added or dropped: put all of them side by side.
"""
check_join_heads = Exercise(join_heads, [draw(7, shape) for shape in JOIN_SIZES], JOIN_TABLE)

COUNTS = [(13, 10, 5, True), (7, 4, 2, False), (768, 768, 12, True), (3, 2, 1, False), (1, 6, 3, True)]
COUNT_TABLE = """
Right: three projections and out_proj, however many heads.
w = d_in * d_out; b = d_out * qkv_bias; out = d_out**2 + d_out
num_heads * (3 * w + 3 * b + out); num_heads * (3 * w + 3 * b) + out  # Heads share the matrices: do not count heads.
num_heads * (3 * w + 3 * b)  # This counts the wrapper: here heads share d_out columns, and out_proj is added.
parameter_count(d_out, d_out, num_heads, qkv_bias)  # W_query, W_key and W_value have d_in · d_out weights each.
3 * w + 3 * d_in * qkv_bias + out  # A bias has d_out numbers, not d_in.
2 * (w + b) + out; w + b + out  # There are three projections: query, key and value.
3 * w + 3 * b; 3 * w + 3 * b + d_out  # out_proj is missing: d_out · d_out weights and d_out biases.
3 * w + 3 * b + d_out**2; 3 * w + 4 * b + d_out**2  # out_proj always has a bias: d_out more.
3 * w + out  # With qkv_bias, W_query, W_key and W_value have d_out biases each.
3 * w + 3 * d_out + out  # W_query, W_key and W_value have biases only with qkv_bias.
3 * w + 3 * b + w + d_out  # out_proj has d_out · d_out weights.
3 * w + (3 * d_out if qkv_bias else 0 + out)  # Put parentheses around `… if … else 0`.
"""
check_parameter_count = Exercise(parameter_count, COUNTS, COUNT_TABLE)

# As many tokens as heads first: there a mask fits even if the axes were not swapped.
SIZES = (((2, 3, 12), 3), ((2, 5, 12), 3), ((3, 7, 10), 2), ((2, 4, 5), 1), ((1, 1, 6), 2), ((1, 130, 4), 2))
HEADS = [(*draw(11 + sum(shape), *[shape] * 3, scale=2.0), num_heads) for shape, num_heads in SIZES]
QUERY, KEY, VALUE = draw(10, *[(2, 6, 4)] * 3)
RISING = torch.tensor([-1e12, -400.0, 0.0, 400.0, 900.0, 1200.0])[:, None]  # what is visible underflows
HEADS += [(torch.ones_like(QUERY), KEY + 20 * RISING, VALUE, 2), (QUERY * (RISING > 0), KEY, VALUE, 2)]  # scores of 0
HEADS += [(*draw(9, *[(2, 4, 6)] * 3, double=True), 3)]
MULTI_TABLE = f"""
Right: split, scale by √head_dim, hide, average, join.
d = query.shape[-1] // num_heads; v = split_heads(value, num_heads); average = lambda weights: join_heads(weights @ v)
products = split_heads(query, num_heads) @ split_heads(key, num_heads).mT; s = products / d**0.5
over = lambda n: average(causal_weights(products / n**0.5)); right = causal_weights(s) @ v
by = lambda split: causal_weights(split(query) @ split(key).mT / d**0.5) @ split(value)
straight = lambda x: x.view(x.shape[0], num_heads, x.shape[1], -1); uncrossed = lambda x: x.unflatten(-1, (-1, d))
alternating = lambda x: alternate(x, num_heads); mixed = lambda heads: heads.permute(0, 2, 3, 1).flatten(-2)
over(query.shape[-1]); over(query.shape[1])  # This is √d_out or √tokens: use √head_dim.
average(hidden(s, dim=1))  # Softmax runs over heads: use dim=-1.
multi_head(key, query, value, num_heads)  # Query and key are swapped: query @ key.mT.
multi_head(query, value, key, num_heads)  # Key and value are swapped.
multi_head(query, key, value, 1)  # This is a single head: cut the columns into num_heads heads.
mixed(by(alternating))  # Columns alternate in the split and in the join: keep each head's columns together.
join_heads(by(alternating))  # The columns of the heads alternate in the split: view them as (heads, head_dim).
mixed(right)  # The columns alternate in the join: transpose(1, 2), then flatten(-2).
right  # The heads are not joined yet: (batch, tokens, d_out).
right.reshape(query.shape)  # The join lacks its transpose, so tokens are mixed.
join_heads(by(uncrossed)); by(uncrossed).flatten(-2)  # Heads look at heads: transpose after the view.
by(straight).reshape(query.shape); join_heads(by(straight))  # A straight view mixes the tokens.
{SCALE_ROWS}{CAUSAL_ROWS}"""
FUSED = ("scaled_dot_product_attention", "multi_head_attention_forward")
check_multi_head = Exercise(multi_head, HEADS, MULTI_TABLE, forbidden=FUSED)
