"""Exercises of notebook 07: hashing, sorting and undoing it, combining rounds, the prefix rule, counting once."""

import torch
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw
from attnlib.checks.merging import PART_ROWS, PARTS, merge


def hash_buckets(vectors: Tensor, directions: Tensor) -> Tensor:
    """(tokens, head_dim) and (head_dim, num_buckets // 2) to buckets (tokens,)."""
    projected = vectors @ directions
    return torch.cat([projected, -projected], dim=-1).argmax(dim=-1)


def sort_and_undo(buckets: Tensor) -> Tensor:
    """(tokens,) to (2, tokens), the sorting order by (bucket, position), and what undoes it."""
    places = torch.arange(len(buckets))
    order = (buckets * len(buckets) + places).argsort()
    undo = torch.empty_like(order).scatter_(0, order, places)
    return torch.stack([order, undo])


def visible(buckets: Tensor, chunk_size: int) -> Tensor:
    """(tokens,) to (tokens, tokens), True where j is in i's bucket, 1 to ``chunk_size`` places before i once sorted."""
    place = buckets.argsort(stable=True).argsort()  # (tokens,)
    gap = place[:, None] - place  # (tokens, tokens)
    return (buckets[:, None] == buckets) & (gap >= 1) & (gap <= chunk_size)


def count_once(scores: Tensor, seen: Tensor) -> Tensor:
    """Scores (tokens, tokens) to each round's (rounds, tokens, tokens), −inf where unseen, with a key counted once."""
    discounted = scores - seen.sum(dim=0).log()  # (tokens, tokens)
    return discounted.masked_fill(~seen, -torch.inf)  # (rounds, tokens, tokens)


HASHES = ((3, 13, 3, 2), (4, 17, 5, 4), (5, 11, 2, 1), (7, 5, 5, 5), (8, 1, 3, 3), (9, 120, 4, 6))
VECTORS = [draw(seed, (tokens, d), (d, half), double=seed == 9) for seed, tokens, d, half in HASHES]
HASH_TABLE = """
Right: every vector is in the bucket of the arrow along which it reaches furthest.
half = vectors @ directions; both = torch.cat([half, -half], -1)
half.argmax(-1)  # The opposite directions are buckets too: join projected and −projected.
half.abs().argmax(-1)  # A direction and its opposite share a bucket: the sign counts too.
both.argmin(-1)  # Each bucket is that of the opposite: the largest projection wins.
both.argmax(0)  # The argmax runs over the tokens: each token picks its bucket, so dim=-1.
both.amax(-1)  # This is the largest projection: the bucket is its index, argmax.
((half > 0) * 2 ** torch.arange(directions.shape[1])).sum(-1)  # Signs in binary are another hash.
(half > 0).sum(-1)  # This counts positive projections: take the argmax of projected and −projected.
both.sign().argmax(-1)  # Only the signs are compared: the largest projection decides.
torch.stack([half, -half], -1).flatten(-2).argmax(-1)  # Directions and opposites alternate: join them with torch.cat.
torch.cdist(vectors, torch.cat([directions, -directions], -1).mT).argmin(-1)  # These are distances: compare products.
"""
check_hash = Exercise(hash_buckets, VECTORS, HASH_TABLE)

