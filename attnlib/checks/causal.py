"""Exercises of notebook 03: hiding the future, reading a mask, dropping weights, catching a leak."""

from collections.abc import Callable

import torch
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw
from attnlib.self_attention import context_vectors


def causal_weights(scores: Tensor) -> Tensor:
    future = torch.ones_like(scores, dtype=torch.bool).triu(diagonal=1)  # (..., tokens, tokens)
    return torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1)


def look_mask(lengths: Tensor, tokens: int) -> Tensor:
    real = torch.arange(tokens) < lengths[:, None]  # (batch, tokens)
    not_later = torch.ones(tokens, tokens, dtype=torch.bool).tril()  # (tokens, tokens)
    return real[:, None, :] & not_later  # (batch, tokens, tokens)


def dropout(weights: Tensor, keep: Tensor, p: float) -> Tensor:
    return weights * keep / (1 - p)


def leak(layer: Callable, x: Tensor, position: int) -> Tensor:
    changed = x.clone()
    changed[position:] += 1.0
    difference = layer(changed) - layer(x)  # (tokens, d_out)
    return difference[:position].abs().max()


def later(scores: Tensor, diagonal: int = 1) -> Tensor:
    """True where the key comes after the query."""
    return torch.ones_like(scores, dtype=torch.bool).triu(diagonal)


def hidden(scores: Tensor, hide: Tensor, dim: int = -1, fill: float = -torch.inf) -> Tensor:
    return scores.masked_fill(hide, fill).softmax(dim)


def seen(scores: Tensor) -> Tensor:
    """The mistake that hides after the softmax: rows no longer sum to one."""
    return scores.softmax(-1).tril()


def real(lengths: Tensor, tokens: int) -> Tensor:
    return torch.arange(tokens) < lengths[:, None]


def square(tokens: int, diagonal: int = 0) -> Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool).tril(diagonal)


def grown(layer: Callable, x: Tensor, start: int, stop: int | None = None) -> Tensor:
    """The outputs when the tokens from start to stop grow by 1."""
    changed = x.clone()
    changed[start:stop] += 1.0
    return layer(changed)


def moved(layer: Callable, x: Tensor, start: int, stop: int | None = None) -> Tensor:
    return grown(layer, x, start, stop) - layer(x)


def _score_cases() -> list[tuple[Tensor]]:
    cases = [(x,) for x in draw(3, (5, 5), (2, 7, 7), (2, 3, 4, 4), (1, 1), scale=3.0)]
    far_apart = draw(4, (6, 6))[0] + torch.tensor([-30000.0, -100.0, 100.0, -1000.0, 1000.0, 0.0])[:, None]
    rising = draw(5, (5, 5))[0] + torch.tensor([-900.0, -400.0, 0.0, 400.0, 900.0])  # what is visible underflows
    zeros = draw(6, (2, 5, 5))[0].round().clamp(-1, 1)  # real scores that are exactly 0
    return [*cases, (far_apart,), (rising,), (zeros,), (draw(7, (4, 4))[0].double() - 80,)]


