"""The result of `explain_einsum`: what an equation means and costs, ways to run it, and how it is displayed."""

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnlib._validate import check_counts
from attnlib.einsum.axes import Axis
from attnlib.einsum.code import entry
from attnlib.einsum.equation import Contraction, own_name
from attnlib.einsum.path import EXACT, PathStep, largest_intermediate

MAX_STEPS = 300_000  # more loops than this take Python more than a few seconds


class Product(NamedTuple):
    """One product of a trace: its text `A[0, 2] * B[2, 1]`, the index into each operand, the factors, their product."""

    text: str
    indices: tuple[tuple[int, ...], ...]
    factors: tuple[float | complex, ...]
    value: float | complex


class Trace(NamedTuple):
    """The products that are added up into one cell of the output."""

    cell: str
    products: tuple[Product, ...]
    total: float | complex

    def __repr__(self) -> str:
        count = len(self.products)
        lines = [f"{self.cell} = {self.total:.4f}, the sum of {count} product{'' if count == 1 else 's'}"]
        for product in self.products[:24]:
            factors = " * ".join(f"{factor:.4f}" for factor in product.factors)
            result = f" = {product.value:.4f}" if len(product.factors) > 1 else ""
            lines.append(f"  + {product.text} = {factors}{result}")
        if count > 24:
            lines.append(f"  … and {count - 24} more")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False, repr=False)
