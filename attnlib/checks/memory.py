"""Checks for notebook 06: keys cut into heads, a score for each memory, top-k attention, one softmax over two parts."""

from collections.abc import Callable

import torch
from torch import Tensor

from attnlib.attend import Attended, attend, merge
from attnlib.checks._judge import Verdict, judge
from attnlib.memory import split_memory_heads


def check_memory_keys(answer: Callable[[Tensor, int], Tensor]) -> Verdict:
    """Check ``answer(stacked, heads)``: (b_s, seq_len, top_k, 2, embed_dim) to keys (b_s, heads, seq_len, head_dim,
    top_k)."""
    generator = torch.Generator().manual_seed(61)
    cases = [
        (torch.randn(b_s, seq_len, top_k, 2, heads * head_dim, generator=generator), heads)
        for b_s, heads, seq_len, head_dim, top_k in ((3, 4, 7, 6, 5), (2, 3, 5, 4, 7), (1, 1, 3, 5, 2), (1, 5, 1, 3, 1))
    ]
    mistakes = {
        "These are the values: the keys stand at 0 of the axis of size 2, the values at 1.": lambda s, h: _keys(
            s.flip(-2), h
        ),
        "Keys and values come mixed: the 2 is the last axis but one, index it with [..., 0, :].": lambda s, h: _keys(
            s.reshape(*s.shape[:3], -1, 2).mT, h
        ),
        "Right numbers, but top_k stands before head_dim: that is the layout of the values. Keys end in "
        "(head_dim, top_k).": lambda s, h: _keys(s, h).mT,
        "The heads are not brought forward: they come right after b_s.": lambda s, h: _keys(s, h).transpose(1, 2),
        "Each head takes every heads-th number: cut embed_dim into (heads, head_dim), not (head_dim, heads).": (
            lambda s, h: s[..., 0, :].unflatten(-1, (-1, h)).permute(0, 4, 1, 3, 2)
        ),
        "The shape is right, but view or reshape alone mixes the numbers: first cut the last axis, then permute.": (
            lambda s, h: s[..., 0, :].reshape(_keys(s, h).shape)
        ),
        "Heads and tokens come mixed: reshape cannot bring the heads forward. First cut the last axis, then permute.": (
            lambda s, h: s[..., 0, :].reshape(_keys(s, h).mT.shape).mT
        ),
        "The last two axes were filled by reshape, which mixes numbers: swap them with mT or permute.": (
            lambda s, h: _keys(s, h).mT.reshape(_keys(s, h).shape)
        ),
    }
    return judge(
        answer, _keys, cases, mistakes=mistakes, success="Right: (b_s, heads, seq_len, head_dim, top_k), nothing mixed."
    )


