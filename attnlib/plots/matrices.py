"""Matrices: attention weights, masks, heads cut out of columns, the steps of a ring."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.patches import Patch
from torch import Tensor

from attnlib.plots._base import as_array, as_arrays, ink, new_axes, page

# An odd number of colours: 0, ½ and 1 are never on the border between two of them.
WEIGHTS, KINDS = colormaps["viridis"].resampled(37), colormaps["cividis"]
Labels = Sequence[str] | None


def draw_matrix(
    ax: Axes, array: np.ndarray, words: np.ndarray | None = None, rows: Labels = None, columns: Labels = None, *,
    top: float = 1.0, power: float = 1.0, colours=KINDS, size: float = 9,
):  # fmt: skip
    """Colour a cell for each number, 0 … top, and write the words into them; every matrix here is drawn by this."""
    height, width = array.shape
    for name, labels, wanted in (("query", rows, height), ("key", columns, width)):
        if labels is not None and len(labels) != wanted:
            raise ValueError(f"labels must hold a word for each {name}, {wanted} of them; got {len(labels)}")
    line = 1.0 if max(array.shape) <= 12 else 0.0
    mesh = ax.pcolormesh(
        np.arange(width + 1) - 0.5, np.arange(height + 1) - 0.5, array,
        norm=PowerNorm(power, 0.0, top), cmap=colours,
        edgecolors="white" if line else "face", linewidth=line or 0.3,
    )  # fmt: skip
    ax.set(ylim=(height - 0.5, -0.5), xlabel="Keys", ylabel="Queries")
    ax.tick_params(length=0 if rows is not None else 3)
    ax.spines[:].set_visible(False)
    if rows is not None:
        ax.set_yticks(range(height), rows)
    if columns is not None:
        ax.set_xticks(range(width), columns, rotation=45, ha="right", rotation_mode="anchor")
    for (row, column), word in np.ndenumerate([] if words is None else words):
        colour = ink(mesh.to_rgba(array[row, column]))
        ax.text(column, row, word, ha="center", va="center", color=colour, fontsize=size)
    return mesh


def draw_weights(axes: np.ndarray, matrices: Sequence[np.ndarray], rows: Labels, columns: Labels) -> None:
    """Draw weights on one scale, from 0 to the largest weight that is drawn, with a colour bar.

    Where no numbers are written, the colours spread small weights: the middle of the bar is a quarter of the largest.
    """
    top = max((float(matrix.max(initial=0.0)) for matrix in matrices), default=0.0) or 1.0
    numbers = len(axes) == 1 and len(matrices[0]) <= 12 and matrices[0].shape[1] <= 8
    for ax, matrix in zip(axes, matrices):
        words = np.vectorize("{:.2f}".format, otypes=[str])(matrix) if numbers else None
        mesh = draw_matrix(ax, matrix, words, rows, columns, top=top, power=1.0 if numbers else 0.5, colours=WEIGHTS)
    bar = axes[0].figure.colorbar(mesh, ax=list(axes), label=f"Weight (largest: {top:.2f})")
    middle = top / 2 if numbers else top / 4
    bar.set_ticks([0, middle, top], labels=["0", f"{middle:.2f}", f"{top:.2f}"])
    bar.minorticks_off()
    bar.outline.set_visible(False)
    for ax in axes[1:]:
        ax.set_ylabel("")


@style.context("default")
def plot_attention(
    weights: Tensor, *, query_labels: Labels = None, key_labels: Labels = None, title: str | None = None,
    ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw an attention matrix: a row for each query, a column for each key, colours from 0 to the largest weight.

    Args:
        weights: (q_tokens, kv_tokens). Up to eight columns, the numbers are written into the cells.
        query_labels: a word for each query.
        key_labels: a word for each key. Default: ``query_labels`` if the matrix is square.
        title: a line above the picture.
        ax: axes to draw on.
    """
    (array,) = as_arrays("weights", "(q_tokens, kv_tokens)", weights)
    rows, columns = array.shape
    if key_labels is None and rows == columns:
        key_labels = query_labels
    ax = new_axes(ax, max(3.4, 0.62 * columns + 1.9), max(2.4, 0.5 * rows + 1.2))
    draw_weights(np.array([ax]), [array], query_labels, key_labels)
    ax.set_title(title or "")
    return ax


@style.context("default")
def plot_heads(weights: Tensor, *, labels: Labels = None, titles: Labels = None) -> np.ndarray:
    """Draw one attention matrix per head, side by side, on one scale.

    Args:
        weights: (heads, q_tokens, kv_tokens).
        labels: a word for each token.
        titles: a line above each head. Default: "Head 0", "Head 1" …
    """
    (array,) = as_arrays("weights", "(heads, q_tokens, kv_tokens)", weights)
    heads, rows, columns = array.shape
    titles = titles or [f"Head {head}" for head in range(heads)]
    width, height = max(2.4, 0.28 * columns + 1.2) * heads + 0.9, max(2.6, 0.28 * rows + 1.4)
    return _side_by_side(list(array), titles, labels, labels, width, height)


