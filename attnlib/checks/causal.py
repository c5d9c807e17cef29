"""Checks for notebook 03: hiding the future, reading a mask, dropping weights, catching a leak."""

from collections.abc import Callable

import torch
from torch import Tensor

from attnlib.checks._judge import Verdict, differs, judge
from attnlib.masks import causal_mask, padding_mask
from attnlib.self_attention import context_vectors


def check_causal_weights(answer: Callable[[Tensor], Tensor]) -> Verdict:
    """Check ``answer(scores)``: scaled scores (…, tokens, tokens) to causal weights of the same shape."""
    generator = torch.Generator().manual_seed(3)
    cases = [(3 * torch.randn(*shape, generator=generator),) for shape in ((5, 5), (2, 7, 7), (2, 3, 4, 4), (1, 1))]
    cases.append((torch.randn(6, 6, generator=generator) - 80,))  # all so low that −30 hides nothing
    mistakes = {
        "The future is not hidden: these are the weights of full attention.": lambda s: s.softmax(-1),
        "The mask is the wrong way round: it hides the past.": lambda s: _weights(s, _later(s).mT),
        "The mask is the wrong way round, and the last query sees nothing (NaN): masked_fill hides where its mask is "
        "True, so give it triu(diagonal=1).": lambda s: _weights(s, ~_later(s)),
        "These are scores still: take the softmax of each row, dim=-1.": lambda s: s.masked_fill(_later(s), -torch.inf),
        "These are the scores that came: hide the later keys, then take the softmax of each row.": lambda s: s,
        "The diagonal is hidden as well: a token may see itself. Give triu diagonal=1.": lambda s: _weights(
            s, _later(s, 0)
        ),
        "One later token is still seen: give triu diagonal=1, not 2.": lambda s: _weights(s, _later(s, 2)),
        "The hidden scores get a finite number, and real scores may lie below it: set them to −inf.": lambda s: (
            s.masked_fill(_later(s), -30.0).softmax(-1)
        ),
        "The hidden scores are set to 0, and exp(0) is 1: set them to −inf.": lambda s: s.tril().softmax(-1),
        "A row does not sum to one: after a mask on the weights, divide each row by its sum.": lambda s: s.softmax(
            -1
        ).tril(),
        "Each row is divided by the sum of another: keep the axis with sum(dim=-1, keepdim=True).": lambda s: (
            s.softmax(-1).tril() / s.softmax(-1).tril().sum(-1)
        ),
        "The softmax runs over the queries: use dim=-1, so that each row sums to one.": lambda s: _weights(
            s, _later(s), dim=-2
        ),
        "The scores are scaled once more: they come scaled, leave out the root.": lambda s: _weights(
            s / s.shape[-1] ** 0.5, _later(s)
        ),
        "−∞ stands among the weights: write it into the scores, before the softmax.": lambda s: s.softmax(
            -1
        ).masked_fill(_later(s), -torch.inf),
        "There is a softmax too many: after hiding weights, divide each row by its sum; after hiding scores, do "
        "nothing more.": lambda s: s.softmax(-1).tril().softmax(-1),
        "There is one softmax too many, the second.": lambda s: _weights(s, _later(s)).softmax(-1),
        "These are exponentials still: divide each row by its sum.": lambda s: s.exp().tril(),
        "These are logarithms of the weights: take softmax, not log_softmax.": lambda s: _weights(s, _later(s)).log(),
        "The softmax runs over all scores of a sentence at once: use dim=-1, so that each row sums to one.": lambda s: (
            _weights(s.flatten(-2), _later(s).flatten(-2)).view(s.shape)
        ),
        "All weights are divided by one sum: each row has its own, sum(dim=-1, keepdim=True).": lambda s: (
            s.softmax(-1).tril() / s.softmax(-1).tril().sum((-2, -1), keepdim=True)
        ),
        "The columns sum to one: divide each row by its sum, dim=-1.": lambda s: (
            s.softmax(-1).tril() / s.softmax(-1).tril().sum(-2, keepdim=True)
        ),
        "This is the mask: fill the scores where it says so, then take the softmax.": _later,
        "The scores play no part, so all weights of a row are equal: put −∞ into the scores.": lambda s: _weights(
            torch.zeros_like(s), _later(s)
        ),
    }
    return judge(
        answer,
        lambda scores: _weights(scores, _later(scores)),
        cases,
        mistakes=mistakes,
        success="Right: nothing later is seen, and every row sums to one, with a batch and without.",
    )


