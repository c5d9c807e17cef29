"""Checks of notebook 00: a weighted average, a comparison that can fail, and the shape of the scores."""

from collections.abc import Callable

import torch

from attnlib.checks._judge import Verdict, judge


def check_weighted_average(answer: Callable) -> Verdict:
    """Exercise 1 of notebook 00: ``answer(weights, values)`` is Σ_j weights_j · values_j."""
    cases = [  # the first is square, so that mistakes with the axes run and can be named
        (torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.arange(16.0).reshape(4, 4) ** 2),
        (torch.tensor([0.25, 0.75]), torch.tensor([[4.0, 0.0, 8.0], [0.0, 4.0, 4.0]])),
        (torch.tensor([0.5, 0.2, 0.3]), torch.arange(15.0).reshape(3, 5) / 2),  # halves, which int() would cut
    ]
    mistakes = {
        "This is the plain mean: the weights are not used.": lambda weights, values: values.mean(0),
        "The values are weighted, but not yet summed over the tokens.": lambda w, values: w[:, None] * values,
        "This sums over the coordinates: the sum runs over the tokens, one number for each column.": lambda w, values: (
            w[:, None] * values
        ).sum(1),
        "weights * values weights the columns: row j of values belongs to weight j, so weights[:, None] * values.": (
            lambda w, values: (w * values).sum(0)
        ),
        "Softmax is taken again: these are weights already.": lambda w, values: w.softmax(0) @ values,
        "weights * values weights the columns, and nothing is summed yet.": lambda w, values: w * values,
        "This weights the columns: row j of values belongs to weight j.": lambda weights, values: values @ weights,
        "Divided by the number of tokens: the weights already sum to one.": lambda w, values: w @ values / len(w),
    }
    success = "Right: every attention of the series ends with this average."
    return judge(answer, lambda weights, values: weights @ values, cases, mistakes=mistakes, success=success)


def check_same(answer: Callable) -> Verdict:
    """Exercise 2 of notebook 00: ``answer(a, b)`` is True where no entry differs by more than 1e-5."""
    one, many, large = torch.ones(2, 3), torch.ones(40, 50), torch.full((2, 3), 100.0)
    off = one.clone()
    off[1, 2] = 1.001
    cancels = one.clone()
    cancels[0, 0], cancels[0, 1] = 2.0, 0.0
    hidden = many.clone()
    hidden[3, 4] = 1.00005
    cases = [(one, one + 1e-7), (one, one.clone()), (one, off), (off, one), (one - 5, one), (one, one - 5)]
    cases += [(one, cancels), (many, hidden), (large, large + 5e-4), (one, one + 4e-5)]
    zero, steps, spot = torch.zeros(2, 3), torch.arange(6.0).reshape(2, 3), torch.zeros(2, 3)
    spot[1, 0] = 9e-6
    cases += [
        (many, many + 5e-6),
        (zero, zero + 3e-6),
        (zero, spot),
        (zero, zero + 1.2e-5),
        (one, -one),
        (steps, steps.flip(1)),
    ]
    mistakes = {
        "It calls any a below b the same: take the absolute value first.": lambda a, b: bool((a - b).max() <= 1e-5),
        "It calls any a above b the same: take the absolute value first.": lambda a, b: bool((b - a).max() <= 1e-5),
        "It asks for equal bits; rounding in the last digit must pass.": torch.equal,
        "abs() comes too late: the largest of a − b does not see what lies far below. First abs(), then the largest.": (
            lambda a, b: bool((a - b).max().abs() <= 1e-5)
        ),
        "abs() belongs around the difference: 1 and −1 have the same absolute value, and differ by 2.": lambda a, b: (
            bool((a.abs() - b.abs()).abs().max() <= 1e-5)
        ),
        "The largest entries are compared, and stand in different places: subtract first, then take the largest.": (
            lambda a, b: bool((a.max() - b.max()).abs() <= 1e-5)
        ),
        "In a sum many small differences add up: each entry by itself may differ by 0.00001. Ask for the largest.": (
            lambda a, b: bool((a - b).abs().sum() <= 1e-5)
        ),
        "In a norm many small differences add up: each entry by itself may differ by 0.00001. Ask for the largest.": (
            lambda a, b: bool((a - b).norm() <= 1e-5)
        ),
        "The bound is too narrow: entries that differ by 0.000009 must pass.": lambda a, b: bool(
            (a - b).abs().max() <= 1e-6
        ),
        "A mean hides one wrong entry among many right ones: ask for the largest difference.": lambda a, b: bool(
            (a - b).abs().mean() <= 1e-5
        ),
        "Differences above and below zero cancel: take the absolute value of each, then the largest.": lambda a, b: (
            bool((a - b).sum().abs() <= 1e-5)
        ),
        "A difference of means cancels what lies above and below: take the absolute value of each difference, then the "
        "largest.": lambda a, b: bool((a.mean() - b.mean()).abs() <= 1e-5),
        "The smallest difference says nothing of the others: ask for the largest.": lambda a, b: bool(
            (a - b).abs().min() <= 1e-5
        ),
        "torch.allclose also allows a share of the numbers' size: pass rtol=0 and atol=1e-5.": torch.allclose,
        "torch.allclose also allows a share of the numbers' size: pass rtol=0 as well.": lambda a, b: torch.allclose(
            a, b, atol=1e-5
        ),
        "True and False are swapped.": lambda a, b: bool((a - b).abs().max() > 1e-5),
        "This is the difference; compare it with the bound.": lambda a, b: (a - b).abs().max(),
        "The bound is too wide: an entry that differs by 0.00004 must fail.": lambda a, b: bool(
            (a - b).abs().max() <= 1e-4
        ),
        "It always says True: it cannot fail, so it tests nothing.": lambda a, b: True,
    }
    success = "Right: rounding passes, and one wrong entry fails."
    try:
        answer(torch.zeros(2), torch.ones(2))
    except AssertionError:
        return Verdict("failed", "An assertion raises where tensors differ; return True or False yourself.")
    except Exception:  # the judge says what was raised
        pass
    verdict = judge(answer, lambda a, b: bool((a - b).abs().max() <= 1e-5), cases, mistakes=mistakes, success=success)
    for said, right in ((True, False), (False, True)):
        if verdict.message.endswith(f"gives {said:d} where {right:d} is right."):
            pairs = ((a, b) for a, b in cases if bool((a - b).abs().max() <= 1e-5) == right)
            gap = next(((a - b).abs().max() for a, b in pairs if bool(answer(a.clone(), b.clone())) == said), None)
            if gap is not None:  # None: an answer with chance in it
                size = f"{gap:.7f}".rstrip("0").rstrip(".")
                words = f"It says {said} for two tensors whose largest difference is {size}: it must say {right}."
                return Verdict("failed", words)
    return verdict


