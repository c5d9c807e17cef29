"""Exercises of notebook 07: hashing, sorting and undoing it, combining rounds, the prefix rule, counting once."""

import torch
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw
from attnlib.checks.merging import MERGE_MISTAKES, PARTS, merge


def hash_buckets(vectors: Tensor, directions: Tensor) -> Tensor:
    projected = vectors @ directions
    return torch.cat([projected, -projected], dim=-1).argmax(dim=-1)


def sort_and_undo(buckets: Tensor) -> Tensor:
    places = torch.arange(len(buckets))
    order = (buckets * len(buckets) + places).argsort()
    undo = torch.empty_like(order).scatter_(0, order, places)
    return torch.stack([order, undo])


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
    (vectors @ directions).abs().argmax(-1)  # A direction and its opposite share a bucket: the sign counts too.
    both(vectors, directions).abs().argmax(-1)
    hash_buckets(vectors, directions) % directions.shape[1]
    (-both(vectors, directions)).argmax(-1)  # Each bucket is that of the opposite: the largest projection wins.
    both(vectors, directions).argsort(-1)[:, 0]
    both(vectors, directions).argmin(-1)
    torch.stack([vectors @ directions, -(vectors @ directions)], -1).flatten(1).argmax(-1)  # All directions come first,
        # then all opposites.
    both(vectors, directions).argmax(0)  # The argmax runs over the tokens: each token picks its bucket, so dim=-1.
    both(vectors, directions).amax(-1)  # This is the largest projection: the bucket is its index, argmax.
    both(vectors, directions)  # These are the projections: the bucket is the index of the largest one, argmax.
    both(vectors, directions).argmax()  # This is one number for all tokens: argmax(dim=-1).
    both(vectors, directions).argmax(-1, keepdim=True)  # An axis of size 1 is left over: argmax without keepdim.
    F.one_hot(hash_buckets(vectors, directions), 2 * directions.shape[1])  # This is one-hot: return the index.
    both(vectors, directions).softmax(-1)  # These are probabilities: the bucket is an index, argmax.
    ((vectors @ directions > 0) * 2 ** torch.arange(directions.shape[1])).sum(-1)  # Signs read in binary are another
        # hash: use argmax.
    ((vectors @ directions > 0) * 2 ** torch.arange(directions.shape[1]).flip(0)).sum(-1)
    (vectors @ directions > 0).sum(-1)  # This counts positive projections: take the argmax of projected and −projected.
    (vectors @ directions > 0).long().argmax(-1)  # Only the signs are compared: the largest projection decides.
    both(vectors, directions).sign().argmax(-1)
    both(vectors, F.normalize(directions, dim=0)).argmax(-1)  # The directions are normalised: use them as they are.
    both(vectors, F.normalize(directions, dim=-1)).argmax(-1)
    torch.cat([vectors @ directions, 1 - vectors @ directions], -1).argmax(-1)  # The opposite is −projected, not 1 −
        # projected.
    hash_buckets(vectors, directions) + 1  # Buckets are counted from 0.
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
    torch.stack([order(buckets), order(buckets).flip(0)])  # Reading backwards is not undoing: order.argsort().
    torch.stack([order(buckets), torch.arange(len(buckets))])  # The second row must undo the order: order.argsort().
    torch.stack([order(buckets), order(buckets)[order(buckets)]])  # The second row must undo the order, not repeat it.
    undone(buckets.argsort())  # This sort is not stable, so equal buckets get scrambled: use stable=True.
    undone(buckets.sort().indices)
    undone(buckets.argsort(descending=True).flip(0))
    undone((buckets * len(buckets) - torch.arange(len(buckets))).argsort())  # Within a bucket, tokens come backwards.
    undone(len(buckets) - 1 - order(buckets.flip(0)))
    undone(order(buckets.flip(0)).flip(0))  # The buckets are reversed before they are sorted: sort them as they are.
    undone(ticket(buckets, 1).argsort(stable=True))  # Multiply the bucket by the number of tokens, or positions win.
    undone((buckets + len(buckets) * torch.arange(len(buckets))).argsort())  # Multiply the bucket, not the position.
    undone(torch.arange(len(buckets)))  # Nothing is sorted: these are the positions.
    undone(order(-buckets))  # The largest bucket comes first: sort upwards.
    undone(order(buckets).flip(0))
    undone(ticket(buckets, len(buckets)).sort().values)  # These are the sorted tickets: use argsort, not sort.
    torch.stack([buckets.sort().values, order(buckets).argsort()])  # The first row is sorted buckets: use argsort.
    torch.stack([buckets.sort().values, order(buckets)])  # This is (values, order): return order and undo.
    undone(ticket(buckets, int(buckets.max()) + 1).argsort(stable=True))  # Multiply by len(buckets), not by max + 1.
    undone(ticket(buckets, 10).argsort(stable=True))  # A fixed factor is too small: use the number of tokens.
    undone(ticket(buckets, 100).argsort(stable=True))
    undone(ticket(buckets, 100).argsort())
    undone(ticket(buckets, 1000).argsort(stable=True))
    undone(ticket(buckets, 1000).argsort())
    undone(ticket(buckets, len(buckets) - 1).argsort(stable=True))  # One too small: multiply by the number of tokens.
    order(buckets)  # Only the order is returned: torch.stack([order, undo]).
    order(buckets).argsort()  # Only the undo is returned: torch.stack([order, undo]).
    sort_and_undo(buckets).mT  # The rows are columns here: torch.stack([order, undo]) without dim=1.
    """,
    "Right: equal buckets are together, in reading order, and the undo brings every token back.",
)


check_combine_rounds = Exercise(
    "Check ``answer(outputs, logsumexps)``: (rounds, tokens, value_dim) and (rounds, tokens) to (tokens, value_dim).",
    merge,
    PARTS,
    MERGE_MISTAKES.replace("part", "round"),
    "Right: the same as one softmax over all that the rounds saw, and no exponential overflows.",
)


check_visible = Exercise(
    "Check ``answer(buckets, chunk_size)``: (tokens,) to (tokens, tokens), True where row i may see column j: the "
    "same bucket, and j comes 1 to ``chunk_size`` places before i in sorted order.",
    visible,
    list(zip(_bucket_cases(), (2, 3, 1, 4, 2, 3, 5, 7, 30), strict=True)),
    """
    same(buckets) & between(differences(torch.arange(len(buckets))), 1, chunk_size)  # Count places in sorted order.
    same(buckets) & between(differences(order(buckets)), 1, chunk_size)  # Use undo[i] here, not order[i].
    same(buckets) & (gaps(buckets) >= 1) & (chunks_back(buckets, chunk_size) <= 1)  # Chunks do not matter here: count
        # the places between the two tokens, even across a border.
    same(buckets) & (gaps(buckets) >= 1) & (chunks_back(buckets, chunk_size) == 0)
    same(buckets) & between(gaps(buckets), 0, chunk_size)  # A token sees itself here: the gap must be at least 1.
    same(buckets) & between(gaps(buckets), 1, chunk_size - 1)  # A gap of exactly chunk_size is still seen: use <=.
    same(buckets) & between(gaps(buckets), 1, chunk_size + 1)  # One place too many: the gap is at most chunk_size.
    same(buckets) & between(gaps(buckets), 2, chunk_size)  # The nearest token is missing: the gap may be 1.
    between(gaps(buckets), 1, chunk_size)  # Other buckets are seen: compare the buckets too.
    same(buckets) & (gaps(buckets) >= 1)  # The whole bucket is seen: at most chunk_size places back.
    same(buckets) & (gaps(buckets) >= 0)  # The whole bucket and the token itself are seen: 1 to chunk_size places back.
    same(buckets)  # This only compares buckets: the gap in sorted order must be 1 to chunk_size.
    visible(buckets, chunk_size).mT  # Rows and columns are swapped: the row is the one that looks.
    same(buckets) & (gaps(buckets).abs() <= chunk_size)  # It looks both ways, and at itself: the key comes first.
    same(buckets) & between(gaps(buckets).abs(), 1, chunk_size)  # It looks both ways: the key must come first.
    same(buckets) & (gaps(buckets) <= chunk_size)  # Later tokens are seen: the gap must be at least 1.
    ~visible(buckets, chunk_size)  # True and False are swapped: True means that row i may see column j.
    visible(buckets, chunk_size) | torch.diag(~visible(buckets, chunk_size).any(-1))  # A token never sees itself.
    same(buckets) | between(gaps(buckets), 1, chunk_size)  # Both must hold: combine with &, not with |.
    (buckets[:, None] != buckets) & between(gaps(buckets), 1, chunk_size)  # These are the other buckets: use ==.
    same(buckets) & between(differences(buckets.argsort().argsort()), 1, chunk_size)  # This sort is not stable, so
        # equal buckets get scrambled: argsort(stable=True).
    same(buckets) & between(differences(torch.sort(buckets).indices.argsort()), 1, chunk_size)
    same(buckets) & between(differences(ticket(buckets, 100).argsort().argsort()), 1, chunk_size)  # A fixed factor is
        # too small: use the number of tokens.
    same(buckets) & between(differences(buckets), 1, chunk_size)  # These are differences of buckets: use places.
    visible(buckets, chunk_size)[order(buckets)][:, order(buckets)]  # Return the table in the order of the text.
    same(buckets.sort().values) & between(differences(torch.arange(len(buckets))), 1, chunk_size)
    torch.zeros(len(buckets), len(buckets)).masked_fill(~visible(buckets, chunk_size), -torch.inf)  # Return a boolean
        # mask.
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
    unseen(scores - seen.sum(0).log2(), seen)  # The base is 2: log undoes exp, log2 does not.
    unseen(scores - seen.sum(0).log1p(), seen)  # This subtracts log(N + 1): subtract log N.
    unseen(scores - 2 * seen.sum(0).log(), seen)  # log N is subtracted twice.
    unseen(scores - seen.sum(0).log(), seen, 0.0)  # What a round does not see must be −inf, so that its exp is 0.
    (scores - seen.sum(0).clamp(min=1).log()) * seen
    unseen(scores - seen.sum(0).log(), seen, -1e9)  # Real scores may be lower than this one: use −inf.
    unseen(scores - seen.sum(0).log(), seen, -1e4)
    unseen(scores - seen.sum(0).log(), seen, -100.0)
    (scores - seen.sum(0).log()) * seen  # What no round sees becomes NaN (0 · ∞ or ∞ − ∞): subtract first, then
        # masked_fill(~seen, −torch.inf).
    unseen(scores, seen) - seen.sum(0).log() * seen
    unseen(scores, seen) - seen.sum(0).log()
    (scores - seen.sum(0).log()).expand(seen.shape)  # Each round shows what any round sees: hide with its own mask.
    (scores - seen.sum(0).clamp(min=1).log()).expand(seen.shape)  # Nothing is hidden: write −inf where ~seen.
    unseen(scores - seen.sum(0).log(), ~seen)  # The mask is the wrong way around: hide where ~seen is True.
    unseen(scores - seen.sum(-1, keepdim=True).log(), seen)  # N is counted over the keys: seen.sum(dim=0).
    unseen(scores - seen.sum(1, keepdim=True).log(), seen)  # N is counted over the queries: seen.sum(dim=0).
    unseen(scores - seen.float().mean(0).log(), seen)  # N is a sum over the rounds, not a mean.
    unseen(scores - seen.sum().log(), seen)  # N is counted over everything: seen.sum(dim=0).
    unseen(scores - seen.cumsum(0).log(), seen)  # N is counted up to this round only: seen.sum(dim=0).
    unseen(scores, seen & (seen.cumsum(0) == 1))  # Only the first round counts the key: all that see it share it.
    unseen(scores, seen & (seen.sum(0) == 1))  # A key that several rounds see is lost: they share it.
    unseen(scores, seen.all(0).expand(seen.shape))  # Only what all rounds see is left: each round has its own mask.
    count_once(scores, seen).softmax(-1)  # The softmax comes later: return the scores that go into it.
    count_once(scores, seen).exp()  # These are exponentials: return the scores.
    count_once(scores, seen).logsumexp(0)  # The rounds are combined already: return the scores of each.
    count_once(scores.mT, seen)  # The scores are transposed: rows are queries in both.
    """,
    "Right: N rounds with a share of 1/N each count a key once.",
)
