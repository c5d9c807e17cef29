"""Matches an equation with its operands' shapes: each axis gets a size, or an error says what does not fit."""

import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NoReturn

from attnlib.einsum.parse import DOTS, Equation, Term, Token

Shape = tuple[int, ...]
MAX_AXES = 20  # Python nests at most 20 loops


@dataclass(frozen=True, eq=False, repr=False)
class Contraction:
    """An equation with nothing left implicit: names replace `...`, and each name has a size.

    Attributes:
        inputs, shapes: the names and the sizes of each operand's axes.
        free: the names in the output, in its order.
        sizes: the size of each name, in order of first appearance.
        dots: the names that stand for `...`.
    """

    inputs: tuple[tuple[str, ...], ...]
    shapes: tuple[Shape, ...]
    free: tuple[str, ...]
    sizes: dict[str, int]
    dots: tuple[str, ...]

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
    _check_number(equation, shapes)
    widths = [_width_of_dots(equation, index, *pair) for index, pair in enumerate(zip(equation.inputs, shapes))]
    taken = {name for term in equation.inputs for name in term.names}
    dots = tuple(own_name(f"dots{number}", taken) for number in range(1, max(widths) + 1))
    inputs = tuple(_expand(term, dots[len(dots) - width :]) for term, width in zip(equation.inputs, widths))
    free = _output(equation, inputs, dots)
    sizes = _sizes(equation, inputs, shapes)
    if len(sizes) > MAX_AXES:
        raise ValueError(f"equation must have at most {MAX_AXES} axes, one loop each; got {len(sizes)}")
    return Contraction(inputs, shapes, free, sizes, dots)


def _check_number(equation: Equation, shapes: tuple[Shape, ...]) -> None:
    terms = equation.inputs
    if len(terms) == len(shapes):
        return
    counts = f"equation names {_count(len(terms), 'input')}, but {_count(len(shapes), 'operand')} came"
    empty = [term for term in terms if not term.tokens]
    if empty and len(terms) - len(empty) == len(shapes):
        comma = max(equation.source.rfind(",", 0, empty[0].start), equation.source.find(","))
        equation.fail(f"{counts}: there is a stray comma", Token(",", comma, comma + 1))
    if len(terms) > len(shapes):
        equation.fail(f"{counts}: too few operands for these names", *terms[len(shapes) :])
    equation.fail(f"{counts}: too many operands, or a comma is missing", *terms)


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"1 {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def _width_of_dots(equation: Equation, index: int, term: Term, shape: Shape) -> int:
    """How many axes the `...` of a term stands for; 0 if it has none."""
    width = len(shape) - len(term.names)
    if width < 0 or (width > 0 and not term.has_dots):
        named = ", ".join(f"`{name}`" for name in term.names)
        named = f"{_count(len(term.names), 'axis', 'axes')} ({named})" if named else "no axis"
        equation.fail(
            f"equation names {named} for operand {string.ascii_uppercase[index]}, "
            f"but it has {_count(len(shape), 'axis', 'axes')}: shape {shape}.{_hint_on_rank(equation, term, shape)}",
            term,
        )
    return width


def _hint_on_rank(equation: Equation, term: Term, shape: Shape) -> str:
    text = equation.source[term.start : term.stop]
    if equation.output is None and " " in text:
        return " Is `->` missing?"
    if equation.spelling == "letters" and len(term.names) > len(shape) and len(text) > 1:
        return " Each letter is one axis; whole words need spaces between them, as in `batch q d`."
    letters = "".join(term.names)
    if equation.spelling == "words" and letters.isalpha() and len(letters) == len(shape):
        return " Each word is one axis here; put spaces between the letters."
    return " Name each axis, or write `...` for those that need no name." if len(term.names) < len(shape) else ""


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
            names = ", ".join(f"`{one}`" for one in times)
            hint = f"Did you mean `{near[0]}`?" if near else f"The inputs have {names}."
            equation.fail(f"equation has the axis `{name}` in the output, but in no input. {hint}", token)
        if name in seen:
            problem = f"equation has the axis `{name}` twice in the output; torch.einsum cannot write to a diagonal"
            equation.fail(problem, seen[name], token)
        seen[name] = token
    return _expand(equation.output, dots)


def _sizes(equation: Equation, inputs: tuple[tuple[str, ...], ...], shapes: tuple[Shape, ...]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    found: dict[str, tuple[int, int]] = {}  # where an axis got its size: operand, position
    for operand, (axes, shape) in enumerate(zip(inputs, shapes)):
        for position, (axis, size) in enumerate(zip(axes, shape)):
            first = axes.index(axis)
            if shape[first] != size:
                _fail_sizes(equation, shapes, (operand, first), (operand, position))
            if sizes.get(axis, 1) == 1:  # an axis of size 1 broadcasts against any other
                sizes[axis], found[axis] = size, (operand, position)
            elif size not in (1, sizes[axis]):
                _fail_sizes(equation, shapes, found[axis], (operand, position))
    return sizes


def _fail_sizes(equation: Equation, shapes: tuple[Shape, ...], *places: tuple[int, int]) -> NoReturn:
    """`places` are two: the operand and position of the same axis, which has a different size in each."""
    tokens, sizes = [], []
    for operand, position in places:
        term, letter, shape = equation.inputs[operand], string.ascii_uppercase[operand], shapes[operand]
        width = len(shape) - len(term.names)
        covering = [token for token in term.tokens for _ in range(width if token.text == DOTS else 1)]
        tokens.append(covering[position])
        sizes.append(f"{shape[position]} in {letter} (axis {position} of shape {shape})")
    first = shapes[places[0][0]][places[0][1]]
    if places[0][0] == places[1][0]:
        hint = f"A repeated name takes the diagonal of {letter}, which needs equal sizes."
    elif first in shape:
        hint = f"Axis {shape.index(first)} of {letter} has size {first}: are its names in the right order?"
    else:
        hint = "Different axes need different names."
    equation.fail(f"equation gives the axis `{tokens[0].text}` two sizes: {' and '.join(sizes)}. {hint}", *tokens)
