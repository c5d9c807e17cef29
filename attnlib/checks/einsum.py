"""Checks of notebook 05: equations for loops and for matrix products, and attention written with einsum."""

import itertools
from collections.abc import Callable, Sequence
from functools import wraps

import torch
from torch import Tensor

from attnlib.checks._judge import Verdict, judge
from attnlib.einsum import explain_einsum


def check_loops_equation(answer: Callable) -> Verdict:
    """Judge ``answer()``: the equation of loops that add up ``A[head, query, key]`` over the queries.

    The output is (head, key). The equation is judged by its result on random inputs, not by its text.
    """
    return _judge_equation(answer, [("head", "query", "key")], ("head", "key"), [((2, 3, 5),), ((7, 5, 2),)])


def check_matmul_equation(answer: Callable) -> Verdict:
    """Judge ``answer()``: the equation of ``sum(A[n].T @ B[n] for n in range(batch))``.

    A is (batch, token, row) and B (batch, token, column). Judged by its result on random inputs, not by its text.
    """
    names = [("batch", "token", "row"), ("batch", "token", "column")]
    return _judge_equation(answer, names, ("row", "column"), [((2, 3, 5), (2, 3, 7)), ((3, 2, 7), (3, 2, 5))])


def check_head_output(answer: Callable) -> Verdict:
    """Judge ``answer(pattern, value)``: each head's weighted average of the values, the heads joined side by side.

    pattern is (batch, heads, seq_q, seq_k), value (batch, seq_k, heads, d); the result (batch, seq_q, heads * d).
    """
    return judge(
        answer,
        lambda pattern, value: torch.einsum("bhqk,bkhd->bqhd", pattern, value).flatten(2),
        _attention_cases(51),
        mistakes={
            "The heads are not joined yet: rearrange (heads d) into one axis.": lambda p, v: torch.einsum(
                "bhqk,bkhd->bqhd", p, v
            ),
            "The heads are not joined, and stand before the tokens: end with batch seq_q (heads d).": (
                lambda p, v: torch.einsum("bhqk,bkhd->bhqd", p, v)
            ),
            "The heads are joined in the order (d heads): head 0 must fill the first d columns, so (heads d).": (
                lambda p, v: torch.einsum("bhqk,bkhd->bqdh", p, v).flatten(2)
            ),
            "The axes were merged without being moved: bring seq_q before heads first; rearrange does both at once.": (
                lambda p, v: torch.einsum("bhqk,bkhd->bhqd", p, v).reshape(p.shape[0], p.shape[2], -1)
            ),
            "The sum runs over the queries: seq_k is the axis that pattern and value share, and that goes.": (
                lambda p, v: torch.einsum("bhqk,bqhd->bkhd", p, v).flatten(2)
            ),
            "Each value is multiplied by the sum of a row, because seq_k has two names: give it the same name in "
            "pattern and value.": lambda p, v: torch.einsum("bhqk,blhd->bqhd", p, v).flatten(2),
            "The heads have two names, so every head's weights meet every head's values: use one name.": (
                lambda p, v: torch.einsum("bhqk,bkgd->bqgd", p, v).flatten(2)
            ),
            "The heads have two names, so the values of all heads are added up: use one name.": (
                lambda p, v: torch.einsum("bhqk,bkgd->bqhd", p, v).flatten(2)
            ),
            "The heads are added up: heads must stand behind the arrow too.": (
                lambda p, v: torch.einsum("bhqk,bkhd->bqd", p, v)
            ),
            "The pattern has its softmax already: a second one makes the weights more equal.": (
                lambda p, v: torch.einsum("bhqk,bkhd->bqhd", p.softmax(-1), v).flatten(2)
            ),
        },
        success="Right: seq_k is summed, heads and d share the last axis.",
    )


def check_einsum_attention(answer: Callable) -> Verdict:
    """Judge ``answer(x, W_query, W_key, W_value)``: full attention with a weight (heads, d_model, d) for each role.

    x is (batch, tokens, d_model); the result is (batch, tokens, heads, d).
    """
    draw = torch.Generator().manual_seed(52)
    cases = []
    for batch, tokens, model, heads, d in ((2, 3, 3, 3, 3), (2, 5, 7, 3, 4), (3, 2, 5, 4, 6)):
        weights = (torch.randn(heads, model, d, generator=draw) for _ in range(3))
        cases.append((torch.randn(batch, tokens, model, generator=draw), *weights))
    return judge(
        answer,
        _attention,
        cases,
        mistakes=_scale_mistakes() | _softmax_mistakes() | _name_mistakes() | _end_mistakes(),
        success="Right: projections, scores, pattern and output, each in one line.",
    )


