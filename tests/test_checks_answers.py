"""Right answers that differ from the reference pass, and wrong ones that differ from the tables' are named."""

import pytest
import torch

from attnlib.checks import check_same, check_scores_shape, check_weighted_average


def same_in_a_loop(a, b):
    return all(abs(x - y) <= 1e-5 for x, y in zip(a.flatten().tolist(), b.flatten().tolist()))


# Notebooks 00 to 04: (check, answer), and (check, answer, words of the verdict).
RIGHT_00_TO_04 = [
    (check_weighted_average, lambda w, values: (w[:, None] * values).sum(0)),
    (check_weighted_average, lambda w, values: values.T @ w),
    (check_weighted_average, lambda w, values: sum(w[i] * values[i] for i in range(len(w)))),
    (check_weighted_average, lambda w, values: torch.einsum("t,td->d", w, values).tolist()),
    (check_same, lambda a, b: torch.allclose(a, b, rtol=0, atol=1e-5)),
    (check_same, same_in_a_loop),
    (check_same, lambda a, b: not ((a - b).abs() > 1e-5).any()),
    (check_same, lambda a, b: bool((a - b).max() <= 1e-5 and (b - a).max() <= 1e-5)),
    (check_same, lambda a, b: (a - b).abs().max() < 1e-5),
    (check_scores_shape, lambda query, key: (*query.shape[:-1], key.shape[-2])),
    (check_scores_shape, lambda query, key: [*query.shape[:3], key.shape[2]]),
    (check_scores_shape, lambda query, key: query.shape[:3] + key.shape[2:3]),
]
WRONG_00_TO_04 = [
    (check_same, lambda a, b: bool((a - b).abs().max() < 8e-6), "difference is 9e-06; True is right"),
    (check_same, lambda a, b: bool((a - b).abs().max() < 2e-5), "difference is 1.2e-05; False is right"),
    (check_same, lambda a, b: torch.testing.assert_close(a, b), "Return True or False instead"),
    (check_scores_shape, lambda query, key: (query @ key.mT).shape, "do without matmul()"),
    (
        check_scores_shape,
        lambda query, key: (*query.shape[:1], *key.shape[:1], 1),
        "4 numbers in a tuple; it returned 3",
    ),
]

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
