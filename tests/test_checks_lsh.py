"""The checks of notebook 07 pass what is right and name what is wrong."""

import pytest
import torch

from attnlib.attend import attend, merge
from attnlib.checks import check_combine_rounds, check_count_once, check_hash, check_sort_and_undo, check_visible
from attnlib.lsh import hash_buckets, lsh_attention


def by_library(vectors, directions):
    return hash_buckets(vectors[None, None], directions[None, None])[0, 0, 0]


def by_loops(buckets):
    tokens = len(buckets)
    order = sorted(range(tokens), key=lambda t: (int(buckets[t]), t))
    return torch.tensor([order, [order.index(t) for t in range(tokens)]])


def by_merging(outputs, logsumexps):
    # A single key with score z and value o has the output o and the log-sum-exp z.
    one = torch.ones(logsumexps.shape[1], 1, 1)
    parts = [attend(one, z[:, None, None], o[:, None], scale=1.0) for o, z in zip(outputs, logsumexps)]
    return merge(parts).output[:, 0]


def visible_by_loops(buckets, chunk_size):
    tokens = len(buckets)
    visible = torch.zeros(tokens, tokens, dtype=torch.bool)
    for i in range(tokens):
        mates = [j for j in range(i) if buckets[j] == buckets[i]]
        visible[i, mates[-chunk_size:]] = True
    return visible


def once_by_loops(scores, seen):
    result = torch.full(seen.shape, -torch.inf)
    for r, i, j in seen.nonzero().tolist():
        result[r, i, j] = scores[i, j] - torch.log(seen[:, i, j].sum())
    return result


