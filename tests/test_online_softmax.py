"""OnlineSoftmax, which chunked and sharded attention share: its blocks, and gradients that add up over parts."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from attnlib._online_softmax import Blocks, OnlineSoftmax
from attnlib.attend import Attended, attend, merge


@settings(max_examples=200, deadline=None)
@given(
    q_tokens=st.integers(0, 13),
    kv_tokens=st.integers(0, 13),
    block_size=st.integers(1, 16),
    lead=st.none() | st.integers(-15, 15),
)
def test_blocks_cover_every_visible_pair_exactly_once(q_tokens, kv_tokens, block_size, lead):
    """Each visible pair of a query and a key is in exactly one block, and no hidden pair is in any."""
    query, key = torch.zeros(q_tokens, 2), torch.zeros(kv_tokens, 2)
    count = torch.zeros(q_tokens, kv_tokens, dtype=torch.int64)
    for rows, columns, mask in Blocks(1.0, block_size, lead=lead).pairs(query, key):
        assert rows.stop - rows.start <= block_size
        assert columns.stop - columns.start <= block_size
        block = count[rows, columns]
        assert lead is None or block.numel() == 0 or mask is None or mask.any()  # no block is wasted
        block += 1 if mask is None else mask
    expected = torch.ones(q_tokens, kv_tokens, dtype=torch.int64)
    if lead is not None:
        expected = expected.tril(lead)
    assert torch.equal(count, expected)


def test_mask_and_lead_combine():
    mask = torch.rand(7, 11) < 0.5
    seen = torch.zeros(7, 11, dtype=torch.bool)
    for rows, columns, block in Blocks(1.0, 3, mask, lead=2).pairs(torch.zeros(7, 2), torch.zeros(11, 2)):
        seen[rows, columns] = block
    assert torch.equal(seen, mask.tril(2))


def test_gradients_of_two_sets_of_keys_add_up():
    """One call for each set of keys: the gradients of query add up, those of key and value are concatenated."""
    torch.manual_seed(0)
    qkv = tuple(torch.randn(n, d, dtype=torch.float64, requires_grad=True) for n, d in ((7, 5), (11, 5), (11, 3)))
    query, key, value = (tensor.detach() for tensor in qkv)
    whole = attend(*qkv, scale=0.3)
    gradient = Attended(*(torch.randn_like(tensor) for tensor in whole))
    expected = torch.autograd.grad(whole, qkv, gradient)
    softmax = OnlineSoftmax.start(query, key, value)
    softmax.update(query, key, value, Blocks(0.3, 4))
    left = softmax.gradients((query, key[:4], value[:4]), gradient, Blocks(0.3, 3))
    right = softmax.gradients((query, key[4:], value[4:]), gradient, Blocks(0.3, 2))
    assert_close(left[0] + right[0], expected[0], rtol=0, atol=1e-12)
    assert_close(torch.cat([left[1], right[1]]), expected[1], rtol=0, atol=1e-12)
    assert_close(torch.cat([left[2], right[2]]), expected[2], rtol=0, atol=1e-12)


def test_updating_with_keys_in_any_pieces_equals_merging_them():
    torch.manual_seed(0)
    query, key, value = (torch.randn(n, d, dtype=torch.float64) for n, d in ((7, 5), (11, 5), (11, 3)))
    softmax = OnlineSoftmax.start(query, key, value)
    assert not softmax.attended().output.any()
    assert (softmax.attended().logsumexp == -torch.inf).all()
    pieces = []
    for piece in (slice(6, 11), slice(3, 3), slice(0, 6)):
        softmax.update(query, key[piece], value[piece], Blocks(0.3, 2))
        pieces.append(attend(query, key[piece], value[piece], scale=0.3))
        for mine, theirs in zip(softmax.attended(), merge(pieces)):
            assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_half_precision_accumulates_in_float32():
    query, key, value = (torch.ones(n, 2, dtype=torch.bfloat16) for n in (3, 700, 700))
    softmax = OnlineSoftmax.start(query, key, value)
    softmax.update(query, key, value, Blocks(1.0, 16))
    assert {tensor.dtype for tensor in (softmax.numerator, softmax.total, softmax.top)} == {torch.float32}
    logsumexp = softmax.attended().logsumexp
    assert_close(logsumexp, torch.full_like(logsumexp, 2 + math.log(700)), rtol=0, atol=1e-5)