LISTS = [2, 0, 1, 2, 0, 1, 1], [3, 1, 3, 0, 3, 0, 2, 1, 0, 0, 3], [5, 4, 0], [1], [0, 0, 0, 0, 0], [900, 0, 70, 0]
BUCKETS = [torch.tensor(buckets) for buckets in LISTS]
BUCKETS += [draw(7, (n,))[0].argsort() % k for n, k in ((40, 3), (129, 4), (67, 2))]  # ties scramble from 17 tokens on
SORT_TABLE = """
Right: equal buckets are together, in reading order, and the undo brings every token back.
places = torch.arange(len(buckets)); order = buckets.argsort(stable=True)
undone = lambda order: torch.stack([order, order.argsort()]); ticket = lambda base: buckets * base + places
by = lambda base, stable=False: undone(ticket(base).argsort(stable=stable))
torch.stack([order, order]); torch.stack([order, places])  # The second row undoes nothing: order.argsort().
sort_and_undo(buckets).flip(0)  # The rows are swapped: the order first, then the undo.
torch.stack([order, order.flip(0)])  # Reading backwards is not undoing: order.argsort().
undone(buckets.argsort()); undone(buckets.sort().indices)  # This sort scrambles equal buckets: use stable=True.
by(1); by(1, True); by(10); by(1000); by(int(buckets.max()) + 1)  # The factor is wrong: it must be len(buckets).
undone(places)  # Nothing is sorted: these are the positions.
undone((-buckets).argsort(stable=True)); undone(order.flip(0))  # The largest bucket comes first: sort upwards.
torch.stack([buckets.sort().values, order])  # This is (values, order): return order and undo.
undone(ticket(len(buckets))); undone(ticket(len(buckets)).sort().values)  # These are tickets: take their argsort.
order; order.argsort()  # Only one of the two is returned: torch.stack([order, undo]).
"""
check_sort_and_undo = Exercise(sort_and_undo, [(b,) for b in (*BUCKETS, torch.arange(1100) // 5 % 3)], SORT_TABLE)

RIGHT = "Right: the same as one softmax over all that the rounds saw, and no exponential overflows."
check_combine_rounds = Exercise(merge, PARTS, RIGHT + PART_ROWS.replace("part", "round"))

VISIBLE_TABLE = """
Right: only earlier tokens of the same bucket, and whatever comes later changes nothing.
same = buckets[:, None] == buckets; order = buckets.argsort(stable=True); undo = order.argsort()
gap = undo[:, None] - undo; chunk = undo // chunk_size; chunks = chunk[:, None] - chunk
within = lambda gap, low=1, high=chunk_size: (gap >= low) & (gap <= high)
by = lambda places: same & within(places[:, None] - places)
by(order)  # order[i] is not the place of token i: use undo[i].
same & (gap >= 1) & (chunks <= 1); same & (gap >= 1) & (chunks == 0)  # Count places, not chunks.
same & within(gap, 0)  # A token sees itself here: the gap must be at least 1.
same & within(gap, 1, chunk_size - 1); same & within(gap, 1, chunk_size + 1)  # Off by one: use gap <= chunk_size.
within(gap)  # Other buckets are seen: compare the buckets too.
same & (gap >= 1)  # The whole bucket is seen: at most chunk_size places back.
same & within(gap.abs())  # It looks both ways: the key must come first.
same | within(gap)  # Both must hold: combine with &, not with |.
same & (gap <= chunk_size)  # Later tokens are seen too: the gap must be at least 1.
by(torch.arange(len(buckets)))  # The gap is counted in the text: count sorted places.
(gap >= 1) & (chunks <= 1)  # Compare the buckets too, and count places, not chunks.
~visible(buckets, chunk_size)  # The table is the wrong way around: True means that i may see j.
visible(buckets, chunk_size) | torch.diag(~visible(buckets, chunk_size).any(-1))  # A lone token sees itself: hide it.
by(buckets.argsort().argsort())  # This sort scrambles equal buckets: use stable=True.
by((buckets * 100 + torch.arange(len(buckets))).argsort().argsort())  # A fixed factor is too small.
visible(buckets, chunk_size)[order][:, order]  # Return the table in the order of the text.
"""
check_visible = Exercise(visible, list(zip(BUCKETS, (2, 3, 1, 4, 2, 3, 5, 7, 30), strict=True)), VISIBLE_TABLE)

SHAPES = enumerate(((2, 5), (3, 3), (4, 3), (3, 7), (1, 4)))  # rounds, tokens
MET = [draw(seed, (tokens, tokens), (rounds, tokens, tokens)) for seed, (rounds, tokens) in SHAPES]
MET = [(scores, chance < 0.5) for scores, chance in MET]
SCORES, SEEN = MET[0]
MET += [(1000 * SCORES, SEEN), (SCORES.round().clamp(-1, 1), SEEN), (torch.zeros(5, 5).double(), SEEN)]
COUNT_ONCE_TABLE = """
Right: N rounds with a share of 1/N each count a key once.
count = seen.sum(0); once = scores - count.log(); unseen = lambda s, fill=-torch.inf: s.masked_fill(~seen, fill)
unseen(scores.expand(seen.shape))  # Nothing is subtracted: a key that N rounds see counts N times.
unseen(scores - count); unseen(scores / count)  # N divides exp(s), so subtract log N: exp(s − log N) is exp(s) / N.
unseen(scores + count.log())  # The sign is wrong: subtract log N.
unseen(scores - math.log(len(seen)))  # N differs from pair to pair: in how many rounds does i see j?
unseen(once, 0.0)  # What a round does not see must be −inf, so that its exp is 0.
unseen(once, -1e9)  # Real scores may be lower than this one: use −inf.
once * seen; unseen(scores) - count.log()  # ∞ − ∞ and 0 · ∞ are NaN: hide last.
once.expand(seen.shape)  # Each round shows what any round sees: hide with its own mask.
once.masked_fill(seen, -torch.inf)  # The mask is the wrong way around: hide where ~seen is True.
unseen(scores - seen.sum(-1, True).log()); unseen(scores - seen.sum(1, True).log())  # Tokens are counted: seen.sum(0).
unseen(scores - seen.sum().log())  # N is counted over everything: seen.sum(dim=0).
unseen((scores.exp() / count).log())  # exp overflows: subtract log N from the score.
count_once(scores, seen).softmax(-1)  # The softmax comes later: return the scores.
count_once(scores, seen).logsumexp(0)  # The rounds are combined already: return the scores of each.
"""
check_count_once = Exercise(count_once, MET, COUNT_ONCE_TABLE)
