"""Exercises of notebook 08: log-sum-exp, merging parts, a step of the online softmax, parts that overlap."""

import torch
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw


def log_sum_exp(scores: Tensor) -> Tensor:
    """The log-sum-exp over the last axis of scores (…, keys), without overflow."""
    top = scores.amax(dim=-1, keepdim=True)  # (..., 1)
    return (scores - top).exp().sum(dim=-1).log() + top.squeeze(-1)  # (...)


def merge(outputs: Tensor, logsumexps: Tensor) -> Tensor:
    """(parts, tokens, dim) and (parts, tokens) to the merged output (tokens, dim). In notebook 07 a part is a round."""
    shares = torch.softmax(logsumexps, dim=0)  # (parts, tokens)
    return (shares[..., None] * outputs).sum(dim=0)  # (tokens, dim)


def online_step(top: Tensor, total: Tensor, scores: Tensor) -> Tensor:
    """The new top and total of the online softmax, as one tensor of two."""
    new_top = torch.maximum(top, scores.max())
    return torch.stack([new_top, total * (top - new_top).exp() + (scores - new_top).exp().sum()])


def overlapping(scores: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """The average (dim,) of values (keys, dim) over keys that any part saw: scores (keys,), seen (parts, keys)."""
    once = scores.masked_fill(~seen.any(dim=0), -torch.inf)  # (keys,)
    return torch.softmax(once, dim=0) @ values  # (dim,)


ROWS = [*draw(3, (5,), (4, 7), (2, 3, 4), (2, 1, 5), (1, 3), (3, 1))]
ROWS += [torch.tensor([[900.0, -900.0, 899.0, 0.0], [-901.0, 1.0, 2.0, 0.5], [0.0, 0.0, 0.0, 0.0]])]
ROWS += [draw(4, (3, 6), double=True)[0] + torch.tensor([[-900.0], [0.0], [900.0]])]
LOG_SUM_EXP_TABLE = """
Right, also at scores of ±900, where exp alone gives inf or 0.
top = scores.amax(-1); without = lambda offset: (scores - offset).exp().sum(-1).log(); low = without(top[..., None])
scores.exp().sum(-1).log(); scores.double().exp().sum(-1).log()  # exp overflows: subtract each row's largest score.
without(scores.max()) + scores.max()  # Each row needs its own maximum, amax(-1, keepdim=True).
without(scores.mean(-1, keepdim=True)) + scores.mean(-1)  # exp still overflows: subtract the largest score.
scores.exp().sum(-1)  # The log is missing: this is the sum of the exponentials.
low; low - top  # The largest score was subtracted: add it again at the end.
low.exp(); low.exp() + top  # The log is missing: take it, then add the largest score.
low.exp().sum().log() + top  # The sum runs over all rows: use the last axis, dim=-1.
top[..., None] + low  # A column plus a row is a table: use top.squeeze(-1).
top  # This is only the largest score: the others count as well.
log_sum_exp(scores) - math.log(scores.shape[-1])  # This takes the mean of the exponentials: use sum, not mean.
log_sum_exp(scores.mT if scores.ndim > 1 else scores)  # The sum runs over the wrong axis: use the last one, dim=-1.
log_sum_exp(scores.clamp(-80, 80))  # Clamping changes the scores: subtract each row's largest score instead.
"""
FUSED = ("logsumexp", "logcumsumexp", "logaddexp")
check_log_sum_exp = Exercise(log_sum_exp, [(scores,) for scores in ROWS], LOG_SUM_EXP_TABLE, forbidden=FUSED)


def parts(seed: int, shape: tuple[int, ...], shift: Tensor | float = 0.0) -> tuple:
    """Outputs and log-sum-exps of some parts. Where ``shift`` is −∞, a part is empty."""
    outputs, logsumexps = draw(seed, shape, shape[:-1])
    logsumexps = 2 * logsumexps + shift
    return outputs.masked_fill(logsumexps.isinf()[..., None], 0.0), logsumexps


EMPTY = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 1], [1, 1, 1, 0]]).log()  # −∞ where a part saw nothing
PARTS = [parts(7, (4, 4, 4)), parts(5, (3, 4, 2)), parts(6, (1, 2, 4)), parts(8, (2, 1, 3))]  # square first
PARTS += [parts(9, (2, 5, 3), 900.0), parts(10, (5, 3, 6), -900.0), parts(12, (3, 4, 5), EMPTY)]
PARTS += [parts(11, (3, 4, 2), torch.tensor([900.0, 0.0, -900.0, 400.0]))]  # tokens far apart
PARTS += [parts(13, (3, 2, 5), torch.tensor([[400.0], [-400.0], [398.0]]))]  # parts far apart
PARTS += [tuple(x.double() for x in parts(14, (2, 3, 4), 1000.0))]

