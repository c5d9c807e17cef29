"""The checks of notebook 01 pass what is right, and name what is wrong."""

import pytest
import torch
import torch.nn.functional as F

from attnlib.checks import check_context_vectors, check_cosine_context, check_scores, check_softmax


def stable(scores):
    return (scores - scores.amax(-1, keepdim=True)).exp()


def shares(scores):
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def contexts_of(directions, x):
    return (directions @ directions.T).softmax(-1) @ x


CHECKS = [check_scores, check_softmax, check_context_vectors, check_cosine_context]


def scores_with_loops(query, tokens):
    scores = torch.zeros(tokens.shape[0])
    for j in range(tokens.shape[0]):
        for c in range(tokens.shape[1]):
            scores[j] += query[c] * tokens[j, c]
    return scores


def softmax_by_hand(scores):
    exponentials = (scores - scores.max(dim=-1, keepdim=True).values).exp()
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


def contexts_with_einsum(x):
    return torch.einsum("...qk,...kd->...qd", torch.einsum("...qd,...kd->...qk", x, x).softmax(-1), x)


def cosine_contexts_with_loops(x):
    rows = []
    for query in x:
        scores = torch.stack([query @ key / (query.norm() * key.norm()) for key in x])
        rows.append(scores.softmax(0) @ x)
    return torch.stack(rows)


RIGHT = [
    (check_scores, scores_with_loops),
    (check_scores, lambda query, tokens: [float(token @ query) for token in tokens]),
    (check_softmax, softmax_by_hand),
    (check_softmax, lambda scores: (scores - scores.logsumexp(-1, keepdim=True)).exp()),
    (check_context_vectors, contexts_with_einsum),
    (check_cosine_context, cosine_contexts_with_loops),
]

