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
import torch

import attnlib
from notebooks.execute import source_hash

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TITLE = re.compile(r"# (\d\d) · \S")
FORBIDDEN = re.compile(r"\b(simply|obviously|trivially|of course|just)\b", re.IGNORECASE)
ANYWHERE_TAGS = {
    "setup", "copyable", "exercise", "solution", "broken", "interactive", "hide-input",
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


def words(text: str) -> int:
    return len(re.findall(r"\w+", re.sub(r"```.*?```|\$\$.*?\$\$|<details>.*?</details>", "", text, flags=re.DOTALL)))


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
        shows = re.search(r"(?m)^(print|picture|check_)\(", cell.source)
        assert cell.outputs or not shows or "nbval-ignore-output" in tags(cell), cell.source


@each
def test_prose_is_short_plain_and_local(path):
    for cell in cells(path, "markdown"):
        assert words(cell.source) <= 120, cell.source
        assert not FORBIDDEN.search(re.sub(r"`[^`]*`", "", cell.source)), FORBIDDEN.search(cell.source)
        assert not re.search(r"!\[\s*\]\(|<img(?![^>]*alt=)", cell.source), "an image without alt text"
        assert not re.search(r"(?:src=|\]\()[\"']?https?://\S+\.(?:png|svg|jpe?g|gif|webp)", cell.source)


@each
def test_has_every_part(path):
    assert 1_200 <= words(prose(path)) <= 2_500
    headings = re.findall(r"(?m)^##+ .*", prose(path))
    for heading in ("Try it", "Broken on purpose", "Exercises", "Recap", "References"):
        assert any(heading in line for line in headings), heading
    assert 3 <= len(cells(path, tag="exercise")) <= 5
    assert cells(path, tag="copyable")
    assert len(cells(path, tag="broken")) >= 2
    assert cells(path, tag="interactive")


@each
def test_every_exercise_has_difficulty_minutes_hint_check_and_solution(path):
    exercises, solutions = cells(path, tag="exercise"), cells(path, tag="solution")
    titles = re.findall(r"(?m)^### Exercise \d+ (●○○|●●○|●●●) \(\d+ min\)", prose(path))
    assert len(exercises) == len(solutions) == len(titles) == prose(path).count("<details>")
    for exercise, solution in zip(exercises, solutions):
        assert solution.metadata.jupyter.source_hidden
        assert "hide-input" in tags(solution)
        assert solution.source.startswith("# Solution (click to expand)")
        (check,) = set(re.findall(r"\bcheck_\w+", exercise.source))
        assert check in solution.source
        assert output_text(exercise).startswith("○ Not written yet")
        assert output_text(solution).startswith("✓")
        assert not defined(exercise.source) & defined(solution.source), (
            "the solution would replace the learner's answer"
        )


def output_text(cell) -> str:
    return "".join(output.data.get("text/plain", "") for output in cell.outputs if "data" in output)


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
    for image in re.findall(r"\.\./images/[\w.]+", path.read_text(encoding="utf-8")):
        assert (path.parent / image).exists(), image


@each
def test_pictures_have_alt_text(path):
    for cell in cells(path):
        for output in cell.outputs:
            for mime in ("image/png", "image/svg+xml"):
                if mime in output.get("data", {}):
                    assert len(output.metadata.get(mime, {}).get("alt", "")) > 20, cell.source


COPYABLE = [(path, number) for path in PATHS for number in range(len(cells(path, tag="copyable")))]


@pytest.mark.parametrize(("path", "number"), COPYABLE, ids=[f"{path.stem}-{number}" for path, number in COPYABLE])
def test_copyable_cell_stands_alone(path, number, tmp_path):
    source = cells(path, tag="copyable")[number].source
    assert source.startswith(f"# attnlib notebook {path.stem[:2]} · MIT licence\n")
    imported = {node.names[0].name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import)}
    imported |= {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= {"torch", "einops", "numpy", "matplotlib", "math"}
    file = tmp_path / "cell.py"
    file.write_text(source, encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", str(file)]
    subprocess.run(ruff, check=True, timeout=60)
    environment = {**os.environ, "MPLBACKEND": "agg"}
    subprocess.run([sys.executable, "-I", str(file)], check=True, timeout=120, cwd=tmp_path, env=environment)


ARGUMENTS = {
    "SelfAttention_v1": [(5, 3)],
    "SelfAttention_v2": [(5, 3), (5, 3, True)],
    "CausalAttention": [(5, 3, 11), (5, 3, 11, 0.0, True)],
    "MultiHeadAttentionWrapper": [(5, 3, 11, 2, 0.0)],
    "MultiHeadAttention": [(5, 6, 11, 0.0, 2), (5, 6, 11, 0.0, 3, True)],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_copyable_class_equals_attnlibs_under_one_seed(name):
    sources = [cell.source for path in PATHS for cell in cells(path, tag="copyable") if f"class {name}(" in cell.source]
    assert sources, f"no copyable cell defines {name}"
    for source in sources:
        namespace: dict = {}
        exec(compile(source, name, "exec"), namespace)
        for arguments in ARGUMENTS[name]:
            torch.manual_seed(2)
            theirs = namespace[name](*arguments)
            torch.manual_seed(2)
            ours = getattr(attnlib, name)(*arguments)
            batched = "SelfAttention" not in name
            x = torch.randn(2, 7, 5) if batched else torch.randn(7, 5)
            torch.testing.assert_close(theirs(x), ours(x))
            got = torch.autograd.grad(theirs(x).square().sum(), list(theirs.parameters()))
            want = torch.autograd.grad(ours(x).square().sum(), list(ours.parameters()))
            torch.testing.assert_close(got, want)


def test_every_image_is_used_and_drawn_by_make_images():
    texts = [path.read_text(encoding="utf-8") for path in [*PATHS, ROOT / "README.md"]]
    made = set(re.findall(r"\"(\w+\.svg)\"", (ROOT / "images" / "make_images.py").read_text(encoding="utf-8")))
    stored = {path.name for path in (ROOT / "images").glob("*.svg")}
    assert made == stored
    for name in stored:
        assert any(f"images/{name}" in text for text in texts), f"{name} is used nowhere"


def test_notebooks_are_valid_json_of_format_4():
    for path in PATHS:
        nbformat.validate(json.loads(path.read_text(encoding="utf-8")))
