"""Exercises of notebook 07: hashing, sorting and undoing it, combining rounds, the prefix rule, counting once."""

import torch
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw


def hash_buckets(vectors: Tensor, directions: Tensor) -> Tensor:
    projected = vectors @ directions
    return torch.cat([projected, -projected], dim=-1).argmax(dim=-1)


def sort_and_undo(buckets: Tensor) -> Tensor:
    places = torch.arange(len(buckets))
    order = (buckets * len(buckets) + places).argsort()
    undo = torch.empty_like(order).scatter_(0, order, places)
    return torch.stack([order, undo])


def combine_rounds(outputs: Tensor, logsumexps: Tensor) -> Tensor:
    shares = torch.softmax(logsumexps, dim=0)  # (rounds, tokens)
    return (shares[..., None] * outputs).sum(dim=0)  # (tokens, value_dim)


def visible(buckets: Tensor, chunk_size: int) -> Tensor:
    place = buckets.argsort(stable=True).argsort()  # (tokens,)
    gap = place[:, None] - place  # (tokens, tokens)
    return (buckets[:, None] == buckets) & (gap >= 1) & (gap <= chunk_size)


def count_once(scores: Tensor, seen: Tensor) -> Tensor:
    discounted = scores - seen.sum(dim=0).log()  # (tokens, tokens)
    return discounted.masked_fill(~seen, -torch.inf)  # (rounds, tokens, tokens)


def both(vectors: Tensor, directions: Tensor) -> Tensor:
    return torch.cat([vectors @ directions, -(vectors @ directions)], -1)


def order(buckets: Tensor) -> Tensor:
    return buckets.argsort(stable=True)


def undone(order: Tensor) -> Tensor:
    return torch.stack([order, order.argsort()])


def ticket(buckets: Tensor, base: int) -> Tensor:
    return buckets * base + torch.arange(len(buckets))


def weighted(weights: Tensor, outputs: Tensor) -> Tensor:
    return (weights[..., None] * outputs).sum(0)


def divided(exponentials: Tensor, outputs: Tensor) -> Tensor:
    return weighted(exponentials / exponentials.sum(0), outputs)


def same(buckets: Tensor) -> Tensor:
    return buckets[:, None] == buckets


def differences(places: Tensor) -> Tensor:
    return places[:, None] - places


def gaps(buckets: Tensor) -> Tensor:
    """By how many places row i comes after column j in sorted order."""
    return differences(order(buckets).argsort())


def between(gaps: Tensor, low: int, high: int) -> Tensor:
    return (gaps >= low) & (gaps <= high)


