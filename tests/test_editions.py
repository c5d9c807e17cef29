"""The three editions: students get no solutions, instructors get everything, and nbgrader grades what it should."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import editions
from mutants import exercises
from reading import tags

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
each = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def text(notebook: nbformat.NotebookNode) -> str:
    return "\n".join(cell.source for cell in notebook.cells)


@each
def test_students_get_no_solution_no_promise_of_one_and_no_answer_to_a_prediction(path):
    notebook = editions.student(read(path))
    assert "solution" not in text(notebook).lower()
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.outputs:
            assert "show_image(" in cell.source
    pictures = [cell for cell in notebook.cells if "show_image(" in cell.source]
    assert all("<img" in json.dumps(cell.outputs) for cell in pictures)
    stubs = [cell for cell in notebook.cells if "exercise" in tags(cell)]
    assert len(stubs) == sum("exercise" in tags(cell) for cell in read(path).cells)


@each
def test_instructors_get_open_solutions_points_minutes_and_the_named_mistakes(path):
    notebook = editions.instructor(read(path))
    assert "core path" in notebook.cells[1].source
    solutions = [i for i, cell in enumerate(notebook.cells) if "solution" in tags(cell)]
    assert solutions
    for index in solutions:
        assert "jupyter" not in notebook.cells[index].metadata
        check = exercises()[editions.CHECK.search(notebook.cells[index].source)[1]]
        assert all(mistake.sentence in notebook.cells[index + 1].source for mistake in check.mistakes)


def test_addresses_come_from_the_remote_or_are_left_out(tmp_path):
    (tmp_path / "here").mkdir()
    subprocess.run(["git", "init", "-q"], cwd=tmp_path / "here", check=True)
    assert editions.address(tmp_path / "here") is None
    assert editions.address(tmp_path) is None
    for remote in ("git@github.com:someone/attention.git", "https://github.com/someone/attention.git"):
        subprocess.run(["git", "remote", "remove", "origin"], cwd=tmp_path / "here", check=False, capture_output=True)
        subprocess.run(["git", "remote", "add", "origin", remote], cwd=tmp_path / "here", check=True)
        assert editions.address(tmp_path / "here") == "https://github.com/someone/attention"


def test_with_an_address_there_is_a_colab_button_and_a_line_to_type():
    plain = editions.student(read(PATHS[1]))
    linked = editions.with_address(copy.deepcopy(plain), "https://github.com/someone/attention", PATHS[1].name)
    assert "colab.research.google.com/github/someone/attention/blob/main/notebooks/01_" in linked.cells[0].source
    assert "%pip install" in text(linked)
    assert "git+https://github.com/someone/attention" in text(linked)
    assert "http" not in next(cell.source for cell in plain.cells if "setup" in tags(cell))


# nbgrader itself, on what the exercises need: the rest of a notebook is tested elsewhere, and takes minutes.


def only_exercises(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Keep the set-up, the imports, definitions, and the graded cells."""
    definitions = ("import ", "from ", "class ", "def ", "# attnlib notebook")
    notebook.cells = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        or "setup" in tags(cell)
        or "nbgrader" in cell.metadata
        or cell.source.startswith(definitions)
    ]
    return notebook


def named_mistake(notebook: nbformat.NotebookNode) -> tuple[int, str, str]:
    """An answer cell of this notebook, a wrong answer for it, and what its check says."""
    for index, cell in enumerate(notebook.cells):
        if cell.metadata.get("nbgrader", {}).get("solution"):
            check, answer = editions.CHECK.search(notebook.cells[index + 1].source).groups()
            table = exercises()[check].reference.__module__  # its helpers are what the expressions are made of
            for mistake in (mistake for mistake in exercises()[check].mistakes if mistake.code):
                names = ", ".join(mistake.function.__code__.co_varnames)
                source = f"import torch\nfrom {table} import *\n\n\ndef {answer}({names}):\n    return {mistake.code}"
                place: dict = {}
                exec(source, place)
                if exercises()[check](place[answer]).message == mistake.sentence:
                    return index, source, mistake.sentence
    raise LookupError("no check of this notebook names a mistake that can be written as an answer")


def test_nbgrader_gives_full_points_to_what_is_solved_none_to_stubs_and_mistakes_and_names_these(tmp_path):
    from nbgrader.api import Gradebook

    (tmp_path / "nbgrader_config.py").write_text(editions.CONFIG)
    source, release = tmp_path / "source" / "series", tmp_path / "release" / "series"
    solved, other = (tmp_path / "submitted" / student / "series" for student in ("solved", "other"))
    for folder in (source, solved, other):
        folder.mkdir(parents=True)
    for path in PATHS:
        notebook = only_exercises(editions.nbgrader(read(path)))
        for folder in (source, solved):
            nbformat.write(notebook, folder / path.name)
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # nbgrader calls alembic
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": tools}
    run = [sys.executable, "-m", "nbgrader"]
    subprocess.run([*run, "generate_assignment", "series"], cwd=tmp_path, env=environment, check=True, timeout=600)
    said = {}
    for path in PATHS:  # this student makes one named mistake, and leaves the rest as it came
        assert not re.search("solution_|BEGIN SOLUTION", (release / path.name).read_text(encoding="utf-8"))
        notebook = read(release / path.name)
        index, wrong, said[path.name] = named_mistake(notebook)
        notebook.cells[index].source = wrong
        nbformat.write(notebook, other / path.name)
    subprocess.run([*run, "autograde", "series"], cwd=tmp_path, env=environment, check=True, timeout=600)
    with Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as book:
        for student in ("solved", "other"):
            graded = {notebook.name: notebook for notebook in book.find_submission("series", student).notebooks}
            assert set(graded) == {path.stem for path in PATHS}
            for notebook in graded.values():
                assert notebook.score == (notebook.max_score if student == "solved" else 0)
                assert notebook.max_score > 0
    for path in PATHS:
        cells = read(tmp_path / "autograded" / "other" / "series" / path.name).cells
        outputs = json.dumps([cell.get("outputs") for cell in cells], ensure_ascii=False)
        assert json.dumps(said[path.name], ensure_ascii=False)[1:-1] in outputs
