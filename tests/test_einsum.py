"""explain_einsum: by hand, against torch, NumPy and einops, and how it shows itself."""

import itertools

import einops
import numpy as np
import pytest
import torch

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
    assert str(explanation.trace(1, 0)).splitlines() == [
        "output[1, 0] = 654.0000, the sum of 3 products",
        "  + A[1, 0] * B[0, 0] = 4.0000 * 1.0000 = 4.0000",
        "  + A[1, 1] * B[1, 0] = 5.0000 * 10.0000 = 50.0000",
        "  + A[1, 2] * B[2, 0] = 6.0000 * 100.0000 = 600.0000",
    ]


def test_the_roles_of_a_batched_product():
    roles = {axis.name: axis.roles for axis in explain_einsum("bij,bjk->bik", (2, 3, 5), (2, 5, 7)).axes}
    assert roles == {"b": ("free", "batch"), "i": ("free",), "k": ("free",), "j": ("summed",)}


@pytest.mark.parametrize(
    ("equation", "shapes", "roles", "reason"),
    [
        ("ii->i", [(3, 3)], ("free", "diagonal"), "stands more than once in A"),
        ("ii->", [(3, 3)], ("summed", "diagonal"), "on the diagonal of A are added up"),
        ("ij->j", [(3, 2)], ("summed",), "although the name occurs once"),
        ("i,i->i", [(3,), (1,)], ("free", "batch", "broadcast"), "size 1 in B, whose one entry is used for all 3"),
        ("i,i->i", [(1,), (1,)], ("free", "batch"), "A and B are matched along it, not summed"),
        ("i,i->", [(3,), (1,)], ("summed", "broadcast"), "A and B are multiplied along it"),
        ("i,j->ij", [(3,), (2,)], ("free",), "in the output: one cell for each value"),
        ("...,...->...", [(3,), (3,)], ("free", "batch"), "one of the axes that `...` stands for"),
    ],
)
def test_the_role_of_an_axis_and_its_reason(equation, shapes, roles, reason):
    axis = next(axis for axis in explain_einsum(equation, *shapes).axes if axis.name in ("i", "dots1"))
    assert axis.roles == roles
    assert reason in axis.why


def test_axes_come_in_the_order_of_the_loops():
    assert [axis.name for axis in explain_einsum("jz,ijk->ki", (3, 7), (2, 3, 5)).axes] == ["k", "i", "j", "z"]


def test_places_say_tensor_and_position():
    axis = next(axis for axis in explain_einsum(SCORES, *SHAPES).axes if axis.name == "heads")
    assert (axis.size, axis.places) == (3, (("A", 2), ("B", 2), ("output", 1)))
    assert (
        "| `heads` | 3 | A axis 2, B axis 2, output axis 1 | free, batch |"
        in explain_einsum(SCORES, *SHAPES)._repr_markdown_()
    )


def test_the_loops_of_the_scores_keep_the_users_names_and_order():
    assert explain_einsum(SCORES, *SHAPES).loops.splitlines() == [
        "output = torch.zeros(2, 3, 5, 11, dtype=A.dtype)",
        "for batch in range(2):",
        "    for heads in range(3):",
        "        for seq_q in range(5):",
        "            for seq_k in range(11):",
        "                total = 0",
        "                for d in range(7):",
        "                    total += A[batch, seq_q, heads, d] * B[batch, seq_k, heads, d]",
        "                output[batch, heads, seq_q, seq_k] = total",
    ]


def test_summed_loops_come_last_in_order_of_appearance():
    loops = explain_einsum("zij,jk,kl->lz", (7, 2, 3), (3, 5), (5, 2)).loops
    assert [line.split()[1] for line in loops.splitlines() if " in range" in line] == ["l", "z", "i", "j", "k"]


def test_the_scores_as_permute_and_matmul():
    assert explain_einsum(SCORES, *SHAPES).torch_code.splitlines() == [
        "left = A.permute(0, 2, 1, 3)  # (batch, heads, seq_q, d)",
        "right = B.permute(0, 2, 3, 1)  # (batch, heads, d, seq_k)",
        "output = left @ right  # (batch, heads, seq_q, seq_k)",
    ]


