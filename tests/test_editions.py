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


def test_addresses_come_from_the_remote_or_are_omitted(tmp_path):
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


# nbgrader itself. Each notebook is generated as it is handed out; the graded cells of all of them, with the definitions
# that they need, are then graded as one notebook, because each graded notebook starts a kernel that imports torch. It
# holds them twice: to be solved, and to be left as they came but for one named mistake in each notebook.


def only_exercises(notebook: nbformat.NotebookNode, prefix: str) -> list:
    """The graded cells of a notebook, its imports, and what answers use; the prefix makes the names of cells unique."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    graded = "\n".join(cell.source for cell in code if "nbgrader" in cell.metadata)

    def is_needed(cell) -> bool:
        if {"setup", "nbgrader"} & {*tags(cell), *cell.metadata} or cell.source.startswith(("import ", "from ")):
            return True
        defined = re.findall(r"(?m)^(?:class|def) (\w+)", cell.source)
        return any(re.search(rf"\b{name}\b", graded) for name in defined)

    kept = [cell for cell in code if is_needed(cell)]
    for cell in kept:
        cell.id = f"{prefix}_{cell.id}"
        if data := cell.metadata.get("nbgrader"):
            data["grade_id"] = f"{prefix}_{data['grade_id']}"
    return kept


def named_mistake(cells: list) -> tuple[int, str, str]:
    """An answer among these cells, a wrong answer for it, and what its check says."""
    for index, cell in enumerate(cells):
        if cell.metadata.get("nbgrader", {}).get("solution"):
            check, answer = editions.CHECK.search(cells[index + 1].source).groups()
            table = exercises()[check].reference.__module__  # its helpers are what the expressions are made of
            for mistake in (mistake for mistake in exercises()[check].mistakes if mistake.code):
                names = ", ".join(mistake.function.__code__.co_varnames)
                source = f"import torch\nfrom {table} import *\n\n\ndef {answer}({names}):\n    return {mistake.code}"
                place: dict = {}
                exec(source, place)
                if exercises()[check](place[answer]).message == mistake.sentence:
                    return index, source, mistake.sentence
    raise LookupError("no check of this notebook names a mistake that can be written as an answer")


def test_nbgrader_gives_full_points_to_what_is_solved_none_to_stubs_and_mistakes_and_names_these(tmp_path, monkeypatch):
    from nbgrader.api import Gradebook
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import PyFileConfigLoader

    (tmp_path / "nbgrader_config.py").write_text(editions.CONFIG)
    folders = [tmp_path / path for path in ("source/series", "source/exam", "submitted/student/exam")]
    for folder in folders:
        folder.mkdir(parents=True)
    handed_out, exam, submitted = folders
    together = nbformat.v4.new_notebook(metadata=read(PATHS[0]).metadata)
    for path in PATHS:
        nbformat.write(editions.nbgrader(read(path)), handed_out / path.name)
    for kind in ("solved", "other"):
        for path in PATHS:
            together.cells += only_exercises(editions.nbgrader(read(path)), f"{kind}_{path.stem[:2]}")
    nbformat.write(together, exam / "exam.ipynb")
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    monkeypatch.setenv("PATH", tools)  # nbgrader calls alembic
    config = PyFileConfigLoader("nbgrader_config.py", path=str(tmp_path)).load_config()
    config.CourseDirectory.root = str(tmp_path)
    api = NbGraderAPI(config=config)

    for assignment in ("series", "exam"):
        done = api.generate_assignment(assignment)
        assert done["success"], done["log"]
    for path in PATHS:
        release = tmp_path / "release" / "series" / path.name
        assert not re.search("solution_|BEGIN SOLUTION", release.read_text(encoding="utf-8"))
    answers, said = read(tmp_path / "release" / "exam" / "exam.ipynb"), []
    for cell, source in zip(answers.cells, together.cells, strict=True):
        if cell.metadata.get("nbgrader", {}).get("grade_id", "").startswith("solved"):
            cell.source = source.source
    for path in PATHS:
        of_notebook = [
            cell
            for cell in answers.cells
            if cell.metadata.get("nbgrader", {}).get("grade_id", "").startswith(f"other_{path.stem[:2]}")
        ]
        index, wrong, sentence = named_mistake(of_notebook)
        of_notebook[index].source = wrong
        said.append(sentence)
    nbformat.write(answers, submitted / "exam.ipynb")
    done = api.autograde("exam", "student")
    assert done["success"], done["log"]
    with Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as book:
        assert {notebook.name for notebook in book.find_assignment("series").notebooks} == {path.stem for path in PATHS}
        (graded,) = book.find_submission("exam", "student").notebooks
        prefixes = {grade.name.partition("_test")[0] for grade in graded.grades}
        assert prefixes == {f"{kind}_{path.stem[:2]}" for kind in ("solved", "other") for path in PATHS}
        for grade in graded.grades:
            assert grade.score == (grade.max_score if grade.name.startswith("solved") else 0), grade.name
            assert grade.max_score > 0
    cells = read(tmp_path / "autograded" / "student" / "exam" / "exam.ipynb").cells
    outputs = json.dumps([cell.get("outputs") for cell in cells], ensure_ascii=False)
    for sentence in said:
        assert json.dumps(sentence, ensure_ascii=False)[1:-1] in outputs
