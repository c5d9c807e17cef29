"""The rules that every notebook keeps, so that it can be learnt from, compared and copied."""

import ast
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from execute import source_hash
from reading import words

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TITLE = re.compile(r"# (\d\d) · \S")
ANYWHERE_TAGS = {
    "setup", "copyable", "exercise", "solution", "broken", "interactive", "predict", "hide-input",
    "nbval-ignore-output", "raises-exception",
}  # fmt: skip


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def cells(path: Path, kind: str = "code", tag: str | None = None) -> list:
    return [cell for cell in read(path).cells if cell.cell_type == kind and (tag is None or tag in tags(cell))]


def lines(cell) -> list[str]:
    return [line for line in cell.source.splitlines() if line.strip()]


def prose(path: Path) -> str:
    return "\n".join(cell.source for cell in cells(path, "markdown"))


each = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def test_the_series_is_numbered_without_gaps():
    assert [int(path.stem[:2]) for path in PATHS] == list(range(len(PATHS)))


@each
def test_was_executed_after_its_last_edit(path):
    notebook = read(path)
    assert notebook.metadata["attnlib"]["source_hash"] == source_hash(notebook), f"python run.py execute {path}"
    counts = [cell.execution_count for cell in cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@each
def test_holds_no_state_of_the_machine_that_ran_it(path):
    notebook = read(path)
    assert set(notebook.metadata) == {"kernelspec", "language_info", "attnlib"}
    assert notebook.metadata.kernelspec.name == "python3"
    text = path.read_text(encoding="utf-8")
    assert len(text) < 1_500_000
    for pattern in (r"/home/\w", r"/Users/\w", r"/tmp/", r"/root/", r"[A-Z]:\\\\Users", r"at 0x[0-9a-f]{8}"):
        assert not re.search(pattern, text), pattern
    assert "widget-view" not in text


@each
def test_stored_outputs_hold_no_errors_and_no_warnings(path):
    for cell in cells(path):
        for output in cell.outputs:
            assert output.output_type != "error" or "raises-exception" in tags(cell), cell.source
            assert output.get("name") != "stderr" or "nbval-ignore-output" in tags(cell), cell.source


@each
def test_opens_with_what_a_reader_needs(path):
    first = read(path).cells[0]
    assert TITLE.match(first.source)
    assert first.source.startswith(f"# {path.stem[:2]} · ")
    for part in ("**Question.**", "**You will be able to**", "**Before this:**", "**Time:**", "**Sources:**"):
        assert part in first.source, part
    assert len(re.findall(r"(?m)^- ", first.source)) == 3, "three things that the reader will be able to do"


@each
def test_has_the_same_set_up_cell_and_the_watermark_last(path):
    (setup,) = cells(path, tag="setup")
    assert setup.source == cells(PATHS[0], tag="setup")[0].source
    assert cells(path)[0] == setup
    last = cells(path)[-1]
    assert "%watermark" in last.source
    assert "nbval-ignore-output" in tags(last)


@pytest.mark.skipif(sys.platform != "linux", reason="asks GNU's OpenMP, which torch uses on Linux")
def test_after_the_set_up_cell_torchs_waiting_threads_sleep():
    """Threads that spin make several kernels on a few cores slow each other down."""
    source = cells(PATHS[0], tag="setup")[0].source + "\nassert 'torch' not in sys.modules\nimport torch"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment["OMP_DISPLAY_ENV"] = "VERBOSE"
    run = subprocess.run(
        [sys.executable, "-c", source], check=True, capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in run.stderr


@each
def test_code_cells_are_short_and_clean(path):
    code = [cell for cell in cells(path) if "setup" not in tags(cell)]
    assert statistics.median(len(lines(cell)) for cell in code) <= 6
    for cell in code:
        assert 0 < len(lines(cell)) <= 25, cell.source
        assert tags(cell) <= ANYWHERE_TAGS, tags(cell) - ANYWHERE_TAGS
        for pattern in ("filterwarnings", "pip install", "%%time", "TODO"):
            assert pattern not in cell.source, pattern


@each
def test_a_cell_without_output_is_one_that_has_none(path):
    """nbval does not compare what was never executed."""
    for cell in cells(path):
        shows = re.search(r"(?m)^(print|picture|show_image|check_)\(", cell.source)
        assert cell.outputs or not shows or "nbval-ignore-output" in tags(cell), cell.source


@each
def test_prose_is_short_plain_and_local(path):
    for cell in cells(path, "markdown"):
        assert words(cell.source) <= 120, cell.source
        assert not re.search(r"!\[\s*\]\(|<img(?![^>]*alt=)", cell.source), "an image without alt text"
        assert not re.search(r"(?:src=|\]\()[\"']?https?://\S+\.(?:png|svg|jpe?g|gif|webp)", cell.source)


@each
def test_has_every_part(path):
    assert 1_200 <= words(prose(path)) <= 2_500
    headings = re.findall(r"(?m)^##+ .*", prose(path))
    for heading in ("Try it", "Broken on purpose", "Exercise", "Recap", "References"):
        assert any(heading in line for line in headings), heading
    assert 3 <= len(cells(path, tag="exercise")) <= 5
    assert cells(path, tag="copyable")
    assert len(cells(path, tag="broken")) >= 2
    assert cells(path, tag="interactive")


@each
def test_every_exercise_has_difficulty_minutes_hint_check_and_solution(path):
    exercises, solutions = cells(path, tag="exercise"), cells(path, tag="solution")
    titles = re.findall(r"(?m)^### Exercise \d+ (●○○|●●○|●●●) \(\d+ min\)", prose(path))
    assert len(exercises) == len(solutions) == len(titles) == prose(path).count("<summary>Hint</summary>")
    for exercise, solution in zip(exercises, solutions):
        assert solution.metadata.jupyter.source_hidden
        assert "hide-input" in tags(solution)
        assert solution.source.startswith("# Solution (click to expand)")
        (check,) = set(re.findall(r"\bcheck_\w+", exercise.source))
        assert check in solution.source
        assert output_text(exercise).startswith("○ Not written yet")
        assert output_text(solution).removeprefix("Solution: ").startswith("✓")
        assert not defined(exercise.source) & defined(solution.source), (
            "the solution would replace the learner's answer"
        )


def output_text(cell) -> str:
    return "".join(output.get("text", output.get("data", {}).get("text/plain", "")) for output in cell.outputs)


def defined(source: str) -> set[str]:
    return {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@each
def test_pictures_and_interactive_pictures(path):
    for cell in cells(path):
        if "plot_" in cell.source and not re.search(r"\b(def|import)\b", cell.source):
            assert "picture(" in cell.source, "without picture() there is no alt text"
    for cell in cells(path, tag="interactive"):
        assert re.search(r"(?m)^interact\(", cell.source)
        assert "nbval-ignore-output" in tags(cell)
        assert not cell.outputs


@each
def test_a_stored_picture_is_an_image_that_holds_its_data_and_its_alt_text(path):
    """Such a picture is drawn before the notebook is trusted, shrinks with the page, is read out, and is compared."""
    for cell in cells(path):
        for output in cell.outputs:
            data = output.get("data", {})
            assert not {"image/png", "image/svg+xml"} & set(data), cell.source
            for alt, rest in re.findall(r'<img alt="(.*?)" (.*?)>', data.get("text/html", "")):
                assert len(alt) > 20, cell.source
                assert rest.startswith('style="max-width:100%" src="data:image/svg+xml,%3Csvg'), cell.source


def test_every_image_is_used_and_drawn_by_make_images():
    texts = [path.read_text(encoding="utf-8") for path in [*PATHS, ROOT / "README.md"]]
    made = set(re.findall(r'    "(\w+)": \1,', (ROOT / "images" / "make_images.py").read_text(encoding="utf-8")))
    stored = {path.stem for path in (ROOT / "images").glob("*.svg")}
    assert made == stored
    for name in stored:
        assert any(f'\\"{name}\\"' in text or f"images/{name}.svg" in text for text in texts), f"{name} is used nowhere"


def test_notebooks_are_valid_json_of_format_4():
    for path in PATHS:
        nbformat.validate(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("place", [".", "notebooks", "notebooks/deeper"])
def test_the_set_up_cell_finds_a_clone_around_it_or_below_it(place, tmp_path):
    """-S hides what is installed, as on a machine without attnlib; `below` is where Colab clones to."""
    (tmp_path / "clone" / "attnlib").mkdir(parents=True)
    (tmp_path / "clone" / "attnlib" / "__init__.py").touch()
    (tmp_path / "clone" / place).mkdir(parents=True, exist_ok=True)
    code = cells(PATHS[0], tag="setup")[0].source + "\nimport attnlib; print(attnlib.__file__)"
    for folder in (tmp_path, tmp_path / "clone" / place):
        done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=folder, capture_output=True, text=True)
        assert str(tmp_path / "clone" / "attnlib") in done.stdout, done.stderr


def test_without_attnlib_the_set_up_cell_says_in_one_sentence_what_to_type(tmp_path):
    code = cells(PATHS[0], tag="setup")[0].source
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: attnlib is missing: run `pip install PATH_OF_YOUR_CLONE`, then restart the kernel"
    )