@pytest.mark.parametrize(
    ("equation", "shapes", "code"),
    [
        ("ij,jk->ik", [(2, 3), (3, 5)], "output = A @ B  # (i, k)"),
        ("ij,kj->ik", [(2, 3), (5, 3)], "output = A @ B.mT  # (i, k)"),
        ("i,i->", [(3,), (3,)], "output = A @ B  # ()"),
        ("j,ij->i", [(3,), (2, 3)], "output = B @ A  # (i,)"),
        ("i,j->ij", [(2,), (3,)], "output = A[:, None] * B  # (i, j)"),
        ("ij->ji", [(2, 3)], "output = A.mT  # (j, i)"),
        ("ij->", [(2, 3)], "output = A.sum((0, 1))  # ()"),
        ("ii->", [(3, 3)], "output = A.diagonal(dim1=0, dim2=1).sum(0)  # ()"),
        ("bi,bi->b", [(2, 3), (2, 3)], "output = (A * B).sum(-1)  # (b,)"),
        ("bqk,bkd->bqd", [(2, 3, 5), (2, 5, 7)], "output = A @ B  # (b, q, d)"),
    ],
)
def test_familiar_equations_have_familiar_code(equation, shapes, code):
    explanation = explain_einsum(equation, *shapes)
    assert explanation.torch_code == code
    assert explanation.verify()


def test_an_axis_of_size_one_is_read_at_index_zero():
    explanation = explain_einsum("ij,j->i", (2, 3), (1,))
    assert "A[i, j] * B[0]" in explanation.loops
    assert "B_{0}" in explanation._repr_markdown_()


def test_costs_of_a_chain_of_three():
    explanation = explain_einsum("ij,jk,kl->il", (2, 3), (3, 5), (5, 7))
    assert explanation.multiplications == 2 * (2 * 3 * 5 * 7)
    assert [step.multiplications for step in explanation.path] == [2 * 3 * 5, 2 * 5 * 7]
    assert [(step.left, step.right, step.axes) for step in explanation.path] == [
        ("A", "B", ("i", "k")),
        ("AB", "C", ("i", "l")),
    ]
    assert explanation.path_multiplications == 100
    assert explanation.largest_intermediate_bytes == 2 * 5 * 4
    assert explanation.output_bytes == 2 * 7 * 4


def test_an_empty_axis_costs_nothing():
    (step,) = explain_einsum("ij,j->ij", (2, 0), (1,)).path
    assert (step.multiplications, step.elements) == (0, 0)


def test_bytes_follow_the_dtype_of_the_operands():
    half, double = torch.zeros(3, dtype=torch.float16), np.zeros(3)
    assert explain_einsum("i->i", half).output_bytes == 6
    assert explain_einsum("i,i->i", half, double).output_bytes == 24


@pytest.mark.parametrize(("i", "j", "k", "m"), [(2, 13, 3, 11), (11, 3, 13, 2), (2, 3, 11, 1), (7, 1, 2, 5)])
def test_the_path_is_no_dearer_than_any_other_order(i, j, k, m):
    """All orders of three operands, counted by hand, against the one that is chosen."""
    orders = {"AB": i * j * k + i * k * m, "BC": j * k * m + i * j * m, "AC": 2 * i * j * k * m}
    explanation = explain_einsum("ij,jk,km->im", (i, j), (j, k), (k, m))
    assert explanation.path_multiplications == min(orders.values())
    assert orders["".join(explanation.path[0][:2])] == min(orders.values())


