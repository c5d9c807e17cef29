"""The pictures of notebook 06 show what they are given, and change nothing else."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from attnlib.plots import plot_memory_reads, plot_staircase


@pytest.fixture(autouse=True)
def _closed():
    mpl.use("agg")
    yield
    plt.close("all")


def test_staircase_has_a_line_for_each_memory_and_one_for_guessing():
    edges, accuracy = [2, 32, 64, 128], {"0": [0.1, 0.0, 0.0], "64": [1.0, 1.0, 0.25]}
    ax = plot_staircase(edges, accuracy, chance=0.03)
    drawn = [patch.get_data() for patch in ax.patches]
    for stairs, values in zip(drawn, accuracy.values(), strict=True):
        np.testing.assert_array_equal(stairs.edges, edges)
        np.testing.assert_allclose(stairs.values, values, atol=0.011)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "64", "Guessing"]
    assert ax.get_xlabel()
    assert ax.get_ylabel() == "Right answers"
    assert ax.get_xscale() == "log"
    (guessing,) = ax.lines
    assert set(guessing.get_ydata()) == {0.03}
    assert not plot_staircase(edges, accuracy).lines


def test_staircase_draws_on_the_axes_it_is_given_and_refuses_a_wrong_length():
    _, ax = plt.subplots()
    assert plot_staircase([1, 2], {"a": [0.5]}, ax=ax) is ax
    with pytest.raises(ValueError, match=r"accuracy\['a'\] must have one value for each of the 2 ranges; got 3"):
        plot_staircase([1, 2, 4], {"a": [0.1, 0.2, 0.3]})


def test_memory_reads_stand_where_they_were_stored_and_missing_ones_are_left_out():
    ids, weights = torch.tensor([[3, 9, -1], [4, -1, -1]]), torch.tensor([[0.2, 0.7, 0.0], [0.9, 0.0, 0.0]])
    axes = plot_memory_reads(ids, weights, now=10, capacity=7, labels=[f"word {i}" for i in range(10)])
    assert len(axes) == 2
    dots = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for ax in axes for line in ax.lines]
    assert [x for x, _ in dots] == [[3, 9], [4]]
    np.testing.assert_allclose(dots[0][1], [0.2, 0.7], atol=1e-6)
    assert [[text.get_text() for text in ax.texts] for ax in axes] == [["word 9"], ["word 4"]]
    again = plot_memory_reads(ids.tolist(), weights.requires_grad_(), now=10, capacity=99, labels=["word"] * 10)
    assert [line.get_xdata().tolist() for ax in again for line in ax.lines] == [[3, 9], [4]]
    assert (again[0].patches[0].get_x(), again[0].patches[0].get_width()) == (0, 10)
    (first,) = plot_memory_reads(
        torch.tensor([[3, 9]]), torch.tensor([[0.8, 0.1]]), now=10, capacity=7, labels="abcdefghij"
    )
    assert [text.get_text() for text in first.texts] == ["d"]  # the one that counts most, not the newest
    shaded = axes[0].patches[0]
    assert (shaded.get_x(), shaded.get_width()) == (3, 7)


def test_memory_reads_of_an_empty_memory_and_of_unequal_shapes():
    nothing = torch.full((2, 3), -1)
    axes = plot_memory_reads(nothing, torch.zeros(2, 3), now=4, capacity=4, labels=list("abcd"))
    assert not axes[0].lines
    assert not axes[0].texts
    with pytest.raises(ValueError, match=r"shape \(heads, top_k\); got \(2, 3\) and \(2, 4\)"):
        plot_memory_reads(nothing, torch.zeros(2, 4), now=4, capacity=4, labels=list("abcd"))
