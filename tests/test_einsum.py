"""explain_einsum: by hand, against torch, NumPy and einops, on random equations, and how it is displayed."""

from dataclasses import replace

import einops
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnlib.einsum import explain_einsum

SCORES = "batch seq_q heads d, batch seq_k heads d -> batch heads seq_q seq_k"
SHAPES = ((2, 5, 3, 7), (2, 11, 3, 7))


def run(source: str, *operands: torch.Tensor) -> torch.Tensor:
    """Run generated code as a learner would: paste it where torch and A, B, … exist."""
    namespace = {"torch": torch, **dict(zip("ABCDE", operands))}
    exec(source, namespace)
    return namespace["output"]


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


# By hand


def test_a_matrix_product_on_paper():
    a, b = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([[1.0], [10.0], [100.0]])
    explanation = explain_einsum("ij,jk->ik", a, b)
    assert explanation.run_loops().tolist() == [[321.0], [654.0]]
    assert explanation in {explanation}  # compared by identity, because tensors do not compare to a bool
    assert str(explanation.trace(1, 0)).splitlines() == [
        "output[1, 0] = 654.0000, the sum of 3 products",
        "  + A[1, 0] * B[0, 0] = 4.0000 * 1.0000 = 4.0000",
        "  + A[1, 1] * B[1, 0] = 5.0000 * 10.0000 = 50.0000",
        "  + A[1, 2] * B[2, 0] = 6.0000 * 100.0000 = 600.0000",
    ]


@pytest.mark.parametrize(
    ("equation", "shapes", "roles", "reason"),
    [
        ("bij,bjk->bik", [(2, 3, 5), (2, 5, 7)], ("free",), "in the output: one cell for each value"),
        ("ii->i", [(3, 3)], ("free", "diagonal"), "occurs more than once in A"),
        ("ii->", [(3, 3)], ("summed", "diagonal"), "on the diagonal of A are added up"),
        ("ij->j", [(3, 2)], ("summed",), "although the name occurs once"),
        ("i,i->i", [(3,), (1,)], ("free", "batch", "broadcast"), "size 1 in B, whose one entry is used for all 3"),
        ("i,i->i", [(1,), (1,)], ("free", "batch"), "A and B are matched along it, not summed"),
        ("i,i->", [(3,), (1,)], ("summed", "broadcast"), "A and B are multiplied along it"),
        ("...,...->...", [(3,), (3,)], ("free", "batch"), "one of the axes that `...` stands for"),
    ],
)
def test_the_role_of_an_axis_and_its_reason(equation, shapes, roles, reason):
    axis = next(axis for axis in explain_einsum(equation, *shapes).axes if axis.name in ("i", "dots1"))
    assert axis.roles == roles
    assert reason in axis.why


def test_axes_come_in_the_order_of_the_loops_with_their_places():
    axes = explain_einsum(SCORES, *SHAPES).axes
    assert [axis.name for axis in axes] == ["batch", "heads", "seq_q", "seq_k", "d"]
    assert (axes[1].size, axes[1].places) == (3, (("A", 2), ("B", 2), ("output", 1)))