# Against others


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_three_operands_in_any_order(order):
    tensors, terms = (numbers(2, 3, 5), numbers(3, 7), numbers(7, 5, 2)), ("bij", "ik", "kjb")
    equation = ",".join(terms[index] for index in order) + "->bk"
    operands = [tensors[index] for index in order]
    explanation = explain_einsum(equation, *operands)
    torch.testing.assert_close(run(explanation.torch_code, *operands), torch.einsum(equation, *operands))
    assert explanation.verify()


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("a,b,c,d,e->cebad", [(2,), (3,), (2,), (1,), (3,)]),
        ("ab,bc,cd,de,ea->", [(2, 3), (3, 4), (4, 5), (5, 3), (3, 2)]),
        ("iij,jkk,kl->l", [(3, 3, 2), (2, 4, 4), (4, 5)]),
        ("abc,cde,ef->abdf", [(2, 3, 5), (5, 2, 3), (3, 2)]),
        ("aij,bij->ab", [(2, 3, 5), (7, 3, 5)]),
        ("abk,kcd->acbd", [(2, 3, 5), (5, 7, 11)]),
        ("abk,kcd->cdab", [(2, 3, 5), (5, 7, 11)]),
        ("bhk,bkcd->bhcd", [(2, 3, 5), (2, 5, 7, 11)]),
        ("bk,bkcd->bcd", [(2, 5), (2, 5, 7, 11)]),
        ("babk,kc->ac", [(2, 3, 2, 5), (5, 7)]),
        ("bxyk,bkzw->bxzyw", [(2, 3, 4, 5), (2, 5, 2, 3)]),
        ("bxyk,bk->yxb", [(2, 3, 5, 7), (2, 7)]),
        ("bxyk,ckzb->xyzbc", [(2, 3, 4, 5), (4, 5, 3, 2)]),
        ("iii->i", [(3, 3, 3)]),
        ("ijij->", [(2, 3, 2, 3)]),
        ("ij,ji->", [(2, 3), (3, 2)]),
        ("ij,jk->ik", [(2, 0), (0, 3)]),
        ("ij,jk->ik", [(0, 2), (2, 3)]),
        ("ij,j->ij", [(2, 0), (1,)]),
        ("bij,bjk->bik", [(1, 3, 5), (2, 5, 7)]),
        ("bij,bjk->bik", [(2, 3, 1), (2, 5, 7)]),
        ("b...,b...->...", [(2, 3, 1), (2, 5)]),
        ("...ij->...ji", [(2, 3, 5, 7)]),
        ("i...,...j->ij", [(2, 3, 5), (3, 5, 7)]),
        ("...i,i->...", [(2, 3, 5), (5,)]),
        ("i->...i", [(3,)]),
        ("", [()]),
        (",->", [(), ()]),
        (",i->i", [(), (3,)]),
        ("ba", [(2, 3)]),
        ("bFa", [(2, 3, 5)]),
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


