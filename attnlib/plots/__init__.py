"""The pictures of the series. Each function draws on axes, returns them, and changes nothing else."""

from attnlib.plots._base import picture, plot_attention, plot_heads
from attnlib.plots.context_vectors import plot_context
from attnlib.plots.self_attention import plot_lookup, plot_scaling, plot_softmax

__all__ = [
    "picture",
    "plot_attention",
    "plot_context",
    "plot_heads",
    "plot_lookup",
    "plot_scaling",
    "plot_softmax",
]