@pytest.mark.parametrize(
    ("equation", "shapes", "code"),
    [
        ("ij,jk->ik", [(2, 3), (3, 5)], "output = A @ B  # (i, k)"),
        ("ij,kj->ik", [(2, 3), (5, 3)], "output = A @ B.mT  # (i, k)"),
        ("i,i->", [(3,), (3,)], "output = A @ B  # ()"),
        ("j,ij->i", [(3,), (2, 3)], "output = A @ B.mT  # (i,)"),
        ("i,j->ij", [(2,), (3,)], "output = A[:, None] * B  # (i, j)"),
        ("ij->ji", [(2, 3)], "output = A.mT  # (j, i)"),
        ("bij->bji", [(2, 3, 5)], "output = A.mT  # (b, j, i)"),
        ("ij->", [(2, 3)], "output = A.sum((0, 1))  # ()"),
        ("ii->", [(3, 3)], "output = A.diagonal(dim1=0, dim2=1).sum(0)  # ()"),
        ("bi,bi->b", [(2, 3), (2, 3)], "output = (A * B).sum(-1)  # (b,)"),
        ("bqk,bkd->bqd", [(2, 3, 5), (2, 5, 7)], "output = A @ B  # (b, q, d)"),
        (
            SCORES,
            SHAPES,
            "left = A.permute(0, 2, 1, 3)  # (batch, heads, seq_q, d)\n"
            "right = B.permute(0, 2, 3, 1)  # (batch, heads, d, seq_k)\n"
            "output = left @ right  # (batch, heads, seq_q, seq_k)",
        ),
    ],
)
def test_familiar_equations_have_familiar_code(equation, shapes, code):
    explanation = explain_einsum(equation, *shapes)
    assert explanation.torch_code == code
    assert explanation.verify()


def test_an_axis_of_size_one_is_read_at_index_zero_where_it_broadcasts():
    assert "A[0] * B[i]" in explain_einsum("i,i->i", (1,), (2,)).loops
    assert "A[i] * B[i]" in explain_einsum("i,i->i", (1,), (1,)).loops


@pytest.mark.parametrize(
    ("equation", "shapes", "cost"),
    [
        ("ij,j->ij", [(2, 0), (1,)], 0),
        ("i,i->", [(5,), (1,)], 1),  # Σ_i A_i B_0 is (Σ_i A_i) B_0
        ("i,i->", [(1,), (5,)], 1),
    ],
)
def test_costs_of_an_axis_that_broadcasts(equation, shapes, cost):
    explanation = explain_einsum(equation, *shapes)
    assert explanation.path_multiplications == cost


def test_bytes_follow_the_dtype_of_the_operands():
    half, double = torch.zeros(3, dtype=torch.float16), np.zeros(3)
    assert "memory of the output: 6 bytes" in str(explain_einsum("i->i", half))
    assert "memory of the output: 24 bytes" in str(explain_einsum("i,i->i", half, double))
    for shape, memory in (((16, 16), "1.0 KiB"), ((512, 512), "1.0 MiB"), ((24_576, 16_384), "1.5 GiB")):
        assert f"memory of the output: {memory}" in str(explain_einsum("ij->ji", shape))


# Against others


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("a,b,c,d,e->cebad", [(2,), (3,), (2,), (1,), (3,)]),
        ("iij,jkk,kl->l", [(3, 3, 2), (2, 4, 4), (4, 5)]),
        ("abk,kcd->acbd", [(2, 3, 5), (5, 7, 11)]),
        ("bhk,bkcd->bhcd", [(2, 3, 5), (2, 5, 7, 11)]),
        ("bxyk,bkzw->bxzyw", [(2, 3, 4, 5), (2, 5, 2, 3)]),
        ("bxyk,bk->yxb", [(2, 3, 5, 7), (2, 7)]),
        ("bxyk,ckzb->xyzbc", [(2, 3, 4, 5), (4, 5, 3, 2)]),
        ("ij,jk->ik", [(2, 0), (0, 3)]),
        ("ij,j->ij", [(2, 0), (1,)]),
        ("i->...i", [(3,)]),
        ("", [()]),
        (",->", [(), ()]),
        (" i j , j k -> i k ", [(2, 3), (3, 5)]),
    ],
)
def test_loops_code_and_torch_agree(equation, shapes):
    operands = [numbers(*shape) + index for index, shape in enumerate(shapes)]
    explanation, want = explain_einsum(equation, *operands), torch.einsum(equation, *operands)
    torch.testing.assert_close(explanation.run_loops(), want)
    torch.testing.assert_close(run(explanation.loops, *operands), want)
    torch.testing.assert_close(run(explanation.torch_code, *operands), want)
    assert explanation.output_shape == want.shape
    assert explanation.verify()


