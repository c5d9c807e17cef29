"""Pictures of notebook 01: one query's scores, its weights, and the context vector that they make."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from attnlib.plots._base import as_array

DARK, MIDDLE, LIGHT = plt.get_cmap("viridis")([0.15, 0.5, 0.75])


def plot_context(
    scores: Tensor, weights: Tensor, query: Tensor, context: Tensor, *, labels: Sequence[str], title: str | None = None
) -> np.ndarray:
    """Draw how one query's scores become weights, and the context vector beside the query.

    Args:
        scores: (tokens,), one for each key.
        weights: (tokens,), the softmax of the scores.
        query: (d_in,), the token that asks.
        context: (d_in,), the weighted sum.
        labels: a word for each key.
        title: a line above the picture.

    Returns:
        Three axes: scores, weights, and the two vectors.
    """
    score_row, weight_row = _row("scores", scores, len(labels)), _row("weights", weights, len(labels))
    query_row, context_row = _row("query", query), _row("context", context, len(query))
    figure, axes = plt.subplots(1, 3, figsize=(8.6, 2.9), facecolor="white", layout="constrained")
    _bars(axes[0], score_row, labels, DARK)
    low, high = min(0.0, float(score_row.min())), max(2.0, float(score_row.max()))
    room = 0.2 * (high - low)
    axes[0].set(title="Scores", xlabel="Dot product with the query", ylabel="Keys")
    axes[0].set_xlim(low - (1.4 * room if low < 0 else 0.0), high + room)
    _bars(axes[1], weight_row, labels, MIDDLE)
    axes[1].set(title="Weights", xlabel="Softmax of the scores", xlim=(0.0, 1.2))
    axes[1].set_xticks([0.0, 0.5, 1.0])
    axes[1].set_yticklabels([])
    _vectors(axes[2], query_row, context_row)
    if title:
        figure.suptitle(title)
    return axes


def _row(name: str, values: Tensor, size: int | None = None) -> np.ndarray:
    array = as_array(values)
    if array.ndim != 1 or len(array) != (size or len(array)):
        raise ValueError(f"{name} must be a row of {size or 'several'} numbers; got shape {array.shape}")
    return array


def _bars(ax: Axes, values: np.ndarray, labels: Sequence[str], colour: np.ndarray) -> None:
    places = np.arange(len(values))
    ax.bar_label(ax.barh(places, values, color=colour), fmt="%.2f", padding=3, fontsize=8)
    ax.set_yticks(places, labels)
    ax.axvline(0.0, color="black", linewidth=0.8)
    ax.invert_yaxis()  # the first word stands on top
    ax.spines[["top", "right"]].set_visible(False)


def _vectors(ax: Axes, query: np.ndarray, context: np.ndarray) -> None:
    places = np.arange(len(query))
    for shift, vector, colour, label in ((-0.2, query, DARK, "query"), (0.2, context, LIGHT, "context vector")):
        ax.bar_label(ax.bar(places + shift, vector, 0.4, color=colour, label=label), fmt="%.2f", fontsize=7, padding=1)
    both = np.concatenate([query, context])
    low, high = min(0.0, float(both.min())), max(1.0, float(both.max()))
    ax.set(title="Query and context vector", xlabel="Coordinate", ylim=(1.25 * low, 1.45 * high))
    ax.set_xticks(places)
    ax.axhline(0.0, color="black", linewidth=0.8)
    ax.legend(loc="upper center", ncols=2, fontsize=8, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
