"""Checks for notebook 04: the size of a head, cutting and joining heads, counting parameters, the whole computation."""

from collections.abc import Callable

import torch
from torch import Tensor

from attnlib.attend import attend
from attnlib.checks._judge import Verdict, differs, judge
from attnlib.multi_head import MultiHeadAttention, MultiHeadAttentionWrapper, join_heads, split_heads


def check_two_columns(answer: Callable[[Tensor], Tensor]) -> Verdict:
    """Check ``answer(x)``: seed 5, then a two-headed wrapper without dropout whose output (batch, tokens, 2)."""
    generator = torch.Generator().manual_seed(3)
    cases = [(torch.rand(*shape, generator=generator),) for shape in ((2, 6, 3), (3, 5, 4))]
    mistakes = {
        "The output has num_heads · d_out columns: with two heads of d_out=2 that is four.": lambda x: _wrapped(
            x, d_out=2
        ),
        "This is one head with two columns; the exercise wants two heads with one column each.": lambda x: _wrapped(
            x, d_out=2, num_heads=1
        ),
        "Dropout is on: the wrapper's default is 0.1. Give dropout=0.0.": lambda x: _wrapped(x, dropout=0.1),
        "One head with one column: the wrapper needs num_heads=2.": lambda x: _wrapped(x, num_heads=1),
        "Both columns come from one head, or from two with the same weights: set the seed once, and make one wrapper "
        "with num_heads=2.": lambda x: _wrapped(x, num_heads=1).repeat(1, 1, 2),
        "The Linears have a bias: leave qkv_bias out.": lambda x: _wrapped(x, qkv_bias=True),
        "MultiHeadAttention has an out_proj besides: take MultiHeadAttentionWrapper.": _split_layer,
    }
    with torch.random.fork_rng(devices=[]):
        verdict = judge(
            answer,
            _wrapped,
            cases,
            mistakes=mistakes,
            success="Right: two heads with one column each make two columns.",
        )
        if verdict.status == "failed" and differs(answer, cases[0], (*cases[0][0].shape[:2], 2)):
            return Verdict(
                "failed",
                "Two calls give different numbers: call torch.manual_seed(5) right before you make the wrapper.",
            )
    return verdict


def check_split_heads(answer: Callable[[Tensor, int], Tensor]) -> Verdict:
    """Check ``answer(x, num_heads)``: (batch, tokens, d_out) to (batch, num_heads, tokens, head_dim)."""
    generator = torch.Generator().manual_seed(5)
    sizes = (((2, 5, 12), 3), ((3, 7, 10), 2), ((2, 3, 5), 1), ((1, 4, 6), 6))
    cases = [(torch.randn(*shape, generator=generator), heads) for shape, heads in sizes]
    mistakes = {
        "A view straight to (batch, heads, tokens, head_dim) mixes the tokens: view to (batch, tokens, heads, "
        "head_dim), then transpose.": _straight,
        "The axes of tokens and heads have not changed places: transpose(1, 2) after the view.": lambda x, h: x.view(
            *x.shape[:2], h, -1
        ),
        "Neighbouring columns belong to one head: view the columns as (heads, head_dim), not as (head_dim, "
        "heads).": lambda x, h: x.view(*x.shape[:2], -1, h).permute(0, 3, 1, 2),
        "The last two axes have changed places: transpose(1, 2), the tokens and the heads.": lambda x, h: x.view(
            *x.shape[:2], h, -1
        ).transpose(2, 3),
        "Each head is transposed: its shape is (tokens, head_dim).": lambda x, h: split_heads(x, h).mT,
        "The heads are a list of slices along the first axis: put them on axis 1.": lambda x, h: torch.stack(
            x.chunk(h, dim=-1)
        ),
        "The transpose comes before the cut, which mixes the tokens: view the columns as (heads, head_dim) "
        "first.": lambda x, h: x.mT.reshape(x.shape[0], h, x.shape[1], -1),
        "num_heads is how many heads there are, not how wide one is: the width is d_out // num_heads.": lambda x, h: (
            torch.stack(x.split(h, dim=-1), 1)
        ),
        "The columns are viewed as (head_dim, heads), and nothing changes places: view them as (heads, head_dim), "
        "then transpose(1, 2).": lambda x, h: x.view(*x.shape[:2], -1, h),
    }
    return judge(
        answer, split_heads, cases, mistakes=mistakes, success="Right: each head keeps all tokens and its own columns."
    )


