"""Bars: how one query's scores become weights and a context vector, and how the parts of a row add up."""

from collections.abc import Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from torch import Tensor

from attnlib.plots._base import as_arrays, hide_box, page, palette

DARK, MIDDLE, LIGHT = palette(4)[:3]


def draw_bars(ax: Axes, values: np.ndarray, colours, words: Sequence[str] | None = None, *, shift=0.0, **bar) -> None:
    """Draw a bar for each number, with the number at its end; every bar here is drawn by this function.

    With words, the bars lie on their sides, one below the other, each beside its word.
    """
    places = np.arange(len(values))
    draw, line = (ax.bar, ax.axhline) if words is None else (ax.barh, ax.axvline)
    bars = draw(places + shift, values, color=colours, **bar)
    ax.bar_label(bars, [f"{value:.2f}" for value in values], padding=2, fontsize=8)
    hide_box(ax)
    if words is None:
        ax.set_xticks(places)
    else:
        ax.set_yticks(places, words)
        ax.set_ylim(len(values) - 0.5, -0.5)  # the first word on top
    line(0.0, color="black", linewidth=0.8)


@style.context("default")
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

    Returns three axes: scores, weights, and the two vectors.
    """
    score_row, weight_row = as_arrays("scores and weights", f"(tokens,) = ({len(labels)},)", scores, weights)
    if len(score_row) != len(labels):
        raise ValueError(f"labels must hold a word for each key, {len(score_row)} of them; got {len(labels)}")
    both = as_arrays("query and context", "(d_in,)", query, context)
    axes = page(9.0, 3.0, 3)
    draw_bars(axes[0], score_row, DARK, labels)
    low, high = min(0.0, float(score_row.min())), max(2.0, float(score_row.max()))
    room = 0.22 * (high - low)
    axes[0].set(title="Scores", xlabel="Dot product with the query", ylabel="Keys")
    axes[0].set_xlim(low - (1.4 * room if low < 0 else 0.0), high + room)
    draw_bars(axes[1], weight_row, MIDDLE, [""] * len(labels))
    axes[1].set(title="Weights", xlabel="Softmax of the scores", xlim=(0.0, 1.2), xticks=[0.0, 0.5, 1.0])
    for shift, vector, colour, name in zip((-0.2, 0.2), both, (DARK, LIGHT), ("query", "context vector")):
        draw_bars(axes[2], vector, colour, shift=shift, width=0.4, label=name)
    low, high = min(0.0, float(np.min(both))), max(1.0, float(np.max(both)))
    axes[2].set(title="Query and context vector", xlabel="Coordinate", ylim=(1.25 * low, 1.45 * high))
    axes[2].legend(loc="upper center", ncols=2, fontsize=8, frameon=False)
    axes[0].figure.suptitle(title or "")
    return axes


@style.context("default")
def plot_softmax(scores: Tensor, weights: Tensor, *, title: str | None = None) -> np.ndarray:
    """Draw the scores of one query, and the weights that softmax turns them into.

    Args:
        scores: (kv_tokens,).
        weights: (kv_tokens,).
        title: a line above the picture.

    Returns two axes: scores, weights.
    """
    rows = as_arrays("scores and weights", "(kv_tokens,)", scores, weights)
    axes = page(7.4, 2.9, 2)
    for ax, values, colour, name in zip(axes, rows, (DARK, MIDDLE), ("Scores", "Weights")):
        draw_bars(ax, values, colour)
        ax.set(title=name, xlabel="Keys")
    reach = 1.2 * max(1.0, float(np.abs(rows[0]).max(initial=0.0)))
    axes[0].set_ylim(-reach, reach)
    axes[1].set_ylim(0.0, 1.1)
    axes[0].figure.suptitle(title or "")
    return axes


@style.context("default")
def plot_parts(scores: Tensor, values: Tensor, cuts: Sequence[int]) -> np.ndarray:
    """Draw a row of scores cut into parts, how much each part weighs, and the average that they merge into.

    Args:
        scores: (keys,).
        values: (keys,), a number for each key.
        cuts: the keys before which the row is cut.

    Returns three axes: scores, the weights of the parts, their averages and the merged one.
    """
    row, numbers = as_arrays("scores and values", "(keys,)", scores, values)
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(row)}), len(row)]
    parts = [slice(start, stop) for start, stop in zip(edges, edges[1:])]
    sizes = np.array([np.logaddexp.reduce(row[part]) for part in parts])
    shares = np.exp(sizes - np.logaddexp.reduce(sizes))
    averages = np.array([np.exp(row[part] - size) @ numbers[part] for part, size in zip(parts, sizes)])
    colours = palette(len(parts))
    axes = page(9.6, 3.0, 3, width_ratios=[2, 1, 1])
    axes[0].bar(range(len(row)), row, color=np.repeat(colours, np.diff(edges), axis=0))
    axes[0].axhline(0.0, color="black", linewidth=0.8)
    axes[0].vlines([edge - 0.5 for edge in edges[1:-1]], *axes[0].get_ylim(), color="black", linestyle="--", lw=1)
    draw_bars(axes[1], shares, colours)
    axes[2].scatter(range(len(parts)), averages, c=colours, s=64)
    axes[2].axhline(shares @ averages, color="black", lw=1.5)
    axes[0].set(xlabel="Keys", ylabel="Score", title="The row of scores, cut", xticks=range(len(row)))
    axes[1].set(xlabel="Part", ylabel="Weight of the part", ylim=(0, 1.12))
    axes[2].set(xlabel="Part", ylabel="Average of the values", xticks=range(len(parts)))
    axes[2].set(xlim=(-0.6, len(parts) - 0.4), ylim=(numbers.min() - 0.5, numbers.max() + 0.5))
    axes[2].set_title(f"Merged: {shares @ averages:.4f}", fontsize=11)
    for ax in axes:
        hide_box(ax)
    return axes
