"""The result of `explain_einsum`: what an equation means and costs, ways to run it, and how it is displayed."""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnlib._validate import check_count
from attnlib.einsum.bind import Contraction, own_name
from attnlib.einsum.code import conversions, loops_source, torch_source
from attnlib.einsum.operands import draw
from attnlib.einsum.parse import Equation
from attnlib.einsum.path import EXACT, PathStep, path_steps
from attnlib.einsum.roles import Axis

MAX_STEPS = 300_000  # more loops than this take Python more than a few seconds


class Product(NamedTuple):
    """One product of a trace: its text `A[0, 2] * B[2, 1]`, the index into each operand, the factors, their product."""

    text: str
    indices: tuple[tuple[int, ...], ...]
    factors: tuple[float | complex, ...]
    value: float | complex


@dataclass(frozen=True, repr=False)
class Trace:
    """The products that are added up into one cell of the output."""

    cell: str
    products: tuple[Product, ...]
    total: float | complex

    def __len__(self) -> int:
        return len(self.products)

    def __repr__(self) -> str:
        lines = [f"{self.cell} = {self.total:.4f}, the sum of {len(self)} product{'' if len(self) == 1 else 's'}"]
        for product in self.products[:24]:
            factors = " * ".join(f"{factor:.4f}" for factor in product.factors)
            result = f" = {product.value:.4f}" if len(product.factors) > 1 else ""
            lines.append(f"  + {product.text} = {factors}{result}")
        if len(self) > 24:
            lines.append(f"  … and {len(self) - 24} more")
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
        loops, torch_code: Python that computes the same, with loops, and with permute and matmul.
        path: the order in which to join the operands two by two, step by step.
        multiplications, path_multiplications, output_bytes, largest_intermediate_bytes: what it costs.

    If an operand is a plain shape, random numbers take its place, drawn with a fixed seed.
    """

    equation: str
    spelling: str
    axes: tuple[Axis, ...]
    warnings: tuple[str, ...]
    dtype: torch.dtype
    _parsed: Equation
    _given: list
    _dtypes: list[torch.dtype]

    @cached_property
    def loops(self) -> str:
        """The loops, as Python that runs where `torch` and tensors `A, B, …` exist; they fill `output`."""
        return conversions(self, self._dtypes, self.dtype) + loops_source(self)

    @cached_property
    def torch_code(self) -> str:
        """The same without einsum: `permute`, `@` (if a shared axis is summed), `*` and `sum`; gives `output`."""
        return conversions(self, self._dtypes, self.dtype) + torch_source(self, self.dtype)

    @cached_property
    def path(self) -> tuple[PathStep, ...]:
        """How to join the operands two by two: the cheapest order for up to four, a good one for more."""
        return path_steps(self)

    @property
    def multiplications(self) -> int:
        """How many the loops do: one fewer than there are operands, for each combination of all axes."""
        return (len(self.shapes) - 1) * math.prod(self.sizes.values())

    @property
    def path_multiplications(self) -> int:
        """How many are left when the operands are joined two by two."""
        return sum(step.multiplications for step in self.path)

    @property
    def output_bytes(self) -> int:
        """Memory of the output."""
        return math.prod(self.output_shape) * self.dtype.itemsize

    @property
    def largest_intermediate_bytes(self) -> int:
        """Memory of the largest tensor on the path that is not the output; 0 for one or two operands."""
        return max((step.elements for step in self.path[:-1]), default=0) * self.dtype.itemsize

    def operands(self) -> list[Tensor]:
        """The operands as tensors on the CPU, in their common dtype."""
        return [tensor.to(self.dtype) for tensor in draw(self._given, self._dtypes)]

    def run_loops(self) -> Tensor:
        """Run the loops on the operands.

        Raises:
            ValueError: the loops would take too long in Python.
        """
        self._check_small()
        return self._run(self.loops, draw(self._given, self._dtypes))

    def verify(self) -> bool:
        """Whether the loops and the equivalent code run on the operands and agree with einsum.

        Both must give the dtype that torch promotes to. Integers are compared exactly, all others in float64.

        Raises:
            ValueError: the loops would take too long in Python.
        """
        self._check_small()
        exact = not (self.dtype.is_floating_point or self.dtype.is_complex)
        wide = torch.int64 if exact else torch.complex128 if self.dtype.is_complex else torch.float64
        given, operands = draw(self._given, self._dtypes), [tensor.to(wide) for tensor in self.operands()]
        expected = self._einsum(operands)
        for shown, core in ((self.loops, loops_source(self)), (self.torch_code, torch_source(self, wide))):
            result = self._run(shown, given)
            if result.dtype != self.dtype or result.shape != expected.shape:
                return False
            if exact and not torch.equal(result, expected.to(self.dtype)):
                return False
            if not torch.allclose(self._run(core, operands), expected, rtol=1e-9, atol=1e-9, equal_nan=True):
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
            expected = f"{len(self.free)} ({', '.join(self.free)})"
            expected = expected if self.free else "none, because the output is a single number"
            raise ValueError(f"trace needs one index for each axis of the output: {expected}; got {len(cell)}")
        for name, index in zip(self.free, cell):
            check_count(f"index of {name}", index, at_least=0)
            if index >= self.sizes[name]:
                raise ValueError(f"index of {name} must be below its size, {self.sizes[name]}; got {index}")
        self._check_small(math.prod(self.sizes[name] for name in self.summed))
        operands, products = self.operands(), []
        for summed in itertools.product(*(range(self.sizes[name]) for name in self.summed)):
            place = {**dict(zip(self.free, cell)), **dict(zip(self.summed, summed)), "0": 0}
            indices = tuple(tuple(place[axis] for axis in index) for index in self.indices())
            factors = tuple(operand[index].item() for operand, index in zip(operands, indices))
            entries = [_entry(name, map(str, index)) for name, index in zip(self.tensors, indices)]
            products.append(Product(" * ".join(entries), indices, factors, math.prod(factors)))
        total = sum(product.value for product in products)
        return Trace(_entry("output", map(str, cell)), tuple(products), total)

    def _einsum(self, operands: list[Tensor]) -> Tensor:
        """torch.einsum on the equation as given, with a letter for each word."""
        letters = dict(zip(self.sizes, "abcdefghijklmnopqrst")) if self.spelling == "words" else {}
        terms = [*self._parsed.inputs, *([self._parsed.output] if self._parsed.output else [])]
        texts = ["".join(letters.get(token.text, token.text) for token in term.tokens) for term in terms]
        inputs = ",".join(texts[: len(self.inputs)])
        return torch.einsum("->".join([inputs, *texts[len(self.inputs) :]]), *operands)

    def _run(self, source: str, operands: list[Tensor]) -> Tensor:
        """Run generated code. From the user it has only names, which were checked and are only loop variables."""
        space: dict[str, Any] = {"__builtins__": {"range": range}, "torch": torch}
        space |= dict(zip(self.tensors, operands))
        with torch.device("cpu"):
            exec(compile(source, "<einsum>", "exec"), space)
        return space[own_name("output", self.sizes)]

    def _check_small(self, steps: int | None = None) -> None:
        if steps is None:
            steps = max(math.prod(self.sizes.values()), math.prod(self.output_shape))
        steps = max(steps, *map(math.prod, self.shapes))
        if steps > MAX_STEPS:
            raise ValueError(
                f"the loops take {steps:,} steps, too many for Python (at most {MAX_STEPS:,}); "
                "explain the same equation with smaller sizes"
            )

    def __repr__(self) -> str:
        rows = [("axis", "size", "where", "role", "why"), *map(_row, self.axes)]
        widths = [max(map(len, column)) for column in zip(*rows)][:4]
        table = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[4]]) for row in rows]
        sums = f"Σ_{{{', '.join(self.summed)}}} " if self.summed else ""
        factors = " · ".join(_entry(*pair) for pair in zip(self.tensors, self.indices()))
        blocks = [
            f"{self.equation.strip()}\n{self._signature()}",
            "\n".join(table if self.axes else ["No axes."]),
            f"{_entry('output', self.free)} = {sums}{factors}",
            *("\n    ".join([title, *lines]) for title, _, lines in self._sections()),
        ]
        return "\n\n".join(blocks)

    def _repr_markdown_(self) -> str:
        rows = [f"| `{name}` | {' | '.join(rest)} |" for name, *rest in map(_row, self.axes)]
        table = ["| axis | size | where | role | why |", "|---|---|---|---|---|", *rows] if rows else ["No axes."]
        sums = "".join(rf"\sum_{{{_latex(name)}=0}}^{{{self.sizes[name] - 1}}} " for name in self.summed)
        factors = r" \, ".join(_subscripted(*pair) for pair in zip(self.tensors, self.indices()))
        blocks = [
            f"**`{self.equation.strip()}`**  \n{self._signature()}",
            "\n".join(table),
            f"$${_subscripted('output', self.free)} = {sums}{factors}$$",
            *(
                "\n".join(
                    [f"**{title}**\n", *(["```python", *lines, "```"] if code else [f"- {one}" for one in lines])]
                )
                for title, code, lines in self._sections()
            ),
        ]
        return "\n\n".join(blocks)

    def _signature(self) -> str:
        operands = ", ".join(f"{tensor} {shape}" for tensor, shape in zip(self.tensors, self.shapes))
        return f"{operands} → output {self.output_shape}"

    def _sections(self) -> list[tuple[str, bool, list[str]]]:
        """The title of each, whether it is code, and its lines."""
        title = "The same with permute and matmul" if "@" in self.torch_code else "The same without einsum"
        sections = [
            ("Loops", True, self.loops.splitlines()),
            (title, True, self.torch_code.splitlines()),
            ("Cost", False, self._costs()),
        ]
        warnings = [f"⚠ {warning}" for warning in self.warnings]
        return [*sections, ("Take care", False, warnings)] if warnings else sections

    def _costs(self) -> list[str]:
        lines = [f"multiplications in the loops: {self.multiplications:,}"]
        if len(self.shapes) > 2:
            order = "the cheapest order" if len(self.shapes) <= EXACT else "a good order"
            lines.append(f"joined two by two, in {order}: {self.path_multiplications:,}")
            lines += [
                f"{step.left} with {step.right} → ({', '.join(step.axes)}): "
                f"{step.multiplications:,} multiplications, {step.elements:,} numbers"
                for step in self.path
            ]
            lines.append(f"memory of the largest intermediate: {_memory(self.largest_intermediate_bytes)}")
        return [*lines, f"memory of the output: {_memory(self.output_bytes)}"]


def _row(axis: Axis) -> tuple[str, ...]:
    places = ", ".join(f"{tensor} axis {position}" for tensor, position in axis.places)
    return axis.name, str(axis.size), places, ", ".join(axis.roles), axis.why


def _entry(tensor: str, index: Any) -> str:
    index = ", ".join(index)
    return f"{tensor}[{index}]" if index else tensor


def _subscripted(name: str, index: tuple[str, ...]) -> str:
    return f"{_latex(name)}_{{{', '.join(map(_latex, index))}}}" if index else _latex(name)


def _latex(name: str) -> str:
    escaped = name.replace("_", r"\_")
    return escaped if len(name) == 1 else rf"\mathrm{{{escaped}}}"


def _memory(size: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size} bytes"
