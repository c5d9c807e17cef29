"""From an equation and its operands' shapes to the size of each axis; or an error that says what does not fit."""

import string
from collections import Counter
from dataclasses import dataclass
from typing import NoReturn

from attnlib.einsum.parse import DOTS, Equation, Term, Token, closest

Shape = tuple[int, ...]
MAX_AXES = 20  # Python nests at most 20 loops


@dataclass(frozen=True)
class Contraction:
    """An equation with nothing left implicit: `...` has become names, and each name has its size."""

    inputs: tuple[tuple[str, ...], ...]
    shapes: tuple[Shape, ...]
    output: tuple[str, ...]
    sizes: dict[str, int]  # in order of first appearance
    dots: tuple[str, ...] = ()  # the names that stand for `...`

    @property
    def summed(self) -> tuple[str, ...]:
        return tuple(axis for axis in self.sizes if axis not in self.output)

    @property
    def output_shape(self) -> Shape:
        return tuple(self.sizes[axis] for axis in self.output)

    def renamed(self, names: dict[str, str]) -> "Contraction":
        """The same with other names for the axes."""
        inputs = tuple(tuple(names[axis] for axis in axes) for axes in self.inputs)
        output = tuple(names[axis] for axis in self.output)
        return Contraction(inputs, self.shapes, output, {names[axis]: size for axis, size in self.sizes.items()})

    def tensor_names(self) -> tuple[str, ...]:
        """A, B, C, …: with an underscore where the user has an axis of that name."""
        return tuple(own_name(letter, self.sizes) for letter in string.ascii_uppercase[: len(self.inputs)])


def own_name(name: str, taken: dict[str, int]) -> str:
    """A name of ours that no axis has; the user's names never end with an underscore."""
    return f"{name}_" if name in taken else name


def bind(equation: Equation, shapes: tuple[Shape, ...]) -> Contraction:
    """Give each axis its size; ValueError where equation and shapes do not fit together."""
    _check_number(equation, shapes)
    widths = [_width_of_dots(equation, index, *pair) for index, pair in enumerate(zip(equation.inputs, shapes))]
    dots = _names_of_dots(equation, max(widths))
    inputs = tuple(_expand(term, dots, width) for term, width in zip(equation.inputs, widths))
    output = _output(equation, inputs, dots)
    sizes = _sizes(equation, inputs, shapes)
    if len(sizes) > MAX_AXES:
        raise ValueError(f"equation must have at most {MAX_AXES} axes, one loop each; got {len(sizes)}")
    return Contraction(inputs, shapes, output, sizes, dots)


def _check_number(equation: Equation, shapes: tuple[Shape, ...]) -> None:
    terms = equation.inputs
    if len(terms) == len(shapes):
        return
    counts = f"equation names {_count(len(terms), 'input')}, but {_count(len(shapes), 'operand')} came"
    empty = [term for term in terms if not term.tokens]
    if empty and len(terms) - len(empty) == len(shapes):
        comma = equation.source.rfind(",", 0, empty[0].start)
        comma = equation.source.find(",") if comma < 0 else comma
        equation.fail(f"{counts}: there is a stray comma", Token(",", comma, comma + 1))
    if len(terms) > len(shapes):
        equation.fail(f"{counts}: too few operands for these names", *terms[len(shapes) :])
    equation.fail(f"{counts}: too many operands, or a comma is missing", *terms)


def _count(number: int, noun: str) -> str:
    if number == 1:
        return f"1 {noun}"
    return f"{number} {'axes' if noun == 'axis' else noun + 's'}"


def _width_of_dots(equation: Equation, index: int, term: Term, shape: Shape) -> int:
    """For how many axes the `...` of a term stands; 0 where it has none."""
    width = len(shape) - len(term.names)
    if width < 0 or (width > 0 and not term.has_dots):
        named = f"{_count(len(term.names), 'axis')} ({', '.join(f'`{name}`' for name in term.names)})"
        equation.fail(
            f"equation names {named if term.names else 'no axis'} for operand {string.ascii_uppercase[index]}, "
            f"but it has {_count(len(shape), 'axis')}: shape {shape}.{_hint_on_rank(equation, term, shape)}",
            term,
        )
    return width