WRONG = [
    (check_scores, lambda q, x: q @ x, "sums over the tokens"),
    (check_scores, lambda q, x: x * q, "not yet summed"),
    (check_scores, lambda q, x: F.cosine_similarity(x, q[None]), "cosines"),
    (check_scores, lambda q, x: x @ q / len(q) ** 0.5, "notebook 02"),
    (check_scores, lambda q, x: torch.cdist(x, q[None])[:, 0], "distances"),
    (check_scores, lambda q, x: torch.softmax(x @ q, dim=-1), "already weights"),
    (check_scores, lambda q, x: torch.stack([q @ q for _ in x]), "the query with itself"),
    (check_scores, lambda q, x: torch.ones(4), "right shape, but"),
    (check_scores, lambda q, x: (x * q).sum(0), "dim=-1, so that one"),
    (check_scores, lambda q, x: (x * q).sum(), "its own score"),
    (check_scores, lambda q, x: (x * q).mean(-1), "mean of the products"),
    (check_scores, lambda q, x: (x @ q).cumsum(0), "back to zero"),
    (check_scores, lambda q, x: (x @ q).softmax(0) @ x, "context vector"),
    (check_softmax, lambda s: shares(s - s.mean(-1, keepdim=True)), "The mean is subtracted"),
    (check_softmax, lambda s: shares(s - s.amin(-1, keepdim=True)), "The smallest score"),
    (check_softmax, lambda s: shares(s - s.amax(-1)), "from column j"),
    (check_softmax, lambda s: shares(s - s.amax(0)), "largest of each column"),
    (check_softmax, lambda s: shares(s / s.amax(-1, keepdim=True)), "divided by the largest"),
    (check_softmax, lambda s: shares(s).nan_to_num(), "hides the overflow"),
    (check_softmax, lambda s: stable(s) / s.exp().sum(-1, keepdim=True), "above the line, but not below"),
    (check_softmax, lambda s: s.exp() / stable(s).sum(-1, keepdim=True), "below the line, but not above"),
    (check_softmax, lambda s: (s.amax(-1, keepdim=True) - s).softmax(-1), "sign is turned"),
    (check_softmax, lambda s: stable(s) / stable(s).sum(0, keepdim=True), "over the columns"),
    (check_softmax, lambda s: s.softmax(-1).softmax(-1), "twice"),
    (check_context_vectors, lambda x: torch.stack([(q @ x.T).softmax(0) @ x for q in x]), "runs over the sentences"),
    (check_context_vectors, lambda x: (x @ x.transpose(1, 2)).softmax(-1) @ x, "Right for a batch"),
    (check_context_vectors, lambda x: (x @ x.mT).softmax(2) @ x, "Right for a batch"),
    (check_context_vectors, lambda x: (x @ x.mT / x.shape[-1]).softmax(-1) @ x, "divided by d_in"),
    (check_context_vectors, lambda x: (x @ x.mT).exp() @ x, "not divided by their sum"),
    (check_context_vectors, lambda x: (x @ x.mT).exp() / (x @ x.mT).exp().sum() @ x, "over everything"),
    (check_context_vectors, lambda x: (x @ x.mT).softmax(-1).softmax(-1) @ x, "twice"),
    (check_context_vectors, lambda x: x + (x @ x.mT).softmax(-1) @ x, "leave it out"),
    (check_context_vectors, lambda x: (x @ x.mT)[(0,) * (x.ndim - 2)].softmax(-1) @ x, "weights"),
    (check_cosine_context, lambda x: contexts_of(x / x.square().sum(-1, keepdim=True), x), "take the root"),
    (check_cosine_context, lambda x: contexts_of(x / x.abs().sum(-1, keepdim=True), x), "absolute numbers"),
    (check_cosine_context, lambda x: F.normalize(x) @ F.normalize(x).T @ x, "softmax is missing"),
    (check_cosine_context, lambda x: contexts_of(F.normalize(x) / x.shape[1] ** 0.25, x), "√d_in as well"),
    (check_cosine_context, lambda x: (F.normalize(x) @ F.normalize(x).T).softmax(0) @ x, "over the queries"),
    (check_cosine_context, lambda x: (F.normalize(x) @ F.normalize(x).T).softmax(1), "These are the weights"),
    (check_softmax, lambda s: s.exp() / s.exp().sum(-1, keepdim=True), "exp overflows"),
    (check_softmax, lambda s: (s - s.max()).exp() / (s - s.max()).exp().sum(-1, keepdim=True), "whole tensor"),
    (check_softmax, lambda s: s.softmax(0), "columns sum to one"),
    (check_softmax, lambda s: s.softmax(-2) if s.ndim > 2 else s.softmax(-1), "before the last one"),
    (check_softmax, lambda s: s / s.sum(-1, keepdim=True), "without exp"),
    (check_softmax, lambda s: s.exp() / s.exp().sum(), "One sum"),
    (check_softmax, lambda s: s.exp() / s.exp().sum(-1), "keepdim=True"),
    (check_softmax, lambda s: stable(s) / stable(s).sum(-1), "missing from the sum"),
    (check_softmax, lambda s: stable(s) / stable(s).sum(), "sum over dim=-1"),
    (check_softmax, lambda s: s.softmax(1), "before the last one"),
    (check_context_vectors, lambda x: (x @ x.T).softmax(-1) @ x, "use .mT instead"),
    (check_softmax, lambda s: s.exp(), "Not divided"),
    (check_softmax, lambda s: (s - s.amax(-1, keepdim=True)).exp(), "less the largest"),
    (check_softmax, lambda s: s.log_softmax(-1), "logarithm"),
    (check_softmax, lambda s: s.softmax(-1).sum(), "should return the shape"),
    (check_context_vectors, lambda x: (x @ x.mT).softmax(-2) @ x, "columns of these"),
    (check_context_vectors, lambda x: (x @ x.mT).softmax(1) @ x, "with a batch"),
    (check_context_vectors, lambda x: (x @ x.mT).softmax(0 if x.ndim > 2 else -1) @ x, "first axis"),
    (check_context_vectors, lambda x: (x @ x.mT).softmax(-1).mT @ x, "not be transposed"),
    (check_context_vectors, lambda x: x @ x.mT @ x, "Softmax is missing"),
    (check_context_vectors, lambda x: (x @ x.mT / x.shape[-1] ** 0.5).softmax(-1) @ x, "notebook 02"),
    (check_context_vectors, lambda x: (x @ x.mT).softmax(-1), "These are the weights"),
    (check_context_vectors, lambda x: x, "as they were"),
    (check_context_vectors, lambda x: ((x @ x.mT).softmax(-1) @ x)[..., 1, :], "should return the shape"),
    (check_cosine_context, lambda x: (x @ x.T).softmax(-1) @ x, "plain dot products"),
    (check_cosine_context, lambda x: contexts_with_einsum(F.normalize(x, dim=-1)), "shortened"),
    (check_cosine_context, lambda x: (F.normalize(x, dim=0) @ F.normalize(x, dim=0).T).softmax(-1) @ x, "coordinate"),
    (check_cosine_context, lambda x: (F.normalize(x, dim=1) @ x.T).softmax(-1) @ x, "of the queries"),
    (check_cosine_context, lambda x: (x @ F.normalize(x, dim=1).T).softmax(-1) @ x, "of the keys"),
    (check_cosine_context, lambda x: contexts_with_einsum(x / x.norm()), "right shape, but"),
    (check_cosine_context, lambda x: (x @ x.T / x.norm() ** 2).softmax(-1) @ x, "whole matrix"),
    (check_cosine_context, lambda x: (x / x.norm(dim=1) @ (x / x.norm(dim=1)).T).softmax(-1) @ x, "keepdim"),
    (check_cosine_context, lambda x: (x @ x.T).softmax(-1) / x.norm(dim=1, keepdim=True) @ x, "before softmax"),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_passes_what_is_right(check, answer):
    verdict = check(answer)
    assert verdict
    assert repr(verdict).startswith("✓ Right")


@pytest.mark.filterwarnings("ignore:The use of `x.T`")  # as learners write it
@pytest.mark.parametrize(("check", "answer", "named"), WRONG, ids=[f"{w[0].__name__}-{w[2]}" for w in WRONG])
def test_names_the_mistake(check, answer, named):
    verdict = check(answer)
    assert not verdict
    assert verdict.status == "failed"
    assert named in verdict.message, verdict


@pytest.mark.parametrize("check", CHECKS)
def test_a_stub_is_not_written_yet_and_touches_no_global_generator(check):
    state = torch.random.get_rng_state()
    assert check(lambda *inputs: None).status == "not yet"
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("check", CHECKS)
def test_an_error_and_a_changed_input_are_told(check):
    def raises(*inputs):
        raise RuntimeError("sizes do not fit")

    def changes(*inputs):
        return inputs[-1].mul_(2)

    assert "raised RuntimeError: sizes do not fit" in check(raises).message
    assert "changes its input" in check(changes).message
    assert "uncalled" in check(torch.ones(3)).message
