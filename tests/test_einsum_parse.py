"""What explain_einsum says about a broken equation: the user's own names, a caret under the place, a likely fix."""

import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnlib.einsum import explain_einsum

CASES = {
    "a stray comma before the arrow": (
        "batch seqQ n_head d_head, batch seqK n_head d_head, -> batch n_head seqQ seqK",
        [(2, 3, 5, 7), (2, 11, 5, 7)],
        "names 3 inputs, but 2 operands came: there is a stray comma",
        ",",
    ),
    "a stray comma in front": (",ij->i", [(2, 3)], "there is a stray comma", ","),
    "a missing arrow": ("batch q d, batch k d", [(2, 3, 5), (2, 7, 5)], "has no `->`", ""),
    "letters and a missing arrow": ("ij,jk ik", [(2, 3), (3, 5)], "has no `->`", ""),
    "a missing comma": ("batch q d batch k d -> q k", [(2, 3, 5), (2, 7, 5)], "comma is missing", None),
    "an unknown axis": ("batch q d -> batch q dd", [(2, 3, 5)], "`dd` in the output, but in no input", "dd"),
    "a typo in the output": ("batch heads d -> batch haeds", [(2, 3, 5)], "Did you mean `heads`?", "haeds"),
    "an unknown axis, nothing near": ("ij->z", [(2, 3)], "The inputs have i, j", "z"),
    "an output without an input": ("->i", [()], "`i` in the output, but in no input", "i"),
    "a word without an input": ("-> seq_q", [()], "`seq_q` in the output, but in no input", "seq_q"),
    "sizes that disagree": ("ij,jk->ik", [(2, 3), (5, 7)], "`j` two sizes: 3 in A .axis 1 of shape .2, 3.. and 5 in B",
                            "jj"),
    "sizes behind three dots": ("...i,...i->i", [(2, 3), (5, 3)], "axis `...` two sizes: 2 in A", "......"),
    "sizes on a diagonal": ("ii->i", [(2, 3)], "2 in A .* and 3 in A .*the diagonal needs equal sizes", "ii"),
    "a diagonal that does not broadcast": ("ii->i", [(1, 3)], "1 in A .axis 0", None),
    "too few scalars": (",->", [()], "2 inputs, but 1 operand came: too few operands", "-"),
    "dots with a space": ("a ... b ... -> a", [(2, 3)], "a second `...`", "..."),
    "too few operands": ("ij,jk->ik", [(2, 3)], "too few operands", "jk"),
    "too many operands": ("ij->i", [(2, 3), (3,)], "1 input, but 2 operands came: too many operands", "ij"),
    "a group": ("batch (h d) -> batch h d", [(2, 6)], "einops.rearrange", "(h d)"),
    "half a group": ("b (h d -> b", [(2, 6)], "parenthesis", "(h d -> b"),
    "the other half of a group": ("b h) -> b", [(2, 6)], "parenthesis", ")"),
    "too few axes": ("bij->b", [(2, 3)], "names `b`, `i`, `j` for operand A, but its shape is .2, 3.. Each let", "bij"),
    "too many axes": ("ij->i", [(2, 3, 5)], "write `...` for those that need no name", "ij"),
    "words without spaces": ("batch->batch", [(2, 3)], "Each letter is one axis; whole words need spaces", "batch"),
    "a scalar with axes": (",i->i", [(2,), (2,)], "names no axis for operand A, but its shape is .2,.. Name each", ","),
    "a repeated output": ("ij->ii", [(2, 3)], "`i` twice in the output", "ii"),
    "two arrows": ("i->j->k", [(2,)], "`->` after the arrow, but there is only one output", "->"),
    "another arrow": ("i j → i", [(2, 3)], "'→'; only names, spaces, `,`, `...` and `->` are allowed", "→"),
    "half an arrow": ("ij-i", [(2, 3)], "the character '-'", "-"),
    "the other half": ("ij>i", [(2, 3)], "the character '>'", ">"),
    "two outputs": ("ij->i,j", [(2, 3)], "`,` after the arrow, but there is only one output", ","),
    "two dots": ("..i->i", [(2, 3)], "an axis `.`; a name has letters", "."),
    "three dots twice": ("...i...->i", [(2, 3)], "a second `...`", "..."),
    "dots glued to a word": ("batch...->batch", [(2, 3)], "names `b`, `a`, `t`, `c`, `h` for", None),
    "dots glued before a word": ("...seq_q -> seq_q", [(2, 3)], "space on each side of `...`", "seq_q"),
    "one word for each operand": ("batch,batch->batch", [(2,), (3,)], "axis `batch` two sizes", None),
    "a word and a scalar": ("batch, batch ->", [(2,), ()], "names `batch` for operand B", "batch"),
    "a number": ("1 j -> j", [(1, 3)], "an axis `1`; a name has letters", "1"),
    "a digit in front": ("2d j -> j", [(2, 3)], "begins with a letter", "2d"),
    "an underscore in front": ("_d j -> j", [(2, 3)], "begins with a letter", "_d"),
    "an underscore at the end": ("batch_ j -> j", [(2, 3)], "does not end with an underscore", "batch_"),
    "a ligature": ("ﬁ j -> j", [(2, 3)], "an axis `ﬁ`", "ﬁ"),
    "a line break": ("i j\n-> i", [(2, 3)], r"the character '\\n'", "?"),
    "a control character": ("i\x1bj->i", [(2, 3)], r"the character '\\x1b'", None),
    "Python code": ("__import__('os').system('true')", [(2,)], "parenthesis", None),
    "a letter of another alphabet": ("αj->j", [(2, 3)], "names `αj` for", "αj"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_message_names_the_fault_and_a_caret_marks_the_place(case):
    equation, shapes, message, place = CASES[case]
    with pytest.raises(ValueError, match=message) as caught:
        explain_einsum(equation, *shapes)
    assert str(caught.value).startswith("equation ")
    _, shown, carets = str(caught.value).split("\n")
    assert "^" in carets
    if place is not None:
        marked = "".join(c for c, mark in zip(shown.ljust(len(carets)), carets.ljust(len(shown))) if mark == "^")
        assert marked.strip() == place


def test_the_caret_marks_the_stray_comma_before_the_arrow():
    with pytest.raises(ValueError, match="stray comma") as caught:
        explain_einsum("batch q d, batch k d, -> batch q k", (2, 3, 5), (2, 7, 5))
    _, shown, carets = str(caught.value).split("\n")
    assert shown[carets.index("^") :] == ", -> batch q k"


def test_sizes_disagree_with_the_one_that_decides_not_with_a_size_of_one():
    with pytest.raises(ValueError, match=r"two sizes: 3 in B \(axis 0 .* and 5 in C \(axis 0"):
        explain_einsum("i,i,i->i", (1,), (3,), (5,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, (2,)), "equation must be a str and come first; got NoneType"),
        ((torch.ones(2), "i->i"), "equation must be a str and come first; got Tensor"),
        (("i->i", 3), "operand A must be a tensor, an array of numbers or a shape such as .2, 3.; got int"),
        (("i,i->i", (2,), (2, True)), "operand B must be a tensor.*got tuple"),
        (("i->i", np.array(["a"])), "operand A must be .* got ndarray: can't convert"),
    ],
)
def test_wrong_types(arguments, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        explain_einsum(*arguments)


def test_a_tensor_of_rows_of_different_lengths_is_refused():
    ragged = torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged)
    with pytest.raises(TypeError, match="^operand A must be a tensor"):
        explain_einsum("i->i", ragged)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("i->i",), "operands must be 1 to 26 tensors or shapes; got 0"),
        (("i->i", *[(2,)] * 27), "operands must be 1 to 26 tensors or shapes; got 27"),
        (("i->i", (-1,)), r"operand A must be a shape that a tensor can have; got \(-1,\)"),
        (("i,i->i", (2,), (2**40, 2**40)), "operand B must be a shape that a tensor can have"),
        (("i->i", (2**70,)), "operand A must be a shape that a tensor can have"),
        (("abcdefghijklmnopqrstu->", (1,) * 21), "equation must have at most 20 axes, one loop each; got 21"),
    ],
)
def test_wrong_values(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        explain_einsum(*arguments)


def test_twenty_axes_are_fine():
    assert explain_einsum("abcdefghijklmnopqrst->", (1,) * 20).verify()


@pytest.mark.parametrize("unit", ["a,", "(", "a b ", "->", "é"])
def test_a_pattern_of_a_million_characters_gets_a_plain_error_at_once(unit):
    start = time.perf_counter()
    with pytest.raises(ValueError, match="equation must have at most 500 characters; got 1000000$"):
        explain_einsum(unit * (1_000_000 // len(unit)), (2, 3))
    assert time.perf_counter() - start < 1


def test_the_message_is_printable():
    for character in "\x00\x07\x1b\u202e\u200b\ud800":
        with pytest.raises(ValueError, match="character") as caught:
            explain_einsum(f"i{character}j->i", (2, 3))
        assert str(caught.value).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("cell", "error", "message"),
    [
        ((0,), ValueError, r"trace needs one index for each axis of the output \(row, col\); got 1"),
        ((0, 5), ValueError, "index of col must be below its size, 5; got 5"),
        ((-1, 0), ValueError, "index of row must be at least 0; got -1"),
        ((0, 1.0), TypeError, "index of col must be an int; got float"),
    ],
)
def test_a_trace_names_the_axis_of_a_wrong_index(cell, error, message):
    with pytest.raises(error, match=f"^{message}"):
        explain_einsum("row inner, inner col -> row col", (2, 3), (3, 5)).trace(*cell)


def test_a_trace_of_a_scalar_takes_no_index():
    with pytest.raises(ValueError, match="axis of the output .none, because the output is a single number.; got 1"):
        explain_einsum("i->", (2,)).trace(0)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(st.text(max_size=30), st.text("ijk,->. ()_1", max_size=20)),
    st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), max_size=3),
)
def test_any_text_is_explained_or_refused_with_a_value_error(text, shapes):
    try:
        explanation = explain_einsum(text, *shapes)
    except ValueError:
        return
    assert explanation.verify()
    assert str(explanation)
    assert explanation._repr_markdown_()