def _hint_on_rank(equation: Equation, term: Term, shape: Shape) -> str:
    text = equation.source[term.start : term.stop]
    if equation.spelling == "letters" and equation.output is None and " " in text:
        return " Is `->` missing?"
    if equation.spelling == "letters" and len(term.names) > len(shape) and len(text) > 1:
        return " Each letter is one axis; whole words need spaces between them, as in `batch q d`."
    letters = "".join(term.names)
    if equation.spelling == "words" and len(letters) == len(shape) and letters.isalpha():
        return " Each word is one axis here; put spaces between the letters."
    if len(term.names) < len(shape):
        return " Name each axis, or write `...` for those that need no name."
    return ""


def _names_of_dots(equation: Equation, width: int) -> tuple[str, ...]:
    taken = dict.fromkeys((name for term in equation.inputs for name in term.names), 0)
    return tuple(own_name(f"dots{number}", taken) for number in range(1, width + 1))


def _expand(term: Term, dots: tuple[str, ...], width: int) -> tuple[str, ...]:
    """The names with `...` replaced: the last `width` of `dots`, since shapes broadcast from the right."""
    names: list[str] = []
    for token in term.tokens:
        names.extend(dots[len(dots) - width :] if token.text == DOTS else [token.text])
    return tuple(names)


def _output(equation: Equation, inputs: tuple[tuple[str, ...], ...], dots: tuple[str, ...]) -> tuple[str, ...]:
    times = Counter(axis for axes in inputs for axis in axes)
    if equation.output is None:
        return dots + tuple(sorted(axis for axis, count in times.items() if count == 1 and axis not in dots))
    seen: dict[str, Token] = {}
    for token in equation.output.tokens:
        if token.text != DOTS and token.text not in times:
            hint = closest(token.text, times) or f" The inputs have {', '.join(f'`{name}`' for name in times)}."
            equation.fail(f"equation has the axis `{token.text}` in the output, but in no input.{hint}", token)
        if token.text in seen:
            equation.fail(
                f"equation has the axis `{token.text}` twice in the output; torch.einsum writes no diagonals",
                seen[token.text],
                token,
            )
        seen[token.text] = token
    return _expand(equation.output, dots, len(dots))


def _sizes(equation: Equation, inputs: tuple[tuple[str, ...], ...], shapes: tuple[Shape, ...]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    found: dict[str, tuple[int, int]] = {}  # where an axis got its size: operand, position
    for operand, (axes, shape) in enumerate(zip(inputs, shapes)):
        for position, (axis, size) in enumerate(zip(axes, shape)):
            first = axes.index(axis)
            if shape[first] != size:
                _fail_sizes(equation, inputs, shapes, (operand, first), (operand, position))
            if sizes.setdefault(axis, size) == 1:  # an axis of size 1 broadcasts against any other
                sizes[axis], found[axis] = size, (operand, position)
            elif size not in (1, sizes[axis]):
                _fail_sizes(equation, inputs, shapes, found[axis], (operand, position))
            found.setdefault(axis, (operand, position))
    return sizes


def _fail_sizes(
    equation: Equation,
    inputs: tuple[tuple[str, ...], ...],
    shapes: tuple[Shape, ...],
    one: tuple[int, int],
    other: tuple[int, int],
) -> NoReturn:
    """`one` and `other` are places, (operand, position), where the same axis has different sizes."""
    tokens, sizes = [], []
    for operand, position in (one, other):
        tokens.append(_token_at(equation.inputs[operand], position, len(inputs[operand])))
        letter, shape = string.ascii_uppercase[operand], shapes[operand]
        sizes.append(f"{shape[position]} in {letter} (axis {position} of shape {shape})")
    hint = " Different axes need different names."
    size, letter, shape = shapes[one[0]][one[1]], string.ascii_uppercase[other[0]], shapes[other[0]]
    if one[0] == other[0]:
        hint = f" A name that stands twice takes the diagonal of {letter}, which needs equal sizes."
    elif size in shape:
        hint = f" Axis {shape.index(size)} of {letter} has size {size}: are its names in the right order?"
    equation.fail(f"equation gives the axis `{tokens[0].text}` two sizes: {' and '.join(sizes)}.{hint}", *tokens)


def _token_at(term: Term, position: int, rank: int) -> Token:
    """The token that names the axis at `position` of a tensor with `rank` axes."""
    width = rank - len(term.names)
    for token in term.tokens:
        covered = width if token.text == DOTS else 1
        if position < covered:
            return token
        position -= covered
    raise IndexError(position)
