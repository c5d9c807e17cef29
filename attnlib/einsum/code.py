"""Writes Python that computes what an equation means: as loops, and with permute and matmul."""

import keyword

import torch

from attnlib.einsum.bind import Contraction, own_name
from attnlib.einsum.path import PathStep, longer, path_steps


def conversions(contraction: Contraction, dtypes: list[torch.dtype], common: torch.dtype) -> str:
    """Lines that bring the operands to one dtype, since `@` takes no other."""
    pairs = zip(contraction.tensors, dtypes)
    return "".join(f"{name} = {name}.to({common})\n" for name, dtype in pairs if dtype != common)


def loops_source(contraction: Contraction) -> str:
    """Free axes in the output's order, then the summed ones in order of appearance, then one product."""
    free, summed = contraction.free, contraction.summed
    output, total = own_name("output", contraction.sizes), own_name("total", contraction.sizes)
    entries = [_entry(*pair) for pair in zip(contraction.tensors, contraction.indices())]
    cell = f"{output}[{', '.join(map(_variable, free)) or '()'}]"
    shape = ", ".join(map(str, contraction.output_shape)) or "()"
    lines = [f"{output} = torch.zeros({shape}, dtype={contraction.tensors[0]}.dtype)"]
    loops = [
        f"{'    ' * depth}for {_variable(axis)} in range({contraction.sizes[axis]}):"
        for depth, axis in enumerate((*free, *summed))
    ]
    indent, product = "    " * len(free), " * ".join(entries)
    lines += loops[: len(free)]
    if summed:
        lines += [f"{indent}{total} = 0", *loops[len(free) :], f"{'    ' * len(loops)}{total} += {product}"]
    return "\n".join([*lines, f"{indent}{cell} = {total if summed else product}"])


def _entry(tensor: str, index: tuple[str, ...]) -> str:
    return f"{tensor}[{', '.join(map(_variable, index))}]" if index else tensor


def _variable(name: str) -> str:
    """The user's own name, unless Python needs it for something else."""
    return f"{name}_" if keyword.iskeyword(name) or name in ("range", "torch") else name


class _Part:
    """A tensor under construction: the expression so far, its axes in order, and their sizes."""

    def __init__(self, name: str, axes: tuple[str, ...], shape: tuple[int, ...]) -> None:
        self.name = self.text = name
        self.compound = False  # whether the expression needs parentheses before a method is called on it
        self.axes = list(axes)
        self.sizes = dict(zip(axes, shape))
        for axis in self.sizes:
            while self.axes.count(axis) > 1:
                first = self.axes.index(axis)
                second = self.axes.index(axis, first + 1)
                self.then(f".diagonal(dim1={first}, dim2={second})")  # the diagonal becomes the last axis
                self.axes = [*self.axes[:first], *self.axes[first + 1 : second], *self.axes[second + 1 :], axis]

    def then(self, call: str) -> None:
        self.text = f"({self.text}){call}" if self.compound else f"{self.text}{call}"
        self.compound = False

    def drop(self, axes: list[str], method: str, option: str = "") -> None:
        """Remove axes by `sum` or `squeeze`."""
        if axes:
            places = tuple(self.axes.index(axis) for axis in axes)
            self.then(f".{method}({places[0] if len(places) == 1 else places}{option})")
            self.axes = [axis for axis in self.axes if axis not in axes]

    def permute(self, order: list[str]) -> None:
        places = [self.axes.index(axis) for axis in order]
        unchanged = list(range(len(places)))
        if places != unchanged:
            only_last_two = len(places) > 1 and places == [*unchanged[:-2], unchanged[-1], unchanged[-2]]
            self.then(".mT" if only_last_two else f".permute({', '.join(map(str, places))})")
            self.axes = list(order)

    def flatten(self, axes: list[str]) -> None:
        """Merge neighbouring axes into one, shown as `(a b)`."""
        if len(axes) > 1:
            start = self.axes.index(axes[0])
            self.then(f".flatten({start}, {start + len(axes) - 1})")
            self.axes[start : start + len(axes)] = [f"({' '.join(axes)})"]

    def line(self, name: str) -> str:
        return f"{name} = {self.text}  # ({', '.join(self.axes)}{',' if len(self.axes) == 1 else ''})"

    def settle(self, name: str, lines: list[str]) -> None:
        """Give the expression a name and a line of its own, unless it is a name or just the `.mT` of one."""
        if self.text not in (self.name, f"{self.name}.mT"):
            lines.append(self.line(name))
            self.text = name