# Merging parts, combining rounds (notebook 07), joining two parts (06): one computation, with the same mistakes.
MERGE_ROWS = """
weighted = lambda weights: (weights[..., None] * outputs).sum(0)
divided = lambda exponentials: weighted(exponentials / exponentials.sum(0)); shares = logsumexps.softmax(0)
divided(logsumexps.clamp(-80, 80).exp())  # Clamping changes the weights: use torch.softmax.
outputs.mean(0)  # All parts count the same here: weight each by the exponential of its log-sum-exp.
outputs.sum(0)  # The parts are added, not averaged: their weights must sum to one.
divided(logsumexps); weighted(logsumexps)  # The log-sum-exps need exp before they are weights.
divided(logsumexps.exp()); divided(logsumexps.double().exp())  # exp overflows, or gives 0 / 0: use torch.softmax.
weighted(logsumexps.exp())  # The weights do not sum to one: divide the exponentials by their sum.
divided((logsumexps - logsumexps.max()).exp())  # Each token needs its own maximum, over the parts.
weighted(logsumexps.exp() / logsumexps.exp().sum())  # The softmax runs over everything: it must run over the parts.
weighted(logsumexps.softmax(-1))  # The softmax runs over the tokens: it must run over the parts.
weighted((-logsumexps).softmax(0))  # The sign is wrong: a larger log-sum-exp means a larger weight.
weighted(logsumexps.exp().softmax(0))  # softmax takes the exponential itself: leave exp away.
weighted(logsumexps.nan_to_num(neginf=0.0).softmax(0))  # The −∞ of an empty part is replaced: keep it, for weight 0.
weighted(shares) / len(outputs)  # The weights sum to one already: sum, not mean.
shares[..., None] * outputs  # The parts are weighted, but not yet added up: sum over the parts.
shares  # These are the weights of the parts: average the outputs with them.
"""
PART_ROWS = f"""
shares = logsumexps.softmax(0)
(shares * outputs).sum(0); (shares[:, None] * outputs).sum(0)  # The weights meet the wrong axis: shares[..., None].
shares @ outputs  # @ sums over the tokens: use shares[..., None] * outputs, and sum the parts.
{MERGE_ROWS}"""
RIGHT = "Right: any number of parts, empty ones too, and log-sum-exps of ±900."
check_merge = Exercise(merge, PARTS, RIGHT + PART_ROWS)

STEPS = [(0.5, 1.5, [2.0, -1.0, 0.25]), (3.0, 2.0, [0.3, -1.2, 1.1, 0.7, -0.4])]  # a new top; the old one stays
STEPS += [(-700.0, 1.25, [800.0, 799.0]), (800.0, 3.0, [-700.0, 799.0, 0.0]), (-700.0, 2.0, [-701.0, -699.5])]
STEPS += [(-torch.inf, 0.0, [0.4, -0.6, 1.3, 0.2]), (-torch.inf, 0.0, [0.0, -900.0])]  # the first block
STEPS += [(0.0, 1.0, [0.0]), (-1.5, 4.0, [-3.0, -2.5]), (0.0, 2.5, [-1.0, -0.5, -2.0]), (1.0, 0.5, [2.0])]
STEP_CASES = [tuple(torch.tensor(part) for part in step) for step in STEPS]
STEP_CASES += [tuple(x.double() for x in case) for case in STEP_CASES[2:4]]
STEP_TABLE = """
Right: with a new top, with the old one, and for the first block of all.
new = torch.maximum(top, scores.max()); kept = total * (top - new).exp()
step = lambda given, old, exponents: torch.stack([given, old + exponents.exp().sum()])
rest = lambda old: step(new, old, scores - new)
rest(total)  # The old total still belongs to the old top: multiply it by exp(top − new_top).
step(new, total, scores)  # exp gets the raw scores: subtract the new top, and shrink the old total to match.
step(new, kept, scores)  # exp gets the raw scores: subtract the new top first.
step(top, total, scores - top)  # The top must rise when a score is larger: torch.maximum(top, scores.max()).
rest(total / (top - new).exp())  # The factor is upside down: exp(top − new_top).
rest(total + (top - new).exp())  # The factor is added: multiply the old total by it.
rest(total * top.exp() / new.exp())  # exp(top) overflows: take exp(top − new_top).
step(scores.max(), total * (top - scores.max()).exp(), scores - scores.max())  # An earlier score may be higher.
step(new, kept, scores - scores.max()); step(new, kept, scores - top)  # This subtracts another top: use new_top.
step(top, kept, scores - new)  # The total is right, the top is the old one.
rest(0 * total)  # The old total is missing.
step(new, kept, scores[:0])  # The new scores are missing.
torch.stack([new, online_step(top, total, scores)[1].log()])  # The total stays a sum: take no log.
online_step(top, total, scores).flip(0)  # The order is the other way around: the top first, then the total.
"""
check_online_step = Exercise(online_step, STEP_CASES, STEP_TABLE)


