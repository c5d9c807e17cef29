"""Exercises of notebook 00: a weighted average, a comparison that can fail, the shape of the scores."""

import torch
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw


def weighted_average(weights: Tensor, values: Tensor) -> Tensor:
    """The sum of the rows of values (tokens, value_dim), each times its weight."""
    return weights @ values


def same(a: Tensor, b: Tensor) -> bool:
    """True if no entry of the two tensors differs by more than 1e-5."""
    return bool((a - b).abs().max() <= 1e-5)


def scores_shape(query: Tensor, key: Tensor) -> tuple[int, int, int, int]:
    """The shape of the scores, as a tuple of four numbers."""
    batch, heads, q_tokens, _ = query.shape
    return (batch, heads, q_tokens, key.shape[2])


AVERAGES = [(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.arange(16.0).reshape(4, 4) ** 2)]
AVERAGES += [(torch.tensor([0.5, 0.2, 0.3]), torch.arange(15.0).reshape(3, 5) / 2)]  # int() would cut them
AVERAGES += [(torch.tensor([0.75, 0.0, 0.25]), torch.tensor([[1000.0, -1000.0], [-1000, 1], [0, -3]]))]
AVERAGES += [(x.softmax(0), values) for x, values in (draw(1, (130,), (130, 3)), draw(2, (3,), (3, 2), double=True))]
AVERAGES += [(torch.ones(1), torch.tensor([[2.5]]))]
AVERAGE_TABLE = """
Right: every attention in this series ends with this average.
p = weights[:, None] * values
values.mean(0); values.sum(0)  # The weights are not used: multiply each row by its weight first.
p  # The rows are weighted, but not summed yet: sum over the tokens, axis 0.
p.sum(1); p.mean(1)  # Sum over the tokens, axis 0, not the columns.
(weights @ values).sum()  # Everything is summed into one number: sum over the tokens only, axis 0.
p[0]; p[-1]; p[:-1].sum(0)  # A row is skipped: add up all of them before you return.
values @ weights  # This sums over the columns: put the weights first, weights @ values.
(weights * values).sum(0); weights * values  # The columns are weighted here: write weights[:, None] * values.
weights.softmax(0) @ values  # Softmax is taken again, but these are weights already.
values[weights.argmax()]  # This is the row with the largest weight: every row counts, each with its weight.
"""
check_weighted_average = Exercise(weighted_average, AVERAGES, AVERAGE_TABLE)


def largest_difference(a: Tensor, b: Tensor) -> str:
    return f"two tensors whose largest difference is {float((a - b).abs().max()):.3g}"


def _same_cases() -> list[tuple[Tensor, Tensor]]:
    one, zero, many, steps = torch.ones(2, 3), torch.zeros(2, 3), torch.ones(40, 50), torch.arange(6.0).reshape(2, 3)
    first, last, spot, lower = zero.clone(), zero.clone(), 0 * many, 0 * many
    first[0, 0], last[1, 2], spot[39, 48], lower[20:] = 1.0, 1e-3, 1.0, 1e-3
    differ = [(many, 5e-5 * spot), (many, 0.01 * spot), (many, lower), (one, first - first.roll(1))]
    differ += [(one, last), (one, -last), (one, first.roll(1)), (steps, steps.flip(1) - steps)]
    differ += [(steps, steps.flip(0) - steps), (1000 * steps, one), (zero, zero + 1.2e-5), (one, -2 * one)]
    differ += [(one, 5 * one), (one, -5 * one), (one, 0.3 * one), (one, 4e-5 * one)]
    differ += [(100 * one, 5e-4 * one), (100 * one, 1e-4 * one), (100 * one, -4e-5 * one)]
    agree = [(zero, 9e-6 * first), (steps, 4e-6 * (-1) ** steps), (many, 5e-6 * many), (one[:1], -2e-6 * one[:1])]
    agree += [(zero + base, size * one) for base, size in ((0, 5e-8), (0, 3e-6), (1, 1e-7), (1, 0), (4e-6, 2e-6))]
    agree += [(zero + 0.499999, 2e-6 * one), (many.double(), -9e-6 * many)]  # rounding parts the first two
    return [(a, a + difference) for a, difference in [*differ, *agree]]


