"""Every check passes its own reference, names every mistake in its table, and rejects every mechanical mutant."""

import json
import math

import einops
import pytest
import torch

from attnlib.checks import Verdict
from attnlib.checks.exercise import Exercise, draw
from equivalent_mutants import EQUIVALENT
from mutants import ROOT, exercises, kill_table, mutants, with_table

CHECKS = exercises()
every_check = pytest.mark.parametrize("name", CHECKS)


@every_check
def test_the_reference_passes(name):
    check = CHECKS[name]
    assert check(check.reference) == Verdict("✓", check.success)
    assert check.accepts(check.reference)


@every_check
def test_each_named_mistake_is_rejected_by_its_own_sentence(name):
    check = CHECKS[name]
    verdicts = {mistake: check(mistake.function) for mistake in check.mistakes}
    assert not [m.code for m, verdict in verdicts.items() if verdict.passed]
    assert not [(m.code, v.message) for m, v in verdicts.items() if v.message != m.sentence]


@every_check
def test_mutants_of_the_reference_are_rejected_but_for_those_that_change_nothing(name):
    accepted = {source for source, mutant in mutants(CHECKS[name].reference) if CHECKS[name].accepts(mutant)}
    assert accepted == set(EQUIVALENT.get(name, {}))


def test_the_published_tables_hold_these_counts():
    table = kill_table(EQUIVALENT)
    notebook = json.loads((ROOT / "notebooks" / "00_start_here.ipynb").read_text(encoding="utf-8"))
    for text in ((ROOT / "README.md").read_text(encoding="utf-8"), *("".join(c["source"]) for c in notebook["cells"])):
        assert text == with_table(text, table), "run python tests/mutants.py"


def test_there_are_as_many_mutants_and_named_mistakes_as_we_say():
    assert sum(len(check.mistakes) for check in CHECKS.values()) >= 600
    assert sum(len(list(mutants(check.reference))) for check in CHECKS.values()) >= 400


# How an answer is judged, on an exercise small enough to read: the sums of the rows.


def row_sums(x):
    return x.sum(-1)


ROW_SUMS = Exercise(
    "Check ``answer(x)``: the sums of the rows.",
    row_sums,
    [(torch.arange(6.0).reshape(2, 3),), (torch.arange(20.0).reshape(4, 5),), (torch.ones(1, 3),)],
    """
    x.sum(0)  # You summed the columns.
    x.mean(-1); x.sum(-1) / x.shape[-1]  # This is the mean of each row: add, and do not divide.
    """,
    "Right.",
    forbidden=("cumsum",),
)
size = 3


def stub(x):
    """The sums of the rows."""
    ...


def not_implemented(x):
    raise NotImplementedError


def without_return(x):
    x.sum(-1)


def with_a_global(x):
    return torch.stack([x[i].sum() for i in range(size)])


def dividing_rows(x):
    return (x / x.sum(-1)).sum(-1)


def transposed_product(x):
    return x @ x


JUDGED = [
    (row_sums, "✓ Right."),
    (lambda x: x.sum(-1).numpy(), "✓ Right."),
    (lambda x: x.sum(-1).tolist(), "✓ Right."),
    (lambda x: [row.sum() for row in x], "✓ Right."),
    (lambda x: x.sum(0), "✗ You summed the columns."),
    (lambda x: x.mean(-1), "✗ This is the mean of each row: add, and do not divide."),
    (stub, "○ Not written yet: write stub"),
    (not_implemented, "○ Not written yet"),
    (lambda x: ..., "○ Not written yet"),
    (lambda x: einops.einsum(x, "a b -> (a b)"), "✗ <lambda> raised NotImplementedError"),  # not the learner's own
    (lambda x: x - x.max(dim=-1), "take .values or .indices"),
    (lambda x: x.sort(dim=-1).sum(-1), "take .values or .indices"),
    (without_return, "✗ without_return returned nothing. Is `return` missing"),
    (lambda x: x.sum(-1, keepdim=True), "with an axis of size 1 left over (axis 1)"),
    (lambda x: x.sum(-1).squeeze(), "an axis of size 1 is missing"),
    (lambda x: -x.sum(-1), "the right numbers with the wrong sign"),
    (lambda x: x.cumsum(-1)[:, -1], "do without cumsum()"),
    (lambda x: (x.sum(-1), 0), "returned a tuple"),
    (lambda x: (x.sum(-1), x.sum(-1)), "the first alone is right"),
    (lambda x: [x[0], x[1]], "torch.stack"),
    (lambda x: x.max(dim=-1), "take .values or .indices"),
    (dividing_rows, "The shapes that met are (2, 3) and (2,). Is an axis missing: keepdim=True"),
    (transposed_product, "The shapes that met are (2, 3) and (2, 3). A product needs"),
    (transposed_product, "is .mT missing?"),
    (with_a_global, "It reads `size` from the notebook"),
    (lambda x: x[:2].sum(-1) if len(x) == 2 else 1 / 0, "Right for x (2, 3). But for x (4, 5): <lambda> raised"),
    (lambda x: (x.sum(-1) + 1).requires_grad_(), "it gives 4; 3 is right"),
    (lambda x: x.sum(-1) * float("nan"), "returns NaN"),
    (lambda x: torch.tensor([3.0, 12.0]), "should return the shape (4,)"),
    (lambda x: x.sum(-1) * (1 + 2e-4), "at [1] it gives 12.0024; 12.0000 is right"),
    (lambda x: x.sum(-1) + torch.rand(()), "Two calls give different numbers"),
    (lambda x: x.sum(-1).to("meta"), "must return a tensor or a number; it returned a Tensor"),
    (lambda x: "text", "must return a tensor or a number; it returned a str"),
    (lambda x: 1 / 0, "raised ZeroDivisionError"),
    (lambda x: x.zero_().sum(-1), "changes its input"),
    (torch.tensor(3.0), "✗ Pass the function itself, without calling it; this is a Tensor."),
]