def torch_source(contraction: Contraction, dtype: torch.dtype) -> str:
    """Diagonals and sums first, then the operands two by two: `@` if a shared axis is summed, otherwise `*`."""
    lines: list[str] = []
    as_before = f", dtype={contraction.tensors[0]}.dtype"  # sum() makes int64 of narrower integers, `@` does not
    option = as_before if not (dtype.is_floating_point or dtype.is_complex or dtype == torch.int64) else ""
    parts = {part[0]: _Part(*part) for part in zip(contraction.tensors, contraction.inputs, contraction.shapes)}
    for step in path_steps(contraction):
        result = _join(parts.pop(step.left), parts.pop(step.right), step, option, lines)
        if parts:  # an intermediate result
            lines.append(result.line(result.name))
            result.text, result.compound = result.name, False
        parts[result.name] = result
    (last,) = parts.values()
    last.drop([axis for axis in last.axes if axis not in contraction.free], "sum", option)
    last.permute(list(contraction.free))
    return "\n".join([*lines, last.line(own_name("output", contraction.sizes))])


def _join(left: _Part, right: _Part, step: PathStep, option: str, lines: list[str]) -> _Part:
    kept = list(step.axes)
    pairs = ((left, right), (right, left))
    for one, other in pairs:
        summed = [axis for axis in one.axes if axis in other.axes and axis not in kept]
        one.drop([axis for axis in summed if one.sizes[axis] == 1 != other.sizes[axis]], "squeeze")
    for one, other in pairs:
        one.drop([axis for axis in one.axes if axis not in other.axes and axis not in kept], "sum", option)
    inner = [axis for axis in left.axes if axis in right.axes and axis not in kept]
    sizes = {axis: longer(left.sizes.get(axis, 1), right.sizes.get(axis, 1)) for axis in kept}
    rows = [axis for axis in kept if axis not in right.axes]
    columns = [axis for axis in kept if axis not in left.axes]
    calls, axes = [], kept
    if not inner:
        text = _product(left, right, kept, lines)
    elif any(axis in left.axes and axis in right.axes for axis in kept) and not (rows and columns):
        text = _product(left, right, [*kept, *inner], lines)
        calls = [f".sum({-1 if len(inner) == 1 else tuple(range(-len(inner), 0))}{option})"]
    else:
        pair = (right, left) if columns == kept != [] else (left, right)  # a vector reads better last: M @ v
        text, calls, axes = _matmul(*pair, kept, inner, sizes, lines)
    result = _Part(step.left + step.right, tuple(axes), tuple(sizes[axis] for axis in axes))
    result.text, result.compound = text, True
    for call in calls:
        result.then(call)
    return result


def _product(left: _Part, right: _Part, order: list[str], lines: list[str]) -> str:
    """The product of both, with their axes in the same order, and `None` for an axis that one of them lacks."""
    factors = []
    for name, part in (("left", left), ("right", right)):
        part.permute([axis for axis in order if axis in part.axes])
        part.settle(name, lines)
        slots = [":" if axis in part.axes else "None" for axis in order]
        while slots and slots[0] == "None":  # leading axes broadcast by themselves
            slots.pop(0)
        factors.append(f"{part.text}[{', '.join(slots)}]" if "None" in slots else part.text)
    return " * ".join(factors)


def _matmul(
    left: _Part, right: _Part, kept: list[str], inner: list[str], sizes: dict[str, int], lines: list[str]
) -> tuple[str, list[str], list[str]]:
    """`(batch, rows, inner) @ (batch, inner, columns)`: the expression, the calls after it, the axes of the result."""
    rows = [axis for axis in kept if axis not in right.axes]
    columns = [axis for axis in kept if axis not in left.axes]
    batch = [axis for axis in kept if axis not in rows[-1:] + columns[-1:]]
    batches = [[axis for axis in batch if axis in part.axes] for part in (left, right)]
    if all(some == batch[len(batch) - len(some) :] for some in batches):
        rows, columns = rows[-1:], columns[-1:]  # broadcasting does the rest
    else:
        batch = [axis for axis in kept if axis not in rows + columns]
        batches = [[axis for axis in batch if axis in part.axes] for part in (left, right)]
    left.permute([*batches[0], *rows, *inner])
    right.permute([*batches[1], *inner, *columns])
    rows_flat = batch and len(rows) > 1  # without a batch the left tensor may keep all its rows
    for part, group in ((left, inner), (right, inner), (right, columns), (left, rows if rows_flat else [])):
        part.flatten(group)
    left.settle("left", lines)
    right.settle("right", lines)
    columns_place = len(batch) + (1 if rows_flat else len(rows))
    flat = [(columns_place, columns)] if len(columns) > 1 else []
    flat += [(len(batch), rows)] if rows_flat else []
    calls = [f".unflatten({place}, {tuple(sizes[axis] for axis in group)})" for place, group in flat]
    return f"{left.text} @ {right.text}", calls, [*batch, *rows, *columns]
