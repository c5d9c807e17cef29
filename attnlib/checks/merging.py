"""Checks for notebook 08: log-sum-exp, merging parts, one step of the online softmax, keys met more than once."""

from collections.abc import Callable

import torch
from torch import Tensor

from attnlib.checks._judge import Verdict, judge


def check_log_sum_exp(answer: Callable[[Tensor], Tensor]) -> Verdict:
    """Check ``answer(scores)``: the log-sum-exp over the last axis of scores (…, keys), without overflow."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(4, 7, generator=generator)
    far_apart = torch.tensor([[0.0, 1.0, 2.0], [900.0, 901.0, 899.0]])
    in_one_row = torch.tensor([[900.0, -900.0, 899.0, 0.0], [-901.0, 1.0, 2.0, 0.5]])
    blocks = torch.randn(2, 3, 4, generator=generator)
    cases = [(torch.randn(5, generator=generator),), (rows,), (far_apart,), (-far_apart,), (in_one_row,), (blocks,)]
    mistakes = {
        "The exponentials overflow: subtract the largest score of each row before exp, and add it again after "
        "the log.": lambda s: s.exp().sum(-1).log(),
        "The largest score was subtracted and never added again.": lambda s: (s - s.amax(-1, keepdim=True)).logsumexp(
            -1
        ),
        "One largest score for all rows: a row far below it vanishes. Take the largest of each row, "
        "amax(-1, keepdim=True).": lambda s: (s - s.max()).exp().sum(-1).log() + s.max(),
        "Some exponent is above 0 and overflows: take out the largest score of the row, not the mean or the "
        "smallest.": lambda s: (s - s.mean(-1, keepdim=True)).exp().sum(-1).log() + s.mean(-1),
        "The largest score is subtracted once more at the end: add it.": lambda s: s.logsumexp(-1) - 2 * s.amax(-1),
        "The log is missing: this is the sum of the exponentials.": lambda s: s.exp().sum(-1),
        "The log is missing: take it of the sum, then add the largest score.": lambda s: (
            (s - s.amax(-1, keepdim=True)).exp().sum(-1)
        ),
        "The log of the sum is missing: take it before the largest score is added.": lambda s: (
            (s - s.amax(-1, keepdim=True)).exp().sum(-1) + s.amax(-1)
        ),
        "The last axis is still there, with length 1: drop it at the end, with squeeze(-1).": lambda s: s.logsumexp(
            -1, keepdim=True
        ),
        "A column of largest scores and a row of logs were added, which gives a table: give both the same shape, "
        "for example with squeeze(-1).": lambda s: (
            s.amax(-1, keepdim=True) + (s - s.amax(-1, keepdim=True)).exp().sum(-1).log()
        ),
        "This is a sum of logs of exponentials, which is the sum of the scores: first add, then take the "
        "log.": lambda s: s.sum(-1),
        "This is the largest score; the others add to it.": lambda s: s.amax(-1),
        "The mean is not the sum: use sum.": lambda s: s.logsumexp(-1) - torch.tensor(s.shape[-1]).log(),
        "The sum runs over the rows: use the last axis, dim=-1.": lambda s: s.logsumexp(0),
        "This is one number for all rows: sum over the last axis alone.": lambda s: s.flatten().logsumexp(0),
    }
    return judge(
        answer,
        lambda s: s.logsumexp(-1),
        cases,
        mistakes=mistakes,
        success="Right, also at scores of ±900, where exp alone gives inf or 0.",
    )


def check_merge(answer: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check ``answer(outputs, logsumexps)``: (parts, tokens, dim) and (parts, tokens) to the merged output."""
    generator = torch.Generator().manual_seed(5)
    cases = []
    for parts, tokens, dim, shift in ((3, 4, 2, 0.0), (2, 5, 3, 500.0), (1, 2, 4, 0.0), (5, 3, 6, -500.0)):
        outputs = torch.randn(parts, tokens, dim, generator=generator)
        cases.append((outputs, 2 * torch.randn(parts, tokens, generator=generator) + shift))
    far_apart = torch.tensor([500.0, 0.0, -500.0, 0.0]) + torch.randn(3, 4, generator=generator)  # from token to token
    cases.append((torch.randn(3, 4, 2, generator=generator), far_apart))
    mistakes = {
        "All parts count alike here: weigh each by the exponential of its log-sum-exp.": lambda o, z: o.mean(0),
        "The parts are added, not averaged: the weights must sum to one.": lambda o, z: o.sum(0),
        "The log-sum-exps themselves are used as weights: take their exponentials first.": lambda o, z: (
            (z / z.sum(0))[..., None] * o
        ).sum(0),
        "exp(logsumexp) overflows or vanishes: use softmax over the parts, which subtracts the largest "
        "first.": lambda o, z: (z.exp()[..., None] * o).sum(0) / z.exp().sum(0)[..., None],
        "The weights are not divided by their sum.": lambda o, z: (z.exp()[..., None] * o).sum(0),
        "One largest log-sum-exp for all tokens: a token far below it vanishes. Use softmax over the "
        "parts.": lambda o, z: ((z - z.max()).exp()[..., None] * o).sum(0) / (z - z.max()).exp().sum(0)[..., None],
        "The softmax runs over parts and tokens together: each token needs its own, over axis 0.": lambda o, z: (
            z.flatten().softmax(0).view_as(z)[..., None] * o
        ).sum(0),
        "The softmax runs over the tokens: the parts are axis 0.": lambda o, z: (z.softmax(-1)[..., None] * o).sum(0),
        "The weights are turned round: the larger a log-sum-exp, the more its part counts.": lambda o, z: (
            (-z).softmax(0)[..., None] * o
        ).sum(0),
        "Only the heaviest part is kept.": lambda o, z: torch.gather(
            o, 0, z.argmax(0)[None, :, None].expand(1, *o.shape[1:])
        )[0],
    }
    return judge(
        answer,
        lambda o, z: (z.softmax(0)[..., None] * o).sum(0),
        cases,
        mistakes=mistakes,
        success="Right: any number of parts, and log-sum-exps of ±500.",
    )


