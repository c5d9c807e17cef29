"""Right answers that differ from the reference pass, and wrong ones that differ from the tables' are named."""

import pytest

# Notebooks 00 to 04: (check, answer), and (check, answer, words of the verdict).
RIGHT_00_TO_04 = []
WRONG_00_TO_04 = []

# Notebooks 05 to 08.
RIGHT_05_TO_08 = []
WRONG_05_TO_08 = []


@pytest.mark.parametrize(("check", "answer"), RIGHT_00_TO_04 + RIGHT_05_TO_08)
def test_right_answers_pass(check, answer):
    check(answer).require()


@pytest.mark.parametrize(("check", "answer", "words"), WRONG_00_TO_04 + WRONG_05_TO_08)
def test_wrong_answers_are_named(check, answer, words):
    verdict = check(answer)
    assert not verdict.passed
    assert words in verdict.message
