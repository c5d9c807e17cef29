"""An einsum: its tensors, and the products that fill one cell of its output."""

import numpy as np
import torch
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from attnlib.einsum import EinsumExplanation
from attnlib.plots._base import page

DONE, NOW, FILLED = colormaps["viridis"]([0.75, 0.99, 0.3])
UNTOUCHED, EMPTY = "0.93", "white"
GAP = 0.7  # between copies, in cells
MAX_ENTRIES = 400


@style.context("default")
def plot_einsum(explanation: EinsumExplanation, cell: tuple[int, ...], step: int | None = None) -> np.ndarray:
    """Draw the operands and the output of an einsum, and one step of the sum that fills a cell of the output.

    The entries that are multiplied now are yellow, those of the steps before are green, the cell that they fill is
    blue. A tensor's last two axes are columns and rows; the axes before them place copies side by side, then below.

    Args:
        explanation: tensors of at most four axes and 400 entries each.
        cell: an index for each axis of the output. Cells after it, in the order of the loops, are still empty.
        step: which product, from 0; the last one if omitted or too large.
    """
    tensors = [*explanation.operands(), explanation.run_loops()]
    for tensor in tensors:
        if tensor.ndim > 4 or not 0 < tensor.numel() <= MAX_ENTRIES:
            wanted = f"at most 4 axes and 1 to {MAX_ENTRIES} entries"
            raise ValueError(f"explanation must have tensors of {wanted}; got the shape {tuple(tensor.shape)}")
    trace = explanation.trace(*cell)
    *before, now = trace.products[: None if step is None else step + 1]
    so_far = sum(product.value for product in (*before, now))
    shapes = [(1,) * (4 - tensor.ndim) + tensor.shape for tensor in tensors]
    widths = [aside * (columns + GAP) - GAP for _, aside, _, columns in shapes]
    heights = [below * (rows + GAP) - GAP for below, _, rows, _ in shapes]
    axes = page(0.55 * sum(widths) + 0.8 * len(tensors), 0.45 * max(heights) + 1.6, len(tensors), width_ratios=widths)
    figure = axes[0].figure
    figure.get_layout_engine().set(h_pad=0.1)
    for operand, ax in enumerate(axes[:-1]):
        colours = {product.indices[operand]: DONE for product in before} | {now.indices[operand]: NOW}
        _draw(ax, tensors[operand], colours, explanation.tensors[operand], explanation.inputs[operand])
    shown = tensors[-1].clone()
    shown[cell] = torch.tensor(so_far)
    later = {index: EMPTY for index in np.ndindex(*shown.shape) if index > cell}
    _draw(axes[-1], shown, later | {cell: FILLED}, "output", explanation.free)
    factors = " × ".join(f"{factor:.4g}" for factor in now.factors)
    value = f" = {now.value:.4g}" if len(now.factors) > 1 else ""
    title = f"Step {len(before) + 1} of {len(trace.products)}: {now.text.replace('*', '×')} = {factors}{value}"
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(f"{trace.cell} so far: {so_far:.4g}", fontsize=10)
    return axes


def _draw(ax: Axes, tensor: Tensor, colours: dict, title: str, names: tuple[str, ...]) -> None:
    *_, rows, columns = (1, 1, *tensor.shape)
    for index in np.ndindex(*tensor.shape):
        i, j, row, column = (0,) * (4 - tensor.ndim) + index
        x, y = column + j * (columns + GAP), row + i * (rows + GAP)
        colour = colours.get(index, UNTOUCHED)
        ax.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="0.4", linewidth=0.8))
        if colour is not EMPTY:
            text = f"{tensor[index].item() + 0.0:.4g}"  # + 0.0: no -0
            shade = "white" if colour is FILLED else "black"
            ax.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=8, color=shade)
    # The last entry was drawn at the right and the bottom.
    ax.set(xlim=(-0.1, x + 1.1), ylim=(y + 1.1, -0.1), aspect="equal", xticks=[], yticks=[])
    ax.set_title(f"{title} ({', '.join(names)})", fontsize=9)
    below, aside, down, across = ("",) * (4 - len(names)) + names
    label = f"{down}, blocks: {below}" if below else down
    ax.set_xlabel(f"{across}, blocks: {aside}" if aside else across, fontsize=9)
    ax.set_ylabel(label, fontsize=9, rotation=90 if len(label) > 2 else 0)
    ax.spines[:].set_visible(False)