def check_online_step(answer: Callable[[float, float, Tensor], Tensor]) -> Verdict:
    """Check ``answer(top, total, scores)``: the new top and total of the online softmax, as one tensor of two."""
    generator = torch.Generator().manual_seed(7)
    cases = [
        (torch.tensor(0.5), torch.tensor(1.5), torch.tensor([2.0, -1.0, 0.25])),  # a new top
        (torch.tensor(3.0), torch.tensor(2.0), torch.randn(5, generator=generator)),  # the old one stays
        (torch.tensor(-700.0), torch.tensor(1.25), torch.tensor([800.0, 799.0])),
        (torch.tensor(-torch.inf), torch.tensor(0.0), torch.randn(4, generator=generator)),  # the first block
    ]

    def step(top: Tensor, total: Tensor, scores: Tensor) -> Tensor:
        new_top = torch.maximum(top, scores.max())
        return torch.stack([new_top, total * (top - new_top).exp() + (scores - new_top).exp().sum()])

    def rising(top: Tensor, scores: Tensor) -> Tensor:
        return torch.maximum(top, scores.max())

    mistakes = {
        "The old total is not shrunk: it was counted from the old top. Multiply it by "
        "exp(top − new_top).": lambda t, n, s: torch.stack([rising(t, s), n + (s - rising(t, s)).exp().sum()]),
        "The old total shrinks the wrong way: its factor is exp(top − new_top), never above one.": lambda t, n, s: (
            torch.stack([rising(t, s), n * (rising(t, s) - t).exp() + (s - rising(t, s)).exp().sum()])
        ),
        "The top is that of the new block alone: an earlier score may be larger.": lambda t, n, s: torch.stack(
            [s.max(), n * (t - s.max()).exp() + (s - s.max()).exp().sum()]
        ),
        "The new scores are counted from the top of their own block: count them from the new top.": lambda t, n, s: (
            torch.stack([rising(t, s), n * (t - rising(t, s)).exp() + (s - s.max()).exp().sum()])
        ),
        "The new scores are counted from the old top: they may overflow. Count them from the new "
        "top.": lambda t, n, s: torch.stack([rising(t, s), n + (s - t).exp().sum()]),
        "The new scores are not counted from a top at all: take the new top off before exp.": lambda t, n, s: (
            torch.stack([rising(t, s), n * (t - rising(t, s)).exp() + s.exp().sum()])
        ),
        "The total is right, but the top given back is the old one.": lambda t, n, s: torch.stack(
            [t, step(t, n, s)[1]]
        ),
        "The top does not move: it must become the larger of the old one and the scores.": lambda t, n, s: torch.stack(
            [t, n + (s - t).exp().sum()]
        ),
        "The old total is forgotten: add it, shrunk by exp(top − new_top).": lambda t, n, s: torch.stack(
            [rising(t, s), (s - rising(t, s)).exp().sum()]
        ),
        "Give the top first, then the total.": lambda t, n, s: step(t, n, s).flip(0),
    }
    return judge(
        answer,
        step,
        cases,
        mistakes=mistakes,
        success="Right: with a new top, with the old one, and for the first block of all.",
    )


