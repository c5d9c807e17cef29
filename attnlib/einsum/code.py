"""Writes Python that computes what an equation means: as loops, and with permute and matmul."""

import keyword
from collections.abc import Iterable

import torch

from attnlib.einsum.equation import Contraction, own_name
from attnlib.einsum.path import PathStep


def loops_source(contraction: Contraction) -> str:
    """Loops: free axes in the output's order, then the summed ones in order of appearance, then one product."""
    free, summed = contraction.free, contraction.summed
    output, total = own_name("output", contraction.sizes), own_name("total", contraction.sizes)
    indices = (map(_variable, index) for index in contraction.indices())
    product = " * ".join(map(entry, contraction.tensors, indices))
    shape = ", ".join(map(str, contraction.output_shape)) or "()"
    lines = [f"{output} = torch.zeros({shape}, dtype={contraction.tensors[0]}.dtype)"]
    for depth, axis in enumerate((*free, *summed)):
        if depth == len(free):
            lines.append(f"{'    ' * depth}{total} = 0")
        lines.append(f"{'    ' * depth}for {_variable(axis)} in range({contraction.sizes[axis]}):")
    if summed:
        lines.append(f"{'    ' * len(contraction.sizes)}{total} += {product}")
    cell = f"{output}[{', '.join(map(_variable, free)) or '()'}]"
    return "\n".join([*lines, f"{'    ' * len(free)}{cell} = {total if summed else product}"])


def entry(tensor: str, index: Iterable[str]) -> str:
    """`A[i, j]`, or `A` if there is no index."""
    text = ", ".join(index)
    return f"{tensor}[{text}]" if text else tensor


def _variable(name: str) -> str:
    """The user's own name, unless Python needs it for something else."""
    return f"{name}_" if keyword.iskeyword(name) or name in ("range", "torch") else name


def torch_source(contraction: Contraction, path: tuple[PathStep, ...], dtype: torch.dtype) -> str:
    """Diagonals and sums first, then the operands two by two: `@` if a shared axis is summed, otherwise `*`."""
    narrow = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.int64)
    option = f", dtype={contraction.tensors[0]}.dtype" if narrow else ""  # sum() makes int64 of narrower integers
    lines: list[str] = []
    named = zip(contraction.tensors, contraction.inputs, contraction.shapes)
    parts = {tensor: _Part(tensor, axes, dict(zip(axes, shape)), option) for tensor, axes, shape in named}
    result = parts[contraction.tensors[0]]
    for step in path:
        result = _join(parts.pop(step.left), parts.pop(step.right), step.sizes, lines)
        if parts:
            parts[step.left + step.right] = result
            result.name(step.left + step.right, lines)
    if not path:
        result.sum_over([axis for axis in result.axes if axis not in contraction.free])
        result.arrange(*contraction.free)
    return "\n".join([*lines, result.line(own_name("output", contraction.sizes))])


class _Part:
    """An expression for a tensor, and the axes of that tensor."""

    def __init__(self, text: str, axes: Iterable[str], sizes: dict[str, int], option: str) -> None:
        self.text, self.axes, self.sizes, self.option = text, list(axes), sizes, option
        for axis in sizes:
            while self.axes.count(axis) > 1:
                first = self.axes.index(axis)
                second = self.axes.index(axis, first + 1)
                self.text += f".diagonal(dim1={first}, dim2={second})"  # the diagonal becomes the last axis
                self.axes = [*self.axes[:first], *self.axes[first + 1 : second], *self.axes[second + 1 :], axis]

    def sum_over(self, axes: list[str]) -> None:
        if axes:
            places = tuple(self.axes.index(axis) for axis in axes)
            self.text += f".sum({places[0] if len(places) == 1 else places}{self.option})"
            self.axes = [axis for axis in self.axes if axis not in axes]

    def arrange(self, *groups: str | list[str]) -> None:
        """Put the axes in the order of `groups`, and flatten each list of several axes to one, shown as `(a b)`."""
        lists = [[group] if isinstance(group, str) else group for group in groups if group]
        order = [axis for group in lists for axis in group]
        self.text += _permute(self.axes, order)
        self.axes = [group[0] if len(group) == 1 else f"({' '.join(group)})" for group in lists]
        for place, group in enumerate(lists):
            if len(group) > 1:
                self.text += f".flatten({place}, {place + len(group) - 1})"

    def line(self, name: str) -> str:
        return f"{name} = {self.text}  # ({', '.join(self.axes)}{',' if len(self.axes) == 1 else ''})"

    def name(self, name: str, lines: list[str]) -> str:
        """Give the expression a name and a line of its own, unless it is a name already, or the `.mT` of one."""
        if not self.text.removesuffix(".mT").isidentifier():
            lines.append(self.line(name))
            self.text = name
        return self.text


def _permute(axes: list[str], order: list[str]) -> str:
    if order == axes:
        return ""
    if order == [*axes[:-2], *axes[:-3:-1]]:  # only the last two are swapped
        return ".mT"
    return f".permute({', '.join(str(axes.index(axis)) for axis in order)})"


def _join(left: _Part, right: _Part, sizes: dict[str, int], lines: list[str]) -> _Part:
    """The tensor with the axes of `sizes`, in that order; all other axes of the two are summed."""
    inner = [axis for axis in left.axes if axis not in sizes and left.sizes[axis] == right.sizes.get(axis)]
    for part in (left, right):
        part.sum_over([axis for axis in part.axes if axis not in sizes and axis not in inner])
    rows = [axis for axis in sizes if axis not in right.axes]
    columns = [axis for axis in sizes if axis not in left.axes]
    batch = [axis for axis in sizes if axis not in rows + columns]
    if inner and (not batch or (rows and columns)):
        left.arrange(*batch, *([rows] if batch else rows), inner)  # without a batch, `@` takes several rows as they are
        right.arrange(*batch, inner, columns)
        text, calls = f"{left.name('left', lines)} @ {right.name('right', lines)}", ""
        for place, group in ((-1, columns), (len(batch), rows if batch else [])):
            if len(group) > 1:
                calls += f".unflatten({place}, {tuple(sizes[axis] for axis in group)})"
        calls += _permute([*batch, *rows, *columns], list(sizes))
    else:
        order = [*sizes, *inner]
        text = f"{_factor(left, 'left', order, lines)} * {_factor(right, 'right', order, lines)}"
        last = -1 if len(inner) == 1 else tuple(range(-len(inner), 0))
        calls = f".sum({last}{left.option})" if inner else ""
    return _Part(f"({text}){calls}" if calls else text, sizes, sizes, left.option)


def _factor(part: _Part, name: str, order: list[str], lines: list[str]) -> str:
    """The tensor with its axes in the given order, and `None` for an axis that it lacks."""
    slots = [":" if axis in part.axes else "None" for axis in order]
    while slots[:1] == ["None"]:  # leading axes broadcast by themselves
        slots.pop(0)
    part.arrange(*(axis for axis in order if axis in part.axes))
    return entry(part.name(name, lines), slots if "None" in slots else ())
