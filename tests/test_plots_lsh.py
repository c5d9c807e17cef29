"""Hashing: dots, arrows and cells have the colour of their bucket and stand at their place."""

import numpy as np
import pytest
import torch

from attnlib.lsh import lsh_attention
from attnlib.plots import plot_hash_circle, plot_hash_round, plot_sorted

ANGLES = torch.arange(7) * 0.9
CIRCLE = torch.stack([ANGLES.cos(), ANGLES.sin()], -1)
DIRECTIONS = torch.tensor([[1.0, 0.2], [0.1, 1.0]])


def test_dots_have_the_colour_of_their_bucket_and_stand_at_their_place():
    ax = plot_hash_circle(CIRCLE, DIRECTIONS)
    (dots,) = ax.collections
    np.testing.assert_allclose(dots.get_offsets(), CIRCLE, atol=1e-6)
    projected = CIRCLE @ DIRECTIONS
    buckets = torch.cat([projected, -projected], -1).argmax(-1)
    colours = dots.get_facecolors()
    assert torch.equal(buckets[:, None] == buckets, torch.tensor((colours[:, None] == colours).all(-1)))
    arrows = np.array([text.xy for text in ax.texts if hasattr(text, "xy")])  # bucket by bucket
    wanted = torch.cat([DIRECTIONS, -DIRECTIONS], 1).T.numpy()
    np.testing.assert_allclose(arrows / wanted, arrows[0, 0] / wanted[0, 0], rtol=1e-5)
    assert 0 < np.linalg.norm(arrows, axis=1).max() < 1  # they do not reach the dots
    long = np.array([text.xy for text in plot_hash_circle(CIRCLE, 5 * DIRECTIONS).texts if hasattr(text, "xy")])
    np.testing.assert_allclose(long, arrows, rtol=1e-5)
    written = [text.get_text() for text in ax.texts if text.get_text()]
    assert written == [*"0123", *"0123456"], "four buckets, seven tokens"


def test_the_sorted_row_shows_positions_and_borders():
    ax = plot_sorted(torch.tensor([2, 0, 1, 0, 2]), 2)
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2", "3", "4", "1", "3", "2", "0", "4"]
    assert [line.get_xdata()[0] for line in ax.lines] == [0, 2, 4, 5]
    assert [line.get_xdata()[0] for line in plot_sorted(torch.tensor([2, 0, 1, 0]), 2).lines] == [0, 2, 4]
    long = plot_sorted(torch.arange(40) % 2, 8)  # in a bucket, the order of reading stays
    assert [text.get_text() for text in long.texts[40:]] == [str(i) for i in (*range(0, 40, 2), *range(1, 40, 2))]
    colours = [patch.get_facecolor() for patch in ax.patches]
    assert colours[0] == colours[4] != colours[1] == colours[3]
    assert colours[5:] == [colours[i] for i in (1, 3, 2, 0, 4)]


def test_a_round_shows_its_attention():
    circle, row, matrix = plot_hash_round(CIRCLE, DIRECTIONS, chunk_size=3)
    assert (matrix.get_xlabel(), matrix.get_ylabel()) == ("Keys", "Queries")
    weights = np.asarray(matrix.collections[0].get_array())
    assert weights.shape == (7, 7)
    eye = torch.eye(7)[None, None]
    wanted = lsh_attention(CIRCLE[None, None], eye, DIRECTIONS[None, None], chunk_size=3, is_causal=True)
    np.testing.assert_allclose(weights, wanted[0, 0], atol=1e-6)
    assert not np.triu(weights, 1).any()
    few, row_of_few, _ = plot_hash_round(CIRCLE[:2], DIRECTIONS, chunk_size=3)  # the same colours in both pictures
    dots, cells = few.collections[0].get_facecolors(), [patch.get_facecolor() for patch in row_of_few.patches]
    np.testing.assert_allclose(cells[:2], dots)
    assert len(circle.collections) == 1
    assert not row.lines, "the causal rule knows no borders of chunks"
    assert len(row.patches) == 14


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"vectors must have shape \(tokens, 2\); got \(7,\)"):
        plot_hash_circle(torch.ones(7), DIRECTIONS)
    with pytest.raises(ValueError, match=r"directions must have shape \(2, num_buckets // 2\); got \(2,\)"):
        plot_hash_circle(CIRCLE, torch.ones(2))
    with pytest.raises(ValueError, match=r"buckets must have shape \(tokens,\); got \(2, 3\)"):
        plot_sorted(torch.ones(2, 3), 2)