def check_join_heads(answer: Callable[[Tensor], Tensor]) -> Verdict:
    """Check ``answer(heads)``: (batch, num_heads, tokens, head_dim) to (batch, tokens, num_heads · head_dim)."""
    generator = torch.Generator().manual_seed(7)
    cases = [(torch.randn(*shape, generator=generator),) for shape in ((2, 3, 5, 4), (3, 2, 7, 5), (2, 1, 3, 6))]
    mistakes = {
        "A reshape without the transpose mixes the tokens: bring the tokens before the heads first.": lambda x: (
            x.reshape(x.shape[0], x.shape[2], -1)
        ),
        "The heads are averaged: put them side by side.": lambda x: x.mean(1),
        "The heads are added: put them side by side.": lambda x: x.sum(1),
        "The columns of the heads alternate: keep each head's columns together.": lambda x: x.permute(
            0, 2, 3, 1
        ).flatten(-2),
        "The heads stand below each other: join them along the last axis.": lambda x: x.flatten(1, 2),
        "The heads and head_dim are still two axes: flatten the last two.": lambda x: x.transpose(1, 2),
        "The tokens and head_dim became one axis: bring the tokens before the heads first.": lambda x: x.flatten(-2),
        "The tokens and the heads became one axis: flatten the last two, flatten(-2).": lambda x: x.transpose(
            1, 2
        ).flatten(1, 2),
        "transpose(2, 3) turns each head over and leaves the heads where they are: transpose(1, 2).": lambda x: (
            x.mT.reshape(x.shape[0], x.shape[2], -1)
        ),
    }
    return judge(
        answer, join_heads, cases, mistakes=mistakes, success="Right: the heads stand side by side, token by token."
    )


