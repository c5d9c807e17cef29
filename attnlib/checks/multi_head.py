"""Checks for notebook 04: the size of a head, cutting and joining heads, counting parameters, the whole computation."""

from collections.abc import Callable

import torch
from torch import Tensor

from attnlib.attend import attend
from attnlib.checks._judge import Verdict, judge
from attnlib.masks import causal_mask
from attnlib.multi_head import MultiHeadAttentionWrapper, join_heads, split_heads


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
    }
    with torch.random.fork_rng(devices=[]):
        verdict = judge(
            answer,
            _wrapped,
            cases,
            mistakes=mistakes,
            success="Right: two heads with one column each make two columns.",
        )
        if verdict.status == "failed" and _differs(answer, cases[0][0]):
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
    }
    return judge(
        answer, join_heads, cases, mistakes=mistakes, success="Right: the heads stand side by side, token by token."
    )


def check_parameter_count(answer: Callable[[int, int, int, bool], int]) -> Verdict:
    """Check ``answer(d_in, d_out, num_heads, qkv_bias)``: the number of parameters of ``MultiHeadAttention``."""
    cases = [(11, 6, 3, True), (7, 4, 2, False), (768, 768, 12, True), (3, 2, 1, False)]
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
        "The scores are divided by √d_out: each head multiplies head_dim columns, so √head_dim.": lambda q, k, v, h: (
            join_heads(_heads(q, k, v, h, scale=q.shape[-1] ** -0.5))
        ),
        "The scores are not scaled: divide them by √head_dim.": lambda q, k, v, h: join_heads(
            _heads(q, k, v, h, scale=1.0)
        ),
        "The scores are divided by head_dim: take its root.": lambda q, k, v, h: join_heads(
            _heads(q, k, v, h, scale=h / q.shape[-1])
        ),
        "The future is not hidden.": lambda q, k, v, h: join_heads(_heads(q, k, v, h, is_causal=False)),
        "The mask is the wrong way round: it hides the past.": lambda q, k, v, h: join_heads(
            _heads(q, k, v, h, causal_mask(q.shape[1]).mT, is_causal=False)
        ),
        "The diagonal is hidden as well, and the first query sees nothing (NaN): give triu "
        "diagonal=1.": lambda q, k, v, h: join_heads(_plain(q, k, v, h, hide=0)),
        "The mask is the wrong way round, and the last query sees nothing (NaN): masked_fill hides where its mask is "
        "True, so give it triu(diagonal=1).": lambda q, k, v, h: join_heads(_plain(q, k, v, h, hide=None)),
        "The rows do not sum to one: a mask after the softmax needs each row divided by its sum; or hide with −∞ "
        "before it.": lambda q, k, v, h: join_heads(_plain(q, k, v, h, late=True)),
        "The softmax runs over the queries: use dim=-1.": lambda q, k, v, h: join_heads(_plain(q, k, v, h, dim=-2)),
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


def _wrapped(x: Tensor, d_out: int = 1, num_heads: int = 2, dropout: float = 0.0) -> Tensor:
    torch.manual_seed(5)
    return MultiHeadAttentionWrapper(x.shape[-1], d_out, x.shape[-2], num_heads, dropout)(x)


def _count(d_in: int, d_out: int, num_heads: int, qkv_bias: bool) -> int:
    return 3 * (d_in * d_out + qkv_bias * d_out) + d_out * d_out + d_out


def _differs(answer: Callable, x: Tensor) -> bool:
    """Whether two calls give two results, each of the right shape."""
    try:
        one, other = (torch.as_tensor(answer(x.clone())) for _ in range(2))
    except Exception:  # the verdict tells what it raised
        return False
    return one.shape == other.shape == (*x.shape[:2], 2) and not torch.equal(one, other)


def _straight(x: Tensor, num_heads: int) -> Tensor:
    return x.view(x.shape[0], num_heads, x.shape[1], -1)  # the mistake


def _uncrossed(x: Tensor, num_heads: int) -> Tensor:
    return x.view(*x.shape[:2], num_heads, -1)  # (batch, tokens, num_heads, head_dim): the mistake


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    *,
    hide: int | None = 1,
    late: bool = False,
    dim: int = -1,
) -> Tensor:
    """What each head gives, NaN included: hides from diagonal ``hide`` on (None: what it should see), or late."""
    query, key, value = (split_heads(x, num_heads) for x in (query, key, value))
    scores = query @ key.mT / query.shape[-1] ** 0.5  # (batch, num_heads, tokens, tokens)
    if late:
        return scores.softmax(dim).tril() @ value
    future = torch.ones_like(scores, dtype=torch.bool).triu(1 if hide is None else hide)
    return scores.masked_fill(~future if hide is None else future, -torch.inf).softmax(dim) @ value


def _heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    mask: Tensor | None = None,
    *,
    split: Callable = split_heads,
    is_causal: bool = True,
    scale: float | None = None,
) -> Tensor:
    """What each head gives, (batch, num_heads, tokens, head_dim)."""
    query, key, value = (split(x, num_heads) for x in (query, key, value))
    return attend(query, key, value, mask, is_causal=is_causal, scale=scale).output