def _scale_mistakes() -> dict[str, Callable]:
    return {
        "The scale is missing: divide the scores by √d before softmax.": lambda x, q, k, v: _attention(
            x, q * q.shape[-1] ** 0.5, k, v
        ),
        "The scale is √d_model: d, the length of one head's query, is what counts.": lambda x, q, k, v: _attention(
            x, q * (q.shape[-1] / q.shape[-2]) ** 0.5, k, v
        ),
        "The scores are divided by d itself: take its square root.": lambda x, q, k, v: _attention(
            x, q / q.shape[-1] ** 0.5, k, v
        ),
        "The scores are multiplied by √d: divide by it.": lambda x, q, k, v: _attention(x, q * q.shape[-1], k, v),
        "The scale comes after softmax, so rows sum to 1/√d: scale the scores.": lambda x, q, k, v: (
            _attention(x, q * q.shape[-1] ** 0.5, k, v) / q.shape[-1] ** 0.5
        ),
    }


def _softmax_mistakes() -> dict[str, Callable]:
    return {
        "Softmax runs over the queries: the last axis of the scores must be the keys, dim=-1.": (
            lambda x, q, k, v: _attention(x, q, k, v, dim=-2)
        ),
        "Softmax runs over the heads: the last axis of the scores must be the keys, dim=-1.": (
            lambda x, q, k, v: _attention(x, q, k, v, dim=1)
        ),
        "Softmax is missing: raw scores are no weights.": lambda x, q, k, v: _average(_scores(x, q, k), x, v),
        "Softmax is taken of the output: it ends before the values, at the scores.": (
            lambda x, q, k, v: _average(_scores(x, q, k), x, v).softmax(-1)
        ),
        "The future is hidden: full attention has no mask.": lambda x, q, k, v: _average(
            _without_future(_scores(x, q, k)).softmax(-1), x, v
        ),
    }


def _name_mistakes() -> dict[str, Callable]:
    return {
        "Query and key have changed places.": lambda x, q, k, v: _attention(x, k, q, v),
        "Key and value have changed places.": lambda x, q, k, v: _attention(x, q, v, k),
        "The pattern averages the keys: it must average the values.": lambda x, q, k, v: _attention(x, q, k, k),
        "d has two names in the scores, so each is summed alone: use one name.": (
            lambda x, q, k, v: _attention(x, q, k, v, scores="bqhd,bkhe->bhqk")
        ),
        "The heads have two names in the scores, so queries meet the keys of all heads: use one name.": (
            lambda x, q, k, v: _attention(x, q, k, v, scores="bqhd,bkgd->bhqk")
        ),
        "The heads have two names in the output, so the values of all heads are added up: use one name.": (
            lambda x, q, k, v: _attention(x, q, k, v.sum(0, True).expand_as(v))
        ),
        "d_model has two names in the projections, so each is summed alone: use one name.": (
            lambda x, q, k, v: _attention(x.sum(-1, True), *(w.sum(1, True) for w in (q, k, v)))
        ),
        "A weight is read as (heads, d, d_model): its axes are (heads, d_model, d).": (
            lambda x, q, k, v: _attention(x, q.mT, k.mT, v.mT)
        ),
    }


def _end_mistakes() -> dict[str, Callable]:
    return {
        "The heads stand before the tokens: end with batch tokens heads d.": (
            lambda x, q, k, v: _attention(x, q, k, v).transpose(1, 2)
        ),
        "The heads are joined: here they keep an axis of their own.": (
            lambda x, q, k, v: _attention(x, q, k, v).flatten(2)
        ),
        "The heads are added up: heads must stand behind the arrow too.": (
            lambda x, q, k, v: _attention(x, q, k, v).sum(2)
        ),
        "These are the scores: scale, softmax and values are still to come.": lambda x, q, k, v: _scores(
            x, q * q.shape[-1] ** 0.5, k
        ),
        "This is the pattern: average the values with it.": lambda x, q, k, v: _scores(x, q, k).softmax(-1),
    }


