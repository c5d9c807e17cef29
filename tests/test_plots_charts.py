"""Arrows, bars and curves have the length and the place of the numbers that they are given, inside the axes."""

import math

import numpy as np
import pytest
import torch

from attnlib.plots import plot_arrows, plot_context, plot_curves, plot_memory_reads, plot_parts, plot_softmax

ARROW = torch.tensor([2.0, 1.0])
KEYS = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [-2.0, 1.0]])
LABELS = ["a", "b", "c", "d", "e"]
SCORES = torch.tensor([0.5, -1.25, 3.0, 0.0, 2.0])
QUERY = torch.tensor([0.25, -0.75, 1.5])
ROW, VALUES = torch.tensor([1.0, 2.0, 3.0, 4.0]).log(), torch.tensor([10.0, 20.0, 30.0, 40.0])


def test_arrows_scores_and_shadows_are_those_of_the_vectors():
    ax = plot_arrows(ARROW.bfloat16().requires_grad_(), KEYS, labels="abc")
    ends = np.array([text.xy for text in ax.texts if hasattr(text, "xy")])
    np.testing.assert_array_equal(ends, torch.cat([ARROW[None], KEYS]))
    written = [text.get_text() for text in ax.texts if text.get_text()]
    assert written == ["query", "a: score 4", "b: score 0", "c: score −3"]
    feet = np.array([line.get_xydata()[0] for line in ax.lines if line.get_marker() == "o"])
    np.testing.assert_allclose(feet, [[1.6, 0.8], [0.0, 0.0], [-1.2, -0.6]], atol=1e-12)
    drops = np.array([line.get_xydata() for line in ax.lines if line.get_linestyle() == ":"])
    np.testing.assert_allclose((drops[:, 1] - drops[:, 0]) @ ARROW.numpy(), 0.0, atol=1e-12)  # at right angles
    assert ax.get_aspect() == 1.0, "else the right angles do not look right"


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_every_arrow_lies_inside_the_axes(scale):
    ax = plot_arrows(scale * ARROW, -scale * KEYS, labels="abc")
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for x, y in (scale * torch.cat([ARROW[None], -KEYS])).tolist():
        assert left < x < right
        assert bottom < y < top


@pytest.mark.parametrize(
    ("query", "keys", "message"),
    [
        (torch.zeros(2), KEYS, r"query must have shape \(2,\) and not be zero; got \[0.0, 0.0\]"),
        (torch.ones(3), KEYS, r"query must have shape \(2,\) and not be zero; got \[1.0, 1.0, 1.0\]"),
        (ARROW, KEYS[:2], r"labels must hold a word for each key, 2 of them; got 3"),
    ],
)
def test_arrows_say_what_they_cannot_draw(query, keys, message):
    with pytest.raises(ValueError, match=message):
        plot_arrows(query, keys, labels="abc")


def texts(labels):
    return [label.get_text() for label in labels]


def context(**changes):
    given = {"scores": SCORES, "weights": SCORES.softmax(0), "query": QUERY, "context": QUERY / 2, "labels": LABELS}
    return plot_context(**{**given, **changes})


def heights(ax):
    return [bar.get_height() for bar in ax.patches]


def test_context_shows_the_numbers_and_the_words():
    scores, weights, vectors = context(title="The query is 'b'", scores=SCORES.bfloat16().requires_grad_())
    assert heights(scores) == SCORES.tolist()
    assert heights(weights) == pytest.approx(SCORES.softmax(0).tolist())
    assert heights(vectors) == QUERY.tolist() + (QUERY / 2).tolist()
    assert texts(scores.get_xticklabels()) == texts(weights.get_xticklabels()) == LABELS
    assert "-1.25" in texts(scores.texts)
    assert scores.get_xlabel() == "Keys"
    assert scores.figure.get_suptitle() == "The query is 'b'"
    assert texts(vectors.get_legend().get_texts()) == ["query", "context vector"]


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_context_keeps_everything_inside_the_axes(scale):
    scores, weights, vectors = context(scores=SCORES * scale, query=QUERY * scale, context=-QUERY * scale)
    assert scores.get_ylim()[0] < float(scale * SCORES.min()) < float(scale * SCORES.max()) < scores.get_ylim()[1]
    assert vectors.get_ylim()[0] < -1.5 * scale < 1.5 * scale < vectors.get_ylim()[1]
    assert weights.get_ylim()[0] == 0.0 < 1.0 <= weights.get_ylim()[1]