@pytest.mark.parametrize(
    "changes",
    [
        {"loops": "output = torch.zeros(2, 5, dtype=A.dtype)"},
        {"torch_code": "output = A @ B * 1.0001"},
        {"torch_code": "output = (A @ B).mT"},
        {"torch_code": "output = (A @ B).double()"},
    ],
)
def test_verify_notices_code_that_differs(changes):
    assert not replace(explain_einsum("ij,jk->ik", (2, 3), (3, 5)), **changes).verify()


@pytest.mark.parametrize("pattern", [SCORES, "b q ... d, b k ... d -> ... q b k", "b q … d, b k … d -> b … q k"])
def test_words_mean_what_einops_means(pattern):
    query, key = numbers(*SHAPES[0]), numbers(*SHAPES[1])
    want = einops.einsum(query, key, pattern)
    torch.testing.assert_close(explain_einsum(pattern, query, key).run_loops(), want)


def test_plain_shapes_stand_for_the_same_random_numbers_each_time_in_the_default_dtype():
    explanation = explain_einsum("ij->ij", (2, 3))
    assert torch.equal(explanation.run_loops(), explain_einsum("ij->ij", (2, 3)).run_loops())
    assert explanation.run_loops().std() > 0.1
    torch.set_default_dtype(torch.float64)
    try:
        assert explain_einsum("ij->ji", (16, 16)).run_loops().dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_nan_agrees_with_itself():
    assert explain_einsum("i,i->", torch.tensor([torch.nan, 1.0]), torch.ones(2)).verify()


def test_operands_of_many_kinds():
    for operand in (
        torch.ones(2, 3, dtype=torch.bfloat16),
        torch.ones(2, 3, requires_grad=True),
        torch.ones(2, 3, dtype=torch.int64),
        torch.ones(2, 3, dtype=torch.complex64),
        torch.ones(2, 3).to_sparse(),
        torch.ones(2, 3, device="meta"),
        torch.ones(2, 3).t().t(),
        np.ones((2, 3), dtype=np.float16),
        np.ones((3, 2))[::-1].T,
        np.arange(6).reshape(2, 3),
        torch.Size((2, 3)),
        [2, 3],
    ):
        explanation = explain_einsum("ij->j", operand)
        assert explanation.output_shape == (3,)
        assert explanation.verify()
        assert not explanation.run_loops().requires_grad


def test_runs_on_the_cpu_whatever_the_default_device_is():
    with torch.device("meta"):
        explanation = explain_einsum("ij,jk->ik", (2, 3), np.ones((3, 5)))
        assert explanation.verify()
        assert explanation.run_loops().device.type == "cpu"


# Names that Python or the generated code needs


@pytest.mark.parametrize(
    "pattern",
    ["in for -> for in", "A B -> B A", "output total -> total", "range torch -> torch range", "_ A -> A",
     "α β -> β α", "dots1 ... -> ... dots1", "output B -> B", "i0 i1 -> i1 i0"],
)  # fmt: skip
def test_awkward_names_still_run(pattern):
    tensor = numbers(2, 3)
    explanation = explain_einsum(pattern, tensor)
    want = einops.einsum(tensor, "i j -> " + ("j" if len(explanation.free) == 1 else "j i"))
    for source in (explanation.loops, explanation.torch_code):
        namespace = {"torch": torch, explanation.tensors[0]: tensor}
        exec(source, namespace)
        torch.testing.assert_close(namespace["output_" if "output" in explanation.sizes else "output"], want)
    assert explanation.verify()


# Dtypes

INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


