"""The checks of notebook 06 pass what is right, and name what is wrong."""

import re

import pytest
import torch

from attnlib.checks import check_joint, check_memory_keys, check_memory_scores, check_topk_attention

CHECKS = [check_memory_keys, check_memory_scores, check_topk_attention, check_joint]


def keys_with_loops(stacked, heads):
    b_s, seq_len, top_k, _, embed_dim = stacked.shape
    keys = torch.zeros(b_s, heads, seq_len, embed_dim // heads, top_k)
    for e in range(embed_dim):
        head, place = divmod(e, embed_dim // heads)
        keys[:, head, :, place] = stacked[:, :, :, 0, e]
    return keys


def scores_with_loops(query, keys):
    scores = torch.zeros(*query.shape[:3], keys.shape[-1])
    for place in torch.cartesian_prod(*map(torch.arange, scores.shape)).tolist():
        b, h, s, k = place
        scores[b, h, s, k] = sum(query[b, h, s, d] * keys[b, h, s, d, k] for d in range(query.shape[-1]))
    return scores / query.shape[-1] ** 0.5


def topk_with_loops(query, key, value, top_k):
    output = torch.zeros(len(query), value.shape[1])
    for t in range(len(query)):
        scores = [float(query[t] @ k) / query.shape[1] ** 0.5 for k in key]
        best = sorted(range(len(key)), key=lambda m: -scores[m])[:top_k]
        exponentials = torch.tensor([scores[m] for m in best]).exp()
        output[t] = sum(share * value[m] for share, m in zip(exponentials / exponentials.sum(), best))
    return output


def joint_with_softmax(local, local_logsumexp, remote, remote_logsumexp):
    shares = torch.stack([local_logsumexp, remote_logsumexp]).softmax(0)
    return shares[0, ..., None] * local + shares[1, ..., None] * remote


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (check_memory_keys, keys_with_loops),
        (check_memory_keys, lambda s, h: s.unbind(-2)[0].unflatten(-1, (h, -1)).permute(0, 3, 1, 4, 2)),
        (check_memory_scores, scores_with_loops),
        (check_memory_scores, lambda q, k: (q.unsqueeze(-1) * k).sum(-2) / q.shape[-1] ** 0.5),
        (check_topk_attention, topk_with_loops),
        (check_joint, joint_with_softmax),
    ],
)
def test_right_answers_pass(check, answer):
    verdict = check(answer)
    assert verdict, verdict


@pytest.mark.parametrize("check", CHECKS)
def test_a_stub_is_not_yet_written(check):
    assert check(lambda *args: None).status == "not yet"
    assert repr(check(lambda *args: None)).startswith("○ Not written yet")


def cut(stacked, heads, index=0):
    return stacked[..., index, :].unflatten(-1, (heads, -1))  # (b_s, seq_len, top_k, heads, head_dim)


def only_kept(scores, top_k, fill):
    return torch.where(scores >= scores.topk(top_k).values[:, -1:], scores, fill)


def scaled(query, key):
    return query @ key.mT / query.shape[-1] ** 0.5


def picked(scores, value, top_k, dim):
    best, ids = scores.topk(top_k)
    return torch.einsum("tk,tkd->td", best.softmax(dim), value[ids])


