"""Exercises of notebook 01: scores, softmax, context vectors, cosines."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw


def scores(query: Tensor, tokens: Tensor) -> Tensor:
    return tokens @ query  # (tokens,)


def softmax(scores: Tensor) -> Tensor:
    exponentials = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


def context_vectors(tokens: Tensor) -> Tensor:
    scores = tokens @ tokens.mT  # (..., tokens, tokens)
    return torch.softmax(scores, dim=-1) @ tokens


def cosine_context(tokens: Tensor) -> Tensor:
    directions = tokens / tokens.norm(dim=-1, keepdim=True)  # (tokens, d_in), each of length 1
    return torch.softmax(directions @ directions.T, dim=-1) @ tokens


def share(exponentials: Tensor) -> Tensor:
    return exponentials / exponentials.sum(-1, keepdim=True)


def less(scores: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """The exponentials after the largest score along ``dim`` was subtracted."""
    return (scores - scores.amax(dim, keepdim=True)).exp()


def pairs(x: Tensor) -> Tensor:
    return x @ x.mT


def cosines(x: Tensor) -> Tensor:
    return pairs(F.normalize(x, dim=-1))


check_scores = Exercise(
    "Check ``answer(query, tokens)``: the dot product of a query (d_in,) with every token (tokens, d_in).",
    scores,
    [
        draw(11, (4,), (4, 4)),  # square first: mixed-up axes run, and are named
        draw(12, (5,), (7, 5)),
        draw(13, (3,), (2, 3), scale=30.0),
        draw(14, (6,), (130, 6)),
        (torch.tensor([1000.0, 0.0, -2.5]), torch.tensor([[0.0, -7.0, 4.0], [-1.0, 1000.0, 0.0]])),
        draw(15, (5,), (1, 5)),
        tuple(x.double() for x in draw(16, (2,), (3, 2))),
    ],
    """
    query @ tokens  # This sums over the tokens: sum over the coordinates, so that each token has one score.
    (tokens * query).sum(0)
    (tokens * query[:, None]).sum(-1)  # Each token meets one number of the query: multiply it by the whole query.
    (tokens * query).sum()  # Everything is summed into one number: each token has its own score.
    (tokens * query).mean(-1)  # This is the mean of the products: a dot product is their sum.
    tokens @ query / len(query)
    (tokens * query).amax(-1)  # This is the largest of the products: a dot product is their sum.
    (tokens * query)[:, 0]  # Only the first coordinate is used: sum the products of all.
    (tokens * query)[:, :-1].sum(-1)  # The last coordinate is left out: the loop stops one too early.
    (tokens * query)[:, -1]  # Only the last product is kept: add each one to the sum so far.
    tokens * query  # The products are not summed yet: a score is one number for each token.
    (tokens @ query).softmax(0)  # These are weights, one step too far: return the scores.
    (tokens @ query).softmax(0) @ tokens  # This is the context vector, two steps too far: return the scores.
    (tokens @ query).cumsum(0)  # The running sum is never set back to zero: start again for each token.
    F.cosine_similarity(tokens, query, dim=-1)  # These are cosines: a dot product is not divided by lengths.
    tokens @ query / query.norm()  # The scores are divided by the query's length: return the plain dot product.
    tokens @ query / tokens.norm(dim=-1)  # Each score is divided by a token's length: return the plain dot product.
    tokens @ query / len(query) ** 0.5  # The root comes in notebook 02: return the plain dot product.
    (tokens - query).norm(dim=-1)  # These are distances, which grow where two tokens differ; a dot product falls there.
    (tokens - query).square().sum(-1)
    -(tokens - query).norm(dim=-1)  # These are negative distances: multiply the coordinates, and sum the products.
    (query @ query).expand(len(tokens))  # This is the score of the query with itself: use each token in turn.
    tokens @ tokens[0]  # This compares the tokens with the first one: use the query that you are given.
    tokens.sum(-1)  # The query plays no part: multiply by it before you sum.
    (tokens + query).sum(-1)  # The coordinates are added: multiply them, then sum.
    (tokens @ query).abs()  # The sign is lost: a score may be negative.
    tokens[0] @ query  # This is the score of the first token only: return one for each token.
    tokens[-1] @ query  # This is the score of the last token only: collect those of all tokens.
    tokens[1:] @ query  # The first token is left out: return one score for each token.
    """,
    "Right: one dot product for each token.",
)


def _softmax_cases() -> list[tuple[Tensor]]:
    cases = [(x,) for x in draw(12, (4, 4), (3, 5), (2, 3, 5), (5,), (2, 150), (3, 1), (1, 4))]
    large = 100 * draw(19, (3, 5))[0] + 200
    rows = torch.tensor([[-1000.0, -1001.0, -1002.0], [1000.0, 1001.0, 1002.0]])
    one_row = torch.tensor([[1000.0, -1000.0, 0.0, 999.0], [0.0, 0.0, 0.0, 0.0]])
    apart = draw(20, (2, 2, 3))[0] + torch.tensor([-900.0, 900.0])[:, None, None]  # from sentence to sentence
    return [*cases, (large,), (rows,), (one_row,), (apart,), (draw(21, (2, 3))[0].double() + 800,)]


check_softmax = Exercise(
    "Check ``answer(scores)``: a softmax over the last axis of scores (…, tokens) of any size.",
    softmax,
    _softmax_cases(),
    """
    share(scores.exp())  # Right for small scores, but exp overflows for large ones: subtract each row's largest score
        # first.
    share(scores.double().exp())
    share((scores - scores.max()).exp())  # All rows lose one largest score, so a row far below it is 0 / 0: use
        # amax(-1, keepdim=True).
    share(less(scores, tuple(range(scores.ndim))[-2:]))
    share((scores - scores.mean(-1, keepdim=True)).exp())  # The mean is subtracted, so exp still overflows: subtract
        # each row's largest.
    share((scores - scores.mean()).exp())
    share((scores - scores.amin(-1, keepdim=True)).exp())  # The smallest score is subtracted, so exp still overflows:
        # subtract the largest of each row.
    share((scores - scores.min()).exp())
    share((scores - 100).exp())  # A fixed number is subtracted, but scores can lie far from it: subtract the largest of
        # each row.
    share((scores - scores.amax(-1)).exp())  # Column j loses the largest score of row j: add keepdim=True to amax.
    share((scores - scores.amax(0)).exp())  # Each column loses its largest score: take that of each row, amax(-1,
        # keepdim=True).
    share((scores / scores.amax(-1, keepdim=True)).exp())  # The scores are divided by the largest one: subtract it.
    share(scores.exp()).nan_to_num()  # nan_to_num only hides the overflow: subtract each row's largest score before
        # exp.
    share(scores.exp().nan_to_num())
    share(scores.clamp(max=80).exp())  # Scores beyond the clamp become equal: subtract the largest of each row instead.
    share(scores.clamp(-80, 80).exp())
    share(scores.clamp(-50, 50).exp())
    less(scores) / scores.exp().sum(-1, keepdim=True)  # The sum needs the exponentials from which the largest was
        # subtracted.
    scores.exp() / less(scores).sum(-1, keepdim=True)  # Subtract the largest score in the numerator as well.
    share(less(-scores))  # The sign is flipped: the largest score must get the largest weight.
    share((scores.amax(-1, keepdim=True) - scores).exp())
    share((scores + scores.amax(-1, keepdim=True)).exp())  # The largest score is added: subtract it.
    share(less(share(less(scores))))  # Softmax is taken twice.
    scores.exp()  # These are exponentials: divide each row by its sum.
    less(scores)
    scores / scores.sum(-1, keepdim=True)  # The exp is missing: negative scores give negative weights.
    scores.abs() / scores.abs().sum(-1, keepdim=True)  # The exp is missing, and the sign is lost.
    scores.square() / scores.square().sum(-1, keepdim=True)
    scores.sigmoid()  # A sigmoid looks at each score alone: divide each row of exponentials by its sum.
    scores - scores.logsumexp(-1, keepdim=True)  # These are the logarithms of the weights: take exp of them.
    scores.exp() / scores.exp().sum()  # One sum is taken over everything: each row has its own, sum(-1, keepdim=True).
    less(scores) / less(scores).sum()
    (scores - scores.max()).exp() / (scores - scores.max()).exp().sum()
    less(scores, 0) / less(scores, 0).sum(0)  # The columns sum to one here: each row must, so use dim=-1.
    less(scores) / less(scores).sum(0)  # The sum runs over the columns: sum each row, sum(-1, keepdim=True).
    scores.exp() / scores.exp().sum(0)
    less(scores, -2) / less(scores, -2).sum(-2, keepdim=True)  # The softmax runs over the last axis but one: use
        # dim=-1.
    scores.exp() / scores.exp().sum(-1)  # Column j is divided by the sum of row j: add keepdim=True to the sum.
    less(scores) / less(scores).sum(-1)
    less(scores) / less(scores).mean(-1, keepdim=True)  # The exponentials are divided by their mean: divide by their
        # sum.
    less(scores) / scores.shape[-1]  # The exponentials are divided by their number: divide them by their sum.
    less(scores) / less(scores).norm(dim=-1, keepdim=True)  # The exponentials are divided by their length, not their
        # sum.
    less(scores) / scores.sum(-1, keepdim=True)  # The sum is that of the scores: sum the exponentials.
    share(torch.exp2(scores - scores.amax(-1, keepdim=True)))  # These are powers of 2: take powers of e, with exp().
    (scores == scores.amax(-1, keepdim=True)).float()  # All weight goes to the largest score: take shares of the
        # exponentials.
    torch.ones_like(scores) / scores.shape[-1]  # All weights are equal: the scores play no part.
    share(less(scores / scores.shape[-1] ** 0.5))  # The scores are divided by a root: leave it out.
    """,
    "Right, for scores of any size: every row sums to one.",
    forbidden=("softmax", "log_softmax", "special_softmax", "special_log_softmax", "softmin", "_softmax"),
)


def _token_cases() -> list[tuple[Tensor]]:
    cases = [(x,) for x in draw(13, (5, 3), (4, 4), (7, 2, 3), (2, 3, 5), (130, 6), (1, 1, 4), (1, 3))]
    unequal = (
        draw(23, (6, 3))[0] * torch.tensor([30.0, 0.0, 0.1, 5.0, 1.0, 20.0])[:, None]
    )  # their scores are far apart
    return [*cases, (unequal,), (draw(24, (3, 4, 2))[0] * torch.tensor([40.0, 0.1, 1.0])[:, None, None],)]


check_context_vectors = Exercise(
    "Check ``answer(tokens)``: context vectors of tokens (tokens, d_in) and (batch, tokens, d_in), without a scale.",
    context_vectors,
    _token_cases(),
    """
    pairs(tokens) @ tokens  # Softmax is missing: raw scores do not sum to one, so this is not an average.
    share(pairs(tokens).exp()) @ tokens  # exp overflows for long tokens: subtract each row's largest score, or use
        # softmax.
    share((pairs(tokens) - pairs(tokens).max()).exp()) @ tokens  # All rows lose one largest score: take amax(-1,
        # keepdim=True).
    share(less(pairs(tokens), (-2, -1))) @ tokens
    share(pairs(tokens).clamp(max=80).exp()) @ tokens  # Scores beyond the clamp become equal: subtract the row's
        # largest.
    pairs(tokens).softmax(1) @ tokens  # dim=1 is the keys for one sentence only, and the queries in a batch: use
        # dim=-1.
    pairs(tokens).softmax(-2) @ tokens  # The columns of the weights sum to one, not the rows: use dim=-1, and
        # keepdim=True in a sum.
    pairs(tokens).softmax(-1).mT @ tokens
    pairs(tokens).softmax(0) @ tokens  # The softmax runs over the first axis: it must run over the keys, dim=-1.
    (pairs(tokens) / tokens.shape[-1] ** 0.5).softmax(-1) @ tokens  # The root comes in notebook 02: leave it out.
    (pairs(tokens) / tokens.shape[-1]).softmax(-1) @ tokens  # The scores are divided by d_in: leave that out.
    cosines(tokens).softmax(-1) @ tokens  # The scores are cosines: use plain dot products here.
    pairs(tokens).exp() @ tokens  # The exponentials are not divided by their sum, so this is not an average yet.
    less(pairs(tokens)) @ tokens
    pairs(tokens) / pairs(tokens).sum(-1, keepdim=True) @ tokens  # The exp is missing: use softmax.
    pairs(tokens).flatten().softmax(0).view_as(pairs(tokens)) @ tokens  # One softmax is taken over all scores: use
        # dim=-1.
    pairs(tokens).flatten(-2).softmax(-1).view_as(pairs(tokens)) @ tokens
    pairs(tokens).softmax(-1).softmax(-1) @ tokens  # Softmax is taken twice.
    pairs(tokens).sigmoid() @ tokens  # A sigmoid looks at each score alone, so the rows do not sum to one: use softmax.
    (-pairs(tokens)).softmax(-1) @ tokens  # The sign is flipped: the largest score must get the largest weight.
    pairs(tokens).softmax(-1) @ tokens + tokens  # The token itself is added to its average: leave it out.
    (pairs(tokens).softmax(-1) @ tokens).softmax(-1)  # There is a softmax after the average: leave it out.
    pairs(tokens if tokens.ndim == 2 else tokens[0]).softmax(-1) @ tokens  # All sentences use the weights of the first.
    pairs(tokens).softmax(-1)  # These are the weights, one step too early: average the tokens with them.
    tokens  # The tokens come back unchanged: nothing is averaged.
    tokens.mean(-2, keepdim=True).expand_as(tokens)  # All tokens count alike: weight them by a softmax of scores.
    tokens @ (tokens.mT @ tokens).softmax(-1)  # tokens.mT @ tokens compares coordinates: use tokens @ tokens.mT.
    F.one_hot(pairs(tokens).argmax(-1), tokens.shape[-2]).to(tokens) @ tokens  # Only the token with the largest score
        # is used.
    pairs(tokens).softmax(-1) @ tokens.softmax(-1)  # The softmax of the tokens is averaged: average the tokens.
    pairs(tokens.softmax(-1)).softmax(-1) @ tokens  # A softmax does not give length 1: divide by the norm.
    (pairs(tokens) + torch.full_like(pairs(tokens), -torch.inf).triu(1)).softmax(-1) @ tokens  # Later tokens are
        # hidden.
    (pairs(tokens).softmax(-1) @ tokens)[..., 0, :]  # This is the context vector of one token: return one for each.
    (pairs(tokens).softmax(-1) @ tokens)[..., 1, :]
    (pairs(tokens).softmax(-1) @ tokens)[..., -1, :]
    (pairs(tokens).softmax(-1) @ tokens).sum(-2)  # The context vectors are summed: return one for each token.
    """,
    "Right, for one sentence and for a batch.",
)


check_cosine_context = Exercise(
    "Check ``answer(tokens)``: context vectors whose scores are cosines, for tokens (tokens, d_in).",
    cosine_context,
    [
        *((x + 0.5,) for x in draw(14, (5, 5), (7, 3), (2, 11), (130, 4), (1, 3))),
        (draw(25, (6, 3))[0] * torch.tensor([1000.0, 0.01, 1.0, 30.0, 100.0, 0.1])[:, None],),
        (draw(26, (4, 2))[0].double(),),
    ],
    """
    pairs(tokens).softmax(-1) @ tokens  # The scores are plain dot products: divide each token by its length first.
    cosines(tokens).softmax(-1) @ F.normalize(tokens, dim=-1)  # Shortened tokens are averaged: average them as they
        # are.
    pairs(F.normalize(tokens, dim=0)).softmax(-1) @ tokens  # Each column is divided by its length: divide each row,
        # dim=-1.
    (F.normalize(tokens, dim=-1) @ tokens.mT).softmax(-1) @ tokens  # Only the queries are divided by their lengths.
    (tokens @ F.normalize(tokens, dim=-1).mT).softmax(-1) @ tokens  # Only the keys are divided by their lengths.
    pairs(tokens / tokens.square().sum(-1, keepdim=True)).softmax(-1) @ tokens  # The root is missing from the length.
    pairs(F.normalize(tokens, p=1, dim=-1)).softmax(-1) @ tokens  # A length is a root of squares, not a sum of abs().
    pairs(tokens / tokens.sum(-1, keepdim=True)).softmax(-1) @ tokens  # A length is a root of squares, not a sum.
    pairs(tokens / tokens.abs().amax(-1, keepdim=True)).softmax(-1) @ tokens  # This divides by the largest entry.
    pairs(tokens / tokens.square().mean(-1, keepdim=True).sqrt()).softmax(-1) @ tokens  # Sum the squares, not their
        # mean.
    pairs(tokens.softmax(-1)).softmax(-1) @ tokens  # A softmax does not give length 1: divide by the norm.
    cosines(tokens - tokens.mean(-1, keepdim=True)).softmax(-1) @ tokens  # A mean is subtracted first: leave it out.
    cosines(tokens - tokens.mean(0)).softmax(-1) @ tokens
    cosines(tokens) @ tokens  # Softmax is missing: cosines do not sum to one.
    cosines(tokens).exp() @ tokens  # The exponentials are not divided by their sum: use softmax.
    cosines(tokens) / cosines(tokens).sum(-1, keepdim=True) @ tokens  # The exp is missing: use softmax.
    (cosines(tokens) / tokens.shape[-1] ** 0.5).softmax(-1) @ tokens  # The cosines are divided by √d_in as well.
    cosines(tokens).softmax(0) @ tokens  # The columns of the weights sum to one, not the rows: use dim=-1, and
        # keepdim=True in a sum.
    cosines(tokens).softmax(-1).mT @ tokens
    cosines(tokens).flatten().softmax(0).view(len(tokens), -1) @ tokens  # One softmax is taken over all scores: use
        # dim=-1.
    cosines(tokens).softmax(-1).softmax(-1) @ tokens  # Softmax is taken twice.
    cosines(tokens).softmax(-1)  # These are the weights, one step too early: average the tokens with them.
    cosines(tokens)  # These are the cosines: take the softmax of each row, and average the tokens.
    F.normalize(tokens, dim=-1)  # These are the shortened tokens: build scores from them, then average the tokens.
    pairs(tokens).softmax(-1) / tokens.norm(dim=-1, keepdim=True) @ tokens  # Divide the scores by lengths, not the
        # weights.
    pairs(tokens / tokens.norm()).softmax(-1) @ tokens  # All tokens share one length: use norm(dim=-1, keepdim=True).
    pairs(tokens / tokens.norm(dim=-1).max()).softmax(-1) @ tokens
    pairs(tokens / tokens.norm(dim=-1)).softmax(-1) @ tokens  # Column j is divided by length j: add keepdim=True to
        # norm.
    F.normalize(cosines(tokens).softmax(-1) @ tokens, dim=-1)  # The averages are shortened: only scores need lengths.
    F.normalize(pairs(tokens), dim=-1).softmax(-1) @ tokens  # Rows of scores are divided by lengths: divide the tokens.
    cosines(tokens).abs().softmax(-1) @ tokens  # The sign of the cosines is lost.
    cosines(tokens).square().softmax(-1) @ tokens
    (1 - cosines(tokens)).softmax(-1) @ tokens  # A larger cosine gets less weight: the scores are the cosines
        # themselves.
    (-cosines(tokens)).softmax(-1) @ tokens
    cosines(tokens).softmax(-1) @ tokens + tokens  # The token itself is added to its average: leave it out.
    F.cosine_similarity(tokens, tokens, dim=-1).softmax(0) @ tokens  # Each token is compared with itself only.
    F.cosine_similarity(tokens, tokens, dim=-1)
    """,
    "Right: a token's length no longer draws attention.",
)
