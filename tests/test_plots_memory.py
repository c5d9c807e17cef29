"""What a token reads from memory is drawn where it was stored."""

import numpy as np
import pytest
import torch

from attnlib.plots import plot_memory_reads


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


def test_memory_reads_of_an_empty_memory_and_of_unequal_shapes():
    nothing = torch.full((2, 3), -1)
    axes = plot_memory_reads(nothing, torch.zeros(2, 3), now=4, capacity=4, labels=list("abcd"))
    assert not len(axes[0].lines[0].get_xdata())
    assert not axes[0].texts
    with pytest.raises(ValueError, match=r"shape \(heads, top_k\); got \(2, 3\) and \(2, 4\)"):
        plot_memory_reads(nothing, torch.zeros(2, 4), now=4, capacity=4, labels=list("abcd"))
