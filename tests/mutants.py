"""Mechanical mutants of a function: every one-place change of its syntax tree that a slip of the keyboard could make.

``python tests/mutants.py`` writes the table of what the checks reject into README.md and notebook 00.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat

from attnlib import checks
from attnlib.checks.exercise import IN_EVERY_TABLE, Exercise

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- kill table -->", "<!-- end of the kill table -->"
OPERATORS = {
    ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Mult: [ast.Div], ast.Div: [ast.Mult], ast.Pow: [ast.Mult],
    ast.FloorDiv: [ast.Mod], ast.MatMult: [ast.Mult], ast.BitAnd: [ast.BitOr], ast.BitOr: [ast.BitAnd],
    ast.Lt: [ast.LtE, ast.Gt], ast.LtE: [ast.Lt, ast.GtE], ast.Gt: [ast.GtE, ast.Lt], ast.GtE: [ast.Gt, ast.LtE],
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.And: [ast.Or], ast.Or: [ast.And],
}  # fmt: skip
NAMES = {
    "sum": ["mean", "amax"], "mean": ["sum"], "amax": ["amin", "sum"], "max": ["min", "sum"], "maximum": ["minimum"],
    "tril": ["triu"], "triu": ["tril"], "softmax": ["log_softmax", "sigmoid"], "logsumexp": ["sum", "amax"],
    "exp": ["exp2", "log"], "log": ["log2", "exp"], "abs": ["square"], "any": ["all"], "argmax": ["argmin"],
    "stack": ["cat"], "cat": ["stack"], "mT": ["mH.mT"], "ones": ["zeros"], "sigmoid": ["tanh"],
}  # fmt: skip


def mutants(function: Callable) -> Iterator[tuple[str, Callable]]:
    """(the line that differs, function) of each mutant that compiles, without repetitions."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    definition.returns = None
    for argument in definition.args.args:
        argument.annotation = None
    if ast.get_docstring(definition):
        definition.body = definition.body[1:]
    parameters = [argument.arg for argument in definition.args.args]
    right = ast.unparse(tree)
    seen = {right}
    for node in ast.walk(tree):
        for field, value in ast.iter_fields(node):
            places = [(value, i) for i in range(len(value))] if isinstance(value, list) else [(vars(node), field)]
            for holder, place in places:
                original = holder[place]
                for changed in changes(original, parameters):
                    holder[place] = changed
                    source = ast.unparse(ast.fix_missing_locations(tree))
                    if source not in seen:
                        seen.add(source)
                        names = dict(IN_EVERY_TABLE | function.__globals__)
                        exec(source, names)
                        line = next(line for line in source.splitlines() if line not in right.splitlines())
                        yield line.strip(), names[function.__name__]
                holder[place] = original


def changes(node: ast.AST, parameters: list[str]) -> Iterator[ast.AST]:
    """What a slip makes of a node."""

    def but(**fields: object) -> ast.AST:
        return type(node)(**dict(ast.iter_fields(node)) | fields)

    def without(items: list, i: int) -> list:
        return items[:i] + items[i + 1 :]

    if isinstance(node, ast.BinOp):
        yield from (but(op=operator()) for operator in OPERATORS.get(type(node.op), []))
        yield node.left
        if not isinstance(node.op, (ast.Add, ast.Mult, ast.BitAnd, ast.BitOr)):
            yield but(left=node.right, right=node.left)
    elif isinstance(node, ast.Compare):
        yield from (but(ops=[operator()]) for operator in OPERATORS.get(type(node.ops[0]), []))
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield but(value=not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield from (but(value=node.value + 1), but(value=node.value - 1))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
        for i in (i for i in range(len(text) - 1) if text[i : i + 2].isalpha()):
            yield but(value=text[:i] + text[i + 1] + text[i] + text[i + 2 :])
    elif isinstance(node, ast.Attribute):
        yield from (but(attr=name) for name in NAMES.get(node.attr, []))
        if node.attr in ("mT", "T"):
            yield node.value
    elif isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute):  # drop the call, and keep what it was called on
            is_module = isinstance(node.func.value, ast.Name) and node.func.value.id in ("torch", "F", "math")
            yield from node.args[:1] if is_module else [node.func.value]
        yield from (but(keywords=without(node.keywords, i)) for i in range(len(node.keywords)))
        yield from (but(args=without(node.args, i)) for i in range(len(node.args)))
        for i in range(len(node.args) - 1):
            yield but(args=[*node.args[:i], node.args[i + 1], node.args[i], *node.args[i + 2 :]])
    elif isinstance(node, ast.Slice):
        yield from (but(**{side: None}) for side in ("lower", "upper"))
    elif isinstance(node, ast.Subscript):
        yield node.value
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in parameters:
        yield from (but(id=other) for other in parameters if other != node.id)
    elif isinstance(node, (ast.AugAssign, ast.Expr)):
        yield ast.Pass()


def exercises() -> dict[str, Exercise]:
    return {name: check for name, check in vars(checks).items() if isinstance(check, Exercise)}


def notebooks() -> dict[str, str]:
    """The number of the first notebook that calls a check."""
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"), reverse=True)
    return {name: path.name[:2] for path in paths for name in re.findall(r"check_\w+(?=\()", path.read_text("utf-8"))}


def kill_table(equivalent: dict[str, dict[str, str]]) -> str:
    """Markdown: for each exercise how many mistakes are named, and how many mechanical mutants are rejected."""
    number = notebooks()
    counts = {
        name: (len(check.mistakes), sum(line not in equivalent.get(name, {}) for line, _ in mutants(check.reference)))
        for name, check in sorted(exercises().items(), key=lambda item: (number[item[0]], item[0]))
    }
    rows = [f"| {number[name]} | `{name}` | {named} | {killed} |" for name, (named, killed) in counts.items()]
    named, killed = map(sum, zip(*counts.values()))
    head = ["| notebook | check | named mistakes | mutants |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, f"| | **all {len(rows)}** | **{named}** | **{killed}** |"])


def with_table(text: str, table: str) -> str:
    """The text, with this table between the markers if it has them."""
    before, start, rest = text.partition(START)
    return f"{before}{START}\n{table}\n{END}{rest.partition(END)[2]}" if start else text


if __name__ == "__main__":
    from equivalent_mutants import EQUIVALENT

    table, readme = kill_table(EQUIVALENT), ROOT / "README.md"
    readme.write_text(with_table(readme.read_text("utf-8"), table), "utf-8")
    notebook = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    for cell in (cell for cell in notebook.cells if START in cell.source):
        cell.source = with_table(cell.source, table)
    nbformat.write(notebook, ROOT / "notebooks" / "00_start_here.ipynb")