@style.context("default")
def plot_lookup(
    weights: Sequence[Tensor], *, titles: Sequence[str], query_labels: Sequence[str], key_labels: Sequence[str]
) -> np.ndarray:
    """Draw attention matrices of the same tokens side by side, on one scale, each with a title.

    Args:
        weights: matrices (q_tokens, kv_tokens).
        titles: a line above each matrix.
        query_labels: a word for each row.
        key_labels: a word for each column.
    """
    matrices, wanted = [as_array(matrix) for matrix in weights], (len(query_labels), len(key_labels))
    for matrix in matrices:
        if matrix.shape != wanted:
            raise ValueError(f"every matrix must have shape (q_tokens, kv_tokens) = {wanted}; got {matrix.shape}")
    return _side_by_side(matrices, titles, query_labels, key_labels, 2.3 * len(matrices) + 1.7, 3.0)


def _side_by_side(
    matrices: list[np.ndarray], titles: Sequence[str], rows: Labels, columns: Labels, width: float, height: float
) -> np.ndarray:
    if len(titles) != len(matrices):
        raise ValueError(f"titles must hold a line for each of the {len(matrices)} matrices; got {len(titles)}")
    axes = page(width, height, len(matrices), sharey=True)
    draw_weights(axes, matrices, rows, columns)
    for ax, title in zip(axes, titles):
        ax.set_title(title)
    return axes


@style.context("default")
def plot_masks(masks: Mapping[str, Tensor], *, labels: Labels = None) -> np.ndarray:
    """Draw boolean masks side by side, with "True" or "False" in each cell.

    Args:
        masks: a title for each mask (q_tokens, kv_tokens).
        labels: a word for each token.
    """
    arrays = [as_arrays(f"masks[{title!r}]", "(q_tokens, kv_tokens)", mask)[0] for title, mask in masks.items()]
    rows, columns = np.max([array.shape for array in arrays], axis=0)
    axes = page((0.55 * columns + 1.1) * len(arrays), 0.42 * rows + 1.3, len(arrays))
    for ax, title, array in zip(axes, masks, arrays):
        draw_matrix(ax, array, array.astype(bool).astype(str), labels, labels)
        ax.set_title(title)
    return axes


@style.context("default")
def plot_head_split(heads: Tensor, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw the matrix that was cut into heads, each entry in the colour of the head that now holds it.

    Args:
        heads: (num_heads, tokens, head_dim), cut in some way from ``torch.arange(tokens * d_out)``, written row by row
            as a matrix (tokens, d_out), so that the entries say where they come from.
        title: a line above the picture.
        ax: axes to draw on.
    """
    array = as_array(heads)
    if array.ndim != 3 or not np.array_equal(np.sort(array, axis=None), np.arange(array.size)):
        shape = "(num_heads, tokens, head_dim) and hold 0, 1, 2 … once each"
        raise ValueError(f"heads must have shape {shape}; got {array.shape}")
    num_heads, tokens, head_dim = array.shape
    holders = np.empty(array.size)
    holders[array.reshape(num_heads, -1).astype(int)] = np.arange(num_heads)[:, None]
    owners = holders.reshape(tokens, num_heads * head_dim)  # (tokens, d_out): which head holds this entry
    ax, top = new_axes(ax, 0.5 * owners.shape[1] + 1.4, 0.42 * tokens + 1.5), max(num_heads - 1, 1)
    draw_matrix(ax, owners, np.arange(array.size).reshape(owners.shape).astype(str), top=top, size=10)
    ax.set(xlabel="Columns", ylabel="Tokens", xticks=range(owners.shape[1]), yticks=range(tokens))
    marks = [Patch(color=KINDS(head / top), label=f"Head {head}") for head in range(num_heads)]
    ax.legend(handles=marks, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=num_heads, frameon=False, title=title)
    return ax


@style.context("default")
def plot_ring(processes: int, *, is_causal: bool = False, ax: Axes | None = None) -> Axes:
    """Draw whose keys and values each process holds at each step of a ring, and which of them it cannot use.

    Args:
        processes: how many.
        is_causal: mark the keys that lie in the future of the process's queries.
        ax: axes to draw on.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1; got {processes}")
    ax = new_axes(ax, 1.35 * processes + 1.6, 0.7 * processes + 1.3)
    ranks = np.arange(processes)
    owners = (ranks - ranks[:, None]) % processes  # (steps, processes)
    words = np.char.add("keys of ", owners.astype(str))
    steps, light = [f"step {step}" for step in ranks], owners + processes  # the upper half of the colours
    draw_matrix(ax, light, words, steps, top=2.0 * processes, colours=WEIGHTS)
    ax.set_xticks(ranks, [f"queries of {rank}" for rank in ranks])
    ax.set(xlabel="Processes", ylabel="Time")
    for step, rank in np.argwhere(is_causal & (owners > ranks)):
        ax.text(rank, step + 0.25, "(future: passed on)", ha="center", va="center", fontsize=8, style="italic")
    for step, rank in np.ndindex(processes - 1, processes - 1):
        arrow = {"arrowstyle": "-|>", "color": "black", "lw": 1.2}
        ax.annotate("", (rank + 0.66, step + 0.66), (rank + 0.42, step + 0.42), arrowprops=arrow)
    return ax
