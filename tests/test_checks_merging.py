"""The checks of notebook 08: right answers pass, and typical wrong ones are named."""

import pytest
import torch

from attnlib.checks import check_log_sum_exp, check_merge, check_online_step, check_overlapping


def test_right_answers_pass():
    assert check_log_sum_exp(lambda scores: scores.logsumexp(-1))
    assert check_merge(lambda outputs, sizes: torch.einsum("ptd,pt->td", outputs, sizes.softmax(0)))

    def online(top, total, scores):
        everything = torch.cat([(top + total.log())[None], scores])
        new_top = torch.cat([top[None], scores]).max()
        return torch.stack([new_top, (everything.logsumexp(0) - new_top).exp()])

    assert check_online_step(online)

    def count_once(scores, values, seen):
        sizes, outputs = [], []
        for row in seen:
            mine = (scores - seen.sum(0).log())[row]
            sizes.append(mine.logsumexp(0))
            outputs.append(mine.softmax(0) @ values[row])
        return torch.stack(sizes).softmax(0) @ torch.stack(outputs)

    assert check_overlapping(count_once)


CHECKS = [check_log_sum_exp, check_merge, check_online_step, check_overlapping]


@pytest.mark.parametrize("check", CHECKS)
def test_a_stub_is_not_yet_written(check):
    assert check(lambda *arguments: None).status == "not yet"
    assert not check(lambda *arguments: torch.zeros(()))
    assert "uncalled" in check(3).message


def shifted(scores):
    top = scores.max(-1, keepdim=True).values
    return (scores - top).exp().sum(-1).log()


def less(offset):
    """Log-sum-exp with something else than the largest score taken out."""
    return lambda scores: (scores - offset(scores)).exp().sum(-1).log() + offset(scores).squeeze(-1)


def one_top_for_all(outputs, sizes):
    weights = torch.exp(sizes - sizes.max())
    return torch.einsum("ptd,pt->td", outputs, weights) / weights.sum(0).unsqueeze(-1)


def values_divided(scores, values, seen):
    weights = (scores.exp() * seen).sum(0)
    return weights @ (values / seen.sum(0).clamp(min=1).unsqueeze(-1)) / weights.sum()


def step_with(choose):
    """A step that returns or counts from another top; ``choose`` gives the top and the exponents."""

    def answer(top, total, scores):
        new_top = max(top, scores.max())
        given, exponents = choose(top, new_top, scores)
        return torch.stack([given, total * (top - new_top).exp() + exponents.exp().sum()])

    return answer


def overlapping(adjust):
    def answer(scores, values, seen):
        counts = seen.sum(0).clamp(min=1)
        weights = (seen * adjust(scores, counts).exp()).sum(0)
        return (weights / weights.sum()) @ values

    return answer


def online_with(factor):
    """A step in which the old total is multiplied by something else than it should be."""

    def answer(top, total, scores):
        new_top = max(top, scores.max())
        return torch.stack([new_top, total * factor((top - new_top).exp()) + (scores - new_top).exp().sum()])

    return answer


WRONG = [
    (check_log_sum_exp, lambda s: torch.log(torch.exp(s).sum(dim=-1)), "overflow"),
    (check_log_sum_exp, shifted, "never added again"),
    (check_log_sum_exp, lambda s: s.max() + (s - s.max()).exp().sum(-1).log(), "One largest score for all rows"),
    (check_log_sum_exp, lambda s: s.exp().log().sum(-1), "sum of logs"),
    (check_log_sum_exp, lambda s: torch.logsumexp(s, 0), "use the last axis"),
    (check_log_sum_exp, lambda s: s.max(-1).values, "the largest score"),
    (check_log_sum_exp, less(lambda s: s.mean(-1, keepdim=True)), "not the mean or the smallest"),
    (check_log_sum_exp, less(lambda s: s.amin(-1, keepdim=True)), "not the mean or the smallest"),
    (check_log_sum_exp, lambda s: shifted(s) - s.amax(-1), "subtracted once more"),
    (check_log_sum_exp, lambda s: shifted(s).exp(), "The log is missing"),
    (check_log_sum_exp, lambda s: shifted(s).exp() + s.amax(-1), "The log of the sum is missing"),
    (check_log_sum_exp, lambda s: s.amax(-1, keepdim=True) + shifted(s), "gives a table"),
    (check_log_sum_exp, lambda s: s.logsumexp(-1)[..., None], "The last axis is still there"),
    (check_merge, lambda o, z: o.mean(dim=0), "count alike"),
    (check_merge, one_top_for_all, "One largest log-sum-exp for all tokens"),
    (check_merge, lambda o, z: (o * z.exp()[..., None] / z.exp().sum()).sum(0), "parts and tokens together"),
    (check_merge, lambda o, z: (o * (z / z.sum(0)).unsqueeze(-1)).sum(0), "themselves are used as weights"),
    (check_merge, lambda o, z: (o * z.exp().unsqueeze(-1)).sum(0) / z.exp().sum(0).unsqueeze(-1), "overflows"),
    (check_merge, lambda o, z: (o * z.softmax(1).unsqueeze(-1)).sum(0), "the parts are axis 0"),
    (check_merge, lambda o, z: o.sum(dim=0), "added, not averaged"),
    (check_online_step, online_with(lambda shrink: 1.0), "not shrunk"),
    (check_online_step, online_with(lambda shrink: 1 / shrink), "the wrong way"),
    (check_online_step, online_with(lambda shrink: 0.0), "forgotten"),
    (
        check_online_step,
        lambda t, n, s: torch.stack([s.max(), n * (t - s.max()).exp() + (s - s.max()).exp().sum()]),
        "new block alone",
    ),
    (check_online_step, lambda t, n, s: torch.stack([t, n + (s - t).exp().sum()]), "The top does not move"),
    (check_online_step, step_with(lambda t, top, scores: (top, scores)), "not counted from a top"),
    (check_online_step, step_with(lambda t, top, scores: (t, scores - top)), "the old one"),
    (check_overlapping, overlapping(lambda s, n: s), "counts several times"),
    (check_overlapping, overlapping(lambda s, n: s + n.log()), "the wrong way"),
    (check_overlapping, overlapping(lambda s, n: s - n), "N itself"),
    (check_overlapping, overlapping(lambda s, n: s / n), "divided by N"),
    (check_overlapping, lambda s, v, seen: s.softmax(0) @ v, "no part saw"),
    (check_overlapping, lambda s, v, seen: s[seen.sum(0) == 1].softmax(0) @ v[seen.sum(0) == 1], "thrown away"),
    (check_overlapping, lambda s, v, seen: (s * (seen.sum(0) > 0)).softmax(0) @ v, "e⁰ = 1"),
    (check_overlapping, lambda s, v, seen: s.softmax(0)[seen.any(0)] @ v[seen.any(0)], "after the softmax"),
    (check_overlapping, values_divided, "The values are divided"),
]


@pytest.mark.parametrize(("check", "answer", "named"), WRONG, ids=[f"{c.__name__}-{n[:20]}" for c, _, n in WRONG])
def test_wrong_answers_are_named(check, answer, named):
    verdict = check(answer)
    assert verdict.status == "failed"
    assert named in verdict.message, verdict.message
