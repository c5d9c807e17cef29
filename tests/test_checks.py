"""Every check passes its own reference, names every mistake in its table, and rejects every mechanical mutant."""

import json
import re

import einops  # noqa: F401 (a row uses it)
import pytest
import torch

from attnlib.checks import Verdict
from attnlib.checks.exercise import Exercise, draw
from attnlib.checks.judge import Judge
from mutants import EQUIVALENT, ROOT, START, exercises, kill_table, mutants, with_table

CHECKS = exercises()
every_check = pytest.mark.parametrize("name", CHECKS)


def accepts(check, answer):
    """Whether an answer passes. This stops at the first wrong result, and does not look for the mistake."""
    with torch.random.fork_rng(devices=[]):
        judge = Judge(check, answer)
        return all(judge.is_right(case, judge.result(case)) for case in range(len(check.cases)))


@every_check
def test_the_reference_passes(name):
    assert CHECKS[name](CHECKS[name].reference) == Verdict("✓", CHECKS[name].success)


@every_check
def test_each_named_mistake_is_rejected_by_its_own_sentence(name):
    check = CHECKS[name]
    verdicts = {mistake: check(mistake.function) for mistake in check.mistakes}
    assert not [m.code for m, verdict in verdicts.items() if verdict.passed]
    assert not [(m.code, v.message) for m, v in verdicts.items() if v.message != m.sentence]


@every_check
def test_mutants_of_the_reference_are_rejected_but_for_those_that_change_nothing(name):
    accepted = {line for line, mutant in mutants(CHECKS[name].reference) if accepts(CHECKS[name], mutant)}
    assert accepted == {line for check, line in EQUIVALENT if check == name}


def test_the_published_tables_hold_counts_that_are_as_large_as_we_say():
    table = kill_table()
    for path in (ROOT / "README.md", ROOT / "notebooks" / "00_start_here.ipynb"):
        text = path.read_text(encoding="utf-8")
        cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"]] if path.suffix == ".ipynb" else [text]
        assert any(START in cell for cell in cells)
        assert cells == [with_table(cell, table) for cell in cells], "run python tests/mutants.py"
    named, killed = re.search(r"\*\*(\d+)\*\* \| \*\*(\d+)\*\* \|$", table).groups()
    assert int(named) >= 690
    assert int(killed) >= 1000


# How an answer is judged, on an exercise small enough to read: the sums of the rows.


def row_sums(x):
    """The sums of the rows."""
    return x.sum(-1)


ROW_SUMS_TABLE = """
Right.
x.sum(0)  # You summed the columns.
x.mean(-1); x.sum(-1) / x.shape[-1]  # This is the mean of each row: add, and do not divide.
"""
ROWS = [(torch.arange(6.0).reshape(2, 3),), (torch.arange(20.0).reshape(4, 5),), (torch.ones(1, 3),)]
ROW_SUMS = Exercise(row_sums, ROWS, ROW_SUMS_TABLE, forbidden=("cumsum",))
size = 3

# Each row: an answer, and words of what is said. (An answer made of text has no line that a message could quote.)
SAID = """
x.sum(-1)  # ✓ Right.
x.sum(-1).numpy()  # ✓ Right.
x.sum(-1).tolist()  # ✓ Right.
[row.sum() for row in x]  # ✓ Right.
x.sum(0)  # ✗ You summed the columns.
x.mean(-1)  # ✗ This is the mean of each row: add, and do not divide.
...  # ○ Not written yet
einops.einsum(x, "a b -> (a b)")  # ✗ <lambda> raised NotImplementedError
x - x.max(dim=-1)  # take .values or .indices
x.sort(dim=-1).sum(-1)  # take .values or .indices
x.max(dim=-1)  # take .values or .indices
x.sum(-1, keepdim=True)  # with an axis of size 1 left over (axis 1)
x.sum(-1).squeeze()  # an axis of size 1 is missing
-x.sum(-1)  # the right numbers with the wrong sign
x.cumsum(-1)[:, -1]  # do without cumsum()
(x.sum(-1), 0)  # returned a tuple
(x.sum(-1), x.sum(-1))  # the first alone is right
[x[0], x[1]]  # torch.stack
(x / x.sum(-1)).sum(-1)  # The shapes that met are (2, 3) and (2,). Is an axis missing: keepdim=True
x @ x  # (2, 3) and (2, 3). In a product, the last axis of the first is as long as the second's last but one: is .mT
x.sum(-1) * size  # It reads `size` from the notebook
torch.stack([x[i].sum() for i in range(size)])  # It reads `size` from the notebook
x.sum(-1) * x.size(0)  # at [1] it gives 24; 12 is right
x[:2].sum(-1) if len(x) == 2 else 1 / 0  # Right for x (2, 3). But for x (4, 5): <lambda> raised
(x.sum(-1) + 1).requires_grad_()  # it gives 4; 3 is right
x.sum(-1) * float("nan")  # returns NaN
torch.tensor([3.0, 12.0])  # should return the shape (4,)
x.sum(-1) * (1 + 2e-4)  # at [1] it gives 12.0024; 12 is right
x.sum(-1) + torch.rand(())  # Two calls give different numbers
x.sum(-1).to("meta")  # must return a tensor or a number; it returned a Tensor
"text"  # must return a tensor or a number; it returned a str
1 / 0  # raised ZeroDivisionError
x.zero_().sum(-1)  # changes its input
"""


