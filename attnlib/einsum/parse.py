"""From the text of an equation to its names, with the place of each, so that an error can point at it."""

import difflib
import keyword
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple, NoReturn

DOTS = "..."
MAX_LENGTH = 1000
_ARROW_LIKE = "→⟶⇒➔=<"


class Token(NamedTuple):
    """One name of an axis, or `...`, and where it stands in the equation."""

    text: str
    start: int
    stop: int


class Term(NamedTuple):
    """The names of one tensor: what stands between two commas, or behind the arrow."""

    tokens: tuple[Token, ...]
    start: int
    stop: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(token.text for token in self.tokens if token.text != DOTS)

    @property
    def has_dots(self) -> bool:
        return any(token.text == DOTS for token in self.tokens)


class Equation(NamedTuple):
    """A parsed equation; `output` is None in implicit mode."""

    source: str
    spelling: str  # "letters", "words" or "numbers"
    inputs: tuple[Term, ...]
    output: Term | None

    def fail(self, message: str, *places: Term | Token) -> NoReturn:
        fail(message, self.source, *((place.start, place.stop) for place in places))


def fail(message: str, source: str, *spans: tuple[int, int]) -> NoReturn:
    """ValueError: the message, then the equation with carets under the places."""
    carets = [" "] * (len(source) + 1)
    for start, stop in spans:
        carets[start : max(stop, start + 1)] = "^" * max(stop - start, 1)
    first = min((start for start, _ in spans), default=0)
    left = max(first - 60, 0) if len(source) > 100 else 0
    line = "".join(character if character.isprintable() else "?" for character in source)
    shown, marks = line[left : left + 100], "".join(carets[left : left + 101]).rstrip()
    cut_left, cut_right = ("…" if left else ""), ("…" if left + 100 < len(source) else "")
    raise ValueError(f"{message}\n    {cut_left}{shown}{cut_right}\n    {' ' * len(cut_left)}{marks}")


def parse(source: str, spelling: str) -> Equation:
    """Read `source` as single letters (torch, NumPy) or as whole words (einops)."""
    check_characters(source)
    left, right, right_start = _split_arrow(source, spelling)
    inputs, start = [], 0
    for piece in left.split(","):
        inputs.append(_read_term(source, start, start + len(piece), spelling))
        start += len(piece) + 1
    output = None
    if right is not None:
        comma = right.find(",")
        if comma >= 0:
            place = right_start + comma
            fail("equation has a comma behind `->`: there is one output", source, (place, place + 1))
        output = _read_term(source, right_start, len(source), spelling)
    return Equation(source, spelling, tuple(inputs), output)


def check_characters(source: str) -> None:
    """A plain error, at once, for anything that no equation can hold."""
    if len(source) > MAX_LENGTH:
        raise ValueError(f"equation must have at most {MAX_LENGTH} characters; got {len(source)}")
    for place, character in enumerate(source):
        span = (place, place + 1)
        if character in "()":
            _fail_group(source, place)
        if character in _ARROW_LIKE:
            fail(f"equation has {character!r} where an arrow is written `->`", source, span)
        if character.isspace() and character != " ":
            fail(f"equation has a line break or tab ({character!r}): write it in one line", source, span)
        if not (character in " ,.->…_" or character.isalnum()):
            fail(f"equation has the character {character!r}; names, spaces, `,`, `...` and `->` are allowed",
                 source, span)  # fmt: skip


def closest(name: str, names: Iterable[str]) -> str:
    """' Did you mean `heads`?', or nothing where no name comes near."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" Did you mean `{matches[0]}`?" if matches else ""


def _fail_group(source: str, place: int) -> NoReturn:
    stop = source.find(")", place) + 1 or len(source)
    fail(
        "equation has a parenthesis: einsum knows no groups such as `(h d)`; split or join the axes with "
        "einops.rearrange first",
        source,
        (place, stop),
    )


def _split_arrow(source: str, spelling: str) -> tuple[str, str | None, int]:
    arrow = source.find("->")
    rest = source.replace("->", "  ")
    for mark in "->":
        if mark in rest:
            place = rest.index(mark)
            fail(f"equation has a stray `{mark}`; an arrow is written `->`", source, (place, place + 1))
    if arrow < 0:
        if spelling == "words":
            fail("equation has no `->`: write `->` and the names of the output's axes at the end",
                 source, (len(source), len(source) + 1))  # fmt: skip
        return source, None, 0
    second = source.find("->", arrow + 2)
    if second >= 0:
        fail("equation has a second `->`", source, (second, second + 2))
    return source[:arrow], source[arrow + 2 :], arrow + 2


def _read_term(source: str, start: int, stop: int, spelling: str) -> Term:
    tokens: list[Token] = []
    place = start
    while place < stop:
        if source[place] == " ":
            place += 1
            continue
        token = _read_token(source, place, stop, spelling)
        if token.text == DOTS and any(other.text == DOTS for other in tokens):
            fail("equation has a second `...` in one tensor", source, (token.start, token.stop))
        tokens.append(token)
        place = token.stop
    if tokens:
        start, stop = tokens[0].start, tokens[-1].stop
    return Term(tuple(tokens), start, stop)


def _read_token(source: str, start: int, stop: int, spelling: str) -> Token:
    words = spelling != "letters"
    if source[start] in ".…":
        end = start + (1 if source[start] == "…" else 3)
        if source[start:end] not in ("…", DOTS):
            fail("equation has a dot that belongs to no `...`", source, (start, start + 1))
        if words and end < stop and source[end] != " ":
            fail("equation needs a space behind `...`", source, (end, end + 1))
        return Token(DOTS, start, end)
    if not words:
        if not (source[start].isascii() and source[start].isalpha()):
            fail(f"equation has {source[start]!r}: in this spelling an axis is one letter, a-z or A-Z",
                 source, (start, start + 1))  # fmt: skip
        return Token(source[start], start, start + 1)
    end = start
    while end < stop and source[end] not in " .…":
        end += 1
    name = source[start:end]
    if end < stop and source[end] != " ":
        fail("equation needs a space before `...`", source, (end, end + 1))
    if problem := _problem_of_word(name):
        fail(f"equation names an axis `{name}`, which {problem}", source, (start, end))
    return Token(name, start, end)


def _problem_of_word(name: str) -> str:
    if name == "_":
        return ""
    if name.isdecimal():
        return "is a number; give the axis a name (einsum takes no anonymous axes)"
    if not name.isidentifier():
        return "is no name: letters, digits and underscores, beginning with a letter"
    if name.startswith("_") or name.endswith("_"):
        return "begins or ends with an underscore"
    if unicodedata.normalize("NFKC", name) != name:
        return "has a character that Python would write differently"
    return ""


def safe_name(name: str) -> str:
    """The name as a variable in generated Python: the user's own, unless Python needs it for something else."""
    return f"{name}_" if keyword.iskeyword(name) or name in ("range", "torch") else name
