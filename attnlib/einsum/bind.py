"""Matches an equation with its operands' shapes: each axis gets a size, or an error says what does not fit."""

import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NoReturn

from attnlib.einsum.parse import DOTS, Equation, Term, Token, fail

Shape = tuple[int, ...]
MAX_AXES = 20  # Python nests at most 20 loops


@dataclass(frozen=True, eq=False, repr=False)
class Contraction:
    """An equation with nothing left implicit: names replace `...`, and each name has a size."""

    inputs: tuple[tuple[str, ...], ...]  # the names of each operand's axes
    shapes: tuple[Shape, ...]
    free: tuple[str, ...]  # the names in the output, in its order
    sizes: dict[str, int]  # of each name, in order of first appearance
    dots: tuple[str, ...]  # the names that stand for `...`

    @property
    def summed(self) -> tuple[str, ...]:
        """The names that are not in the output."""
        return tuple(axis for axis in self.sizes if axis not in self.free)

    @property
    def output_shape(self) -> Shape:
        """The sizes of the free axes."""
        return tuple(self.sizes[axis] for axis in self.free)

    @property
    def tensors(self) -> tuple[str, ...]:
        """What the code calls the operands: A, B, C, …, with an underscore if an axis has that name."""
        return tuple(own_name(letter, self.sizes) for letter in string.ascii_uppercase[: len(self.inputs)])

    @property
    def letters(self) -> str:
        """The equation with one letter for each axis, for torch.einsum and opt_einsum."""
        letters = dict(zip(self.sizes, string.ascii_letters))
        *inputs, output = ("".join(letters[axis] for axis in axes) for axes in (*self.inputs, self.free))
        return f"{','.join(inputs)}->{output}"

    def indices(self) -> list[tuple[str, ...]]:
        """How each operand is indexed: by name, but by 0 where an axis of size 1 broadcasts."""
        return [
            tuple("0" if size == 1 != self.sizes[axis] else axis for axis, size in zip(*pair))
            for pair in zip(self.inputs, self.shapes)
        ]


def own_name(name: str, taken: Iterable[str]) -> str:
    """A name that no axis has. (A user's own names never end with an underscore.)"""
    return f"{name}_" if name in taken else name


def bind(equation: Equation, shapes: tuple[Shape, ...]) -> Contraction:
    """Give each axis its size. Raises ValueError if equation and shapes do not fit together."""
    _check_number(equation, len(shapes))
    operands = zip(string.ascii_uppercase, equation.inputs, shapes)
    widths = [_width_of_dots(equation, *operand) for operand in operands]
    taken = {name for term in equation.inputs for name in term.names}
    dots = tuple(own_name(f"dots{number}", taken) for number in range(1, max(widths) + 1))
    inputs = tuple(_expand(term, dots[len(dots) - width :]) for term, width in zip(equation.inputs, widths))
    free = _output(equation, inputs, dots)
    sizes = _sizes(equation, inputs, shapes)
    if len(sizes) > MAX_AXES:
        raise ValueError(f"equation must have at most {MAX_AXES} axes, one loop each; got {len(sizes)}")
    return Contraction(inputs, shapes, free, sizes, dots)


def _check_number(equation: Equation, number: int) -> None:
    terms = equation.inputs
    if len(terms) == number:
        return
    spans = [term.span for term in (terms[number:] or terms)]
    hint = "too few operands for these names" if len(terms) > number else "too many operands, or a comma is missing"
    empty = [term for term in terms if not term.tokens]
    if empty and len(terms) - len(empty) == number:
        comma = max(equation.source.find(","), empty[0].span[0] - 1)
        spans, hint = [(comma, comma + 1)], "there is a stray comma"
    named, came = (f"{n} {noun}{'s' * (n != 1)}" for n, noun in ((len(terms), "input"), (number, "operand")))
    fail(f"equation names {named}, but {came} came: {hint}", equation.source, *spans)


def _width_of_dots(equation: Equation, letter: str, term: Term, shape: Shape) -> int:
    """How many axes the `...` of a term stands for; 0 if it has none."""
    width = len(shape) - len(term.names)
    if width < 0 or (width > 0 and not term.has_dots):
        named = ", ".join(f"`{name}`" for name in term.names) or "no axis"
        hint = "Name each axis, or write `...` for those that need no name."
        if width < 0 and equation.spelling == "letters":
            hint = "Each letter is one axis; whole words need spaces between them, as in `batch q d`."
        message = f"equation names {named} for operand {letter}, but its shape is {shape}. {hint}"
        fail(message, equation.source, term.span)
    return width


def _expand(term: Term, dots: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a term, with `dots` in place of `...`."""
    return tuple(name for token in term.tokens for name in (dots if token.text == DOTS else (token.text,)))


def _output(equation: Equation, inputs: tuple[tuple[str, ...], ...], dots: tuple[str, ...]) -> tuple[str, ...]:
    times = Counter(axis for axes in inputs for axis in axes)
    if equation.output is None:
        return dots + tuple(sorted(axis for axis, count in times.items() if count == 1 and axis not in dots))
    seen: dict[str, Token] = {}
    for token in equation.output.tokens:
        name = token.text
        if name != DOTS and name not in times:
            near = get_close_matches(name, times, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else f"The inputs have {', '.join(times)}."
            message = f"equation has the axis `{name}` in the output, but in no input. {hint}"
            fail(message, equation.source, token.span)
        if name in seen:
            message = f"equation has the axis `{name}` twice in the output; torch.einsum cannot write to a diagonal"
            fail(message, equation.source, seen[name].span, token.span)
        seen[name] = token
    return _expand(equation.output, dots)


def _sizes(equation: Equation, inputs: tuple[tuple[str, ...], ...], shapes: tuple[Shape, ...]) -> dict[str, int]:
    found: dict[str, tuple[int, int]] = {}  # where an axis got its size: operand, position
    for operand, (axes, shape) in enumerate(zip(inputs, shapes)):
        for position, (axis, size) in enumerate(zip(axes, shape)):
            here, first = (operand, position), axes.index(axis)
            if shape[first] != size:
                _fail_sizes(equation, shapes, axis, (operand, first), here)
            source, place = found.setdefault(axis, here)
            if shapes[source][place] == 1:  # an axis of size 1 broadcasts against any other
                found[axis] = here
            elif size not in (1, shapes[source][place]):
                _fail_sizes(equation, shapes, axis, (source, place), here)
    return {axis: shapes[operand][position] for axis, (operand, position) in found.items()}


def _fail_sizes(equation: Equation, shapes: tuple[Shape, ...], axis: str, *places: tuple[int, int]) -> NoReturn:
    """`places` are two: the operand and position of the same axis, which has a different size in each."""
    terms = [equation.inputs[operand] for operand, _ in places]
    name = axis if axis in terms[0].names else DOTS
    spans = [token.span for term in terms for token in term.tokens if token.text == name]
    first, second = (
        f"{shapes[operand][position]} in {string.ascii_uppercase[operand]} (axis {position} of shape {shapes[operand]})"
        for operand, position in places
    )
    diagonal = "; the diagonal needs equal sizes" if terms[0] is terms[1] else ""
    fail(f"equation gives the axis `{name}` two sizes: {first} and {second}{diagonal}", equation.source, *spans)
