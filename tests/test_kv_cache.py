"""The cache of keys and values: what it holds, where each token was, and what a window drops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlib.kv_cache import KVCache

BATCH, HEADS, HEAD_DIM, VALUE_DIM = 2, 3, 5, 7


def numbered(first, tokens, batch=BATCH):
    """Keys and values that hold the number of their column."""
    columns = torch.arange(first, first + tokens, dtype=torch.float32)[:, None]
    return columns.expand(batch, HEADS, -1, HEAD_DIM), -columns.expand(batch, HEADS, -1, VALUE_DIM)


def columns(cache):
    """The columns held in each row, read from the keys; the values must agree."""
    key, value = cache.key, cache.value
    assert key.shape == (*key.shape[:2], len(cache), HEAD_DIM)
    assert value.shape == (*key.shape[:2], len(cache), VALUE_DIM)
    assert torch.equal(key[:, :1, :, :1].expand_as(key), key)
    assert torch.equal(-key[:, :1, :, :1].expand_as(value), value)
    return key[:, 0, :, 0].long()


def test_tokens_are_kept_in_order_with_their_positions():
    cache, first = KVCache(), 0
    assert (len(cache), cache.nbytes) == (0, 0)
    for tokens in (3, 1, 0, 40, 1):
        cache.append(*numbered(first, tokens))
        first += tokens
        assert columns(cache).tolist() == cache.positions.tolist() == [list(range(first))] * BATCH
        assert cache.lengths.tolist() == [first] * BATCH
        assert len(cache) == first
    assert cache.nbytes == BATCH * HEADS * 45 * (HEAD_DIM + VALUE_DIM) * 4


def test_a_window_keeps_positions_and_sinks():
    cache, held = KVCache(window=3, sinks=2), []
    for token in range(8):
        cache.append(*numbered(token, 1))
        held.append(columns(cache)[0].tolist())
        assert cache.positions[0].tolist() == held[-1]
        assert cache.lengths.tolist() == [token + 1] * BATCH
    assert held[4:] == [[0, 1, 2, 3, 4], [0, 1, 3, 4, 5], [0, 1, 4, 5, 6], [0, 1, 5, 6, 7]]


def test_a_window_keeps_memory_constant():
    cache, sizes, moves = KVCache(window=11, sinks=3), set(), 0
    for token in range(500):
        room = cache._key
        cache.append(*numbered(token, 1))
        moves += cache._key is not room
        if token > 40:
            sizes.add((cache.nbytes, cache._key.untyped_storage().nbytes()))
    assert sizes == {(BATCH * HEADS * 14 * (HEAD_DIM + VALUE_DIM) * 4, BATCH * HEADS * (14 + 16) * HEAD_DIM * 4)}
    assert moves <= 500 / 16 + 2  # all that is held is copied only when the room is full


def test_reserved_room_is_a_quarter_at_most():
    cache = KVCache()
    for token in range(300):
        cache.append(*numbered(token, 1))
        assert cache._key.shape[2] <= max(1.25 * len(cache), len(cache) + 16)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), window=st.integers(1, 4), sinks=st.integers(0, 3))
def test_with_padding_each_row_keeps_what_its_next_query_may_see(data, window, sinks):
    """The sinks, the last window − 1 real tokens before the append, and all that it brought."""
    cache = KVCache(window=window, sinks=sinks)
    real = [[], []]  # the columns of each row that hold real tokens
    first = 0
    for tokens in data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6)):
        before = [list(row) for row in real]
        mask = torch.tensor(
            [[data.draw(st.booleans()) for _ in range(tokens)] for _ in range(BATCH)], dtype=torch.bool
        ).view(BATCH, tokens)
        for row in range(BATCH):
            real[row] += [first + j for j in range(tokens) if mask[row, j]]
        cache.append(*numbered(first, tokens), mask)
        first += tokens
        assert len(cache) <= window - 1 + sinks + tokens
        assert cache.lengths.tolist() == [len(row) for row in real]
        for row in range(BATCH):
            seen = cache.positions[row] >= 0
            got = dict(zip(cache.positions[row, seen].tolist(), columns(cache)[row, seen].tolist()))
            assert list(got) == sorted(got)
            assert all(real[row][position] == column for position, column in got.items())
            needed = set(range(len(real[row]))) - set(range(sinks, len(before[row]) - window + 1))
            assert needed <= set(got)


def test_selected_rows_are_reordered_repeated_and_independent():
    cache = KVCache()
    key, value = numbered(0, 3)
    cache.append(
        key + torch.tensor([0, 100])[:, None, None, None], value, torch.tensor([[False, True, True], [True] * 3])
    )
    beams = cache.select_rows(torch.tensor([1, 0, 1]))
    assert beams.key[:, 0, :, 0].tolist() == [[100, 101, 102], [0, 1, 2], [100, 101, 102]]
    assert beams.positions.tolist() == [[0, 1, 2], [-1, 0, 1], [0, 1, 2]]
    assert beams.lengths.tolist() == [3, 2, 3]
    beams.append(*numbered(9, 1, batch=3))
    assert (len(beams), len(cache)) == (4, 3)
    assert beams.positions[:, 3].tolist() == [3, 2, 3]
    cache._key.zero_()
    assert beams.key[0, 0, :, 0].tolist() == [100, 101, 102, 9]


def test_what_is_stored_has_no_gradient_and_is_a_copy():
    key = torch.zeros(BATCH, HEADS, 2, HEAD_DIM, requires_grad=True)
    value = torch.zeros(BATCH, HEADS, 2, VALUE_DIM)
    cache = KVCache()
    cache.append(key, value)
    value.fill_(1.0)
    assert not cache.key.requires_grad
    assert not cache.value.any()


def test_padding_is_stored_as_zeros():
    cache, real = KVCache(), torch.tensor([[True, False], [False, True]])
    key = torch.ones(BATCH, HEADS, 2, HEAD_DIM).masked_fill(~real[:, None, :, None], torch.nan)
    cache.append(key, key, real)
    for stored in (cache.key, cache.value):
        assert torch.equal(stored, real[:, None, :, None].float().expand_as(stored))


def test_the_first_append_decides_the_dtype():
    cache = KVCache()
    key, value = numbered(0, 2)
    cache.append(key.bfloat16(), value.bfloat16())
    cache.append(*numbered(2, 1))
    assert cache.key.dtype == cache.value.dtype == torch.bfloat16
    assert cache.nbytes == BATCH * HEADS * 3 * (HEAD_DIM + VALUE_DIM) * 2


def test_errors_leave_the_cache_as_it_was():
    cache = KVCache()
    cache.append(*numbered(0, 2))
    key, value = numbered(2, 1)
    for bad_key, bad_value, message in (
        (
            key[:1],
            value[:1],
            r"key must have shape \(batch=2, num_kv_heads=3, tokens, head_dim=5\); got \(1, 3, 1, 5\)",
        ),
        (key[:, :1], value[:, :1], r"key must have shape .*num_kv_heads=3.*; got \(2, 1, 1, 5\)"),
        (value, value, r"key must have shape .*head_dim=5.*; got \(2, 3, 1, 7\)"),
        (key, key, r"value must have shape .*value_dim=7.*; got \(2, 3, 1, 5\)"),
        (key, value[:, :, :0], r"value must have shape .*tokens=1.*; got \(2, 3, 0, 7\)"),
        (key.to("meta"), value, "key must be on the device of the cache, cpu; got meta"),
    ):
        with pytest.raises(ValueError, match=message):
            cache.append(bad_key, bad_value)
    with pytest.raises(TypeError, match="value must be a torch.Tensor; got NoneType"):
        cache.append(key, None)
    with pytest.raises(TypeError, match="key_mask must be a boolean tensor, True = real token; got torch.int64"):
        cache.append(key, value, torch.ones(BATCH, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"key_mask must have shape \(batch=2, tokens=1\); got \(2, 2\)"):
        cache.append(key, value, torch.ones(BATCH, 2, dtype=torch.bool))
    assert columns(cache).tolist() == [[0, 1]] * BATCH


def test_errors():
    with pytest.raises(ValueError, match="window must be at least 1; got 0"):
        KVCache(window=0)
    with pytest.raises(ValueError, match="sinks need a window, .*; got sinks=2"):
        KVCache(sinks=2)
    with pytest.raises(TypeError, match="sinks must be an int; got float"):
        KVCache(window=2, sinks=1.0)
    with pytest.raises(TypeError, match="rows must be an int64 tensor; got list"):
        KVCache().select_rows([0])
    with pytest.raises(TypeError, match="rows must be an int64 tensor; got torch.bool"):
        KVCache().select_rows(torch.tensor([True]))
    with pytest.raises(ValueError, match=r"rows must have shape \(batch\); got \(1, 1\)"):
        KVCache().select_rows(torch.tensor([[0]]))
