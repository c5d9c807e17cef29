"""The pictures of notebook 03 show the masks that they are given, and change nothing else."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from attnlib import causal_mask
from attnlib.plots import plot_masks

MASKS = {"look": causal_mask(3, 5), "hide": ~causal_mask(3, 5)}


@pytest.fixture(autouse=True)
def _closed():
    mpl.use("agg")
    yield
    plt.close("all")


def test_each_cell_shows_its_word_and_its_colour():
    for ax, (title, mask) in zip(plot_masks(MASKS), MASKS.items(), strict=True):
        assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == (title, "Keys", "Queries")
        np.testing.assert_array_equal(ax.images[0].get_array(), mask.numpy())
        assert ax.images[0].get_clim() == (0.0, 1.0)
        words = {text.get_position(): text.get_text() for text in ax.texts}
        assert words == {(j, i): str(bool(mask[i, j])) for i in range(3) for j in range(5)}
        assert {(text.get_text(), text.get_color()) for text in ax.texts} == {("True", "black"), ("False", "white")}
        assert ax.images[0].get_cmap().name == "cividis"  # light where True


def test_tokens_are_named_on_both_axes():
    (ax,) = plot_masks({"one": causal_mask(3)}, labels=["a", "b", "c"])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]


def test_errors_name_the_mask():
    with pytest.raises(ValueError, match=r"masks\['wrong'\] must have shape \(q_tokens, kv_tokens\); got \(3,\)"):
        plot_masks({"right": causal_mask(3), "wrong": torch.ones(3)})


def test_no_global_state_changes():
    before = dict(mpl.rcParams)
    figures = plt.get_fignums()
    axes = plot_masks(MASKS)
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == [*figures, axes[0].figure.number]


def test_the_page_is_white_whatever_the_style():
    with mpl.rc_context({"figure.facecolor": "black"}):
        assert plot_masks(MASKS)[0].figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
