"""The pictures of the series. Each function draws on axes, returns them, and changes nothing else."""

from attnlib.plots._base import picture, plot_attention, plot_heads

__all__ = [
    "picture",
    "plot_attention",
    "plot_heads",
]
