"""Pictures of notebook 02: what the size of a vector does to softmax, and what training does to the weights."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

from attnlib.plots._base import as_array

DARK, MIDDLE = plt.get_cmap("viridis")([0.15, 0.6])


def plot_scaling(sizes: Sequence[int], spreads: dict[str, Sequence], slopes: dict[str, Sequence]) -> np.ndarray:
    """Draw the spread of the scores and the slope of softmax against the size of query and key.

    Args:
        sizes: the head_dim of each measurement.
        spreads: for each way of scaling, the standard deviation of the scores at each size.
        slopes: for each way of scaling, the slope of the softmax at each size.

    Returns:
        Two axes: spreads, slopes.
    """
    _, axes = plt.subplots(1, 2, figsize=(8.2, 3.0), facecolor="white", layout="constrained")
    for ax, lines, title in ((axes[0], spreads, "Spread of the scores"), (axes[1], slopes, "Slope of softmax")):
        colours = plt.get_cmap("viridis")(np.linspace(0.1, 0.75, len(lines)))
        for (label, values), colour, marker in zip(lines.items(), colours, "os^Dv" * len(lines)):
            ax.plot(sizes, as_array(values), marker=marker, color=colour, label=label)
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.set(title=title, xlabel="head_dim")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(fontsize=8, frameon=False)
    axes[0].set(yscale="log", ylabel="Standard deviation")
    axes[1].set(ylabel="Σ w (1 − w)", ylim=(0.0, 1.0))
    return axes


def plot_softmax(scores: Tensor, weights: Tensor, *, title: str | None = None) -> np.ndarray:
    """Draw the scores of one query, and the weights that softmax makes of them.

    Args:
        scores: (kv_tokens,).
        weights: (kv_tokens,).
        title: a line above the picture.

    Returns:
        Two axes: scores, weights.
    """
    score_row, weight_row = as_array(scores), as_array(weights)
    if score_row.ndim != 1 or score_row.shape != weight_row.shape:
        got = f"{score_row.shape} and {weight_row.shape}"
        raise ValueError(f"scores and weights must both have shape (kv_tokens,); got {got}")
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 2.9), facecolor="white", layout="constrained")
    for ax, values, colour, name in ((axes[0], score_row, DARK, "Scores"), (axes[1], weight_row, MIDDLE, "Weights")):
        ax.bar_label(ax.bar(range(len(values)), values, color=colour), fmt="%.2f", padding=2, fontsize=8)
        ax.set(title=name, xlabel="Keys")
        ax.set_xticks(range(len(values)))
        ax.axhline(0.0, color="black", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
    reach = 1.2 * max(1.0, float(np.abs(score_row).max(initial=0.0)))
    axes[0].set_ylim(-reach, reach)
    axes[1].set_ylim(0.0, 1.1)
    if title:
        figure.suptitle(title)
    return axes


def plot_lookup(
    weights: Sequence[Tensor], *, titles: Sequence[str], query_labels: Sequence[str], key_labels: Sequence[str]
) -> np.ndarray:
    """Draw attention matrices of the same tokens side by side, with other words for the queries than for the keys.

    Args:
        weights: matrices (q_tokens, kv_tokens).
        titles: a line above each matrix.
        query_labels: a word for each row.
        key_labels: a word for each column.

    Returns:
        One axes for each matrix.
    """
    matrices = [as_array(matrix) for matrix in weights]
    wanted = (len(query_labels), len(key_labels))
    for matrix in matrices:
        if matrix.shape != wanted:
            raise ValueError(f"every matrix must have shape (q_tokens, kv_tokens) = {wanted}; got {matrix.shape}")
    if len(titles) != len(matrices):
        raise ValueError(f"titles must hold a line for each of the {len(matrices)} matrices; got {len(titles)}")
    figure, axes = plt.subplots(
        1, len(matrices), figsize=(2.3 * len(matrices) + 1.7, 3.0),
        squeeze=False, sharey=True, facecolor="white", layout="constrained",
    )  # fmt: skip
    for ax, matrix, title in zip(axes[0], matrices, titles):
        image = ax.imshow(matrix, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
        ax.set(xlabel="Keys", title=title)
        ax.set_xticks(range(wanted[1]), key_labels, rotation=45, ha="right", rotation_mode="anchor")
    axes[0, 0].set_ylabel("Queries")
    axes[0, 0].set_yticks(range(wanted[0]), query_labels)
    figure.colorbar(image, ax=axes[0], label="Weight")
    return axes[0]
