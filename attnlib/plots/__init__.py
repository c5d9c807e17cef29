"""The pictures of the series. Each function draws on axes, returns them, and changes nothing else."""

from attnlib.plots._base import picture, plot_attention, plot_heads
from attnlib.plots.causal import plot_masks
from attnlib.plots.context_vectors import plot_context
from attnlib.plots.einsum import plot_einsum
from attnlib.plots.lsh import plot_curves, plot_hash_circle, plot_hash_round, plot_sorted
from attnlib.plots.memory import plot_memory_reads, plot_staircase
from attnlib.plots.merging import plot_parts, plot_ring
from attnlib.plots.multi_head import plot_head_split
from attnlib.plots.self_attention import plot_lookup, plot_scaling, plot_softmax

__all__ = [
    "picture",
    "plot_attention",
    "plot_context",
    "plot_curves",
    "plot_einsum",
    "plot_hash_circle",
    "plot_hash_round",
    "plot_head_split",
    "plot_heads",
    "plot_lookup",
    "plot_masks",
    "plot_memory_reads",
    "plot_parts",
    "plot_ring",
    "plot_scaling",
    "plot_softmax",
    "plot_sorted",
    "plot_staircase",
]
