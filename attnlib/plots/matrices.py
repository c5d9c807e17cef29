"""Matrices: attention weights, masks, heads cut out of columns, the steps of a ring, all heads of a model."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path
from torch import Tensor

from attnlib.plots._base import Labels, as_arrays, check_labels, ink, page

# An odd number of colours: 0, ½ and 1 are never on the border between two of them.
WEIGHTS, KINDS = colormaps["viridis"].resampled(37), colormaps["cividis"]
STEPS = colormaps["viridis"].resampled(10)  # few colours: cells of one colour are one path, which keeps the page small


def draw_matrix(
    ax: Axes, array: np.ndarray, words: np.ndarray | None = None, rows: Labels = None, columns: Labels = None, *,
    top: float = 1.0, power: float = 1.0, colours=KINDS, size: float = 9,
):  # fmt: skip
    """Colour a cell for each number, 0 … top, and write the words into them; every matrix here is drawn by this."""
    height, width = array.shape
    check_labels(rows, height, "query")
    check_labels(columns, width, "key")
    small = max(array.shape) <= 12
    mesh = ax.pcolormesh(
        np.arange(width + 1) - 0.5, np.arange(height + 1) - 0.5, array, norm=PowerNorm(power, 0.0, top), cmap=colours,
        edgecolors="white" if small else "face", linewidth=1.0 if small else 0.3,
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


def draw_bar(axes: np.ndarray, colours, label: str, form: str = "%.2f", **place) -> None:
    """Draw a colour bar beside the axes, with numbers at its ends and in its middle."""
    bar = axes[0].figure.colorbar(colours, ax=list(axes), label=label, **place)
    ticks = colours.norm.inverse([0.0, 0.5, 1.0])
    bar.set_ticks(ticks, labels=["0", *(form % tick for tick in ticks[1:])])
    bar.minorticks_off()
    bar.outline.set_visible(False)


def draw_weights(
    axes: np.ndarray, matrices: Sequence[np.ndarray], rows: Labels, columns: Labels, titles: Sequence[str]
) -> None:
    """Draw weights on one scale, from 0 to the largest weight that is drawn, with a colour bar.

    Where no numbers are written, the colours spread small weights: the middle of the bar is a quarter of the largest.
    """
    height, width = matrices[0].shape
    top, numbers = float(np.max(matrices, initial=0.0)) or 1.0, len(axes) == 1 and height <= 12 and width <= 8
    for ax, matrix, title in zip(axes, matrices, titles, strict=True):
        words = np.char.mod("%.2f", matrix) if numbers else None
        mesh = draw_matrix(ax, matrix, words, rows, columns, top=top, power=1.0 if numbers else 0.5, colours=WEIGHTS)
        ax.set_title(title)
    for ax in axes[1:]:
        ax.set_ylabel("")
    draw_bar(axes, mesh, f"Weight (largest: {top:.2f})")


@style.context("default")
def plot_attention(
    weights: Tensor, *, query_labels: Labels = None, key_labels: Labels = None, title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw an attention matrix (q_tokens, kv_tokens): a row for each query, a column for each key.

    The colours go from 0 to the largest weight. Up to eight columns, the numbers are written into the cells. The
    default of ``key_labels`` are ``query_labels`` if the matrix is square.
    """
    (array,) = as_arrays("weights", "(q_tokens, kv_tokens)", weights)
    rows, columns = array.shape
    if key_labels is None and rows == columns:
        key_labels = query_labels
    ax = ax or page(max(3.4, 0.62 * columns + 1.9), max(2.4, 0.5 * rows + 1.2))[0]
    draw_weights(np.array([ax]), [array], query_labels, key_labels, [title])
    return ax


@style.context("default")
def plot_heads(
    weights: Tensor, *, labels: Labels = None, key_labels: Labels = None, titles: Labels = None
) -> np.ndarray:
    """Draw the attention matrix of each head, (heads, q_tokens, kv_tokens), side by side, on one scale.

    ``labels`` are for the queries, and for the keys too unless ``key_labels`` are given. The default of ``titles``, a
    line above each head, is "Head 0", "Head 1" …
    """
    (array,) = as_arrays("weights", "(heads, q_tokens, kv_tokens)", weights)
    heads, rows, columns = array.shape
    axes = page(max(2.4, 0.28 * columns + 1.2) * heads + 0.9, max(2.6, 0.28 * rows + 1.4), heads, sharey=True)
    draw_weights(axes, list(array), labels, key_labels or labels, titles or [f"Head {head}" for head in range(heads)])
    return axes


@style.context("default")
def plot_masks(masks: Mapping[str, Tensor], *, labels: Labels = None) -> np.ndarray:
    """Draw boolean masks (q_tokens, kv_tokens) side by side below their names, "True" or "False" in each cell."""
    arrays = [as_arrays(f"masks[{title!r}]", "(q_tokens, kv_tokens)", mask)[0] for title, mask in masks.items()]
    rows, columns = np.max([array.shape for array in arrays], axis=0)
    axes = page((0.55 * columns + 1.1) * len(arrays), 0.42 * rows + 1.3, len(arrays))
    for ax, title, array in zip(axes, masks, arrays):
        draw_matrix(ax, array, array.astype(bool).astype(str), labels, labels)
        ax.set_title(title)
    return axes


