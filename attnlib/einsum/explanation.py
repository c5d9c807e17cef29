"""What `explain_einsum` gives: the roles of the axes, the loops, the matmul, the costs, and ways to run them."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnlib._validate import check_count
from attnlib.einsum.bind import Contraction
from attnlib.einsum.facts import EinsumFacts
from attnlib.einsum.loops import loops_source
from attnlib.einsum.matmul import torch_source
from attnlib.einsum.show import as_markdown, as_text

MAX_STEPS = 300_000  # loops in Python beyond this take more than a few seconds


class Product(NamedTuple):
    """One product of a trace: its text `A[0, 2] * B[2, 1]`, the index into each operand, the factors, their product."""

    text: str
    indices: tuple[tuple[int, ...], ...]
    factors: tuple[float | complex, ...]
    value: float | complex


@dataclass(frozen=True)
class Trace:
    """The products that are added up into one cell of the output."""

    cell: str
    products: tuple[Product, ...]
    total: float | complex

    def __len__(self) -> int:
        return len(self.products)

    def __str__(self) -> str:
        lines = [f"{self.cell} = {self.total:.4f}, the sum of {len(self)} product{'' if len(self) == 1 else 's'}"]
        for product in self.products[:24]:
            factors = " * ".join(f"{factor:.4f}" for factor in product.factors)
            result = f" = {product.value:.4f}" if len(product.factors) > 1 else ""
            lines.append(f"  + {product.text} = {factors}{result}")
        if len(self) > 24:
            lines.append(f"  … and {len(self) - 24} more")
        return "\n".join(lines)

    __repr__ = __str__


@dataclass(frozen=True, eq=False, repr=False)
class EinsumExplanation(EinsumFacts):
    """An einsum equation with real shapes, taken apart. Show it as the last line of a cell, or print it.

    Attributes:
        equation: as it was given.
        spelling: "letters" (torch, NumPy), "words" (einops) or "numbers" (lists of numbers).
        axes: one `Axis` for each name: size, places, roles (free or summed; batch, diagonal, broadcast) and why.
        warnings: sentences about what in this equation often surprises.
        element_size: bytes of one number, by the operands' dtype (a plain shape has torch's default dtype).
        inputs, shapes, tensors: names, sizes and letter of each operand.
        free, summed: the names in the output, and all others; output_shape: the sizes of the free ones.
        loops, torch_code: Python that computes the same, with loops, and with permute and matmul.
        path: the pairwise order, step by step.
        multiplications, path_multiplications, output_bytes, largest_intermediate_bytes: what it costs.

    A plain shape as operand stands for random numbers, drawn with a fixed seed.
    """

    _draw: Callable[[], list[Tensor]]
    _einsum: Callable[[list[Tensor]], Tensor]

    def operands(self) -> list[Tensor]:
        """The operands as tensors on the CPU, in their common dtype."""
        return self._draw()

    def run_loops(self) -> Tensor:
        """Run the loops on the operands.

        Raises:
            ValueError: the loops would take too long in Python.
        """
        self._check_small()
        return self._run(loops_source, self.operands())

    def verify(self) -> bool:
        """Whether loops, equivalent code and einsum itself agree, in float64, on the operands.

        Raises:
            ValueError: the loops would take too long in Python.
        """
        self._check_small()
        operands = self.operands()
        wide = torch.complex128 if operands[0].is_complex() else torch.float64
        operands = [operand.to(wide) for operand in operands]
        expected = self._einsum(operands)
        results = [self._run(source, operands) for source in (loops_source, torch_source)]
        return all(
            result.shape == expected.shape and torch.allclose(result, expected, rtol=1e-9, atol=1e-9, equal_nan=True)
            for result in results
        )

    def trace(self, *cell: int) -> Trace:
        """List the products that make one cell of the output.

        Args:
            cell: one index for each axis of the output, in the output's order.

        Raises:
            TypeError: an index is no int.
            ValueError: too few or too many indices, or one beyond its axis; each is named.
        """
        names, sizes = self._contraction.output, self._contraction.sizes
        if len(cell) != len(names):
            expected = f"{len(names)} ({', '.join(names)})" if names else "none, as the output is a single number"
            raise ValueError(f"trace needs one index for each axis of the output: {expected}; got {len(cell)}")
        for name, index in zip(names, cell):
            check_count(f"index of {name}", index, at_least=0)
            if index >= sizes[name]:
                raise ValueError(f"index of {name} must be below its size, {sizes[name]}; got {index}")
        self._check_small(math.prod(sizes[name] for name in self.summed))
        products = tuple(self._products(dict(zip(names, cell)), self.operands()))
        label = f"output[{', '.join(map(str, cell))}]" if cell else "output"
        return Trace(label, products, sum(product.value for product in products))

    def _products(self, fixed: dict[str, int], operands: list[Tensor]) -> Iterator[Product]:
        contraction = self._contraction
        for summed in itertools.product(*(range(contraction.sizes[name]) for name in self.summed)):
            places = fixed | dict(zip(self.summed, summed))
            indices = tuple(
                tuple(0 if size == 1 else places[axis] for axis, size in zip(axes, shape))
                for axes, shape in zip(contraction.inputs, contraction.shapes)
            )
            factors = tuple(operand[index].item() for operand, index in zip(operands, indices))
            text = " * ".join(
                f"{name}[{', '.join(map(str, index))}]" if index else name for name, index in zip(self.tensors, indices)
            )
            yield Product(text, indices, factors, math.prod(factors))

    def _run(self, source: Callable[[Contraction, tuple[str, ...]], str], operands: list[Tensor]) -> Tensor:
        """Run generated code, with names of our own for the axes: nothing that the user typed is executed."""
        plain = self._contraction.renamed({name: f"i{number}" for number, name in enumerate(self._contraction.sizes)})
        names = plain.tensor_names()
        space: dict[str, Any] = {"__builtins__": {"range": range}, "torch": torch, **dict(zip(names, operands))}
        with torch.device("cpu"):
            exec(compile(source(plain, names), "<einsum>", "exec"), space)
        return space["output"]

    def _check_small(self, steps: int | None = None) -> None:
        if steps is None:
            steps = max(math.prod(sizes) for sizes in (self._contraction.sizes.values(), self.output_shape))
        steps = max(steps, *map(math.prod, self.shapes))
        if steps > MAX_STEPS:
            raise ValueError(
                f"the loops take {steps:,} steps, too many for Python (at most {MAX_STEPS:,}); "
                "explain the same equation with smaller sizes"
            )

    def __str__(self) -> str:
        return as_text(self)

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        return as_markdown(self)