WRONG = [
    (check_memory_keys, lambda s, h: cut(s, h, 1).permute(0, 3, 1, 4, 2), "These are the values"),
    (check_memory_keys, lambda s, h: cut(s, h).permute(0, 3, 1, 2, 4), "top_k stands before head_dim"),
    (check_memory_keys, lambda s, h: cut(s, h).permute(0, 1, 3, 4, 2), "heads are not brought forward"),
    (
        check_memory_keys,
        lambda s, h: s[..., 0, :].reshape(len(s), h, s.shape[1], s.shape[-1] // h, s.shape[2]),
        "view or reshape alone",
    ),
    (
        check_memory_keys,
        lambda s, h: s[..., 0, :].unflatten(-1, (-1, h)).permute(0, 4, 1, 3, 2),
        "(heads, head_dim), not (head_dim, heads)",
    ),
    (
        check_memory_keys,
        lambda s, h: s.reshape(*s.shape[:3], -1, 2)[..., 0].unflatten(-1, (h, -1)).permute(0, 3, 1, 4, 2),
        "come mixed",
    ),
    (
        check_memory_keys,
        lambda s, h: cut(s, h).permute(0, 3, 1, 2, 4).reshape(cut(s, h).permute(0, 3, 1, 4, 2).shape),
        "swap them with mT",
    ),
    (
        check_memory_keys,
        lambda s, h: s[..., 0, :].reshape(len(s), h, s.shape[1], s.shape[2], s.shape[-1] // h).transpose(-1, -2),
        "reshape cannot bring the heads forward",
    ),
    (check_memory_scores, lambda q, k: torch.einsum("bhsd,bhsdk->bhsk", q, k), "not scaled"),
    (check_memory_scores, lambda q, k: torch.einsum("bhsd,bhsdk->bhsk", q, k) / q.shape[-1], "its root is enough"),
    (
        check_memory_scores,
        lambda q, k: torch.einsum("bhsd,bhsdk->bhsk", q, k) / (q.shape[1] * q.shape[-1]) ** 0.5,
        "heads · head_dim",
    ),
    (check_memory_scores, lambda q, k: scores_with_loops(q, k) * (q.shape[-1] / q.shape[1]) ** 0.5, "by the heads"),
    (check_memory_scores, lambda q, k: scores_with_loops(q, k) * (q.shape[-1] / k.shape[-1]) ** 0.5, "by top_k"),
    (check_memory_scores, lambda q, k: q.unsqueeze(-2) @ k / q.shape[-1] ** 0.5, "axis of size 1"),
    (check_memory_scores, lambda q, k: scores_with_loops(q, k).softmax(-1), "weights, after the softmax"),
    (check_memory_scores, lambda q, k: q @ k / q.shape[-1] ** 0.5, "A literal @ multiplies"),
    (check_memory_scores, lambda q, k: q @ k, "and the scale is missing"),
    (check_memory_scores, lambda q, k: q.unsqueeze(-1) * k / q.shape[-1] ** 0.5, "not summed over head_dim"),
    (check_topk_attention, lambda q, k, v, n: scaled(q, k).softmax(-1) @ v, "All memories are averaged"),
    (
        check_topk_attention,
        lambda q, k, v, n: only_kept(scaled(q, k).softmax(-1), n, 0.0) @ v,
        "over all memories, and then",
    ),
    (check_topk_attention, lambda q, k, v, n: only_kept(scaled(q, k), n, 0.0).softmax(-1) @ v, "exp(0) is 1"),
    (check_topk_attention, lambda q, k, v, n: only_kept(q @ k.mT, n, -torch.inf).softmax(-1) @ v, "not scaled"),
    (
        check_topk_attention,
        lambda q, k, v, n: scaled(q, k[:n]).softmax(-1) @ v[:n],
        "first top_k memories",
    ),
    (check_topk_attention, lambda q, k, v, n: v[scaled(q, k).topk(n).indices].mean(1), "averaged evenly"),
    (
        check_topk_attention,
        lambda q, k, v, n: topk_with_loops(q, k, v, n - 1 or 1),
        "One memory too few",
    ),
    (check_topk_attention, lambda q, k, v, n: picked(q @ k.mT / q.shape[1], v, n, -1), "its root is enough"),
    (check_topk_attention, lambda q, k, v, n: picked(scaled(q, k), v, n, 0), "runs over the tokens"),
    (
        check_topk_attention,
        lambda q, k, v, n: torch.einsum("tk,tkd->td", scaled(q, k).topk(n).values, v[scaled(q, k).topk(n).indices]),
        "scores themselves are the weights",
    ),
    (
        check_topk_attention,
        lambda q, k, v, n: scaled(q, k).topk(n).values.softmax(-1) @ v[scaled(q, k).topk(n).indices],
        "every token the memories of every token",
    ),
    (
        check_topk_attention,
        lambda q, k, v, n: scaled(q, k).topk(n).values.softmax(-1) @ v[:n],
        "meet the first top_k values",
    ),
    (check_joint, lambda a, la, b, lb: (a + b) / 2, "averaged evenly"),
    (check_joint, lambda a, la, b, lb: joint_with_softmax(a, lb, b, la), "swapped"),
    (check_joint, lambda a, la, b, lb: a + b, "added up"),
    (check_joint, lambda a, la, b, lb: a, "local part alone"),
    (check_joint, lambda a, la, b, lb: b, "memory alone"),
    (check_joint, lambda a, la, b, lb: a + torch.sigmoid(lb - la)[..., None] * b, "counts in full"),
    (
        check_joint,
        lambda a, la, b, lb: torch.sigmoid(lb - la) * b + (1 - torch.sigmoid(lb - la)) * a,
        "no axis for value_dim",
    ),
    (
        check_joint,
        lambda a, la, b, lb: (la.exp()[..., None] * a + lb.exp()[..., None] * b) / (la.exp() + lb.exp())[..., None],
        "overflows",
    ),
    (
        check_joint,
        lambda a, la, b, lb: la.softmax(-1)[..., None] * a + lb.softmax(-1)[..., None] * b,
        "over the two parts",
    ),
    (
        check_joint,
        lambda a, la, b, lb: lb.sigmoid()[..., None] * b + (1 - lb.sigmoid())[..., None] * a,
        "blind to the local part",
    ),
]


@pytest.mark.parametrize(("check", "answer", "named"), WRONG)
def test_wrong_answers_are_named(check, answer, named):
    verdict = check(answer)
    assert verdict.status == "failed"
    assert re.search(re.escape(named), verdict.message), verdict