@pytest.mark.parametrize(("answer", "says"), JUDGED)
def test_what_the_judge_says(answer, says):
    verdict = ROW_SUMS(answer)
    assert says in repr(verdict)
    assert verdict.passed == (says == "✓ Right.")


def test_a_verdict_shows_its_message_in_a_bare_assert():
    assert ROW_SUMS(row_sums)
    with pytest.raises(AssertionError, match="You summed the columns."):
        assert ROW_SUMS(lambda x: x.sum(0))
    with pytest.raises(AssertionError, match="You summed the columns."):
        ROW_SUMS(lambda x: x.sum(0)).require()
    assert isinstance(ROW_SUMS(row_sums).require(), Verdict)


def test_the_line_that_raised_is_shown():
    assert "at `x.sum(-1).undefined" in repr(ROW_SUMS(raises_on_its_line))


def raises_on_its_line(x):
    x.sum(-1).undefined  # noqa: B018
    return x


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    ROW_SUMS(lambda x: x.sum(-1) + torch.rand(()))
    assert torch.equal(before, torch.get_rng_state())


def test_masks_must_be_boolean():
    mask = Exercise("", lambda x: x > 0, [draw(1, (3, 5))], {}, "Right.")
    assert mask(lambda x: x > 0).passed
    assert "return a boolean tensor" in mask(lambda x: (x > 0).float()).message


def test_a_yes_or_no_is_judged_with_the_case_in_words_and_never_named_by_chance():
    positive = Exercise(
        "",
        lambda x: bool((x > 0).all()),
        [(torch.tensor([1.0, 2.0]),), (torch.tensor([-1.0, 2.0]),), (torch.tensor([0.0, 2.0]),)],
        "(x > 0).any()  # Any is not all.",
        "Right.",
        describe=lambda x: f"a smallest number of {x.min():g}",
    )
    assert positive(lambda x: bool((x > 0).any())).message == "Any is not all."
    assert positive(lambda x: bool((x >= 0).all())).message.endswith(
        "says True for a smallest number of 0; False is right."
    )


def test_a_tuple_of_the_wrong_length_is_counted():
    sizes = Exercise("", lambda x: tuple(x.shape), [draw(1, (3, 5))], {}, "Right.")
    assert sizes(lambda x: x.shape).passed
    assert "should return 2 numbers in a tuple; it returned 1." in sizes(lambda x: x.shape[:1]).message
    assert "must return a tuple of 2 numbers" in sizes(lambda x: (x.shape, 5)).message


def test_a_size_from_the_notebook_is_noticed_where_nothing_fails():
    assert "It reads `size` from the notebook" in ROW_SUMS(lambda x: x.sum(-1) * size).message


def test_adapt_runs_the_reference_and_the_mistakes_too():
    at_two = Exercise(
        "",
        lambda: math.exp,
        [(2.0,)],
        "math.log  # That is the logarithm.",
        "Right.",
        adapt=lambda answer: lambda x: answer()(x),
    )
    assert at_two(lambda: lambda x: math.e**x).passed
    assert at_two(lambda: lambda x: math.log(x)).message == "That is the logarithm."


def test_numbers_may_change_in_place():
    def doubled(total):
        total *= 2
        return total

    assert Exercise("", lambda total: 2 * total, [(torch.tensor(3.0),)], {}, "Right.")(doubled).passed