def check_look_mask(answer: Callable[[Tensor, int], Tensor]) -> Verdict:
    """Check ``answer(lengths, tokens)``: a boolean mask (batch, tokens, tokens), causal and without padding."""
    cases = [(torch.tensor([5, 3, 1, 2]), 5), (torch.tensor([4, 7]), 7), (torch.tensor([1]), 1)]
    mistakes = {
        "True and False are swapped: F.scaled_dot_product_attention takes True as look.": lambda n, t: ~_look(n, t),
        "The padding may still be seen: a key counts only where its position is below the length.": lambda n, t: (
            causal_mask(t).expand(len(n), t, t)
        ),
        "The future may still be seen: combine with the causal mask.": lambda n, t: padding_mask(n, t)[:, None].expand(
            len(n), t, t
        ),
        "A key must be real AND not later: combine the two masks with &, not with |.": lambda n, t: (
            padding_mask(n, t)[:, None] | causal_mask(t)
        ),
        # with lengths on both axes the mask is the same: behind a real query, the keys that are not later are real
        "The padding queries see nothing here: the lengths belong to the axis of the keys only, "
        "real[:, None, :].": lambda n, t: padding_mask(n, t)[:, :, None] & causal_mask(t),
        "One padding token is still seen: position < length, not <=.": lambda n, t: _look((n + 1).clamp(max=t), t),
        "A token may see itself: the diagonal of the causal part is True.": lambda n, t: _look(n, t).tril(-1),
        "The past is hidden instead of the future.": lambda n, t: padding_mask(n, t)[:, None] & causal_mask(t).mT,
        "The causal part is the wrong way round: triu(1) marks the future, and True means look. Take "
        "tril().": lambda n, t: padding_mask(n, t)[:, None] & ~causal_mask(t),
        "This is a mask of numbers, 0 and −∞. Return a boolean one, True = look.": lambda n, t: torch.zeros(
            len(n), t, t
        ).masked_fill(~_look(n, t), -torch.inf),
        "The last real token is hidden: positions count from 0, so position < length.": lambda n, t: _look(n - 1, t),
        "One later token is still seen: tril(), not tril(1).": lambda n, t: (
            padding_mask(n, t)[:, None] & torch.ones(t, t, dtype=torch.bool).tril(1)
        ),
        "True means hide here, and only what both masks hide is hidden: a key is seen where it is real & not "
        "later.": lambda n, t: ~(padding_mask(n, t)[:, None] | causal_mask(t)),
        "The padding is seen and the real keys are not: position < length marks the real ones.": lambda n, t: (
            ~padding_mask(n, t)[:, None] & causal_mask(t)
        ),
        "The padding stands on the right: the real keys are the first ones of each sentence.": lambda n, t: (
            padding_mask(n, t).flip(-1)[:, None] & causal_mask(t)
        ),
        "Rows and columns are swapped: a row is a query, a column a key.": lambda n, t: _look(n, t).mT,
        "The future may still be seen, and the lengths belong to the axis of the keys only.": lambda n, t: (
            padding_mask(n, t)[:, None] & padding_mask(n, t)[:, :, None]
        ),
        "Padding sees itself on the diagonal: a key that is not real is hidden from every query.": lambda n, t: (
            _look(n, t) | torch.eye(t, dtype=torch.bool)
        ),
        "This is the mask of the real tokens: give it an axis for the queries, real[:, None, :], and combine it with "
        "the causal one.": padding_mask,
        "This is the causal mask alone: combine it with the real keys of each sentence.": lambda n, t: causal_mask(t),
        "The axis of the queries has one place: combine with the causal mask (tokens, tokens).": lambda n, t: (
            padding_mask(n, t)[:, None]
        ),
    }
    verdict = judge(
        answer, _look, cases, mistakes=mistakes, success="Right: True exactly where a real key is not later."
    )
    if verdict and torch.as_tensor(answer(*cases[0])).dtype != torch.bool:
        return Verdict(
            "failed",
            "Right values, wrong dtype: a mask of numbers is added to the scores. Return a boolean tensor.",
        )
    return verdict


