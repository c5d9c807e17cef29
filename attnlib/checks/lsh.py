"""Checks for notebook 07: hashing, sorting and its undo, combining rounds, the prefix rule, counting once."""

from collections.abc import Callable

import torch
from torch import Tensor

from attnlib.checks._judge import Verdict, judge


def check_hash(answer: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check ``answer(vectors, directions)``: (tokens, head_dim) and (head_dim, num_buckets // 2) to buckets
    (tokens,)."""
    generator = torch.Generator().manual_seed(3)
    cases = [
        (torch.randn(tokens, head_dim, generator=generator), torch.randn(head_dim, half, generator=generator))
        for tokens, head_dim, half in ((13, 3, 2), (17, 5, 4), (11, 2, 1))
    ]
    mistakes = {
        "Only the directions are compared: their opposites are buckets as well. Join projected and −projected.": (
            lambda x, r: (x @ r).argmax(-1)
        ),
        "A direction and its opposite share a bucket here: without abs(), the sign tells them apart.": (
            lambda x, r: (x @ r).abs().argmax(-1)
        ),
        "Every bucket is that of the opposite: use argmax, and join the directions first, then −projected.": (
            lambda x, r: torch.cat([-(x @ r), x @ r], -1).argmax(-1)
        ),
        "A direction and its opposite are neighbours here: join all directions with all opposites, with cat.": (
            lambda x, r: torch.stack([x @ r, -(x @ r)], -1).flatten(-2).argmax(-1)
        ),
        "The argmax runs over the tokens: each token chooses its bucket, so use dim=-1.": lambda x, r: _both(
            x, r
        ).argmax(0),
        "That is how long the largest projection is; the bucket is where it stands: argmax.": lambda x, r: _both(
            x, r
        ).amax(-1),
        "These are the signs read as a binary number: another hash. Take the argmax of projected and −projected.": (
            lambda x, r: ((x @ r > 0) * 2 ** torch.arange(r.shape[-1])).sum(-1)
        ),
        "The directions are brought to length 1: use them as they were drawn.": lambda x, r: _both(
            x, r / r.norm(dim=0)
        ).argmax(-1),
    }
    return judge(
        answer,
        lambda vectors, directions: _both(vectors, directions).argmax(-1),
        cases,
        mistakes=mistakes,
        success="Right: every vector is in the bucket of the arrow along which it reaches furthest.",
    )


def check_sort_and_undo(answer: Callable[[Tensor], Tensor]) -> Verdict:
    """Check ``answer(buckets)``: (tokens,) to (2, tokens), the sorting order by (bucket, position) and its undo."""
    cases = [
        (torch.tensor(buckets),)
        for buckets in ([2, 0, 1, 2, 0, 1, 1], [3, 1, 3, 0, 3, 0, 2, 1, 0, 0, 3], [5, 4, 0], [1])
    ]
    mistakes = {
        "The second row is the order once more: the undo says at which place each token ended up.": lambda b: _twice(
            _order(b), _order(b)
        ),
        "The rows are swapped: the order first, then the undo.": lambda b: _twice(_order(b).argsort(), _order(b)),
        "Reading the order backwards is no undo: undo[order[place]] must be place.": lambda b: _twice(
            _order(b), _order(b).flip(0)
        ),
        "Within a bucket later tokens come first: the ticket grows with the position.": lambda b: _with_undo(
            (b * len(b) - torch.arange(len(b))).argsort()
        ),
        "The bucket must outweigh every position: the ticket is bucket * tokens + position.": lambda b: _with_undo(
            (b + torch.arange(len(b))).argsort(stable=True)
        ),
        "The position outweighs the bucket: the ticket is bucket * tokens + position.": lambda b: _with_undo(
            (b + len(b) * torch.arange(len(b))).argsort()
        ),
        "The largest bucket comes first: sort upwards.": lambda b: _with_undo(_order(b.max() - b)),
        "These are the sorted tickets; the order is where they came from: argsort, not sort.": lambda b: _with_undo(
            (b * len(b) + torch.arange(len(b))).sort().values
        ),
        "The first row holds the sorted buckets; the order is where they came from: argsort, not sort.": lambda b: (
            _twice(b.sort().values, _order(b).argsort())
        ),
        "That is what sort returns, values and order: the first row is the order, the second its undo.": lambda b: (
            _twice(b.sort().values, _order(b))
        ),
        "The bucket is multiplied by the number of buckets, so tickets mix: multiply by the number of tokens.": (
            lambda b: _with_undo((b * (b.max() + 1) + torch.arange(len(b))).argsort(stable=True))
        ),
        "Only one row came: return torch.stack([order, undo]).": _order,
    }
    return judge(
        answer,
        lambda buckets: _with_undo(_order(buckets)),
        cases,
        mistakes=mistakes,
        success="Right: equal buckets stand together, in reading order, and the undo brings every token back.",
    )


def check_combine_rounds(answer: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check ``answer(outputs, logsumexps)``: (rounds, tokens, value_dim) and (rounds, tokens) to (tokens,
    value_dim)."""
    generator = torch.Generator().manual_seed(5)
    cases = []
    for (rounds, tokens, value_dim), size in (((2, 7, 5), 1.0), ((3, 4, 2), 2.0), ((4, 3, 6), 300.0)):
        outputs = torch.randn(rounds, tokens, value_dim, generator=generator)
        cases.append((outputs, size * torch.randn(rounds, tokens, generator=generator)))
    outputs, logsumexps = (case.clone() for case in cases[0])
    outputs[1, 2], logsumexps[1, 2] = 0.0, -torch.inf  # a round in which a token sees nothing
    cases.append((outputs, logsumexps))
    mistakes = {
        "That is the plain mean of the rounds: a round in which heavier keys were seen counts for more.": (
            lambda o, z: o.mean(0)
        ),
        "That is the sum of the rounds: the weights of the rounds must sum to one.": lambda o, z: o.sum(0),
        "The log-sum-exps are logarithms: weigh with their softmax, not with the numbers themselves.": (
            lambda o, z: (o * (z / z.sum(0))[..., None]).sum(0)
        ),
        "The weights do not sum to one: divide the exponentials by their sum over the rounds.": lambda o, z: (
            o * z.exp()[..., None]
        ).sum(0),
        "The softmax runs over the tokens: the rounds compete, so use dim=0.": lambda o, z: (
            o * z.softmax(1)[..., None]
        ).sum(0),
        "Only the heaviest round is used: the others have weight too.": lambda o, z: o.gather(
            0, z.argmax(0)[None, :, None].expand(1, *o.shape[1:])
        )[0],
        "The sign is turned: the round with the larger log-sum-exp weighs more.": lambda o, z: (
            o * (-z).softmax(0)[..., None]
        ).sum(0),
        "A log of the weights is taken: use softmax, not log_softmax.": lambda o, z: (
            o * z.log_softmax(0)[..., None]
        ).sum(0),
        "The weighted averages are averaged once more: add them, as the weights sum to one.": lambda o, z: (
            o * z.softmax(0)[..., None]
        ).mean(0),
        "The softmax runs over rounds and tokens together: each token's weights must sum to one, so use dim=0.": (
            lambda o, z: (o * z.flatten().softmax(0).reshape(z.shape)[..., None]).sum(0)
        ),
        "The exponentials overflow, and inf / inf is NaN: subtract each token's largest log-sum-exp first.": (
            lambda o, z: (o * (z.exp() / z.exp().sum(0))[..., None]).sum(0)
        ),
        "One maximum is subtracted from all tokens, so some weights are 0 / 0: each token has a maximum of its own.": (
            lambda o, z: (o * ((z - z.max()).exp() / (z - z.max()).exp().sum(0))[..., None]).sum(0)
        ),
    }
    return judge(
        answer,
        lambda outputs, logsumexps: (outputs * logsumexps.softmax(0)[..., None]).sum(0),
        cases,
        mistakes=mistakes,
        success="Right: the same as one softmax over all that the rounds saw, and no exponential overflows.",
    )


def check_visible(answer: Callable[[Tensor, int], Tensor]) -> Verdict:
    """Check ``answer(buckets, chunk_size)``: (tokens,) to (tokens, tokens), True where row i may see column j: the
    same bucket, and j at most ``chunk_size`` places before i in sorted order."""
    generator = torch.Generator().manual_seed(7)
    cases = [
        (torch.randint(0, buckets, (tokens,), generator=generator), chunk_size)
        for tokens, buckets, chunk_size in ((13, 2, 3), (11, 4, 2), (7, 1, 4), (5, 3, 8))
    ]
    mistakes = {
        "The places are those in the text: count them in sorted order.": lambda b, c: _rule(b, c, gap=_text_gap(b)),
        "That is the chunk rule, whose borders later tokens move: count the places between the two instead.": (
            lambda b, c: _rule(b, len(b)) & _near_chunk(b, c)
        ),
        "A token sees itself here: the gap must be at least 1.": lambda b, c: _rule(b, c, low=0),
        "One place is missing: a gap of chunk_size is still seen.": lambda b, c: _rule(b, c - 1),
        "Other buckets are seen: compare the buckets too.": lambda b, c: _rule(torch.zeros_like(b), c, gap=_gap(b)),
        "The whole bucket is seen: at most chunk_size places back.": lambda b, c: _rule(b, len(b)),
        "Rows and columns are swapped: these tokens look ahead. The row is the query.": lambda b, c: _rule(b, c).mT,
        "It looks both ways: the key must stand before the query.": lambda b, c: _rule(b, c) | _rule(b, c).mT,
        "The order is used where the undo belongs: the place of token i is undo[i].": lambda b, c: _rule(
            b, c, gap=_order(b)[:, None] - _order(b)
        ),
        "It looks both ways, and at itself: the key must stand before the query.": lambda b, c: (
            _rule(b, c, low=0) | _rule(b, c, low=0).mT
        ),
        "The whole bucket is seen, and the token itself: from 1 to chunk_size places back.": lambda b, c: _rule(
            b, len(b), low=0
        ),
        "Only the own chunk is seen: count the places between the two instead, across the border too.": lambda b, c: (
            _rule(b, len(b)) & _near_chunk(b, c, 0)
        ),
        "True stands where a token must not look: True means that row i may see column j.": lambda b, c: ~_rule(b, c),
        "A token that sees nothing sees itself here: leave its row False, here the rule is bare.": lambda b, c: (
            _rule(b, c) | torch.diag(~_rule(b, c).any(-1))
        ),
    }
    return judge(
        answer,
        lambda buckets, chunk_size: _rule(buckets, chunk_size),
        cases,
        mistakes=mistakes,
        success="Right: only earlier tokens of the same bucket, and whatever comes later changes nothing.",
    )


def check_count_once(answer: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check ``answer(scores, seen)``: (tokens, tokens) and boolean (rounds, tokens, tokens) to the scores of each round
    (rounds, tokens, tokens), −inf where unseen, so that all rounds together count every key once."""
    generator = torch.Generator().manual_seed(9)
    cases = [
        (
            torch.randn(tokens, tokens, generator=generator),
            torch.rand(rounds, tokens, tokens, generator=generator) < 0.7,
        )
        for rounds, tokens in ((2, 5), (4, 3), (3, 7))
    ]
    mistakes = {
        "Nothing is taken off: a key that N rounds see counts N times.": lambda s, m: _hidden(s, m, 0.0),
        "Take off the logarithm of N, not N: exp(s − log N) is exp(s) / N.": lambda s, m: _hidden(s, m, m.sum(0)),
        "The sign is turned: subtract log N.": lambda s, m: _hidden(s, m, -m.sum(0).log()),
        "Every pair is divided by the number of rounds: N is the number of rounds in which i sees j.": (
            lambda s, m: _hidden(s, m, torch.tensor(float(len(m))).log())
        ),
        "The score itself is divided by N: divide its exponential, by subtracting log N.": lambda s, m: _hidden(
            s / m.sum(0), m, 0.0
        ),
        "What a round does not see must be −inf, so that its exponential is 0.": lambda s, m: (
            s - m.sum(0).log()
        ).masked_fill(~m, 0.0),
        "Every round shows every key that any round sees: hide with the mask of the round.": lambda s, m: (
            s - m.sum(0).log()
        ).expand(m.shape),
        "N is counted over the keys: count over the rounds, seen.sum(dim=0).": lambda s, m: _hidden(
            s, m, m.sum(-1, keepdim=True).log()
        ),
        "Nothing is hidden: what a round does not see must be −inf in its scores.": lambda s, m: (
            s - m.sum(0).clamp(min=1).log()
        ).expand(m.shape),
        "The mask is turned round: hide where the round does not see, ~seen.": lambda s, m: _hidden(
            s, ~m, m.sum(0).log()
        ),
        "N is counted over the queries: count over the rounds, seen.sum(dim=0).": lambda s, m: _hidden(
            s, m, m.sum(1, keepdim=True).log()
        ),
        "Each key counts once, but in one round alone: all the rounds that see it share it evenly.": lambda s, m: (
            _hidden(s, m & (m.cumsum(0) == 1), 0.0)
        ),
        "The softmax is taken already: return the scores that go into it.": lambda s, m: _hidden(
            s, m, m.sum(0).log()
        ).softmax(-1),
    }
    return judge(
        answer,
        lambda scores, seen: _hidden(scores, seen, seen.sum(0).log()),
        cases,
        mistakes=mistakes,
        success="Right: N rounds with a share of 1/N each count a key once.",
    )


def _both(vectors: Tensor, directions: Tensor) -> Tensor:
    projected = vectors @ directions
    return torch.cat([projected, -projected], -1)  # (tokens, num_buckets)


def _order(buckets: Tensor) -> Tensor:
    return buckets.argsort(stable=True)


def _twice(order: Tensor, undo: Tensor) -> Tensor:
    return torch.stack([order, undo])


def _with_undo(order: Tensor) -> Tensor:
    return _twice(order, order.argsort())


def _gap(buckets: Tensor) -> Tensor:
    """How many places row i stands after column j in sorted order."""
    place = _order(buckets).argsort()
    return place[:, None] - place


def _text_gap(buckets: Tensor) -> Tensor:
    position = torch.arange(len(buckets))
    return position[:, None] - position


def _near_chunk(buckets: Tensor, chunk_size: int, back: int = 1) -> Tensor:
    chunk = _order(buckets).argsort() // chunk_size
    return (chunk[:, None] - chunk).clamp(min=0) <= back


def _rule(buckets: Tensor, chunk_size: int, *, low: int = 1, gap: Tensor | None = None) -> Tensor:
    gap = _gap(buckets) if gap is None else gap
    return (buckets[:, None] == buckets) & (gap >= low) & (gap <= chunk_size)


def _hidden(scores: Tensor, seen: Tensor, discount: Tensor | float) -> Tensor:
    return (scores - discount).masked_fill(~seen, -torch.inf)
