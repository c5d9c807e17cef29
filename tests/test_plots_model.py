"""All heads of a model on one page: each number is in the place of its layer, head, query and key."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from attnlib.plots import plot_head_numbers, plot_model, to_svg
from attnlib.plots.model import STEPS


def cells(ax, layers, heads, rows, columns):
    """Which of the colours each cell has, by layer, head, query and key; 0 where nothing is drawn on the ground."""
    levels = np.zeros((layers, heads, rows, columns), dtype=int)
    colours = {to_hex(STEPS(level)): level for level in range(STEPS.N)}
    for patch in ax.patches[layers * heads :]:
        for x, y in patch.get_path().vertices[::5]:
            head, column = divmod(x + 1e-9, 1.1 * columns)
            layer, row = divmod(y + 1e-9, 1.1 * rows)
            levels[int(layer), int(head), int(row), int(column)] = colours[to_hex(patch.get_facecolor())]
    return levels


def test_each_weight_is_drawn_in_its_place_in_one_of_ten_colours():
    weights = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights[0, 0, 0, 0], weights[1, 2, 4, 3] = 0.0, 1.0
    ax = plot_model(weights)
    wanted = (weights.sqrt() * 10).int().clamp(max=9)
    np.testing.assert_array_equal(cells(ax, 2, 3, 5, 4), wanted)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["Head 0", "Head 1", "Head 2"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Layer 0", "Layer 1"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Keys", "Queries")
    bottom, top = ax.get_ylim()
    assert bottom > top, "the first layer on top"


def test_a_page_of_a_real_models_size_is_small():
    assert len(to_svg(plot_model(torch.rand(6, 12, 9, 9).softmax(-1)).figure)) < 300_000


def test_head_numbers_are_written_with_two_digits_or_as_counts():
    ax = plot_head_numbers(torch.tensor([[0.0, 0.25, 0.125], [1.0, 0.5, 0.3]]), label="Share")
    assert [text.get_text() for text in ax.texts] == ["0.00", "0.25", "0.12", "1.00", "0.50", "0.30"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Layer 0", "Layer 1"]
    assert ax.figure.axes[1].get_ylabel() == "Share"
    counts = plot_head_numbers(torch.tensor([[208, 1]]), label="Keys")
    assert [text.get_text() for text in counts.texts] == ["208", "1"]


def test_errors_name_the_shape():
    with pytest.raises(ValueError, match=r"\(layers, heads, q_tokens, kv_tokens\); got \(3, 4, 5\)"):
        plot_model(torch.rand(3, 4, 5))
    with pytest.raises(ValueError, match=r"shape \(layers, heads\), and none may be below 0; got \(2,\)"):
        plot_head_numbers(torch.rand(2), label="n")
    with pytest.raises(ValueError, match="none may be below 0"):
        plot_head_numbers(-torch.ones(2, 2), label="n")
