"""Exercises of notebook 05: equations for loops and for matrix products, and attention written with einsum."""

import itertools
from collections.abc import Callable, Sequence
from functools import wraps

import torch
from einops import einsum, rearrange
from torch import Tensor

from attnlib.checks.causal import causal_weights  # noqa: F401 (a table uses it)
from attnlib.checks.exercise import Exercise, draw
from attnlib.einsum import explain_einsum


def loops_equation() -> str:
    return "head query key -> head key"


def matmul_equation() -> str:
    return "batch token row, batch token column -> row column"


def head_output(pattern: Tensor, value: Tensor) -> Tensor:
    output = einsum(pattern, value, "batch heads q k, batch k heads d -> batch q heads d")
    return rearrange(output, "batch q heads d -> batch q (heads d)")


def einsum_attention(x: Tensor, W_query: Tensor, W_key: Tensor, W_value: Tensor) -> Tensor:
    project = "batch tokens d_model, heads d_model d -> batch tokens heads d"
    query, key, value = (einsum(x, weight, project) for weight in (W_query, W_key, W_value))
    scores = einsum(query, key, "batch q heads d, batch k heads d -> batch heads q k")
    pattern = (scores / query.shape[-1] ** 0.5).softmax(dim=-1)
    return einsum(pattern, value, "batch heads q k, batch k heads d -> batch q heads d")


def by_its_numbers(answer: Callable[[], str]) -> Callable:
    """What the learner's equation makes of the operands: equations are compared by their results, not by their text."""

    @wraps(answer)
    def run(*operands: Tensor) -> Tensor | None:
        equation = answer()
        if equation is None or equation is Ellipsis:
            return equation
        return explain_einsum(equation.strip() if isinstance(equation, str) else equation, *operands).run_loops()

    return run


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def wrong_equations(inputs: Sequence[Sequence[str]], output: Sequence[str]) -> dict[str, Callable]:
    """Every other output, and every way to call a shared axis by two names, with the sentence that names it."""

    def written(names: Sequence[Sequence[str]], axes: Sequence[str]) -> str:
        return f"{', '.join(' '.join(operand) for operand in names)} -> {' '.join(axes)}".strip()

    def sentence(axes: Sequence[str]) -> str:
        kept, lost = [a for a in axes if a not in output], [a for a in output if a not in axes]
        if not kept and not lost:
            return f"The axes are right, but their order is not: the output is ({', '.join(output)})."
        summed = f"{_quoted(kept)} must be summed, so leave {'it' if len(kept) == 1 else 'them'} out on the right"
        missing = f"{_quoted(lost)} must be kept: a name missing on the right is summed"
        faults = ", and ".join([summed] * bool(kept) + [missing] * bool(lost))
        return f"In the words of the exercise, you wrote `{written(inputs, axes)}`. But {faults}."

    every = list(dict.fromkeys(itertools.chain(*inputs)))
    others = (axes for count in range(len(every) + 1) for axes in itertools.permutations(every, count))
    equations = {sentence(axes): written(inputs, axes) for axes in others if axes != tuple(output)}
    shared = [name for name in inputs[0] if name in inputs[-1] and len(inputs) > 1]
    for split in (split for count in (1, 2) for split in itertools.combinations(shared, count)):
        second = [f"other_{name}" if name in split else name for name in inputs[-1]]
        for axes, also in ((output, ""), (output[::-1], f" The output is ({', '.join(output)}).")):
            words = f"{_quoted(split)} must have the same name in A and in B. Two names are summed separately.{also}"
            equations[words] = written([*inputs[:-1], second], axes)
    return {words: lambda equation=equation: equation for words, equation in equations.items()}


def out(pattern: Tensor, value: Tensor, equation: str = "bhqk,bkhd->bqhd") -> Tensor:
    return torch.einsum(equation, pattern, value)


def joined(pattern: Tensor, value: Tensor, equation: str = "bhqk,bkhd->bqhd") -> Tensor:
    """The output with heads joined, or what another equation makes of it."""
    return out(pattern, value, equation).flatten(2)


