"""Exercises of notebook 03: hiding the future, reading a mask, dropping weights, catching a leak."""

from collections.abc import Callable

import torch
from torch import Tensor

from attnlib.checks.exercise import Exercise, draw
from attnlib.self_attention import context_vectors


def causal_weights(scores: Tensor) -> Tensor:
    """Scaled scores (…, tokens, tokens) to causal weights of the same shape."""
    future = torch.ones_like(scores, dtype=torch.bool).triu(diagonal=1)  # (..., tokens, tokens)
    return torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1)


def look_mask(lengths: Tensor, tokens: int) -> Tensor:
    """A boolean mask (batch, tokens, tokens), causal and without padding."""
    real = torch.arange(tokens) < lengths[:, None]  # (batch, tokens)
    not_later = torch.ones(tokens, tokens, dtype=torch.bool).tril()  # (tokens, tokens)
    return real[:, None, :] & not_later  # (batch, tokens, tokens)


def dropout(weights: Tensor, keep: Tensor, p: float) -> Tensor:
    """What dropout in training makes of the weights (…, q_tokens, kv_tokens)."""
    return weights * keep / (1 - p)


def leak(layer: Callable, x: Tensor, position: int) -> Tensor:
    """The largest change of the outputs before ``position`` when the tokens (tokens, d_in) from there on grow by 1."""
    changed = x.clone()
    changed[position:] += 1.0
    difference = layer(changed) - layer(x)  # (tokens, d_out)
    return difference[:position].abs().max()


def later(scores: Tensor, diagonal: int = 1) -> Tensor:
    """True where the key comes after the query."""
    return torch.ones_like(scores, dtype=torch.bool).triu(diagonal)


def hidden(scores: Tensor, hide: Tensor | None = None, dim: int = -1, fill: float = -torch.inf) -> Tensor:
    """The weights after some scores were filled, by default those of later keys."""
    hide = later(scores) if hide is None else hide
    return scores.masked_fill(hide, fill).softmax(dim)


# Mistakes with the mask. A table says what its scores are, `s`, and what `average` makes of weights.
CAUSAL_ROWS = """
average(s.softmax(-1))  # The future is not hidden: these are the weights of full attention.
average(hidden(s, later(s).mT))  # The mask is the wrong way around: it hides the past.
average(hidden(s, ~later(s)))  # What may be seen is hidden: masked_fill hides where True, so give it triu(diagonal=1).
average(hidden(s, later(s, 0))); average(hidden(s, later(s, 2)))  # The mask is off by one: use triu(diagonal=1).
filled = lambda number: average(hidden(s, fill=number)); cut = s.softmax(-1).tril()
filled(-30.0); filled(-100.0); filled(-1e9)  # Scores may lie below a finite number: use −∞.
average(s.tril().softmax(-1))  # The hidden scores are set to 0, and exp(0) is 1: set them to −inf.
average(hidden(s, s.tril() == 0))  # A real score may be 0 too: build the mask from positions alone.
average(cut)  # A row does not sum to one: hide scores before the softmax, not weights after it.
average(share(cut)); average(share(cut).nan_to_num())  # The weights left can all round to 0: hide scores instead.
average(hidden(s, dim=-2))  # The softmax runs over the queries: use dim=-1, so that rows sum to one.
average(share(s.exp().tril()))  # The exponentials overflow: hide scores, and use softmax.
"""

SCORES = [*draw(3, (5, 5), (2, 7, 7), (2, 3, 4, 4), (1, 1), scale=3.0)]
SCORES += [draw(5, (5, 5))[0] + torch.tensor([-900.0, -400.0, 0.0, 400.0, 900.0])]  # what is visible underflows
SCORES += [draw(4, (6, 6))[0] + torch.tensor([-1e12, -100.0, 100.0, -1000.0, 1000.0, 0.0])[:, None]]
SCORES += [draw(6, (2, 5, 5))[0].round().clamp(-1, 1), draw(7, (4, 4), double=True)[0] - 80]  # real scores of exactly 0
CAUSAL_TABLE = f"""
Right: nothing later is seen, and every row sums to one, with a batch and without.
s = scores; average = lambda weights: weights
hidden(scores, dim=1)  # Axis 1 is the keys only without a batch: use dim=-1.
scores.softmax(-1).masked_fill(later(s), -torch.inf)  # The weights contain −∞: write it into the scores.
scores.masked_fill(later(s), -torch.inf)  # These are still scores: softmax turns them into weights.
scores.softmax(-1).tril().softmax(-1); causal_weights(scores).softmax(-1)  # There is one softmax too many.
{CAUSAL_ROWS}"""
check_causal_weights = Exercise(causal_weights, [(scores,) for scores in SCORES], CAUSAL_TABLE)

