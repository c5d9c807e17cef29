"""Pictures of notebook 08: a row cut into parts, and shares that go around."""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from attnlib.plots._base import as_array, new_axes


def plot_parts(scores: Tensor, values: Tensor, cuts: Sequence[int]) -> np.ndarray:
    """Draw a row of scores cut into parts, how much each part weighs, and the average that they merge into.

    Args:
        scores: (keys,).
        values: (keys,), a number for each key.
        cuts: where the row is cut: before these keys.

    Returns:
        Three axes: scores, the parts' weights, the parts' averages and the merged one.
    """
    row, numbers = as_array(scores), as_array(values)
    if row.ndim != 1 or row.shape != numbers.shape:
        raise ValueError(f"scores and values must have shape (keys,); got {row.shape} and {numbers.shape}")
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(row)}), len(row)]
    parts = [slice(start, stop) for start, stop in zip(edges, edges[1:])]
    sizes = np.array([np.logaddexp.reduce(row[part]) for part in parts])
    shares = np.exp(sizes - np.logaddexp.reduce(sizes))
    averages = np.array([np.exp(row[part] - size) @ numbers[part] for part, size in zip(parts, sizes)])
    colours = mpl.colormaps["viridis"](np.linspace(0.15, 0.85, len(parts)))
    _, axes = plt.subplots(1, 3, figsize=(9.6, 2.9), width_ratios=[2, 1, 1], facecolor="white", layout="constrained")
    for index, (part, colour) in enumerate(zip(parts, colours)):
        axes[0].bar(range(part.start, part.stop), row[part], color=colour)
        axes[1].bar(index, shares[index], color=colour)
        axes[1].text(index, shares[index] + 0.02, f"{shares[index]:.2f}", ha="center", fontsize=8)
        axes[2].plot(index, averages[index], "o", color=colour, ms=8)
    for edge in edges[1:-1]:
        axes[0].axvline(edge - 0.5, color="black", ls="--", lw=1)
    merged = shares @ averages
    axes[2].axhline(merged, color="black", lw=1.5)
    axes[2].set_title(f"Merged: {merged:.4f}", fontsize=10)
    axes[0].set(xlabel="Keys", ylabel="Score", title="The row of scores, cut", xticks=range(len(row)))
    axes[1].set(xlabel="Part", ylabel="Weight of the part", ylim=(0, 1.12), xticks=range(len(parts)))
    axes[2].set(xlabel="Part", ylabel="Average of the values", xticks=range(len(parts)))
    axes[2].set(xlim=(-0.6, len(parts) - 0.4), ylim=(numbers.min() - 0.5, numbers.max() + 0.5))
    return axes


def plot_ring(processes: int, *, is_causal: bool = False, ax: Axes | None = None) -> Axes:
    """Draw whose keys and values each process holds in each step of a ring, and which it has no use for.

    Args:
        processes: how many.
        is_causal: cross out the shares that lie in the future of the process's queries.
        ax: axes to draw on.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1; got {processes}")
    ax = new_axes(ax, 1.25 * processes + 1.6, 0.7 * processes + 1.3)
    owners = (np.arange(processes) - np.arange(processes)[:, None]) % processes  # (steps, processes)
    ax.imshow(owners / max(processes - 1, 1), vmin=-0.3, vmax=1.3, cmap="viridis", aspect="auto", alpha=0.85)
    for (step, rank), owner in np.ndenumerate(owners):
        useless = is_causal and owner > rank
        text = f"keys of {owner}" + ("\n(future: passed on)" if useless else "")
        colour = "black" if owner > 0.55 * (processes - 1) else "white"
        ax.text(
            rank,
            step,
            text,
            ha="center",
            va="center",
            color=colour,
            fontsize=8,
            style="italic" if useless else "normal",
        )
        if step + 1 < processes and rank + 1 < processes:
            ax.annotate(
                "", (rank + 0.72, step + 0.72), (rank + 0.28, step + 0.28),
                arrowprops={"arrowstyle": "-|>", "color": "white", "lw": 1.5},
            )  # fmt: skip
    ax.set_xticks(range(processes), [f"queries of {rank}" for rank in range(processes)])
    ax.set_yticks(range(processes), [f"step {step}" for step in range(processes)])
    ax.set(xlabel="Processes", ylabel="Time")
    return ax
