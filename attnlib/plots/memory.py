"""Pictures of notebook 06: recall by distance, and what a token reads from memory."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from attnlib.plots._base import as_array, new_axes

DASHES = ("-", "--", "-.", ":")


def plot_staircase(
    edges: Sequence[int],
    accuracy: Mapping[str, Sequence[float]],
    *,
    chance: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how often the right answer comes, against how many tokens ago it was seen.

    Args:
        edges: ascending borders of the ranges of distance, in tokens; one more than there are ranges.
        accuracy: a label for each line, and its share of right answers in each range, 0 … 1.
        chance: the share that guessing gives, drawn in grey.
        ax: axes to draw on.
    """
    for label, values in accuracy.items():
        if len(values) != len(edges) - 1:
            raise ValueError(
                f"accuracy[{label!r}] must have one value for each of the {len(edges) - 1} ranges; got {len(values)}"
            )
    ax = new_axes(ax, 6.4, 3.2)
    colours = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, len(accuracy)))
    for number, ((label, values), colour) in enumerate(zip(accuracy.items(), colours)):
        lift = 0.012 * (number - (len(accuracy) - 1) / 2)  # lines that coincide stay apart
        ax.stairs(
            as_array(values) + lift,
            edges,
            baseline=None,
            label=label,
            color=colour,
            linewidth=2.2,
            linestyle=DASHES[number % len(DASHES)],
        )
    if chance is not None:
        ax.axhline(chance, color="0.6", linewidth=1, label="Guessing")
    ax.set_xscale("log", base=2)
    ax.set_xticks(edges, [str(edge) for edge in edges])
    ax.minorticks_off()
    ax.set(xlabel="Tokens since the key was last seen", ylabel="Right answers", ylim=(-0.05, 1.08))
    ax.legend(title="Memory", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_memory_reads(ids: Tensor, weights: Tensor, *, now: int, capacity: int, labels: Sequence[str]) -> np.ndarray:
    """Draw, for each head, which memories one token reads, when they were stored, and how much each one counts.

    Args:
        ids: (heads, top_k), the position at which each memory was stored; −1 where there was none.
        weights: (heads, top_k), what each one counts, 0 … 1.
        now: how many tokens have been stored.
        capacity: how many of them the memory still holds; this stretch is shaded.
        labels: a word for each stored token, ``now`` in number; the one that counts most is written.

    Returns:
        One axes for each head, one above the other.
    """
    numbers, shares = as_array(ids), as_array(weights)
    if numbers.shape != shares.shape or numbers.ndim != 2:
        raise ValueError(f"ids and weights must both have shape (heads, top_k); got {numbers.shape} and {shares.shape}")
    _, axes = plt.subplots(
        len(numbers), 1, figsize=(7.2, 1.35 * len(numbers) + 0.7),
        squeeze=False, sharex=True, facecolor="white", layout="constrained",
    )  # fmt: skip
    colour = plt.get_cmap("viridis")(0.25)
    held = max(now - capacity, 0)
    for head, ax in enumerate(axes[:, 0]):
        ax.axvspan(held, now, color="0.92", label="still in memory")
        found = [(int(i), float(w)) for i, w in zip(numbers[head], shares[head]) if i >= 0]
        if found:
            ax.vlines([i for i, _ in found], 0, [w for _, w in found], color=colour, linewidth=2)
            ax.plot([i for i, _ in found], [w for _, w in found], "o", color=colour, markersize=5)
            best, weight = max(found, key=lambda pair: pair[1])
            left = best > now / 2  # write towards the middle
            ax.annotate(
                labels[best], (best, weight), xytext=(-6 if left else 6, 2), textcoords="offset points",
                ha="right" if left else "left", fontsize=9,
            )  # fmt: skip
        ax.set(ylabel=f"Head {head}\nweight", ylim=(0, 1.15), xlim=(0, now))
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("Keys: when each memory was stored (grey: still held)")
    return axes[:, 0]
