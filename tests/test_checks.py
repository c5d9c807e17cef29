"""attnlib._validate and the judge of the exercises: bad input and wrong answers become one clear sentence."""

import pytest
import torch

from attnlib import _validate
from attnlib.checks import Verdict
from attnlib.checks._judge import differs, judge


def test_shapes_are_said_in_words():
    tensor = torch.zeros(2, 8, 10, 32)
    _validate.check_shape("query", tensor, "batch heads tokens head_dim", {"head_dim": 32})
    with pytest.raises(
        ValueError, match=r"query must have shape \(batch, heads, tokens, head_dim=64\); got \(2, 8, 10, 32\)"
    ):
        _validate.check_shape("query", tensor, "batch heads tokens head_dim", {"head_dim": 64})
    with pytest.raises(ValueError, match=r"query must have shape \(tokens, head_dim\)"):
        _validate.check_shape("query", tensor, "tokens head_dim")
    with pytest.raises(ValueError, match=r"query must have shape \(\.\.\., tokens, head_dim\); got \(32,\)"):
        _validate.check_shape("query", tensor[0, 0, 0], "... tokens head_dim")


def test_counts_and_probabilities():
    _validate.check_count("top_k", 1)
    with pytest.raises(ValueError, match="top_k must be at least 1; got 0"):
        _validate.check_count("top_k", 0)
    with pytest.raises(TypeError, match="top_k must be an int; got bool"):
        _validate.check_count("top_k", True)
    _validate.check_probability("dropout", 0)
    _validate.check_probability("dropout", 1.0)
    with pytest.raises(ValueError, match=r"dropout must lie between 0 and 1; got -0.1"):
        _validate.check_probability("dropout", -0.1)
    with pytest.raises(TypeError, match="dropout must be a number; got bool"):
        _validate.check_probability("dropout", False)


def row_sums(x):
    return x.sum(-1)


CASES = [(torch.arange(6.0).reshape(2, 3),), (torch.arange(20.0).reshape(4, 5),)]
MISTAKES = {"You summed the columns.": lambda x: x.sum(0)}


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (row_sums, "✓ Right."),
        (lambda x: x.sum(-1).numpy(), "✓ Right."),
        (lambda x: x.sum(-1).tolist(), "✓ Right."),
        (lambda x: x.sum(0), "✗ You summed the columns."),
        (lambda x: None, "○ Not written yet"),
        (lambda x: ..., "○ Not written yet"),
        (lambda x: x, "should return the shape (2,); it returned the shape (2, 3)"),
        (lambda x: (x.sum(-1) + 1).requires_grad_(), "it gives 4 where 3 is right"),
        (lambda x: x.sum(-1) + 1, "it gives 4 where 3 is right"),
        (lambda x: x.sum(-1) * float("nan"), "returns NaN"),
        (lambda x: torch.tensor([3.0, 12.0]), "should return the shape (4,)"),
        (lambda x: [], "should return the shape (2,); it returned the shape (0,)"),
        (lambda x: x.sum(-1) * (1 + 2e-4), "at [1] it gives 12.0024 where 12.0000 is right"),
        (lambda x: x.sum(-1).to("meta"), "must return a tensor or a number; it returned a Tensor"),
        (lambda x: 10**30, "must return a tensor or a number; it returned a int"),
        (lambda x: "text", "must return a tensor or a number; it returned a str"),
        (lambda x: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda x: x.zero_().sum(-1), "changes its input"),
        (torch.tensor(3.0), "Hand over the function itself, uncalled; this is a Tensor."),
    ],
)
def test_judge(answer, says):
    verdict = judge(answer, row_sums, CASES, mistakes=MISTAKES)
    assert says in repr(verdict)
    assert bool(verdict) == (says == "✓ Right.")
    assert isinstance(verdict, Verdict)


def test_judge_points_at_the_place_that_differs_not_at_equal_infinities():
    right = torch.tensor([-torch.inf, 1.0, 2.0])
    verdict = judge(lambda x: torch.tensor([-torch.inf, 1.0, 5.0]), lambda x: right, [(right,)])
    assert "at [2] it gives 5 where 2 is right" in repr(verdict)
    right = torch.tensor([torch.nan, 1.0, 2.0])
    verdict = judge(lambda x: torch.tensor([torch.nan, 1.0, 5.0]), lambda x: right, [(torch.ones(3),)])
    assert "at [2] it gives 5 where 2 is right" in repr(verdict)


def test_judge_shows_two_numbers_that_differ():
    verdict = judge(lambda x: x * 0 + 3e-5, lambda x: x * 0, [(torch.ones(3),)])
    assert "at [0] it gives 3e-05 where 0 is right" in repr(verdict)


def test_judge_says_what_the_exercise_has_to_say():
    assert repr(judge(row_sums, row_sums, CASES, success="A row at a time.")) == "✓ A row at a time."


def test_judge_says_what_is_wrong_with_one_number():
    assert "<lambda> gives 5 where 6 is right" in repr(
        judge(lambda x: x.sum() - 1, lambda x: x.sum(), [(torch.ones(2, 3),)])
    )
    verdict = judge(lambda x: x, lambda x: x.sum(), [(torch.ones(2, 3),)])
    assert "should return one number, or one True or False; it returned the shape (2, 3)" in repr(verdict)


def test_judge_names_what_the_learner_called_it():
    def my_sum(x):
        return x

    assert "my_sum should return" in repr(judge(my_sum, row_sums, CASES))


def test_chance_shows_where_two_calls_differ():
    x = torch.ones(2, 3)
    assert differs(lambda x: torch.rand_like(x), (x,), (2, 3))
    assert not differs(lambda x: x, (x,), (2, 3))
    assert not differs(lambda x: torch.rand(3), (x,), (2, 3))  # its shape is to be told first
    assert not differs(lambda x: x * torch.nan, (x,), (2, 3))
    for no_answer in (lambda x: None, lambda x: 1 / 0, lambda x: "text"):
        assert not differs(no_answer, (x,), (2, 3))
