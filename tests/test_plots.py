"""The shared pictures: they show the numbers that they are given, and change nothing else."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from attnlib.plots import picture, plot_attention, plot_heads


@pytest.fixture(autouse=True)
def _close():
    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


def test_plot_attention_shows_the_weights_and_the_words():
    weights = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.125, 0.375]], requires_grad=True)
    ax = plot_attention(weights, query_labels=["a", "b"], key_labels=["x", "y", "z"], title="Weights")
    (image,) = ax.images
    assert np.allclose(image.get_array(), weights.detach())
    assert image.get_clim() == (0.0, 1.0)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("Keys", "Queries", "Weights")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["x", "y", "z"]
    assert [text.get_text() for text in ax.texts] == ["0.25", "0.75", "0.00", "0.50", "0.12", "0.38"]
    assert ax.figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)


def test_plot_attention_draws_on_given_axes_and_labels_keys_as_queries():
    _, ax = plt.subplots()
    assert plot_attention(torch.eye(2), query_labels=["a", "b"], ax=ax) is ax
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]
    assert not plot_attention(torch.rand(9, 30)).texts
    unlike = plot_attention(torch.rand(2, 3), query_labels=["a", "b"])
    assert "a" not in [label.get_text() for label in unlike.get_xticklabels()]


def test_plot_heads_draws_one_matrix_per_head_on_one_scale():
    axes = plot_heads(torch.rand(3, 5, 5), labels="abcde")
    assert [ax.get_title() for ax in axes] == ["Head 0", "Head 1", "Head 2"]
    assert all(ax.images[0].get_clim() == (0.0, 1.0) for ax in axes)
    assert axes[0].get_ylabel() == "Queries"


def test_plot_heads_shows_each_head_its_words_and_its_title():
    weights = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0))
    axes = plot_heads(weights, labels="ab", titles=["p", "q", "r"])
    for ax, matrix, title in zip(axes, weights, "pqr", strict=True):
        assert np.allclose(ax.images[0].get_array(), matrix)
        assert ax.get_title() == title
        assert ax.get_xlabel() == "Keys"
        assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["a", "b"]
    assert len(axes[0].figure.axes) == 4  # and one bar of colours


def test_numbers_can_be_read_on_their_colour_and_are_left_out_where_there_are_many():
    ax = plot_attention(torch.tensor([[0.0, 0.5, 0.7, 1.0]]))
    for text, number in zip(ax.texts, (0.0, 0.5, 0.7, 1.0), strict=True):
        page, ink = (np.dot(mpl.colors.to_rgb(c), [0.2, 0.7, 0.1]) for c in (plt.cm.viridis(number), text.get_color()))
        assert abs(page - ink) > 0.35
    assert len(ax.figure.axes) == 2  # a bar says what the colours mean
    assert plot_attention(torch.rand(12, 8)).texts
    assert not plot_attention(torch.rand(13, 8)).texts
    assert not plot_attention(torch.rand(12, 9)).texts


def test_errors():
    with pytest.raises(ValueError, match=r"weights must have shape \(q_tokens, kv_tokens\); got \(2, 3, 4\)"):
        plot_attention(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"weights must have shape \(heads, q_tokens, kv_tokens\); got \(3, 4\)"):
        plot_heads(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="labels must hold a word for each query, 3 of them; got 2"):
        plot_attention(torch.zeros(3, 5), query_labels=["a", "b"])
    with pytest.raises(ValueError, match="labels must hold a word for each key, 5 of them; got 6"):
        plot_attention(torch.zeros(3, 5), key_labels=list("abcdef"))
    with pytest.raises(ValueError, match="labels must hold a word for each key, 5 of them; got 3"):
        plot_heads(torch.zeros(2, 3, 5), labels=["a", "b", "c"])


def test_picture_shows_with_alt_text_and_closes(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda figure, metadata: shown.append((figure, metadata)))
    for drawn in (plot_attention(torch.eye(2)), plot_heads(torch.rand(2, 3, 3)), plt.figure()):
        picture(drawn, alt="what it shows")
    picture("images/causal_mask.svg", alt="a mask")
    assert [metadata for _, metadata in shown] == [{"image/png": {"alt": "what it shows"}}] * 3 + [
        {"image/svg+xml": {"alt": "a mask"}}
    ]
    assert all(isinstance(figure, Figure) for figure, _ in shown[:3])
    assert not plt.get_fignums()
