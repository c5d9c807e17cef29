"""Every einsum equation in notebooks 05 to 08 is explained, and its loops, its matmul and einsum agree."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from attnlib.einsum import explain_einsum
from attnlib.einsum.parse import Equation, parse

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
PATHS = [path for path in sorted(FOLDER.glob("*.ipynb")) if 5 <= int(path.stem[:2]) <= 8]
FUNCTIONS = ("einsum", "explain_einsum")
MOVERS = ("rearrange", "reduce", "repeat")  # of einops: their patterns only move axes
SIZES = (2, 3, 5, 7, 4, 6, 1, 1)  # distinct, and small enough for loops in Python


def python_of(cell) -> ast.Module:
    return ast.parse(re.sub(r"(?m)^(\s*)[%!].*", r"\1pass", cell.source))


def texts(node: ast.AST, constants: dict[str, str]) -> Iterator[str]:
    """The string that an argument is: written there, or under a name that a cell gives it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Name) and node.id in constants:
        yield constants[node.id]


def equations(path: Path) -> set[tuple[str, bool, bool]]:
    """(text, whether torch reads it, whether it is meant to be broken) of every equation in the code cells."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    constants = {
        target.id: node.value.value
        for cell in cells
        for node in ast.walk(python_of(cell))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = set()
    for cell in cells:
        catches = "except" in cell.source
        tree = python_of(cell)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        moved = {id(arg) for call in calls if getattr(call.func, "id", "") in MOVERS for arg in call.args}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in FUNCTIONS:
                    of_torch = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "torch"
                    found |= {(text, of_torch, catches) for arg in node.args for text in texts(arg, constants)}
            # equations in a list or dictionary, or returned as the answer of an exercise
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in moved
                and looks_like_one(node.value)
            ):
                found.add((node.value, False, catches))
    return found


def looks_like_one(text: str) -> bool:
    """Names, commas, an arrow and nothing else: no parentheses and no numbers, which are rearrange's."""
    return bool(re.fullmatch(r"[\w ,.]+->[\w .]*", text)) and not re.search(r"(?<!\w)\d", text)


def read(text: str, of_torch: bool) -> Equation:
    words = not of_torch and any(len(chunk) > 1 for chunk in re.split(r"[ ,]|->|\.\.\.", text) if chunk)
    spaced = any(" " in term.strip() for term in re.split(r",|->", text))
    return parse(text, "words" if words and spaced else "letters")


CASES = [(path, *case) for path in PATHS for case in sorted(equations(path))]


@pytest.mark.parametrize(("path", "text", "of_torch", "catches"), CASES,
                         ids=[f"{path.stem[:2]}: {text}" for path, text, *_ in CASES])  # fmt: skip
def test_every_equation_verifies(path, text, of_torch, catches):
    try:
        equation = read(text, of_torch)
        sizes = dict(zip(dict.fromkeys(name for term in equation.inputs for name in term.names), SIZES, strict=False))
        shapes = []
        for term in equation.inputs:
            shape = [[3, 2] if token.text == "..." else [sizes[token.text]] for token in term.tokens]
            shapes.append(tuple(size for part in shape for size in part))
        if any(not term.tokens for term in equation.inputs[1:]):
            raise ValueError("equation has a stray comma")
        explanation = explain_einsum(text, *shapes)
    except ValueError:
        assert catches, f"{path.name} holds a broken equation that no cell expects to fail: {text}"
        return
    assert explanation.inputs == tuple(term.names for term in equation.inputs) or "..." in text
    assert explanation.verify()


def test_equations_were_found():
    found = {path.stem[:2]: len(equations(path)) for path in PATHS}
    assert found.get("05", 0) >= 15, found


def test_the_attention_equation_at_distinct_primes():
    scores = "batch seq_q heads d, batch seq_k heads d -> batch heads seq_q seq_k"
    for explanation in (
        explain_einsum(scores, (2, 5, 3, 7), (2, 11, 3, 7)),
        explain_einsum("bqhd,bkhd->bhqk", (2, 3, 5, 7), (2, 3, 5, 7)),
        explain_einsum("bhqd,bhkd->bhqk", (2, 3, 5, 7), (2, 3, 11, 7)),
        explain_einsum("bhqk,bkhd->bqhd", (2, 3, 5, 11), (2, 11, 3, 7)),
    ):
        assert explanation.verify()
        assert explanation.warnings == ()
