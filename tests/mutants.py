"""Mechanical mutants of a function: every one-place change of its syntax tree that a slip of the keyboard could make.

``python tests/mutants.py`` writes the table of what the checks reject into README.md and notebook 00.
"""

import ast
import copy
import inspect
import json
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
    """(source, function) of each mutant that compiles, without repetitions."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    definition.returns = None
    for argument in definition.args.args:
        argument.annotation = None
    if ast.get_docstring(definition):
        definition.body = definition.body[1:]
    parameters = [argument.arg for argument in definition.args.args]
    seen = {ast.unparse(tree)}
    for index, node in enumerate(ast.walk(tree)):
        for change in changes(node, parameters):
            other = copy.deepcopy(tree)
            changed = change(next(n for i, n in enumerate(ast.walk(other)) if i == index))
            if changed is not None:  # an expression that takes the node's place
                other = _Replace(index, changed).visit(other)
            source = ast.unparse(ast.fix_missing_locations(other))
            if source not in seen:
                seen.add(source)
                names = dict(IN_EVERY_TABLE | function.__globals__)
                exec(source, names)
                yield source, names[function.__name__]


def changes(node: ast.AST, parameters: list[str]) -> Iterator[Callable[[ast.AST], ast.AST | None]]:
    """What can go wrong at a node: functions that change a copy of it in place, or return what replaces it."""
    if isinstance(node, ast.BinOp):
        for operator in OPERATORS.get(type(node.op), []):
            yield lambda n, operator=operator: setattr(n, "op", operator())
        yield lambda n: n.left
        if not isinstance(node.op, (ast.Add, ast.Mult, ast.BitAnd, ast.BitOr)):
            yield lambda n: ast.BinOp(n.right, n.op, n.left)
    elif isinstance(node, ast.Compare):
        for operator in OPERATORS.get(type(node.ops[0]), []):
            yield lambda n, operator=operator: setattr(n, "ops", [operator()])
    elif isinstance(node, ast.UnaryOp):
        yield lambda n: n.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield lambda n: setattr(n, "value", not n.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield lambda n: setattr(n, "value", n.value + 1)
        yield lambda n: setattr(n, "value", n.value - 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        for i in (i for i in range(len(node.value) - 1) if node.value[i : i + 2].isalpha()):
            yield lambda n, i=i: setattr(n, "value", n.value[:i] + n.value[i + 1] + n.value[i] + n.value[i + 2 :])
    elif isinstance(node, ast.Attribute):
        for name in NAMES.get(node.attr, []):
            yield lambda n, name=name: setattr(n, "attr", name)
        if node.attr in ("mT", "T"):
            yield lambda n: n.value
    elif isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute):
            yield lambda n: n.func.value if not isinstance(n.func.value, ast.Name) or n.func.value.id not in (
                "torch", "F", "math",
            ) else n.args[0] if n.args else n  # fmt: skip
        for i in range(len(node.keywords)):
            yield lambda n, i=i: n.keywords.pop(i) and None
        for i in range(len(node.args)):
            yield lambda n, i=i: n.args.pop(i) and None
        for i in range(len(node.args) - 1):
            yield lambda n, i=i: n.args.insert(i, n.args.pop(i + 1))
    elif isinstance(node, ast.Slice):
        if node.lower:
            yield lambda n: setattr(n, "lower", None)
        if node.upper:
            yield lambda n: setattr(n, "upper", None)
    elif isinstance(node, ast.Subscript):
        yield lambda n: n.value
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in parameters:
        for other in (p for p in parameters if p != node.id):
            yield lambda n, other=other: setattr(n, "id", other)
    elif isinstance(node, (ast.FunctionDef, ast.With, ast.For)):
        for i, statement in enumerate(node.body):
            if isinstance(statement, (ast.AugAssign, ast.Expr)):
                yield lambda n, i=i: n.body.__setitem__(i, ast.Pass())


class _Replace(ast.NodeTransformer):
    """Put an expression in the place of the node with this index in the order of ``ast.walk``."""

    def __init__(self, index: int, expression: ast.AST) -> None:
        self.index, self.expression, self.target = index, expression, None

    def visit(self, node: ast.AST) -> ast.AST:
        if self.target is None:
            self.target = next(n for i, n in enumerate(ast.walk(node)) if i == self.index)
        return self.expression if node is self.target else self.generic_visit(node)


def exercises() -> dict[str, Exercise]:
    return {name: check for name, check in vars(checks).items() if isinstance(check, Exercise)}


def notebook_of(check: str) -> str:
    """The number of the notebook that calls this check."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        if any(f"{check}(" in "".join(c["source"]) for c in cells if "exercise" in c["metadata"].get("tags", [])):
            return path.name[:2]
    raise LookupError(f"no notebook has an exercise with {check}")


def kill_table(equivalent: dict[str, dict[str, str]]) -> str:
    """Markdown: for each exercise how many mistakes are named, and how many mechanical mutants are rejected."""
    rows, total = [], [0, 0]
    for name, check in sorted(exercises().items(), key=lambda item: (notebook_of(item[0]), item[0])):
        killed = sum(source not in equivalent.get(name, {}) for source, _ in mutants(check.reference))
        rows.append(f"| {notebook_of(name)} | `{name}` | {len(check.mistakes)} | {killed} |")
        total = [total[0] + len(check.mistakes), total[1] + killed]
    head = "| notebook | check | named mistakes | mutants |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + f"\n| | **all {len(rows)}** | **{total[0]}** | **{total[1]}** |"


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
