"""What every picture shares: its page, its alt text, and the attention matrix."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor


def new_axes(ax: Axes | None, width: float, height: float) -> Axes:
    """The axes to draw on: those given, or new ones on a white figure of that size in inches."""
    if ax is not None:
        return ax
    _, ax = plt.subplots(figsize=(width, height), facecolor="white", layout="constrained")
    return ax


def picture(drawn: Axes | Figure | np.ndarray | str, *, alt: str) -> None:
    """Show a picture in the notebook with a text for those who cannot see it; a figure is closed.

    Args:
        drawn: a figure, axes of it, or an array of axes, as the functions of this package return them; or the path of
            an .svg file, such as ``"../images/series_map.svg"``.
        alt: what the picture shows, in a sentence.
    """
    from IPython.display import SVG, display  # only notebooks show pictures

    if isinstance(drawn, str):
        # Not a Markdown image: a server opened on notebooks/ cannot reach the folder beside it, the kernel can.
        display(SVG(filename=drawn), metadata={"image/svg+xml": {"alt": alt}})
        return
    first = drawn.flat[0] if isinstance(drawn, np.ndarray) else drawn
    figure = first.figure.figure  # of axes in a part of a page, too, the whole page
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


def as_array(values: Tensor | np.ndarray | Sequence) -> np.ndarray:
    """Numbers for matplotlib, from a tensor on any device, of any dtype."""
    return values.detach().double().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=float)


def plot_attention(
    weights: Tensor,
    *,
    query_labels: Sequence[str] | None = None,
    key_labels: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw an attention matrix: a row for each query, a column for each key, colours from 0 to 1.

    Args:
        weights: (q_tokens, kv_tokens). Up to eight columns, the numbers are written into the cells.
        query_labels: a word for each query.
        key_labels: a word for each key; the same as ``query_labels`` where it is left out and the matrix is square.
        title: a line above the picture.
        ax: axes to draw on.
    """
    array = as_array(weights)
    if array.ndim != 2:
        raise ValueError(f"weights must have shape (q_tokens, kv_tokens); got {array.shape}")
    rows, columns = array.shape
    if key_labels is None and rows == columns:
        key_labels = query_labels
    ax = new_axes(ax, max(3.2, 0.62 * columns + 1.8), max(2.4, 0.5 * rows + 1.2))
    image = ax.imshow(array, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
    ax.set(xlabel="Keys", ylabel="Queries", title=title)
    _label(ax, array.shape, query_labels, key_labels)
    if columns <= 8 and rows <= 12:
        for row, column in np.ndindex(rows, columns):
            colour = "black" if array[row, column] > 0.6 else "white"
            ax.text(column, row, f"{array[row, column]:.2f}", ha="center", va="center", color=colour, fontsize=8)
    ax.figure.colorbar(image, ax=ax, label="Weight")
    return ax


def plot_heads(
    weights: Tensor, *, labels: Sequence[str] | None = None, titles: Sequence[str] | None = None
) -> np.ndarray:
    """Draw one attention matrix per head, side by side.

    Args:
        weights: (heads, q_tokens, kv_tokens).
        labels: a word for each token.
        titles: a line above each head; "Head 0", "Head 1" … where it is left out.
    """
    array = as_array(weights)
    if array.ndim != 3:
        raise ValueError(f"weights must have shape (heads, q_tokens, kv_tokens); got {array.shape}")
    heads, rows, columns = array.shape
    width = max(2.4, 0.28 * columns + 1.2)
    figure, axes = plt.subplots(
        1, heads, figsize=(width * heads + 0.8, max(2.6, 0.28 * rows + 1.4)),
        squeeze=False, sharey=True, facecolor="white", layout="constrained",
    )  # fmt: skip
    for head, ax in enumerate(axes[0]):
        image = ax.imshow(array[head], vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
        ax.set(xlabel="Keys", title=titles[head] if titles else f"Head {head}")
        _label(ax, (rows, columns), labels, labels)
    axes[0, 0].set_ylabel("Queries")
    figure.colorbar(image, ax=axes[0], label="Weight")
    return axes[0]


def _label(
    ax: Axes, shape: tuple[int, ...], query_labels: Sequence[str] | None, key_labels: Sequence[str] | None
) -> None:
    for name, labels, size in (("query", query_labels, shape[0]), ("key", key_labels, shape[1])):
        if labels is not None and len(labels) != size:
            raise ValueError(f"labels must hold a word for each {name}, {size} of them; got {len(labels)}")
    if query_labels is not None:
        ax.set_yticks(range(len(query_labels)), query_labels)
    if key_labels is not None:
        ax.set_xticks(range(len(key_labels)), key_labels, rotation=45, ha="right", rotation_mode="anchor")