class EinsumExplanation(Contraction):
    """An einsum equation with real shapes, taken apart. Show it as the last line of a cell, or print it.

    Attributes:
        inputs, shapes, tensors: the names, the sizes and the letter of each operand.
        free, summed: the names in the output, and all others. output_shape: the sizes of the free ones.
        sizes: the size of each name. dots: the names that stand for `...`.
        equation: the text as given. spelling: "letters" (torch, NumPy) or "words" (einops).
        axes: one `Axis` for each name: size, places, roles (free or summed; batch, diagonal, broadcast) and why.
        warnings: sentences about what is often surprising in such an equation.
        dtype: what torch promotes the operands to (int64 for bools, torch's default dtype for plain shapes).
        loops: Python that fills `output` with loops; it runs wherever `torch` and tensors `A, B, …` exist.
        torch_code: the same without einsum or loops: `permute`, `@` (if a shared axis is summed), `*` and `sum`.
        path: how to join the operands two by two: the cheapest order for up to four, a good one for more.
        multiplications, path_multiplications: what the loops cost, and what the path costs.

    If an operand is a plain shape, random numbers take its place, drawn with a fixed seed.
    """

    equation: str
    spelling: str
    axes: tuple[Axis, ...]
    warnings: tuple[str, ...]
    dtype: torch.dtype
    loops: str
    torch_code: str
    path: tuple[PathStep, ...]
    _given: list[Tensor]

    @property
    def multiplications(self) -> int:
        """How many multiplications the loops take: one fewer than there are operands, for each combination of axes."""
        return (len(self.shapes) - 1) * math.prod(self.sizes.values())

    @property
    def path_multiplications(self) -> int:
        """How many multiplications it takes to join the operands two by two."""
        return sum(step.multiplications for step in self.path)

    def operands(self) -> list[Tensor]:
        """The operands as tensors on the CPU, in their common dtype."""
        return [tensor.to(self.dtype) for tensor in self._drawn()]

    def _drawn(self) -> list[Tensor]:
        """The operands on the CPU. Those without numbers get random ones, the same each time."""
        generator = torch.Generator("cpu").manual_seed(0)
        options: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
        return [torch.randn(x.shape, **options).to(x.dtype) if x.is_meta else x.to("cpu") for x in self._given]

    def run_loops(self) -> Tensor:
        """Run the loops on the operands.

        Raises:
            ValueError: the loops would take too long in Python.
        """
        self._check_small()
        return self._run(self.loops, self._drawn())

    def verify(self) -> bool:
        """Whether the loops and the equivalent code run on the operands and agree with einsum.

        Both must give the dtype that torch promotes to. Integers are compared exactly, all others in float64.

        Raises:
            ValueError: the loops would take too long in Python.
        """
        self._check_small()
        exact = not (self.dtype.is_floating_point or self.dtype.is_complex)
        wide = torch.int64 if exact else torch.complex128 if self.dtype.is_complex else torch.float64
        operands = [tensor.to(wide) for tensor in self.operands()]
        expected = torch.einsum(self.letters, *operands)
        for source in (self.loops, self.torch_code):
            result = self._run(source, self._drawn())
            if result.dtype != self.dtype or result.shape != expected.shape:
                return False
            if exact and not torch.equal(result, expected.to(self.dtype)):
                return False
            precise = self._run(source.replace(str(self.dtype), str(wide)), operands)
            if not torch.allclose(precise, expected, rtol=1e-9, atol=1e-9, equal_nan=True):
                return False
        return True

    def trace(self, *cell: int) -> Trace:
        """List the products that make up one cell of the output.

        Args:
            cell: one index for each axis of the output, in the output's order.

        Raises:
            TypeError: an index is not an int.
            ValueError: too few or too many indices, one beyond the size of its axis (the message names it), or so many
                products that Python would take too long.
        """
        if len(cell) != len(self.free):
            names = ", ".join(self.free) or "none, because the output is a single number"
            raise ValueError(f"trace needs one index for each axis of the output ({names}); got {len(cell)}")
        for name, index in zip(self.free, cell):
            check_counts(at_least=0, **{f"index of {name}": index})
            if index >= self.sizes[name]:
                raise ValueError(f"index of {name} must be below its size, {self.sizes[name]}; got {index}")
        self._check_small()
        operands, products = self.operands(), []
        for summed in itertools.product(*(range(self.sizes[name]) for name in self.summed)):
            place = {**dict(zip(self.free, cell)), **dict(zip(self.summed, summed)), "0": 0}
            indices = tuple(tuple(place[axis] for axis in index) for index in self.indices())
            factors = tuple(operand[index].item() for operand, index in zip(operands, indices))
            entries = [entry(name, map(str, index)) for name, index in zip(self.tensors, indices)]
            products.append(Product(" * ".join(entries), indices, factors, math.prod(factors)))
        total = sum(product.value for product in products)
        return Trace(entry("output", map(str, cell)), tuple(products), total)

    def _run(self, source: str, operands: list[Tensor]) -> Tensor:
        """Run generated code. Only names come from the user; they were checked and serve as loop variables."""
        space: dict[str, Any] = {"__builtins__": {"range": range}, "torch": torch}
        space |= dict(zip(self.tensors, operands))
        with torch.device("cpu"):
            exec(source, space)
        return space[own_name("output", self.sizes)]

    def _check_small(self) -> None:
        steps = max(map(math.prod, (self.sizes.values(), self.output_shape, *self.shapes)))
        if steps > MAX_STEPS:
            raise ValueError(
                f"the loops take {steps:,} steps, too many for Python (at most {MAX_STEPS:,}); "
                "explain the same equation with smaller sizes"
            )

    def __repr__(self) -> str:
        rows = [("axis", "size", "where", "role", "why"), *map(_row, self.axes)]
        widths = [max(map(len, column)) for column in zip(*rows)]
        sums = f"Σ_{{{', '.join(self.summed)}}} " if self.summed else ""
        blocks = [
            f"{self.equation.strip()}\n{self._signature()}",
            "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows),
            f"{entry('output', self.free)} = {sums}{' · '.join(map(entry, self.tensors, self.indices()))}",
        ]
        blocks += ["\n    ".join([title, *lines]) for title, lines in self._sections().items()]
        return "\n\n".join(blocks)

    def _repr_markdown_(self) -> str:
        rows = [f"| `{name}` | {' | '.join(rest)} |" for name, *rest in map(_row, self.axes)]
        sums = "".join(rf"\sum_{{{_latex(name)}=0}}^{{{self.sizes[name] - 1}}} " for name in self.summed)
        factors = r" \, ".join(map(_subscripted, self.tensors, self.indices()))
        blocks = [
            f"**`{self.equation.strip()}`**  \n{self._signature()}",
            "\n".join(["| axis | size | where | role | why |", "|---|---|---|---|---|", *rows]),
            f"$${_subscripted('output', self.free)} = {sums}{factors}$$",
        ]
        for title, lines in self._sections().items():
            is_code = title not in ("Cost", "Take care")
            shown = ["```python", *lines, "```"] if is_code else [f"- {line}" for line in lines]
            blocks.append("\n".join([f"**{title}**\n", *shown]))
        return "\n\n".join(blocks)

    def _signature(self) -> str:
        operands = ", ".join(f"{tensor} {shape}" for tensor, shape in zip(self.tensors, self.shapes))
        return f"{operands} → output {self.output_shape}"

    def _sections(self) -> dict[str, list[str]]:
        without = "The same with permute and matmul" if "@" in self.torch_code else "The same without einsum"
        sections = {
            "Loops": self.loops.splitlines(),
            without: self.torch_code.splitlines(),
            "Cost": self._costs(),
            "Take care": [f"⚠ {warning}" for warning in self.warnings],
        }
        return {title: lines for title, lines in sections.items() if lines}

    def _costs(self) -> list[str]:
        lines = [f"multiplications in the loops: {self.multiplications:,}"]
        if len(self.shapes) > 2:
            order = "the cheapest order" if len(self.shapes) <= EXACT else "a good order"
            lines.append(f"joined two by two, in {order}: {self.path_multiplications:,}")
            lines += map(str, self.path)
            lines.append(f"memory of the largest intermediate: {self._memory(largest_intermediate(self.path))}")
        return [*lines, f"memory of the output: {self._memory(math.prod(self.output_shape))}"]

    def _memory(self, elements: int) -> str:
        size = elements * self.dtype.itemsize
        units = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
        return next((f"{size / factor:,.1f} {unit}" for unit, factor in units if size >= factor), f"{size} bytes")


def _row(axis: Axis) -> tuple[str, ...]:
    places = ", ".join(f"{tensor} axis {position}" for tensor, position in axis.places)
    return axis.name, str(axis.size), places, ", ".join(axis.roles), axis.why


def _subscripted(name: str, index: tuple[str, ...]) -> str:
    return f"{_latex(name)}_{{{', '.join(map(_latex, index))}}}" if index else _latex(name)


def _latex(name: str) -> str:
    escaped = name.replace("_", r"\_")
    return escaped if len(name) == 1 else rf"\mathrm{{{escaped}}}"
