"""The pictures of notebook 08 draw the numbers that they are given."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from attnlib.plots import plot_parts, plot_ring


@pytest.fixture(autouse=True)
def _no_window():
    mpl.use("agg")
    yield
    plt.close("all")


SCORES, VALUES = torch.tensor([1.0, 2.0, 3.0, 4.0]).log(), torch.tensor([10.0, 20.0, 30.0, 40.0])


@pytest.mark.parametrize("cuts", [[], [2], [1, 3], [3, 3, 0, 4]])
def test_wherever_the_row_is_cut_the_merged_average_stays(cuts):
    scores, shares, averages = plot_parts(SCORES, VALUES, cuts)
    assert averages.get_title() == "Merged: 30.0000"
    assert sum(bar.get_height() for bar in shares.patches) == pytest.approx(1.0)
    assert len(scores.patches) == 4
    assert len(shares.patches) == len({0, 4} | set(cuts)) - 1


def test_two_halves_weigh_three_and_seven_tenths():
    scores, shares, averages = plot_parts(SCORES, VALUES, [2])
    assert [bar.get_height() for bar in shares.patches] == pytest.approx([0.3, 0.7])
    assert [bar.get_height() for bar in scores.patches] == pytest.approx(SCORES.tolist())
    (cut,) = scores.lines
    assert set(cut.get_xdata()) == {1.5}  # between the keys 1 and 2
    *parts, merged = [line.get_ydata() for line in averages.lines]
    assert [float(height) for (height,) in parts] == pytest.approx([50 / 3, 250 / 7])
    assert merged == pytest.approx([30.0, 30.0])


def test_in_a_ring_each_process_gets_what_the_one_before_it_had():
    ax = plot_ring(3, is_causal=True)
    texts = [text.get_text().splitlines() for text in ax.texts if text.get_text()]
    held = np.array([int(lines[0].removeprefix("keys of ")) for lines in texts]).reshape(3, 3)
    assert held.tolist() == [[0, 1, 2], [2, 0, 1], [1, 2, 0]]
    useless = np.array([len(lines) == 2 for lines in texts]).reshape(3, 3)
    assert useless.tolist() == (held > np.arange(3)).tolist()
    assert not any("future" in text.get_text() for text in plot_ring(3).texts)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"scores and values must have shape \(keys,\); got \(4,\) and \(3,\)"):
        plot_parts(SCORES, VALUES[:3], [])
    with pytest.raises(ValueError, match="processes must be at least 1; got 0"):
        plot_ring(0)
