"""Words and turns of phrase that the project does not use, in prose, docstrings, comments, messages and tests."""

import re
import subprocess
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
HABITS = [
    r"is no (an? )?(int|tensor|bool|number|float|list|string|dtype)\b", r"no int\b", r"no bool\b",
    r"left out\b", r"\bmends?\b", r"\blimps?\b", r"lives? on this", r"takes? up something", r"stands? at the end",
    r"turned (over|round|about)\b", r"turns? (all the )?axes round", r"\banew\b", r"\bthereby\b", r"\bthat which\b",
    r"\bso too\b", r"goes round\b", r"leans? on none", r"how-manieth", r"at the door\b", r"The door:",
    r"whole or not there", r"changed? places", r"most memory held", r"as often as met", r"\bwhoever\b", r"\bhence\b",
    r"stands? (above|below|for) and\b", r"[Kk]eep your answer", r"says? the same\.",
    r"\b(simply|obviously|trivially|of course)\b", r"\blet us\b",
]  # fmt: skip
PATTERN = re.compile("|".join(HABITS), re.IGNORECASE)
IN_PROSE = re.compile(r"\bjust\b", re.IGNORECASE)  # a fine word elsewhere, and belittling in front of a learner


def texts() -> list[tuple[str, str]]:
    """(name, text) of everything that the project says in words."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pairs = []
    for name in listed:
        path = ROOT / name
        if path.suffix == ".ipynb":
            cells = nbformat.read(path, as_version=4).cells
            pairs.append((name, "\n".join(cell.source for cell in cells)))
        elif path.suffix in (".py", ".md", ".yml", ".toml", ".cff") and path != Path(__file__).resolve():
            pairs.append((name, path.read_text(encoding="utf-8")))
    return pairs


TEXTS = dict(texts())


@pytest.mark.parametrize("name", TEXTS)
def test_reads_as_if_written_today(name):
    assert not [match.group() for match in PATTERN.finditer(TEXTS[name])]


@pytest.mark.parametrize("name", [name for name in TEXTS if name.endswith(".ipynb")])
def test_nothing_is_belittled_in_front_of_a_learner(name):
    cells = nbformat.read(ROOT / name, as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert not IN_PROSE.findall(re.sub(r"`[^`]*`", "", prose))
