"""`explain_einsum` and its result: what an equation means and costs, ways to run it, and how it is displayed."""

import functools
import itertools
import math
import string
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from attnlib._validate import check_counts
from attnlib.einsum.axes import Axis, axis_of, pitfalls
from attnlib.einsum.code import entry, loops_source, torch_source
from attnlib.einsum.equation import DOTS, Contraction, own_name, read
from attnlib.einsum.path import EXACT, PathStep, largest_intermediate, path_steps

MAX_OPERANDS = 26  # one letter each
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
        equation: the text as given.
        axes: one `Axis` for each name: size, places, roles (free or summed; batch, diagonal, broadcast) and why.
        warnings: sentences about what is often surprising in such an equation.
        dtype: what torch promotes the operands to (int64 for bools, torch's default dtype for plain shapes).
        loops: Python that fills `output` with loops; it runs wherever `torch` and tensors `A, B, …` exist.
        torch_code: the same without einsum or loops: `permute`, `@` (if a shared axis is summed), `*` and `sum`.
        path: how to join the operands two by two: the cheapest order for up to four, a good one for more.

    If an operand is a plain shape, random numbers take its place, drawn with a fixed seed.
    """

    equation: str
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
        """Run the loops on the operands, or raise a ValueError if that would take too long in Python."""
        self._check_small()
        return self._run(self.loops, self._drawn())

    def verify(self) -> bool:
        """Whether the loops and the equivalent code run on the operands and agree with einsum.

        Both must give the dtype that torch promotes to. Integers are compared exactly, all others in float64. Raises a
        ValueError if the loops would take too long in Python.
        """
        self._check_small()
        exact = not (self.dtype.is_floating_point or self.dtype.is_complex)
        wide = torch.int64 if exact else torch.complex128 if self.dtype.is_complex else torch.float64
        operands = [tensor.to(wide) for tensor in self.operands()]
        expected = torch.einsum(self.letters, *operands)
        for source in (self.loops, self.torch_code):
            result = self._run(source, self._drawn())
            precise = self._run(source.replace(str(self.dtype), str(wide)), operands)
            same = result.dtype == self.dtype and result.shape == expected.shape
            same = same and (not exact or torch.equal(result, expected.to(self.dtype)))
            if not same or not torch.allclose(precise, expected, rtol=1e-9, atol=1e-9, equal_nan=True):
                return False
        return True

    def trace(self, *cell: int) -> Trace:
        """List the products that make up one cell of the output, given an index for each axis of the output in order.

        Raises a TypeError if an index is not an int, and a ValueError if their number is wrong, one is beyond its axis
        (the message names it), or the loops would take too long in Python.
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
            advice = "explain the same equation with smaller sizes"
            raise ValueError(f"the loops take {steps:,} steps, too many for Python (at most {MAX_STEPS:,}); {advice}")

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


def explain_einsum(equation: str, *operands: object) -> EinsumExplanation:
    """Explain an einsum: which axes are free or summed and why, the loops, the matmul that does the same, the cost.

    Formula: ``output[free axes] = Σ over all other axes of A[…] · B[…] · …``

    Args:
        equation: letters as in torch and NumPy (``"bqd,bkd->bqk"``), with or without the arrow, or whole words as in
            einops (``"batch q d, batch k d -> batch q k"``); ``...`` stands for axes without a name. If the text can
            be read both ways, the number of axes decides.
        operands: 1 to 26 tensors, arrays, or plain shapes such as ``(2, 3)``.

    Returns:
        An ``EinsumExplanation``: a table in a notebook or terminal, with ``loops``, ``torch_code``, ``warnings``,
        ``run_loops()``, ``verify()`` and ``trace(i, j, …)``.

    Raises:
        TypeError: the equation is not a string; an operand is not a tensor, array or shape; or torch cannot compute
            with the dtypes.
        ValueError: the equation is broken, or does not fit the operands; a caret marks the place.

    Source: the summation convention of Einstein 1916, "Die Grundlage der allgemeinen Relativitätstheorie", section 5;
    the meaning of an equation is that of ``torch.einsum``.

    >>> explanation = explain_einsum("ij,jk->ik", (2, 3), (3, 5))
    >>> explanation.free, explanation.summed
    (('i', 'k'), ('j',))
    >>> print(explanation.loops)
    output = torch.zeros(2, 5, dtype=A.dtype)
    for i in range(2):
        for k in range(5):
            total = 0
            for j in range(3):
                total += A[i, j] * B[j, k]
            output[i, k] = total
    >>> print(explanation.torch_code)
    output = A @ B  # (i, k)
    >>> explanation.verify()
    True
    """
    if not isinstance(equation, str):
        raise TypeError(f"equation must be a str and come first; got {type(equation).__name__}")
    if not 1 <= len(operands) <= MAX_OPERANDS:
        raise ValueError(f"operands must be 1 to {MAX_OPERANDS} tensors or shapes; got {len(operands)}")
    tensors, dtype = _read_operands(operands)
    parsed, contraction = read(equation.replace("…", DOTS), tuple(tuple(tensor.shape) for tensor in tensors))
    warnings = list(pitfalls(parsed, contraction))
    named = zip(contraction.tensors, tensors)
    converted = "".join(f"{name} = {name}.to({dtype})\n" for name, tensor in named if tensor.dtype != dtype)
    if converted:
        given = " and ".join(dict.fromkeys(str(tensor.dtype) for tensor in tensors))
        warnings.append(f"the operands are {given}: torch.einsum and `@` take one dtype, so convert to {dtype} first.")
    path = path_steps(contraction)
    return EinsumExplanation(
        **vars(contraction),
        equation=equation,
        axes=tuple(axis_of(name, contraction) for name in (*contraction.free, *contraction.summed)),
        warnings=tuple(warnings),
        dtype=dtype,
        loops=converted + loops_source(contraction),
        torch_code=converted + torch_source(contraction, path, dtype),
        path=path,
        _given=tensors,
    )


def _read_operands(operands: tuple[Any, ...]) -> tuple[list[Tensor], torch.dtype]:
    """The operands as tensors, and the dtype that torch promotes them to (int64 for bools).

    A plain shape becomes a tensor on the meta device, which has no numbers, in the dtype of the others.
    """
    tensors = [_read(f"operand {letter}", operand) for letter, operand in zip(string.ascii_uppercase, operands)]
    is_shape = [isinstance(operand, (list, tuple)) for operand in operands]
    dtypes = [one.dtype for one, plain in zip(tensors, is_shape) if not plain]
    try:
        dtype = functools.reduce(torch.promote_types, dtypes or [torch.get_default_dtype()])
        dtype = torch.int64 if dtype == torch.bool else dtype
        number = torch.ones(1, 1, dtype=dtype, device="cpu")
        (number * number) @ number
    except RuntimeError as error:
        raise TypeError(f"operands must have dtypes that torch can promote and multiply: {error}") from None
    return [one.to(dtype) if plain else one for one, plain in zip(tensors, is_shape)], dtype


def _read(name: str, operand: Any) -> Tensor:
    kind = type(operand).__name__
    if isinstance(operand, (list, tuple)) and all(type(size) is int for size in operand):
        try:
            return torch.empty(tuple(operand), device="meta")
        except (TypeError, RuntimeError):
            raise ValueError(f"{name} must be a shape that a tensor can have; got {tuple(operand)}") from None
    try:
        if isinstance(operand, Tensor):
            return operand.detach().to_dense()
        if hasattr(operand, "__array__"):
            return torch.tensor(np.array(operand, order="C"), device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        kind += f": {error}"
    raise TypeError(f"{name} must be a tensor, an array of numbers or a shape such as (2, 3); got {kind}")
