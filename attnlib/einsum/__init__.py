"""An einsum equation, explained: roles of the axes, loops, matmul, cost."""

from attnlib.einsum.explain import explain_einsum
from attnlib.einsum.explanation import EinsumExplanation

__all__ = ["EinsumExplanation", "explain_einsum"]
