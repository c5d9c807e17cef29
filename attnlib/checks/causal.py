"""Exercises of notebook 03: hiding the future, reading a mask, dropping weights, catching a leak."""

from collections.abc import Callable

import torch
from torch import Tensor

from attnlib.checks.context_vectors import share  # noqa: F401 (the tables use it)
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


def filled(scores: Tensor, fill: float) -> Tensor:
    return hidden(scores, later(scores), fill=fill)


def seen(scores: Tensor) -> Tensor:
    """The mistake that hides after the softmax: rows no longer sum to one."""
    return scores.softmax(-1).tril()


def real(lengths: Tensor, tokens: int) -> Tensor:
    return (torch.arange(tokens) < lengths[:, None])[:, None]  # (batch, 1, tokens)


def square(tokens: int, diagonal: int = 0) -> Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool).tril(diagonal)


def moved(layer: Callable, x: Tensor, start: int, stop: int | None = None) -> Tensor:
    """How far the outputs move when the tokens from start to stop grow by 1."""
    changed = x.clone()
    changed[start:stop] += 1.0
    return layer(changed) - layer(x)


def _score_cases() -> list[tuple[Tensor]]:
    cases = [(x,) for x in draw(3, (5, 5), (2, 7, 7), (2, 3, 4, 4), (1, 1), scale=3.0)]
    far_apart = draw(4, (6, 6))[0] + torch.tensor([-1e12, -100.0, 100.0, -1000.0, 1000.0, 0.0])[:, None]
    rising = draw(5, (5, 5))[0] + torch.tensor([-900.0, -400.0, 0.0, 400.0, 900.0])  # what is visible underflows
    zeros = draw(6, (2, 5, 5))[0].round().clamp(-1, 1)  # real scores that are exactly 0
    return [*cases, (far_apart,), (rising,), (zeros,), (draw(7, (4, 4), double=True)[0] - 80,)]


check_causal_weights = Exercise(
    "Check ``answer(scores)``: scaled scores (…, tokens, tokens) to causal weights of the same shape.",
    causal_weights,
    _score_cases(),
    """
    scores.softmax(-1)  # The future is not hidden: these are the weights of full attention.
    hidden(scores, later(scores).mT)  # The mask is the wrong way around: it hides the past.
    hidden(scores, ~later(scores))  # masked_fill hides where its mask is True: give it triu(diagonal=1).
    hidden(scores, later(scores, 0))  # The diagonal is hidden too, but a token may see itself: use triu(diagonal=1).
    hidden(scores, later(scores, 2))  # One later token can still be seen: use triu(diagonal=1), not 2.
    filled(scores, -30.0); filled(scores, -100.0); filled(scores, -1e9)  # Scores may lie below a finite number: use −∞.
    scores.tril().softmax(-1)  # The hidden scores are set to 0, and exp(0) is 1: set them to −inf.
    hidden(scores, scores.tril() == 0)  # A real score may be 0 too: build the mask from positions alone.
    seen(scores)  # A row does not sum to one: after hiding weights, divide each row by its sum.
    share(seen(scores)); share(seen(scores)).nan_to_num()  # The weights left can all round to 0: hide scores instead.
    seen(scores) / seen(scores).sum(-1)  # Columns are divided, not rows: use sum(dim=-1, keepdim=True).
    hidden(scores, later(scores), dim=-2)  # The softmax runs over the queries: use dim=-1, so that rows sum to one.
    hidden(scores, later(scores), dim=1)  # Axis 1 is the keys only without a batch: use dim=-1.
    scores.softmax(-1).masked_fill(later(scores), -torch.inf)  # The weights contain −∞: write it into the scores.
    scores.masked_fill(later(scores), -torch.inf)  # These are still scores: softmax turns them into weights.
    seen(scores).softmax(-1); causal_weights(scores).softmax(-1)  # There is one softmax too many.
    share(scores.exp().tril())  # The exponentials overflow: subtract each row's largest visible score, or use softmax.
    """,
    "Right: nothing later is seen, and every row sums to one, with a batch and without.",
)

