"""Arrows: the dot product of a query with each key, as lengths on a page."""

from collections.abc import Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from torch import Tensor

from attnlib.plots._base import as_array, check_labels, page, palette


@style.context("default")
def plot_arrows(query: Tensor, keys: Tensor, *, labels: Sequence[str]) -> Axes:
    """Draw a query (2,) and keys (keys, 2) as arrows, with the score of each key at its tip.

    A dotted line drops each key onto the line of the query. The score is the length from the origin to where it lands,
    times the length of the query, and negative on the far side of the origin.
    """
    arrow, tips = as_array(query), as_array(keys)
    if arrow.shape != (2,) or not arrow.any():
        raise ValueError(f"query must have shape (2,) and not be zero; got {arrow.tolist()}")
    check_labels(labels, len(tips), "key")
    (ax,) = page(5.6, 3.6)
    ax.spines[:].set_visible(True)
    ends, scores = np.vstack([arrow, tips]), tips @ arrow
    low, high = ends.min(0, initial=0.0), ends.max(0, initial=0.0)
    room = 0.25 * (high - low).max()
    ax.axline((0, 0), (arrow[0], arrow[1]), color="0.75", linewidth=1)
    names = ["query", *(f"{label}: score {score:.3g}".replace("-", "−") for label, score in zip(labels, scores))]
    colours = palette(len(tips) + 1)[:-1]  # without the lightest
    for end, name, colour in zip(ends, names, ["black", *colours]):
        line = {"arrowstyle": "-|>", "color": colour, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", xy=end, xytext=(0, 0), arrowprops=line)
        ax.text(*(end + 0.4 * room * np.sign(end)), name, ha="center", va="center")
    for tip, foot, colour in zip(tips, np.outer(scores / (arrow @ arrow), arrow), colours):
        ax.plot(*zip(tip, foot), color=colour, linestyle=":", linewidth=1.5)
        ax.plot(*foot, "o", color=colour, markersize=5)
    ax.set(xlim=(low[0] - room, high[0] + room), ylim=(low[1] - room, high[1] + room), aspect="equal")
    ax.set(xlabel="Coordinate 0", ylabel="Coordinate 1", axisbelow=True)
    ax.grid(color="0.92")
    return ax
