"""Exercises of notebook 08: log-sum-exp, merging parts, a step of the online softmax, parts that overlap."""

import torch
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw


def log_sum_exp(scores: Tensor) -> Tensor:
    top = scores.amax(dim=-1, keepdim=True)  # (..., 1)
    return (scores - top).exp().sum(dim=-1).log() + top.squeeze(-1)  # (...)


def merge(outputs: Tensor, logsumexps: Tensor) -> Tensor:
    shares = torch.softmax(logsumexps, dim=0)  # (parts, tokens)
    return (shares[..., None] * outputs).sum(dim=0)  # (tokens, dim)


def online_step(top: Tensor, total: Tensor, scores: Tensor) -> Tensor:
    new_top = torch.maximum(top, scores.max())
    return torch.stack([new_top, total * (top - new_top).exp() + (scores - new_top).exp().sum()])


def overlapping(scores: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    once = scores.masked_fill(~seen.any(dim=0), -torch.inf)  # (keys,)
    return torch.softmax(once, dim=0) @ values  # (dim,)


def without(scores: Tensor, offset: Tensor) -> Tensor:
    """The logarithm of the sum after an offset is taken out. It is not added again."""
    return (scores - offset).exp().sum(-1).log()


def largest(scores: Tensor) -> Tensor:
    return scores.amax(-1, keepdim=True)


def weighted(weights: Tensor, outputs: Tensor) -> Tensor:
    return (weights[..., None] * outputs).sum(0)


def divided(exponentials: Tensor, outputs: Tensor, dim: tuple[int, ...] = (0,)) -> Tensor:
    return weighted(exponentials / exponentials.sum(dim, keepdim=True), outputs)


def peak(top: Tensor, scores: Tensor) -> Tensor:
    return torch.maximum(top, scores.max())


def step(given: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """A top to return, what is left of the old total, and the exponents of the new scores."""
    return torch.stack([given, old + new.exp().sum()])


def shrunk(top: Tensor, total: Tensor, scores: Tensor) -> Tensor:
    return total * (top - peak(top, scores)).exp()


def added(top: Tensor, total: Tensor, scores: Tensor, new: Tensor | float) -> Tensor:
    """The right top, and a total to which something else is added."""
    return torch.stack([peak(top, scores), shrunk(top, total, scores) + new])


def multiset(scores: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """Each key counts once for every part that sees it."""
    return (scores + seen.sum(0).log()).softmax(0) @ values


def times(seen: Tensor) -> Tensor:
    """How often each key is seen, at least 1."""
    return seen.sum(0).clamp(min=1)


def each_part(scores: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    return torch.stack([scores.masked_fill(~row, -torch.inf).softmax(0) @ values for row in seen])


check_log_sum_exp = Exercise(
    "Check ``answer(scores)``: the log-sum-exp over the last axis of scores (…, keys), without overflow.",
    log_sum_exp,
    [(x,) for x in draw(3, (5,), (4, 7), (2, 3, 4), (2, 1, 5), (1, 3), (3, 1))]
    + [(sign * torch.tensor([[0.0, 1.0, 2.0], [900.0, 901.0, 899.0]]),) for sign in (1, -1)]
    + [(torch.tensor([[900.0, -900.0, 899.0, 0.0], [-901.0, 1.0, 2.0, 0.5], [0.0, 0.0, 0.0, 0.0]]),)]
    + [(draw(4, (3, 6))[0].double() + torch.tensor([[-900.0], [0.0], [900.0]]).double(),)],
    """
    scores.exp().sum(-1).log()  # The exponentials overflow: subtract each row's largest score, and add it at the end.
    scores.double().exp().sum(-1).log()
    without(scores, -largest(scores)) - scores.amax(-1)
    without(scores, largest(scores))  # The largest score was subtracted, but never added again.
    without(scores, scores.max()) + scores.max()  # Each row needs its own maximum, amax(-1, keepdim=True).
    without(scores, scores.mean(-1, keepdim=True)) + scores.mean(-1)  # Subtract the largest score: here exponents
        # overflow.
    without(scores, scores.amin(-1, keepdim=True)) + scores.amin(-1)
    without(scores, scores[..., :1]) + scores[..., 0]
    without(scores, largest(scores)) - scores.amax(-1)  # The largest score is subtracted again at the end: add it.
    scores.exp().sum(-1)  # The log is missing: this is the sum of the exponentials.
    (scores - largest(scores)).exp().sum(-1)  # The log is missing: take it of this sum, then add the largest score.
    (scores - largest(scores)).exp().sum(-1) + scores.amax(-1)  # The log is missing: take it before you add.
    log_sum_exp(scores)[..., None]  # The last axis is still there, with size 1: remove it at the end with squeeze(-1).
    largest(scores) + without(scores, largest(scores))  # A column plus a row is a table: use top.squeeze(-1).
    scores.sum(-1)  # This is only the sum of the scores, because log undoes each exp: sum first, then take the log.
    scores.amax(-1)  # This is only the largest score: the others count as well.
    log_sum_exp(scores) - math.log(scores.shape[-1])  # This takes the mean of the exponentials: use sum, not mean.
    log_sum_exp(scores.mT if scores.ndim > 1 else scores)  # The sum runs over the wrong axis: use the last one, dim=-1.
    log_sum_exp(scores.flatten())  # This is one number for all rows: sum over the last axis only.
    scores - log_sum_exp(scores)[..., None]  # This is log_softmax, one number for each score: return the log-sum-exp.
    log_sum_exp(scores.clamp(-80, 80))  # Clamping changes the scores: subtract each row's largest score instead.
    without(scores, largest(scores)) / math.log(2) + scores.amax(-1)  # The base is 2: log undoes exp, log2 does not.
    log_sum_exp(-scores)  # The scores have the wrong sign.
    """,
    "Right, also at scores of ±900, where exp alone gives inf or 0.",
    forbidden=("logsumexp", "logcumsumexp", "logaddexp"),
)


def _parts(seed: int, shape: tuple[int, ...], shift: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    outputs, logsumexps = draw(seed, shape, shape[:-1])
    return outputs, 2 * logsumexps + shift


def _with_empty_parts() -> tuple[Tensor, Tensor]:
    outputs, logsumexps = _parts(12, (3, 4, 5))
    empty = torch.tensor([[False, True, False, True], [False, False, True, True], [False, False, False, False]])
    return outputs.masked_fill(empty[..., None], 0.0), logsumexps.masked_fill(empty, -torch.inf)


# Merging parts and combining rounds (notebook 07) are one computation: they share cases and mistakes.
PARTS = [
    *(
        _parts(7, (4, 4, 4)),
        _parts(5, (3, 4, 2)),
        _parts(6, (1, 2, 4)),
        _parts(8, (2, 1, 3)),
    ),  # wrong axes fit the first
    *(_parts(9, (2, 5, 3), 900.0), _parts(10, (5, 3, 6), -900.0)),
    _parts(11, (3, 4, 2), torch.tensor([900.0, 0.0, -900.0, 400.0])),  # tokens far apart
    _parts(13, (3, 2, 5), torch.tensor([[400.0], [-400.0], [398.0]])),  # parts far apart
    _with_empty_parts(),
    tuple(x.double() for x in _parts(14, (2, 3, 4), 1000.0)),
]

MERGE_MISTAKES = """
    outputs.mean(0)  # All parts count the same here: weight each by the exponential of its log-sum-exp.
    outputs.sum(0)  # The parts are added, not averaged: their weights must sum to one.
    divided(logsumexps, outputs)  # The log-sum-exps themselves are used as weights: take their exponentials first.
    weighted(logsumexps, outputs)
    divided(logsumexps.exp(), outputs)  # exp(logsumexp) overflows or rounds to 0: use torch.softmax over the parts.
    divided(logsumexps.double().exp(), outputs)
    divided(logsumexps.exp(), outputs).nan_to_num()  # Replacing NaN brings no number back: use torch.softmax.
    weighted(logsumexps.exp(), outputs)  # The weights do not sum to one: divide the exponentials by their sum.
    weighted((logsumexps - logsumexps.amax(0)).exp(), outputs)
    divided((logsumexps - logsumexps.max()).exp(), outputs)  # Each token needs its own maximum: amax(dim=0).
    divided((logsumexps - logsumexps.max()).exp(), outputs).nan_to_num()
    divided((logsumexps - logsumexps.mean(0)).exp(), outputs)  # Subtract the largest, not the mean, or exp overflows.
    weighted(logsumexps.flatten().softmax(0).view_as(logsumexps), outputs)  # The softmax runs over everything: dim=0.
    divided(logsumexps.exp(), outputs, (0, 1))
    weighted(logsumexps.softmax(-1), outputs)  # The softmax runs over the tokens: the parts are axis 0.
    outputs.softmax(0).sum(0)  # This is a softmax of the outputs: take it of the log-sum-exps.
    weighted((-logsumexps).softmax(0), outputs)  # The sign is wrong: a larger log-sum-exp means a larger weight.
    outputs.take_along_dim(logsumexps.argmax(0)[None, :, None], 0)[0]  # Only the heaviest part counts here.
    weighted(logsumexps.softmax(0), outputs) / len(outputs)  # The weights sum to one already: sum, not mean.
    weighted(logsumexps.log_softmax(0), outputs)  # These are logarithms of weights: use softmax.
    logsumexps.softmax(0)[..., None] * outputs  # The parts are weighted, but not yet added up: sum over axis 0.
    weighted(logsumexps.softmax(0), outputs)[None]  # The axis of the parts is left over: no keepdim.
    weighted(logsumexps.softmax(0), outputs).sum(-1)  # The sum runs over dim as well: keep that axis.
    weighted(logsumexps.softmax(0), outputs).sum(0)  # The sum runs over the tokens as well: keep that axis.
    (logsumexps.softmax(0)[..., None] * outputs).sum(1)  # The sum runs over the tokens: it must run over the parts.
    (logsumexps.softmax(0) * outputs.movedim(-1, 0)).sum(1)  # The numbers are right, transposed: return (tokens, dim).
    (logsumexps.softmax(0) * outputs).sum(0)  # The weights meet the wrong axis: use shares[..., None].
    (logsumexps.softmax(0)[:, None] * outputs).sum(0)
    logsumexps.softmax(0) @ outputs  # @ sums over the tokens: use shares[..., None] * outputs, and sum the parts.
    logsumexps.softmax(0)  # These are the weights of the parts: average the outputs with them.
    outputs[0]  # This is one part alone.
    weighted(logsumexps.sigmoid(), outputs)  # A sigmoid looks at one part only: a softmax compares the parts.
    divided(logsumexps.sigmoid(), outputs)
"""

check_merge = Exercise(
    "Check ``answer(outputs, logsumexps)``: (parts, tokens, dim) and (parts, tokens) to the merged output "
    "(tokens, dim).",
    merge,
    PARTS,
    MERGE_MISTAKES,
    "Right: any number of parts, empty ones too, and log-sum-exps of ±900.",
)


def _steps() -> list[tuple[Tensor, ...]]:
    rows = [(0.5, 1.5, [2.0, -1.0, 0.25]), (3.0, 2.0, [0.3, -1.2, 1.1, 0.7, -0.4])]  # a new top; the old one stays
    rows += [(-700.0, 1.25, [800.0, 799.0]), (800.0, 3.0, [-700.0, 799.0, 0.0]), (-700.0, 2.0, [-701.0, -699.5])]
    rows += [(-torch.inf, 0.0, [0.4, -0.6, 1.3, 0.2]), (-torch.inf, 0.0, [0.0, -900.0])]  # the first block
    rows += [(0.0, 1.0, [0.0]), (-1.5, 4.0, [-3.0, -2.5]), (0.0, 2.5, [-1.0, -0.5, -2.0]), (1.0, 0.5, [2.0])]
    cases = [(torch.tensor(top), torch.tensor(total), torch.tensor(scores)) for top, total, scores in rows]
    return [*cases, tuple(x.double() for x in cases[2]), tuple(x.double() for x in cases[3])]


check_online_step = Exercise(
    "Check ``answer(top, total, scores)``: the new top and total of the online softmax, as one tensor of two.",
    online_step,
    _steps(),
    """
    step(peak(top, scores), total, scores - peak(top, scores))  # Multiply the old total by exp(top − new_top).
    step(peak(top, scores), total * (peak(top, scores) - top).exp(), scores - peak(top, scores))  # The factor of the
        # old total is upside down: exp(top − new_top) is never above one.
    step(peak(top, scores), total * (top - peak(top, scores)), scores - peak(top, scores))  # The factor of the old
        # total needs exp: exp(top − new_top).
    step(peak(top, scores), total + (top - peak(top, scores)).exp(), scores - peak(top, scores))  # The old total must
        # be multiplied by exp(top − new_top), not added to it.
    step(peak(top, scores), total * (top - scores.max()).exp(), scores - peak(top, scores))  # The factor is exp(top −
        # new_top), not exp(top − scores.max()).
    step(peak(top, scores), total * top.exp(), scores - peak(top, scores))  # The factor is exp(top − new_top): subtract
        # new_top.
    step(peak(top, scores), total * top.exp() / peak(top, scores).exp(), scores - peak(top, scores))  # exp of a top
        # overflows or rounds to 0: subtract first, exp(top − new_top).
    torch.stack([peak(top, scores), (total * top.exp() + scores.exp().sum()) / peak(top, scores).exp()])  # exp of a
        # score or a top overflows or rounds to 0: subtract the new top first.
    step(scores.max(), total * (top - scores.max()).exp(), scores - scores.max())  # An earlier score may be above this
        # top.
    step(peak(top, scores), shrunk(top, total, scores), scores - scores.max())  # Subtract new_top, not scores.max().
    step(peak(top, scores), total, scores - scores.max())  # Both sums must count from the new top.
    step(peak(top, scores), shrunk(top, total, scores), scores - top)  # Subtract the new top, not the old one.
    step(peak(top, scores), shrunk(top, total, scores), scores)  # Subtract the new top from the scores before exp.
    step(peak(top, scores), total, scores)  # No top is subtracted: both sums must count from the new top.
    step(top, shrunk(top, total, scores), scores - peak(top, scores))  # The total is right, the top is the old one.
    step(top, total, scores - top)  # The top does not move: it must become the larger of the old one and the scores.
    step(peak(top, scores), 0 * total, scores - peak(top, scores))  # The old total is missing.
    step(peak(top, scores), shrunk(top, total, scores), scores[:0])  # The new scores are missing.
    added(top, total, scores, (scores - peak(top, scores)).sum())  # The new scores need exp before the sum.
    added(top, total, scores, (scores.sum() - peak(top, scores)).exp())  # Take exp first, then sum.
    added(top, total, scores, (scores - peak(top, scores)).exp().mean())  # Add up the new exponentials: sum, not mean.
    added(top, total, scores, 1.0)  # Only the largest new score is added: all of them count.
    torch.stack([peak(top, scores), total * online_step(top, torch.ones(()), scores)[1]])  # The old total multiplies
        # both terms: only the first contains it.
    online_step(top, total, scores).flip(0)  # The order is the other way around: the top first, then the total.
    online_step(top, total, scores)[1]  # This is the total alone: return torch.stack([new_top, new_total]).
    online_step(top, total, scores)[0] + online_step(top, total, scores)[1].log()  # This is the log-sum-exp of
        # everything so far: return the top and the total.
    torch.stack([top, total])  # Nothing changed: the new scores play no part.
    """,
    "Right: with a new top, with the old one, and for the first block of all.",
)


def _overlaps() -> list[tuple[Tensor, Tensor, Tensor]]:
    cases = []
    for seed, (parts, keys, dim) in enumerate(((3, 5, 2), (2, 7, 3), (4, 6, 5), (3, 4, 4), (2, 4, 1), (2, 5, 3))):
        scores, values, chance = draw(20 + seed, (keys,), (keys, dim), (parts, keys))
        seen = chance < 0.3
        seen[:, 0] = True  # one key that all parts see,
        seen[:, 1], seen[-1, 1] = False, True  # one that only the last part sees,
        seen[:, 2] = False  # one that nobody sees,
        seen[:, 3], seen[:2, 3] = False, True  # and one that two parts see
        cases.append((scores, values, seen))
    scores, values, seen = cases[-1]
    cases += [(scores + 900, values, seen), (scores.double() - 30000, values.double(), seen)]
    cases += [(scores + torch.tensor([0.0, 0.0, 400.0, 0.0, 0.0]), values, seen)]  # the unseen key is the best
    return [*cases, (torch.zeros(5), values, seen), (scores, values, torch.ones(1, 5, dtype=torch.bool))]


check_overlapping = Exercise(
    "Check ``answer(scores, values, seen)``: the average (dim,) of the values (keys, dim) over all keys that are seen, "
    "each counted once. scores is (keys,); seen is boolean (parts, keys): which part saw which key.",
    overlapping,
    _overlaps(),
    """
    multiset(scores, values, seen)  # A key that N parts see counts N times: subtract log N from its score.
    multiset(scores + times(seen).log(), values, seen)  # log N has the wrong sign: subtract it from the score.
    multiset(scores - times(seen), values, seen)  # This subtracts N: subtract log N, its logarithm.
    multiset(scores / times(seen), values, seen)  # This divides the score by N: subtract log N from it.
    multiset(scores - 2 * times(seen).log(), values, seen)  # log N is subtracted twice.
    multiset(scores, values / times(seen)[:, None], seen)  # The weights count N times, not the values: subtract log N.
    (scores - seen.sum(0).log()).softmax(0) @ values  # log 0 is −∞, so an unseen key gets the score +∞: hide it.
    scores.softmax(0) @ values  # A key that no part sees is counted too: its score must be −∞.
    scores.masked_fill(seen.any(0), -torch.inf).softmax(0) @ values  # This averages the keys that nobody sees.
    each_part(scores - times(seen).log(), values, seen).sum(0)  # The parts are added up: merge them by log-sum-exp.
    each_part(scores, values, seen).mean(0)  # The parts are averaged equally: merge them by log-sum-exp, after
        # subtracting log N from the scores.
    each_part(scores - times(seen).log(), values, seen).mean(0)
    overlapping(scores, values, seen & (seen.sum(0) == 1))  # A key that several parts see is lost: count it once.
    overlapping(scores, values, seen.all(0, keepdim=True))  # One part that sees a key is enough: seen.any(dim=0).
    (scores * seen.any(0)).softmax(0) @ values  # An unseen key gets the score 0, and exp(0) is 1: use −∞.
    scores.masked_fill(~seen.any(0), -100.0).softmax(0) @ values  # Real scores may be lower than this one: use −∞.
    scores.masked_fill(~seen.any(0), -1000.0).softmax(0) @ values
    (scores.softmax(0) * seen.any(0)) @ values  # The weights left do not sum to one: hide before the softmax.
    (scores.softmax(0) * seen.any(0)) / (scores.softmax(0) * seen.any(0)).sum() @ values  # This can become 0 / 0: hide
        # unseen keys before the softmax.
    (scores.exp() * seen.any(0)) / (scores.exp() * seen.any(0)).sum() @ values  # The exponentials overflow: use
        # softmax.
    seen.any(0).float() / seen.any(0).sum() @ values  # All seen keys count equally: use the softmax of scores.
    scores.masked_fill(~seen.any(0), -torch.inf).softmax(0)  # These are the weights: average the values with them.
    each_part(scores, values, seen)  # This is one average for each part: merge them, with each key counted once.
    values[scores.masked_fill(~seen.any(0), -torch.inf).argmax()]  # Only the best key is kept: the others count too.
    scores.masked_fill(~seen.any(0), -torch.inf) @ values  # The softmax is missing: scores are not weights.
    """,
    "Right: the softmax over the set of keys, no matter how often each one is seen.",
)
