"""What can be said about an equation and its shapes without running anything."""

import math
from dataclasses import dataclass
from functools import cached_property

from attnlib.einsum.bind import Contraction
from attnlib.einsum.loops import loops_source
from attnlib.einsum.matmul import torch_source
from attnlib.einsum.path import PathStep, path_steps
from attnlib.einsum.roles import Axis


@dataclass(frozen=True, eq=False, repr=False)
class EinsumFacts:
    """Axes, code and costs of an equation; ``EinsumExplanation`` adds the ways to run it."""

    equation: str
    spelling: str
    axes: tuple[Axis, ...]
    warnings: tuple[str, ...]
    element_size: int
    _contraction: Contraction

    @property
    def inputs(self) -> tuple[tuple[str, ...], ...]:
        """The names of each operand's axes."""
        return self._contraction.inputs

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The operands' shapes."""
        return self._contraction.shapes

    @property
    def tensors(self) -> tuple[str, ...]:
        """What the operands are called in the code: A, B, C, …"""
        return self._contraction.tensor_names()

    @property
    def free(self) -> tuple[str, ...]:
        """The names in the output, in its order."""
        return self._contraction.output

    @property
    def summed(self) -> tuple[str, ...]:
        """All other names."""
        return self._contraction.summed

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The sizes of the free axes."""
        return self._contraction.output_shape

    @cached_property
    def loops(self) -> str:
        """The loops, as Python that runs where `torch` and the operands `A, B, …` exist; fills `output`."""
        return loops_source(self._contraction, self.tensors)

    @cached_property
    def torch_code(self) -> str:
        """The same without einsum: `permute`, `@` (where a shared axis is summed), `*` and `sum`; gives `output`."""
        return torch_source(self._contraction, self.tensors)

    @cached_property
    def path(self) -> tuple[PathStep, ...]:
        """The order in which the operands are joined two by two, with the cost of each step."""
        return path_steps(self._contraction)

    @property
    def multiplications(self) -> int:
        """How many the loops do: one fewer than there are operands, for each combination of all axes."""
        return (len(self.shapes) - 1) * math.prod(self._contraction.sizes.values())

    @property
    def path_multiplications(self) -> int:
        """How many are left when the operands are joined two by two."""
        return sum(step.multiplications for step in self.path)

    @property
    def output_bytes(self) -> int:
        """Memory of the output."""
        return math.prod(self.output_shape) * self.element_size

    @property
    def largest_intermediate_bytes(self) -> int:
        """Memory of the largest tensor on the path that is not the output; 0 for one or two operands."""
        return max((step.elements for step in self.path[:-1]), default=0) * self.element_size
