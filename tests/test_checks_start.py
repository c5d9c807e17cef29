"""The checks of notebook 00: a right answer passes, and each usual mistake is named."""

import pytest
import torch

from attnlib.checks import check_same, check_scores_shape, check_weighted_average


def same_in_a_loop(a, b):
    return all(abs(x - y) <= 1e-5 for x, y in zip(a.flatten().tolist(), b.flatten().tolist()))


def test_right_answers_pass():
    assert check_weighted_average(lambda weights, values: (weights[:, None] * values).sum(0))
    assert check_same(lambda a, b: torch.allclose(a, b, rtol=0, atol=1e-5))
    assert check_same(same_in_a_loop)
    assert check_same(lambda a, b: not ((a - b).abs() > 1e-5).any())
    assert check_same(lambda a, b: bool((a - b).max() <= 1e-5 and (b - a).max() <= 1e-5))
    assert check_scores_shape(lambda query, key: tuple((query @ key.mT).shape))
    assert check_scores_shape(lambda query, key: [*query.shape[:3], key.shape[2]])


@pytest.mark.parametrize(
    ("check", "answer", "says"),
    [
        (check_weighted_average, lambda weights, values: None, "Not written yet"),
        (check_weighted_average, lambda weights, values: values.mean(0), "plain mean"),
        (check_weighted_average, lambda weights, values: weights[:, None] * values, "not yet summed"),
        (check_weighted_average, lambda weights, values: (weights[:, None] * values).mean(0), "already sum to one"),
        (check_weighted_average, lambda weights, values: values @ weights, "weights the columns: row j"),
        (check_weighted_average, lambda weights, values: weights * values, "nothing is summed yet"),
        (check_weighted_average, lambda weights, values: values[0], "is right"),
        (check_weighted_average, lambda weights, values: (weights @ values).int(), "2.5000 is right"),
        (check_weighted_average, lambda weights, values: (weights[:, None] * values).sum(1), "over the coordinates"),
        (check_weighted_average, lambda weights, values: (weights * values).sum(0), "weights[:, None]"),
        (check_weighted_average, lambda weights, values: weights.softmax(0) @ values, "weights already"),
        (check_same, lambda a, b: bool((a - b).abs().sum() < 1e-5), "In a sum"),
        (check_same, lambda a, b: bool((a - b).norm() < 1e-5), "In a norm"),
        (check_same, lambda a, b: bool((a - b).abs().max() < 1e-6), "too narrow"),
        (check_same, lambda a, b: bool((a - b).abs().max() < 8e-6), "is 0.000009: it must say True"),
        (check_same, lambda a, b: bool((a - b).abs().max() < 2e-5), "is 0.000012: it must say False"),
        (check_same, lambda a, b: bool((a.abs() - b.abs()).abs().max() < 1e-5), "around the difference"),
        (check_same, lambda a, b: bool((a - b).max().abs() < 1e-5), "comes too late"),
        (check_same, lambda a, b: bool((a.max() - b.max()).abs() < 1e-5), "largest entries are compared"),
        (check_same, lambda a, b: torch.equal(a.round(decimals=5), b.round(decimals=5)), "it must say True"),
        (check_same, lambda a, b: torch.equal(a.sort(dim=1).values, b.sort(dim=1).values), "it must say True"),
        (check_same, lambda a, b: torch.allclose(a, b, atol=1e-5), "rtol=0 as well"),
        (check_same, lambda a, b: bool(((a - b) ** 2).mean() < 1e-5), "is 0.001: it must say False"),
        (check_scores_shape, lambda query, key: query @ key.mT, "These are the scores"),
        (check_scores_shape, lambda query, key: (*query.shape[:3], query.shape[2]), "queries stands twice"),
        (check_scores_shape, lambda query, key: (*key.shape[:3], key.shape[2]), "keys stands twice"),
        (check_scores_shape, lambda query, key: (query.shape[0], query.shape[2], key.shape[2]), "it returned 3"),
        (check_scores_shape, lambda q, k: (q.shape[1], q.shape[0], q.shape[2], k.shape[2]), "changed places"),
        (check_same, lambda a, b: bool((a - b).max() < 1e-5), "any a below b the same"),
        (check_same, lambda a, b: bool((b - a).max() < 1e-5), "any a above b the same"),
        (check_same, lambda a, b: bool((a == b).all()), "equal bits"),
        (check_same, lambda a, b: bool((a - b).abs().mean() < 1e-5), "A mean hides"),
        (check_same, lambda a, b: bool((a - b).sum().abs() < 1e-5), "cancel"),
        (check_same, lambda a, b: bool((a.mean() - b.mean()).abs() < 1e-5), "cancel"),
        (check_same, lambda a, b: bool((a - b).abs().min() < 1e-5), "smallest difference"),
        (check_same, lambda a, b: bool((a - b).abs().max() > 1e-5), "swapped"),
        (check_same, lambda a, b: (a - b).abs().max(), "compare it with the bound"),
        (check_same, lambda a, b: bool((a - b).abs().max() < 1e-4), "too wide"),
        (check_same, lambda a, b: bool((a - b).abs().max() < 2e-4), "too wide"),
        (check_same, torch.allclose, "share of the numbers' size"),
        (check_same, torch.testing.assert_close, "return True or False yourself"),
        (check_same, lambda a, b: True, "cannot fail"),
        (check_scores_shape, lambda query, key: tuple(query.shape), "shape of the query"),
        (check_scores_shape, lambda query, key: (*key.shape[:-1], query.shape[2]), "Queries come first"),
        (check_scores_shape, lambda query, key: (query.shape[2], key.shape[2]), "keep the first two axes"),
        (check_scores_shape, lambda query, key: (*query.shape[:2], key.shape[2], key.shape[3]), "head_dim is summed"),
    ],
)
def test_mistakes_are_named(check, answer, says):
    verdict = check(answer)
    assert not verdict
    assert says in repr(verdict)
