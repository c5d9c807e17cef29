"""The picture of notebook 05 marks the entries of one product, writes the numbers, and changes nothing else."""

import pytest
import torch
from matplotlib.colors import to_rgba

from attnlib.einsum import explain_einsum
from attnlib.plots import plot_einsum
from attnlib.plots.einsum import DONE, EMPTY, FILLED, NOW

A, B = torch.arange(1.0, 7).reshape(2, 3), torch.arange(12.0).reshape(3, 4)
PRODUCT = explain_einsum("row inner, inner col -> row col", A, B)


def cells(ax, colour):
    """Numbers of the entries drawn in a colour (None where an entry is empty), by their place (row, column)."""
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    return {
        (patch.get_y(), patch.get_x()): texts.get((patch.get_x() + 0.5, patch.get_y() + 0.5))
        for patch in ax.patches
        if patch.get_facecolor() == to_rgba(colour)
    }


def test_one_step_of_a_matrix_product():
    first, second, output = plot_einsum(PRODUCT, (1, 2), step=1)
    assert cells(first, NOW) == {(1, 1): "5"}
    assert cells(first, DONE) == {(1, 0): "4"}
    assert cells(second, NOW) == {(1, 2): "6"}
    assert cells(second, DONE) == {(0, 2): "2"}
    assert cells(output, FILLED) == {(1, 2): "38"}  # 4 × 2 + 5 × 6
    assert cells(output, EMPTY) == {(1, 3): None}
    assert first.figure.get_suptitle() == "Step 2 of 3: A[1, 1] × B[1, 2] = 5 × 6 = 30"
    assert first.figure.get_supxlabel() == "output[1, 2] so far: 38"
    assert [ax.get_title() for ax in (first, second, output)] == [
        "A (row, inner)", "B (inner, col)", "output (row, col)",
    ]  # fmt: skip
    assert (first.get_xlabel(), first.get_ylabel()) == ("inner", "row")


def test_the_last_step_gives_the_cell_itself():
    for step in (None, 2, 99):
        *_, output = plot_einsum(PRODUCT, (0, 1), step=step)
        assert cells(output, FILLED) == {(0, 1): f"{(A @ B)[0, 1].item():.4g}"}


def test_scalars_vectors_and_blocks_are_drawn():
    (matrix, output) = plot_einsum(explain_einsum("ii->", A[:, :2]), (), step=1)
    assert cells(matrix, NOW) == {(1, 1): "5"}
    assert cells(output, FILLED) == {(0, 0): "6"}
    assert matrix.figure.get_suptitle().endswith("A[1, 1] = 5")
    scores = explain_einsum("batch q heads d, batch k heads d -> batch heads q k", (2, 3, 2, 2), (2, 2, 2, 2))
    query, _, output = plot_einsum(scores, (1, 0, 2, 1))
    ((row, column),) = cells(query, NOW)
    assert (row, column) == pytest.approx((2.7, 2 * 2.7 + 1))  # batch 1, q 2, head 0, d 1
    assert query.get_xlabel() == "d, blocks: q"
    assert query.get_ylabel() == "heads, blocks: batch"
    assert len(output.patches) == 2 * 2 * 3 * 2


@pytest.mark.parametrize("shape", [(2, 2, 2, 2, 2), (30, 30), (0,)])
def test_what_cannot_be_drawn_is_refused(shape):
    names = " ".join("abcde"[: len(shape)])
    with pytest.raises(ValueError, match="at most 4 axes and 1 to 400 entries; got the shape"):
        plot_einsum(explain_einsum(f"{names} -> {names}", shape), (0,) * len(shape))
    with pytest.raises(ValueError, match="index of col must be below"):
        plot_einsum(PRODUCT, (0, 4))
