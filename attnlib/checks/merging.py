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


def without(scores: Tensor, offset: Tensor | None = None) -> Tensor:
    """The log-sum-exp after an offset was subtracted, by default the largest score. It is not added again."""
    return (scores - (scores.amax(-1, keepdim=True) if offset is None else offset)).exp().sum(-1).log()


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


def rest(top: Tensor, scores: Tensor, old: Tensor) -> Tensor:
    """The right step, but for what is left of the old total."""
    return step(peak(top, scores), old, scores - peak(top, scores))


def multiset(scores: Tensor, values: Tensor, seen: Tensor, power: int = 1) -> Tensor:
    """A key that N parts see counts N to this power."""
    return (scores + power * seen.sum(0).log()).softmax(0) @ values


def filled(scores: Tensor, hide: Tensor, fill: float = -torch.inf) -> Tensor:
    return scores.masked_fill(hide, fill)


def each_part(scores: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    return torch.stack([filled(scores, ~row).softmax(0) @ values for row in seen])


check_log_sum_exp = Exercise(
    "Check ``answer(scores)``: the log-sum-exp over the last axis of scores (…, keys), without overflow.",
    log_sum_exp,
    [(x,) for x in draw(3, (5,), (4, 7), (2, 3, 4), (2, 1, 5), (1, 3), (3, 1))]
    + [(sign * torch.tensor([[0.0, 1.0, 2.0], [900.0, 901.0, 899.0]]),) for sign in (1, -1)]
    + [(torch.tensor([[900.0, -900.0, 899.0, 0.0], [-901.0, 1.0, 2.0, 0.5], [0.0, 0.0, 0.0, 0.0]]),)]
    + [(draw(4, (3, 6), double=True)[0] + torch.tensor([[-900.0], [0.0], [900.0]]).double(),)],
    """
    scores.exp().sum(-1).log(); scores.double().exp().sum(-1).log()  # exp overflows: subtract each row's largest score.
    without(scores)  # The largest score was subtracted, but never added again.
    without(scores, scores.max()) + scores.max()  # Each row needs its own maximum, amax(-1, keepdim=True).
    without(scores, scores.mean(-1, keepdim=True)) + scores.mean(-1)  # exp still overflows: subtract the largest score.
    scores.exp().sum(-1)  # The log is missing: this is the sum of the exponentials.
    without(scores) - scores.amax(-1)  # Add the largest score at the end, do not subtract it again.
    without(scores).exp(); without(scores).exp() + scores.amax(-1)  # Take the log, then add the largest score.
    without(scores).exp().sum().log() + scores.amax(-1)  # The sum runs over all rows: use the last axis, dim=-1.
    scores.amax(-1, keepdim=True) + without(scores)  # A column plus a row is a table: use top.squeeze(-1).
    scores.amax(-1)  # This is only the largest score: the others count as well.
    log_sum_exp(scores) - math.log(scores.shape[-1])  # This takes the mean of the exponentials: use sum, not mean.
    log_sum_exp(scores.mT if scores.ndim > 1 else scores)  # The sum runs over the wrong axis: use the last one, dim=-1.
    log_sum_exp(scores.clamp(-80, 80))  # Clamping changes the scores: subtract each row's largest score instead.
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
PARTS: list[tuple[Tensor, ...]] = [_parts(7, (4, 4, 4)), _parts(5, (3, 4, 2))]  # square first: wrong axes fit
PARTS += [_parts(6, (1, 2, 4)), _parts(8, (2, 1, 3))]
PARTS += [_parts(9, (2, 5, 3), 900.0), _parts(10, (5, 3, 6), -900.0), _with_empty_parts()]
PARTS += [_parts(11, (3, 4, 2), torch.tensor([900.0, 0.0, -900.0, 400.0]))]  # tokens far apart
PARTS += [_parts(13, (3, 2, 5), torch.tensor([[400.0], [-400.0], [398.0]]))]  # parts far apart
PARTS += [tuple(x.double() for x in _parts(14, (2, 3, 4), 1000.0))]

MERGE_MISTAKES = """
    divided(logsumexps.clamp(-80, 80).exp(), outputs)  # Clamping changes the weights: use torch.softmax.
    outputs.mean(0)  # All parts count the same here: weight each by the exponential of its log-sum-exp.
    outputs.sum(0)  # The parts are added, not averaged: their weights must sum to one.
    divided(logsumexps, outputs); weighted(logsumexps, outputs)  # The log-sum-exps need exp before they are weights.
    divided(logsumexps.exp(), outputs); divided(logsumexps.double().exp(), outputs)  # exp overflows: use torch.softmax.
    weighted(logsumexps.exp(), outputs)  # The weights do not sum to one: divide the exponentials by their sum.
    divided((logsumexps - logsumexps.max()).exp(), outputs)  # Each token needs its own maximum: amax(dim=0).
    divided(logsumexps.exp(), outputs, (0, 1))  # The softmax runs over everything: dim=0.
    weighted(logsumexps.softmax(-1), outputs)  # The softmax runs over the tokens: the parts are axis 0.
    weighted((-logsumexps).softmax(0), outputs)  # The sign is wrong: a larger log-sum-exp means a larger weight.
    weighted(logsumexps.exp().softmax(0), outputs)  # softmax takes the exponential itself: leave exp away.
    weighted(logsumexps.log_softmax(0), outputs)  # These are the logarithms of the weights: softmax, not log_softmax.
    weighted(logsumexps.nan_to_num(neginf=0.0).softmax(0), outputs)  # An empty part keeps its −∞, and so weighs 0.
    outputs.take_along_dim(logsumexps.argmax(0)[None, :, None], 0)[0]  # Only the heaviest part counts here.
    weighted(logsumexps.softmax(0), outputs) / len(outputs)  # The weights sum to one already: sum, not mean.
    logsumexps.softmax(0)[..., None] * outputs  # The parts are weighted, but not yet added up: sum over axis 0.
    (logsumexps.softmax(0) * outputs).sum(0)  # The weights meet the wrong axis: use shares[..., None].
    (logsumexps.softmax(0)[:, None] * outputs).sum(0)  # The weights meet the wrong axis: use shares[..., None].
    logsumexps.softmax(0) @ outputs  # @ sums over the tokens: use shares[..., None] * outputs, and sum the parts.
    logsumexps.softmax(0)  # These are the weights of the parts: average the outputs with them.
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
    step(peak(top, scores), total, scores)  # Subtract the new top before exp, and shrink the old total to match.
    step(peak(top, scores), shrunk(top, total, scores), scores)  # Subtract the new top from the new scores, before exp.
    step(top, total, scores - top)  # The top must rise when a score is larger: torch.maximum(top, scores.max()).
    rest(top, scores, total / (top - peak(top, scores)).exp())  # The factor is upside down: exp(top − new_top).
    rest(top, scores, total + (top - peak(top, scores)).exp())  # Multiply the old total by the factor, do not add it.
    rest(top, scores, total * top.exp() / peak(top, scores).exp())  # exp(top) overflows: take exp(top − new_top).
    step(scores.max(), total * (top - scores.max()).exp(), scores - scores.max())  # An earlier score may be higher.
    step(peak(top, scores), shrunk(top, total, scores), scores - scores.max())  # Subtract new_top, not scores.max().
    step(peak(top, scores), shrunk(top, total, scores), scores - top)  # Subtract the new top, not the old one.
    step(top, shrunk(top, total, scores), scores - peak(top, scores))  # The total is right, the top is the old one.
    rest(top, scores, 0 * total)  # The old total is missing.
    step(peak(top, scores), shrunk(top, total, scores), scores[:0])  # The new scores are missing.
    torch.stack([peak(top, scores), online_step(top, total, scores)[1].log()])  # The total stays a sum: take no log.
    online_step(top, total, scores).flip(0)  # The order is the other way around: the top first, then the total.
    online_step(top, total, scores)[1]  # This is the total alone: return torch.stack([new_top, new_total]).
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
    multiset(scores, values, seen, 2)  # log N has the wrong sign: subtract it from the score.
    multiset(scores / seen.sum(0).clamp(min=1), values, seen)  # Subtract log N from the score, do not divide it by N.
    multiset(scores - seen.sum(0), values, seen)  # Subtract log N from the score, not N.
    F.normalize(scores.exp() * seen.any(0), p=1, dim=0, eps=0) @ values  # exp overflows, or gives 0 / 0: use softmax.
    (scores - seen.sum(0).log()).softmax(0) @ values  # log 0 is −∞, so an unseen key gets the score +∞: hide it.
    scores.softmax(0) @ values  # A key that no part sees is counted too: its score must be −∞.
    each_part(scores - seen.sum(0).log(), values, seen).sum(0)  # The parts are added up: merge them by log-sum-exp.
    each_part(scores, values, seen).mean(0)  # The parts are averaged equally: merge them by log-sum-exp.
    overlapping(scores, values, seen & (seen.sum(0) == 1))  # A key that several parts see is lost: count it once.
    overlapping(scores, values, seen.all(0, keepdim=True))  # One part that sees a key is enough: seen.any(dim=0).
    (scores * seen.any(0)).softmax(0) @ values  # An unseen key gets the score 0, and exp(0) is 1: use −∞.
    filled(scores, ~seen.any(0), -100.0).softmax(0) @ values  # Real scores may be lower than this one: use −∞.
    (scores.softmax(0) * seen.any(0)) @ values  # The weights left do not sum to one: hide before the softmax.
    F.normalize(scores.softmax(0) * seen.any(0), p=1, dim=0, eps=0) @ values  # This can be 0 / 0: hide the scores.
    filled(scores, ~seen.any(0)).softmax(0)  # These are the weights: average the values with them.
    each_part(scores, values, seen)  # This is one average for each part: merge them, with each key counted once.
    """,
    "Right: the softmax over the set of keys, no matter how often each one is seen.",
)
