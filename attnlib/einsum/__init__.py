"""An einsum equation, explained: the roles of its axes, its loops, its matmul and its cost."""

from attnlib.einsum.explain import EinsumExplanation, explain_einsum

__all__ = ["EinsumExplanation", "explain_einsum"]
