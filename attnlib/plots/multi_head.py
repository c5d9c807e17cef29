"""Pictures of notebook 04: which entry of a matrix lands in which head."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from torch import Tensor

from attnlib.plots._base import as_array, new_axes


def plot_head_split(heads: Tensor, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw the matrix that was cut into heads, each entry in the colour of the head that holds it now.

    Args:
        heads: (num_heads, tokens, head_dim), cut in some way from ``torch.arange(tokens * d_out)``, written row by row
            as a matrix (tokens, d_out): the entries say where they come from.
        title: a line above the picture.
        ax: axes to draw on.
    """
    array = as_array(heads)
    if array.ndim != 3 or not np.array_equal(np.sort(array, axis=None), np.arange(array.size)):
        raise ValueError(
            f"heads must have shape (num_heads, tokens, head_dim) and hold 0, 1, 2 … once each; got {array.shape}"
        )
    num_heads, tokens, head_dim = array.shape
    holders = np.empty(array.size)
    holders[array.reshape(num_heads, -1).astype(int)] = np.arange(num_heads)[:, None]
    owners = holders.reshape(tokens, num_heads * head_dim)  # (tokens, d_out): which head holds this entry
    ax = new_axes(ax, 0.5 * owners.shape[1] + 1.4, 0.42 * tokens + 1.5)
    ax.imshow(owners, vmin=0.0, vmax=max(num_heads - 1, 1), cmap="cividis", aspect="auto")
    ax.set(xlabel="Columns", ylabel="Tokens", xticks=range(owners.shape[1]), yticks=range(tokens))
    for entry, (place, head) in enumerate(np.ndenumerate(owners)):
        colour = "black" if head > (num_heads - 1) / 2 else "white"
        ax.text(place[1], place[0], str(entry), ha="center", va="center", color=colour)
    colours = plt.get_cmap("cividis")(np.arange(num_heads) / max(num_heads - 1, 1))
    patches = [Patch(color=colour, label=f"Head {head}") for head, colour in enumerate(colours)]
    ax.legend(
        handles=patches, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=num_heads, frameon=False, title=title
    )
    return ax
