"""What a token reads from memory."""

from collections.abc import Sequence

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from torch import Tensor

from attnlib.plots._base import as_arrays, hide_box, palette


@style.context("default")
def plot_memory_reads(ids: Tensor, weights: Tensor, *, now: int, capacity: int, labels: Sequence[str]) -> np.ndarray:
    """Draw, for each head, which memories one token reads, when they were stored, and how much each one counts.

    Args:
        ids: (heads, top_k), the position at which each memory was stored; −1 if there was none.
        weights: (heads, top_k), what each one counts, 0 … 1.
        now: how many tokens have been stored.
        capacity: how many of them the memory still holds; this stretch is shaded.
        labels: a word for each stored token, ``now`` of them; the one that counts most is written.

    Returns one axes for each head, one above the other.
    """
    numbers, shares = as_arrays("ids and weights", "(heads, top_k)", ids, weights)
    figure = Figure((7.2, 1.35 * len(numbers) + 0.7), facecolor="white", layout="constrained")
    axes = figure.subplots(len(numbers), 1, squeeze=False, sharex=True)[:, 0]
    dark, pale = palette(2)
    for head, ax in enumerate(axes):
        ax.axvspan(max(now - capacity, 0), now, color="0.92")
        found = numbers[head] >= 0
        places, heights = numbers[head, found], shares[head, found]
        ax.vlines(places, 0, heights, color=pale, linewidth=1)
        ax.plot(places, heights, "o", markerfacecolor="none", markeredgecolor=dark, markersize=6)  # near ones both show
        if found.any():
            best, weight = int(places[heights.argmax()]), heights.max()
            left = best > now / 2  # write towards the middle
            ax.annotate(
                labels[best], (best, weight), xytext=(-7 if left else 7, 2), textcoords="offset points",
                ha="right" if left else "left", fontsize=9,
            )  # fmt: skip
        ax.set(ylabel=f"Weight, head {head}", ylim=(0, 1.15), xlim=(0, now))
        hide_box(ax)
    axes[-1].set_xlabel("Keys: when each memory was stored (grey: still held)")
    return axes
