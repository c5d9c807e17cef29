"""Matrices show the numbers and words that they are given, on a scale that fits."""

import matplotlib as mpl
import numpy as np
import pytest
import torch

from attnlib import causal_mask, split_heads
from attnlib.plots import (
    plot_attention,
    plot_head_numbers,
    plot_head_split,
    plot_heads,
    plot_masks,
    plot_model,
    plot_ring,
    to_svg,
)
from attnlib.plots.matrices import STEPS

NUMBERED = torch.arange(30.0)  # five tokens, two heads of three columns


def texts(labels):
    return [label.get_text() for label in labels]


def cells(ax):
    (mesh,) = ax.collections
    return np.asarray(mesh.get_array())


def words(ax):
    return {(int(y), int(x)): text.get_text() for text in ax.texts for x, y in [text.get_position()]}


def test_attention_shows_the_weights_and_the_words():
    weights = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.125, 0.375]], requires_grad=True)
    ax = plot_attention(weights, query_labels=["a", "b"], key_labels=["x", "y", "z"], title="Weights")
    np.testing.assert_allclose(cells(ax), weights.detach())
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("Keys", "Queries", "Weights")
    assert texts(ax.get_yticklabels()) == ["a", "b"]
    assert texts(ax.get_xticklabels()) == ["x", "y", "z"]
    assert list(words(ax).values()) == ["0.25", "0.75", "0.00", "0.50", "0.12", "0.38"]
    assert ax.get_ylim() == (1.5, -0.5), "the first query on top"


def test_small_weights_use_all_colours_and_the_bar_says_where_the_scale_ends():
    ax = plot_attention(torch.tensor([[0.1, 0.2, 0.4]]))
    (mesh,) = ax.collections
    assert mesh.get_clim() == pytest.approx((0.0, 0.4))
    bar = ax.figure.axes[1]
    assert bar.get_ylabel() == "Weight (largest: 0.40)"
    assert texts(bar.get_yticklabels()) == ["0", "0.20", "0.40"]
    for axes in (
        plot_heads(torch.stack([torch.eye(3), torch.full((3, 3), 0.1)])),
        [plot_attention(torch.eye(9) + 0.1)],
    ):
        small, none = axes[-1].collections[0].to_rgba([0.1, 0.0])
        assert np.abs(small - none).sum() > 0.5, "without numbers, small weights are told apart by colour"


def test_numbers_can_be_read_on_their_colour_and_are_omitted_if_there_are_many():
    ax = plot_attention(torch.tensor([[0.0, 0.5, 0.7, 1.0]]))
    for text, colour in zip(ax.texts, ax.collections[0].to_rgba([0.0, 0.5, 0.7, 1.0]), strict=True):
        page, ink = (np.dot(mpl.colors.to_rgb(c), [0.2, 0.7, 0.1]) for c in (colour, text.get_color()))
        assert abs(page - ink) > 0.35
    assert plot_attention(torch.rand(12, 8)).texts
    assert not plot_attention(torch.rand(13, 8)).texts
    assert not plot_attention(torch.rand(12, 9)).texts


def test_attention_draws_on_given_axes_and_labels_keys_as_queries():
    ax = mpl.figure.Figure().subplots()
    assert plot_attention(torch.eye(2), query_labels=["a", "b"], ax=ax) is ax
    assert texts(ax.get_xticklabels()) == ["a", "b"]
    assert "a" not in texts(plot_attention(torch.rand(2, 3), query_labels=["a", "b"]).get_xticklabels())


def test_heads_share_one_scale_and_each_has_its_words_and_title():
    weights = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0))
    axes = plot_heads(weights, labels="ab", titles=["p", "q", "r"])
    for ax, matrix, title in zip(axes, weights, "pqr", strict=True):
        np.testing.assert_allclose(cells(ax), matrix)
        assert (ax.get_title(), ax.get_xlabel(), texts(ax.get_xticklabels())) == (title, "Keys", ["a", "b"])
        assert ax.collections[0].get_clim() == pytest.approx((0.0, float(weights.max())))
    assert len(axes[0].figure.axes) == 4, "and one bar of colours"
    assert [ax.get_title() for ax in plot_heads(weights)] == ["Head 0", "Head 1", "Head 2"]


def test_heads_whose_keys_are_not_their_queries_have_words_for_both():
    axes = plot_heads(torch.rand(2, 3, 5), labels=["p", "q", "r"], key_labels="abcde")
    assert [texts(ax.get_xticklabels()) for ax in axes] == [list("abcde")] * 2
    assert texts(axes[0].get_yticklabels()) == ["p", "q", "r"]


def test_masks_show_their_words_in_dark_and_light():
    masks = {"look": causal_mask(3, 5), "hide": ~causal_mask(3, 5)}
    for ax, (title, mask) in zip(plot_masks(masks), masks.items(), strict=True):
        assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == (title, "Keys", "Queries")
        assert words(ax) == {(i, j): str(bool(mask[i, j])) for i in range(3) for j in range(5)}
        assert {(text.get_text(), text.get_color()) for text in ax.texts} == {("True", "black"), ("False", "white")}
    (ax,) = plot_masks({"one": causal_mask(3)}, labels=["a", "b", "c"])
    assert texts(ax.get_xticklabels()) == texts(ax.get_yticklabels()) == ["a", "b", "c"]