def chunks_back(buckets: Tensor, chunk_size: int) -> Tensor:
    return differences(order(buckets).argsort() // chunk_size)


def unseen(scores: Tensor, seen: Tensor, fill: float = -torch.inf) -> Tensor:
    return scores.masked_fill(~seen, fill)


check_hash = Exercise(
    "Check ``answer(vectors, directions)``: (tokens, head_dim) and (head_dim, num_buckets // 2) to buckets (tokens,).",
    hash_buckets,
    [draw(3 + i, *shapes) for i, shapes in enumerate((((13, 3), (3, 2)), ((17, 5), (5, 4)), ((11, 2), (2, 1))))]
    + [draw(7, (5, 5), (5, 5)), draw(8, (1, 3), (3, 3)), tuple(x.double() for x in draw(9, (120, 4), (4, 6)))],
    """
    (vectors @ directions).argmax(-1)  # The opposite directions are buckets too: join projected and −projected.
    torch.cat([vectors @ directions, vectors @ directions], -1).argmax(-1)
    (vectors @ directions).abs().argmax(-1)  # A direction and its opposite share a bucket: the sign of a projection
        # tells them apart.
    both(vectors, directions).abs().argmax(-1)
    hash_buckets(vectors, directions) % directions.shape[1]
    (-both(vectors, directions)).argmax(-1)  # Each vector is in the opposite bucket: argmax of projected, then
        # −projected.
    both(vectors, directions).argsort(-1)[:, 0]
    both(vectors, directions).argmin(-1)
    torch.stack([vectors @ directions, -(vectors @ directions)], -1).flatten(1).argmax(-1)  # Each direction is followed
        # by its opposite: put all directions first, then all opposites, with torch.cat.
    both(vectors, directions).argmax(0)  # The argmax runs over the tokens: each token picks its bucket, so dim=-1.
    both(vectors, directions).amax(-1)  # This is the largest projection: the bucket is its index, argmax.
    both(vectors, directions)  # These are the projections: the bucket is the index of the largest one, argmax.
    both(vectors, directions).argsort(-1)  # This sorts all buckets: argmax gives the largest one.
    both(vectors, directions).argmax()  # This is one number for all tokens: argmax(dim=-1).
    both(vectors, directions).argmax(-1, keepdim=True)  # An axis of size 1 is left over: argmax without keepdim.
    F.one_hot(hash_buckets(vectors, directions), 2 * directions.shape[1])  # This is one-hot: return the index.
    both(vectors, directions).softmax(-1)  # These are probabilities: the bucket is an index, argmax.
    ((vectors @ directions > 0) * 2 ** torch.arange(directions.shape[1])).sum(-1)  # Signs read as a binary number are
        # another hash: take the argmax of projected and −projected.
    ((vectors @ directions > 0) * 2 ** torch.arange(directions.shape[1]).flip(0)).sum(-1)
    (vectors @ directions > 0).sum(-1)  # This counts positive projections: take the argmax of projected and −projected.
    (vectors @ directions > 0).long().argmax(-1)  # Only the signs are compared: the largest projection decides.
    both(vectors, directions).sign().argmax(-1)
    both(vectors, F.normalize(directions, dim=0)).argmax(-1)  # The directions are normalised: use them as they are.
    both(vectors, F.normalize(directions, dim=-1)).argmax(-1)
    torch.cat([vectors @ directions, 1 - vectors @ directions], -1).argmax(-1)  # The opposite is −projected, not 1 −
        # projected.
    hash_buckets(vectors, directions) + 1  # Buckets are counted from 0.
    hash_buckets(vectors - vectors.mean(0), directions)  # The mean is subtracted first: use the vectors as they are.
    """,
    "Right: every vector is in the bucket of the arrow along which it reaches furthest.",
)


def _bucket_cases() -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    sizes = ((40, 3), (129, 4), (67, 2))  # unstable sorts scramble ties from 17 tokens on
    lists = [2, 0, 1, 2, 0, 1, 1], [3, 1, 3, 0, 3, 0, 2, 1, 0, 0, 3], [5, 4, 0], [1], [0, 0, 0, 0, 0], [900, 0, 70, 0]
    return [*map(torch.tensor, lists), *(torch.randint(n, (tokens,), generator=generator) for tokens, n in sizes)]


check_sort_and_undo = Exercise(
    "Check ``answer(buckets)``: (tokens,) to (2, tokens), the sorting order by (bucket, position), and what undoes it.",
    sort_and_undo,
    [(buckets,) for buckets in (*_bucket_cases(), torch.arange(1100) // 5 % 3)],
    """
    torch.stack([order(buckets), order(buckets)])  # The second row repeats the order: undo[order[place]] must be place.
    sort_and_undo(buckets).flip(0)  # The rows are swapped: the order first, then the undo.
    torch.stack([order(buckets), order(buckets).flip(0)])  # Reading the order backwards does not undo it:
        # undo[order[place]] must be place.
    torch.stack([order(buckets), torch.arange(len(buckets))])  # The second row is the positions: undo[order[place]]
        # must be place.
    torch.stack([order(buckets), order(buckets)[order(buckets)]])  # The order is applied twice: undo[order[place]] must
        # be place.
    undone(buckets.argsort())  # This sort is not stable, so equal buckets get scrambled: argsort(stable=True), or sort
        # bucket * tokens + position.
    undone(buckets.sort().indices)
    undone(buckets.argsort(descending=True).flip(0))
    undone((buckets * len(buckets) - torch.arange(len(buckets))).argsort())  # Within a bucket later tokens come first:
        # they must keep their order.
    undone(len(buckets) - 1 - order(buckets.flip(0)))
    undone(order(buckets.flip(0)).flip(0))  # The buckets are reversed before they are sorted: sort them as they are.
    undone(ticket(buckets, 1).argsort(stable=True))  # The position outweighs the bucket: multiply the bucket by the
        # number of tokens.
    undone((buckets + len(buckets) * torch.arange(len(buckets))).argsort())  # The position is multiplied: multiply the
        # bucket by the number of tokens instead.
    undone(torch.arange(len(buckets)))  # Nothing is sorted: these are the positions.
    undone(order(-buckets))  # The largest bucket comes first: sort upwards.
    undone(order(buckets).flip(0))
    undone(ticket(buckets, len(buckets)).sort().values)  # These are the sorted tickets: use argsort, not sort.
    undone(ticket(buckets, len(buckets)))  # These are the tickets themselves: argsort gives the order.
    torch.stack([buckets.sort().values, order(buckets).argsort()])  # The first row is the sorted buckets: argsort gives
        # the order.
    torch.stack([buckets.sort().values, order(buckets)])  # This is what sort returns, values and order: return the
        # order and its undo.
    undone(ticket(buckets, int(buckets.max()) + 1).argsort(stable=True))  # The bucket is multiplied by the number of
        # buckets: multiply it by the number of tokens.
    undone(ticket(buckets, 10).argsort(stable=True))  # A fixed factor is too small for long inputs: multiply the bucket
        # by the number of tokens.
    undone(ticket(buckets, 1000).argsort(stable=True))
    undone(ticket(buckets, len(buckets) - 1).argsort(stable=True))  # The factor is one too small: the last token of a
        # bucket ties with the first of the next.
    order(buckets)  # Only the order is returned: torch.stack([order, undo]).
    order(buckets).argsort()  # Only the undo is returned: torch.stack([order, undo]).
    sort_and_undo(buckets).flatten()  # The two rows are joined into one: stack them.
    sort_and_undo(buckets).mT  # The rows are columns here: torch.stack([order, undo]) without dim=1.
    """,
    "Right: equal buckets are together, in reading order, and the undo brings every token back.",
)


def _rounds(seed: int, shape: tuple[int, ...], shift: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    outputs, logsumexps = draw(seed, shape, shape[:-1])
    return outputs, 2 * logsumexps + shift


def _round_cases() -> list[tuple[Tensor, ...]]:
    cases = [
        _rounds(1, (4, 4, 4)),
        _rounds(2, (2, 7, 5)),
        _rounds(3, (3, 4, 2)),
        _rounds(4, (1, 1, 3)),
    ]  # 4: wrong axes
    cases += [_rounds(5, (4, 3, 6), 900.0), _rounds(6, (2, 5, 3), -900.0)]
    cases += [_rounds(7, (3, 4, 2), torch.tensor([900.0, 0.0, -900.0, 400.0]))]  # tokens far apart
    cases += [_rounds(8, (3, 2, 5), torch.tensor([[400.0], [-400.0], [398.0]]))]  # rounds far apart
    outputs, logsumexps = _rounds(9, (2, 7, 5))
    outputs[1, 2], logsumexps[1, 2] = 0.0, -torch.inf  # a round in which a token sees nothing
    return [*cases, (outputs, logsumexps), tuple(x.double() for x in _rounds(10, (2, 3, 4), 1000.0))]


check_combine_rounds = Exercise(
    "Check ``answer(outputs, logsumexps)``: (rounds, tokens, value_dim) and (rounds, tokens) to (tokens, value_dim).",
    combine_rounds,
    _round_cases(),
    """
    outputs.mean(0)  # This is the plain mean: a round that saw heavier keys must count for more.
    outputs.sum(0)  # This is the plain sum: the weights of the rounds must sum to one.
    divided(logsumexps, outputs)  # The log-sum-exps are logarithms: use their softmax as weights.
    weighted(logsumexps, outputs)
    weighted(logsumexps.exp(), outputs)  # The weights do not sum to one: divide the exponentials by their sum.
    weighted((logsumexps - logsumexps.amax(0)).exp(), outputs)
    weighted(logsumexps.softmax(-1), outputs)  # The softmax runs over the tokens: the rounds compete, so use dim=0.
    outputs.take_along_dim(logsumexps.argmax(0)[None, :, None], 0)[0]  # Only the heaviest round counts here: all do.
    weighted((-logsumexps).softmax(0), outputs)  # The sign is wrong: a larger log-sum-exp means a larger weight.
    weighted(logsumexps.log_softmax(0), outputs)  # These are logarithms of the weights: use softmax, not log_softmax.
    combine_rounds(outputs, logsumexps) / len(outputs)  # This averages twice: the weights sum to one, so use sum.
    weighted(logsumexps.flatten().softmax(0).view_as(logsumexps), outputs)  # The softmax runs over rounds and tokens
        # together: use dim=0.
    weighted(logsumexps.exp() / logsumexps.exp().sum(), outputs)
    divided(logsumexps.exp(), outputs)  # The exponentials overflow or round to 0: use torch.softmax.
    divided(logsumexps.double().exp(), outputs)
    divided(logsumexps.exp(), outputs).nan_to_num()
    divided((logsumexps - logsumexps.max()).exp(), outputs)  # Each token needs its own maximum: amax(dim=0).
    divided((logsumexps - logsumexps.mean(0)).exp(), outputs)  # Subtract the largest, not the mean: some exponentials
        # overflow.
    weighted(logsumexps.softmax(0).softmax(0), outputs)  # One softmax is enough: a second one evens out the weights.
    logsumexps.softmax(0)[..., None] * outputs  # The rounds are weighted, but not yet added up: sum(dim=0).
    combine_rounds(outputs, logsumexps)[None]  # The axis of the rounds is left over: sum without keepdim.
    (logsumexps.softmax(0)[:, None] * outputs).sum(0)  # The weights meet the wrong axis: shares[..., None].
    (logsumexps.softmax(0) * outputs).sum(0)
    (logsumexps.softmax(0)[..., None] * outputs).sum(1)  # The sum runs over the tokens: sum(dim=0).
    combine_rounds(outputs, logsumexps).sum(-1)  # The sum runs over value_dim too: only the rounds go.
    combine_rounds(outputs, logsumexps).sum(0)  # The sum runs over the tokens too: only the rounds go.
    logsumexps.softmax(0)  # These are the weights of the rounds: average the outputs with them.
    divided(logsumexps.sigmoid(), outputs)  # A sigmoid looks at one round only: a softmax compares them.
    (outputs.softmax(0) * outputs).sum(0)  # This is a softmax of the outputs: take it of the log-sum-exps.
    outputs[0]  # This is the first round alone.
    """,
    "Right: the same as one softmax over all that the rounds saw, and no exponential overflows.",
)


check_visible = Exercise(
    "Check ``answer(buckets, chunk_size)``: (tokens,) to (tokens, tokens), True where row i may see column j: the "
    "same bucket, and j comes 1 to ``chunk_size`` places before i in sorted order.",
    visible,
    list(zip(_bucket_cases(), (2, 3, 1, 4, 2, 3, 5, 7, 30), strict=True)),
    """
    same(buckets) & between(differences(torch.arange(len(buckets))), 1, chunk_size)  # These are places in the text:
        # count them in sorted order.
    same(buckets) & between(differences(order(buckets)), 1, chunk_size)  # The place of token i is undo[i]; this takes
        # order[i].
    same(buckets) & (gaps(buckets) >= 1) & (chunks_back(buckets, chunk_size) <= 1)  # This is the chunk rule: count the
        # places between the two tokens instead.
    same(buckets) & (gaps(buckets) >= 1) & (chunks_back(buckets, chunk_size) == 0)  # Only the token's own chunk is
        # seen: count the places between the two tokens instead.
    same(buckets) & between(gaps(buckets), 0, chunk_size)  # A token sees itself here: the gap must be at least 1.
    same(buckets) & between(gaps(buckets), 1, chunk_size - 1)  # A gap of exactly chunk_size is still seen: use <=.
    same(buckets) & between(gaps(buckets), 0, chunk_size - 1)  # A token sees itself instead of the one chunk_size
        # places back: the gap is 1 to chunk_size.
    same(buckets) & between(gaps(buckets), 1, chunk_size + 1)  # One place too many: the gap is at most chunk_size.
    same(buckets) & between(gaps(buckets), 2, chunk_size)  # The nearest token is missing: the gap may be 1.
    between(gaps(buckets), 1, chunk_size)  # Other buckets are seen: compare the buckets too.
    between(gaps(buckets), 0, chunk_size)  # Other buckets are seen, and the token itself.
    same(buckets) & (gaps(buckets) >= 1)  # The whole bucket is seen: at most chunk_size places back.
    same(buckets) & (gaps(buckets) >= 0)  # The whole bucket and the token itself are seen: 1 to chunk_size places back.
    same(buckets)  # This only compares buckets: the gap in sorted order must be 1 to chunk_size.
    visible(buckets, chunk_size).mT  # Rows and columns are swapped: the row is the one that looks.
    same(buckets) & (gaps(buckets).abs() <= chunk_size)  # It looks both ways, and at itself: the key comes first.
    same(buckets) & between(gaps(buckets).abs(), 1, chunk_size)  # It looks both ways: the key must come first.
    same(buckets) & (gaps(buckets) <= chunk_size)  # Later tokens are seen: the gap must be at least 1.
    ~visible(buckets, chunk_size)  # True and False are swapped: True means that row i may see column j.
    visible(buckets, chunk_size) | torch.diag(~visible(buckets, chunk_size).any(-1))  # A token that sees nothing sees
        # itself here: leave its row False.
    same(buckets) | between(gaps(buckets), 1, chunk_size)  # Both must hold: combine with &, not with |.
    (buckets[:, None] != buckets) & between(gaps(buckets), 1, chunk_size)  # These are the other buckets: use ==.
    same(buckets) & between(differences(buckets.argsort().argsort()), 1, chunk_size)  # This sort is not stable, so
        # equal buckets get scrambled: argsort(stable=True).
    same(buckets) & between(differences(torch.sort(buckets).indices.argsort()), 1, chunk_size)
    same(buckets) & between(differences(ticket(buckets, 100).argsort().argsort()), 1, chunk_size)  # A fixed factor is
        # too small for long inputs: multiply the bucket by the number of tokens.
    same(buckets) & between(differences(buckets), 1, chunk_size)  # These are differences of buckets: use places.
    visible(buckets, chunk_size)[order(buckets)][:, order(buckets)]  # Rows and columns are in sorted order: return them
        # in the order of the text.
    same(buckets.sort().values) & between(differences(torch.arange(len(buckets))), 1, chunk_size)
    torch.zeros(len(buckets), len(buckets)).masked_fill(~visible(buckets, chunk_size), -torch.inf)  # This is a mask of
        # numbers, 0 and −∞. Return a boolean one.
    """,
    "Right: only earlier tokens of the same bucket, and whatever comes later changes nothing.",
)


def _seen_cases() -> list[tuple[Tensor, Tensor]]:
    cases = []
    for seed, (rounds, tokens) in enumerate(((2, 5), (3, 3), (4, 3), (3, 7), (1, 4))):
        scores, chance = draw(seed, (tokens, tokens), (rounds, tokens, tokens))
        cases.append((scores, chance < 0.5))
    scores, seen = cases[0]
    return [*cases, (1000 * scores, seen), (scores.round().clamp(-1, 1), seen), (torch.zeros(5, 5).double(), seen)]


check_count_once = Exercise(
    "Check ``answer(scores, seen)``: (tokens, tokens) and boolean (rounds, tokens, tokens) to the scores of each round "
    "(rounds, tokens, tokens), −inf where unseen, so that all rounds together count every key once.",
    count_once,
    _seen_cases(),
    """
    unseen(scores.expand(seen.shape), seen)  # Nothing is subtracted: a key that N rounds see counts N times.
    unseen(scores - seen.sum(0), seen)  # Subtract log N, not N: exp(s − log N) is exp(s) / N.
    unseen(scores + seen.sum(0).log(), seen)  # The sign is wrong: subtract log N.
    unseen(scores - math.log(len(seen)), seen)  # N differs from pair to pair: in how many rounds does i see j?
    unseen(scores / seen.sum(0), seen)  # The score is divided by N: subtract log N, which divides its exponential.
    unseen(scores * seen.sum(0), seen)  # The score is multiplied by N: subtract log N.
    unseen(scores - seen.sum(0).log2(), seen)  # The base is 2: log undoes exp, log2 does not.
    unseen(scores - seen.sum(0).log10(), seen)  # The base is 10: log undoes exp, log10 does not.
    unseen(scores - seen.sum(0).log1p(), seen)  # This subtracts log(N + 1): subtract log N.
    unseen(scores - seen.sum(0).sqrt(), seen)  # This subtracts √N: subtract log N.
    unseen(scores - 2 * seen.sum(0).log(), seen)  # log N is subtracted twice.
    unseen(scores - seen.sum(0).log(), seen, 0.0)  # What a round does not see must be −inf, so that its exp is 0.
    (scores - seen.sum(0).clamp(min=1).log()) * seen
    unseen(scores - seen.sum(0).log(), seen, -1e9)  # A finite number hides only while every real score is above it: use
        # −inf.
    unseen(scores - seen.sum(0).log(), seen, -1e4)
    unseen(scores - seen.sum(0).log(), seen, -100.0)
    unseen(scores - seen.sum(0).log(), seen, torch.inf)  # The sign of the infinity is wrong: exp(−inf) is 0.
    (scores - seen.sum(0).log()) * seen  # 0 · inf is NaN: hide with masked_fill(~seen, −torch.inf).
    unseen(scores, seen) - seen.sum(0).log() * seen
    (scores - seen.sum(0).log()).expand(seen.shape)  # Each round shows what any round sees: hide with its own mask.
    (scores - seen.sum(0).clamp(min=1).log()).expand(seen.shape)  # Nothing is hidden: write −inf where ~seen.
    unseen(scores - seen.sum(0).log(), ~seen)  # The mask is the wrong way around: hide where ~seen is True.
    unseen(scores - seen.sum(-1, keepdim=True).log(), seen)  # N is counted over the keys: seen.sum(dim=0).
    unseen(scores - seen.sum(1, keepdim=True).log(), seen)  # N is counted over the queries: seen.sum(dim=0).
    unseen(scores - seen.sum().log(), seen)  # N is counted over everything: seen.sum(dim=0).
    unseen(scores - seen.cumsum(0).log(), seen)  # N is counted up to this round only: seen.sum(dim=0).
    unseen(scores, seen & (seen.cumsum(0) == 1))  # Only the first round counts the key: all that see it share it.
    unseen(scores, seen & (seen.sum(0) == 1))  # A key that several rounds see is lost: they share it.
    unseen(scores, seen.all(0).expand(seen.shape))  # Only what all rounds see is left: each round has its own mask.
    count_once(scores, seen).softmax(-1)  # The softmax comes later: return the scores that go into it.
    count_once(scores, seen).exp()  # These are exponentials: return the scores.
    count_once(scores, seen).logsumexp(0)  # The rounds are combined already: return the scores of each.
    count_once(scores, seen)[0]  # This is the first round alone.
    count_once(scores.mT, seen)  # The scores are transposed: rows are queries in both.
    """,
    "Right: N rounds with a share of 1/N each count a key once.",
)
