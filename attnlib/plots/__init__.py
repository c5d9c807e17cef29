"""The pictures of the series. Each function draws on axes and returns them; ``picture`` shows them.

Everywhere, ``labels`` holds a word for each token, ``title`` is a line above the picture, and ``ax`` are the axes to
draw on, by default those of a new page. An argument of the wrong shape is a ValueError that names it.
"""

from importlib.util import find_spec

if find_spec("matplotlib") is None:
    raise ImportError('attnlib.plots draws with matplotlib; install it with: pip install "attnlib[plots]"')

from attnlib.plots._base import picture, show_image
from attnlib.plots._svg import to_svg
from attnlib.plots.charts import plot_arrows, plot_context, plot_curves, plot_memory_reads, plot_parts, plot_softmax
from attnlib.plots.einsum import plot_einsum
from attnlib.plots.lsh import plot_hash_circle, plot_hash_round, plot_sorted
from attnlib.plots.matrices import (
    plot_attention,
    plot_head_numbers,
    plot_head_split,
    plot_heads,
    plot_masks,
    plot_model,
    plot_ring,
)

__all__ = [
    "picture", "plot_arrows", "plot_attention", "plot_context", "plot_curves", "plot_einsum", "plot_hash_circle",
    "plot_hash_round", "plot_head_numbers", "plot_head_split", "plot_heads", "plot_masks", "plot_memory_reads",
    "plot_model", "plot_parts", "plot_ring", "plot_softmax", "plot_sorted", "show_image", "to_svg",
]  # fmt: skip
