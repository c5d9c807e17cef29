"""Pictures of notebook 03: masks, with their words written into the cells."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

from attnlib.plots._base import as_array


def plot_masks(masks: Mapping[str, Tensor], *, labels: Sequence[str] | None = None) -> np.ndarray:
    """Draw boolean masks side by side, with "True" or "False" in each cell.

    Args:
        masks: a title for each mask (q_tokens, kv_tokens).
        labels: a word for each token.

    Returns:
        One axes for each mask.
    """
    arrays = {title: as_array(mask) for title, mask in masks.items()}
    for title, array in arrays.items():
        if array.ndim != 2:
            raise ValueError(f"masks[{title!r}] must have shape (q_tokens, kv_tokens); got {array.shape}")
    rows, columns = np.max([array.shape for array in arrays.values()], axis=0)
    size = ((0.55 * columns + 1.1) * len(arrays), 0.42 * rows + 1.3)
    _, axes = plt.subplots(1, len(arrays), figsize=size, squeeze=False, facecolor="white", layout="constrained")
    for ax, (title, array) in zip(axes[0], arrays.items()):
        ax.imshow(array, vmin=0.0, vmax=1.0, cmap="cividis", aspect="auto")
        ax.set(xlabel="Keys", ylabel="Queries", title=title)
        if labels is not None:
            ax.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
            ax.set_yticks(range(len(labels)), labels)
        for (row, column), value in np.ndenumerate(array):
            colour = "black" if value else "white"
            ax.text(column, row, str(bool(value)), ha="center", va="center", color=colour, fontsize=8)
    return axes[0]
