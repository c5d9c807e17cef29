"""The pictures of notebook 02 show the numbers and words that they are given, and change nothing else."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from attnlib.plots import plot_lookup, plot_scaling, plot_softmax

SIZES = (2, 8, 32)
SPREADS = {"plain": [1.4, 2.8, 5.7], "divided": [torch.tensor(1.0), torch.tensor(1.0), torch.tensor(1.1)]}
SLOPES = {"plain": [0.7, 0.4, 0.2], "divided": [0.7, 0.71, 0.72]}
SCORES = torch.tensor([3.5, -2.0, 0.25, 1.0, -7.0])
MATRICES = [torch.rand(3, 5, generator=torch.Generator().manual_seed(1)), torch.eye(3, 5)]
WORDS = {"query_labels": ["p", "q", "r"], "key_labels": ["a", "b", "c", "d", "e"]}


@pytest.fixture(autouse=True)
def _closed():
    mpl.use("agg")
    with mpl.rc_context():
        mpl.rcdefaults()  # so that a setting that an earlier test let slip is seen
        yield
    plt.close("all")


def texts(labels):
    return [label.get_text() for label in labels]


def test_scaling_shows_one_line_for_each_way():
    spread, slope = plot_scaling(SIZES, SPREADS, SLOPES)
    for ax, lines in ((spread, SPREADS), (slope, SLOPES)):
        for line, (label, values) in zip(ax.get_lines(), lines.items(), strict=True):
            assert line.get_label() == label
            assert tuple(line.get_xdata()) == SIZES
            np.testing.assert_allclose(line.get_ydata(), [float(value) for value in values])
        assert texts(ax.get_xticklabels()) == ["2", "8", "32"]
        assert ax.get_xscale() == "log"
        assert texts(ax.get_legend().get_texts()) == ["plain", "divided"]


def test_spreads_double_by_equal_steps():
    spread, slope = plot_scaling(SIZES, SPREADS, SLOPES)
    assert (spread.get_yscale(), slope.get_yscale()) == ("log", "linear")
    assert slope.get_ylim() == (0.0, 1.0)


def test_scaling_leaves_no_line_out_however_many_there_are():
    many = {str(number): [1.0, 2.0, float(number)] for number in range(1, 9)}
    for ax in plot_scaling(SIZES, many, many):
        assert [line.get_label() for line in ax.get_lines()] == list(many)


def test_softmax_shows_scores_and_weights():
    scores, weights = plot_softmax(SCORES, SCORES.softmax(0), title="d = 7")
    assert [bar.get_height() for bar in scores.patches] == SCORES.tolist()
    assert [bar.get_height() for bar in weights.patches] == pytest.approx(SCORES.softmax(0).tolist())
    assert scores.figure.get_suptitle() == "d = 7"
    assert scores.get_ylim()[0] < -7.0 < 7.0 < scores.get_ylim()[1]
    assert weights.get_ylim()[0] == 0.0
    assert weights.get_ylim()[1] >= 1.0
    with pytest.raises(ValueError, match=r"must both have shape \(kv_tokens,\); got \(5,\) and \(4,\)"):
        plot_softmax(SCORES, SCORES[:4])


def test_lookup_shows_every_matrix_from_0_to_1():
    axes = plot_lookup(MATRICES, titles=["Before", "Best"], **WORDS)
    for ax, matrix, title in zip(axes, MATRICES, ["Before", "Best"], strict=True):
        (image,) = ax.get_images()
        np.testing.assert_allclose(image.get_array(), matrix.numpy())
        assert image.get_clim() == (0.0, 1.0)
        assert ax.get_title() == title
        assert ax.get_xlabel() == "Keys"
        assert texts(ax.get_xticklabels()) == WORDS["key_labels"]
    assert axes[0].get_ylabel() == "Queries"
    assert texts(axes[0].get_yticklabels()) == WORDS["query_labels"]
    with pytest.raises(ValueError, match=r"\(q_tokens, kv_tokens\) = \(3, 5\); got \(5, 3\)"):
        plot_lookup([MATRICES[0].T], titles=["Before"], **WORDS)
    with pytest.raises(ValueError, match="titles must hold a line for each of the 2 matrices; got 1"):
        plot_lookup(MATRICES, titles=["Before"], **WORDS)


def test_changes_nothing_else():
    settings, given = dict(mpl.rcParams), MATRICES[0].clone()
    plot_scaling(SIZES, SPREADS, SLOPES)
    plot_softmax(SCORES, SCORES.softmax(0))
    plot_lookup(MATRICES, titles=["Before", "Best"], **WORDS)
    assert dict(mpl.rcParams) == settings
    assert torch.equal(MATRICES[0], given)
    assert len(plt.get_fignums()) == 3
