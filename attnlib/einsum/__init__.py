"""An einsum equation, explained: the roles of its axes, its loops, its matmul and its cost."""

from attnlib.einsum.explain import explain_einsum
from attnlib.einsum.explanation import EinsumExplanation

__all__ = ["EinsumExplanation", "explain_einsum"]