@pytest.mark.parametrize("row", SAID.strip().splitlines())
def test_what_the_judge_says(row):
    code, _, says = row.partition("  # ")
    verdict = ROW_SUMS(eval(f"lambda x: {code}", globals()))
    assert says in repr(verdict)
    assert verdict.passed == (says == "✓ Right.")


def stub(x):
    """The sums of the rows."""
    ...


def not_implemented(x):
    raise NotImplementedError


def without_return(x):
    x.sum(-1)


def raises_on_its_line(x):
    x.sum(-1).undefined  # noqa: B018
    return x


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (stub, "○ Not written yet: write stub"),
        (not_implemented, "○ Not written yet"),
        (without_return, "✗ without_return returned nothing. Is `return` missing"),
        (raises_on_its_line, "at `x.sum(-1).undefined"),
        (torch.tensor(3.0), "✗ Pass the function itself, without calling it; this is a Tensor."),
    ],
)
def test_what_the_judge_says_about_functions(answer, says):
    assert says in repr(ROW_SUMS(answer))


def test_a_verdict_shows_its_message_in_a_bare_assert():
    assert ROW_SUMS(row_sums).require()
    for wanted in (bool, Verdict.require):
        with pytest.raises(AssertionError, match="You summed the columns."):
            wanted(ROW_SUMS(lambda x: x.sum(0)))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    ROW_SUMS(lambda x: x.sum(-1) + torch.rand(()))
    assert torch.equal(before, torch.get_rng_state())


POSITIVE = Exercise(
    lambda x: bool((x > 0).all()),
    [(torch.tensor([first, 2.0]),) for first in (1.0, -1.0, 0.0)],
    "Right.\n(x > 0).any()  # Any is not all.",
    describe=lambda x: f"a smallest number of {x.min():g}",
)
MASK = Exercise(lambda x: x > 0, [draw(1, (3, 5))], "Right.")
SIZES = Exercise(lambda x: tuple(x.shape), [draw(1, (3, 5))], "Right.")
TABLE = "Right.\ntwice = 2 * x; less = lambda k: k * x - x\ntwice; less(3)  # Take n."
NAMED = Exercise(lambda x, n: n * x, [(torch.ones(2), 3)], TABLE)


@pytest.mark.parametrize(
    ("check", "answer", "says"),
    [
        (MASK, lambda x: x > 0, "✓ Right."),
        (MASK, lambda x: (x > 0).float(), "return a boolean tensor"),
        (POSITIVE, lambda x: bool((x > 0).any()), "✗ Any is not all."),
        (POSITIVE, lambda x: bool((x >= 0).all()), "says True for a smallest number of 0; False is right."),
        (SIZES, lambda x: x.shape, "✓ Right."),
        (SIZES, lambda x: x.shape[:1], "should return 2 numbers in a tuple; it returned 1."),
        (SIZES, lambda x: (x.shape, 5), "must return a tuple of 2 numbers"),
        (NAMED, lambda x, n: 2 * x, "✗ Take n."),
    ],
)
def test_what_is_said_about_masks_truth_tuples_and_words_of_a_table(check, answer, says):
    assert says in repr(check(answer))
