"""A whole model at once: every head's matrix on one page, and a number for every head."""

import numpy as np
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from torch import Tensor

from attnlib.plots._base import as_array, new_axes
from attnlib.plots.matrices import WEIGHTS, draw_matrix

STEPS = colormaps["viridis"].resampled(10)  # few colours: cells of one colour are one path, which keeps the page small


@style.context("default")
def plot_model(weights: Tensor, *, ax: Axes | None = None) -> Axes:
    """Draw the attention matrix of every head of every layer on one page, a row of small matrices for each layer.

    In each matrix a row is a query and a column a key. The colours go from 0 to 1 and spread small weights: the middle
    of the bar is a quarter.

    Args:
        weights: (layers, heads, q_tokens, kv_tokens).
        ax: axes to draw on.
    """
    array = as_array(weights)
    if array.ndim != 4:
        raise ValueError(f"weights must have shape (layers, heads, q_tokens, kv_tokens); got {array.shape}")
    layers, heads, rows, columns = array.shape
    ax = new_axes(ax, 0.82 * heads + 1.8, 0.82 * layers + 0.8)
    lefts, tops = np.arange(heads) * 1.1 * columns, np.arange(layers) * 1.1 * rows
    levels = np.minimum(np.sqrt(array) * STEPS.N, STEPS.N - 1).astype(int)
    for top, left in np.ndindex(layers, heads):
        ax.add_patch(Rectangle((lefts[left], tops[top]), columns, rows, facecolor=STEPS(0), linewidth=0))
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])
    steps = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    for level in np.unique(levels[levels > 0]):
        layer, head, row, column = np.nonzero(levels == level)
        corners = np.stack([lefts[head] + column, tops[layer] + row], axis=-1)  # (cells, 2)
        path = Path((square + corners[:, None]).reshape(-1, 2), np.tile(steps, len(row)))
        ax.add_patch(PathPatch(path, facecolor=STEPS(int(level)), linewidth=0))
    ax.set(xlim=(0, lefts[-1] + columns), ylim=(tops[-1] + rows, 0), xlabel="Keys", ylabel="Queries")
    ax.set_xticks(lefts + columns / 2, [f"Head {head}" for head in range(heads)], fontsize=9)
    ax.set_yticks(tops + rows / 2, [f"Layer {layer}" for layer in range(layers)], fontsize=9)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(ScalarMappable(Normalize(0, 1), STEPS), ax=ax, label="Weight", aspect=40, pad=0.01)
    bar.set_ticks([0, 0.5, 1], labels=["0", "0.25", "1"])
    bar.outline.set_visible(False)
    return ax


@style.context("default")
def plot_head_numbers(numbers: Tensor, *, label: str, ax: Axes | None = None) -> Axes:
    """Draw one number for each head, with a row for each layer. The colours spread small numbers.

    Args:
        numbers: (layers, heads), none below 0.
        label: what the numbers are, beside the colour bar.
        ax: axes to draw on.
    """
    array = as_array(numbers)
    if array.ndim != 2 or array.min(initial=0.0) < 0:
        raise ValueError(f"numbers must have shape (layers, heads), and none may be below 0; got {array.shape}")
    layers, heads = array.shape
    ax, top = new_axes(ax, 0.55 * heads + 2.0, 0.42 * layers + 1.1), array.max(initial=0.0) or 1.0
    whole = bool((array == array.round()).all())
    words = np.vectorize(("{:.0f}" if whole else "{:.2f}").format, otypes=[str])(array)
    rows, columns = [f"Layer {layer}" for layer in range(layers)], [str(head) for head in range(heads)]
    mesh = draw_matrix(ax, array, words, rows, None, top=top, power=0.5, colours=WEIGHTS)
    ax.set_xticks(range(heads), columns)
    ax.set(xlabel="Heads", ylabel="")
    bar = ax.figure.colorbar(mesh, ax=ax, label=label)
    bar.set_ticks(
        [0, top / 4, top], labels=[f"{value:.0f}" if whole else f"{value:.2f}" for value in (0, top / 4, top)]
    )
    bar.minorticks_off()
    bar.outline.set_visible(False)
    return ax