def small(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Random numbers whose products and sums are exact in every dtype: integers, or quarters."""
    whole = torch.randint(5, shape, generator=torch.Generator().manual_seed(len(shape)))
    if dtype.is_complex:
        return (whole / 4 + whole.flip(-1) * 0.25j).to(dtype)
    return whole.to(dtype) if dtype in INTEGERS else (whole / 4).to(dtype)


@pytest.mark.parametrize("first", [*INTEGERS, *FLOATS])
@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 5)]),
        ("ij,jk->k", [(2, 3), (3, 5)]),
        ("bi,bi->b", [(2, 3), (2, 3)]),
        ("i,j->ij", [(2,), (3,)]),
        ("ij,->", [(2, 3), ()]),
        ("i,i->", [(5,), (1,)]),
    ],
)
def test_all_code_runs_and_has_the_promoted_dtype(equation, shapes, first):
    every = (*INTEGERS, *FLOATS)
    for second in every if equation == "ij,jk->ik" else {first, every[every.index(first) - 5], torch.float32}:
        operands = [small(dtype, shape) for dtype, shape in zip((first, second), shapes)]
        explanation = explain_einsum(equation, *operands)
        want = torch.promote_types(first, second)
        want = torch.int64 if want == torch.bool else want
        wide = torch.complex128 if want.is_complex else torch.float64
        expected = torch.einsum(equation, *(operand.to(wide) for operand in operands)).to(want)
        for source in (explanation.loops, explanation.torch_code):
            torch.testing.assert_close(run(source, *operands), expected, rtol=0, atol=0)
        torch.testing.assert_close(explanation.run_loops(), expected, rtol=0, atol=0)
        assert [operand.dtype for operand in explanation.operands()] == [want, want]
        assert explanation.dtype == want
        assert explanation.verify()
        mixed = [warning for warning in explanation.warnings if "take one dtype" in warning]
        assert len(mixed) == ({first, second} != {want})


def test_an_integer_times_a_fraction_is_not_truncated():
    a, b = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[0.25], [4.0]])
    explanation = explain_einsum("ij,jk->ik", a, b)
    assert explanation.run_loops().tolist() == [[8.25], [16.75]]
    assert explanation.torch_code == "A = A.to(torch.float32)\noutput = A @ B  # (i, k)"
    assert explanation.loops.startswith("A = A.to(torch.float32)\noutput = torch.zeros(2, 1, dtype=A.dtype)\n")
    assert explanation.warnings == (
        "the operands are torch.int64 and torch.float32: torch.einsum and `@` take one dtype, so convert to "
        "torch.float32 first.",
    )
    assert explanation.trace(1, 0).total == 16.75


def test_integers_are_converted_before_they_can_overflow():
    operands = [torch.tensor([100], dtype=torch.int8), torch.tensor([100], dtype=torch.int8), torch.tensor([0.5])]
    explanation = explain_einsum("i,i,i->", *operands)
    for result in (explanation.run_loops(), run(explanation.loops, *operands), run(explanation.torch_code, *operands)):
        assert result.item() == 5000
    assert explanation.verify()


def test_verify_notices_a_lost_conversion():
    explanation = explain_einsum("ij,jk->ik", torch.tensor([[1, 2], [3, 4]]), torch.tensor([[0.25], [4.0]]))
    assert not replace(explanation, loops=explanation.loops.split("\n", 1)[1]).verify()


def test_integers_wrap_around_as_they_do_in_torch():
    for equation in ("i,i->", "i,j->ij", "i->"):
        operands = [torch.full((5,), 100, dtype=torch.int8)] * (1 + equation.count(","))
        explanation = explain_einsum(equation, *operands)
        want = torch.einsum(equation, *(operand.long() for operand in operands)).to(torch.int8)
        assert torch.equal(explanation.run_loops(), want)
        assert torch.equal(run(explanation.torch_code, *operands), want)
        assert explanation.verify()


def test_integers_beyond_the_precision_of_floats_are_compared_exactly():
    explanation = explain_einsum("i->", torch.tensor([2**60, 1]))
    assert explanation.verify()
    assert not replace(explanation, torch_code="output = A.sum(0) - 1").verify()


@pytest.mark.parametrize("dtypes", [(torch.uint16,), (torch.float8_e4m3fn,), (torch.float32, torch.float8_e4m3fn)])
def test_dtypes_that_torch_cannot_compute_with_are_refused(dtypes):
    equation = ",".join("i" for _ in dtypes) + "->i"
    with pytest.raises(
        TypeError, match="operands must have dtypes that torch can promote and multiply: .*loat8|UInt16"
    ):
        explain_einsum(equation, *(torch.empty(2, dtype=dtype) for dtype in dtypes))


def test_a_shape_beside_a_tensor_has_its_dtype():
    explanation = explain_einsum("i,i->", (2,), torch.ones(2, dtype=torch.float64))
    assert explanation.dtype == torch.float64
    assert explanation.warnings == ()


# Letters or words?


@pytest.mark.parametrize(
    ("arguments", "spelling"),
    [
        (("ij,jk->ik", (2, 3), (3, 5)), "letters"),
        (("row col, col other -> row other", (2, 3), (3, 5)), "words"),
        (("time, time ->", (3,), (3,)), "words"),
        (("seq_q, seq_k -> seq_q seq_k", (3,), (2,)), "words"),
        (("batch ... -> batch ...", (2, 3)), "words"),
        (("ab... -> ...", (2, 3, 5)), "letters"),
        (("ab ... -> ab ...", (2, 3, 5)), "letters"),
        (("row up ... -> row up ...", (2, 3, 2, 3, 2)), "words"),
        (("i j, j k -> i k", (2, 3), (3, 5)), "letters"),
    ],
)
def test_the_shapes_decide_between_letters_and_words(arguments, spelling):
    explanation = explain_einsum(*arguments)
    assert (spelling == "words") == any(len(name) > 1 for name in explanation.sizes if name not in explanation.dots)
    assert explanation.verify()


# Warnings


@pytest.mark.parametrize(
    ("equation", "shapes", "sentence"),
    [
        ("bj,ja", [(2, 3), (3, 5)], "without an arrow the output's axes are sorted by name: (a, b), not in the order "
                                    "of appearance (b, a). This transposes; write the arrow."),
        ("ij->i", [(2, 3)], "`j` occurs once and is not in the output, so it is summed. If you meant to keep it, put "
                            "it after the arrow."),
        ("...i->i", [(2, 3)], "`...` is not in the output: torch sums the axes that it stands for, but NumPy raises an "
                              "error."),
        ("i,i->", [(1,), (0,)], "`i` has size 1 in A but 0 elsewhere, and is summed: that one entry is used 0 times. "),
        ("batch d, bacth d -> batch", [(2, 3), (2, 3)], "`batch` and `bacth` are nearly the same, and are two axes. Is "
                                                        "one a typo?"),
        ("batch heads, batch head -> batch heads", [(2, 3), (2, 3)], "`heads` and `head` are nearly"),
        ("hidden d, hiddem d -> hidden", [(2, 3), (2, 3)], "`hidden` and `hiddem` are nearly"),
        ("Tokens d, tokens d -> tokens", [(2, 3), (2, 3)], "`Tokens` and `tokens` are nearly"),
    ],
)  # fmt: skip
def test_warnings(equation, shapes, sentence):
    warnings = explain_einsum(equation, *shapes).warnings
    assert any(warning.startswith(sentence) for warning in warnings), warnings


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        (SCORES, SHAPES),
        ("ij,jk", [(2, 3), (3, 5)]),
        ("dim1 dim2, dim2 dim3 -> dim1 dim3", [(2, 3), (3, 5)]),
        ("seq_q d, seq_k d -> seq_q seq_k", [(2, 3), (5, 3)]),
        ("i j -> i j", [(1, 3)]),
        ("...i,...j->...ij", [(2, 1, 3), (2, 5, 7)]),
        ("left d, lest d -> left lest", [(2, 3), (5, 3)]),
        ("height d, weight d -> height weight", [(2, 3), (5, 3)]),
    ],
)
def test_no_warning_without_a_reason(equation, shapes):
    assert explain_einsum(equation, *shapes).warnings == ()


@pytest.mark.parametrize("equation", ["seq_q seq_k -> seq_q", "dims dims2 -> dims", "row raw -> row"])
def test_names_that_are_alike_on_purpose_or_short_are_not_called_typos(equation):
    assert not any("typo" in warning for warning in explain_einsum(equation, (2, 3)).warnings)


# Display


TEXT = """\
ij,jk,kl->il
A (2, 1), B (5, 3), C (3, 2) → output (2, 2)

axis  size  where                    role               why
i     2     A axis 0, output axis 0  free               in the output: one cell for each value
l     2     C axis 1, output axis 1  free               in the output: one cell for each value
j     5     A axis 1, B axis 0       summed, broadcast  not in the output: A and B are multiplied along it and the products added up; size 1 in A, whose one entry is used for all 5 values
k     3     B axis 1, C axis 0       summed             not in the output: B and C are multiplied along it and the products added up

output[i, l] = Σ_{j, k} A[i, 0] · B[j, k] · C[k, l]

Loops
    output = torch.zeros(2, 2, dtype=A.dtype)
    for i in range(2):
        for l in range(2):
            total = 0
            for j in range(5):
                for k in range(3):
                    total += A[i, 0] * B[j, k] * C[k, l]
            output[i, l] = total

The same with permute and matmul
    left = A.sum(1)  # (i,)
    right = B.sum(0)  # (k,)
    AB = left[:, None] * right  # (i, k)
    output = AB @ C  # (i, l)

Cost
    multiplications in the loops: 120
    joined two by two, in the cheapest order: 18
    A with B → (i, k): 6 multiplications, 6 numbers
    AB with C → (i, l): 12 multiplications, 4 numbers
    memory of the largest intermediate: 24 bytes
    memory of the output: 16 bytes

Take care
    ⚠ `j` has size 1 in A but 5 elsewhere, and is summed: that one entry is used 5 times. Einsum gives no error here."""  # noqa: E501

MARKDOWN = """\
**`row_a i, i -> row_a`**  
A (2, 3), B (1,) → output (2,)

| axis | size | where | role | why |
|---|---|---|---|---|
| `row_a` | 2 | A axis 0, output axis 0 | free | in the output: one cell for each value |
| `i` | 3 | A axis 1, B axis 0 | summed, broadcast | not in the output: A and B are multiplied along it and the products added up; size 1 in B, whose one entry is used for all 3 values |

$$\\mathrm{output}_{\\mathrm{row\\_a}} = \\sum_{i=0}^{2} A_{\\mathrm{row\\_a}, i} \\, B_{0}$$

**Loops**

```python
output = torch.zeros(2, dtype=A.dtype)
for row_a in range(2):
    total = 0
    for i in range(3):
        total += A[row_a, i] * B[0]
    output[row_a] = total
```

**The same without einsum**

```python
left = A.sum(1)  # (row_a,)
right = B.sum(0)  # ()
output = left * right  # (row_a,)
```

**Cost**

- multiplications in the loops: 6
- memory of the output: 8 bytes

**Take care**

- ⚠ `i` has size 1 in B but 3 elsewhere, and is summed: that one entry is used 3 times. Einsum gives no error here."""  # noqa: E501


def test_the_whole_display():
    assert str(explain_einsum("ij,jk,kl->il", (2, 1), (5, 3), (3, 2))) == TEXT
    assert explain_einsum("row_a i, i -> row_a", (2, 3), (1,))._repr_markdown_() == MARKDOWN


def test_a_scalar_is_displayed_too():
    explanation = explain_einsum(",->", (), ())
    assert "output = A · B" in str(explanation)
    assert r"$$\mathrm{output} = A \, B$$" in explanation._repr_markdown_()
    assert str(explanation.trace()).startswith("output = ")


@pytest.mark.parametrize(
    ("equation", "shapes", "steps"),
    [
        ("qd,kd->qk", [(10_000, 64), (10_000, 64)], "6,400,000,000"),
        ("ii->i", [(1000, 1000)], "1,000,000"),
        ("ij->i", [(10**9, 0)], "1,000,000,000"),
    ],
)
def test_what_is_too_large_to_run_is_refused_before_it_is_drawn(equation, shapes, steps):
    explanation = explain_einsum(equation, *shapes)
    for call in (explanation.run_loops, explanation.verify, lambda: explanation.trace(*[0] * len(explanation.free))):
        with pytest.raises(ValueError, match=f"take {steps} steps, too many for Python .at most 300,000.; .* smaller"):
            call()


def test_as_many_steps_as_are_allowed_are_taken():
    explanation = explain_einsum("ij->i", (300, 1000))  # 300,000 steps
    assert len(explanation.trace(0).products) == 1000


# Trace


def test_a_trace_adds_up_to_the_cell():
    query, key = numbers(*SHAPES[0]), numbers(*SHAPES[1])
    explanation = explain_einsum(SCORES, query, key)
    trace = explanation.trace(1, 2, 4, 10)
    assert len(trace.products) == 7
    assert trace.products[6].indices == ((1, 4, 2, 6), (1, 10, 2, 6))
    assert trace.products[6].text == "A[1, 4, 2, 6] * B[1, 10, 2, 6]"
    assert trace.products[6].factors == (query[1, 4, 2, 6].item(), key[1, 10, 2, 6].item())
    assert trace.total == pytest.approx(explanation.run_loops()[1, 2, 4, 10].item())
    assert trace.total == pytest.approx((query[1, 4, 2] @ key[1, 10, 2]).item())


def test_a_trace_of_a_broadcast_and_of_a_diagonal():
    assert [product.text for product in explain_einsum("ij,j->i", (2, 3), (1,)).trace(1).products] == [
        "A[1, 0] * B[0]", "A[1, 1] * B[0]", "A[1, 2] * B[0]",
    ]  # fmt: skip
    assert [product.text for product in explain_einsum("ii->", (2, 2)).trace().products] == ["A[0, 0]", "A[1, 1]"]


def test_a_long_trace_is_cut():
    text = str(explain_einsum("i->", (100,)).trace())
    assert text.count("+") == 24
    assert text.endswith("… and 76 more")


# Random equations

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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(equations(), st.integers(0, 99))
def test_loops_code_and_einsum_agree_in_every_spelling(equation, seed):
    inputs, shapes, output = equation
    draw = torch.Generator().manual_seed(seed)
    operands = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    implicit = ",".join("".join(names) for names in inputs)
    letters = f"{implicit}->{''.join(output)}"
    words = ", ".join(" ".join(WORDS[name] for name in names) for names in inputs)
    words += " -> " + " ".join(WORDS[name] for name in output)
    for text in (letters, implicit):
        explanation, want = explain_einsum(text, *operands), torch.einsum(text, *operands)
        torch.testing.assert_close(run(explanation.loops, *operands), want)
        torch.testing.assert_close(run(explanation.torch_code, *operands), want)
        assert explanation.output_shape == want.shape
    explained = explain_einsum(words, *operands)
    torch.testing.assert_close(einops.einsum(*operands, words), torch.einsum(letters, *operands))
    torch.testing.assert_close(explained.run_loops(), torch.einsum(letters, *operands))
    assert explained.verify()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(equations())
def test_a_trace_adds_up_and_roles_cover_every_axis(equation):
    inputs, shapes, output = equation
    explanation = explain_einsum(",".join("".join(names) for names in inputs) + "->" + "".join(output), *shapes)
    result = explanation.run_loops()
    cell = tuple(size - 1 for size in result.shape)
    total = torch.tensor(explanation.trace(*cell).total, dtype=result.dtype)
    torch.testing.assert_close(total, result[cell], rtol=1e-4, atol=1e-5)
    assert {axis.name for axis in explanation.axes} == {name for names in explanation.inputs for name in names}
    for axis in explanation.axes:
        free = axis.name in explanation.free
        assert axis.roles[0] == ("free" if free else "summed")
        assert any(tensor == "output" for tensor, _ in axis.places) == free
    assert explanation.path_multiplications <= explanation.multiplications