check_causal_weights = Exercise(
    "Check ``answer(scores)``: scaled scores (…, tokens, tokens) to causal weights of the same shape.",
    causal_weights,
    _score_cases(),
    """
    scores.softmax(-1)  # The future is not hidden: these are the weights of full attention.
    hidden(scores, later(scores).mT)  # The mask is the wrong way around: it hides the past.
    hidden(scores, ~later(scores))  # The mask is the wrong way around, and the last query sees nothing (NaN):
        # masked_fill hides where its mask is True, so give it triu(diagonal=1).
    scores.masked_fill(later(scores), -torch.inf)  # These are still scores: take the softmax of each row, dim=-1.
    scores  # These are the scores you were given: hide the later keys, then take the softmax of each row.
    hidden(scores, later(scores, 0))  # The diagonal is hidden as well, but a token may see itself: use
        # triu(diagonal=1).
    hidden(scores, later(scores, 2))  # One later token can still be seen: use triu(diagonal=1), not 2.
    hidden(scores, later(scores), fill=-30.0)  # The hidden scores get a finite number, and real scores may lie below
        # it: set them to −inf.
    hidden(scores, later(scores), fill=-100.0)
    hidden(scores, later(scores), fill=-1000.0)
    hidden(scores, later(scores), fill=-1e4)
    (scores - 100.0 * later(scores)).softmax(-1)
    scores.tril().softmax(-1)  # The hidden scores are set to 0, and exp(0) is 1: set them to −inf.
    hidden(scores, scores.tril() == 0)  # The zeros of tril are taken for the mask, but a real score may be 0 too: build
        # the mask from positions alone.
    seen(scores)  # A row does not sum to one: after hiding weights, divide each row by its sum.
    seen(scores) / seen(scores).sum(-1, keepdim=True)  # Where the visible scores lie far below the hidden ones, their
        # weights round to 0 and the row is 0 / 0: hide the scores before the softmax.
    seen(scores) / seen(scores).sum(-1)  # Each row is divided by the sum of another: keep the axis with sum(dim=-1,
        # keepdim=True).
    hidden(scores, later(scores), dim=-2)  # The softmax runs over the queries: use dim=-1, so that each row sums to
        # one.
    hidden(scores, later(scores), dim=1)  # The softmax runs over axis 1, which is the keys only without a batch: use
        # dim=-1.
    hidden(scores / scores.shape[-1] ** 0.5, later(scores))  # The scores are scaled a second time: they are scaled
        # already, so leave out the root.
    scores.softmax(-1).masked_fill(later(scores), -torch.inf)  # The weights contain −∞: write it into the scores,
        # before the softmax.
    seen(scores).softmax(-1)  # There is one softmax too many: after hiding weights, divide each row by its sum; after
        # hiding scores, do nothing more.
    causal_weights(scores).softmax(-1)
    scores.exp().tril()  # These are still exponentials: divide each row by its sum.
    (scores - scores.amax(-1, keepdim=True)).exp().tril()
    scores.exp().tril() / scores.exp().tril().sum(-1, keepdim=True)  # The exponentials overflow: subtract each row's
        # largest visible score first, or use torch.softmax.
    causal_weights(scores).log()  # These are logarithms of the weights: take softmax, not log_softmax.
    hidden(scores.flatten(-2), later(scores).flatten(-2)).view(scores.shape)  # The softmax runs over all scores of a
        # sentence at once: use dim=-1, so that each row sums to one.
    seen(scores) / seen(scores).sum((-2, -1), keepdim=True)  # All weights are divided by one sum, but each row has its
        # own: sum(dim=-1, keepdim=True).
    seen(scores) / seen(scores).sum(-2, keepdim=True)  # The columns sum to one: divide each row by its sum, dim=-1.
    later(scores)  # This is the mask: fill the scores where it is True, then take the softmax.
    ~later(scores)
    hidden(torch.zeros_like(scores), later(scores))  # The scores play no part, so all weights of a row are equal: put
        # −∞ into the scores.
    """,
    "Right: nothing later is seen, and every row sums to one, with a batch and without.",
)


check_look_mask = Exercise(
    "Check ``answer(lengths, tokens)``: a boolean mask (batch, tokens, tokens), causal and without padding.",
    look_mask,
    [(torch.tensor([5, 3, 1, 2]), 5), (torch.tensor([4, 7]), 7), (torch.tensor([1]), 1), (torch.tensor([2, 4]), 6)],
    """
    ~look_mask(lengths, tokens)  # True and False are swapped: F.scaled_dot_product_attention takes True as look.
    square(tokens).expand(len(lengths), tokens, tokens)  # Padding can still be seen: a key counts only if its position
        # is below the length.
    real(lengths, tokens)[:, None].expand(len(lengths), tokens, tokens)  # The future can still be seen: combine with
        # the causal mask.
    real(lengths, tokens)[:, None] | square(tokens)  # A key must be real AND not later: combine the two masks with &,
        # not with |.
    real(lengths, tokens)[:, :, None] & square(tokens)  # The padded queries see nothing here, but only keys are hidden:
        # the lengths belong to the axis of the keys, real[:, None, :].
    real(lengths, tokens)[:, :, None] & look_mask(lengths, tokens)
    look_mask((lengths + 1).clamp(max=tokens), tokens)  # One padding token can still be seen: position < length, not
        # <=.
    look_mask(lengths, tokens).tril(-1)  # A token may see itself: the diagonal of the causal part is True.
    real(lengths, tokens)[:, None] & square(tokens).mT  # The past is hidden instead of the future.
    real(lengths, tokens)[:, None] & ~square(tokens)  # The causal part is the wrong way around: triu(1) marks the
        # future, and True means look. Use tril().
    torch.zeros(len(lengths), tokens, tokens).masked_fill(~look_mask(lengths, tokens), -torch.inf)  # This is a mask of
        # numbers, 0 and −∞. Return a boolean one, True = look.
    look_mask(lengths - 1, tokens)  # The last real token is hidden: positions count from 0, so position < length.
    real(lengths, tokens)[:, None] & square(tokens, 1)  # One later token can still be seen: tril(), not tril(1).
    ~(real(lengths, tokens)[:, None] | square(tokens))  # True means hide here, and only what both masks hide is hidden:
        # a key is seen if it is real & not later.
    ~real(lengths, tokens)[:, None] & square(tokens)  # Padding is seen and the real keys are not: position < length
        # marks the real ones.
    real(lengths, tokens).flip(-1)[:, None] & square(tokens)  # The padding is on the right: the real keys are the first
        # ones of each sentence.
    look_mask(lengths, tokens).mT  # Rows and columns are swapped: a row is a query, a column a key.
    real(lengths, tokens)[:, None] & real(lengths, tokens)[:, :, None]  # The future can still be seen, and the lengths
        # belong to the axis of the keys only.
    look_mask(lengths, tokens) | torch.eye(tokens, dtype=torch.bool)  # Padding sees itself on the diagonal: a key that
        # is not real is hidden from every query.
    real(lengths, tokens)  # This is the mask of the real tokens: give it an axis for the queries, real[:, None, :], and
        # combine it with the causal one.
    square(tokens)  # This is the causal mask alone: combine it with the real keys of each sentence.
    real(lengths, tokens)[:, None]  # The axis of the queries has size one: combine with the causal mask (tokens,
        # tokens).
    look_mask(lengths, int(lengths.max()))  # The mask is only as wide as the longest sentence: it must have `tokens`
        # rows and columns, even if nobody fills them.
    look_mask(lengths[:1], tokens).expand(len(lengths), tokens, tokens)  # Only the first length is used: each sentence
        # has its own.
    """,
    "Right: True exactly where a real key is not later.",
)


