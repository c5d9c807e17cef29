"""Reads the text of an equation and remembers where each name is, so that an error can point at it."""

import re
import unicodedata
from typing import NamedTuple, NoReturn

DOTS = "..."
MAX_LENGTH = 500
_TOKEN = {"letters": re.compile(r"\.\.\.|[^ ]"), "words": re.compile(r"\.\.\.|[^ .]+|\.")}
Span = tuple[int, int]


class Token(NamedTuple):
    """The name of one axis, or `...`, and its place in the equation."""

    text: str
    span: Span


class Term(NamedTuple):
    """The names of one tensor: the text between two commas, or after the arrow."""

    tokens: tuple[Token, ...]
    span: Span

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(token.text for token in self.tokens if token.text != DOTS)

    @property
    def has_dots(self) -> bool:
        return len(self.names) < len(self.tokens)


class Equation(NamedTuple):
    """A parsed equation. `output` is None if there is no arrow."""

    source: str
    spelling: str  # "letters" (one letter per axis, as in torch and NumPy) or "words" (as in einops)
    inputs: tuple[Term, ...]
    output: Term | None


def fail(message: str, source: str, *spans: Span) -> NoReturn:
    """Raise a ValueError that shows the equation, with carets under the given places."""
    marked = {place for start, stop in spans for place in range(start, max(stop, start + 1))}
    carets = "".join("^" if place in marked else " " for place in range(max(marked) + 1))
    shown = "".join(character if character.isprintable() else "?" for character in source)
    raise ValueError(f"{message}\n    {shown}\n    {carets}")


def check_characters(source: str) -> None:
    """Reject any text with characters that no equation can contain."""
    if len(source) > MAX_LENGTH:
        raise ValueError(f"equation must have at most {MAX_LENGTH} characters; got {len(source)}")
    group = re.search(r"\([^)]*\)?|\)", source)
    if group:
        message = "einsum knows no groups such as `(h d)`; split or join the axes with einops.rearrange first"
        fail(f"equation has a parenthesis: {message}", source, group.span())
    bad = re.search(r"[^\w ,.>-]|-(?!>)|(?<!-)>", source)
    if bad:
        message = f"equation has the character {bad[0]!r}; only names, spaces, `,`, `...` and `->` are allowed"
        fail(message, source, bad.span())


def parse(source: str, spelling: str) -> Equation:
    """Read a text whose characters were checked as single letters or as whole words."""
    left, arrow, _ = source.partition("->")
    end = len(source)
    if spelling == "words" and not arrow:
        fail("equation has no `->`: end it with `->` and the names of the output's axes", source, (end, end))
    inputs, start = [], 0
    for piece in left.split(","):
        inputs.append(_read_term(source, start, start + len(piece), spelling))
        start += len(piece) + 1
    output = None
    if arrow:
        extra = re.compile("->|,").search(source, len(left) + 2)
        if extra:
            fail(f"equation has `{extra[0]}` after the arrow, but there is only one output", source, extra.span())
        output = _read_term(source, len(left) + 2, end, spelling)
    return Equation(source, spelling, tuple(inputs), output)


def _read_term(source: str, start: int, stop: int, spelling: str) -> Term:
    tokens: list[Token] = []
    for match in _TOKEN[spelling].finditer(source, start, stop):
        token, problem = Token(match[0], match.span()), ""
        if token.text == DOTS and any(other.text == DOTS for other in tokens):
            problem = "has a second `...` in one tensor"
        elif spelling == "words" and tokens and tokens[-1].span[1] == match.start():
            problem = "needs a space on each side of `...`"
        elif token.text != DOTS and not _is_name(token.text):
            problem = (
                f"names an axis `{token.text}`; a name has letters, digits and underscores, begins with a letter and "
                "does not end with an underscore"
            )
        if problem:
            fail(f"equation {problem}", source, match.span())
        tokens.append(token)
    if tokens:
        start, stop = tokens[0].span[0], tokens[-1].span[1]
    return Term(tuple(tokens), (start, stop))


def _is_name(name: str) -> bool:
    """What einops takes, as long as Python does not read a character as another one, as it does with ligatures."""
    plain = name.isidentifier() and unicodedata.normalize("NFKC", name) == name
    return name == "_" or (plain and not name.startswith("_") and not name.endswith("_"))