check_look_mask = Exercise(
    "Check ``answer(lengths, tokens)``: a boolean mask (batch, tokens, tokens), causal and without padding.",
    look_mask,
    [(torch.tensor([5, 3, 1, 2]), 5), (torch.tensor([4, 7]), 7), (torch.tensor([1]), 1), (torch.tensor([2, 4]), 6)],
    """
    ~look_mask(lengths, tokens)  # True and False are swapped: F.scaled_dot_product_attention takes True as look.
    square(tokens).expand(len(lengths), -1, -1)  # Padding can still be seen: a key's position must be below the length.
    real(lengths, tokens).expand(-1, tokens, -1)  # The future can still be seen: combine with the causal mask.
    real(lengths, tokens) | square(tokens)  # A key must be real AND not later: combine the masks with &, not with |.
    real(lengths, tokens).mT & look_mask(lengths, tokens)  # Padded queries see nothing here, but only keys are hidden.
    look_mask((lengths + 1).clamp(max=tokens), tokens)  # One padding token can still be seen: position < length.
    look_mask(lengths, tokens).tril(-1)  # A token may see itself: the diagonal of the causal part is True.
    real(lengths, tokens) & square(tokens).mT  # The past is hidden instead of the future.
    torch.where(look_mask(lengths, tokens), 0.0, -torch.inf)  # These are numbers, 0 and −∞: return a boolean mask.
    look_mask(lengths - 1, tokens)  # The last real token is hidden: positions count from 0, so position < length.
    real(lengths, tokens) & square(tokens, 1)  # One later token can still be seen: tril(), not tril(1).
    real(lengths, tokens)  # The axis of the queries has size one: combine with the causal mask (tokens, tokens).
    look_mask(lengths, int(lengths.max()))  # The mask needs `tokens` rows and columns, even if no sentence fills them.
    real(lengths, tokens).flip(-1) & square(tokens)  # Here the padding is on the right: the real tokens come first.
    ~real(lengths, tokens) & square(tokens)  # Real and padding are swapped: a key is real if position < length.
    look_mask(lengths, tokens) | torch.eye(tokens).bool()  # Padding sees itself here, but no query sees padding.
    """,
    "Right: True exactly where a real key is not later.",
)


def _dropout_case(seed: int, p: float, *shape: int) -> tuple[Tensor, Tensor, float]:
    scores, chance = draw(seed, shape, shape)
    return scores.softmax(-1), chance.sigmoid() >= p, p


check_dropout = Exercise(
    "Check ``answer(weights, keep, p)``: what dropout in training makes of the weights (…, q_tokens, kv_tokens).",
    dropout,
    [
        _dropout_case(0, 0.2, 3, 5),
        _dropout_case(1, 0.75, 2, 4, 7),
        _dropout_case(2, 0.0, 2, 3),
        _dropout_case(3, 0.5, 1, 1),
    ],
    """
    weights * keep  # The weights that stay must grow: divide by 1 − p.
    weights * keep * (1 - p)  # The factor is upside down: divide by 1 − p instead of multiplying by it.
    weights * keep / torch.tensor(p)  # p is the share that goes, 1 − p the share that stays: divide by 1 − p, not by p.
    weights * ~keep / (1 - p)  # True in keep means that the weight stays; here it goes.
    share(weights * keep); share(weights * keep).nan_to_num()  # Dropout does not renormalise a row: divide by 1 − p.
    weights / (1 - p)  # Nothing is dropped: multiply by keep.
    weights  # This is evaluation, where dropout does nothing; write what training does.
    weights * keep / keep.float().mean()  # Divide by 1 − p, not by the share that happens to stay in this draw.
    weights * keep / 1 - p  # Python divides first, so this is weights / 1 − p: put 1 − p in parentheses.
    torch.where(keep, weights / (1 - p), weights)  # What is dropped becomes 0; here it keeps its old value.
    (weights / (1 - p)).masked_fill(~keep, -torch.inf)  # What is dropped becomes 0, not −∞: these are weights.
    weights[keep] / (1 - p)  # Only what stays is returned: keep the shape, with zeros for what goes.
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
    moved(layer, x, position)[:position].max()  # A fall counts as much as a rise: take abs() before max().
    moved(layer, x, position)[:position].max().abs()  # abs() comes too late: take abs() before max().
    moved(layer, x, position).abs().max()  # Tokens that you changed are compared: take only those before position.
    moved(layer, x, position, position + 1)[:position].abs().max()  # A leak may come from any later token: change all.
    moved(layer, x, position + 1)[:position].abs().max()  # The change starts one token too late: change position too.
    moved(layer, x, position)[: position + 1].abs().max()  # The output at position may move: stop before it.
    moved(layer, x, 0, position)[:position].abs().max()  # The past was changed: change the tokens from position on.
    moved(layer, x, position)[: position - 1].abs().max()  # The output just before position is missing: [:position].
    moved(layer, x, position - 1)[:position].abs().max()  # The change starts one token too early: leave that one.
    moved(layer, x, 4)[:4].abs().max()  # The place is fixed at token 4: use position.
    moved(layer, x, position)[:position].abs().max() > 1e-6  # This says whether there is a leak: return how large.
    moved(layer, x, position)[:position].abs().min()  # This is the smallest change: take the largest.
    moved(layer, x, position)[:position].abs().mean()  # The changes are averaged: take the largest.
    0.0; 1.0  # This gives the same for a layer that leaks and one that does not.
    moved(layer, x, -1)[:position].abs().max()  # Only the last token was changed: change all from position on.
    moved(layer, x, position)[position - 1].abs().max()  # Only one token is checked: take all before position.
    moved(layer, x, position)[:position].abs().sum()  # The changes are added up: take the largest.
    (layer(x[:position]) - layer(x)[:position]).abs().max()  # The first call gets fewer tokens: change x, then slice.
    moved(layer, x, position)[:position].abs().amax(-1)  # This is one number for each token: take the largest of all.
    """,
    "Right: it finds each leak, and clears the causal layer.",
)
