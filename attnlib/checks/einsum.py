"""Exercises of notebook 05: equations for loops and for matrix products, and attention written with einsum."""

import itertools
from collections.abc import Callable, Sequence
from functools import wraps

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


def wrong_equations(inputs: Sequence[Sequence[str]], output: Sequence[str]) -> dict[str, Callable]:
    """Every other output, and every way to call a shared axis by two names, with the sentence that names it."""

    def written(names: Sequence[Sequence[str]], axes: Sequence[str]) -> str:
        return f"{', '.join(' '.join(operand) for operand in names)} -> {' '.join(axes)}".strip()

    def quoted(names: Sequence[str]) -> str:
        return " and ".join(f"`{name}`" for name in names)

    equations = {}
    every = list(dict.fromkeys(itertools.chain(*inputs)))
    for axes in (axes for count in range(len(every) + 1) for axes in itertools.combinations(every, count)):
        kept, lost = [a for a in axes if a not in output], [a for a in output if a not in axes]
        summed = f"{quoted(kept)} must be summed, so leave {'it' if len(kept) == 1 else 'them'} out on the right"
        missing = f"{quoted(lost)} must be kept: a name missing on the right is summed"
        faults = ", and ".join([summed] * bool(kept) + [missing] * bool(lost))
        equation = written(inputs, axes)
        if faults:
            equations[f"In the words of the exercise, you wrote `{equation}`. But {faults}."] = equation
    swapped = f"The axes are right, but their order is not: the output is ({', '.join(output)})."
    equations[swapped] = written(inputs, output[::-1])
    shared = [name for name in inputs[0] if name in inputs[-1] and len(inputs) > 1]
    for split in (split for count in (1, 2) for split in itertools.combinations(shared, count)):
        second = [f"other_{name}" if name in split else name for name in inputs[-1]]
        words = f"{quoted(split)} must have the same name in A and in B. Two names are summed separately."
        equations[words] = written([*inputs[:-1], second], output)
    return {words: lambda equation=equation: equation for words, equation in equations.items()}


