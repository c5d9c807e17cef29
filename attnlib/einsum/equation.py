"""Reads an equation and matches it with its operands' shapes. An error points at the place in the text."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple, NoReturn

DOTS = "..."
MAX_LENGTH = 500
MAX_AXES = 20  # Python nests at most 20 loops
_TOKEN = {"letters": re.compile(r"\.\.\.|[^ ]"), "words": re.compile(r"\.\.\.|[^ .]+|\.")}
_RULE = "a name has letters, digits and underscores, begins with a letter and does not end with an underscore"
Span = tuple[int, int]
Shape = tuple[int, ...]
Names = tuple[str, ...]


class Term(NamedTuple):
    """One tensor of an equation: its axes as they are written, with the place of each, and its own place."""

    tokens: tuple[tuple[str, Span], ...]  # names, and at most one `...`
    span: Span

    @property
    def names(self) -> Names:
        return tuple(name for name, _ in self.tokens if name != DOTS)

    @property
    def has_dots(self) -> bool:
        return len(self.names) < len(self.tokens)

    def expanded(self, dots: Names) -> Names:
        """The names, with ``dots`` in place of `...`."""
        return tuple(each for name, _ in self.tokens for each in (dots if name == DOTS else (name,)))


class Equation(NamedTuple):
    """A parsed equation. `output` is None if there is no arrow."""

    source: str
    spelling: str  # "letters" (one letter per axis, as in torch and NumPy) or "words" (as in einops)
    inputs: tuple[Term, ...]
    output: Term | None


@dataclass(frozen=True, eq=False, repr=False)
class Contraction:
    """An equation with nothing left implicit: names replace `...`, and each name has a size."""

    inputs: tuple[Names, ...]  # the names of each operand's axes
    shapes: tuple[Shape, ...]
    free: Names  # the names in the output, in its order
    sizes: dict[str, int]  # of each name, in order of first appearance
    dots: Names  # the names that stand for `...`

    @property
    def summed(self) -> Names:
        return tuple(axis for axis in self.sizes if axis not in self.free)

    @property
    def output_shape(self) -> Shape:
        return tuple(self.sizes[axis] for axis in self.free)

    @property
    def tensors(self) -> Names:
        """What the code calls the operands: A, B, C, …, with an underscore if an axis has that name."""
        return tuple(own_name(letter, self.sizes) for letter in string.ascii_uppercase[: len(self.inputs)])

    @property
    def letters(self) -> str:
        """The equation with one letter for each axis, for torch.einsum and opt_einsum."""
        letters = dict(zip(self.sizes, string.ascii_letters))
        *inputs, output = ("".join(letters[axis] for axis in axes) for axes in (*self.inputs, self.free))
        return f"{','.join(inputs)}->{output}"

    def indices(self) -> list[Names]:
        """How each operand is indexed: by name, but by 0 where an axis of size 1 broadcasts."""
        pairs = zip(self.inputs, self.shapes)
        return [tuple("0" if size == 1 != self.sizes[axis] else axis for axis, size in zip(*pair)) for pair in pairs]

    def broadcast(self, name: str) -> str:
        """The tensors, such as "A and B", in which an axis has size 1 although it is longer elsewhere."""
        indices = zip(self.tensors, self.inputs, self.indices())
        return " and ".join(tensor for tensor, axes, index in indices if (name, "0") in zip(axes, index))


def own_name(name: str, taken: Iterable[str]) -> str:
    """A name that no axis has. (A user's own names never end with an underscore.)"""
    return f"{name}_" if name in taken else name


def fail(message: str, source: str, *spans: Span) -> NoReturn:
    """Raise a ValueError that shows the equation, with carets under the given places."""
    marked = {place for start, stop in spans for place in range(start, max(stop, start + 1))}
    carets = "".join("^" if place in marked else " " for place in range(max(marked) + 1))
    shown = "".join(character if character.isprintable() else "?" for character in source)
    raise ValueError(f"equation {message}\n    {shown}\n    {carets}")


def read(text: str, shapes: tuple[Shape, ...]) -> tuple[Equation, Contraction]:
    """Read the text as letters or as words, whichever fits the shapes."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"equation must have at most {MAX_LENGTH} characters; got {len(text)}")
    errors = []
    for spelling in _spellings(text, shapes):
        try:
            equation = parse(text, spelling)
            return equation, bind(equation, shapes)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _spellings(text: str, shapes: tuple[Shape, ...]) -> list[str]:
    """The spellings to try, the likeliest first: if neither fits, its error is the one to show."""
    if not re.fullmatch("[a-zA-Z .,>-]*", text):
        return ["words"]
    terms = [term.replace(DOTS, " ").split() for term in text.partition("->")[0].split(",")]
    for names, shape in zip(terms, shapes):
        longest = max(map(len, names), default=0)
        if longest > 1 and (len(names) > 1 or (longest > 4 and len(shape) == 1)):
            return ["words", "letters"]
    return ["letters", "words"]


def parse(source: str, spelling: str) -> Equation:
    """Read a text as single letters or as whole words."""
    if group := re.search(r"\([^)]*\)?|\)", source):
        message = "einsum knows no groups such as `(h d)`; split or join the axes with einops.rearrange first"
        fail(f"has a parenthesis: {message}", source, group.span())
    if bad := re.search(r"[^\w ,.>-]|-(?!>)|(?<!-)>", source):
        message = f"has the character {bad[0]!r}; only names, spaces, `,`, `...` and `->` are allowed"
        fail(message, source, bad.span())
    left, arrow, _ = source.partition("->")
    end = len(source)
    if spelling == "words" and not arrow:
        fail("has no `->`: end it with `->` and the names of the output's axes", source, (end, end))
    if extra := re.compile("->|,").search(source, len(left) + 2):
        fail(f"has `{extra[0]}` after the arrow, but there is only one output", source, extra.span())
    commas = [-1, *(place for place, letter in enumerate(left) if letter == ","), len(left)]
    inputs = tuple(_read_term(source, start + 1, stop, spelling) for start, stop in zip(commas, commas[1:]))
    return Equation(source, spelling, inputs, _read_term(source, len(left) + 2, end, spelling) if arrow else None)


def _read_term(source: str, start: int, stop: int, spelling: str) -> Term:
    tokens: list[tuple[str, Span]] = []
    for match in _TOKEN[spelling].finditer(source, start, stop):
        name, problem = match[0], ""
        # what einops takes, as long as Python does not read a character as another one, as it does with ligatures
        plain = name.isidentifier() and unicodedata.normalize("NFKC", name) == name
        if name == DOTS and any(other == DOTS for other, _ in tokens):
            problem = "has a second `...` in one tensor"
        elif spelling == "words" and tokens and tokens[-1][1][1] == match.start():
            problem = "needs a space on each side of `...`"
        elif name not in (DOTS, "_") and not (plain and name.strip("_") == name):
            problem = f"names an axis `{name}`; {_RULE}"
        if problem:
            fail(problem, source, match.span())
        tokens.append((name, match.span()))
    return Term(tuple(tokens), (tokens[0][1][0], tokens[-1][1][1]) if tokens else (start, stop))


def bind(equation: Equation, shapes: tuple[Shape, ...]) -> Contraction:
    """Give each axis its size. Raises ValueError if equation and shapes do not fit together."""
    _check_number(equation, len(shapes))
    operands = zip(string.ascii_uppercase, equation.inputs, shapes)
    widths = [_width_of_dots(equation, *operand) for operand in operands]
    taken = {name for term in equation.inputs for name in term.names}
    dots = tuple(own_name(f"dots{number}", taken) for number in range(1, max(widths) + 1))
    inputs = tuple(term.expanded(dots[len(dots) - width :]) for term, width in zip(equation.inputs, widths))
    free = _output(equation, Counter(axis for axes in inputs for axis in axes), dots)
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
    fail(f"names {named}, but {came} came: {hint}", equation.source, *spans)


def _width_of_dots(equation: Equation, letter: str, term: Term, shape: Shape) -> int:
    """How many axes the `...` of a term stands for; 0 if it has none."""
    width = len(shape) - len(term.names)
    if width < 0 or (width > 0 and not term.has_dots):
        named = ", ".join(f"`{name}`" for name in term.names) or "no axis"
        hint = "Name each axis, or write `...` for those that need no name."
        if width < 0 and equation.spelling == "letters":
            hint = "Each letter is one axis; whole words need spaces between them, as in `batch q d`."
        fail(f"names {named} for operand {letter}, but its shape is {shape}. {hint}", equation.source, term.span)
    return width


def _output(equation: Equation, times: Counter[str], dots: Names) -> Names:
    if equation.output is None:
        return dots + tuple(sorted(axis for axis, count in times.items() if count == 1 and axis not in dots))
    seen: dict[str, Span] = {}
    for name, span in equation.output.tokens:
        if name != DOTS and name not in times:
            near = get_close_matches(name, times, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else f"The inputs have {', '.join(times)}."
            fail(f"has the axis `{name}` in the output, but in no input. {hint}", equation.source, span)
        if name in seen:
            message = f"has the axis `{name}` twice in the output; torch.einsum cannot write to a diagonal"
            fail(message, equation.source, seen[name], span)
        seen[name] = span
    return equation.output.expanded(dots)


def _sizes(equation: Equation, inputs: tuple[Names, ...], shapes: tuple[Shape, ...]) -> dict[str, int]:
    """The size of each axis. One of size 1 broadcasts against any other, but not within a diagonal."""
    found: dict[str, list[tuple[int, int, int]]] = {}  # operand, position, size
    for operand, (axes, shape) in enumerate(zip(inputs, shapes)):
        for position, (axis, size) in enumerate(zip(axes, shape)):
            for other in found.setdefault(axis, []):
                if size != other[2] and (operand == other[0] or 1 not in (size, other[2])):
                    _fail_sizes(equation, shapes, axis, other, (operand, position, size))
            found[axis].append((operand, position, size))
    return {axis: next((size for *_, size in places if size != 1), 1) for axis, places in found.items()}


def _fail_sizes(equation: Equation, shapes: tuple[Shape, ...], axis: str, *places: tuple[int, int, int]) -> NoReturn:
    terms = [equation.inputs[operand] for operand, *_ in places]
    name = axis if axis in terms[0].names else DOTS
    spans = [span for term in terms for token, span in term.tokens if token == name]
    first, second = (
        f"{size} in {string.ascii_uppercase[operand]} (axis {position} of shape {shapes[operand]})"
        for operand, position, size in places
    )
    diagonal = "; the diagonal needs equal sizes" if terms[0] is terms[1] else ""
    fail(f"gives the axis `{name}` two sizes: {first} and {second}{diagonal}", equation.source, *spans)
