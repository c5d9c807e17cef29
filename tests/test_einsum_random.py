"""Two thousand random equations: loops, permute and matmul, and torch.einsum agree, in each way to write them."""

import einops
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnlib.einsum import explain_einsum

LETTERS = "ijbKq"
WORDS = dict(zip(LETTERS, ("seq_q", "total", "batch", "A", "heads"))) | {"...": "..."}


@st.composite
def equations(draw):
    """Names per input, shapes, names of the output: repeated axes, axes of size 1 that broadcast, `...`, scalars."""
    sizes = {letter: draw(st.sampled_from((1, 2, 2, 3))) for letter in LETTERS}
    dots = draw(st.sampled_from(((), (2,), (2, 3), (1,))))
    inputs, shapes = [], []
    for _ in range(draw(st.integers(1, 4))):
        names = draw(st.lists(st.sampled_from(LETTERS), max_size=4))
        short = {name for name in names if draw(st.integers(0, 5)) == 0}  # size 1 in this operand
        shape = [1 if name in short else sizes[name] for name in names]
        if dots and draw(st.booleans()):
            place = draw(st.integers(0, len(names)))
            covered = [size if draw(st.booleans()) else 1 for size in dots[draw(st.integers(0, len(dots))) :]]
            names, shape = [*names[:place], "...", *names[place:]], [*shape[:place], *covered, *shape[place:]]
        inputs.append(names)
        shapes.append(tuple(shape))
    used = sorted({name for names in inputs for name in names})
    output = draw(st.lists(st.sampled_from(used), unique=True)) if used else []
    return inputs, shapes, output


def run(source: str, names: tuple[str, ...], operands: list[torch.Tensor]) -> dict:
    space = {"torch": torch, **dict(zip(names, operands))}
    exec(source, space)
    return space


def check(explanation, operands: list[torch.Tensor], want: torch.Tensor) -> None:
    space = run(explanation.loops, explanation.tensors, operands)  # as a learner runs it, names and all
    torch.testing.assert_close(space["output"], want)
    torch.testing.assert_close(run(explanation.torch_code, explanation.tensors, operands)["output"], want)
    assert explanation.output_shape == want.shape


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(equations(), st.integers(0, 99))
def test_loops_code_and_einsum_agree_in_every_spelling(equation, seed):
    inputs, shapes, output = equation
    draw = torch.Generator().manual_seed(seed)
    operands = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    implicit = ",".join("".join(names) for names in inputs)
    letters = f"{implicit}->{''.join(output)}"
    words = ", ".join(" ".join(WORDS[name] for name in names) for names in inputs)
    words += " -> " + " ".join(WORDS[name] for name in output)

    want = torch.einsum(letters, *operands)
    check(explain_einsum(letters, *operands), operands, want)
    check(explain_einsum(implicit, *operands), operands, torch.einsum(implicit, *operands))

    explained = explain_einsum(words, *operands)
    torch.testing.assert_close(einops.einsum(*operands, words), want)
    torch.testing.assert_close(explained.run_loops(), want)
    assert explained.verify()
    assert [axis.roles[0] == "free" for axis in explained.axes] == [
        axis.name in explained.free for axis in explained.axes
    ]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(equations())
def test_a_trace_adds_up_and_roles_cover_every_axis(equation):
    inputs, shapes, output = equation
    explanation = explain_einsum(",".join("".join(names) for names in inputs) + "->" + "".join(output), *shapes)
    result = explanation.run_loops()
    cell = tuple(size - 1 for size in result.shape)
    torch.testing.assert_close(torch.tensor(explanation.trace(*cell).total, dtype=result.dtype), result[cell],
                               rtol=1e-4, atol=1e-5)  # fmt: skip
    assert {axis.name for axis in explanation.axes} == {name for names in explanation.inputs for name in names}
    for axis in explanation.axes:
        assert (axis.roles[0] == "free") == any(tensor == "output" for tensor, _ in axis.places)
    assert explanation.path_multiplications <= max(explanation.multiplications, 0)
    gradient_free = explanation.run_loops().requires_grad
    assert not gradient_free