def test_split_heads_hold_columns_and_a_plain_view_holds_rows():
    ax = plot_head_split(split_heads(NUMBERED.view(5, 6), 2), title="split")
    np.testing.assert_array_equal(cells(ax), [[0, 0, 0, 1, 1, 1]] * 5)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Columns", "Tokens")
    assert ax.get_legend().get_title().get_text() == "split"
    assert texts(ax.get_legend().get_texts()) == ["Head 0", "Head 1"]
    assert words(ax) == {(token, column): str(6 * token + column) for column in range(6) for token in range(5)}
    np.testing.assert_array_equal(cells(plot_head_split(NUMBERED.view(2, 5, 3))), np.arange(30).reshape(5, 6) >= 15)
    three = NUMBERED.view(5, 3, 2).transpose(0, 1)
    np.testing.assert_array_equal(cells(plot_head_split(three)), [[0, 0, 1, 1, 2, 2]] * 5)
    np.testing.assert_array_equal(cells(plot_head_split(NUMBERED.view(1, 5, 6))), np.zeros((5, 6)))


def test_in_a_ring_each_process_gets_what_the_one_before_it_had():
    ax = plot_ring(3, is_causal=True)
    named = [text.get_text() for text in ax.texts if text.get_text().startswith("keys of ")]
    held = np.array([int(text.removeprefix("keys of ")) for text in named]).reshape(3, 3)
    assert held.tolist() == [[0, 1, 2], [2, 0, 1], [1, 2, 0]]
    useless = {(round(y), int(x)) for text in ax.texts if "future" in text.get_text() for x, y in [text.get_position()]}
    assert useless == {(step, rank) for step, rank in np.ndindex(3, 3) if held[step, rank] > rank}
    assert not any("future" in text.get_text() for text in plot_ring(3).texts)


def levels_of_cells(ax, layers, heads, rows, columns):
    """Which of the colours each cell has, by layer, head, query and key; 0 where nothing is drawn on the ground."""
    levels = np.zeros((layers, heads, rows, columns), dtype=int)
    colours = {mpl.colors.to_hex(STEPS(level)): level for level in range(STEPS.N)}
    for patch in ax.patches[layers * heads :]:
        for x, y in patch.get_path().vertices[::5]:
            head, column = divmod(x + 1e-9, 1.1 * columns)
            layer, row = divmod(y + 1e-9, 1.1 * rows)
            levels[int(layer), int(head), int(row), int(column)] = colours[mpl.colors.to_hex(patch.get_facecolor())]
    return levels


def test_each_weight_is_drawn_in_its_place_in_one_of_ten_colours():
    weights = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights[0, 0, 0, 0], weights[1, 2, 4, 3] = 0.0, 1.0
    ax = plot_model(weights)
    wanted = (weights.sqrt() * 10).int().clamp(max=9)
    np.testing.assert_array_equal(levels_of_cells(ax, 2, 3, 5, 4), wanted)
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
    bar = ax.figure.axes[1]
    assert (bar.get_ylabel(), texts(bar.get_yticklabels())) == ("Share", ["0", "0.25", "1.00"])
    counts = plot_head_numbers(torch.tensor([[208, 1]]), label="Keys")
    assert [text.get_text() for text in counts.texts] == ["208", "1"]


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"weights must have shape \(q_tokens, kv_tokens\); got \(2, 3, 4\)"):
        plot_attention(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"weights must have shape \(heads, q_tokens, kv_tokens\); got \(3, 4\)"):
        plot_heads(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="labels must hold a word for each query, 3 of them; got 2"):
        plot_attention(torch.zeros(3, 5), query_labels=["a", "b"])
    with pytest.raises(ValueError, match="labels must hold a word for each key, 5 of them; got 6"):
        plot_attention(torch.zeros(3, 5), key_labels=list("abcdef"))
    with pytest.raises(ValueError, match="labels must hold a word for each query, 5 of them; got 3"):
        plot_heads(torch.ones(1, 5, 3), labels=["p", "q", "r"])
    with pytest.raises(ValueError, match="is shorter than"):
        plot_heads(torch.ones(2, 3, 5), titles=["Before"])
    with pytest.raises(ValueError, match=r"masks\['wrong'\] must have shape \(q_tokens, kv_tokens\); got \(3,\)"):
        plot_masks({"right": causal_mask(3), "wrong": torch.ones(3)})
    with pytest.raises(ValueError, match=r"heads must have shape \(num_heads, tokens, head_dim\).*got \(5, 6\)"):
        plot_head_split(NUMBERED.view(5, 6))
    with pytest.raises(ValueError, match="hold 0, 1, 2 … once each"):
        plot_head_split(NUMBERED.view(2, 5, 3) + 1)
    with pytest.raises(ValueError, match=r"\(layers, heads, q_tokens, kv_tokens\); got \(3, 4, 5\)"):
        plot_model(torch.rand(3, 4, 5))
    with pytest.raises(ValueError, match=r"numbers must have shape \(layers, heads\); got \(2,\)"):
        plot_head_numbers(torch.rand(2), label="n")
