"""Checks of notebook 01: scores, softmax, context vectors."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlib.checks._judge import Verdict, judge


def check_scores(answer: Callable) -> Verdict:
    """Judge ``answer(query, tokens)``: the dot product of a query (d_in,) with every token (tokens, d_in)."""
    draw = torch.Generator().manual_seed(11)
    cases = [
        # A square case comes first: a mixed-up axis runs through it, and can be named.
        tuple(torch.randn(*shape, generator=draw) for shape in ((4,), (4, 4))),
        tuple(torch.randn(*shape, generator=draw) for shape in ((5,), (7, 5))),
        tuple(torch.randn(*shape, generator=draw) for shape in ((3,), (2, 3))),
    ]
    return judge(
        answer,
        lambda query, tokens: tokens @ query,
        cases,
        mistakes={
            "This sums over the tokens. A score belongs to one token: multiply its coordinates with those of the "
            "query, and sum over the coordinates, as in tokens @ query.": lambda query, tokens: query @ tokens,
            "The products are summed over the tokens: sum over the coordinates, dim=-1, so that one number is left for "
            "each token.": lambda query, tokens: (tokens * query).sum(0),
            "Everything is summed into one number: each token has its own score.": lambda query, tokens: (
                tokens * query
            ).sum(),
            "This is a mean of the products: a dot product is their sum.": lambda query, tokens: (tokens * query).mean(
                -1
            ),
            "The products are there, but not yet summed: a score is one number for each token.": lambda query, tokens: (
                tokens * query
            ),
            "These scores are already weights: softmax comes later.": lambda query, tokens: (tokens @ query).softmax(0),
            "One step too far: this is the context vector. Here the scores are asked for.": lambda query, tokens: (
                (tokens @ query).softmax(0) @ tokens
            ),
            "The running sum is never set back to zero: each token starts anew.": lambda query, tokens: (
                tokens @ query
            ).cumsum(0),
            "These are cosines: the dot product is not divided by any length here.": lambda query, tokens: (
                F.cosine_similarity(tokens, query, dim=-1)
            ),
            "These scores are divided by √d_in: that comes in notebook 02. Here the plain dot product is asked "
            "for.": lambda query, tokens: tokens @ query / query.shape[0] ** 0.5,
            "These are distances: they grow where two tokens differ. A dot product grows where they "
            "agree.": lambda query, tokens: (tokens - query).norm(dim=-1),
            "This is the score of the query with itself, again and again: use each token in turn.": (
                lambda query, tokens: (query @ query).expand(len(tokens))
            ),
        },
        success="Right: one dot product for each token.",
    )


def check_softmax(answer: Callable) -> Verdict:
    """Judge ``answer(scores)``: a softmax over the last axis of scores (…, tokens) of any size."""
    draw = torch.Generator().manual_seed(12)
    small = torch.randn(4, 4, generator=draw)
    cases = [
        (small,),
        (torch.randn(3, 5, generator=draw),),
        (torch.randn(2, 3, 5, generator=draw),),
        (torch.randn(5, generator=draw),),
        (100 * torch.randn(3, 5, generator=draw) + 200,),
        (torch.tensor([[-1000.0, -1001.0, -1002.0], [1000.0, 1001.0, 1002.0]]),),
    ]
    return judge(
        answer,
        lambda scores: torch.softmax(scores, dim=-1),
        cases,
        mistakes={
            # These two are right until scores grow, so they come first: for large scores other mistakes give NaN too.
            "Right for small scores, but exp overflows for large ones: subtract each row's largest score "
            "first.": lambda scores: _shares(scores),
            "The largest score of the whole tensor is subtracted: a row of much smaller scores then becomes 0 / 0. "
            "Take the largest of each row: amax(-1, keepdim=True).": _softmax_less_global_maximum,
            "Right for small scores. The mean is subtracted here, so exp still overflows: subtract each row's largest "
            "score.": lambda scores: _shares(scores - scores.mean(-1, keepdim=True)),
            "Right for small scores. The smallest score is subtracted here, so exp still overflows: subtract each "
            "row's largest.": lambda scores: _shares(scores - scores.amin(-1, keepdim=True)),
            "The largest score of row j is subtracted from column j: add keepdim=True to amax.": lambda scores: _shares(
                scores - scores.amax(-1)
            ),
            "The largest of each column is subtracted: take that of each row, amax(-1, keepdim=True).": (
                lambda scores: _shares(scores - scores.amax(0))
            ),
            "The scores are divided by the largest one: subtract it.": lambda scores: _shares(
                scores / scores.amax(-1, keepdim=True)
            ),
            "nan_to_num hides the overflow, and the largest weights become 0: subtract each row's largest score "
            "first.": lambda scores: _shares(scores).nan_to_num(),
            "The largest score is subtracted above the line, but not below it: the sum must use the same "
            "exponentials.": lambda scores: _less_maximum(scores) / scores.exp().sum(-1, keepdim=True),
            "The largest score is subtracted below the line, but not above it: both must use the same "
            "exponentials.": lambda scores: scores.exp() / _less_maximum(scores).sum(-1, keepdim=True),
            "The sign is turned round: the largest score gets the smallest weight here.": lambda scores: torch.softmax(
                -scores, dim=-1
            ),
            "The sum runs over the columns: sum the exponentials over dim=-1, with keepdim=True.": lambda scores: (
                _less_maximum(scores) / _less_maximum(scores).sum(0)
            ),
            "Softmax is taken twice.": lambda scores: scores.softmax(-1).softmax(-1),
            "Not divided yet: these are exponentials, and they do not sum to one.": torch.exp,
            "Not divided yet: these are exponentials less the largest score, and they do not sum to one.": (
                lambda scores: (scores - scores.amax(-1, keepdim=True)).exp()
            ),
            "This divides the scores by their sum, without exp: negative scores give negative weights.": (
                lambda scores: scores / scores.sum(-1, keepdim=True)
            ),
            "This is the logarithm of the weights: take exp of it, or leave the log away.": (
                lambda scores: torch.log_softmax(scores, dim=-1)
            ),
            "One sum is taken over everything: each row must sum to one by itself. Sum over dim=-1, with "
            "keepdim=True.": lambda scores: scores.exp() / scores.exp().sum(),
            "The columns sum to one here, not the rows: the sum runs over the last axis, dim=-1.": (
                lambda scores: torch.softmax(scores, dim=0)
            ),
            "The sum runs over the axis before the last one: take dim=-1.": lambda scores: torch.softmax(scores, -2),
            "Each column is divided by the sum of a row: add keepdim=True to the sum.": lambda scores: (
                scores.exp() / scores.exp().sum(-1)
            ),
            "Each column is divided by the sum of a row: keepdim=True is missing from the sum.": lambda scores: (
                _less_maximum(scores) / _less_maximum(scores).sum(-1)
            ),
            "One sum is taken over everything: sum over dim=-1, with keepdim=True.": lambda scores: (
                _less_maximum(scores) / _less_maximum(scores).sum()
            ),
        },
        success="Right, for scores of any size: every row sums to one.",
    )


def check_context_vectors(answer: Callable) -> Verdict:
    """Judge ``answer(tokens)``: the context vectors of tokens (…, tokens, d_in), without trained weights or scale."""
    draw = torch.Generator().manual_seed(13)
    cases = [(torch.randn(*shape, generator=draw),) for shape in ((5, 3), (4, 4), (7, 2, 3), (2, 3, 7, 5))]
    verdict = judge(
        answer,
        lambda x: _scores(x).softmax(-1) @ x,
        cases,
        mistakes={
            "Softmax is missing: raw scores do not sum to one, so this is no average.": lambda x: _scores(x) @ x,
            "Right for one sentence, but with a batch this softmax runs over the queries: dim=-1 is the last axis "
            "always, dim=1 only of a matrix.": lambda x: _scores(x).softmax(1) @ x,
            "The columns of these weights sum to one, not the rows: softmax must run over the keys, dim=-1, and its "
            "result must not be transposed; or keepdim=True is missing from its sum.": lambda x: (
                _scores(x).softmax(-2) @ x
            ),
            "Softmax runs over the first axis: it must run over the keys, dim=-1.": lambda x: _scores(x).softmax(0) @ x,
            "The scores are divided by √d_in: that comes in notebook 02. Here the plain dot product is asked "
            "for.": lambda x: (_scores(x) / x.shape[-1] ** 0.5).softmax(-1) @ x,
            "The scores are divided by d_in: here the plain dot product is asked for.": lambda x: (
                (_scores(x) / x.shape[-1]).softmax(-1) @ x
            ),
            "The scores are cosines: here the plain dot product is asked for.": lambda x: (
                _scores(F.normalize(x, dim=-1)).softmax(-1) @ x
            ),
            "Exponentials, but not divided by their sum: this is no average yet.": lambda x: _scores(x).exp() @ x,
            "One sum is taken over everything: each row of weights must sum to one by itself.": lambda x: (
                _scores(x).flatten().softmax(0).view_as(_scores(x)) @ x
            ),
            "Softmax is taken twice.": lambda x: _scores(x).softmax(-1).softmax(-1) @ x,
            "The token itself is added to its average: leave it out.": lambda x: _scores(x).softmax(-1) @ x + x,
            "Right for one sentence. In a batch each sentence has its own weights; here all take those of the "
            "first.": lambda x: _scores(x if x.ndim == 2 else x[0]).softmax(-1) @ x,
            "These are the weights. One step is left: average the tokens with them.": lambda x: _scores(x).softmax(-1),
            "The tokens come back as they were: nothing is averaged.": lambda x: x,
        },
        success="Right, for one sentence and for a batch of them.",
    )
    if " raised " in verdict.message and judge(answer, lambda x: _scores(x).softmax(-1) @ x, cases[:2]):
        message = (
            "Right for one sentence. With a batch, .T turns all the axes round (use .mT instead), and a loop over "
        )
        return Verdict("failed", message + "the tokens runs over the sentences.")
    if " raised " in verdict.message and judge(answer, lambda x: _scores(x).softmax(-1) @ x, cases[2:3]):
        message = "Right for a batch, but one sentence has no axis 2: count the axes from the end, -1 and -2."
        return Verdict("failed", message)
    return verdict


def check_cosine_context(answer: Callable) -> Verdict:
    """Judge ``answer(tokens)``: context vectors whose scores are cosines; tokens (tokens, d_in)."""
    draw = torch.Generator().manual_seed(14)
    cases = [(torch.randn(*shape, generator=draw) + 0.5,) for shape in ((5, 5), (7, 3), (2, 11))]
    return judge(
        answer,
        lambda x: _scores(F.normalize(x, dim=-1)).softmax(-1) @ x,
        cases,
        mistakes={
            "The scores are plain dot products: divide each token by its length first.": lambda x: (
                _scores(x).softmax(-1) @ x
            ),
            "The scores are right, but the average is over shortened tokens: only the scores are cosines, the "
            "values stay as long as they are.": lambda x: (
                _scores(F.normalize(x, dim=-1)).softmax(-1) @ F.normalize(x, dim=-1)
            ),
            "Each coordinate is divided by its length over all tokens: a token's own length is x.norm(dim=-1, "
            "keepdim=True).": lambda x: _scores(F.normalize(x, dim=0)).softmax(-1) @ x,
            "Only one side of the dot product is divided by its length (that of the queries): a cosine divides by "
            "both.": lambda x: (F.normalize(x, dim=-1) @ x.mT).softmax(-1) @ x,
            "Only one side of the dot product is divided by its length (that of the keys): a cosine divides by "
            "both.": lambda x: (x @ F.normalize(x, dim=-1).mT).softmax(-1) @ x,
            "Divided by the square of each length: take the root, x.norm(dim=-1, keepdim=True).": lambda x: (
                _scores(x / x.square().sum(-1, keepdim=True)).softmax(-1) @ x
            ),
            "Divided by the sum of each token's absolute numbers: its length is the root of the sum of "
            "squares.": lambda x: _scores(F.normalize(x, p=1, dim=-1)).softmax(-1) @ x,
            "The cosines are right, but softmax is missing: they do not sum to one.": lambda x: (
                _scores(F.normalize(x, dim=-1)) @ x
            ),
            "The cosines are divided by √d_in as well: leave that out.": lambda x: (
                (_scores(F.normalize(x, dim=-1)) / x.shape[-1] ** 0.5).softmax(-1) @ x
            ),
            "Softmax runs over the queries: it must run over the keys, dim=-1.": lambda x: (
                _scores(F.normalize(x, dim=-1)).softmax(0) @ x
            ),
            "These are the weights. One step is left: average the tokens with them.": lambda x: _scores(
                F.normalize(x, dim=-1)
            ).softmax(-1),
            "Here the weights are divided by lengths: it is the scores that must be, before softmax.": lambda x: (
                _scores(x).softmax(-1) / x.norm(dim=-1, keepdim=True) @ x
            ),
            "All tokens share one length here (that of the whole matrix): divide each token by its own, "
            "x.norm(dim=-1, keepdim=True).": lambda x: _scores(x / x.norm()).softmax(-1) @ x,
            "Column j of the tokens is divided by the length of token j: add keepdim=True to the norm.": lambda x: (
                _scores(x / x.norm(dim=-1)).softmax(-1) @ x
            ),
        },
        success="Right: a token's length no longer draws attention.",
    )


def _scores(x: Tensor) -> Tensor:
    return x @ x.mT  # (…, tokens, tokens)


def _shares(scores: Tensor) -> Tensor:
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def _less_maximum(scores: Tensor) -> Tensor:
    return (scores - scores.amax(-1, keepdim=True)).exp()


def _softmax_less_global_maximum(scores: Tensor) -> Tensor:
    return _shares(scores - scores.max())