def overlap(seed: int, parts: int, keys: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    scores, values, chance = draw(seed, (keys,), (keys, dim), (parts, keys))
    seen = chance < 0.3
    seen[:, 0], seen[:, 1:4] = True, False  # key 0 is seen by all parts, key 2 by none,
    seen[-1, 1], seen[:2, 3] = True, True  # key 1 by the last part, and key 3 by two
    return scores, values, seen


SIZES = ((3, 5, 2), (2, 7, 3), (4, 6, 5), (3, 4, 4), (2, 4, 1), (2, 5, 3))
OVERLAPS = [overlap(20 + i, *sizes) for i, sizes in enumerate(SIZES)]
SCORES, VALUES, SEEN = OVERLAPS[-1]
OVERLAPS += [(SCORES + 900, VALUES, SEEN), (SCORES.double() - 30000, VALUES.double(), SEEN)]
OVERLAPS += [(SCORES + torch.tensor([0.0, 0.0, 400.0, 0.0, 0.0]), VALUES, SEEN)]  # the unseen key is the best
OVERLAPS += [(torch.zeros(5), VALUES, SEEN), (SCORES, VALUES, torch.ones(1, 5, dtype=torch.bool))]
OVERLAPPING_TABLE = """
Right: the softmax over the set of keys, no matter how often each one is seen.
weigh = lambda s: s.softmax(0) @ values; once = scores - seen.sum(0).log(); some = seen.any(0)
hidden = lambda fill: scores.masked_fill(~some, fill); spread = lambda w: share(w) @ values
parts = lambda s: torch.stack([weigh(s.masked_fill(~row, -torch.inf)) for row in seen])
weigh(scores + seen.sum(0).log())  # A key that N parts see counts N times: subtract log N from its score.
weigh(scores + 2 * seen.sum(0).log())  # log N has the wrong sign: subtract it from the score.
weigh(scores - seen.sum(0) + seen.sum(0).log())  # Subtract log N from the score, not N.
spread(scores.exp() * some)  # exp overflows, or gives 0 / 0: use softmax.
weigh(once)  # log 0 is −∞, so an unseen key gets the score +∞: hide it.
weigh(scores)  # A key that no part sees is counted too: its score must be −∞.
parts(once).sum(0); parts(scores).mean(0)  # The parts are added or averaged equally: merge them by log-sum-exp.
overlapping(scores, values, seen & (seen.sum(0) == 1))  # A key that several parts see is lost: count it once.
overlapping(scores, values, seen.all(0, keepdim=True))  # One part that sees a key is enough: seen.any(dim=0).
weigh(scores * some)  # An unseen key gets the score 0, and exp(0) is 1: use −∞.
weigh(hidden(-100.0))  # Real scores may be lower than this one: use −∞.
(scores.softmax(0) * some) @ values  # The weights left do not sum to one: hide before the softmax.
spread(scores.softmax(0) * some)  # This can be 0 / 0: hide the scores.
hidden(-torch.inf).softmax(0)  # These are the weights: average the values with them.
parts(scores)  # This is one average for each part: merge them, with each key counted once.
"""
check_overlapping = Exercise(overlapping, OVERLAPS, OVERLAPPING_TABLE)