def project(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("btm,hmd->bthd", x, weight)


def attention(
    x: Tensor,
    W_query: Tensor,
    W_key: Tensor,
    W_value: Tensor,
    weigh: Callable[[Tensor], Tensor] = lambda scores: scores.softmax(-1),
    size: float | None = None,
    scores: str = "bqhd,bkhd->bhqk",
    output: str = "bhqk,bkhd->bqhd",
) -> Tensor:
    """Attention with one thing changed. The scores are divided by √size, by default √d."""
    query, key, value = (project(x, weight) for weight in (W_query, W_key, W_value))
    size = W_query.shape[-1] if size is None else size
    return torch.einsum(output, weigh(torch.einsum(scores, query, key) / size**0.5), value)


def one_name_too_few(answer: Callable) -> Callable:
    """The same function. If einsum finds a name twice in an output, the error says what it means here."""

    @wraps(answer)
    def run(*inputs: Tensor) -> Tensor:
        try:
            return answer(*inputs)
        except RuntimeError as error:
            if "more than once" in str(error) or "duplicate dimension" in str(error):
                error.args = ("tokens needs two names in the scores, one for the queries and one for the keys",)
            raise

    return run


check_loops_equation = Exercise(
    "Check ``answer()``: the equation of loops that add up ``A[head, query, key]`` over the queries. The output is "
    "(head, key). The equation is judged by its result, not by its text.",
    loops_equation,
    [*(draw(50 + i, sizes) for i, sizes in enumerate(((2, 3, 5), (7, 5, 2), (3, 3, 3), (1, 4, 2))))],
    wrong_equations([("head", "query", "key")], ("head", "key")),
    "Right: it means head query key -> head key.",
    adapt=by_its_numbers,
)


check_matmul_equation = Exercise(
    "Check ``answer()``: the equation of ``sum(A[n].T @ B[n] for n in range(batch))``. A is (batch, token, row) and B "
    "(batch, token, column). The equation is judged by its result, not by its text.",
    matmul_equation,
    [draw(60, (2, 3, 2), (2, 3, 2)), draw(61, (2, 3, 5), (2, 3, 7))],
    wrong_equations([("batch", "token", "row"), ("batch", "token", "column")], ("row", "column")),
    "Right: it means batch token row, batch token column -> row column.",
    adapt=by_its_numbers,
)


def _patterns() -> list[tuple[Tensor, ...]]:
    cases = []
    sizes = ((3, 3, 3, 3, 3), (2, 3, 5, 7, 4), (3, 2, 4, 2, 5), (2, 1, 3, 5, 2), (1, 4, 1, 1, 3), (2, 3, 4, 3, 1))
    for seed, (batch, heads, q_tokens, kv_tokens, d) in enumerate(sizes):
        scores, value = draw(51 + seed, (batch, heads, q_tokens, kv_tokens), (batch, kv_tokens, heads, d))
        cases.append((2 * scores.softmax(-1), value))  # rows sum to two, so a second division shows
    return [*cases, tuple(x.double() for x in cases[1])]


check_head_output = Exercise(
    "Check ``answer(pattern, value)``: each head's weighted average of the values, the heads joined side by side. "
    "pattern is (batch, heads, seq_q, seq_k), value (batch, seq_k, heads, d); the result (batch, seq_q, heads * d).",
    head_output,
    _patterns(),
    """
    out(pattern, value)  # The heads are not joined yet: rearrange to batch q (heads d).
    out(pattern, value, "bhqk,bkhd->bhqd")  # Heads come before tokens, and are not joined: batch q (heads d).
    rearrange(out(pattern, value), "b q h d -> b q (d h)")  # Head 0 fills the first d columns: (heads d).
    rearrange(out(pattern, value), "b q h d -> b (q h) d")  # Queries and heads are joined: join heads and d, (heads d).
    out(pattern, value, "bhqk,bkhd->bhqd").reshape(len(value), pattern.shape[2], -1)  # Move q before heads, then merge.
    joined(pattern, value, "bhkq,bkhd->bqhd")  # The sum runs over the queries: it must run over seq_k.
    joined(pattern, value, "bhqk,blhd->bqhd")  # seq_k needs one name: here each is summed separately.
    joined(pattern, value, "bhqk,bkgd->bqgd")  # heads needs one name: here the weights of all heads are summed.
    joined(pattern, value, "bhqk,bkgd->bqhd")  # heads needs one name: here the values of all heads are summed.
    joined(pattern, value, "bhqk,ckhd->bqhd")  # batch needs one name: here the values of all sentences are summed.
    out(pattern, value, "bhqk,bkhd->bqd")  # The heads are added up: they belong on the right of the arrow too.
    joined(pattern.softmax(-1), value)  # The pattern has its softmax already: a second one evens out the weights.
    joined(pattern, value) / pattern.shape[-1]  # The weights make this an average already: do not divide by the keys.
    joined(pattern, value) / value.shape[-1] ** 0.5  # The scale belongs to the scores, before the softmax.
    """,
    "Right: seq_k is summed, heads and d share the last axis.",
)


def _inputs() -> list[tuple[Tensor, ...]]:
    cases = []
    sizes = ((3, 3, 3, 3, 3), (2, 5, 7, 3, 4), (3, 2, 5, 4, 6), (2, 4, 3, 1, 2), (1, 1, 4, 2, 3))
    for seed, (batch, tokens, d_model, heads, d) in enumerate(sizes):
        cases.append(draw(55 + seed, (batch, tokens, d_model), *[(heads, d_model, d)] * 3))
    return [*cases, (30 * cases[1][0], *cases[1][1:]), tuple(x.double() for x in cases[1])]  # scores in the hundreds


check_einsum_attention = Exercise(
    "Check ``answer(x, W_query, W_key, W_value)``: full attention with a weight (heads, d_model, d) for each role. "
    "x is (batch, tokens, d_model); the result is (batch, tokens, heads, d).",
    einsum_attention,
    _inputs(),
    """
    attention(x, W_query, W_key, W_value, size=1)  # The scale is missing: divide the scores by √d before softmax.
    attention(x, W_query, W_key, W_value, size=1) / W_value.shape[-1] ** 0.5  # The scale belongs inside the softmax.
    attention(x, W_query, W_key, W_value, lambda scores: scores)  # The softmax is missing: scores are not yet weights.
    attention(x, W_query, W_key, W_value, size=x.shape[-1])  # The scale is √d_model: it must be √d.
    attention(x, W_query, W_key, W_value, size=len(W_query))  # The scale is √heads: it must be √d.
    attention(x, W_query, W_key, W_value, size=x.shape[1])  # The scale is √tokens: it must be √d.
    attention(x, W_query, W_key, W_value, size=W_query.shape[-1] ** 2)  # The scores are divided by d: take its root.
    attention(x, W_query, W_key, W_value, lambda s: s.softmax(-2))  # Softmax runs over queries: use dim=-1.
    attention(x, W_query, W_key, W_value, lambda s: s.softmax(1))  # Softmax runs over heads: use dim=-1.
    attention(x, W_query, W_key, W_value, lambda s: s.exp() / s.exp().sum(-1, True))  # exp overflows: use softmax.
    attention(x, W_query, W_key, W_value, causal_weights)  # The future is hidden: full attention has no mask.
    attention(x, W_key, W_query, W_value)  # Query and key are swapped.
    attention(x, W_query, W_value, W_key)  # Key and value are swapped.
    attention(x, W_query, W_key, W_key)  # The values are projected with W_key: use W_value.
    attention(x.sum(-1, True), *(w.sum(1, True) for w in (W_query, W_key, W_value)))  # d_model needs one name.
    attention(x, W_query, W_key, W_value, scores="bqhd,bkgd->bhqk")  # heads needs one name in the scores.
    attention(x, W_query, W_key, W_value, output="bhqk,bkgd->bqhd")  # heads needs one name in the output.
    attention(x, W_query, W_key, W_value, output="bhqk,bqhd->bkhd")  # The sum runs over the queries: sum over the keys.
    attention(x, W_query, W_key, W_value, output="bhqk,bkhd->bqd")  # The heads are added up: keep them after the arrow.
    attention(x, W_query, W_key, W_value, output="bhqk,blhd->bqhd")  # The keys need one name in the output.
    F.scaled_dot_product_attention(*(project(x, w) for w in (W_query, W_key, W_value)))  # Here heads attend to heads.
    attention(x, W_query, W_key, W_value, scores="bthd,bthd->bht", output="bht,bthd->bthd")  # tokens needs two names.
    attention(x, W_query, W_key, W_value).transpose(1, 2)  # The heads come before the tokens: batch tokens heads d.
    attention(x, W_query, W_key, W_value).flatten(2)  # The heads are joined: here they keep their axis.
    """,
    "Right: projections, scores, pattern and output, each in one line.",
    forbidden=("view", "permute", "matmul"),
    adapt=one_name_too_few,
)
