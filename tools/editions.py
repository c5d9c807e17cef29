"""Write the notebooks in three editions, from the one source: python run.py editions [--out DIR]

student/     without solutions and without outputs, so that predictions are real; static pictures stay
instructor/  with solutions open, points, minutes, and the mistakes that each check names
nbgrader/    a course directory: exercises as answer cells, checks as locked tests with points
"""

import argparse
import ast
import copy
import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

from attnlib import checks
from reading import EXERCISE, minutes, part, tags

ROOT = Path(__file__).resolve().parents[1]
OF_SOLUTIONS = re.compile(r"<!-- solutions -->.*?<!-- /solutions -->\s*", re.DOTALL)  # prose that needs them below
INSTALL = "pip install PATH_OF_YOUR_CLONE"  # in the set-up cell, until an address is known
CHECK = re.compile(r"\b(check_\w+)\((\w+)\)")


def points(statement: str) -> int:
    """One point for each filled circle of "### Exercise 2 ●●○ (10 min)"."""
    return EXERCISE.search(statement)[1].count("●")


def without_solutions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy that neither holds solutions nor speaks of them."""
    notebook = copy.deepcopy(notebook)
    notebook.cells = [cell for cell in notebook.cells if "solution" not in tags(cell)]
    for cell in notebook.cells:
        cell.source = OF_SOLUTIONS.sub("", cell.source)
    return notebook


def student(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook to hand out."""
    notebook = without_solutions(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code" and "show_image(" not in cell.source:
            cell.outputs, cell.execution_count = [], None
    return notebook


def instructor(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook to teach from."""
    notebook = copy.deepcopy(notebook)
    core, deeper = (minutes(part(notebook, deeper=which)) for which in (False, True))
    total = sum(points(f"### {found}") for found in re.findall(r"(?m)^### (Exercise .*)", _prose(notebook)))
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if "solution" in tags(cell):
            cell.metadata.pop("jupyter", None)
            cell.metadata.tags = [tag for tag in cell.metadata.tags if tag != "hide-input"]
            check = getattr(checks, CHECK.search(cell.source)[1])
            sentences = list(dict.fromkeys(mistake.sentence for mistake in check.mistakes))
            named = "\n".join(f"- {sentence}" for sentence in sentences)
            cells.append(new_markdown_cell(f"**Instructor:** the check names {len(sentences)} mistakes.\n\n{named}"))
    note = f"**Instructor:** core path {core} minutes, going deeper {deeper}; exercises worth {total} points."
    notebook.cells = [cells[0], new_markdown_cell(note), *cells[1:]]
    return notebook


def nbgrader(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook as nbgrader's source: each exercise an answer cell, its check a locked test worth points."""
    solutions = [cell for cell in notebook.cells if "solution" in tags(cell)]
    notebook = without_solutions(notebook)
    statement, cells = "", []
    for cell in notebook.cells:
        statement = cell.source if cell.cell_type == "markdown" else statement
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "exercise" not in tags(cell):
            cells.append(cell)
            continue
        check, answer = CHECK.search(cell.source).groups()
        cells.append(_graded(_answer(cell.source, answer, solutions.pop(0).source), f"answer_{answer}", solution=True))
        test = f"verdict = {check}({answer})\nprint(verdict)\nverdict.require();"
        cells.append(_graded(test, f"test_{answer}", points=points(statement)))
    notebook.cells = cells
    return notebook


def _prose(notebook: nbformat.NotebookNode) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def _answer(stub: str, name: str, solution: str) -> str:
    """The stub with the solution's body in it, between the marks that nbgrader cuts out."""
    before, after = (
        next(n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)) for text in (stub, solution)
    )
    first = stub.splitlines()[before.lineno - 1 : before.body[-1].lineno - 1]  # the line of def, and the docstring
    start = after.body[1 if ast.get_docstring(after) else 0].lineno
    body = textwrap.dedent("\n".join(solution.splitlines()[start - 1 : after.end_lineno])).replace(after.name, name)
    marked = f"### BEGIN SOLUTION\n{body}\n### END SOLUTION"
    return "\n".join([*first, textwrap.indent(marked, "    ")])


def _graded(source: str, grade_id: str, *, points: int | None = None, solution: bool = False) -> nbformat.NotebookNode:
    data = {"grade": not solution, "grade_id": grade_id, "locked": not solution, "schema_version": 3}
    data |= {"solution": solution, "task": False} | ({} if solution else {"points": points})
    return new_code_cell(source, metadata={"nbgrader": data})


def address(folder: Path = ROOT) -> str | None:
    """Where the git remote says that this repository is, as a page to visit; None without a remote."""
    command = ["git", "-C", str(folder), "remote", "get-url", "origin"]
    found = subprocess.run(command, capture_output=True, text=True).stdout.strip().removesuffix(".git")
    page = re.sub(r"^(?:ssh://)?git@([^:/]+)[:/]", r"https://\1/", found)
    return page if page.startswith("https://") else None


def with_address(notebook: nbformat.NotebookNode, page: str, name: str) -> nbformat.NotebookNode:
    """Add a Colab button, and tell the set-up cell what to type where attnlib is missing."""
    if page.startswith("https://github.com/"):
        path = page.removeprefix("https://github.com/")
        colab = f"https://colab.research.google.com/github/{path}/blob/main/notebooks/{name}"
        notebook.cells[0].source += f"\n\n[Open in Colab]({colab})"
    setup = next(cell for cell in notebook.cells if "setup" in tags(cell))
    setup.source = setup.source.replace(INSTALL, f"%pip install 'attnlib[plots] @ git+{page}'")
    return notebook


CONFIG = """\
c = get_config()
c.CourseDirectory.course_id = "attnlib"
c.ExecutePreprocessor.timeout = 300  # seconds for a cell; the later notebooks train small models
"""


def write(out: Path) -> None:
    """Write all three editions into ``out``."""
    page = address()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        source = nbformat.read(path, as_version=4)
        places = {"student": out / "student", "instructor": out / "instructor"}
        places["nbgrader"] = out / "nbgrader" / "source" / path.stem
        for make, folder in zip((student, instructor, nbgrader), places.values()):
            folder.mkdir(parents=True, exist_ok=True)
            edition = make(source)
            if page:
                edition = with_address(edition, page, path.name)
            nbformat.validate(edition)
            nbformat.write(edition, folder / path.name)
    (out / "nbgrader" / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8")
    shutil.copy(ROOT / "LICENSE", out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "editions", help="folder to write into (default: editions/)")
    write(parser.parse_args().out)
