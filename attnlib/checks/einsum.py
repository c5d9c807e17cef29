"""Exercises of notebook 05: equations for loops and for matrix products, and attention written with einsum."""

import re
from collections.abc import Callable
from itertools import chain, combinations

from einops import einsum, rearrange
from torch import Tensor

from attnlib.checks.causal import causal_weights  # noqa: F401 (a table uses it)
from attnlib.checks.context_vectors import AVERAGE_ROWS, OVERFLOW_ROWS
from attnlib.checks.exercise import Exercise, draw
from attnlib.checks.self_attention import SCALE_ROWS
from attnlib.einsum import explain_einsum


def loops_equation() -> str:
    """The equation of loops that add up ``A[head, query, key]`` over the queries. It is judged by its result."""
    return "head query key -> head key"


def matmul_equation() -> str:
    """The equation of ``sum(A[n].T @ B[n] for n in range(batch))``, (row, column). It is judged by its result."""
    return "batch token row, batch token column -> row column"


def head_output(pattern: Tensor, value: Tensor) -> Tensor:
    """(batch, heads, seq_q, seq_k) and (batch, seq_k, heads, d) to averages (batch, seq_q, heads * d), heads joined."""
    output = einsum(pattern, value, "batch heads q k, batch k heads d -> batch q heads d")
    return rearrange(output, "batch q heads d -> batch q (heads d)")


def einsum_attention(x: Tensor, W_query: Tensor, W_key: Tensor, W_value: Tensor) -> Tensor:
    """Attention of x (batch, tokens, d_model), with weights (heads, d_model, d), to (batch, tokens, heads, d)."""
    project = "batch tokens d_model, heads d_model d -> batch tokens heads d"
    query, key, value = (einsum(x, weight, project) for weight in (W_query, W_key, W_value))
    scores = einsum(query, key, "batch q heads d, batch k heads d -> batch heads q k")
    pattern = (scores / query.shape[-1] ** 0.5).softmax(dim=-1)
    return einsum(pattern, value, "batch heads q k, batch k heads d -> batch q heads d")


def by_its_numbers(answer: Callable[[], str]) -> Callable:
    """What the learner's equation makes of the operands: equations are compared by their results, not by their text."""

    def run(*operands: Tensor) -> Tensor | None:
        equation = answer()
        if equation is None or equation is Ellipsis:
            return equation
        return explain_einsum(equation.strip() if isinstance(equation, str) else equation, *operands).run_loops()

    return run


def other_outputs(inputs: str, output: str) -> str:
    """A row for each equation of these inputs that keeps or sums the wrong axes."""
    names, right, rows = dict.fromkeys(re.findall(r"\w+", inputs)), output.split(), []
    for axes in chain.from_iterable(combinations(names, count) for count in range(len(names) + 1)):
        extra = " and ".join(f"`{name}`" for name in axes if name not in right)
        lost = " and ".join(f"`{name}`" for name in right if name not in axes)
        faults = [f"{extra} must be summed: a name on the right is kept"] * bool(extra)
        faults += [f"{lost} must be kept: a name missing on the right is summed"] * bool(lost)
        if faults:
            equation = f"{inputs} -> {' '.join(axes)}"
            but = ", and ".join(faults)
            rows.append(f'"{equation}"  # In the words of the exercise, you wrote `{equation}`. But {but}.')
    return "\n".join(rows)


ADDED = [draw(50 + i, sizes) for i, sizes in enumerate(((2, 3, 5), (7, 5, 2), (3, 3, 3), (1, 4, 2)))]
LOOPS_TABLE = f"""
Right: it means head query key -> head key.
{other_outputs("head query key", "head key")}
"head query key -> key head"  # The axes are right, but their order is not: the output is (head, key).
"""
check_loops_equation = Exercise(loops_equation, ADDED, LOOPS_TABLE, adapt=by_its_numbers)

MULTIPLIED = [draw(60, (2, 3, 2), (2, 3, 2)), draw(61, (2, 3, 5), (2, 3, 7))]
MATMUL_TABLE = f"""
Right: it means batch token row, batch token column -> row column.
{other_outputs("batch token row, batch token column", "row column")}
"batch token row, batch token column -> column row"  # The axes are right, but the output is (row, column).
"b t i, c t j -> i j"  # `batch` must have the same name in A and in B. Two names are summed separately.
"b t i, b s j -> i j"  # `token` must have the same name in A and in B. Two names are summed separately.
"b t i, c s j -> i j"  # `batch` and `token` must have the same name in A and in B. Two names are summed separately.
"""
check_matmul_equation = Exercise(matmul_equation, MULTIPLIED, MATMUL_TABLE, adapt=by_its_numbers)

