"""Curves: errors, times and memory against size, scaling, recall by distance."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from torch import Tensor

from attnlib.plots._base import as_array, page, palette

Curves = Mapping[str, Tensor | Sequence]


def _scale_by_doubling(ax: Axes, ticks: Sequence) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [f"{tick // 1024}K" if tick % 1024 == 0 and tick else str(tick) for tick in ticks])


@style.context("default")
def plot_curves(
    x: Sequence, curves: Curves, *, xlabel: str, ylabel: str, log: str = "", ax: Axes | None = None
) -> Axes:
    """Draw several curves over the same x, each with its own colour and marker.

    Args:
        x: where every curve was measured.
        curves: a label for each curve, and its values; NaN if it was not measured there.
        log: the axes with a logarithmic scale: "", "x", "y" or "xy".
    """
    if log not in ("", "x", "y", "xy"):
        raise ValueError(f'log must be "", "x", "y" or "xy"; got {log!r}')
    ax = ax or page(5.4, 3.3)[0]
    for (label, values), colour, marker in zip(curves.items(), palette(len(curves)), "os^DvPX" * len(curves)):
        ax.plot(x, as_array(values), marker=marker, color=colour, label=label)
    if "x" in log:
        _scale_by_doubling(ax, x)
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


@style.context("default")
def plot_scaling(sizes: Sequence[int], spreads: Curves, slopes: Curves) -> np.ndarray:
    """Draw the spread of the scores and the slope of softmax against head_dim, a curve for each way of scaling."""
    axes = page(8.2, 3.2, 2)
    plot_curves(sizes, spreads, xlabel="head_dim", ylabel="Standard deviation", log="xy", ax=axes[0])
    plot_curves(sizes, slopes, xlabel="head_dim", ylabel="Σ w (1 − w)", log="x", ax=axes[1])
    axes[0].set(title="Spread of the scores")
    axes[1].set(title="Slope of softmax", ylim=(0.0, 1.0))
    return axes


@style.context("default")
def plot_staircase(edges: Sequence[int], accuracy: Curves, *, chance: float | None = None) -> Axes:
    """Draw how often the answer is right, against how many tokens ago it was seen.

    Lines get thinner from the first to the last, so that those below show on both sides where several coincide.

    Args:
        edges: ascending borders of the ranges of distance, in tokens; one more than there are ranges.
        accuracy: a label for each line, and its share of right answers in each range, 0 … 1.
        chance: the share that guessing gives, drawn in grey.
    """
    (ax,) = page(7.0, 3.2)
    widths = 1.6 + 2.6 * np.arange(len(accuracy))[::-1]
    for (label, values), colour, width in zip(accuracy.items(), palette(len(accuracy)), widths):
        steps = np.repeat(edges, 2)[1:-1], np.repeat(as_array(values), 2)
        ax.plot(*steps, color=colour, linewidth=width, label=label)
    if chance is not None:
        ax.axhline(chance, color="0.45", linewidth=1, linestyle="--", label="Guessing")
    _scale_by_doubling(ax, edges)
    ax.minorticks_off()
    ax.set(xlabel="Tokens since the key was last seen", ylabel="Right answers", ylim=(-0.05, 1.08))
    ax.legend(title="Memory", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return ax
