"""Bars: how scores become weights and a context vector, how parts add up, what a token reads from memory."""

from collections.abc import Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from torch import Tensor

from attnlib.plots._base import as_arrays, check_labels, page, palette

DARK, MIDDLE, LIGHT = palette(4)[:3]


def draw_bars(ax: Axes, values: np.ndarray, colours, words: Sequence[str] | None = None, *, shift=0.0, **bar) -> None:
    """Draw a bar for each number, with the number at its end. With words, each bar lies on its side beside its word."""
    places = np.arange(len(values))
    draw, line = (ax.bar, ax.axhline) if words is None else (ax.barh, ax.axvline)
    bars = draw(places + shift, values, color=colours, **bar)
    ax.bar_label(bars, [f"{value:.2f}" for value in values], padding=2, fontsize=8)
    if words is None:
        ax.set_xticks(places)
    else:
        ax.set_yticks(places, words)
        ax.set_ylim(len(values) - 0.5, -0.5)  # the first word on top
    line(0.0, color="black", linewidth=0.8)


@style.context("default")
def plot_context(
    scores: Tensor, weights: Tensor, query: Tensor, context: Tensor, *, labels: Sequence[str], title: str = ""
) -> np.ndarray:
    """Draw how one query's scores become weights, and the context vector beside the query, on three axes.

    Args:
        scores, weights: (tokens,), one for each key.
        query, context: (d_in,), the token that asks, and the weighted sum that it gets.
    """
    score_row, weight_row = as_arrays("scores and weights", "(tokens,)", scores, weights)
    check_labels(labels, len(score_row), "key")
    both = as_arrays("query and context", "(d_in,)", query, context)
    axes = page(9.0, 3.0, 3)
    draw_bars(axes[0], score_row, DARK, labels)
    low, high = min(0.0, score_row.min()), max(2.0, score_row.max())
    room = 0.22 * (high - low)
    axes[0].set(title="Scores", xlabel="Dot product with the query", ylabel="Keys")
    axes[0].set_xlim(low - (1.4 * room if low < 0 else 0.0), high + room)
    draw_bars(axes[1], weight_row, MIDDLE, [""] * len(labels))
    axes[1].set(title="Weights", xlabel="Softmax of the scores", xlim=(0.0, 1.2), xticks=[0.0, 0.5, 1.0])
    for shift, vector, colour, name in zip((-0.2, 0.2), both, (DARK, LIGHT), ("query", "context vector")):
        draw_bars(axes[2], vector, colour, shift=shift, width=0.4, label=name)
    low, high = min(0.0, np.min(both)), max(1.0, np.max(both))
    axes[2].set(title="Query and context vector", xlabel="Coordinate", ylim=(1.25 * low, 1.45 * high))
    axes[2].legend(loc="upper center", ncols=2, fontsize=8, frameon=False)
    axes[0].figure.suptitle(title)
    return axes


@style.context("default")
def plot_softmax(scores: Tensor, weights: Tensor, *, title: str = "") -> np.ndarray:
    """Draw the scores of one query and the weights that softmax turns them into, (kv_tokens,) each, on two axes."""
    rows = as_arrays("scores and weights", "(kv_tokens,)", scores, weights)
    axes = page(7.4, 2.9, 2)
    for ax, values, colour, name in zip(axes, rows, (DARK, MIDDLE), ("Scores", "Weights")):
        draw_bars(ax, values, colour)
        ax.set(title=name, xlabel="Keys")
    reach = 1.2 * max(1.0, np.abs(rows[0]).max())
    axes[0].set_ylim(-reach, reach)
    axes[1].set_ylim(0.0, 1.1)
    axes[0].figure.suptitle(title)
    return axes


@style.context("default")
def plot_parts(scores: Tensor, values: Tensor, cuts: Sequence[int]) -> np.ndarray:
    """Draw a row of scores cut into parts, the weight of each part, and the average that they merge into.

    Args:
        scores, values: (keys,), two numbers for each key.
        cuts: the keys before which the row is cut.
    """
    row, numbers = as_arrays("scores and values", "(keys,)", scores, values)
    starts = np.unique([0, *(cut for cut in cuts if 0 < cut < len(row))])
    lengths = np.diff([*starts, len(row)])
    sizes = np.logaddexp.reduceat(row, starts)  # of each part: the log of its sum of exponentials
    shares = np.exp(sizes - np.logaddexp.reduce(sizes))
    averages = np.add.reduceat(np.exp(row - np.repeat(sizes, lengths)) * numbers, starts)
    colours = palette(len(starts))
    axes = page(9.6, 3.0, 3, width_ratios=[2, 1, 1])
    axes[0].bar(range(len(row)), row, color=np.repeat(colours, lengths, axis=0))
    axes[0].axhline(0.0, color="black", linewidth=0.8)
    axes[0].vlines(starts[1:] - 0.5, *axes[0].get_ylim(), color="black", linestyle="--", lw=1)
    draw_bars(axes[1], shares, colours)
    axes[2].scatter(range(len(starts)), averages, c=colours, s=64)
    axes[2].axhline(shares @ averages, color="black", lw=1.5)
    axes[0].set(xlabel="Keys", ylabel="Score", title="The row of scores, cut", xticks=range(len(row)))
    axes[1].set(xlabel="Part", ylabel="Weight of the part", ylim=(0, 1.12))
    axes[2].set(xlabel="Part", ylabel="Average of the values", xticks=range(len(starts)))
    axes[2].set(xlim=(-0.6, len(starts) - 0.4), ylim=(numbers.min() - 0.5, numbers.max() + 0.5))
    axes[2].set_title(f"Merged: {shares @ averages:.4f}", fontsize=11)
    return axes


@style.context("default")
def plot_memory_reads(ids: Tensor, weights: Tensor, *, now: int, capacity: int, labels: Sequence[str]) -> np.ndarray:
    """Draw for each head, one above the other, which memories one token reads, and how much each one counts.

    Args:
        ids: (heads, top_k), the position at which each memory was stored; −1 if there was none.
        weights: (heads, top_k), what each one counts, 0 … 1.
        now: how many tokens have been stored; each has its word in ``labels``. The one that counts most is written.
        capacity: how many of them the memory still holds; this stretch is shaded.
    """
    numbers, shares = as_arrays("ids and weights", "(heads, top_k)", ids, weights)
    axes = page(7.2, 1.35 * len(numbers) + 0.7, rows=len(numbers), sharex=True)
    dark, pale = palette(2)
    for head, ax in enumerate(axes):
        ax.axvspan(max(now - capacity, 0), now, color="0.92")
        found = numbers[head] >= 0
        places, heights = numbers[head, found], shares[head, found]
        ax.vlines(places, 0, heights, color=pale, linewidth=1)
        ax.plot(places, heights, "o", markerfacecolor="none", markeredgecolor=dark, markersize=6)  # near ones both show
        if found.any():
            best, weight = int(places[heights.argmax()]), heights.max()
            side, aside = ("right", -7) if best > now / 2 else ("left", 7)  # write towards the middle
            offset = {"xytext": (aside, 2), "textcoords": "offset points"}
            ax.annotate(labels[best], (best, weight), **offset, ha=side, fontsize=9)
        ax.set(ylabel=f"Weight, head {head}", ylim=(0, 1.15), xlim=(0, now))
    axes[-1].set_xlabel("Keys: when each memory was stored (grey: still held)")
    return axes