SAME_TABLE = """
Right: rounding passes, and one wrong entry fails.
gap = (a - b).abs()
(a - b).max() <= 1e-5; (b - a).max() <= 1e-5  # Only one sign of the difference is checked: take abs() of it first.
(a - b).max().abs() <= 1e-5; (a - b).min().abs() <= 1e-5  # abs() comes too late: take abs() first, then max().
(a.abs() - b.abs()).abs().max() <= 1e-5  # abs() belongs around the difference: 1 and −1 differ by 2.
torch.equal(a, b); gap.max() == 0  # Rounding in the last digit must pass: compare the difference with 1e-5.
(a == b).any(); gap.min() <= 1e-5  # One entry that is close is enough here: every entry must be close.
gap.sum() <= 1e-5; (a - b).norm() <= 1e-5  # Many small differences add up here: ask for the largest one.
gap.mean() <= 1e-5; gap.median() <= 1e-5  # One wrong entry hides among many: ask for the largest.
(a - b).sum().abs() <= 1e-5; (a - b).mean() <= 1e-5  # Differences above and below zero cancel: take abs() of each.
torch.allclose(a, b); torch.allclose(a, b, atol=1e-5)  # The bound grows with the numbers: set rtol=0 and atol=1e-5.
gap[0].max() <= 1e-5; gap[-1, -1] <= 1e-5  # Only some entries are compared: every entry counts.
gap.max() <= 1e-6; gap.max() <= 1e-7  # The bound is too narrow: a difference of 0.000009 must pass.
gap.max() <= 1e-4; gap.max() <= 1e-3  # The bound is too wide: a difference of 0.00004 must fail.
gap.max() > 1e-5  # True and False are swapped.
gap.max(); gap  # These are differences: compare the largest one with the bound.
True; a.shape == b.shape  # This always says True: it cannot fail, so it tests nothing.
False; a is b  # This always says False: tensors that differ by rounding only must pass.
torch.equal(a.round(decimals=5), b.round(decimals=5))  # Close numbers can round apart: take the largest difference.
"""
check_same = Exercise(same, _same_cases(), SAME_TABLE, describe=largest_difference)

SIZES = ((2, 3, 7, 11, 5), (1, 4, 2, 3, 6), (5, 1, 1, 130, 2))  # batch, heads, q_tokens, kv_tokens, head_dim
SHAPES = [draw(batch, (batch, heads, q, d), (batch, heads, k, d)) for batch, heads, q, k, d in SIZES]
SHAPE_TABLE = """
Right: (batch, heads, q_tokens, kv_tokens).
(*key.shape[:3], query.shape[2])  # Queries and keys are swapped: the scores have a row for each query.
tuple(query.shape); tuple(key.shape)  # This is an input's shape: scores have a row for a query, a column for a key.
(*query.shape, key.shape[2]); (*query.shape[:3], key.shape[2], query.shape[3])  # head_dim is summed away: drop it.
(*key.shape[:3], key.shape[2])  # The number of keys appears twice: the axis before the last counts the queries.
(query.shape[1], query.shape[0], query.shape[2], key.shape[2])  # Batch and heads are swapped: batch comes first.
(query.shape[2], key.shape[2]); (*query.shape[1:3], key.shape[2])  # Axes are missing: batch and heads come first.
torch.zeros(*query.shape[:3], key.shape[2])  # This is a tensor of that shape: return the shape itself.
"""
PRODUCTS = ("matmul", "einsum", "bmm", "tensordot", "scaled_dot_product_attention")
check_scores_shape = Exercise(scores_shape, SHAPES, SHAPE_TABLE, forbidden=PRODUCTS)