def check_parameter_count(answer: Callable[[int, int, int, bool], int]) -> Verdict:
    """Check ``answer(d_in, d_out, num_heads, qkv_bias)``: the number of parameters of ``MultiHeadAttention``."""
    cases = [(11, 10, 5, True), (7, 4, 2, False), (768, 768, 12, True), (3, 2, 1, False)]
    mistakes = {
        "The heads share the matrices: the number of heads does not count.": lambda i, o, h, b: h * _count(i, o, h, b),
        "out_proj is missing: d_out · d_out weights and a bias.": lambda i, o, h, b: 3 * (i * o + b * o),
        "out_proj has a bias whatever qkv_bias says: d_out more.": lambda i, o, h, b: _count(i, o, h, b) - o,
        "No bias is counted: out_proj has one of d_out numbers, and the three others have one each with "
        "qkv_bias.": lambda i, o, h, b: 3 * i * o + o * o,
        "W_query, W_key and W_value are three matrices.": lambda i, o, h, b: i * o + b * o + o * o + o,
        "With qkv_bias, W_query, W_key and W_value have d_out biases each.": lambda i, o, h, b: _count(i, o, h, False),
        "The biases of W_query, W_key and W_value count only with qkv_bias.": lambda i, o, h, b: _count(i, o, h, True),
        "out_proj takes what the heads give, d_out numbers, not d_in.": lambda i, o, h, b: (
            3 * (i * o + b * o) + i * o + o
        ),
        "A bias has one number for each column that comes out, d_out, not d_in.": lambda i, o, h, b: (
            3 * (i * o + b * i) + o * o + o
        ),
        "W_query, W_key and W_value have d_in · d_out weights each, not d_out · d_out.": lambda i, o, h, b: _count(
            o, o, h, b
        ),
        "out_proj has d_out · d_out weights and d_out biases: d_in plays no part.": lambda i, o, h, b: (
            3 * (i * o + b * o) + i * i + i
        ),
        "The bias of out_proj has d_out numbers, not d_in.": lambda i, o, h, b: _count(i, o, h, b) - o + i,
        "Each of W_query, W_key and W_value has its own bias: three times d_out.": lambda i, o, h, b: (
            _count(i, o, h, b) - 2 * b * o
        ),
        "A bias is one number for each column, d_out in all.": lambda i, o, h, b: _count(i, o, h, b) + b * (3 - 3 * o),
        "There are three projections: query, key and value.": lambda i, o, h, b: _count(i, o, h, b) - i * o - b * o,
        "d_out is the width of all heads together: W_query is there once, not once for each head.": lambda i, o, h, b: (
            3 * h * (i * o + b * o) + o * o + o
        ),
        "This counts the heads of the wrapper, d_out columns each: here they share d_out columns, and out_proj "
        "follows.": lambda i, o, h, b: 3 * h * (i * o + b * o),
        "This is one head of d_out / num_heads columns, and out_proj: count all heads.": lambda i, o, h, b: (
            3 * (i + b) * (o // h) + o * o + o
        ),
        "`… if qkv_bias else 0` takes the whole sum: put parentheses round it.": lambda i, o, h, b: (
            _count(i, o, h, b) if b else 0
        ),
    }
    return judge(
        answer, _count, cases, mistakes=mistakes, success="Right: three projections and out_proj, however many heads."
    )


def check_multi_head(answer: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> Verdict:
    """Check ``answer(query, key, value, num_heads)``: causal, from (batch, tokens, d_out) to the same shape."""
    generator = torch.Generator().manual_seed(11)
    # as many tokens as heads first: there a mask fits even where the axes have not changed places
    sizes = (((2, 3, 12), 3), ((2, 5, 12), 3), ((3, 7, 10), 2), ((2, 4, 5), 1))
    cases = [(*(2 * torch.randn(*shape, generator=generator) for _ in range(3)), heads) for shape, heads in sizes]

    mistakes = {
        "The scores are divided by √d_out: each head multiplies head_dim columns, so √head_dim.": _scaled(
            lambda q, h: q.shape[-1] ** -0.5
        ),
        "The scores are not scaled: divide them by √head_dim.": _scaled(lambda q, h: 1.0),
        "The scores are divided by head_dim: take its root.": _scaled(lambda q, h: h / q.shape[-1]),
        "The scores are multiplied by √head_dim: divide them by it.": _scaled(lambda q, h: (q.shape[-1] / h) ** 0.5),
        "The scores are divided by √num_heads: take √head_dim, the columns of one head.": _scaled(lambda q, h: h**-0.5),
        "The scores are divided by √tokens: take √head_dim.": _scaled(lambda q, h: q.shape[1] ** -0.5),
        "The root comes after the softmax: divide the scores, before it.": lambda q, k, v, h: (
            _scaled(lambda q, h: 1.0)(q, k, v, h) * (h / q.shape[-1]) ** 0.5
        ),
        "The future is not hidden.": lambda q, k, v, h: join_heads(_heads(q, k, v, h, is_causal=False)),
        "The mask is the wrong way round: it hides the past.": _weighed(lambda s: _hidden(s, _ones(s).tril(-1))),
        "The diagonal is hidden as well, and the first query sees nothing (NaN): give triu diagonal=1.": _weighed(
            lambda s: _hidden(s, _ones(s).triu(0))
        ),
        "The mask is the wrong way round, and the last query sees nothing (NaN): masked_fill hides where its mask is "
        "True, so give it triu(diagonal=1).": _weighed(lambda s: _hidden(s, _ones(s).tril())),
        "One later token is still seen: give triu diagonal=1, not 2.": _weighed(lambda s: _hidden(s, _ones(s).triu(2))),
        "The rows do not sum to one: a mask after the softmax needs each row divided by its sum; or hide with −∞ "
        "before it.": _weighed(lambda s: s.softmax(-1).tril()),
        "The hidden scores are set to 0, and exp(0) is 1: set them to −inf.": _weighed(lambda s: s.tril().softmax(-1)),
        "The softmax runs over the queries: use dim=-1.": _weighed(lambda s: _hidden(s, dim=-2)),
        "The softmax runs over the heads (NaN where all of them hide a key): use dim=-1.": _weighed(
            lambda s: _hidden(s, dim=1)
        ),
        "The softmax is missing.": _weighed(torch.tril),
        "There is one softmax too many, the second.": _weighed(lambda s: _hidden(s).softmax(-1)),
        "The weights are transposed: weights @ value, a row for each query.": _weighed(lambda s: _hidden(s).mT),
        "Query and key have changed places: a row of scores belongs to a query, query @ key.mT.": lambda q, k, v, h: (
            join_heads(_heads(k, q, v, h))
        ),
        "Key and value have changed places.": lambda q, k, v, h: join_heads(_heads(q, v, k, h)),
        "The keys are averaged: weights @ value.": lambda q, k, v, h: join_heads(_heads(q, k, k, h)),
        "These are the weights: average the values with them, weights @ value.": lambda q, k, v, h: _hidden(
            split_heads(q, h) @ split_heads(k, h).mT / (q.shape[-1] / h) ** 0.5
        ),
        "The columns of the heads alternate in the split: view them as (heads, head_dim).": lambda *x: join_heads(
            _heads(*x, split=_alternate)
        ),
        "The columns of the heads alternate in the join: transpose(1, 2), then flatten(-2).": lambda *x: (
            _heads(*x).permute(0, 2, 3, 1).flatten(-2)
        ),
        "The heads are averaged: put them side by side.": lambda *x: _heads(*x).mean(1),
        "The heads are added: put them side by side.": lambda *x: _heads(*x).sum(1),
        "The heads stand below each other: join them along the last axis.": lambda *x: _heads(*x).flatten(1, 2),
        "The tokens stand before the heads, which are two axes still: flatten the last two.": lambda *x: _heads(
            *x
        ).transpose(1, 2),
        "There is one head only: split query, key and value first.": lambda q, k, v, h: join_heads(_heads(q, k, v, 1)),
        "The tokens and the heads have not changed places, so each head looks at heads: transpose(1, 2) after the "
        "view.": lambda q, k, v, h: join_heads(_heads(q, k, v, h, split=_uncrossed)),
        "The tokens and the heads never change places, so heads look at heads: transpose(1, 2) after the view and back "
        "at the end.": lambda q, k, v, h: _heads(q, k, v, h, split=_uncrossed).flatten(-2),
        "A view straight to (batch, heads, tokens, head_dim) mixes the tokens: view, then "
        "transpose.": lambda q, k, v, h: join_heads(_heads(q, k, v, h, split=_straight)),
        "Split and join are straight, which mixes the tokens: transpose in both.": lambda q, k, v, h: _heads(
            q, k, v, h, split=_straight
        ).reshape(q.shape),
        "The heads are joined without the transpose, which mixes the tokens.": lambda q, k, v, h: _heads(
            q, k, v, h
        ).reshape(q.shape),
        "The heads are still apart: join them to (batch, tokens, d_out).": _heads,
    }
    return judge(
        answer,
        lambda *inputs: join_heads(_heads(*inputs)),
        cases,
        mistakes=mistakes,
        success="Right: split, scale by √head_dim, hide, average, join.",
    )


def _wrapped(x: Tensor, d_out: int = 1, num_heads: int = 2, dropout: float = 0.0, qkv_bias: bool = False) -> Tensor:
    torch.manual_seed(5)
    return MultiHeadAttentionWrapper(x.shape[-1], d_out, x.shape[-2], num_heads, dropout, qkv_bias)(x)


def _split_layer(x: Tensor) -> Tensor:
    torch.manual_seed(5)
    return MultiHeadAttention(x.shape[-1], 2, x.shape[-2], 0.0, num_heads=2)(x)


def _count(d_in: int, d_out: int, num_heads: int, qkv_bias: bool) -> int:
    return 3 * (d_in * d_out + qkv_bias * d_out) + d_out * d_out + d_out


def _straight(x: Tensor, num_heads: int) -> Tensor:
    return x.view(x.shape[0], num_heads, x.shape[1], -1)  # the mistake


def _uncrossed(x: Tensor, num_heads: int) -> Tensor:
    return x.view(*x.shape[:2], num_heads, -1)  # (batch, tokens, num_heads, head_dim): the mistake


def _alternate(x: Tensor, num_heads: int) -> Tensor:
    return x.view(*x.shape[:2], -1, num_heads).permute(0, 3, 1, 2)  # head 0 gets every num_heads-th column: the mistake


def _ones(scores: Tensor) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool)


def _hidden(scores: Tensor, hide: Tensor | None = None, dim: int = -1) -> Tensor:
    return scores.masked_fill(_ones(scores).triu(1) if hide is None else hide, -torch.inf).softmax(dim)


def _weighed(weigh: Callable) -> Callable:
    """An answer, NaN included, that makes its weights of the scaled scores by ``weigh``."""

    def answer(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
        query, key, value = (split_heads(x, num_heads) for x in (query, key, value))
        return join_heads(weigh(query @ key.mT / query.shape[-1] ** 0.5) @ value)

    return answer


def _scaled(scale: Callable) -> Callable:
    """An answer that multiplies its scores by ``scale(query, num_heads)``."""
    return lambda q, k, v, h: join_heads(_heads(q, k, v, h, scale=scale(q, h)))


def _heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    *,
    split: Callable = split_heads,
    is_causal: bool = True,
    scale: float | None = None,
) -> Tensor:
    """What each head gives, (batch, num_heads, tokens, head_dim)."""
    query, key, value = (split(x, num_heads) for x in (query, key, value))
    return attend(query, key, value, is_causal=is_causal, scale=scale).output