def check_overlapping(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Verdict:
    """Check ``answer(scores, values, seen)``: merged output of parts that overlap, each key counted once.

    ``scores`` (keys,), ``values`` (keys, dim), ``seen`` boolean (parts, keys): part p saw key j.
    """
    generator = torch.Generator().manual_seed(9)
    cases = []
    for parts, keys, dim in ((3, 5, 2), (2, 7, 3), (4, 6, 5)):
        seen = torch.rand(parts, keys, generator=generator) < 0.6
        seen[:, 0] = True  # one key that all parts saw,
        seen[:, 1], seen[0, 1] = False, True  # one that a single part saw,
        seen[:, 2] = False  # and one that nobody saw
        cases.append((torch.randn(keys, generator=generator), torch.randn(keys, dim, generator=generator), seen))

    def merged(scores: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """The parts' exponentials together, each as often as it is seen."""
        return _average(scores + seen.sum(0).log(), values)

    mistakes = {
        "A key that several parts saw counts several times: subtract log N from its score, N being how many parts saw "
        "it.": merged,
        "log N goes the wrong way: subtract it from the score.": lambda s, v, seen: merged(
            s + seen.sum(0).clamp(min=1).log(), v, seen
        ),
        "N itself is subtracted: it is log N that divides the exponential by N.": lambda s, v, seen: merged(
            s - seen.sum(0), v, seen
        ),
        "The score is divided by N: subtract log N, which divides its exponential.": lambda s, v, seen: merged(
            s / seen.sum(0).clamp(min=1), v, seen
        ),
        "A key that no part saw is counted too.": lambda s, v, seen: _average(s, v),
        "The parts are averaged alike: weigh each by the exponential of its log-sum-exp.": lambda s, v, seen: (
            torch.stack([_average(s.masked_fill(~row, -torch.inf), v) for row in seen]).mean(0)
        ),
        "Keys that several parts saw are thrown away: count them once.": lambda s, v, seen: _average(
            s.masked_fill(seen.sum(0) != 1, -torch.inf), v
        ),
        "The values are divided by N: it is the weights that are added N times. Subtract log N from the "
        "score.": lambda s, v, seen: merged(s, v / seen.sum(0).clamp(min=1)[:, None], seen),
        "A key that no part saw has score 0 here, and so the weight e⁰ = 1: its score must be −∞.": lambda s, v, seen: (
            _average(s * seen.any(0), v)
        ),
        "The weights of unseen keys are taken away after the softmax: the others no longer sum to "
        "one.": lambda s, v, seen: (s.softmax(-1) * seen.any(0)) @ v,
    }
    return judge(
        answer,
        lambda s, v, seen: _average(s.masked_fill(~seen.any(0), -torch.inf), v),
        cases,
        mistakes=mistakes,
        success="Right: the softmax over the set of keys, however often each one is met.",
    )


def _average(scores: Tensor, values: Tensor) -> Tensor:
    return scores.softmax(-1) @ values