def check_dropout(answer: Callable[[Tensor, Tensor, float], Tensor]) -> Verdict:
    """Check ``answer(weights, keep, p)``: what training with dropout makes of the weights (…, q_tokens, kv_tokens)."""
    generator = torch.Generator().manual_seed(5)
    cases = []
    for shape, p in (((3, 5), 0.2), ((2, 4, 7), 0.75), ((2, 3), 0.0)):
        weights = torch.rand(*shape, generator=generator).softmax(-1)
        cases.append((weights, torch.rand(*shape, generator=generator) >= p, p))
    mistakes = {
        "The weights that stay must grow: divide by 1 − p.": lambda w, keep, p: w * keep,
        "The factor is upside down: divide by 1 − p, do not multiply by it.": lambda w, keep, p: w * keep * (1 - p),
        "p is the share that goes, 1 − p the share that stays: divide by 1 − p, not by p.": lambda w, keep, p: (
            w * keep / p
        ),
        "True in keep means that the weight stays; here it goes.": lambda w, keep, p: w * ~keep / (1 - p),
        "Dropout does not renormalise: a row may sum to more or less than one, the average over many draws is "
        "one.": lambda w, keep, p: w * keep / (w * keep).sum(-1, keepdim=True),
        "Nothing is dropped: multiply by keep.": lambda w, keep, p: w / (1 - p),
        "This is evaluation, where dropout does nothing; write what training does.": lambda w, keep, p: w,
        "Divide by 1 − p, not by the share that happens to stay in this draw.": lambda w, keep, p: (
            w * keep / keep.float().mean()
        ),
        "Python divides first: put 1 − p in parentheses.": lambda w, keep, p: w * keep / 1 - p,
        "p is the share that goes: divide by 1 − p, do not multiply by p.": lambda w, keep, p: w * keep * p,
        "The factor 1/(1 − p) is there twice.": lambda w, keep, p: w * keep / (1 - p) ** 2,
        "The weights play no part: multiply them by keep.": lambda w, keep, p: keep / (1 - p),
        "What is dropped becomes 0; here it stays as it was.": lambda w, keep, p: torch.where(keep, w / (1 - p), w),
        "These are weights, after the softmax: what is dropped becomes 0, not −∞.": lambda w, keep, p: (
            w / (1 - p)
        ).masked_fill(~keep, -torch.inf),
        "There is no softmax after dropout: what is dropped becomes 0, the rest grows.": lambda w, keep, p: (
            w.masked_fill(~keep, -torch.inf).softmax(-1)
        ),
        "Only what stays is returned: keep the shape, with zeros for what goes.": lambda w, keep, p: w[keep] / (1 - p),
    }
    with torch.random.fork_rng(devices=[]):
        verdict = judge(
            answer,
            lambda weights, keep, p: weights * keep / (1 - p),
            cases,
            mistakes=mistakes,
            success="Right: dropped weights are zero, the others grow by 1/(1 − p), and the mean stays.",
        )
        if verdict.status == "failed" and differs(answer, cases[0], cases[0][0].shape):
            return Verdict("failed", "Two calls give different numbers: keep says what stays, so draw nothing here.")
    return verdict