def test_verify_notices_code_that_differs(monkeypatch):
    for name, wrong in (
        ("loops_source", "output = torch.zeros(2, 5, dtype=A.dtype)"),
        ("torch_source", "output = A @ B * 1.0001"),
        ("torch_source", "output = (A @ B).mT"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"attnlib.einsum.explanation.{name}", lambda *_, wrong=wrong: wrong)
            assert not explain_einsum("ij,jk->ik", (2, 3), (3, 5)).verify()


@pytest.mark.parametrize("equation", ["ij,jk->ik", "ij,jk", "jk,ij"])
def test_letters_mean_what_numpy_means(equation):
    first, second = np.arange(6.0).reshape(2, 3), np.arange(15.0).reshape(3, 5)
    if equation == "jk,ij":
        first, second = second, first
    got = explain_einsum(equation, first, second).run_loops()
    np.testing.assert_allclose(got.numpy(), np.einsum(equation, first, second))


@pytest.mark.parametrize("pattern", [SCORES, "b q ... d, b k ... d -> ... q b k", "b q … d, b k … d -> b … q k"])
def test_words_mean_what_einops_means(pattern):
    query, key = numbers(*SHAPES[0]), numbers(*SHAPES[1])
    want = einops.einsum(query, key, pattern)
    for arguments in ((query, key, pattern), (pattern, query, key)):
        torch.testing.assert_close(explain_einsum(*arguments).run_loops(), want)


@pytest.mark.parametrize(
    "axes", [([0, 1], [1, 2], [2, 0]), ([1, 0], [0, 2]), ([2, 0], [0, 1]), ([..., 3, 0], [0, ...], [..., 3])]
)
def test_lists_of_numbers_mean_what_torch_means(axes):
    a, b = numbers(2, 3), numbers(3, 5) if axes[0] == [0, 1] else numbers(3, 2)
    arguments = (a, axes[0], b, axes[1], *axes[2:])
    explanation = explain_einsum(*arguments)
    torch.testing.assert_close(explanation.run_loops(), torch.einsum(*arguments))
    assert explanation.spelling == "numbers"
    assert explanation.verify()


def test_an_axis_of_size_one_is_an_index_where_it_broadcasts_against_nothing():
    assert "A[i] * B[i]" in explain_einsum("i,i->i", (1,), (1,)).loops
    assert "A[0] * B[i]" in explain_einsum("i,i->i", (1,), (2,)).loops


def test_an_entry_that_is_used_no_time_is_a_warning():
    (warning,) = explain_einsum("i,i->", (1,), (0,)).warnings
    assert "size 1 in A but 0 elsewhere, and is summed: that one entry is used 0 times" in warning


def test_numbers_without_an_output_keep_the_dots():
    a, b = numbers(2, 3, 5), numbers(5, 7)
    explanation = explain_einsum(a, [..., 4], b, [4, 1])
    torch.testing.assert_close(explanation.run_loops(), torch.einsum(a, [..., 4], b, [4, 1]))
    assert explanation.output_shape == (2, 3, 7)


def test_a_plain_shape_has_the_default_dtype_and_a_kibibyte_has_1024_bytes():
    assert "memory of the output: 1.0 KiB" in str(explain_einsum("ij->ji", (16, 16)))
    torch.set_default_dtype(torch.float64)
    try:
        assert "memory of the output: 2.0 KiB" in str(explain_einsum("ij->ji", (16, 16)))
        assert explain_einsum("ij->ji", (16, 16)).run_loops().dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_is_not_a_number_agrees_with_itself():
    assert explain_einsum("i,i->", torch.tensor([torch.nan, 1.0]), torch.ones(2)).verify()


def test_an_axis_that_broadcasts_and_is_summed_costs_one_multiplication():
    """Σ_i A_i B_0 is (Σ_i A_i) B_0."""
    for shapes in ([(5,), (1,)], [(1,), (5,)]):
        assert explain_einsum("i,i->", *shapes).path_multiplications == 1
        assert explain_einsum("i,i->", *shapes).multiplications == 5


def test_operands_may_come_in_one_list():
    a, b = numbers(2, 3), numbers(3, 5)
    for given in ([a, b], (a, b), [(2, 3), (3, 5)]):
        assert explain_einsum("ij,jk->ik", given).output_shape == (2, 5)
    assert explain_einsum("ij->i", [2, 3]).output_shape == (2,)


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
        np.ones((2, 3), dtype=">f4"),
        np.ones((2, 3), dtype="<i2"),
        np.ones((3, 2))[::-1].T,
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


def test_a_scalar_array_is_an_operand():
    assert explain_einsum(",i->i", np.float64(3.0), np.ones(2)).run_loops().tolist() == [3.0, 3.0]


def test_a_plain_shape_stands_for_the_same_numbers_each_time():
    explanation = explain_einsum("ij->ij", (2, 3))
    torch.testing.assert_close(explanation.run_loops(), explain_einsum("ij->ij", (2, 3)).run_loops())
    assert explanation.run_loops().std() > 0.1


# Names that Python or the generated code needs


@pytest.mark.parametrize(
    "pattern",
    ["in for -> for in", "A B -> B A", "output total -> total", "range torch -> torch range", "_ A -> A",
     "α β -> β α", "dots1 ... -> ... dots1", "i0 i1 -> i1 i0"],
)  # fmt: skip
def test_awkward_names_still_run(pattern):
    tensor = numbers(2, 3)
    explanation = explain_einsum(pattern, tensor)
    names = dict(zip(explanation.tensors, [tensor]))
    namespace = {"torch": torch, **names}
    exec(explanation.loops, namespace)
    output = next(line.split(" = ")[0] for line in explanation.loops.splitlines())
    want = tensor.sum(0) if len(explanation.free) == 1 and pattern[0] == "_" else explanation.run_loops()
    torch.testing.assert_close(namespace[output], want)
    namespace = {"torch": torch, **names}
    exec(explanation.torch_code, namespace)
    torch.testing.assert_close(namespace["output"], want)
    assert explanation.verify()


# Letters or words?


@pytest.mark.parametrize(
    ("arguments", "spelling"),
    [
        (("ij,jk->ik", (2, 3), (3, 5)), "letters"),
        ((numbers(2, 3), numbers(3, 5), "ij,jk->ik"), "letters"),
        (("row col, col other -> row other", (2, 3), (3, 5)), "words"),
        (("time, time ->", (3,), (3,)), "words"),
        (("seq_q, seq_k -> seq_q seq_k", (3,), (2,)), "words"),
        (("batch ... -> batch ...", (2, 3)), "words"),
        (("ab... -> ...", (2, 3, 5)), "letters"),
        (("i j, j k -> i k", (2, 3), (3, 5)), "letters"),
    ],
)
def test_the_shapes_decide_between_letters_and_words(arguments, spelling):
    explanation = explain_einsum(*arguments)
    assert explanation.spelling == spelling
    assert explanation.verify()


def test_where_both_fit_the_place_of_the_equation_decides():
    assert explain_einsum("ab ... -> ab ...", (2, 3, 5)).spelling == "letters"
    assert explain_einsum((2, 3, 5), "ab ... -> ab ...").spelling == "words"


def test_a_second_way_to_read_it_is_said():
    assert "torch.einsum would read it otherwise" in explain_einsum("time, time ->", (3,), (3,)).warnings[0]
    explanation = explain_einsum("ab ... -> ab ...", (2, 3))
    assert any("would read it otherwise" in warning for warning in explanation.warnings)
    for arguments in (("ij,jk->ik", (2, 3), (3, 5)), (SCORES, *SHAPES), ("i j, j k -> i k", (2, 3), (3, 5))):
        assert not any("otherwise" in warning for warning in explain_einsum(*arguments).warnings)


# Warnings


@pytest.mark.parametrize(
    ("equation", "shapes", "sentence"),
    [
        ("ba", [(2, 3)], "This transposes"),
        ("bj,ja", [(2, 3), (3, 5)], "sorted by name: (a, b), not in the order of appearance (b, a)"),
        ("ij,jk->ik", [(2, 1), (5, 3)], "`j` has size 1 in A but 5 elsewhere"),
        ("ij,jk->ik", [(2, 5), (1, 3)], "that one entry is used 5 times"),
        ("ij,jk->ik", [(2, 1), (1, 3)], "`j` is summed and has size 1"),
        ("ij->i", [(2, 3)], "`j` occurs once and is not in the output"),
        ("...i->i", [(2, 3)], "NumPy raises an error"),
        ("iI,Ij->ij", [(2, 3), (3, 5)], "`i` and `I` differ only by case"),
        ("batch Head d -> batch Head", [(2, 3, 5)], "`d` occurs once"),
        ("batch heads, batch head -> batch heads", [(2, 3), (2, 3)], "`heads` and `head` differ by one slip"),
        ("batch d, bacth d -> batch", [(2, 3), (2, 3)], "`batch` and `bacth` differ by one slip"),
        ("hidden d, hiddem d -> hidden", [(2, 3), (2, 3)], "`hidden` and `hiddem` differ by one slip"),
    ],
)
def test_warnings(equation, shapes, sentence):
    explanation = explain_einsum(equation, *shapes)
    assert any(sentence in warning for warning in explanation.warnings), explanation.warnings
    assert sentence in str(explanation)
    assert sentence in explanation._repr_markdown_()


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        (SCORES, SHAPES),
        ("ij,jk", [(2, 3), (3, 5)]),
        ("dim1 dim2, dim2 dim3 -> dim1 dim3", [(2, 3), (3, 5)]),
        ("seq_q d, seq_k d -> seq_q seq_k", [(2, 3), (5, 3)]),
        ("i j -> i j", [(1, 3)]),
        ("...i,...j->...ij", [(2, 1, 3), (2, 5, 7)]),
    ],
)
def test_no_warning_without_a_reason(equation, shapes):
    assert explain_einsum(equation, *shapes).warnings == ()


