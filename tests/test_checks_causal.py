"""The checks of notebook 03 pass what is right, and name what is wrong."""

import re

import pytest
import torch
import torch.nn.functional as F

from attnlib.checks import check_causal_weights, check_dropout, check_leak, check_look_mask

CHECKS = [check_causal_weights, check_look_mask, check_dropout, check_leak]
INFINITY = float("inf")


def upper(scores, diagonal):
    return torch.full(scores.shape[-2:], -INFINITY).triu(diagonal)


def weights_with_loops(scores):
    rows = scores.reshape(-1, *scores.shape[-2:])
    result = torch.zeros_like(rows)
    for matrix, (b, i) in ((rows, (b, i)) for b in range(len(rows)) for i in range(rows.shape[1])):
        seen = torch.exp(matrix[b, i, : i + 1] - matrix[b, i, : i + 1].max())
        result[b, i, : i + 1] = seen / seen.sum()
    return result.reshape(scores.shape)


def renormalised(scores):
    weights = F.softmax(scores, dim=-1) * torch.ones(scores.shape[-2:]).tril()
    return weights / weights.sum(-1, keepdim=True)


def mask_with_loops(lengths, tokens):
    return torch.tensor(
        [[[key <= query and key < length for key in range(tokens)] for query in range(tokens)] for length in lengths]
    )


def real(lengths, tokens):
    return torch.arange(tokens).expand(len(lengths), tokens) < lengths[:, None]


def below(tokens):
    return torch.ones(tokens, tokens).tril().bool()


def moved(layer, x, start, stop, seen, reduce=torch.Tensor.abs):
    stop = len(x) if stop is None else stop
    other = torch.cat([x[:start], x[start:stop] + 1, x[stop:]])
    return reduce(layer(other)[:seen] - layer(x)[:seen]).max()


def grown(x, position):
    return torch.cat([x[:position], x[position:] + 1])


def changes_its_input(layer, x, position):
    before = layer(x.clone())
    x[position:] += 1
    return (layer(x) - before)[:position].abs().max()


RIGHT = [
    (check_causal_weights, weights_with_loops),
    (check_causal_weights, renormalised),
    (check_causal_weights, lambda s: (s + upper(s, 1)).softmax(-1)),
    (check_causal_weights, lambda s: s.masked_fill(~below(s.shape[-1]), -1e9).softmax(-1)),
    (check_causal_weights, lambda s: (e := s.exp().tril()) / e.sum(-1, keepdim=True)),
    (check_look_mask, mask_with_loops),
    (check_look_mask, lambda n, t: real(n, t).unsqueeze(1).logical_and(below(t))),
    (check_dropout, lambda w, keep, p: torch.where(keep, w / (1 - p), 0.0)),
    (check_leak, lambda f, x, p: moved(f, x, p, None, p)),
]