@style.context("default")
def plot_head_split(heads: Tensor, *, title: str | None = None) -> Axes:
    """Draw the matrix that was cut into heads, each entry in the colour of the head that now holds it.

    ``heads``, of shape (num_heads, tokens, head_dim), were cut in some way from ``torch.arange(tokens * d_out)``,
    written row by row as a matrix (tokens, d_out), so that the entries say where they come from.
    """
    (array,) = as_arrays("heads", "(num_heads, tokens, head_dim)", heads)
    num_heads, tokens, head_dim = array.shape
    numbers = np.arange(array.size)
    if not np.array_equal(np.sort(array, axis=None), numbers):
        raise ValueError("heads must hold 0, 1, 2 … once each")
    owners = np.argsort(array, axis=None).reshape(tokens, -1) // (tokens * head_dim)  # which head holds this entry
    (ax,), top = page(0.5 * owners.shape[1] + 1.4, 0.42 * tokens + 1.5), max(num_heads - 1, 1)
    draw_matrix(ax, owners, numbers.reshape(owners.shape).astype(str), top=top, size=10)
    ax.set(xlabel="Columns", ylabel="Tokens", xticks=range(owners.shape[1]), yticks=range(tokens))
    marks = [Patch(color=KINDS(head / top), label=f"Head {head}") for head in range(num_heads)]
    ax.legend(handles=marks, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=num_heads, frameon=False, title=title)
    return ax


@style.context("default")
def plot_ring(processes: int, *, is_causal: bool = False) -> Axes:
    """Draw whose keys and values each process holds at each step of a ring of so many processes.

    With ``is_causal``, keys that lie in the future of the process's queries, so that it cannot use them, are marked.
    """
    (ax,) = page(1.35 * processes + 1.6, 0.7 * processes + 1.3)
    ranks = np.arange(processes)
    owners = (ranks - ranks[:, None]) % processes  # (steps, processes)
    light = owners + processes  # the upper half of the colours
    words, steps = np.char.mod("keys of %d", owners), [f"step {step}" for step in ranks]
    draw_matrix(ax, light, words, steps, top=2.0 * processes, colours=WEIGHTS)
    ax.set_xticks(ranks, [f"queries of {rank}" for rank in ranks])
    ax.set(xlabel="Processes", ylabel="Time")
    for step, rank in np.argwhere(is_causal & (owners > ranks)):
        ax.text(rank, step + 0.25, "(future: passed on)", ha="center", va="center", fontsize=8, style="italic")
    for step, rank in np.ndindex(processes - 1, processes - 1):
        arrow = {"arrowstyle": "-|>", "color": "black", "lw": 1.2}
        ax.annotate("", (rank + 0.66, step + 0.66), (rank + 0.42, step + 0.42), arrowprops=arrow)
    return ax


@style.context("default")
def plot_model(weights: Tensor) -> Axes:
    """Draw every head's attention matrix of weights (layers, heads, q_tokens, kv_tokens), a row for each layer.

    In each small matrix a row is a query and a column a key. The colours go from 0 to 1 and spread small weights: the
    middle of the bar is a quarter.
    """
    (array,) = as_arrays("weights", "(layers, heads, q_tokens, kv_tokens)", weights)
    layers, heads, rows, columns = array.shape
    axes = page(0.82 * heads + 1.8, 0.82 * layers + 0.8)
    (ax,), lefts, tops = axes, np.arange(heads) * 1.1 * columns, np.arange(layers) * 1.1 * rows
    for corner in [(left, top) for top in tops for left in lefts]:
        ax.add_patch(Rectangle(corner, columns, rows, facecolor=STEPS(0), linewidth=0))
    levels = np.minimum(np.sqrt(array) * STEPS.N, STEPS.N - 1).astype(int)
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    for level in np.unique(levels[levels > 0]):
        layer, head, row, column = np.nonzero(levels == level)
        corners = np.stack([lefts[head] + column, tops[layer] + row], axis=-1)  # (cells, 2)
        path = Path.make_compound_path_from_polys(square + corners[:, None])
        ax.add_patch(PathPatch(path, facecolor=STEPS(int(level)), linewidth=0))
    ax.set(xlim=(0, lefts[-1] + columns), ylim=(tops[-1] + rows, 0), xlabel="Keys", ylabel="Queries")
    ax.set_xticks(lefts + columns / 2, [f"Head {head}" for head in range(heads)], fontsize=9)
    ax.set_yticks(tops + rows / 2, [f"Layer {layer}" for layer in range(layers)], fontsize=9)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    draw_bar(axes, ScalarMappable(PowerNorm(0.5, 0, 1), STEPS), "Weight", "%g", aspect=40, pad=0.01)
    return ax


@style.context("default")
def plot_head_numbers(numbers: Tensor, *, label: str) -> Axes:
    """Draw numbers (layers, heads), none below 0, a row for each layer. The colours spread small numbers.

    ``label`` says beside the colour bar what the numbers are.
    """
    (array,) = as_arrays("numbers", "(layers, heads)", numbers)
    layers, heads = array.shape
    axes, top = page(0.55 * heads + 2.0, 0.42 * layers + 1.1), array.max() or 1.0
    form = "%.0f" if np.array_equal(array, array.round()) else "%.2f"
    rows = [f"Layer {layer}" for layer in range(layers)]
    mesh = draw_matrix(axes[0], array, np.char.mod(form, array), rows, top=top, power=0.5, colours=WEIGHTS)
    axes[0].set(xlabel="Heads", ylabel="", xticks=range(heads))
    draw_bar(axes, mesh, label, form)
    return axes[0]
