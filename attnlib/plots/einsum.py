"""An einsum: its tensors, and the products that fill one cell of its output."""

import numpy as np
import torch
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from torch import Tensor

from attnlib._validate import check_counts
from attnlib.einsum import EinsumExplanation

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

    Returns one axes for each operand, and one for the output.
    """
    tensors = [*explanation.operands(), explanation.run_loops()]
    for tensor in tensors:
        if tensor.ndim > 4 or not 0 < tensor.numel() <= MAX_ENTRIES:
            raise ValueError(
                f"explanation must have tensors of at most 4 axes and 1 to {MAX_ENTRIES} entries; "
                f"got the shape {tuple(tensor.shape)}"
            )
    if step is not None:
        check_counts(at_least=0, step=step)
    trace = explanation.trace(*cell)
    done = trace.products[: None if step is None else step + 1]
    so_far = sum(product.value for product in done)
    sizes = [np.array(_place(tuple(size - 1 for size in tensor.shape), tensor.shape)) + 1 for tensor in tensors]
    widths, heights = (np.array(extents) for extents in zip(*sizes))
    size = (0.55 * widths.sum() + 0.8 * len(tensors), 0.45 * heights.max() + 1.6)
    figure = Figure(size, facecolor="white", layout=ConstrainedLayoutEngine(h_pad=0.1))
    axes = figure.subplots(1, len(tensors), squeeze=False, width_ratios=widths.tolist())
    names = [*zip(explanation.tensors, explanation.inputs), ("output", explanation.free)]
    for operand, ax in enumerate(axes[0, :-1]):
        colours = {product.indices[operand]: DONE for product in done[:-1]} | {done[-1].indices[operand]: NOW}
        _draw(ax, tensors[operand], colours, *names[operand])
    shown = tensors[-1].clone()
    shown[cell] = torch.tensor(so_far)
    later = {index: EMPTY for index in np.ndindex(*shown.shape) if index > cell}
    _draw(axes[0, -1], shown, later | {cell: FILLED}, *names[-1])
    factors = [f"{factor:.4g}" for factor in done[-1].factors]
    now = f"{done[-1].text.replace('*', '×')} = {' × '.join(factors)}"
    if len(factors) > 1:
        now += f" = {done[-1].value:.4g}"
    figure.suptitle(f"Step {len(done)} of {len(trace.products)}: {now}", fontsize=10)
    figure.supxlabel(f"{trace.cell} so far: {so_far:.4g}", fontsize=10)
    return axes[0]


def _place(index: tuple[int, ...], shape: tuple[int, ...]) -> tuple[float, float]:
    """Where an entry is drawn: x and y of its cell."""
    index, shape = (0,) * (4 - len(index)) + index, (1,) * (4 - len(shape)) + tuple(shape)
    return index[3] + index[1] * (shape[3] + GAP), index[2] + index[0] * (shape[2] + GAP)


def _draw(ax: Axes, tensor: Tensor, colours: dict, name: str, names: tuple[str, ...]) -> None:
    for index in np.ndindex(*tensor.shape):
        x, y = _place(index, tensor.shape)
        colour = colours.get(index, UNTOUCHED)
        ax.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="0.4", linewidth=0.8))
        if colour is not EMPTY:
            text = f"{tensor[index].item() + 0.0:.4g}"  # + 0.0: no -0
            ax.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=8,
                    color="white" if colour is FILLED else "black")  # fmt: skip
    right, bottom = _place(tuple(size - 1 for size in tensor.shape), tensor.shape)
    ax.set(xlim=(-0.1, right + 1.1), ylim=(bottom + 1.1, -0.1), aspect="equal", xticks=[], yticks=[])
    ax.set_title(f"{name} ({', '.join(names)})", fontsize=9)
    across = [f", blocks: {name}" for name in names[-3:-2]]
    down = [f", blocks: {name}" for name in names[-4:-3]]
    label = "".join([*names[-2:-1], *down])
    ax.set_xlabel("".join([*names[-1:], *across]), fontsize=9)
    ax.set_ylabel(label, fontsize=9, rotation=90 if len(label) > 2 else 0)
    ax.spines[:].set_visible(False)
