"""Right answers that differ from the reference pass, and wrong ones that differ from the tables' are named."""

import pytest
import torch
import torch.nn.functional as F

from attnlib.checks import (
    check_context_vectors,
    check_cosine_context,
    check_same,
    check_scores,
    check_scores_shape,
    check_softmax,
    check_weighted_average,
)


def same_in_a_loop(a, b):
    return all(abs(x - y) <= 1e-5 for x, y in zip(a.flatten().tolist(), b.flatten().tolist()))


def scores_with_loops(query, tokens):
    scores = torch.zeros(len(tokens)).to(query)
    for j in range(tokens.shape[0]):
        for c in range(tokens.shape[1]):
            scores[j] += query[c] * tokens[j, c]
    return scores


def softmax_row_by_row(scores):
    rows = [(row - row.max()).exp() for row in scores.reshape(-1, scores.shape[-1])]
    return torch.stack([row / row.sum() for row in rows]).reshape(scores.shape)


def contexts_with_loops(x):
    if x.ndim == 3:
        return torch.stack([contexts_with_loops(sentence) for sentence in x])
    return torch.stack([(x @ query).softmax(0) @ x for query in x])


def cosine_contexts_with_loops(x):
    rows = [torch.stack([query @ key / (query.norm() * key.norm()) for key in x]) for query in x]
    return torch.stack([row.softmax(0) @ x for row in rows])


# Notebooks 00 to 04: (check, answer), and (check, answer, words of the verdict).
RIGHT_00_TO_04 = [
    (check_weighted_average, lambda w, values: (w[:, None] * values).sum(0)),
    (check_weighted_average, lambda w, values: values.T @ w),
    (check_weighted_average, lambda w, values: sum(w[i] * values[i] for i in range(len(w)))),
    (check_weighted_average, lambda w, values: torch.einsum("t,td->d", w, values).tolist()),
    (check_same, lambda a, b: torch.allclose(a, b, rtol=0, atol=1e-5)),
    (check_same, same_in_a_loop),
    (check_same, lambda a, b: not ((a - b).abs() > 1e-5).any()),
    (check_same, lambda a, b: bool((a - b).max() <= 1e-5 and (b - a).max() <= 1e-5)),
    (check_same, lambda a, b: (a - b).abs().max() < 1e-5),
    (check_scores_shape, lambda query, key: (*query.shape[:-1], key.shape[-2])),
    (check_scores_shape, lambda query, key: [*query.shape[:3], key.shape[2]]),
    (check_scores_shape, lambda query, key: query.shape[:3] + key.shape[2:3]),
    (check_scores, scores_with_loops),
    (check_scores, lambda query, x: [token @ query for token in x]),
    (check_scores, lambda query, x: (x * query).sum(-1)),
    (check_softmax, softmax_row_by_row),
    (check_softmax, lambda s: (s - s.logsumexp(-1, keepdim=True)).exp()),
    (check_softmax, lambda s: (e := (s - s.max(-1, keepdim=True).values).exp()) / e.sum(-1)[..., None]),
    (check_context_vectors, contexts_with_loops),
    (check_context_vectors, lambda x: F.softmax(torch.einsum("...qd,...kd->...qk", x, x), -1) @ x),
    (check_context_vectors, lambda x: F.scaled_dot_product_attention(x, x, x, scale=1.0)),
    (check_cosine_context, cosine_contexts_with_loops),
    (check_cosine_context, lambda x: F.cosine_similarity(x[:, None], x[None], dim=-1).softmax(-1) @ x),
    (check_cosine_context, lambda x: (e := (F.normalize(x) @ F.normalize(x).T).exp()) / e.sum(-1, keepdim=True) @ x),
]
WRONG_00_TO_04 = [
    (check_same, lambda a, b: bool((a - b).abs().max() < 8e-6), "difference is 9e-06; True is right"),
    (check_same, lambda a, b: bool((a - b).abs().max() < 2e-5), "difference is 1.2e-05; False is right"),
    (check_same, lambda a, b: torch.testing.assert_close(a, b), "Return True or False instead"),
    (check_scores_shape, lambda query, key: (query @ key.mT).shape, "do without matmul()"),
    (
        check_scores_shape,
        lambda query, key: (*query.shape[:1], *key.shape[:1], 1),
        "4 numbers in a tuple; it returned 3",
    ),
    (check_scores, lambda query, x: torch.ones(4), "right shape, but"),
    (check_softmax, lambda s: s.softmax(-1), "do without softmax()"),
    (check_softmax, lambda s: torch.nn.LogSoftmax(-1)(s).exp(), "do without log_softmax()"),
    (check_softmax, lambda s: (e := s.exp()) / e.sum(-1), "keepdim=True"),
    (check_context_vectors, lambda x: (x @ x.T).softmax(-1) @ x, "Right for tokens (4, 4). But for tokens (7, 2, 3)"),
    (check_context_vectors, lambda x: (x @ x.T).softmax(-1) @ x, ".T reverses all axes"),
    (check_context_vectors, lambda x: torch.stack([(q @ x.T).softmax(0) @ x for q in x]), "But for tokens (7, 2, 3)"),
    (check_context_vectors, lambda x: (x @ x.mT).softmax(2) @ x, "Count axes from the end"),
    (check_context_vectors, lambda x: (x @ x.transpose(1, 2)).softmax(-1) @ x, "Count axes from the end"),
    (check_cosine_context, lambda x: (x @ x.T / x.norm() ** 2).softmax(-1) @ x, "All tokens share one length"),
]

# Notebooks 05 to 08.
RIGHT_05_TO_08 = []
WRONG_05_TO_08 = []


@pytest.mark.parametrize(("check", "answer"), RIGHT_00_TO_04 + RIGHT_05_TO_08)
def test_right_answers_pass(check, answer):
    check(answer).require()


@pytest.mark.filterwarnings("ignore:The use of `x.T`")  # as learners write it
@pytest.mark.parametrize(("check", "answer", "words"), WRONG_00_TO_04 + WRONG_05_TO_08)
def test_wrong_answers_are_named(check, answer, words):
    verdict = check(answer)
    assert not verdict.passed
    assert words in verdict.message
