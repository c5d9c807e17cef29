"""Every einsum equation in notebooks 05 to 08 is explained, and its loops, its matmul and einsum agree."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from attnlib.einsum import explain_einsum

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
PATHS = [path for path in sorted(FOLDER.glob("*.ipynb")) if 5 <= int(path.stem[:2]) <= 8]
MOVERS = ("rearrange", "reduce", "repeat")  # of einops: their patterns only move axes
SIZES = (2, 3, 5, 7, 4, 6, 1, 1)  # distinct, and small enough for loops in Python


def equations(path: Path) -> set[tuple[str, bool]]:
    """(text, whether it may be broken) of every string in the code cells that has only names, commas and an arrow."""
    found = set()
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            nodes = list(ast.walk(ast.parse(re.sub(r"(?m)^(\s*)[%!].*", r"\1pass", cell.source))))
            calls = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", "") in MOVERS]
            moved = {id(argument) for call in calls for argument in call.args}
            strings = [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in moved]
            matches = [text for text in strings if isinstance(text, str) and re.fullmatch(r"[\w ,.]+->[\w .]*", text)]
            found |= {(text, "except" in cell.source) for text in matches if not re.search(r"(?<!\w)\d", text)}
    return found


CASES = [(path, *case) for path in PATHS for case in sorted(equations(path))]


@pytest.mark.parametrize(
    ("path", "text", "catches"), CASES, ids=[f"{path.stem[:2]}: {text}" for path, text, _ in CASES]
)
def test_every_equation_verifies(path, text, catches):
    terms = text.split("->")[0].split(",")
    words = any(" " in term.strip() for term in terms) and re.search(r"\w{2}", text)
    names = [re.findall(r"\.\.\.|\w+" if words else r"\.\.\.|\w", term) for term in terms]
    sizes = dict(zip(dict.fromkeys(name for term in names for name in term), SIZES))
    shapes = [[size for name in term for size in ([3, 2] if name == "..." else [sizes[name]])] for term in names]
    try:
        explanation = explain_einsum(text, *filter(None, shapes))
    except ValueError:
        assert catches, f"{path.name} holds a broken equation that no cell expects to fail: {text}"
        return
    assert [list(term) for term in explanation.inputs] == names or "..." in text
    assert explanation.verify()


def test_equations_were_found():
    assert sum(path.stem.startswith("05") for path, *_ in CASES) >= 15
