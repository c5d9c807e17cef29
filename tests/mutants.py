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
SYMMETRIC = ("transpose", "maximum", "min")  # the order of their arguments changes nothing

# Mutants that change nothing on any input that the exercise allows: the line that differs, and the reason.
ROWS = """
same: return bool((b - a).abs().max() <= 1e-05)  # an absolute value has no sign
same: return bool((a - b).abs().max() < 1e-05)  # rounding decides whether a difference is exactly 1e-05
cosine_context: directions = tokens / tokens.norm(dim=1, keepdim=True)  # tokens have two axes, so 1 is the last
cosine_context: return torch.softmax(directions @ directions.T, dim=1) @ tokens  # scores have two axes, 1 is the last
scaled_weights: scores = query @ key.T / query.shape[1] ** 0.5  # a query has two axes, so 1 is the last
scaled_weights: scores = query @ key.T / key.shape[-1] ** 0.5  # queries and keys share head_dim
scaled_weights: return torch.softmax(scores, dim=1)  # scores have two axes, so 1 is the last
self_attention: scores = query @ key.T / key.shape[1] ** 0.5  # a key has two axes, so 1 is the last
self_attention: return torch.softmax(scores, dim=1) @ value  # scores have two axes, so 1 is the last
leak: difference = layer(x) - layer(changed)  # an absolute value has no sign
join_heads: return heads.transpose(1, 2).flatten(2)  # of four axes, 2 is the last but one
multi_head: batch, tokens, d_out = key.shape  # query, key and value have the same shape
multi_head: batch, tokens, d_out = value.shape  # query, key and value have the same shape
multi_head: scores = query @ key.mT / key.shape[-1] ** 0.5  # query, key and value have the same head_dim
multi_head: scores = query @ key.mT / value.shape[-1] ** 0.5  # query, key and value have the same head_dim
multi_head: return (weights @ value).transpose(1, 2).flatten(2)  # of four axes, 2 is the last but one
loops_equation: return 'head uqery key -> head key'  # a summed axis may have any name
loops_equation: return 'head qeury key -> head key'  # a summed axis may have any name
loops_equation: return 'head qurey key -> head key'  # a summed axis may have any name
loops_equation: return 'head queyr key -> head key'  # a summed axis may have any name
topk_attention: scores, ids = (query @ key.mT / query.shape[1] ** 0.5).topk(top_k)  # a query has two axes
topk_attention: scores, ids = (query @ key.mT / key.shape[-1] ** 0.5).topk(top_k)  # queries are as long as keys
topk_attention: weights = torch.softmax(scores, dim=1)  # scores have two axes, so 1 is the last
hash: return torch.cat([projected, -projected], dim=-1).argmax(dim=1)  # a matrix has two axes, so 1 is the last
hash: return torch.cat([projected, -projected], dim=1).argmax(dim=-1)  # a matrix has two axes, so 1 is the last
sort_and_undo: undo = torch.empty_like(order).scatter_(-1, order, places)  # a vector has only one axis
online_step: return [new_top, total * (top - new_top).exp() + (scores - new_top).exp().sum()]  # a list says the same
overlapping: return torch.softmax(once, dim=-1) @ values  # a vector has only one axis
cache_step: visible = torch.ones_like(scores, dtype=torch.bool).tril(len(past_value))  # as many values as keys
cache_step: scores = query @ keys.T / query.shape[1] ** 0.5  # a query has two axes, so 1 is the last
cache_step: scores = query @ keys.T / key.shape[-1] ** 0.5  # queries and keys share head_dim
cache_step: scores = query @ keys.T / past_key.shape[-1] ** 0.5  # queries and keys share head_dim
cache_step: return torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=1) @ values  # scores have two axes
head_shares: before, after = (weights.diagonal(offset, dim1=-2, dim2=-1).mean(dim=1) for offset in (-1, 1))  # two axes
head_shares: return torch.stack([before, after, weights[:, 1:, 0].mean(dim=1)], dim=-1)  # a column has two axes
head_shares: return torch.stack([before, after, weights[:, 1:, 0].mean(dim=-1)], dim=1)  # 1 is the last axis
topk_weights: best, ids = scores.topk(min(top_k, scores.shape[-1]))  # topk takes the last axis
search: keys = F.normalize(documents)[None, None]  # normalize takes axis 1, and a matrix has two
search: keys = F.normalize(documents, dim=1)[None, None]  # a matrix has two axes, so 1 is the last
search: memory = KVMemory(len(documents), num_heads=1, head_dim=documents.shape[1])  # a matrix has two axes
search: memory = KVMemory(len(documents), num_heads=1, head_dim=questions.shape[-1])  # documents are as long
search: return memory.search(questions[None, None], top_k).ids[-1, 0]  # there is one row
search: return memory.search(questions[None, None], top_k).ids[0, -1]  # there is one head
"""
EQUIVALENT = {tuple(f"check_{row}".partition("  # ")[0].split(": ", 1)) for row in ROWS.strip().splitlines()}


def mutants(function: Callable) -> Iterator[tuple[str, Callable]]:
    """(the line that differs, function) of each mutant that compiles, without repetitions."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    definition.returns, definition.body = None, definition.body[1:]  # without the docstring
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
        for i in range(0 if ast.unparse(node.func).split(".")[-1] in SYMMETRIC else len(node.args) - 1):
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


def kill_table() -> str:
    """Markdown: for each exercise how many mistakes are named, and how many mechanical mutants are rejected."""
    number = notebooks()
    counts = {
        name: (len(check.mistakes), sum((name, line) not in EQUIVALENT for line, _ in mutants(check.reference)))
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
    table, readme = kill_table(), ROOT / "README.md"
    readme.write_text(with_table(readme.read_text("utf-8"), table), "utf-8")
    notebook = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    for cell in (cell for cell in notebook.cells if START in cell.source):
        cell.source = with_table(cell.source, table)
    nbformat.write(notebook, ROOT / "notebooks" / "00_start_here.ipynb")
