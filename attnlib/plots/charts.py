"""Charts: arrows and their scores, bars for scores and weights, reads from memory, curves."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from torch import Tensor

from attnlib.plots._base import Labels, as_array, as_arrays, check_labels, page, palette

DARK, MIDDLE, LIGHT = palette(4)[:3]
Curves = Mapping[str, Tensor | Sequence]


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


def draw_bars(ax: Axes, values: np.ndarray, colours, *, shift: float = 0.0, **bar) -> None:
    """Draw a bar for each number, with the number at its end."""
    bars = ax.bar(np.arange(len(values)) + shift, values, color=colours, **bar)
    ax.bar_label(bars, [f"{value:.2f}" for value in values], padding=2, fontsize=8)
    ax.axhline(0.0, color="black", linewidth=0.8)
    ax.set_xticks(range(len(values)))


@style.context("default")
def plot_softmax(
    scores: Tensor, weights: Tensor, *, labels: Labels = None, title: str = "", axes: np.ndarray | None = None
) -> np.ndarray:
    """Draw the scores of one query and the weights that softmax turns them into, (tokens,) each, on two axes."""
    rows = as_arrays("scores and weights", "(tokens,)", scores, weights)
    check_labels(labels, len(rows[0]), "key")
    axes = page(7.4, 2.9, 2) if axes is None else axes
    for ax, values, colour, name in zip(axes, rows, (DARK, MIDDLE), ("Scores", "Weights")):
        draw_bars(ax, values, colour)
        ax.set(title=name, xlabel="Keys")
        if labels is not None:
            ax.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes[0].margins(y=0.15)  # room for the numbers
    axes[1].set_ylim(0.0, 1.1)
    axes[0].figure.suptitle(title)
    return axes


@style.context("default")
def plot_context(
    scores: Tensor, weights: Tensor, query: Tensor, context: Tensor, *, labels: Labels = None, title: str = ""
) -> np.ndarray:
    """Draw what ``plot_softmax`` draws and, on a third axis, the query (d_in,) and its context vector (d_in,)."""
    both = as_arrays("query and context", "(d_in,)", query, context)
    axes = plot_softmax(scores, weights, labels=labels, title=title, axes=page(9.0, 3.2, 3))
    for shift, vector, colour, name in zip((-0.2, 0.2), both, (DARK, LIGHT), ("query", "context vector")):
        draw_bars(axes[2], vector, colour, shift=shift, width=0.4, label=name)
    axes[2].set(title="Query and context vector", xlabel="Coordinate")
    axes[2].margins(y=0.4)  # room for the legend
    axes[2].legend(loc="upper center", ncols=2, fontsize=8, frameon=False)
    return axes


@style.context("default")
def plot_parts(scores: Tensor, values: Tensor, cuts: Sequence[int]) -> np.ndarray:
    """Draw a row of scores cut into parts, the weight of each part, and the average that they merge into.

    ``scores`` and ``values`` are (keys,), two numbers for each key; ``cuts`` are the keys before which the row is cut.
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
            ax.annotate(labels[best], (best, weight), (aside, 2), textcoords="offset points", ha=side, fontsize=9)
        ax.set(ylabel=f"Weight, head {head}", ylim=(0, 1.15), xlim=(0, now))
    axes[-1].set_xlabel("Keys: when each memory was stored (grey: still held)")
    return axes


@style.context("default")
def plot_curves(x: Sequence, curves: Curves, *, xlabel: str, ylabel: str, log: str = "") -> Axes:
    """Draw several curves over the same x, each with its own colour and marker.

    Args:
        x: where every curve was measured.
        curves: a label for each curve, and its values; NaN if it was not measured there.
        log: the axes with a logarithmic scale: "", "x", "y" or "xy".
    """
    if log not in ("", "x", "y", "xy"):
        raise ValueError(f'log must be "", "x", "y" or "xy"; got {log!r}')
    (ax,) = page(5.4, 3.3)
    for (label, values), colour, marker in zip(curves.items(), palette(len(curves)), "os^DvPX" * len(curves)):
        ax.plot(x, as_array(values), marker=marker, color=colour, label=label)
    if "x" in log:
        ax.set_xscale("log", base=2)
        ax.set_xticks(x, [f"{tick // 1024}K" if tick % 1024 == 0 and tick else str(tick) for tick in x])
    if "y" in log:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter("{x:g}")
    elif ax.dataLim.ymin >= 0:
        ax.set_ylim(bottom=0)
    ax.minorticks_off()
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend(fontsize=9, frameon=False)
    return ax
