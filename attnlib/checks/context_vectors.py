"""Exercises of notebook 01: scores, softmax, context vectors, cosines."""

import torch
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw


def scores(query: Tensor, tokens: Tensor) -> Tensor:
    """The dot product of a query (d_in,) with every token (tokens, d_in)."""
    return tokens @ query  # (tokens,)


def softmax(scores: Tensor) -> Tensor:
    """A softmax over the last axis of scores (…, tokens) of any size."""
    exponentials = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


def context_vectors(tokens: Tensor) -> Tensor:
    """Context vectors of tokens (tokens, d_in) and (batch, tokens, d_in), without a scale."""
    scores = tokens @ tokens.mT  # (..., tokens, tokens)
    return torch.softmax(scores, dim=-1) @ tokens


def cosine_context(tokens: Tensor) -> Tensor:
    """Context vectors whose scores are cosines, for tokens (tokens, d_in)."""
    directions = tokens / tokens.norm(dim=-1, keepdim=True)  # (tokens, d_in), each of length 1
    return torch.softmax(directions @ directions.T, dim=-1) @ tokens


SCORES = [draw(11, (4,), (4, 4)), draw(12, (5,), (7, 5))]  # square first: mixed-up axes run, and are named
SCORES += [draw(13, (3,), (2, 3), scale=30.0), draw(14, (6,), (130, 6)), draw(15, (5,), (1, 5))]
SCORES += [(torch.tensor([1000.0, 0.0, -2.5]), torch.tensor([[0.0, -7.0, 4.0], [-1.0, 1000.0, 0.0]]))]
SCORES += [draw(16, (2,), (3, 2), double=True)]
SCORES_TABLE = """
Right: one dot product for each token.
query @ tokens; (tokens * query).sum(0)  # This sums over the tokens: sum over the coordinates, dim=-1.
(tokens * query).sum()  # Everything is summed into one number: each token has its own score.
(tokens * query).mean(-1)  # This is the mean of the products: a dot product is their sum.
(tokens * query)[:, :-1].sum(-1)  # The last coordinate is skipped: the loop stops one too early.
(tokens * query)[:, -1]  # Only the last product is kept: add each one to the sum so far.
tokens * query  # The products are not summed yet: a score is one number for each token.
(tokens @ query).softmax(0); (tokens @ query).softmax(0) @ tokens  # This is too far: return the scores.
dot = tokens @ query; cosine = F.cosine_similarity(tokens, query, dim=-1)
cosine; dot / query.norm(); dot / tokens.norm(dim=-1)  # These are cosines: a dot product is not divided by lengths.
tokens @ query / len(query) ** 0.5  # The root comes in notebook 02: return the plain dot product.
(tokens - query).norm(dim=-1); (tokens - query).square().sum(-1)  # These are distances: use dot products.
tokens[0] @ query; tokens[-1] @ query  # This is the score of one token only: return one for each token.
"""
check_scores = Exercise(scores, SCORES, SCORES_TABLE)

SOFTMAXES = [*draw(12, (4, 4), (3, 5), (2, 3, 5), (5,), (2, 150), (3, 1), (1, 4)), 100 * draw(19, (3, 5))[0] + 200]
SOFTMAXES += [torch.tensor([[-1000.0, -1001, -1002], [1000, 1001, 1002]]), torch.tensor([-1000.0, -1001, -1003])]
SOFTMAXES += [torch.tensor([[1000.0, -1000, 0, 999], [0, 0, 0, 0]]), draw(21, (2, 3), double=True)[0] + 800]
SOFTMAXES += [draw(20, (2, 2, 3))[0] + torch.tensor([-900.0, 900.0])[:, None, None]]  # sentences far apart
SOFTMAX_TABLE = """
Right, for scores of any size: every row sums to one.
e = scores.exp(); wide = scores.double().exp(); each = less(scores)
share(e); share(e).nan_to_num(); share(wide)  # exp overflows: subtract each row's largest score first.
share((scores - scores.amax(-1)).exp())  # Column j loses the largest score of row j: add keepdim=True to amax.
share(less(scores, 1), 1)  # dim=1 is the last axis of a matrix only: use dim=-1.
share((scores - scores.max()).exp())  # All rows lose one largest score, so a row far below is 0 / 0: use amax(-1).
each / e.sum(-1, keepdim=True)  # The exponentials are shifted, but their sum is not: sum the shifted ones.
share((scores - scores.mean(-1, keepdim=True)).exp())  # The mean is subtracted: subtract each row's largest score.
share(scores.clamp(max=80).exp()); share(scores.clamp(-50, 50).exp())  # A clamp ties scores: subtract the largest.
share(less(-scores))  # The sign is flipped: the largest score must get the largest weight.
e; each  # These are exponentials: divide each row by its sum.
share(scores)  # The exp is missing: negative scores give negative weights.
scores.sigmoid()  # A sigmoid looks at each score alone: divide each row of exponentials by its sum.
scores - scores.logsumexp(-1, keepdim=True)  # These are the logarithms of the weights: take exp of them.
e / e.sum(); each / each.sum()  # Each row has its own sum: use dim=-1.
share(less(scores, 0), 0)  # The columns sum to one here: each row must, so use dim=-1.
each / each.sum(-1); e / e.sum(-1)  # Column j is divided by the sum of row j: add keepdim=True to the sum.
share(less(scores / scores.shape[-1] ** 0.5))  # The scores are divided by a root: leave it out.
"""
FUSED = ("softmax", "log_softmax", "special_softmax", "special_log_softmax", "softmin", "_softmax")
check_softmax = Exercise(softmax, [(scores,) for scores in SOFTMAXES], SOFTMAX_TABLE, forbidden=FUSED)