def check_leak(answer: Callable[[Callable, Tensor, int], float]) -> Verdict:
    """Check ``answer(layer, x, position)``: the most that outputs before ``position`` move when the tokens of
    x (tokens, d_in) from ``position`` on grow by 1."""
    generator = torch.Generator().manual_seed(7)
    layers = [
        lambda x: -context_vectors(x) * torch.arange(1, len(x) + 1)[:, None],  # every token sees every token
        lambda x: torch.cumsum(x, dim=-2),  # causal
        lambda x: 9 + x - 0.5 * x.roll(-1, dims=-2),  # sees one step ahead; positive outputs fall
        lambda x: (
            x + x[-1:] * torch.arange(1, len(x) + 1)[:, None] * torch.tensor([2, -0.7, 0.3])
        ),  # sees the last token
    ]
    sizes = ((5, 2), (7, 4), (4, 3), (6, 4))  # tokens, position
    cases = [(layer, torch.randn(n, 3, generator=generator), p) for layer, (n, p) in zip(layers, sizes)]
    mistakes = {
        "A fall counts as much as a rise: take abs() of the difference before max().": lambda f, x, p: _difference(
            f, x, p
        )[:p].max(),
        "A rise counts as much as a fall: take abs() of the difference before max().": lambda f, x, p: (
            -_difference(f, x, p)[:p].min()
        ),
        "The tokens that you changed are compared too: look at the outputs before position only.": lambda f, x, p: (
            _difference(f, x, p).abs().max()
        ),
        "Only the token at position was changed: a leak may come from any later one.": lambda f, x, p: (
            _difference(f, x, p, p + 1)[:p].abs().max()
        ),
        "The change starts one token too late: position itself changes too.": lambda f, x, p: (
            _difference(f, x, p + 1)[:p].abs().max()
        ),
        "The output at position is compared too, and it may move: stop before it.": lambda f, x, p: (
            _difference(f, x, p)[: p + 1].abs().max()
        ),
        "The past was changed: change the tokens from position on.": lambda f, x, p: (
            _difference(f, x, 0, p)[:p].abs().max()
        ),
        "The mean hides a leak that shows at one place: take the largest change.": lambda f, x, p: (
            _difference(f, x, p)[:p].abs().mean()
        ),
        "This is the same for a layer that leaks and one that does not.": lambda f, x, p: 0.0,
        "Take abs() before max(): the largest of the signed differences may be a small one.": lambda f, x, p: (
            _difference(f, x, p)[:p].max().abs()
        ),
        "abs() belongs around the difference, not around each output: subtract first.": lambda f, x, p: (
            _grown(f, x, p).abs() - f(x).abs()
        )[:p].max(),
        "This is the difference of two maxima: subtract first, then take abs() and max().": lambda f, x, p: (
            _grown(f, x, p)[:p].max() - f(x)[:p].max()
        ).abs(),
        "The change starts one token too early: the token before position stays.": lambda f, x, p: (
            _difference(f, x, p - 1)[:p].abs().max()
        ),
        "All tokens were changed: those before position stay.": lambda f, x, p: _difference(f, x, 0)[:p].abs().max(),
        "Only the last token was changed: change all from position on.": lambda f, x, p: (
            _difference(f, x, -1)[:p].abs().max()
        ),
        "Only the first token is looked at: take all before position.": lambda f, x, p: (
            _difference(f, x, p)[0].abs().max()
        ),
        "Only the token right before position is looked at: take all before it.": lambda f, x, p: (
            _difference(f, x, p)[p - 1].abs().max()
        ),
        "The token right before position is left out: the slice is [:position].": lambda f, x, p: (
            _difference(f, x, p)[: p - 1].abs().max()
        ),
        "The changes are added up: take the largest.": lambda f, x, p: _difference(f, x, p)[:p].abs().sum(),
        "This is the smallest change: take the largest.": lambda f, x, p: _difference(f, x, p)[:p].abs().min(),
        "The change is squared: take abs().": lambda f, x, p: _difference(f, x, p)[:p].square().max(),
        "Return how far, not whether: the largest change itself.": lambda f, x, p: float(
            _difference(f, x, p)[:p].abs().max() > 1e-6
        ),
        "The first call gets fewer tokens: give both calls all of them, and slice the outputs.": lambda f, x, p: (
            (f(x[:p]) - f(x)[:p]).abs().max()
        ),
        "Add 1 to the tokens, do not set them to 1.": lambda f, x, p: (
            (f(torch.cat([x[:p], torch.ones_like(x[p:])])) - f(x))[:p].abs().max()
        ),
        "The columns were changed: tokens are the rows, x[position:].": lambda f, x, p: (
            _difference(lambda y: f(y.T), x.T, p)[:p].abs().max()
        ),
        "This is one number for each token: take the largest of all.": lambda f, x, p: (
            _difference(f, x, p)[:p].abs().amax(-1)
        ),
    }
    return judge(
        answer,
        lambda layer, x, position: _difference(layer, x, position)[:position].abs().max(),
        cases,
        mistakes=mistakes,
        success="Right: it finds each leak, and clears the causal layer.",
    )


def _later(scores: Tensor, diagonal: int = 1) -> Tensor:
    """True where the key comes after the query."""
    return torch.ones_like(scores, dtype=torch.bool).triu(diagonal)


def _weights(scores: Tensor, hide: Tensor, dim: int = -1) -> Tensor:
    return scores.masked_fill(hide, -torch.inf).softmax(dim)


def _look(lengths: Tensor, tokens: int) -> Tensor:
    return padding_mask(lengths, tokens)[:, None, :] & causal_mask(tokens)  # (batch, tokens, tokens)


def _grown(layer: Callable, x: Tensor, start: int, stop: int | None = None) -> Tensor:
    """The outputs when the tokens from start to stop grow by 1."""
    grown = x.clone()
    grown[start:stop] += 1.0
    return layer(grown)


def _difference(layer: Callable, x: Tensor, start: int, stop: int | None = None) -> Tensor:
    return _grown(layer, x, start, stop) - layer(x)
