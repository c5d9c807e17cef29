"""Memories brought back by their ids."""

import torch

from attnlib.memory.fetch import fetch


def test_by_hand():
    keys = torch.tensor([[1.0], [2.0], [3.0]])[None, None]  # slots 0, 1, 2 hold ids 3, 4, 2
    hits = fetch(torch.tensor([10.0]).view(1, 1, 1, 1), keys, -keys, torch.tensor([4, 3, -1]).view(1, 1, 1, 3))
    assert hits.keys.flatten().tolist() == [2.0, 1.0, 0.0]
    assert hits.values.flatten().tolist() == [-2.0, -1.0, 0.0]
    assert hits.scores.flatten().tolist() == [20.0, 10.0, -torch.inf]
    assert hits.mask.flatten().tolist() == [True, True, False]


def test_ids_in_any_order_come_back_best_first_and_missing_ones_last():
    torch.manual_seed(0)
    keys, query = torch.randn(2, 3, 11, 5), torch.randn(2, 3, 7, 5)
    ids = torch.randint(-1, 11, (2, 3, 7, 4))
    hits = fetch(query, keys, keys, ids)
    assert torch.equal(hits.ids.sort(-1).values, ids.sort(-1).values)
    assert (hits.scores[..., :-1] >= hits.scores[..., 1:]).all()
    assert torch.equal(hits.mask, hits.ids >= 0)
    assert not (hits.mask[..., 1:] & ~hits.mask[..., :-1]).any()
    for row in range(2):
        for head in range(3):
            expected = keys[row, head][hits.ids[row, head]] * hits.mask[row, head][..., None]
            assert torch.equal(hits.keys[row, head], expected)


def test_the_gradient_reaches_the_query_in_any_order():
    keys = torch.randn(1, 1, 7, 5, dtype=torch.float64)
    query = torch.randn(1, 1, 3, 5, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[[[0, 3, -1], [6, 5, 4], [1, 2, -1]]]])
    finite = lambda q: fetch(q, keys, keys, ids).scores.masked_fill(fetch(q, keys, keys, ids).ids < 0, 0.0)  # noqa: E731
    assert torch.autograd.gradcheck(finite, query)