@pytest.mark.parametrize(
    "equation", ["seq_q seq_k -> seq_q", "dims dims2 -> dims", "left d, lest d -> left lest", "dim dims -> dim dims",
                 "row raw -> row"],
)  # fmt: skip
def test_names_that_are_alike_on_purpose_or_short_are_no_slip(equation):
    names = dict(zip(dict.fromkeys(equation.replace("->", "").replace(",", "").split()), (2, 3, 5)))
    shapes = [tuple(names[name] for name in term.split()) for term in equation.split("->")[0].split(",")]
    slips = [warning for warning in explain_einsum(equation, *shapes).warnings if "slip" in warning]
    assert bool(slips) == (equation.startswith("dim dims"))


# How it shows itself


def test_text_and_markdown_hold_every_part():
    explanation = explain_einsum("ij,jk,kl->il", (2, 3), (3, 5), (5, 7))
    text, markdown = str(explanation), explanation._repr_markdown_()
    assert repr(explanation) == text
    for part in ("A (2, 3), B (3, 5), C (5, 7) → output (2, 7)", "summed", "A and B are multiplied along it",
                 "multiplications in the loops: 420", "joined two by two: 100", "memory of the output: 56 bytes",
                 "memory of the largest intermediate: 40 bytes"):  # fmt: skip
        assert part in text
        assert part in markdown
    assert "output[i, l] = Σ_{j, k} A[i, j] · B[j, k] · C[k, l]" in text
    assert r"\mathrm{output}_{i, l} = \sum_{j=0}^{2} \sum_{k=0}^{4} A_{i, j} \, B_{j, k} \, C_{k, l}" in markdown
    assert f"```python\n{explanation.loops}\n```" in markdown
    assert f"```python\n{explanation.torch_code}\n```" in markdown