check_loops_equation = Exercise(
    "Check ``answer()``: the equation of loops that add up ``A[head, query, key]`` over the queries. The output is "
    "(head, key). The equation is judged by its result, not by its text.",
    loops_equation,
    [draw(50 + i, sizes) for i, sizes in enumerate(((2, 3, 5), (7, 5, 2), (3, 3, 3), (1, 4, 2)))],
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


def _patterns(seed: int, batch: int, heads: int, q_tokens: int, kv_tokens: int, d: int) -> tuple[Tensor, Tensor]:
    scores, value = draw(seed, (batch, heads, q_tokens, kv_tokens), (batch, kv_tokens, heads, d))
    return 2 * scores.softmax(-1), value  # rows sum to two, so a second division shows


PATTERNS = [_patterns(51, 3, 3, 3, 3, 3), _patterns(52, 2, 3, 5, 7, 4), _patterns(53, 3, 2, 4, 2, 5)]
PATTERNS += [_patterns(54, 2, 1, 3, 5, 2), _patterns(55, 1, 4, 1, 1, 3), _patterns(56, 2, 3, 4, 3, 1)]
PATTERNS += [(PATTERNS[1][0].double(), PATTERNS[1][1].double())]

check_head_output = Exercise(
    "Check ``answer(pattern, value)``: each head's weighted average of the values, the heads joined side by side. "
    "pattern is (batch, heads, seq_q, seq_k), value (batch, seq_k, heads, d); the result (batch, seq_q, heads * d).",
    head_output,
    PATTERNS,
    """
    out = lambda names="bhqk,bkhd->bqhd": torch.einsum(names, pattern, value)
    joined = lambda names: out(names).flatten(2)
    out()  # The heads are not joined yet: rearrange to batch q (heads d).
    out("bhqk,bkhd->bhqd")  # Heads come before tokens, and are not joined: batch q (heads d).
    rearrange(out(), "b q h d -> b q (d h)")  # Head 0 fills the first d columns: (heads d).
    rearrange(out(), "b q h d -> b (q h) d")  # Queries and heads are joined: join heads and d, (heads d).
    out("bhqk,bkhd->bhqd").reshape(len(value), pattern.shape[2], -1)  # Move q before heads, then merge.
    joined("bhkq,bkhd->bqhd")  # The sum runs over the queries: it must run over seq_k.
    joined("bhqk,blhd->bqhd")  # seq_k needs one name: here each is summed separately.
    joined("bhqk,bkgd->bqgd"); joined("bhqk,bkgd->bqhd")  # heads needs one name: two names are summed separately.
    joined("bhqk,ckhd->bqhd")  # batch needs one name: here the values of all sentences are summed.
    out("bhqk,bkhd->bqd")  # The heads are added up: they belong on the right of the arrow too.
    head_output(pattern.softmax(-1), value)  # The pattern has its softmax already: a second one evens out the weights.
    head_output(pattern, value) / pattern.shape[-1]  # The weights make this an average already: do not divide.
    head_output(pattern, value) / value.shape[-1] ** 0.5  # The scale belongs to the scores, before the softmax.
    """,
    "Right: seq_k is summed, heads and d share the last axis.",
)


SIZES = ((3, 3, 3, 3, 3), (2, 5, 7, 3, 4), (3, 2, 5, 4, 6), (2, 4, 3, 1, 2), (1, 1, 4, 2, 3))
INPUTS = [draw(55 + seed, (b, t, m), *[(h, m, d)] * 3) for seed, (b, t, m, h, d) in enumerate(SIZES)]
INPUTS += [(30 * INPUTS[1][0], *INPUTS[1][1:]), tuple(x.double() for x in INPUTS[1])]  # scores in the hundreds

check_einsum_attention = Exercise(
    "Check ``answer(x, W_query, W_key, W_value)``: full attention with a weight (heads, d_model, d) for each role. "
    "x is (batch, tokens, d_model); the result is (batch, tokens, heads, d).",
    einsum_attention,
    INPUTS,
    """
    project = lambda weight: torch.einsum("btm,hmd->bthd", x, weight); d = W_query.shape[-1]
    score = lambda names="bqhd,bkhd->bhqk": torch.einsum(names, project(W_query), project(W_key)) / d**0.5; s = score()
    average = lambda weights, names="bhqk,bkhd->bqhd": torch.einsum(names, weights, project(W_value))
    over = lambda size: average((s * (d / size) ** 0.5).softmax(-1)); w = s.softmax(-1)
    over(1)  # The scale is missing: divide the scores by √d before softmax.
    over(1) / d**0.5  # The scale belongs inside the softmax.
    average(s)  # The softmax is missing: scores are not yet weights.
    over(x.shape[-1]); over(len(W_query)); over(x.shape[1])  # This is √d_model, √heads or √tokens: it must be √d.
    over(d**2)  # The scores are divided by d: take its root.
    average(s.softmax(-2))  # Softmax runs over queries: use dim=-1.
    average(s.softmax(1))  # Softmax runs over heads: use dim=-1.
    average(s.exp() / s.exp().sum(-1, True))  # exp overflows: use softmax.
    average(causal_weights(s))  # The future is hidden: full attention has no mask.
    einsum_attention(x, W_key, W_query, W_value)  # Query and key are swapped.
    einsum_attention(x, W_query, W_value, W_key)  # Key and value are swapped.
    einsum_attention(x, W_query, W_key, W_key)  # The values are projected with W_key: use W_value.
    einsum_attention(x.sum(-1, True), *(w.sum(1, True) for w in (W_query, W_key, W_value)))  # d_model needs one name.
    average(score("bqhd,bkgd->bhqk").softmax(-1))  # heads needs one name in the scores.
    average(w, "bhqk,bkgd->bqhd")  # heads needs one name in the output.
    average(w, "bhqk,bqhd->bkhd")  # The sum runs over the queries: sum over the keys.
    average(w, "bhqk,bkhd->bqd")  # The heads are added up: keep them after the arrow.
    average(w, "bhqk,blhd->bqhd")  # The keys need one name in the output.
    F.scaled_dot_product_attention(*(project(w) for w in (W_query, W_key, W_value)))  # Here heads attend to heads.
    average(score("bthd,bthd->bht").softmax(-1), "bht,bthd->bthd")  # tokens needs two names.
    einsum_attention(x, W_query, W_key, W_value).transpose(1, 2)  # Heads come before tokens: batch tokens heads d.
    einsum_attention(x, W_query, W_key, W_value).flatten(2)  # The heads are joined: here they keep their axis.
    """,
    "Right: projections, scores, pattern and output, each in one line.",
    forbidden=("view", "permute", "matmul"),
)