def check_scores_shape(answer: Callable) -> Verdict:
    """Exercise 3 of notebook 00: ``answer(query, key)`` is the shape of the scores as a tuple."""
    cases = [(torch.zeros(2, 3, 7, 5), torch.zeros(2, 3, 11, 5)), (torch.zeros(1, 4, 2, 6), torch.zeros(1, 4, 3, 6))]
    mistakes = {
        "Queries come first: a row for each query, a column for each key.": lambda query, key: (
            *key.shape[:-1],
            query.shape[-2],
        ),
        "That is the shape of the query: the scores have a column for each key, and no head_dim.": lambda query, key: (
            tuple(query.shape)
        ),
        "head_dim is summed away: the last axis counts the keys.": lambda query, key: (
            *query.shape[:-2],
            key.shape[-2],
            key.shape[-1],
        ),
        "These are the scores: return their shape alone.": lambda query, key: query @ key.mT,
        "The number of queries stands twice: the last axis counts the keys.": lambda query, key: (
            *query.shape[:-1],
            query.shape[-2],
        ),
        "The number of keys stands twice: the axis before the last counts the queries.": lambda query, key: (
            *key.shape[:-1],
            key.shape[-2],
        ),
        "Batch and heads have changed places.": lambda query, key: (
            query.shape[1],
            query.shape[0],
            query.shape[-2],
            key.shape[-2],
        ),
        "Every batch row and every head has its own matrix of scores: keep the first two axes.": lambda query, key: (
            query.shape[-2],
            key.shape[-2],
        ),
    }
    success = "Right: (batch, heads, q_tokens, kv_tokens)."
    verdict = judge(answer, lambda q, k: (*q.shape[:-1], k.shape[-2]), cases, mistakes=mistakes, success=success)
    if "should return the shape" in verdict.message:  # a shape about a shape would confuse
        count = torch.as_tensor(answer(*cases[0])).numel()
        wanted = "Four numbers are wanted, (batch, heads, q_tokens, kv_tokens), in one tuple"
        return Verdict("failed", f"{wanted}; it returned {count}.")
    return verdict
