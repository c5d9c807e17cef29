"""The permute and matmul that do the same as an equation, as Python."""

from attnlib.einsum.bind import Contraction
from attnlib.einsum.path import axes_needed, contraction_pairs, longer, take_pair


class _Part:
    """A tensor in the making: the expression so far, its axes in order, and their sizes."""

    def __init__(self, name: str, axes: tuple[str, ...], shape: tuple[int, ...]) -> None:
        self.name = self.text = name
        self.compound = False  # whether the expression needs parentheses before a method is called on it
        self.axes = list(axes)
        self.sizes = dict(zip(axes, shape))
        self._take_diagonals()

    def then(self, call: str) -> None:
        self.text = f"({self.text}){call}" if self.compound else f"{self.text}{call}"
        self.compound = False

    def _take_diagonals(self) -> None:
        for axis in self.sizes:
            while self.axes.count(axis) > 1:
                first = self.axes.index(axis)
                second = self.axes.index(axis, first + 1)
                self.then(f".diagonal(dim1={first}, dim2={second})")  # the diagonal becomes the last axis
                self.axes = [*self.axes[:first], *self.axes[first + 1 : second], *self.axes[second + 1 :], axis]

    def drop(self, axes: list[str], method: str) -> None:
        """Remove axes by `sum` or `squeeze`."""
        if axes:
            places = [self.axes.index(axis) for axis in axes]
            self.then(f".{method}({places[0] if len(places) == 1 else tuple(places)})")
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

    def unsqueeze(self, place: int) -> None:
        self.then(f".unsqueeze({place})")
        self.axes.insert(len(self.axes) + 1 + place, "1")

    def comment(self) -> str:
        return f"  # ({', '.join(self.axes)}{',' if len(self.axes) == 1 else ''})"

    def settle(self, name: str, lines: list[str]) -> None:
        """Give the expression a name and a line of its own, unless it is a name or a mere `.mT` of one."""
        if self.text not in (self.name, f"{self.name}.mT"):
            lines.append(f"{name} = {self.text}{self.comment()}")
            self.text = name


def torch_source(contraction: Contraction, tensors: tuple[str, ...]) -> str:
    """Diagonals and sums first, then the operands two by two: `@` where a shared axis is summed, `*` where none is."""
    lines: list[str] = []
    parts = [_Part(*part) for part in zip(tensors, contraction.inputs, contraction.shapes)]
    for pair in contraction_pairs(contraction):
        left, right = take_pair(parts, pair)
        needed = axes_needed(contraction, [set(part.axes) for part in parts])
        result = _join(left, right, needed, contraction, lines)
        if parts:  # an intermediate result
            lines.append(f"{result.name} = {result.text}{result.comment()}")
            result.text, result.compound = result.name, False
        parts.append(result)
    (last,) = parts
    last.drop([axis for axis in last.axes if axis not in contraction.output], "sum")
    last.permute(list(contraction.output))
    return "\n".join([*lines, f"output = {last.text}{last.comment()}"])


def _join(left: _Part, right: _Part, needed: set[str], contraction: Contraction, lines: list[str]) -> _Part:
    for one, other in ((left, right), (right, left)):
        stretched = [
            axis
            for axis in one.axes
            if axis in other.axes and axis not in needed and one.sizes[axis] == 1 != other.sizes[axis]
        ]
        one.drop(stretched, "squeeze")
    for one, other in ((left, right), (right, left)):
        one.drop([axis for axis in one.axes if axis not in other.axes and axis not in needed], "sum")
    order = dict.fromkeys([*contraction.output, *contraction.sizes])
    kept = [axis for axis in order if axis in needed and axis in {*left.axes, *right.axes}]
    inner = [axis for axis in left.axes if axis in right.axes and axis not in needed]
    sizes = {axis: longer(left.sizes.get(axis, 1), right.sizes.get(axis, 1)) for axis in kept}
    only_batch = all(axis in left.axes and axis in right.axes for axis in kept)
    calls, axes = [], kept
    if not inner:
        text = _product(left, right, kept, lines)
    elif only_batch and kept:
        text = _product(left, right, [*kept, *inner], lines)
        calls = [f".sum({_last(len(inner))})"]
    else:
        if kept and not any(axis in left.axes for axis in kept):
            left, right = right, left  # a vector reads better behind the matrix: M @ v
        text, calls, axes = _matmul(left, right, kept, inner, sizes, lines)
    result = _Part(left.name + right.name, tuple(axes), tuple(sizes[axis] for axis in axes))
    result.text, result.compound = text, True
    for call in calls:
        result.then(call)
    return result


def _product(left: _Part, right: _Part, order: list[str], lines: list[str]) -> str:
    """Both with their axes in the same order, `None` where one has an axis that the other lacks, times each other."""
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
    """`(batch, rows, inner) @ (batch, inner, columns)`: the expression, the calls behind it, the axes of the result."""
    rows = [axis for axis in kept if axis not in right.axes]
    columns = [axis for axis in kept if axis not in left.axes]
    batch = [axis for axis in kept if axis not in rows[-1:] + columns[-1:]]
    if all(_is_tail([axis for axis in batch if axis in part.axes], batch) for part in (left, right)):
        rows, columns = rows[-1:], columns[-1:]  # broadcasting does the rest
    else:
        batch = [axis for axis in kept if axis not in rows + columns]
    left_batch, right_batch = ([axis for axis in batch if axis in part.axes] for part in (left, right))
    left.permute([*left_batch, *rows, *inner])
    right.permute([*right_batch, *inner, *columns])
    groups = [(left, inner), (right, inner), (right, columns)]
    if batch:  # without a batch the left tensor may keep all its rows
        groups.append((left, rows))
    for part, group in groups:
        part.flatten(group)
    calls = []
    if left_batch and not rows:
        left.unsqueeze(-2)
        calls.append(".squeeze(-2)")
    if right_batch and not columns:
        right.unsqueeze(-1)
        calls.append(".squeeze(-1)")
    left.settle("left", lines)
    right.settle("right", lines)
    rows_flat = batch and len(rows) > 1
    columns_place = len(batch) + (1 if rows_flat else len(rows))
    for place, group, flat in ((columns_place, columns, len(columns) > 1), (len(batch), rows, rows_flat)):
        if flat:
            calls.append(f".unflatten({place}, {tuple(sizes[axis] for axis in group)})")
    return f"{left.text} @ {right.text}", calls, [*batch, *rows, *columns]


def _is_tail(some: list[str], every: list[str]) -> bool:
    return some == every[len(every) - len(some) :]


def _last(count: int) -> str:
    return "-1" if count == 1 else str(tuple(range(-count, 0)))