WRONG = [
    (check_causal_weights, lambda s: F.softmax(s, -1), "future is not hidden"),
    (check_causal_weights, lambda s: (s + torch.full(s.shape[-2:], -INFINITY).tril(-1)).softmax(-1), "hides the past"),
    (
        check_causal_weights,
        lambda s: s.masked_fill(below(s.shape[-1]), -INFINITY).softmax(-1),
        "last query sees nothing",
    ),
    (check_causal_weights, lambda s: s + upper(s, 1), "are scores still"),
    (check_causal_weights, lambda s: s.clone(), "scores that came"),
    (check_causal_weights, lambda s: (s + upper(s, 0)).softmax(-1), "diagonal is hidden as well"),
    (check_causal_weights, lambda s: (s + upper(s, 2)).softmax(-1), "One later token is still seen"),
    (check_causal_weights, lambda s: (s * torch.ones(s.shape[-2:]).tril()).softmax(-1), "set them to −inf"),
    (check_causal_weights, lambda s: s.masked_fill(~below(s.shape[-1]), -30).softmax(-1), "a finite number"),
    (check_causal_weights, lambda s: s.masked_fill(~below(s.shape[-1]), -50).softmax(-1), "a finite number"),
    (check_causal_weights, lambda s: F.softmax(s, -1) * torch.ones(s.shape[-2:]).tril(), "divide each row by its sum"),
    (check_causal_weights, lambda s: (w := s.softmax(-1).tril()) / w.sum(-1), "keepdim=True"),
    (check_causal_weights, lambda s: (s + upper(s, 1)).softmax(-2), "over the queries"),
    (check_causal_weights, lambda s: (s / len(s) ** 0.5 + upper(s, 1)).softmax(-1), "scaled once more"),
    (check_causal_weights, lambda s: (s + upper(s, 1)).softmax(1), "use dim=-1"),
    (check_causal_weights, lambda s: F.softmax(s, -1) + upper(s, 1), "stands among the weights"),
    (check_causal_weights, lambda s: F.softmax(s.softmax(-1).tril(), -1), "a softmax too many"),
    (check_causal_weights, lambda s: F.softmax(weights_with_loops(s), -1), "too many, the second"),
    (check_causal_weights, lambda s: (s + upper(s, 1)).exp(), "exponentials still"),
    (check_causal_weights, lambda s: F.log_softmax(s + upper(s, 1), -1), "logarithms"),
    (check_causal_weights, lambda s: (e := (s + upper(s, 1)).exp()) / e.sum((-1, -2), keepdim=True), "all scores"),
    (check_causal_weights, lambda s: (w := s.softmax(-1).tril()) / w.sum((-2, -1), True), "divided by one sum"),
    (check_causal_weights, lambda s: (w := s.softmax(-1).tril()) / w.sum(-2, True), "columns sum to one"),
    (check_causal_weights, lambda s: upper(s, 1).isinf().expand(s.shape), "This is the mask"),
    (check_causal_weights, lambda s: (0 * s + upper(s, 1)).softmax(-1), "play no part"),
    (check_look_mask, lambda n, t: ~mask_with_loops(n, t), "swapped"),
    (check_look_mask, lambda n, t: below(t).repeat(len(n), 1, 1), "padding may still be seen"),
    (check_look_mask, lambda n, t: real(n, t)[:, None].repeat(1, t, 1), "future may still be seen"),
    (check_look_mask, lambda n, t: real(n, t)[:, None] | below(t), "not with"),
    (check_look_mask, lambda n, t: real(n, t)[:, :, None] & below(t), "padding queries see nothing here"),
    (check_look_mask, lambda n, t: real(n, t)[:, None] & real(n, t)[:, :, None] & below(t), "axis of the keys only"),
    (check_look_mask, lambda n, t: real(n, t)[:, None] & ~below(t), r"triu\(1\) marks the future"),
    (check_look_mask, lambda n, t: mask_with_loops(n, t).float().log(), "mask of numbers, 0 and −∞"),
    (check_look_mask, lambda n, t: (torch.arange(t) <= n[:, None])[:, None] & below(t), "not <="),
    (check_look_mask, lambda n, t: mask_with_loops(n, t) & ~torch.eye(t).bool(), "may see itself"),
    (check_look_mask, lambda n, t: real(n, t)[:, None] & below(t).T, "past is hidden"),
    (check_look_mask, lambda n, t: mask_with_loops(n, t).float(), "boolean tensor"),
    (check_look_mask, lambda n, t: mask_with_loops(n, t)[-1], "should return the shape"),
    (check_look_mask, lambda n, t: (torch.arange(t) < n[:, None] - 1)[:, None] & below(t), "last real token is hidden"),
    (check_look_mask, lambda n, t: real(n, t)[:, None] & torch.ones(t, t).tril(1).bool(), "One later token"),
    (check_look_mask, lambda n, t: ~real(n, t)[:, None] & ~below(t), "what both masks hide"),
    (check_look_mask, lambda n, t: ~real(n, t)[:, None] & below(t), "real keys are not"),
    (
        check_look_mask,
        lambda n, t: (torch.arange(t) >= t - n[:, None])[:, None] & below(t),
        "stands on the right",
    ),
    (check_look_mask, lambda n, t: mask_with_loops(n, t).transpose(1, 2), "Rows and columns"),
    (check_look_mask, lambda n, t: real(n, t)[:, None] & real(n, t)[:, :, None], "and the lengths belong"),
    (check_look_mask, lambda n, t: mask_with_loops(n, t) | torch.eye(t).bool(), "Padding sees itself"),
    (check_look_mask, real, "give it an axis"),
    (check_look_mask, lambda n, t: below(t), "causal mask alone"),
    (check_look_mask, lambda n, t: real(n, t).unsqueeze(1), "axis of the queries has one place"),
    (check_dropout, lambda w, keep, p: w * keep, "must grow"),
    (check_dropout, lambda w, keep, p: w * keep * (1 - p), "upside down"),
    (check_dropout, lambda w, keep, p: w * keep / p if p else w, "not by p"),
    (check_dropout, lambda w, keep, p: w * ~keep / (1 - p), "stays; here it goes"),
    (check_dropout, lambda w, keep, p: F.normalize(w * keep, p=1.0, dim=-1), "does not renormalise"),
    (check_dropout, lambda w, keep, p: w / (1 - p), "Nothing is dropped"),
    (check_dropout, lambda w, keep, p: w.clone(), "This is evaluation"),
    (check_dropout, lambda w, keep, p: F.dropout(w, p), "Two calls give different numbers"),
    (check_dropout, lambda w, keep, p: w * keep * keep.numel() / keep.sum(), "happens to stay"),
    (check_dropout, lambda w, keep, p: w * keep / 1 - p, "parentheses"),
    (check_dropout, lambda w, keep, p: w * keep * p, "do not multiply by p"),
    (check_dropout, lambda w, keep, p: w * keep / (1 - p) / (1 - p), "twice"),
    (check_dropout, lambda w, keep, p: keep / (1 - p), "play no part"),
    (check_dropout, lambda w, keep, p: w + w * keep * p / (1 - p), "stays as it was"),
    (check_dropout, lambda w, keep, p: torch.where(keep, w / (1 - p), -INFINITY), "not −∞"),
    (check_dropout, lambda w, keep, p: torch.where(keep, w, -INFINITY).softmax(-1), "no softmax after dropout"),
    (check_dropout, lambda w, keep, p: w.masked_select(keep) / (1 - p), "Only what stays"),
    (check_leak, lambda f, x, p: (f(grown(x, p)) - f(x))[:p].max().abs(), "before max"),
    (check_leak, lambda f, x, p: (f(grown(x, p)).abs() - f(x).abs())[:p].max(), "not around each output"),
    (check_leak, lambda f, x, p: abs(f(grown(x, p))[:p].max() - f(x)[:p].max()), "difference of two maxima"),
    (check_leak, lambda f, x, p: moved(f, x, p - 1, None, p), "one token too early"),
    (check_leak, lambda f, x, p: moved(f, x, 0, None, p), "All tokens were changed"),
    (check_leak, lambda f, x, p: moved(f, x, len(x) - 1, None, p), "Only the last token"),
    (check_leak, lambda f, x, p: moved(f, x, p, None, 1), "Only the first token is looked at"),
    (check_leak, lambda f, x, p: (f(grown(x, p)) - f(x))[p - 1].abs().max(), "right before position is looked at"),
    (check_leak, lambda f, x, p: moved(f, x, p, None, p - 1), "is left out"),
    (check_leak, lambda f, x, p: (f(grown(x, p)) - f(x))[:p].abs().sum(), "added up"),
    (check_leak, lambda f, x, p: (f(grown(x, p)) - f(x))[:p].abs().min(), "smallest"),
    (check_leak, lambda f, x, p: moved(f, x, p, None, p, torch.square), "squared"),
    (check_leak, lambda f, x, p: moved(f, x, p, None, p) > 1e-6, "how far, not whether"),
    (check_leak, lambda f, x, p: (f(x)[:p] - f(x[:p])).abs().max(), "fewer tokens"),
    (check_leak, lambda f, x, p: (f(x.index_fill(0, torch.arange(p, len(x)), 1.0)) - f(x))[:p].abs().max(), "set them"),
    (check_leak, lambda f, x, p: moved(lambda y: f(y.T), x.T, p, None, p), "columns were changed"),
    (check_leak, lambda f, x, p: (f(grown(x, p)) - f(x))[:p].abs().amax(1), "for each token"),
    (check_leak, lambda f, x, p: moved(f, x, p, None, p, torch.Tensor.clone), "abs"),
    (check_leak, lambda f, x, p: (f(x) - f(grown(x, p)))[:p].max(), "A rise counts"),
    (check_leak, lambda f, x, p: (f(grown(x, p)) - f(x))[:p].min().abs(), "A rise counts"),
    (check_leak, lambda f, x, p: moved(f, x, p, None, None), "before position only"),
    (check_leak, lambda f, x, p: moved(f, x, p, p + 1, p), "Only the token at position"),
    (check_leak, lambda f, x, p: moved(f, x, p + 1, None, p), "one token too late"),
    (check_leak, lambda f, x, p: moved(f, x, p, None, p + 1), "stop before it"),
    (check_leak, lambda f, x, p: moved(f, x, 0, p, p), "past was changed"),
    (check_leak, lambda f, x, p: (f(torch.cat([x[:p], x[p:] + 1])) - f(x))[:p].abs().mean(), "largest change"),
    (check_leak, lambda f, x, p: False, "same for a layer that leaks"),
    (check_leak, changes_its_input, "changes its input"),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_right_answers_pass(check, answer):
    verdict = check(answer)
    assert verdict, verdict
    assert repr(verdict).startswith("✓ Right")


@pytest.mark.parametrize(("check", "answer", "words"), WRONG, ids=[words for _, _, words in WRONG])
def test_wrong_answers_are_named(check, answer, words):
    verdict = check(answer)
    assert verdict.status == "failed"
    assert re.search(words, verdict.message), verdict.message


@pytest.mark.parametrize("check", CHECKS)
def test_stubs_crashes_and_constants_do_not_pass(check):
    def stub(*arguments): ...

    def crash(*arguments):
        raise KeyError("no such thing")

    assert check(stub).status == "not yet"
    assert "crash raised KeyError" in check(crash).message
    assert not check(lambda *arguments: torch.ones(2, 2))
    assert not check(lambda *arguments: 0.0)
    assert "uncalled" in check(torch.ones(2)).message


@pytest.mark.parametrize("check", CHECKS)
def test_checks_leave_the_global_generator_alone(check):
    state = torch.get_rng_state()
    check(lambda *arguments: None)
    assert torch.equal(state, torch.get_rng_state())
