"""The path through each notebook: short enough to finish, exercises where they are taught, the rest folded, no word
before its definition."""

import re
from pathlib import Path

import nbformat
import pytest

from reading import EXERCISE, counts, minutes, part, sections, tags

ROOT = Path(__file__).resolve().parents[1]

PATHS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
LONGER = {"06", "07", "10"}  # core paths of 75 minutes
each = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def prose(cells: list) -> str:
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@each
def test_the_header_says_how_long_it_takes(path):
    notebook = read(path)
    core, deeper = (minutes(part(notebook, deeper=which)) for which in (False, True))
    assert f"**Time:** {core} minutes; with everything in *Going deeper*, {core + deeper}." in notebook.cells[0].source
    assert core <= (75 if path.stem[:2] in LONGER else 60)


@each
def test_the_core_path_is_short(path):
    words, code, _ = counts(part(read(path), deeper=False))
    assert words <= 1_500
    assert code <= 32


@each
def test_going_deeper_is_folded_and_starts_its_cell(path):
    for cell, is_deeper in sections(read(path)):
        if cell.cell_type == "markdown" and "Going deeper" in re.sub(r"\*Going deeper\*", "", cell.source):
            assert re.match(r"## Going deeper: \S", cell.source), cell.source
            assert is_deeper
            assert cell.metadata["jp-MarkdownHeadingCollapsed"] is True, "fold it in JupyterLab"
        if cell.cell_type == "markdown":
            assert not re.search(r"\n##? ", cell.source), "a heading starts its own cell"


@each
def test_predictions_are_folded_and_their_first_line_gives_nothing_away(path):
    notebook = read(path)
    predicted = [cell for cell in notebook.cells if "predict" in tags(cell)]
    assert len(predicted) >= 2
    for index, cell in enumerate(notebook.cells):
        if "predict" not in tags(cell):
            continue
        assert cell.metadata.jupyter.outputs_hidden, cell.source
        assert "**Predict" in notebook.cells[index - 1].source, cell.source
        data = cell.outputs[0].get("data", {})
        text = "".join(cell.outputs[0].get("text", data.get("text/plain", "")))
        assert text.startswith("Answer") or "<img" in "".join(data.get("text/html", "")), cell.source


@each
def test_exercises_stand_where_they_are_taught(path):
    notebook = read(path)
    kinds = [("exercise" if "exercise" in tags(cell) else "other") for cell in notebook.cells]
    places = [index for index, kind in enumerate(kinds) if kind == "exercise"]
    assert 3 <= len(places) <= 6
    assert places[0] < 0.6 * len(kinds), "the first exercise comes right after the section that teaches it"
    core = prose(part(notebook, deeper=False))
    assert len(EXERCISE.findall(core)) >= 2
    numbers = [int(n) for n in re.findall(r"(?m)^### Exercise (\d+)", prose(notebook.cells))]
    assert numbers == list(range(1, len(places) + 1))


@each
def test_solutions_say_that_they_are_solutions(path):
    for cell in read(path).cells:
        if "solution" in tags(cell):
            assert re.search(r'(?m)^print\("Solution:", check_\w+\(solution_\w+\)\)$', cell.source), cell.source


# Words: 00 holds a glossary, a table of (term, meaning, notebook). A term is bold where its notebook defines it.

ROW = re.compile(r"(?m)^\| \*\*([^*|]+)\*\* \| [^|]+ \| \[(\d\d)\]")


def glossary() -> dict[str, str]:
    return dict(ROW.findall(prose(read(PATHS[0]).cells)))


def mentions(term: str, text: str) -> bool:
    text = re.sub(r"`[^`]*`|\$[^$]*\$|\[[^\]]*\]\([^)]*\)|^#.*$", "", text, flags=re.MULTILINE)
    return bool(re.search(rf"\b{re.escape(term)}(s|es)?\b", text, re.IGNORECASE))


def test_the_glossary_is_small_and_each_notebook_defines_something():
    terms = glossary()
    assert 25 <= len(terms) <= 60
    assert set(terms.values()) == {path.stem[:2] for path in PATHS}


@pytest.mark.parametrize(("term", "number"), glossary().items())
def test_a_term_is_defined_in_bold_on_its_core_path_and_not_used_before(term, number):
    by_number = {path.stem[:2]: path for path in PATHS}
    core = prose(part(read(by_number[number]), deeper=False)[1:])
    defined = re.search(rf"\*\*{re.escape(term)}(s|es)?\*\*", core, re.IGNORECASE)
    assert defined, f"{term} is not defined in {number}"
    for path in (path for path in PATHS if "00" < path.stem[:2] < number):
        assert not mentions(term, prose(part(read(path), deeper=False)[1:])), f"{path.stem} uses {term}"