def check_memory_scores(answer: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check ``answer(query, keys)``: (b_s, heads, seq_len, head_dim) and (b_s, heads, seq_len, head_dim, top_k) to
    scaled scores (b_s, heads, seq_len, top_k)."""
    generator = torch.Generator().manual_seed(62)
    shapes = ((1, 1, 7, 6, 5), (3, 4, 7, 6, 5), (2, 3, 5, 4, 7), (2, 3, 5, 5, 5))  # first one where query @ keys runs
    cases = [
        (torch.randn(*shape[:4], generator=generator), torch.randn(*shape, generator=generator)) for shape in shapes
    ]
    mistakes = {
        "The scores are not scaled: divide by the root of head_dim.": lambda q, k: _plain(q, k),
        "The scores are divided by head_dim: its root is enough.": lambda q, k: _plain(q, k) / q.shape[-1],
        "The scores are scaled by top_k: the root of head_dim, the length of a query, is the right one.": (
            lambda q, k: _plain(q, k) / k.shape[-1] ** 0.5
        ),
        "The scores are scaled by heads · head_dim: each head has only head_dim numbers.": (
            lambda q, k: _plain(q, k) / (q.shape[1] * q.shape[-1]) ** 0.5
        ),
        "The scores are scaled by the heads: the root of head_dim, the length of a query, is the right one.": (
            lambda q, k: _plain(q, k) / q.shape[1] ** 0.5
        ),
        "These are weights, after the softmax: return the scores before it.": lambda q, k: _scores(q, k).softmax(-1),
        "An axis of size 1 is left over: squeeze what unsqueeze(-2) put in.": lambda q, k: _scores(q, k).unsqueeze(-2),
        "A literal @ multiplies every query with the memories of every token: give the query an axis with "
        "unsqueeze(-2).": lambda q, k: q.unsqueeze(2) @ k / q.shape[-1] ** 0.5,
        "A literal @ multiplies every query with the memories of every token, and the scale is missing: give the query "
        "an axis with unsqueeze(-2), and divide by the root of head_dim.": lambda q, k: q.unsqueeze(2) @ k,
        "The products are not summed over head_dim: d must be missing on the right of the arrow.": (
            lambda q, k: q.unsqueeze(-1) * k / q.shape[-1] ** 0.5
        ),
        "The sum runs over seq_len or the heads as well: b, h, s and k stay, only d is summed.": lambda q, k: (
            torch.einsum("bhsd,bhtdk->bhsk", q, k) / q.shape[-1] ** 0.5
        ),
    }
    return judge(
        answer, _scores, cases, mistakes=mistakes, success="Right: one scaled score for each token, head and memory."
    )


def check_topk_attention(answer: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> Verdict:
    """Check ``answer(query, key, value, top_k)``: (tokens, head_dim), (memories, head_dim) and (memories, value_dim) to
    (tokens, value_dim), each token averaging over its own top_k memories."""
    generator = torch.Generator().manual_seed(63)
    cases = [
        (*(2 * torch.randn(*shape, generator=generator) for shape in ((t, d), (m, d), (m, v))), top_k)
        for t, m, d, v, top_k in ((7, 11, 5, 3, 4), (3, 13, 4, 6, 2), (5, 5, 3, 2, 5), (2, 7, 6, 5, 1))
    ]
    mistakes = {
        "All memories are averaged: keep only the top_k best scores of each token.": lambda q, k, v, n: _topk(
            q, k, v, len(k)
        ),
        "The softmax runs over all memories, and then only some are kept: the kept weights no longer sum to one. "
        "Take the top_k first.": lambda q, k, v, n: _topk(q, k, v, n, before=True),
        "The memories that are not kept get a score of 0, and exp(0) is 1: leave them out, or write −inf.": (
            lambda q, k, v, n: _topk(q, k, v, n, fill=0.0)
        ),
        "The scores are not scaled: divide by the root of head_dim.": lambda q, k, v, n: _topk(q, k, v, n, scale=1.0),
        "The scores are divided by head_dim: its root is enough.": lambda q, k, v, n: _topk(
            q, k, v, n, scale=1 / q.shape[-1]
        ),
        "The softmax runs over the tokens: it must run over the top_k of each token, dim=-1.": lambda q, k, v, n: (
            _found(q, k, v, n, lambda scores: scores.softmax(0))
        ),
        "The scores themselves are the weights: take a softmax of the top_k scores.": lambda q, k, v, n: _found(
            q, k, v, n, lambda scores: scores
        ),
        "A literal @ gives every token the memories of every token: give the weights an axis with unsqueeze(-2), or "
        "use an einsum.": lambda q, k, v, n: _best(q, k, n)[0].softmax(-1) @ v[_best(q, k, n)[1]],
        "The weights are right, but meet the first top_k values: take value[ids].": lambda q, k, v, n: (
            _best(q, k, n)[0].softmax(-1) @ v[:n]
        ),
        "These are the lowest scores: topk(…, largest=True) is the default.": lambda q, k, v, n: _topk(
            q, k, v, n, sign=-1
        ),
        "Every token takes the memories of the first one: each token has its own top_k.": lambda q, k, v, n: _shared(
            q, k, v, n
        ),
        "The first top_k memories are taken: take those with the best scores.": lambda q, k, v, n: (
            attend(q, k[:n], v[:n]).output
        ),
        "The last top_k memories are taken: take those with the best scores.": lambda q, k, v, n: (
            attend(q, k[-n:], v[-n:]).output
        ),
        "The best values are added up without weights: take a softmax of the top_k scores.": (
            lambda q, k, v, n: v[(q @ k.mT).topk(n).indices].sum(1)
        ),
        "The best values are averaged evenly: take a softmax of the top_k scores.": (
            lambda q, k, v, n: v[(q @ k.mT).topk(n).indices].mean(1)
        ),
        "One memory too few is kept.": lambda q, k, v, n: _topk(q, k, v, max(n - 1, 1)),
        "One memory too many is kept.": lambda q, k, v, n: _topk(q, k, v, min(n + 1, len(k))),
    }
    return judge(
        answer, _topk, cases, mistakes=mistakes, success="Right: each token averages over its own top_k memories."
    )


def check_joint(answer: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Verdict:
    """Check ``answer(local, local_logsumexp, remote, remote_logsumexp)``: outputs (…, tokens, value_dim) and
    log-sum-exps (…, tokens) to the output of one softmax over both; either part may be empty."""
    generator = torch.Generator().manual_seed(64)
    sizes = ((3, 1, 4, 4), (2, 3, 7, 5), (1, 2, 5, 4))  # first one where a share without its last axis runs
    cases = [_two_parts(generator, *size) for size in sizes]
    large = _two_parts(generator, 2, 1, 3, 5)
    cases.append((large[0], large[1] + 300.0, large[2], large[3] + 299.0))
    empty = _two_parts(generator, 1, 2, 3, 5)
    nothing = torch.full_like(empty[3], -torch.inf)
    cases.append((*empty[:2], torch.zeros_like(empty[2]), nothing))
    mistakes = {
        "The two parts are averaged evenly: the part with the larger log-sum-exp must count for more.": (
            lambda a, la, b, lb: (a + b) / 2
        ),
        "The two parts are added up: their shares must sum to one.": lambda a, la, b, lb: a + b,
        "That is the local part alone: the memory counts too.": lambda a, la, b, lb: a,
        "That is the memory alone: the local part counts too.": lambda a, la, b, lb: b,
        "The local part counts in full: its share is 1 minus the share of remote.": lambda a, la, b, lb: (
            a + _weighted(a, 0 * la, b, (lb - la).sigmoid())
        ),
        "The shares have no axis for value_dim, and meet the wrong one: give them a last axis with unsqueeze(-1).": (
            lambda a, la, b, lb: (la - lb).sigmoid() * a + (lb - la).sigmoid() * b
        ),
        "The shares are swapped: local is weighted with the share of remote.": lambda a, la, b, lb: _joint(
            b, la, a, lb
        ),
        "The log-sum-exps themselves are taken as weights: take their exponentials.": (
            lambda a, la, b, lb: _weighted(a, la / (la + lb), b, lb / (la + lb))
        ),
        "exp(logsumexp) overflows or divides zero by zero at large scores: use a sigmoid of the difference, or "
        "subtract the larger one first.": lambda a, la, b, lb: _weighted(
            a, la.exp() / (la.exp() + lb.exp()), b, lb.exp() / (la.exp() + lb.exp())
        ),
        "The weights are not divided by their sum.": lambda a, la, b, lb: _weighted(a, la.exp(), b, lb.exp()),
        "The softmax runs over the tokens: it must run over the two parts.": lambda a, la, b, lb: _weighted(
            a, la.softmax(-1), b, lb.softmax(-1)
        ),
        "That is a gate, blind to the local part: remote's share depends on both log-sum-exps, σ(remote − local).": (
            lambda a, la, b, lb: _weighted(a, 1 - lb.sigmoid(), b, lb.sigmoid())
        ),
    }
    return judge(
        answer,
        _joint,
        cases,
        mistakes=mistakes,
        success="Right: exactly one softmax over both, with large scores and with an empty memory.",
    )


def _keys(stacked: Tensor, heads: int) -> Tensor:
    return split_memory_heads(stacked, heads)[0]


def _plain(query: Tensor, keys: Tensor) -> Tensor:
    return (query.unsqueeze(-2) @ keys).squeeze(-2)  # (b_s, heads, seq_len, top_k)


def _scores(query: Tensor, keys: Tensor) -> Tensor:
    return _plain(query, keys) / query.shape[-1] ** 0.5


def _topk(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    top_k: int,
    *,
    scale: float | None = None,
    fill: float = -torch.inf,
    sign: int = 1,
    before: bool = False,
) -> Tensor:
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)  # (tokens, memories)
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, (sign * scores).topk(top_k).indices, True)
    if before:
        return (scores.softmax(-1) * kept) @ value
    return scores.masked_fill(~kept, fill).softmax(-1) @ value


def _shared(query: Tensor, key: Tensor, value: Tensor, top_k: int) -> Tensor:
    best = (query[0] @ key.mT).topk(top_k).indices
    return attend(query, key[best], value[best]).output


def _best(query: Tensor, key: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    scores, ids = (query @ key.mT / query.shape[-1] ** 0.5).topk(top_k)  # (tokens, top_k) each
    return scores, ids


def _found(query: Tensor, key: Tensor, value: Tensor, top_k: int, weigh: Callable[[Tensor], Tensor]) -> Tensor:
    scores, ids = _best(query, key, top_k)
    return (weigh(scores).unsqueeze(-2) @ value[ids]).squeeze(-2)  # (tokens, value_dim)


def _joint(local: Tensor, local_logsumexp: Tensor, remote: Tensor, remote_logsumexp: Tensor) -> Tensor:
    return merge([Attended(local, local_logsumexp), Attended(remote, remote_logsumexp)]).output


def _weighted(local: Tensor, share: Tensor, remote: Tensor, remote_share: Tensor) -> Tensor:
    return share[..., None] * local + remote_share[..., None] * remote


def _two_parts(generator: torch.Generator, batch: int, heads: int, tokens: int, value_dim: int) -> tuple[Tensor, ...]:
    outputs = [torch.randn(batch, heads, tokens, value_dim, generator=generator) for _ in range(2)]
    sums = [1.0 + 2.0 * torch.rand(batch, heads, tokens, generator=generator) for _ in range(2)]
    return outputs[0], sums[0], outputs[1], sums[1]