RIGHT = [
    (check_hash, by_library),
    (check_sort_and_undo, by_loops),
    (check_combine_rounds, by_merging),
    (check_visible, visible_by_loops),
    (check_count_once, once_by_loops),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_another_right_answer_passes(check, answer):
    verdict = check(answer)
    assert verdict, verdict
    assert repr(verdict).startswith("✓ Right")


def test_the_prefix_rule_is_the_librarys():
    generator = torch.Generator().manual_seed(1)
    vectors, directions = torch.randn(29, 3, generator=generator), torch.randn(3, 2, generator=generator)
    weights = lsh_attention(
        vectors[None, None], torch.eye(29)[None, None], directions[None, None], chunk_size=5, is_causal=True
    )[0, 0]
    visible = visible_by_loops(by_library(vectors, directions), 5)
    alone = ~visible.any(-1)
    assert torch.equal(weights > 0, visible | torch.diag(alone))


@pytest.mark.parametrize("check", [check for check, _ in RIGHT])
def test_a_stub_is_not_yet_written(check):
    verdict = check(lambda *arguments: ...)
    assert verdict.status == "not yet"
    assert not verdict


def order_of(buckets):
    return buckets.argsort(stable=True)


def with_undo(order):
    return torch.stack([order, order.argsort()])


def gap_of(buckets):
    place = order_of(buckets).argsort()
    return place[:, None] - place


def same(buckets):
    return buckets[:, None] == buckets


def chunk_rule(buckets, chunk_size):
    chunk = order_of(buckets).argsort() // chunk_size
    near = chunk[:, None] - chunk
    return same(buckets) & (gap_of(buckets) > 0) & (near <= 1)


def own_chunk(buckets, chunk_size):
    chunk = order_of(buckets).argsort() // chunk_size
    return chunk[:, None] == chunk


def one_maximum(logsumexps):
    exponentials = (logsumexps - logsumexps.max()).exp()
    return exponentials / exponentials.sum(0)


def first_round_only(scores, seen):
    result = torch.full(seen.shape, -torch.inf)
    for i, j in seen.any(0).nonzero().tolist():
        result[int(seen[:, i, j].int().argmax()), i, j] = scores[i, j]
    return result


def hide(scores, seen):
    return scores.masked_fill(~seen, -torch.inf)


WRONG = [
    (check_hash, lambda x, r: (x @ r).argmax(-1), "Only the directions are compared"),
    (check_hash, lambda x, r: (x @ r).abs().argmax(-1), "share a bucket here"),
    (check_hash, lambda x, r: torch.cat([-x @ r, x @ r], -1).argmax(-1), "Every bucket is that of the opposite"),
    (check_hash, lambda x, r: torch.stack([x @ r, -x @ r], -1).flatten(1).argmax(-1), "are neighbours here"),
    (check_hash, lambda x, r: torch.cat([x @ r, -x @ r], -1).argmin(-1), "join the directions first"),
    (check_hash, lambda x, r: torch.cat([x @ r, -x @ r], -1).argmax(0), "runs over the tokens"),
    (check_hash, lambda x, r: torch.cat([x @ r, -x @ r], -1).max(-1).values, "how long the largest projection"),
    (
        check_hash,
        lambda x, r: ((x @ r) > 0).long() @ torch.tensor([1, 2, 4, 8])[: r.shape[1]],
        "read as a binary number",
    ),
    (check_hash, lambda x, r: by_library(x, torch.nn.functional.normalize(r, dim=0)), "brought to length 1"),
    (check_hash, lambda x, r: torch.cat([x @ r, -x @ r], 0).argmax(-1), "should return the shape"),
    (check_sort_and_undo, lambda b: torch.stack([order_of(b), order_of(b)]), "is the order once more"),
    (check_sort_and_undo, lambda b: with_undo(order_of(b)).flip(0), "The rows are swapped"),
    (check_sort_and_undo, lambda b: torch.stack([order_of(b), order_of(b).flip(0)]), "backwards is no undo"),
    (
        check_sort_and_undo,
        lambda b: with_undo((b * len(b) - torch.arange(len(b))).argsort()),
        "later tokens come first",
    ),
    (check_sort_and_undo, lambda b: with_undo((b + torch.arange(len(b))).argsort(stable=True)), "must outweigh every"),
    (check_sort_and_undo, lambda b: with_undo(torch.arange(len(b))), "The position outweighs the bucket"),
    (check_sort_and_undo, lambda b: with_undo(b.argsort(descending=True, stable=True)), "largest bucket comes first"),
    (
        check_sort_and_undo,
        lambda b: with_undo((b * len(b) + torch.arange(len(b))).sort()[0]),
        "These are the sorted tickets",
    ),
    (check_sort_and_undo, lambda b: torch.stack([b.sort()[0], order_of(b).argsort()]), "holds the sorted buckets"),
    (check_sort_and_undo, lambda b: torch.stack([*b.sort(stable=True)]), "That is what sort returns"),
    (
        check_sort_and_undo,
        lambda b: with_undo((b * (int(b.max()) + 1) + torch.arange(len(b))).argsort(stable=True)),
        "multiplied by the number of buckets",
    ),
    (check_sort_and_undo, order_of, "Only one row came"),
    (check_combine_rounds, lambda o, z: o.mean(0), "plain mean"),
    (check_combine_rounds, lambda o, z: o.sum(0), "sum of the rounds"),
    (check_combine_rounds, lambda o, z: torch.einsum("rtd,rt->td", o, z / z.sum(0)), "are logarithms"),
    (check_combine_rounds, lambda o, z: torch.einsum("rtd,rt->td", o, z.exp()), "do not sum to one"),
    (check_combine_rounds, lambda o, z: torch.einsum("rtd,rt->td", o, z.softmax(-1)), "runs over the tokens"),
    (check_combine_rounds, lambda o, z: o[z.argmax(0), torch.arange(o.shape[1])], "Only the heaviest round"),
    (check_combine_rounds, lambda o, z: torch.einsum("rtd,rt->td", o, (-z).softmax(0)), "The sign is turned"),
    (check_combine_rounds, lambda o, z: torch.einsum("rtd,rt->td", o, z.log_softmax(0)), "A log of the weights"),
    (
        check_combine_rounds,
        lambda o, z: torch.einsum("rtd,rt->td", o, z.exp() / z.exp().sum(0)),
        "exponentials overflow",
    ),
    (check_combine_rounds, lambda o, z: torch.einsum("rtd,rt->td", o, one_maximum(z)), "One maximum is subtracted"),
    (check_combine_rounds, lambda o, z: (z.softmax(0)[..., None] * o).mean(0), "averaged once more"),
    (
        check_combine_rounds,
        lambda o, z: torch.einsum("rtd,rt->td", o, z.exp() / z.exp().sum()),
        "runs over rounds and tokens together",
    ),
    (check_combine_rounds, lambda o, z: (z.log().softmax(0)[..., None] * o).sum(0), "returns NaN"),
    (check_visible, lambda b, c: same(b) & (torch.arange(len(b))[:, None] - torch.arange(len(b)) >= 1), "whole bucket"),
    (
        check_visible,
        lambda b, c: same(b) & torch.ones(len(b), len(b)).tril(-1).bool() & torch.ones(len(b), len(b)).triu(-c).bool(),
        "those in the text",
    ),
    (check_visible, chunk_rule, "That is the chunk rule"),
    (check_visible, lambda b, c: same(b) & (gap_of(b) >= 0) & (gap_of(b) <= c), "A token sees itself"),
    (check_visible, lambda b, c: same(b) & (gap_of(b) > 0) & (gap_of(b) < c), "One place is missing"),
    (check_visible, lambda b, c: (gap_of(b) > 0) & (gap_of(b) <= c), "Other buckets are seen"),
    (check_visible, lambda b, c: same(b) & (gap_of(b) < 0) & (gap_of(b) >= -c), "Rows and columns are swapped"),
    (check_visible, lambda b, c: same(b) & (gap_of(b) != 0) & (gap_of(b).abs() <= c), "looks both ways"),
    (
        check_visible,
        lambda b, c: same(b) & (order_of(b)[:, None] > order_of(b)) & (order_of(b)[:, None] - order_of(b) <= c),
        "order is used where the undo belongs",
    ),
    (check_visible, lambda b, c: same(b) & (gap_of(b).abs() <= c), "looks both ways, and at itself"),
    (check_visible, lambda b, c: same(b).tril(), "whole bucket is seen, and the token itself"),
    (check_visible, lambda b, c: chunk_rule(b, c) & own_chunk(b, c), "Only the own chunk"),
    (check_visible, lambda b, c: ~visible_by_loops(b, c), "where a token must not look"),
    (
        check_visible,
        lambda b, c: torch.where(
            visible_by_loops(b, c).any(-1)[:, None], visible_by_loops(b, c), torch.eye(len(b)) > 0
        ),
        "sees nothing sees itself",
    ),
    (check_count_once, lambda s, m: hide(s.expand(m.shape), m), "Nothing is taken off"),
    (check_count_once, lambda s, m: hide(s - m.sum(0), m), "Take off the logarithm of N"),
    (check_count_once, lambda s, m: hide(s + m.sum(0).log(), m), "The sign is turned"),
    (check_count_once, lambda s, m: hide(s - torch.log(torch.tensor(len(m))), m), "divided by the number of rounds"),
    (check_count_once, lambda s, m: hide(s / m.sum(0), m), "The score itself is divided"),
    (check_count_once, lambda s, m: torch.where(m, s - m.sum(0).log(), 0.0), "must be −inf"),
    (check_count_once, lambda s, m: (s - m.sum(0).log()).expand(m.shape), "hide with the mask of the round"),
    (check_count_once, lambda s, m: hide(s - m.sum(-1, keepdim=True).log(), m), "counted over the keys"),
    (check_count_once, lambda s, m: hide(s - m.sum(1, keepdim=True).log(), m), "counted over the queries"),
    (
        check_count_once,
        lambda s, m: (s - torch.log(m.sum(0).clamp(min=1))).repeat(len(m), 1, 1),
        "Nothing is hidden",
    ),
    (check_count_once, lambda s, m: hide(s - m.sum(0).log(), ~m), "mask is turned round"),
    (check_count_once, lambda s, m: first_round_only(s, m), "in one round alone"),
    (check_count_once, lambda s, m: once_by_loops(s, m).softmax(-1), "softmax is taken already"),
]


@pytest.mark.parametrize(("check", "answer", "sentence"), WRONG, ids=[row[2] for row in WRONG])
def test_typical_mistakes_are_named(check, answer, sentence):
    verdict = check(answer)
    assert verdict.status == "failed"
    assert sentence in verdict.message