def test_softmax_shows_scores_and_weights():
    row = torch.tensor([3.5, -2.0, 0.25, 1.0, -7.0])
    scores, weights = plot_softmax(row, row.softmax(0), title="d = 7")
    assert heights(scores) == row.tolist()
    assert heights(weights) == pytest.approx(row.softmax(0).tolist())
    assert scores.figure.get_suptitle() == "d = 7"
    assert scores.get_ylim()[0] < -7.0 < 3.5 < scores.get_ylim()[1]
    assert weights.get_ylim()[0] == 0.0 < 1.0 <= weights.get_ylim()[1]


@pytest.mark.parametrize("cuts", [[], [2], [1, 3], [3, 3, 0, 4]])
def test_wherever_the_row_is_cut_the_merged_average_stays(cuts):
    scores, shares, averages = plot_parts(ROW, VALUES, cuts)
    assert averages.get_title() == "Merged: 30.0000"
    assert sum(heights(shares)) == pytest.approx(1.0)
    assert heights(scores) == pytest.approx(ROW.tolist())
    assert len(shares.patches) == len({0, 4} | set(cuts)) - 1


def test_two_halves_weigh_three_and_seven_tenths():
    scores, shares, averages = plot_parts(ROW, VALUES, [2])
    assert heights(shares) == pytest.approx([0.3, 0.7])
    (cut,) = scores.collections[0].get_segments()
    assert {x for x, _ in cut} == {1.5}, "between the keys 1 and 2"
    assert averages.collections[0].get_offsets()[:, 1].tolist() == pytest.approx([50 / 3, 250 / 7])
    assert averages.lines[0].get_ydata() == pytest.approx([30.0, 30.0])


def test_a_part_far_below_the_others_has_its_own_average():
    _, shares, averages = plot_parts(torch.tensor([900.0, 900.0, -900.0, -900.0]), VALUES, [2])
    assert heights(shares) == [1.0, 0.0]
    assert averages.collections[0].get_offsets()[:, 1].tolist() == pytest.approx([15.0, 35.0])


def test_memory_reads_are_drawn_where_they_were_stored_and_missing_ones_are_omitted():
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


def test_memory_reads_of_an_empty_memory():
    nothing = torch.full((2, 3), -1)
    axes = plot_memory_reads(nothing, torch.zeros(2, 3), now=4, capacity=4, labels=list("abcd"))
    assert not len(axes[0].lines[0].get_xdata())
    assert not axes[0].texts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": SCORES[:4]}, r"scores and weights must have shape .*; got \(5,\) and \(4,\)"),
        ({"context": torch.ones(2)}, r"query and context must have shape \(d_in,\); got \(3,\) and \(2,\)"),
        ({"query": torch.ones(3, 1)}, r"query and context must have shape \(d_in,\); got \(3, 1\)"),
        ({"labels": LABELS[1:]}, "labels must hold a word for each key, 5 of them; got 4"),
    ],
)
def test_context_says_which_argument_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        context(**changes)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"scores and weights must have shape \(tokens,\); got \(5,\) and \(4,\)"):
        plot_softmax(SCORES, SCORES[:4])
    with pytest.raises(ValueError, match=r"scores and values must have shape \(keys,\); got \(4,\) and \(3,\)"):
        plot_parts(ROW, VALUES[:3], [])
    with pytest.raises(ValueError, match=r"shape \(heads, top_k\); got \(2, 3\) and \(2, 4\)"):
        plot_memory_reads(torch.zeros(2, 3), torch.zeros(2, 4), now=4, capacity=4, labels="abcd")


def test_curves_have_their_numbers_and_names():
    ax = plot_curves([1, 4, 2048], {"a": [0.1, 0.2, math.nan], "b": [1, 2, 3]}, xlabel="n", ylabel="t", log="x")
    assert texts(ax.get_legend().get_texts()) == ["a", "b"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.1, 0.2, math.nan])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("n", "t", "linear")
    assert texts(ax.get_xticklabels()) == ["1", "4", "2K"]


def test_curves_start_at_zero_unless_they_go_below():
    assert plot_curves([1, 2], {"a": [1, 3]}, xlabel="n", ylabel="t").get_ylim()[0] == 0
    low, high = plot_curves([1, 2], {"a": [-3, -1]}, xlabel="n", ylabel="t").get_ylim()
    assert low <= -3 < -1 <= high
    assert plot_curves([1, 2], {"a": [1, 3]}, xlabel="n", ylabel="t", log="xy").get_yscale() == "log"


def test_an_unknown_scale_is_named():
    with pytest.raises(ValueError, match="log must be .*; got 'z'"):
        plot_curves([1], {"a": [1]}, xlabel="", ylabel="", log="z")