def _dropout_cases() -> list[tuple[Tensor, Tensor, float]]:
    cases = []
    for seed, (shape, p) in enumerate((((3, 5), 0.2), ((2, 4, 7), 0.75), ((2, 3), 0.0), ((1, 1), 0.5))):
        numbers = draw(seed, shape, shape)
        cases.append((numbers[0].softmax(-1), numbers[1].sigmoid() >= p, p))
    return cases


check_dropout = Exercise(
    "Check ``answer(weights, keep, p)``: what dropout in training makes of the weights (…, q_tokens, kv_tokens).",
    dropout,
    _dropout_cases(),
    """
    weights * keep  # The weights that stay must grow: divide by 1 − p.
    weights * keep * (1 - p)  # The factor is upside down: divide by 1 − p instead of multiplying by it.
    weights * keep / torch.tensor(p)  # p is the share that goes, 1 − p the share that stays: divide by 1 − p, not by p.
    weights * ~keep / (1 - p)  # True in keep means that the weight stays; here it goes.
    weights * keep / (weights * keep).sum(-1, keepdim=True)  # Dropout does not renormalise: a row may sum to more or
        # less than one; only the average over many draws is one.
    (weights * keep / (weights * keep).sum(-1, keepdim=True)).nan_to_num()
    weights / (1 - p)  # Nothing is dropped: multiply by keep.
    weights  # This is evaluation, where dropout does nothing; write what training does.
    weights * keep / keep.float().mean()  # Divide by 1 − p, not by the share that happens to stay in this draw.
    (weights * keep / keep.float().mean()).nan_to_num()
    weights * keep * keep.numel() / keep.sum()
    weights * keep / 1 - p  # Python divides first, so this is weights / 1 − p: put 1 − p in parentheses.
    weights * keep * p  # p is the share that goes: divide by 1 − p instead of multiplying by p.
    weights * keep / (1 - p) ** 2  # The factor 1/(1 − p) is applied twice.
    keep / (1 - p)  # The weights play no part: multiply them by keep.
    torch.where(keep, weights / (1 - p), weights)  # What is dropped becomes 0; here it keeps its old value.
    (weights / (1 - p)).masked_fill(~keep, -torch.inf)  # These are weights, after the softmax: what is dropped becomes
        # 0, not −∞.
    weights.masked_fill(~keep, -torch.inf).softmax(-1)  # There is no softmax after dropout: what is dropped becomes 0,
        # the rest grows.
    weights[keep] / (1 - p)  # Only what stays is returned: keep the shape, with zeros for what goes.
    weights * keep * (1 + p)  # The factor is 1 + p: the weights that stay are divided by 1 − p.
    """,
    "Right: dropped weights are zero, the others grow by 1/(1 − p), and the mean stays.",
    chance="Two calls give different numbers: keep already says what stays, so draw nothing here.",
)


