"""Exercises of notebook 04: the size of a head, splitting and joining heads, counting parameters, all of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw
from attnlib.multi_head import MultiHeadAttention, MultiHeadAttentionWrapper


def two_columns(x: Tensor) -> Tensor:
    torch.manual_seed(5)
    wrapper = MultiHeadAttentionWrapper(x.shape[-1], 1, x.shape[-2], num_heads=2, dropout=0.0)
    return wrapper(x)  # (batch, tokens, 2)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    batch, tokens, d_out = x.shape
    return x.view(batch, tokens, num_heads, d_out // num_heads).transpose(1, 2)


def join_heads(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(-2)  # (batch, tokens, num_heads * head_dim)


def parameter_count(d_in: int, d_out: int, num_heads: int, qkv_bias: bool) -> int:
    projection = d_in * d_out + (d_out if qkv_bias else 0)
    return 3 * projection + d_out * d_out + d_out


def multi_head(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    batch, tokens, d_out = query.shape
    sizes = (batch, tokens, num_heads, d_out // num_heads)
    query, key, value = (part.view(sizes).transpose(1, 2) for part in (query, key, value))
    scores = query @ key.mT / query.shape[-1] ** 0.5  # (batch, num_heads, tokens, tokens)
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(diagonal=1)
    weights = torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1)
    return (weights @ value).transpose(1, 2).flatten(-2)  # (batch, tokens, d_out)


def wrapped(
    x: Tensor, d_out: int = 1, num_heads: int = 2, dropout: float = 0.0, qkv_bias: bool = False, seed: int = 5
) -> Tensor:
    torch.manual_seed(seed)
    return MultiHeadAttentionWrapper(x.shape[-1], d_out, x.shape[-2], num_heads, dropout, qkv_bias)(x)


def split_layer(x: Tensor, d_out: int = 2) -> Tensor:
    torch.manual_seed(5)
    return MultiHeadAttention(x.shape[-1], d_out, x.shape[-2], 0.0, num_heads=2)(x)


check_two_columns = Exercise(
    "Check ``answer(x)``: seed 5, then a wrapper of two heads without dropout, whose output is (batch, tokens, 2).",
    two_columns,
    [draw(3, (2, 6, 3)), draw(4, (3, 5, 4)), draw(5, (1, 1, 2)), draw(6, (2, 130, 2), scale=30.0)],
    """
    wrapped(x, d_out=2)  # The output has num_heads · d_out columns: two heads with d_out=2 make four.
    wrapped(x, d_out=2, num_heads=1)  # Both columns come from one head: make two heads, with d_out=1 each.
    wrapped(x, dropout=0.1)  # Dropout is on, because the wrapper's default is 0.1: pass dropout=0.0.
    wrapped(x, dropout=0.5)  # Dropout is on: pass dropout=0.0.
    wrapped(x, num_heads=1)  # This is one head with one column: the wrapper needs num_heads=2.
    wrapped(x, num_heads=1).repeat(1, 1, 2)  # Both columns have the same weights: set the seed once, and make one
        # wrapper.
    torch.cat([wrapped(x, num_heads=1), wrapped(x, num_heads=1)], -1)
    wrapped(x, d_out=2)[..., ::2]  # Each of the two heads needs d_out=1, not two columns.
    wrapped(x, d_out=2)[..., 2:]
    wrapped(x, num_heads=4)  # There are four heads: the wrapper needs num_heads=2.
    wrapped(x, d_out=x.shape[-1])  # d_out is the width of one head, which must be 1.
    wrapped(x, num_heads=x.shape[-1])  # num_heads must be 2, whatever the width of x is.
    wrapped(x, qkv_bias=True)  # The Linears have a bias: leave qkv_bias out.
    split_layer(x)  # MultiHeadAttention has an out_proj besides: use MultiHeadAttentionWrapper.
    split_layer(x, 4)[..., :2]
    wrapped(x, seed=0)  # The seed is not 5: call torch.manual_seed(5).
    wrapped(x).flip(-1)  # The columns are in reverse order: return the wrapper's output as it is.
    wrapped(x).softmax(-1)  # A softmax is applied to the output: return it as it is.
    wrapped(x).mT  # The output is transposed: its shape is (batch, tokens, 2).
    x[..., :2]  # These are two columns of x: pass x through the wrapper.
    """,
    "Right: two heads with one column each make two columns.",
    chance="Two calls give different numbers: call torch.manual_seed(5) right before you make the wrapper.",
)


def straight(x: Tensor, num_heads: int) -> Tensor:
    """The mistake that mixes the tokens."""
    return x.view(x.shape[0], num_heads, x.shape[1], -1)


def uncrossed(x: Tensor, num_heads: int) -> Tensor:
    return x.view(*x.shape[:2], num_heads, -1)


def alternate(x: Tensor, num_heads: int) -> Tensor:
    """The mistake that gives head 0 every num_heads-th column."""
    return x.view(*x.shape[:2], -1, num_heads).permute(0, 3, 1, 2)


SPLIT_SIZES = (((2, 5, 12), 3), ((3, 7, 10), 2), ((2, 3, 5), 1), ((1, 4, 6), 6), ((3, 130, 4), 2), ((1, 1, 6), 2))

check_split_heads = Exercise(
    "Check ``answer(x, num_heads)``: (batch, tokens, d_out) to (batch, num_heads, tokens, head_dim).",
    split_heads,
    [(*draw(5, shape), num_heads) for shape, num_heads in SPLIT_SIZES],
    """
    straight(x, num_heads)  # A view straight to (batch, heads, …) mixes the tokens: view to (…, heads, head_dim), then
        # transpose.
    uncrossed(x, num_heads)  # The tokens are still before the heads: the heads must be axis 1.
    alternate(x, num_heads)  # The columns of a head alternate: view them as (heads, head_dim).
    alternate(x, num_heads).mT
    x.view(*x.shape[:2], -1, num_heads)  # The columns are viewed as (head_dim, heads), and no axes are swapped.
    x.view(*x.shape[:2], -1, num_heads).transpose(1, 2)  # num_heads is not how wide a head is: the width is d_out //
        # num_heads.
    uncrossed(x, num_heads).transpose(2, 3)  # Heads and head_dim are swapped: the heads must be axis 1.
    uncrossed(x, num_heads).transpose(1, 3)  # Tokens and head_dim are swapped: transpose(1, 2).
    uncrossed(x, num_heads).transpose(0, 1)  # Batch and tokens are swapped: transpose(1, 2).
    uncrossed(x, num_heads).transpose(0, 2)  # Batch and heads are swapped: transpose(1, 2).
    split_heads(x, num_heads).mT  # Each head is transposed: its shape is (tokens, head_dim).
    uncrossed(x, num_heads).transpose(1, 2).reshape(uncrossed(x, num_heads).shape)  # End with the transpose, not a
        # reshape.
    x.mT.reshape(x.shape[0], num_heads, x.shape[1], -1)  # The transpose comes before the view, which mixes the tokens:
        # view first.
    torch.stack(x.chunk(num_heads, dim=-1))  # The heads come before the batch: they must be axis 1.
    torch.stack(x.chunk(num_heads, dim=-1), 2)  # The tokens are still before the heads: the heads must be axis 1.
    torch.stack(x.chunk(num_heads, dim=-1), -1)  # Heads and head_dim are swapped: the heads must be axis 1.
    torch.cat(x.chunk(num_heads, dim=-1), 1)  # Heads and tokens are one axis: use torch.stack, not torch.cat.
    torch.cat(x.chunk(num_heads, dim=-1), 0)  # Batch and heads are one axis: use torch.stack, not torch.cat.
    torch.stack(x.split(num_heads, dim=-1), 1)  # num_heads is not how wide a head is: the width is d_out // num_heads.
    x[:, None].expand(-1, num_heads, -1, -1)  # Each head has all columns: give it d_out // num_heads of its own.
    split_heads(x, num_heads)[:, 0]  # This is the first head only: return all of them.
    split_heads(x, num_heads).flip(1)  # The heads are in reverse order: the first columns belong to head 0.
    x.reshape(x.shape[0] * num_heads, x.shape[1], -1)  # Batch and heads are one axis, and the tokens are mixed: view,
        # then transpose.
    """,
    "Right: each head keeps all tokens and its own columns.",
)


check_join_heads = Exercise(
    "Check ``answer(heads)``: (batch, num_heads, tokens, head_dim) to (batch, tokens, num_heads · head_dim).",
    join_heads,
    [
        draw(7, shape)
        for shape in ((2, 3, 5, 4), (3, 2, 7, 5), (2, 1, 3, 6), (1, 4, 1, 2), (2, 2, 130, 3), (2, 3, 3, 3))
    ],
    """
    heads.reshape(heads.shape[0], heads.shape[2], -1)  # A reshape without transpose(1, 2) mixes the tokens.
    heads.transpose(1, 2)  # The heads and head_dim are still two axes: flatten the last two.
    heads.transpose(1, 2).mT.flatten(-2)  # The columns of the heads alternate: keep each head's columns together.
    heads.permute(0, 3, 2, 1).reshape(heads.shape[0], heads.shape[2], -1)  # The axes are reversed: use transpose(1, 2).
    heads.permute(0, 3, 1, 2).reshape(heads.shape[0], heads.shape[2], -1)  # head_dim comes first: use transpose(1, 2).
    heads.mT.reshape(heads.shape[0], heads.shape[2], -1)  # transpose(2, 3) swaps tokens and head_dim: use transpose(1,
        # 2).
    heads.mT.flatten(1, 2)  # The columns come before the tokens: transpose(1, 2), then flatten(-2).
    heads.transpose(0, 1).reshape(heads.shape[0], heads.shape[2], -1)  # transpose(0, 1) swaps batch and heads: use
        # transpose(1, 2).
    heads.transpose(0, 2).reshape(heads.shape[0], heads.shape[2], -1)  # transpose(0, 2) swaps batch and tokens: use
        # transpose(1, 2).
    heads.flatten(1, 2)  # The heads are below each other: put them side by side, along the last axis.
    torch.cat(list(heads.unbind(1)), 1)
    heads.flatten(-2)  # The tokens and head_dim became one axis: bring the tokens before the heads first.
    heads.transpose(1, 2).flatten(1, 2)  # The tokens and the heads became one axis: flatten the last two, flatten(-2).
    heads.transpose(1, 2).flatten(0, 1)  # The batch and the tokens became one axis: flatten the last two, flatten(-2).
    heads.transpose(1, 2).flatten(1)  # The tokens were flattened as well: flatten only the last two, flatten(-2).
    heads.flatten(1)
    heads.transpose(1, 2).reshape(heads.shape[0], -1, heads.shape[2])  # The last two sizes are swapped.
    heads.mean(1)  # The heads are averaged: put them side by side.
    heads.sum(1)  # The heads are added: put them side by side.
    heads[:, 0]  # This is the first head only: put all of them side by side.
    heads.flip(1).transpose(1, 2).flatten(-2)  # The heads are in reverse order: head 0 gets the first columns.
    torch.stack(list(heads.unbind(1)), -1)  # The heads are a new last axis: use torch.cat along the last one.
    heads[:, :1].expand_as(heads).transpose(1, 2).flatten(-2)  # The first head is repeated: put all of them side by
        # side.
    """,
    "Right: the heads are side by side, token by token.",
)


def weights_of(d_in: int, d_out: int, biases: int = 0) -> int:
    """Three projections."""
    return 3 * d_in * d_out + biases


check_parameter_count = Exercise(
    "Check ``answer(d_in, d_out, num_heads, qkv_bias)``: the number of parameters of ``MultiHeadAttention``.",
    parameter_count,
    [(11, 10, 5, True), (7, 4, 2, False), (768, 768, 12, True), (3, 2, 1, False), (1, 6, 3, True), (5, 12, 4, False)],
    """
    num_heads * parameter_count(d_in, d_out, num_heads, qkv_bias)  # The number of heads does not count: they share the
        # matrices.
    num_heads * (weights_of(d_in, d_out) + 3 * qkv_bias * d_out) + d_out**2 + d_out  # d_out is the width of all heads,
        # so W_query exists once.
    num_heads * (weights_of(d_in, d_out) + 3 * qkv_bias * d_out)  # This is the wrapper: heads share d_out here.
    weights_of(d_in, d_out // num_heads, 3 * qkv_bias * (d_out // num_heads)) + d_out**2 + d_out  # Count all heads.
    weights_of(d_in, d_out, 3 * qkv_bias * d_out)  # out_proj is missing: d_out · d_out weights and d_out biases.
    weights_of(d_in, d_out, 3 * qkv_bias * d_out) + d_out**2  # out_proj always has a bias: d_out more.
    weights_of(d_in, d_out, 3 * qkv_bias * d_out) + d_out  # The weights of out_proj are missing: d_out · d_out more.
    weights_of(d_in, d_out) + d_out**2  # No bias is counted: out_proj has d_out, and with qkv_bias the others have
        # d_out each.
    weights_of(d_in, d_out, 3 * qkv_bias * d_out) + d_out**2 + qkv_bias * d_out  # The bias of out_proj is always there.
    d_in * d_out + qkv_bias * d_out + d_out**2 + d_out  # One projection is counted: W_query, W_key and W_value are
        # three.
    2 * (d_in * d_out + qkv_bias * d_out) + d_out**2 + d_out  # Two projections are counted: W_query, W_key and W_value
        # are three.
    4 * (d_in * d_out + qkv_bias * d_out)  # out_proj is not a fourth projection: it has d_out · d_out weights, and
        # always a bias.
    weights_of(d_in, d_out) + d_out**2 + d_out  # With qkv_bias, W_query, W_key and W_value have d_out biases each.
    weights_of(d_in, d_out, 3 * d_out) + d_out**2 + d_out  # W_query, W_key and W_value have biases only with qkv_bias.
    weights_of(d_in, d_out, 3 * (not qkv_bias) * d_out) + d_out**2 + d_out  # qkv_bias is the wrong way around.
    weights_of(d_in, d_out, qkv_bias * d_out) + d_out**2 + d_out  # W_query, W_key and W_value have a bias each: three.
    weights_of(d_in, d_out, 3 * qkv_bias) + d_out**2 + d_out  # A bias has d_out numbers, not one.
    weights_of(d_in, d_out, 3 * qkv_bias * d_out) + d_out**2 + 1
    weights_of(d_in, d_out, 3 * qkv_bias * d_in) + d_out**2 + d_out  # A bias has d_out numbers, not d_in.
    weights_of(d_in, d_out, 3 * qkv_bias * d_in) + d_out**2 + d_in
    weights_of(d_in, d_out, 3 * qkv_bias * d_out) + d_out**2 + d_in
    weights_of(d_in, d_out, 3 * qkv_bias * d_out) + d_in * d_out + d_out  # out_proj has d_out · d_out weights: d_in
        # plays no part.
    weights_of(d_in, d_out, 3 * qkv_bias * d_out) + d_in * d_out + d_in  # out_proj has d_out · d_out weights and d_out
        # biases.
    weights_of(d_in, d_out, 3 * qkv_bias * d_out) + d_in**2 + d_in
    weights_of(d_in, d_out, 3 * qkv_bias * d_out) + (d_out // num_heads) ** 2 + d_out  # out_proj mixes all heads.
    parameter_count(d_out, d_out, num_heads, qkv_bias)  # W_query, W_key and W_value have d_in · d_out weights each.
    parameter_count(d_in, d_in, num_heads, qkv_bias)
    parameter_count(d_out, d_in, num_heads, qkv_bias)  # d_in and d_out are swapped.
    3 * (d_in + d_out) + 3 * qkv_bias * d_out + d_out**2 + d_out  # A matrix has d_in · d_out numbers, not d_in + d_out.
    parameter_count(d_in, d_out, num_heads, qkv_bias) if qkv_bias else 0  # `… if … else …` takes in more than the bias:
        # put parentheses around it.
    3 * d_in * d_out + (3 * d_out if qkv_bias else 0 + d_out**2 + d_out)
    3 * d_in * d_out + (d_out if qkv_bias else 0 + d_out**2 + d_out)
    3 * (d_in * d_out + d_out if qkv_bias else 0) + d_out**2 + d_out
    parameter_count(d_in, d_out, num_heads, qkv_bias) + num_heads  # num_heads is added: the number of heads does not
        # count.
    """,
    "Right: three projections and out_proj, however many heads.",
)


def heads_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    *,
    divisor: float | None = None,
    weigh: Callable | None = None,
    split: Callable = split_heads,
) -> Tensor:
    """What each head returns, (batch, num_heads, tokens, head_dim); ``weigh`` turns scaled scores into weights."""
    query, key, value = (split(x, num_heads) for x in (query, key, value))
    scores = query @ key.mT / (query.shape[-1] ** 0.5 if divisor is None else divisor)
    return (weigh or hidden)(scores) @ value


def joined(*arguments: Any, **options: Any) -> Tensor:
    return join_heads(heads_of(*arguments, **options))


def later(scores: Tensor, diagonal: int = 1) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool).triu(diagonal)


def hidden(scores: Tensor, hide: Tensor | None = None, dim: int = -1, fill: float = -torch.inf) -> Tensor:
    return scores.masked_fill(later(scores) if hide is None else hide, fill).softmax(dim)


def _multi_head_cases() -> list[tuple]:
    # as many tokens as heads first: there a mask fits even if the axes were not swapped
    sizes = (((2, 3, 12), 3), ((2, 5, 12), 3), ((3, 7, 10), 2), ((2, 4, 5), 1), ((1, 1, 6), 2), ((1, 130, 4), 2))
    cases = [(*draw(11 + sum(shape), *[shape] * 3, scale=2.0), heads) for shape, heads in sizes]
    query, key, value = draw(10, *[(2, 6, 4)] * 3)
    rising = torch.tensor([-900.0, -400.0, 0.0, 400.0, 900.0, 1200.0])[:, None]  # what is visible underflows
    cases.append((torch.ones_like(query), key + rising, value, 2))
    cases.append((query * (rising > 0), key, value, 2))  # scores that are exactly 0
    return [*cases, (*(x.double() for x in draw(9, *[(2, 4, 6)] * 3)), 3)]


check_multi_head = Exercise(
    "Check ``answer(query, key, value, num_heads)``: causal, from (batch, tokens, d_out) to the same shape.",
    multi_head,
    _multi_head_cases(),
    """
    joined(query, key, value, num_heads, divisor=query.shape[-1] ** 0.5)  # This is √d_out: use √head_dim.
    joined(query, key, value, num_heads, divisor=1.0)  # The scale is missing: divide the scores by √head_dim.
    joined(query, key, value, num_heads, divisor=query.shape[-1] / num_heads)  # This is head_dim: take its root.
    joined(query, key, value, num_heads, divisor=(query.shape[-1] / num_heads) ** -0.5)  # Divide by √head_dim.
    joined(query, key, value, num_heads, divisor=num_heads**0.5)  # This is √num_heads: use √head_dim.
    joined(query, key, value, num_heads, divisor=query.shape[1] ** 0.5)  # This is √tokens: use √head_dim.
    joined(query, key, value, num_heads, divisor=1.0) / (query.shape[-1] / num_heads) ** 0.5  # Divide the scores.
    joined(query, key, value, num_heads, weigh=lambda s: s.softmax(-1))  # The future is not hidden.
    joined(query, key, value, num_heads, weigh=lambda s: hidden(s, later(s).mT))  # The mask hides the past instead of
        # the future.
    joined(query, key, value, num_heads, weigh=lambda s: hidden(s, later(s, 0)))  # The diagonal is hidden too:
        # triu(diagonal=1).
    joined(query, key, value, num_heads, weigh=lambda s: hidden(s, ~later(s)))  # masked_fill hides where its mask is
        # True.
    joined(query, key, value, num_heads, weigh=lambda s: hidden(s, later(s, 2)))  # One later token is visible:
        # triu(diagonal=1).
    joined(query, key, value, num_heads, weigh=lambda s: hidden(s, fill=-30.0))  # Real scores may be lower: use −inf.
    joined(query, key, value, num_heads, weigh=lambda s: hidden(s, fill=-100.0))
    joined(query, key, value, num_heads, weigh=lambda s: (s - 100.0 * later(s)).softmax(-1))
    joined(query, key, value, num_heads, weigh=lambda s: s.tril().softmax(-1))  # Hidden scores are 0, and exp(0) is 1:
        # use −inf.
    joined(query, key, value, num_heads, weigh=lambda s: hidden(s, s.tril() == 0))  # A real score may be 0 too: use
        # positions.
    joined(query, key, value, num_heads, weigh=lambda s: s.softmax(-1).tril())  # Rows do not sum to one: hide the
        # scores.
    joined(query, key, value, num_heads, weigh=lambda s: F.normalize(s.softmax(-1).tril(), p=1, dim=-1, eps=0))  # What
        # a query sees may underflow: hide the scores, before the softmax.
    joined(query, key, value, num_heads, weigh=lambda s: hidden(s, dim=-2))  # The softmax runs over the queries: use
        # dim=-1.
    joined(query, key, value, num_heads, weigh=lambda s: hidden(s, dim=1))  # The softmax runs over the heads: use
        # dim=-1.
    joined(query, key, value, num_heads, weigh=torch.tril)  # The softmax is missing.
    joined(query, key, value, num_heads, weigh=lambda s: hidden(s).softmax(-1))  # There is a second softmax: leave it
        # out.
    joined(query, key, value, num_heads, weigh=lambda s: hidden(s).mT)  # The weights are transposed: weights @ value.
    multi_head(key, query, value, num_heads)  # Query and key are swapped: query @ key.mT.
    multi_head(query, value, key, num_heads)  # Key and value are swapped.
    multi_head(value, key, query, num_heads)  # Query and value are swapped.
    multi_head(query, key, key, num_heads)  # The keys are averaged: weights @ value.
    multi_head(query, key, query, num_heads)  # The queries are averaged: weights @ value.
    multi_head(query, query, value, num_heads)  # Queries are compared with queries: query @ key.mT.
    multi_head(key, key, value, num_heads)  # Keys are compared with keys: query @ key.mT.
    hidden(split_heads(query, num_heads) @ split_heads(key, num_heads).mT / (query.shape[-1] / num_heads) ** 0.5)  #
        # These are the weights: average the values.
    joined(query, key, value, num_heads, split=alternate)  # The columns of the heads alternate in the split.
    heads_of(query, key, value, num_heads).permute(0, 2, 3, 1).flatten(-2)  # Columns alternate in the join:
        # transpose(1, 2).
    heads_of(query, key, value, num_heads).mean(1)  # The heads are averaged: put them side by side.
    heads_of(query, key, value, num_heads).sum(1)  # The heads are added: put them side by side.
    heads_of(query, key, value, num_heads)[:, 0]  # This is the first head only: join all of them.
    heads_of(query, key, value, num_heads).flatten(1, 2)  # The heads are below each other, not side by side.
    heads_of(query, key, value, num_heads).transpose(1, 2)  # Heads and head_dim are still two axes: flatten the last
        # two.
    heads_of(query, key, value, num_heads)  # The heads are not joined yet: (batch, tokens, d_out).
    heads_of(query, key, value, num_heads).reshape(query.shape)  # The join lacks its transpose, so tokens are mixed.
    multi_head(query, key, value, 1)  # There is one head only: split query, key and value first.
    joined(query, key, value, num_heads, split=uncrossed)  # Heads look at heads: transpose(1, 2) after the view.
    heads_of(query, key, value, num_heads, split=uncrossed).flatten(-2)  # Heads look at heads: transpose(1, 2) after
        # the view, and back at the end.
    joined(query, key, value, num_heads, split=straight)  # A straight view mixes the tokens: view, then transpose.
    heads_of(query, key, value, num_heads, split=straight).reshape(query.shape)  # Straight views mix the tokens:
        # transpose after the split, and before the join.
    """,
    "Right: split, scale by √head_dim, hide, average, join.",
    forbidden=("scaled_dot_product_attention", "multi_head_attention_forward"),
)
