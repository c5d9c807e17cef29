"""The way through a notebook: which cells are on the core path, and how many minutes they take."""

import re
from collections.abc import Iterator

import nbformat

HEADING = re.compile(r"(#{1,6}) (.*)")
EXERCISE = re.compile(r"(?m)^### Exercise \d+ (●○○|●●○|●●●) \((\d+) min\)")
WORDS_A_MINUTE, MINUTES_A_CELL = 120, 1.2  # as measured with readers
NOT_READ = {"setup", "solution", "exercise"}  # code that is folded, or counted with its exercise


def tags(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def words(text: str) -> int:
    """Words of prose, without code, formulas, hints, comments and the addresses of links."""
    hidden = r"```.*?```|\$\$.*?\$\$|\$[^$\n]*\$|<details>.*?</details>|<!--.*?-->|\]\([^)\s]*\)"
    return len(re.findall(r"\w+", re.sub(hidden, "", text, flags=re.DOTALL)))


def sections(notebook: nbformat.NotebookNode) -> Iterator[tuple[nbformat.NotebookNode, bool]]:
    """Each cell, and whether it lies under a heading "Going deeper", which a reader may skip."""
    level = 0  # of the heading that we are under, 0 on the core path
    for cell in notebook.cells:
        heading = HEADING.match(cell.source) if cell.cell_type == "markdown" else None
        if heading and heading[2].startswith("Going deeper"):
            level = len(heading[1])
        elif heading and len(heading[1]) <= level:
            level = 0
        yield cell, bool(level)


def part(notebook: nbformat.NotebookNode, *, deeper: bool) -> list[nbformat.NotebookNode]:
    """The cells of the core path, or those of Going deeper."""
    return [cell for cell, is_deeper in sections(notebook) if is_deeper == deeper]


def counts(cells: list[nbformat.NotebookNode]) -> tuple[int, int, int]:
    """Words, code cells that are read, and the exercises' own minutes."""
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    code = [
        cell
        for cell in cells
        if cell.cell_type == "code" and not tags(cell) & NOT_READ and "%watermark" not in cell.source
    ]
    return words(prose), len(code), sum(int(minutes) for _, minutes in EXERCISE.findall(prose))


def minutes(cells: list[nbformat.NotebookNode]) -> int:
    """How long a reader takes: words / 120 + 1.2 a code cell + the exercises' own minutes."""
    prose, code, exercises = counts(cells)
    return round(prose / WORDS_A_MINUTE + MINUTES_A_CELL * code + exercises)