def test_words_in_the_formula_are_escaped():
    markdown = explain_einsum(SCORES, *SHAPES)._repr_markdown_()
    assert r"A_{\mathrm{batch}, \mathrm{seq\_q}, \mathrm{heads}, d}" in markdown
    assert "The same with permute and matmul" in markdown
    assert "The same without einsum" in str(explain_einsum("ij->i", (2, 3)))


def test_a_scalar_shows_too():
    explanation = explain_einsum(",->", (), ())
    assert "No axes." in str(explanation)
    assert "No axes." in explanation._repr_markdown_()
    assert str(explanation.trace()).startswith("output = ")


def test_large_sizes_are_explained_and_not_run():
    explanation = explain_einsum(SCORES, (8, 1024, 12, 64), (8, 1024, 12, 64))
    assert explanation.multiplications == 8 * 12 * 1024 * 1024 * 64
    assert "384.0 MiB" in str(explanation)
    for call in (explanation.verify, explanation.run_loops):
        with pytest.raises(ValueError, match=r"loops take 6,442,450,944 steps, too many .* smaller sizes"):
            call()


# Trace


def test_a_trace_adds_up_to_the_cell():
    query, key = numbers(*SHAPES[0]), numbers(*SHAPES[1])
    explanation = explain_einsum(SCORES, query, key)
    trace = explanation.trace(1, 2, 4, 10)
    assert len(trace) == 7
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
