"""The picture of notebook 04 shows which head holds which entry, and changes nothing else."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from attnlib import split_heads
from attnlib.plots import plot_head_split

NUMBERED = torch.arange(30)  # five tokens, two heads of three columns


@pytest.fixture(autouse=True)
def _closed():
    mpl.use("agg")
    yield
    plt.close("all")


def owners(ax):
    return np.asarray(ax.images[0].get_array())


def test_split_heads_hold_columns():
    ax = plot_head_split(split_heads(NUMBERED.view(5, 6).double(), 2), title="split")
    np.testing.assert_array_equal(owners(ax), [[0, 0, 0, 1, 1, 1]] * 5)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Columns", "Tokens")
    assert ax.get_legend().get_title().get_text() == "split"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["Head 0", "Head 1"]
    numbers = {text.get_position(): text.get_text() for text in ax.texts}
    assert numbers == {(column, token): str(6 * token + column) for column in range(6) for token in range(5)}
    inks = {text.get_position()[0]: text.get_color() for text in ax.texts}
    assert inks == dict(enumerate(["white"] * 3 + ["black"] * 3))  # on dark, and on light
    assert ax.images[0].get_cmap().name == "cividis"


def test_a_straight_view_holds_rows():
    expected = np.arange(30).reshape(5, 6) >= 15
    np.testing.assert_array_equal(owners(plot_head_split(NUMBERED.view(2, 5, 3))), expected)


def test_one_head_and_three():
    np.testing.assert_array_equal(owners(plot_head_split(NUMBERED.view(1, 5, 6))), np.zeros((5, 6)))
    three = NUMBERED.view(5, 3, 2).transpose(0, 1)
    np.testing.assert_array_equal(owners(plot_head_split(three)), [[0, 0, 1, 1, 2, 2]] * 5)


def test_entries_must_say_where_they_come_from():
    with pytest.raises(ValueError, match=r"heads must have shape \(num_heads, tokens, head_dim\).*got \(5, 6\)"):
        plot_head_split(NUMBERED.view(5, 6))
    with pytest.raises(ValueError, match="hold 0, 1, 2 … once each"):
        plot_head_split(NUMBERED.view(2, 5, 3) + 1)


def test_draws_on_given_axes_and_changes_no_global_state():
    before = dict(mpl.rcParams)
    _, mine = plt.subplots()
    assert plot_head_split(NUMBERED.view(2, 5, 3), ax=mine) is mine
    assert len(plt.get_fignums()) == 1
    plot_head_split(NUMBERED.view(2, 5, 3))
    assert dict(mpl.rcParams) == before


def test_the_page_is_white_whatever_the_style():
    with mpl.rc_context({"figure.facecolor": "black"}):
        assert plot_head_split(NUMBERED.view(2, 5, 3)).figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
