"""Reads the text of an equation and remembers where each name is, so that an error can point at it."""

import re
import unicodedata
from typing import NamedTuple, NoReturn

DOTS = "..."
MAX_LENGTH = 1000
_ARROW_LIKE = "→⟶⇒➔=<"
_TOKEN = {"letters": re.compile(r"\.\.\.|[^ ]"), "words": re.compile(r"\.\.\.|…|[^ .…]+|\.")}


class Token(NamedTuple):
    """The name of one axis, or `...`, and its place in the equation."""

    text: str
    start: int
    stop: int


class Term(NamedTuple):
    """The names of one tensor: the text between two commas, or after the arrow."""

    tokens: tuple[Token, ...]
    start: int
    stop: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(token.text for token in self.tokens if token.text != DOTS)

    @property
    def has_dots(self) -> bool:
        return len(self.names) < len(self.tokens)


class Equation(NamedTuple):
    """A parsed equation. `output` is None if there is no arrow."""

    source: str
    spelling: str  # "letters" or "words"
    inputs: tuple[Term, ...]
    output: Term | None

    def fail(self, message: str, *places: Term | Token) -> NoReturn:
        fail(message, self.source, *((place.start, place.stop) for place in places))


def fail(message: str, source: str, *spans: tuple[int, int]) -> NoReturn:
    """Raise a ValueError that shows the equation, cut to 100 characters, with carets under the given places."""
    carets = [" "] * (len(source) + 1)
    for start, stop in spans:
        for place in range(start, max(stop, start + 1)):
            carets[place] = "^"
    left = max(spans[0][0] - 60, 0) if len(source) > 100 else 0
    line = "".join(character if character.isprintable() else "?" for character in source)
    cut_left, cut_right = "…" if left else "", "…" if left + 100 < len(source) else ""
    marks = "".join(carets[left : left + 101]).rstrip()
    raise ValueError(f"{message}\n    {cut_left}{line[left : left + 100]}{cut_right}\n    {' ' * len(cut_left)}{marks}")


def check_characters(source: str) -> None:
    """Reject, quickly and clearly, any text with characters that no equation can contain."""
    if len(source) > MAX_LENGTH:
        raise ValueError(f"equation must have at most {MAX_LENGTH} characters; got {len(source)}")
    bad = re.search(r"[^\w ,.…>-]", source)
    if not bad:
        return
    character, (start, stop) = bad[0], bad.span()
    if character in "()":
        message = (
            "equation has a parenthesis: einsum knows no groups such as `(h d)`; split or join the axes with "
            "einops.rearrange first"
        )
        stop = source.find(")", start) + 1 or len(source)
    elif character in _ARROW_LIKE:
        message = f"equation has {character!r}, but an arrow is written `->`"
    elif character.isspace():
        message = f"equation has a line break or tab ({character!r}); write it on one line"
    else:
        message = f"equation has the character {character!r}; only names, spaces, `,`, `...` and `->` are allowed"
    fail(message, source, (start, stop))


def parse(source: str, spelling: str) -> Equation:
    """Read `source` as single letters (torch, NumPy) or as whole words (einops)."""
    check_characters(source)
    stray = re.search(r"-(?!>)|(?<!-)>", source)
    if stray:
        fail(f"equation has a stray `{stray[0]}`; an arrow is written `->`", source, stray.span())
    arrow = source.find("->")
    if arrow < 0 and spelling == "words":
        end = len(source)
        fail("equation has no `->`: end it with `->` and the names of the output's axes", source, (end, end + 1))
    inputs, start, stop = [], 0, arrow if arrow >= 0 else len(source)
    for piece in source[:stop].split(","):
        inputs.append(_read_term(source, start, start + len(piece), spelling))
        start += len(piece) + 1
    if arrow < 0:
        return Equation(source, spelling, tuple(inputs), None)
    for mark, message in (("->", "a second `->`"), (",", "a comma after `->`, but there is only one output")):
        place = source.find(mark, stop + 2)
        if place >= 0:
            fail(f"equation has {message}", source, (place, place + len(mark)))
    return Equation(source, spelling, tuple(inputs), _read_term(source, stop + 2, len(source), spelling))


def _read_term(source: str, start: int, stop: int, spelling: str) -> Term:
    tokens: list[Token] = []
    for match in _TOKEN[spelling].finditer(source, start, stop):
        token = Token(DOTS if match[0] == "…" else match[0], *match.span())
        if token.text == ".":
            problem = "has a dot that is not part of `...`"
        elif token.text == DOTS and any(other.text == DOTS for other in tokens):
            problem = "has a second `...` in one tensor"
        elif spelling == "words" and tokens and tokens[-1].stop == token.start:
            problem = "needs a space on each side of `...`"
        else:
            problem = "" if token.text == DOTS else _problem_of_name(token.text, spelling)
        if problem:
            fail(f"equation {problem}", source, match.span())
        tokens.append(token)
    if tokens:
        start, stop = tokens[0].start, tokens[-1].stop
    return Term(tuple(tokens), start, stop)


def _problem_of_name(name: str, spelling: str) -> str:
    if spelling == "letters":
        return "" if name.isascii() and name.isalpha() else f"has {name!r}, but an axis is one letter here: a-z or A-Z"
    if name.isdecimal():
        problem = "is a number; give the axis a name"
    elif not name.isidentifier():
        problem = "is not a name: use letters, digits and underscores, and begin with a letter"
    elif name != "_" and (name.startswith("_") or name.endswith("_")):
        problem = "begins or ends with an underscore"
    elif unicodedata.normalize("NFKC", name) != name:
        problem = "has a character that Python would replace by another"
    else:
        return ""
    return f"names an axis `{name}`, which {problem}"
