"""Arrows end where their vectors end, and each key lands on the line of the query where its score says."""

import numpy as np
import pytest
import torch

from attnlib.plots import plot_arrows

QUERY = torch.tensor([2.0, 1.0])
KEYS = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [-2.0, 1.0]])


def test_arrows_scores_and_shadows_are_those_of_the_vectors():
    ax = plot_arrows(QUERY.bfloat16().requires_grad_(), KEYS, labels="abc")
    ends = np.array([text.xy for text in ax.texts if hasattr(text, "xy")])
    np.testing.assert_array_equal(ends, torch.cat([QUERY[None], KEYS]))
    written = [text.get_text() for text in ax.texts if text.get_text()]
    assert written == ["query", "a: score 4", "b: score 0", "c: score −3"]
    feet = np.array([line.get_xydata()[0] for line in ax.lines if line.get_marker() == "o"])
    np.testing.assert_allclose(feet, [[1.6, 0.8], [0.0, 0.0], [-1.2, -0.6]], atol=1e-12)
    drops = np.array([line.get_xydata() for line in ax.lines if line.get_linestyle() == ":"])
    np.testing.assert_allclose((drops[:, 1] - drops[:, 0]) @ QUERY.numpy(), 0.0, atol=1e-12)  # at right angles
    assert ax.get_aspect() == 1.0, "else the right angles do not look right"


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_every_arrow_lies_inside_the_axes(scale):
    ax = plot_arrows(scale * QUERY, -scale * KEYS, labels="abc")
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for x, y in (scale * torch.cat([QUERY[None], -KEYS])).tolist():
        assert left < x < right
        assert bottom < y < top


@pytest.mark.parametrize(
    ("query", "keys", "message"),
    [
        (torch.zeros(2), KEYS, r"query must have shape \(2,\) and not be zero; got \[0.0, 0.0\]"),
        (torch.ones(3), KEYS, r"query must have shape \(2,\) and not be zero; got \[1.0, 1.0, 1.0\]"),
        (QUERY, KEYS[:2], r"labels must hold a word for each key, 2 of them; got 3"),
    ],
)
def test_says_what_it_cannot_draw(query, keys, message):
    with pytest.raises(ValueError, match=message):
        plot_arrows(query, keys, labels="abc")