AXES = ((3, 3, 3, 3, 3), (2, 3, 5, 7, 4), (3, 2, 4, 2, 5), (2, 1, 3, 5, 2), (1, 4, 1, 1, 3), (2, 3, 4, 3, 1))
PATTERNS = [draw(51 + i, (b, h, q, k), (b, k, h, d)) for i, (b, h, q, k, d) in enumerate(AXES)]
PATTERNS += [tuple(x.double() for x in PATTERNS[1])]
PATTERNS = [(2 * scores.softmax(-1), value) for scores, value in PATTERNS]  # rows of 2, so that a second division shows
HEAD_TABLE = """
Right: seq_k is summed, heads and d share the last axis.
out = lambda names="bhqk,bkhd->bqhd": torch.einsum(names, pattern, value)
joined = lambda names: out(names).flatten(2)
out()  # The heads are not joined yet: rearrange to batch q (heads d).
out("bhqk,bkhd->bhqd")  # Heads come before tokens, and are not joined: batch q (heads d).
rearrange(out(), "b q h d -> b q (d h)")  # The columns of the heads alternate: write (heads d), not (d heads).
rearrange(out(), "b q h d -> b (q h) d")  # Queries and heads are joined: join heads and d, (heads d).
out("bhqk,bkhd->bhqd").reshape(len(value), pattern.shape[2], -1)  # A reshape mixes heads and q: move q first.
joined("bhkq,bkhd->bqhd")  # The sum runs over the queries: it must run over seq_k.
joined("bhqk,blhd->bqhd")  # seq_k needs one name: here each is summed separately.
joined("bhqk,bkgd->bqgd"); joined("bhqk,bkgd->bqhd")  # heads needs one name: two names are summed separately.
joined("bhqk,ckhd->bqhd")  # batch needs one name: here the values of all sentences are summed.
out("bhqk,bkhd->bqd")  # The heads are added up: they belong on the right of the arrow too.
head_output(pattern.softmax(-1), value)  # The pattern has its softmax already: a second one evens out the weights.
head_output(pattern, value) / pattern.shape[-1]  # The weights make this an average already: do not divide.
head_output(pattern, value) / value.shape[-1] ** 0.5  # The scale belongs to the scores, before the softmax.
"""
check_head_output = Exercise(head_output, PATTERNS, HEAD_TABLE)

SIZES = ((3, 3, 3, 3, 3), (2, 5, 7, 3, 4), (3, 2, 5, 4, 6), (2, 4, 3, 1, 2), (1, 1, 4, 2, 3))  # d_model is third
INPUTS = [draw(55 + i, (b, t, m), *[(h, m, d)] * 3) for i, (b, t, m, h, d) in enumerate(SIZES)]
INPUTS += [(30 * INPUTS[1][0], *INPUTS[1][1:]), tuple(x.double() for x in INPUTS[1])]  # scores in the hundreds
ATTENTION_TABLE = f"""
Right: projections, scores, pattern and output, each in one line.
project = lambda weight: torch.einsum("btm,hmd->bthd", x, weight); d = W_query.shape[-1]
score = lambda names="bqhd,bkhd->bhqk": torch.einsum(names, project(W_query), project(W_key)) / d**0.5; s = score()
average = lambda weights, names="bhqk,bkhd->bqhd": torch.einsum(names, weights, project(W_value))
over = lambda size: average((s * (d / size) ** 0.5).softmax(-1)); w = s.softmax(-1)
over(x.shape[-1]); over(len(W_query)); over(x.shape[1])  # This is √d_model, √heads or √tokens: it must be √d.
average(s.softmax(1))  # Softmax runs over heads: use dim=-1.
average(causal_weights(s))  # The future is hidden: full attention has no mask.
einsum_attention(x, W_key, W_query, W_value)  # Query and key are swapped.
einsum_attention(x, W_query, W_value, W_key)  # Key and value are swapped.
einsum_attention(x, W_query, W_key, W_key)  # The values are projected with W_key: use W_value.
einsum_attention(x.sum(-1, True), *(w.sum(1, True) for w in (W_query, W_key, W_value)))  # d_model needs one name.
average(score("bqhd,bkgd->bhqk").softmax(-1)); average(w, "bhqk,bkgd->bqhd")  # heads needs one name.
average(w, "bhqk,bqhd->bkhd")  # The sum runs over the queries: sum over the keys.
average(w, "bhqk,bkhd->bqd")  # The heads are added up: keep them after the arrow.
average(w, "bhqk,blhd->bqhd")  # The keys have two names: weights and values must share one.
F.scaled_dot_product_attention(*(project(w) for w in (W_query, W_key, W_value)))  # Here heads attend to heads.
average(score("bthd,bthd->bht").softmax(-1), "bht,bthd->bthd")  # Tokens meet only themselves: two names for tokens.
einsum_attention(x, W_query, W_key, W_value).transpose(1, 2)  # Heads come before tokens: batch tokens heads d.
einsum_attention(x, W_query, W_key, W_value).flatten(2)  # The heads are joined: here they keep their axis.
{SCALE_ROWS.replace("head_dim", "d")}{OVERFLOW_ROWS}{AVERAGE_ROWS}"""
check_einsum_attention = Exercise(einsum_attention, INPUTS, ATTENTION_TABLE, forbidden=("view", "permute", "matmul"))
