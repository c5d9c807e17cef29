"""Exercises of notebook 00: a weighted average, a comparison that can fail, the shape of the scores."""

import torch
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw


def weighted_average(weights: Tensor, values: Tensor) -> Tensor:
    return weights @ values


def same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5)


def scores_shape(query: Tensor, key: Tensor) -> tuple[int, int, int, int]:
    batch, heads, q_tokens, _ = query.shape
    return (batch, heads, q_tokens, key.shape[2])


def products(weights: Tensor, values: Tensor) -> Tensor:
    """Each row times its weight, not yet summed."""
    return weights[:, None] * values


def gap(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs()


def _average_cases() -> list[tuple[Tensor, Tensor]]:
    square = (torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.arange(16.0).reshape(4, 4) ** 2)
    halves = (torch.tensor([0.5, 0.2, 0.3]), torch.arange(15.0).reshape(3, 5) / 2)  # int() would cut them
    zeros = (torch.tensor([0.0, 0.75, 0.0, 0.25]), torch.tensor([[1000.0, -1000.0], [4, 0], [-1000, 1], [0, -3]]))
    long = draw(1, (130,), (130, 3))
    precise = draw(2, (3,), (3, 2))
    cases = [square, halves, zeros, (long[0].softmax(0), long[1]), (torch.ones(1), torch.tensor([[2.5]]))]
    return [*cases, (precise[0].double().softmax(0), precise[1].double())]


check_weighted_average = Exercise(
    "Check ``answer(weights, values)``: the sum of the rows of values (tokens, value_dim), each times its weight.",
    weighted_average,
    _average_cases(),
    """
    values.mean(0)  # This is the plain mean: the weights are not used.
    values.sum(0)  # This is the plain sum: the weights are not used.
    products(weights, values)  # The rows are weighted, but not summed yet: sum over the tokens, axis 0.
    products(weights, values).cumsum(0)  # These are running sums: return only the last one.
    products(weights, values).sum(1)  # This sums over the columns: sum over the tokens, axis 0, so that one number is
        # left for each column.
    products(weights, values).sum()  # Everything is summed into one number: sum over the tokens only, axis 0.
    (weights @ values).sum()
    products(weights, values).mean(0)  # This is divided by the number of tokens, but the weights already sum to one:
        # use sum, not mean.
    products(weights, values).mean(1)  # This is a mean over the columns: sum over the tokens, axis 0.
    products(weights, values).amax(0)  # This is the largest product in each column: add them up.
    products(weights, values)[0]  # Only the first row is used: add up all rows before you return.
    products(weights, values)[-1]  # Only the last row is used: add each product to what you have so far.
    products(weights, values)[1:].sum(0)  # The first row is left out: tokens count from 0.
    products(weights, values)[:-1].sum(0)  # The last row is left out: the loop stops one token too early.
    (weights * values).sum(0)  # The columns are weighted here: row j belongs to weight j, so write weights[:, None] *
        # values.
    (weights * values).sum(1)
    (weights * values).mean(0)
    weights * values  # The columns are weighted here, and nothing is summed yet: row j belongs to weight j.
    weights.softmax(0) @ values  # Softmax is taken again, but these are weights already.
    values.softmax(0).mT @ weights  # The softmax of the values is averaged: average the values themselves.
    (weights[:, None] + values).sum(0)  # The weights are added to the rows: multiply each row by its weight.
    weights**2 @ values  # The weights are used twice: multiply each row by its weight once.
    products(weights, products(weights, values)).sum(0)
    values[weights.argmax()]  # This is the row with the largest weight: every row counts, each with its weight.
    weights.flip(0) @ values  # The weights are in reverse order: row j belongs to weight j.
    (weights @ values).int()  # The decimals are cut off: return the numbers as they are.
    (weights @ values).round()  # The numbers are rounded: return them as they are.
    """,
    "Right: every attention in this series ends with this average.",
)


def _same_cases() -> list[tuple[Tensor, Tensor]]:
    one, zero, many, hundred = torch.ones(2, 3), torch.zeros(2, 3), torch.ones(40, 50), torch.full((2, 3), 100.0)
    steps, last, first, spot, lower = torch.arange(6.0).reshape(2, 3), zero.clone(), zero.clone(), 0 * many, 0 * many
    last[1, 2], first[0, 0], spot[39, 48], lower[20:] = 1e-3, 1.0, 1.0, 1e-3
    false = [(one, one + last), (one + last, one), (one - 5, one), (one, one - 5), (one, one + first - first.roll(1))]
    false += [(many, many + 5e-5 * spot), (many, many + 0.01 * spot), (many, many + lower), (one, one + 0.3)]
    false += [(hundred, hundred + 5e-4), (hundred, hundred + 1e-4), (hundred, hundred - 4e-5), (one, one + 4e-5)]
    false += [(zero, zero + 1.2e-5), (zero.double(), zero.double() + 1.01e-5), (1000 * steps, 1000 * steps + 1)]
    false += [(one, -one), (steps, steps.flip(1)), (steps, steps.flip(0)), (one, one + first.roll(1))]
    true = [(one, one + 1e-7), (zero, zero + 5e-8), (one, one.clone()), (many, many + 5e-6), (zero, zero + 3e-6)]
    true += [(zero, 9e-6 * first), (steps, steps + 4e-6 * (-1) ** steps), (one[:1, :1], one[:1, :1] - 2e-6)]
    true += [(zero + 4e-6, zero + 6e-6), (zero + 0.499999, zero + 0.500001)]  # rounding parts them
    return [*false, *true, (many.double(), many.double() - 9e-6)]


check_same = Exercise(
    "Check ``answer(a, b)``: True if no entry of the two tensors differs by more than 1e-5.",
    same,
    _same_cases(),
    """
    bool((a - b).max() <= 1e-5)  # Any a that lies below b counts as the same: take the absolute value of the difference
        # first.
    bool((b - a).max() <= 1e-5)  # Any a that lies above b counts as the same: take the absolute value of the difference
        # first.
    bool((a - b).max().abs() <= 1e-5)  # abs() comes too late: the largest of a − b misses an entry far below zero. Take
        # abs() first, then max().
    bool((a - b).min().abs() <= 1e-5)  # abs() comes too late: the smallest of a − b misses an entry far above zero.
        # Take abs() first, then max().
    bool((a.abs() - b.abs()).abs().max() <= 1e-5)  # abs() belongs around the difference: 1 and −1 have the same
        # absolute value, but differ by 2.
    bool((a.max() - b.max()).abs() <= 1e-5)  # The largest entries are compared, which may be in different places:
        # subtract first, then take the largest.
    bool((a.norm() - b.norm()).abs() <= 1e-5)  # The lengths of two tensors can agree while their entries differ:
        # subtract first, then look at each entry.
    torch.equal(a, b)  # This asks for exactly the same bits, but rounding in the last digit must pass: compare the
        # difference with 1e-5.
    bool(gap(a, b).max() == 0)
    bool((a == b).any())  # One equal entry is enough here: every entry must be close.
    bool((gap(a, b) <= 1e-5).any())  # One entry that is close is enough here: ask for the largest difference.
    bool(gap(a, b).min() <= 1e-5)
    bool(gap(a, b).sum() <= 1e-5)  # In a sum many small differences add up, but each entry by itself may differ by
        # 0.00001: ask for the largest.
    bool((a - b).norm() <= 1e-5)  # In a norm many small differences add up, but each entry by itself may differ by
        # 0.00001: ask for the largest.
    bool(gap(a, b).mean() <= 1e-5)  # A mean hides one wrong entry among many right ones: ask for the largest
        # difference.
    bool(gap(a, b).median() <= 1e-5)  # A median hides wrong entries among many right ones: ask for the largest
        # difference.
    bool((a - b).square().mean() <= 1e-5)  # The difference is squared, so small ones look smaller still, and the mean
        # hides one wrong entry: take abs(), then max().
    bool((a - b).square().max() <= 1e-5)  # The difference is squared, so 0.001 becomes 0.000001: take abs().
    bool((a - b).sum().abs() <= 1e-5)  # Differences above and below zero cancel: take the absolute value of each, then
        # the largest.
    bool((a - b).mean().abs() <= 1e-5)
    bool((a.sum() - b.sum()).abs() <= 1e-5)
    bool((a.mean() - b.mean()).abs() <= 1e-5)
    bool((a - b).mean() <= 1e-5)
    bool((a - b).sum() <= 1e-5)
    torch.allclose(a, b)  # The bound grows with the numbers, as rtol does in torch.allclose: the difference itself must
        # be at most 0.00001 (rtol=0, atol=1e-5).
    torch.allclose(a, b, atol=1e-5)
    torch.allclose(a, b, rtol=1e-5, atol=0)
    torch.allclose(a, b, rtol=1.3e-6, atol=1e-5)
    bool(((a - b) / b).abs().max() <= 1e-5)
    bool(gap(a, b)[0].max() <= 1e-5)  # Only the first row is compared: every entry counts.
    bool(gap(a, b).flatten()[0] <= 1e-5)  # Only the first entry is compared: every entry counts.
    bool(gap(a, b).flatten()[-1] <= 1e-5)  # Only the last entry is compared: every entry counts.
    bool(gap(a, b).flatten()[:100].max() <= 1e-5)  # Only the first 100 entries are compared: every entry counts.
    bool(gap(a, b).max() <= 1e-6)  # The bound is too narrow: entries that differ by 0.000009 must pass.
    bool(gap(a, b).max() <= 1e-7)
    bool(gap(a, b).max() <= 1e-4)  # The bound is too wide: an entry that differs by 0.00004 must fail.
    bool(gap(a, b).max() <= 1e-3)
    bool(gap(a, b).max() <= 10e-5)
    bool(gap(a, b).max() > 1e-5)  # True and False are swapped.
    gap(a, b).max()  # This is the largest difference: compare it with the bound.
    gap(a, b)  # These are the differences: take the largest, and compare it with the bound.
    gap(a, b) <= 1e-5  # This gives one answer for each entry: return one for all of them, with all().
    True  # This always says True: it cannot fail, so it tests nothing.
    a.shape == b.shape
    False  # This always says False: tensors that differ by rounding only must pass.
    a is b
    torch.equal(a.sort().values, b.sort().values)  # Sorting loses the places: compare each entry with the one in the
        # same place.
    torch.equal(a.round(), b.round())  # Rounding is not a bound: two numbers can be close and round to different ones,
        # or differ and round to the same. Take the largest difference.
    torch.equal(a.round(decimals=5), b.round(decimals=5))
    torch.equal(a.round(decimals=4), b.round(decimals=4))
    """,
    "Right: rounding passes, and one wrong entry fails.",
    describe=lambda a, b: f"two tensors whose largest difference is {float(gap(a, b).max()):.3g}",
)


check_scores_shape = Exercise(
    "Check ``answer(query, key)``: the shape of the scores, as a tuple of four numbers.",
    scores_shape,
    [
        (torch.zeros(2, 3, 7, 5), torch.zeros(2, 3, 11, 5)),
        (torch.zeros(1, 4, 2, 6), torch.zeros(1, 4, 3, 6)),
        (torch.zeros(5, 1, 1, 2), torch.zeros(5, 1, 130, 2)),
    ],
    """
    (*key.shape[:3], query.shape[2])  # Queries come first: the scores have a row for each query and a column for each
        # key.
    tuple(query.shape)  # This is the shape of the query: the scores have no head_dim, but a column for each key.
    tuple(key.shape)  # This is the shape of the key: the scores have a row for each query and a column for each key.
    (*query.shape[:2], key.shape[2], key.shape[3])
    (*query.shape, key.shape[2])  # head_dim is summed away by the dot product: the last two numbers are those of
        # queries and keys.
    (*query.shape[:3], key.shape[2], query.shape[3])
    (*query.shape[:2], query.shape[3], key.shape[2])
    (*query.shape[:3], query.shape[3] + key.shape[3])
    (*query.shape[:3], query.shape[2])  # The number of queries appears twice: the last axis counts the keys.
    (*key.shape[:3], key.shape[2])  # The number of keys appears twice: the axis before the last counts the queries.
    (*query.shape[:2], key.shape[3], query.shape[3])  # head_dim appears twice: the last two numbers are those of
        # queries and keys.
    (query.shape[1], query.shape[0], query.shape[2], key.shape[2])  # Batch and heads are swapped: batch comes first.
    (query.shape[0], query.shape[2], query.shape[1], key.shape[2])  # Heads and queries are swapped: (batch, heads,
        # q_tokens, kv_tokens).
    (query.shape[2], key.shape[2])  # Each head of each batch entry has its own matrix of scores: keep the first two
        # axes.
    (query.shape[1], query.shape[2], key.shape[2])  # The batch is missing: each batch entry has its own scores.
    (query.shape[0], query.shape[2], key.shape[2])  # The heads are missing: each head has its own scores.
    (query.shape[0] * query.shape[1], query.shape[2], key.shape[2])  # Batch and heads are one number here: keep them
        # apart.
    (*query.shape[:2], query.shape[2] * key.shape[2])  # Queries and keys are one number here: keep them apart, a row
        # for each query and a column for each key.
    query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]  # This is how many scores there are: return the
        # four sizes as a tuple.
    query.ndim  # This is how many axes there are: return the size of each, as a tuple.
    (*query.shape[:2], query.shape[2] + key.shape[2], query.shape[3])  # Queries and keys are not joined: each query
        # meets each key.
    (*query.shape[:3], key.shape[2] + 1)  # The last number is too large by one: there is one column for each key.
    (*query.shape[:3], key.shape[2] - 1)  # The last number is too small by one: there is one column for each key.
    torch.zeros(*query.shape[:3], key.shape[2])  # This is a tensor of that shape: return the shape itself, a tuple of
        # four numbers.
    """,
    "Right: (batch, heads, q_tokens, kv_tokens).",
    forbidden=("matmul", "einsum", "bmm", "tensordot", "scaled_dot_product_attention"),
)