LENGTHS = [([5, 3, 1, 2], 5), ([4, 7], 7), ([1], 1), ([2, 4], 6)]
LOOK_TABLE = """
Right: True exactly where a real key is not later.
real = (torch.arange(tokens) < lengths[:, None])[:, None]; square = torch.ones(tokens, tokens).bool()
past = square.tril(); right = real & past
~right  # True and False are swapped: F.scaled_dot_product_attention takes True as look.
past.expand(len(lengths), -1, -1)  # Padding can still be seen: a key's position must be below the length.
real.expand(-1, tokens, -1)  # The future can still be seen: combine with the causal mask.
real | past  # A key must be real AND not later: combine the masks with &, not with |.
real.mT & right  # Padded queries see nothing here, but only keys are hidden.
look_mask((lengths + 1).clamp(max=tokens), tokens)  # One padding token can still be seen: position < length.
real & square.triu()  # The past is hidden instead of the future.
torch.where(right, 0.0, -torch.inf)  # These are numbers, 0 and −∞: return a boolean mask.
right.tril(-1); real & square.tril(1)  # A token may see itself, but none after it: tril().
real  # The axis of the queries has size one: combine with the causal mask (tokens, tokens).
look_mask(lengths, int(lengths.max()))  # The mask needs `tokens` rows and columns, even if no sentence fills them.
real.flip(-1) & past  # The last tokens are taken as real: the first ones are, position < length.
~real & past  # Real and padding are swapped: a key is real if position < length.
"""
check_look_mask = Exercise(look_mask, [(torch.tensor(lengths), tokens) for lengths, tokens in LENGTHS], LOOK_TABLE)

DRAWN = [draw(seed, shape, shape) for seed, shape in enumerate(((3, 5), (2, 4, 7), (2, 3), (1, 1)))]
DROPPED = [(a.softmax(-1), b.sigmoid() >= p, p) for (a, b), p in zip(DRAWN, (0.2, 0.75, 0.0, 0.5))]
DROPOUT_TABLE = """
Right: dropped weights are zero, the others grow by 1/(1 − p), and the mean stays.
weights * keep  # The weights that stay must grow: divide by 1 − p.
weights * keep * (1 - p)  # The factor is upside down: divide by 1 − p instead of multiplying by it.
weights * keep / torch.tensor(p)  # p is the share that goes, 1 − p the share that stays: divide by 1 − p, not by p.
weights * ~keep / (1 - p)  # True in keep means that the weight stays; here it goes.
share(weights * keep); share(weights * keep).nan_to_num()  # Dropout does not renormalise a row: divide by 1 − p.
weights / (1 - p)  # Nothing is dropped: multiply by keep.
weights  # This is evaluation, where dropout does nothing; write what training does.
weights * keep / 1 - p  # Python divides first, so this is weights / 1 − p: put 1 − p in parentheses.
torch.where(keep, weights / (1 - p), weights)  # What is dropped becomes 0; here it keeps its old value.
(weights / (1 - p)).masked_fill(~keep, -torch.inf)  # What is dropped becomes 0, not −∞: these are weights.
weights[keep] / (1 - p)  # Only what stays is returned: keep the shape, with zeros for what goes.
"""
check_dropout = Exercise(dropout, DROPPED, DROPOUT_TABLE, chance="keep says what stays, so draw nothing here.")

LAYERS = [
    lambda x: -context_vectors(x) * torch.arange(1, len(x) + 1)[:, None],  # every token sees every token
    lambda x: torch.cumsum(x, dim=-2),  # causal
    lambda x: 9 + x - 0.5 * x.roll(-1, dims=-2),  # sees one step ahead; positive outputs fall
    lambda x: x + x[-1:] * torch.arange(1, len(x) + 1)[:, None] * torch.tensor([2, -0.7, 0.3]),  # sees the last token
    lambda x: torch.cat([x, x.flip(0)], -1)[:, ::2],  # d_out is 3, but not the 3 of d_in
]
PLACES = ((5, 2), (7, 4), (4, 3), (6, 4), (7, 5))  # tokens, position
LEAKS = [(layer, *draw(7, (tokens, 3)), position) for layer, (tokens, position) in zip(LAYERS, PLACES)]
LEAK_TABLE = """
Right: it finds each leak, and clears the causal layer.
at = torch.arange(len(x))[:, None]; moved = lambda where: layer(x + where) - layer(x)
before = moved(at >= position)[:position]; largest = lambda where: moved(where)[:position].abs().max()
before.max(); before.max().abs()  # A fall counts as much as a rise: take abs() before max().
moved(at >= position).abs().max()  # Tokens that you changed are compared: take only those before position.
largest(at == position); largest(at == len(x) - 1)  # Only one token is changed: a leak may come from any later one.
largest(at > position)  # The change starts one token too late: change position too.
moved(at >= position)[: position + 1].abs().max()  # The output at position may move: stop before it.
largest(at < position)  # The past was changed: change the tokens from position on.
moved(at >= 4)[:4].abs().max()  # The place is fixed at token 4: use position.
before.abs().max() > 1e-6  # This says whether there is a leak: return how large.
before.abs().min(); before.abs().mean(); before.abs().sum()  # This is the smallest, a mean or a sum: take the largest.
0.0; 1.0  # This gives the same for a layer that leaks and one that does not.
(layer(x[:position]) - layer(x)[:position]).abs().max()  # The first call gets fewer tokens: change x, then slice.
"""
check_leak = Exercise(leak, LEAKS, LEAK_TABLE)