def _judge_equation(
    answer: Callable, names: Sequence[tuple[str, ...]], output: tuple[str, ...], shapes: Sequence[tuple]
) -> Verdict:
    """Judge an equation by the numbers that it gives; a wrong output is named axis by axis."""
    if not callable(answer):
        return judge(answer, torch.einsum, [])

    @wraps(answer)
    def result(*operands: Tensor) -> Tensor | None:
        equation = answer()
        if equation is None or equation is Ellipsis:
            return None
        return explain_einsum(equation, *operands).run_loops()

    def einsum(axes: Sequence[str], inputs: Sequence[tuple[str, ...]] = names) -> Callable:
        return lambda *operands: explain_einsum(_written(inputs, axes), *operands).run_loops()

    draw = torch.Generator().manual_seed(50)
    cases = [tuple(torch.randn(shape, generator=draw) for shape in case) for case in shapes]
    every = list(dict.fromkeys(itertools.chain(*names)))
    others = (axes for count in range(len(every) + 1) for axes in itertools.permutations(every, count))
    mistakes = {_sentence(names, axes, output): einsum(axes) for axes in others if axes != output}
    shared = [name for name in every if all(name in axes for axes in names[:2])] if len(names) > 1 else []
    for split in (split for count in (1, 2) for split in itertools.combinations(shared, count)):
        sentence = " and ".join(f"`{name}`" for name in split) + " must have the same name in A and in B."
        second = tuple(f"other_{name}" if name in split else name for name in names[1])
        mistakes[f"{sentence} Under two names each is summed alone."] = einsum(output, [names[0], second])
    return judge(result, einsum(output), cases, mistakes=mistakes, success=f"Right: it means {_written(names, output)}")


def _written(names: Sequence[tuple[str, ...]], output: Sequence[str]) -> str:
    return f"{', '.join(' '.join(axes) for axes in names)} -> {' '.join(output)}".strip()


def _sentence(names: Sequence[tuple[str, ...]], axes: tuple[str, ...], output: tuple[str, ...]) -> str:
    kept = [f"`{axis}`" for axis in axes if axis not in output]
    lost = [f"`{axis}`" for axis in output if axis not in axes]
    if not kept and not lost:
        return f"The axes are right, their order is not: the output is ({', '.join(output)})."
    it = "it" if len(kept) == 1 else "they"
    faults = [f"{' and '.join(kept)} must be summed, so {it} must not stand behind the arrow"] * bool(kept)
    faults += [f"{' and '.join(lost)} must be kept: every name that is missing behind the arrow is summed"] * bool(lost)
    return f"In the words of the exercise you wrote `{_written(names, axes)}`. But {'; '.join(faults)}."


def _attention_cases(seed: int) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    cases = []
    for batch, heads, q_tokens, kv_tokens, d in ((2, 3, 3, 3, 3), (2, 3, 5, 7, 4), (3, 2, 4, 2, 5)):
        pattern = torch.randn(batch, heads, q_tokens, kv_tokens, generator=draw).softmax(-1)
        cases.append((pattern * 2, torch.randn(batch, kv_tokens, heads, d, generator=draw)))
    return cases


def _scores(x: Tensor, w_query: Tensor, w_key: Tensor, equation: str = "bqhd,bkhd->bhqk") -> Tensor:
    query, key = torch.einsum("btm,hmd->bthd", x, w_query), torch.einsum("btm,hmd->bthd", x, w_key)
    return torch.einsum(equation, query, key) / query.shape[-1] ** 0.5


def _without_future(scores: Tensor) -> Tensor:
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)


def _average(pattern: Tensor, x: Tensor, w_value: Tensor) -> Tensor:
    return torch.einsum("bhqk,bkhd->bqhd", pattern, torch.einsum("btm,hmd->bthd", x, w_value))


def _attention(
    x: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor, dim: int = -1, scores: str = "bqhd,bkhd->bhqk"
) -> Tensor:
    return _average(_scores(x, w_query, w_key, scores).softmax(dim), x, w_value)