LAYERS = [
    lambda x: -context_vectors(x) * torch.arange(1, len(x) + 1)[:, None],  # every token sees every token
    lambda x: torch.cumsum(x, dim=-2),  # causal
    lambda x: 9 + x - 0.5 * x.roll(-1, dims=-2),  # sees one step ahead; positive outputs fall
    lambda x: x + x[-1:] * torch.arange(1, len(x) + 1)[:, None] * torch.tensor([2, -0.7, 0.3]),  # sees the last token
    lambda x: torch.cat([x, x.flip(0)], -1)[:, ::2],  # d_out is 3, but not the 3 of d_in
]
SIZES = ((5, 2), (7, 4), (4, 3), (6, 4), (7, 5))  # tokens, position

check_leak = Exercise(
    "Check ``answer(layer, x, position)``: the largest absolute change of the outputs before ``position`` when the "
    "tokens of x (tokens, d_in) from ``position`` on grow by 1.",
    leak,
    [(layer, *draw(7, (tokens, 3)), position) for layer, (tokens, position) in zip(LAYERS, SIZES)],
    """
    moved(layer, x, position)[:position].max()  # A fall counts as much as a rise: take abs() of the difference before
        # max().
    -moved(layer, x, position)[:position].min()  # A rise counts as much as a fall: take abs() of the difference before
        # max().
    moved(layer, x, position).abs().max()  # The tokens that you changed are compared too: look only at the outputs
        # before position.
    moved(layer, x, position, position + 1)[:position].abs().max()  # Only the token at position was changed, but a leak
        # may come from any later one.
    moved(layer, x, position + 1)[:position].abs().max()  # The change starts one token too late: position itself
        # changes too.
    moved(layer, x, position)[: position + 1].abs().max()  # The output at position is compared too, and it may move:
        # stop before it.
    moved(layer, x, 0, position)[:position].abs().max()  # The past was changed: change the tokens from position on.
    moved(layer, x, position)[:position].abs().mean()  # The mean hides a leak that shows in one place: take the largest
        # change.
    0.0  # This gives the same for a layer that leaks and one that does not.
    1.0
    moved(layer, x, position)[:position].max().abs()  # Take abs() before max(): the largest of the signed differences
        # may be a small one.
    (grown(layer, x, position).abs() - layer(x).abs())[:position].max()  # abs() belongs around the difference, not
        # around each output: subtract first.
    (grown(layer, x, position).abs() - layer(x).abs())[:position].abs().max()
    (grown(layer, x, position)[:position].max() - layer(x)[:position].max()).abs()  # This is the difference of two
        # maxima: subtract first, then take abs() and max().
    moved(layer, x, position - 1)[:position].abs().max()  # The change starts one token too early: the token before
        # position stays.
    moved(layer, x, 0)[:position].abs().max()  # All tokens were changed: those before position stay.
    moved(layer, x, -1)[:position].abs().max()  # Only the last token was changed: change all from position on.
    moved(layer, x, position)[0].abs().max()  # Only the first token is checked: take all before position.
    moved(layer, x, position)[position - 1].abs().max()  # Only the token right before position is checked: take all
        # before it.
    moved(layer, x, position)[: position - 1].abs().max()  # The token right before position is left out: the slice is
        # [:position].
    moved(layer, x, position)[:position].abs().sum()  # The changes are added up: take the largest.
    moved(layer, x, position)[:position].abs().min()  # This is the smallest change: take the largest.
    moved(layer, x, position)[:position].square().max()  # The change is squared: take abs().
    moved(layer, x, position)[:position].norm()  # This is the length of the change: take the largest entry of abs().
    moved(layer, x, position)[:position].norm(dim=-1).max()
    float(moved(layer, x, position)[:position].abs().max() > 1e-6)  # Return how far, not whether: the largest change
        # itself.
    (layer(x[:position]) - layer(x)[:position]).abs().max()  # The first call gets fewer tokens: give both calls all of
        # them, and slice the outputs.
    (layer(torch.cat([x[:position], torch.ones_like(x[position:])])) - layer(x))[:position].abs().max()  # Add 1 to the
        # tokens; do not set them to 1.
    (layer(torch.cat([x[:position], x[position:] - 1])) - layer(x))[:position].abs().max()  # Subtracting 1 is another
        # change: add 1.
    moved(lambda y: layer(y.T), x.T, position)[:position].abs().max()  # The columns were changed: tokens are the rows,
        # x[position:].
    moved(layer, x, position)[:position].abs().amax(-1)  # This is one number for each token: take the largest of all.
    """,
    "Right: it finds each leak, and clears the causal layer.",
)