# Mistakes between scores and an average. A table says what its scores `s` are, and what `average` makes of weights.
OVERFLOW_ROWS = """
average(share(s.exp()))  # exp overflows for large scores: use torch.softmax.
average(share((s - s.max()).exp()))  # All rows lose one largest score, so a row far below is 0 / 0: use torch.softmax.
"""
SOFTMAX_ROWS = """
average(s)  # Softmax is missing: raw scores do not sum to one.
average(share(s))  # The exp is missing: negative scores give negative weights.
average(s.exp())  # The exponentials are not divided by their sum: use softmax.
average(s.softmax(-2))  # The softmax runs over the queries: each row must sum to one, dim=-1.
average(s.softmax(-1).softmax(-1))  # Softmax is taken twice.
"""
AVERAGE_ROWS = f"""{SOFTMAX_ROWS}
s.softmax(-1)  # These are the weights, one step too early: take the average with them.
s  # These are the scores: take the softmax of each row, then the average.
"""

CONTEXTS = [*draw(13, (5, 3), (4, 4), (7, 2, 3), (2, 3, 5), (130, 6), (1, 1, 4), (1, 3))]
CONTEXTS += [*draw(23, (6, 3), rows=(30, 0, 0.1, 5, 1, 20)), *draw(24, (3, 4, 2), rows=(40, 0.1, 1))]
CONTEXT_TABLE = f"""
Right, for one sentence and for a batch.
unit = F.normalize(tokens, dim=-1); s = tokens @ tokens.mT; average = lambda weights: weights @ tokens
average(s.softmax(1))  # dim=1 is the keys for one sentence, and the queries in a batch: use dim=-1.
average(s.softmax(0))  # dim=0 is the queries for one sentence, and the sentences in a batch: use dim=-1.
average((s / tokens.shape[-1] ** 0.5).softmax(-1))  # The root comes in notebook 02: leave it out.
average((unit @ unit.mT).softmax(-1))  # The scores are cosines: use plain dot products.
tokens @ (tokens.mT @ tokens).softmax(-1)  # tokens.mT @ tokens compares coordinates: use tokens @ tokens.mT.
{OVERFLOW_ROWS}{AVERAGE_ROWS}"""
check_context_vectors = Exercise(context_vectors, [(tokens,) for tokens in CONTEXTS], CONTEXT_TABLE)

COSINES = [(x + 0.5,) for x in draw(14, (5, 5), (7, 3), (2, 11), (130, 4), (1, 3))]
COSINES += [draw(25, (6, 3), rows=(1000, 0.01, 1, 30, 100, 0.1)), draw(26, (4, 2), double=True)]
COSINE_TABLE = f"""
Right: a token's length no longer draws attention.
unit = F.normalize(tokens, dim=-1); s = unit @ unit.mT; average = lambda weights: weights @ tokens
against = lambda x: average((x @ x.mT).softmax(-1))
against(tokens)  # The scores are plain dot products: divide each token by its length first.
s.softmax(-1) @ unit  # Shortened tokens are averaged: average the tokens.
against(F.normalize(tokens, dim=0))  # Columns are divided by their lengths: divide each row.
average((unit @ tokens.mT).softmax(-1)); average((tokens @ unit.mT).softmax(-1))  # One is not shortened: divide both.
against(tokens / tokens.square().sum(-1, keepdim=True))  # The root is missing from the length.
against(tokens / tokens.norm(dim=-1))  # Column j is divided by length j: use keepdim=True.
against(tokens / tokens.norm())  # All tokens share one length: use norm(dim=-1, keepdim=True).
F.cosine_similarity(tokens, tokens, dim=-1)  # Each token is compared with itself only: compare it with every token.
{AVERAGE_ROWS}"""
check_cosine_context = Exercise(cosine_context, COSINES, COSINE_TABLE)
