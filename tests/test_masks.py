"""Masks: True where a query may attend."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.bias import causal_lower_right
from torch.testing import assert_close

from attnlib.attend import attention
from attnlib.masks import causal_mask, padding_mask, sliding_window_mask


def test_causal_mask_by_hand():
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert causal_mask(2, 3).tolist() == [[True, False, False], [True, True, False]]
    assert causal_mask(3, 2).tolist() == [[True, False], [True, True], [True, True]]
    assert causal_mask(3).dtype == torch.bool


def test_causal_mask_of_no_tokens_and_on_a_device():
    assert causal_mask(0).shape == (0, 0)
    assert causal_mask(0, 5).shape == (0, 5)
    assert causal_mask(5, 0).shape == (5, 0)
    assert causal_mask(3, device="meta").device.type == "meta"


def test_lower_right_by_hand():
    assert causal_mask(2, 3, align="lower_right").tolist() == [[True, True, False], [True, True, True]]
    assert causal_mask(3, 2, align="lower_right").tolist() == [[False, False], [True, False], [True, True]]
    assert causal_mask(1, 5, align="lower_right").all()  # one new token with a cache sees every key
    assert causal_mask(1, 5).tolist() == [[True, False, False, False, False]]


def test_both_alignments_equal_torch():
    query, key, value = (torch.randn(2, 3, n, 5, dtype=torch.float64) for n in (4, 7, 7))
    want = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert_close(attention(query, key, value, causal_mask(4, 7)), want)
    want = F.scaled_dot_product_attention(query, key, value, causal_lower_right(4, 7))
    assert_close(attention(query, key, value, causal_mask(4, 7, align="lower_right")), want)


def test_sliding_window_by_hand():
    """Token 4 with a window of 3 sees 2, 3 and itself, and with one sink also 0."""
    assert sliding_window_mask(1, 5, 3).tolist() == [[False, False, True, True, True]]
    assert sliding_window_mask(1, 5, 3, sinks=1).tolist() == [[True, False, True, True, True]]
    assert torch.equal(sliding_window_mask(5, 5, 1), torch.eye(5, dtype=torch.bool))
    assert sliding_window_mask(2, 2, 1, sinks=2).tolist() == [[True, False], [True, True]]  # sinks are causal too
    assert sliding_window_mask(3, 5, 2, device="meta").device.type == "meta"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 7), st.integers(0, 7), st.integers(1, 9), st.integers(0, 9))
def test_sliding_window_equals_the_loops(q_tokens, kv_tokens, window, sinks):
    got = sliding_window_mask(q_tokens, kv_tokens, window, sinks=sinks)
    assert got.shape == (q_tokens, kv_tokens)
    for i in range(q_tokens):
        position = kv_tokens - q_tokens + i
        for j in range(kv_tokens):
            assert got[i, j] == (j <= position and (position - j < window or j < sinks))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 7), st.integers(0, 7), st.integers(1, 9))
def test_a_window_is_part_of_the_causal_mask_and_grows_into_it(q_tokens, kv_tokens, window):
    past = causal_mask(q_tokens, kv_tokens, align="lower_right")
    seen = sliding_window_mask(q_tokens, kv_tokens, window)
    assert torch.equal(seen & past, seen)
    assert torch.equal(sliding_window_mask(q_tokens, kv_tokens, max(kv_tokens, 1)), past)
    assert torch.equal(sliding_window_mask(q_tokens, kv_tokens, 1, sinks=kv_tokens), past)
    assert torch.equal(
        sliding_window_mask(q_tokens + 1, q_tokens + 1, window), causal_mask(q_tokens + 1).triu(1 - window)
    )


def test_masks_compose_with_and():
    real = padding_mask(torch.tensor([5, 3]), 5)[:, None, None, :]  # (batch, 1, 1, kv_tokens)
    both = real & sliding_window_mask(2, 5, 2, sinks=1)
    assert both.shape == (2, 1, 2, 5)
    assert both[1, 0].tolist() == [[True, False, True, False, False], [True, False, False, False, False]]


def test_padding_mask_by_hand():
    assert padding_mask(torch.tensor([2, 0, 3]), 3).tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert padding_mask(torch.tensor([], dtype=torch.int64), 5).shape == (0, 5)
    assert padding_mask(torch.tensor([0]), 0).shape == (1, 0)
    assert padding_mask(torch.empty(0, dtype=torch.int64, device="meta"), 5).device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16, torch.int32, torch.uint64])
def test_lengths_of_any_integer_dtype(dtype):
    assert padding_mask(torch.tensor([1, 100], dtype=dtype), 300).sum(-1).tolist() == [1, 100]


def test_padding_mask_where_lengths_cannot_be_read():
    """Under compile, export and vmap, and on meta."""
    lengths = torch.tensor([[2, 0], [5, 3]])
    want = padding_mask(lengths.flatten(), 5).unflatten(0, (2, 2))
    assert torch.equal(torch.vmap(lambda row: padding_mask(row, 5))(lengths), want)
    for backend in ("eager", "aot_eager"):
        compiled = torch.compile(padding_mask, backend=backend, fullgraph=True)
        assert torch.equal(compiled(lengths[1], 5), want[1])
    assert padding_mask(lengths[1].to("meta"), 5).shape == (2, 5)

    class Padded(torch.nn.Module):
        def forward(self, lengths, x):
            return padding_mask(lengths, x.shape[1])

    sizes = ({0: torch.export.Dim("batch")}, {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")})
    exported = torch.export.export(Padded(), (lengths[1], torch.zeros(2, 7)), dynamic_shapes=sizes).module()
    assert torch.equal(exported(lengths.flatten(), torch.zeros(4, 5)), want.flatten(0, 1))


def test_errors():
    with pytest.raises(TypeError, match="q_tokens must be an int; got float"):
        causal_mask(3.0)
    with pytest.raises(ValueError, match="kv_tokens must be at least 0; got -1"):
        causal_mask(3, -1)
    with pytest.raises(ValueError, match="align must be .upper_left. or .lower_right.; got 'right'"):
        causal_mask(3, align="right")
    with pytest.raises(ValueError, match="window must be at least 1; got 0"):
        sliding_window_mask(3, 5, 0)
    with pytest.raises(ValueError, match="sinks must be at least 0; got -1"):
        sliding_window_mask(3, 5, 2, sinks=-1)
    with pytest.raises(TypeError, match="kv_tokens must be an int; got NoneType"):
        sliding_window_mask(3, None, 2)
    with pytest.raises(TypeError, match="num_tokens must be an int; got bool"):
        padding_mask(torch.tensor([1]), True)
    with pytest.raises(TypeError, match="lengths must be an integer tensor; got torch.float32"):
        padding_mask(torch.tensor([1.0]), 3)
    with pytest.raises(TypeError, match="lengths must be an integer tensor; got torch.complex64"):
        padding_mask(torch.tensor([1 + 0j]), 3)
    with pytest.raises(TypeError, match="lengths must be an integer tensor; got torch.bool"):
        padding_mask(torch.tensor([True]), 3)
    with pytest.raises(TypeError, match="lengths must be an integer tensor; got list"):
        padding_mask([1], 3)
    with pytest.raises(ValueError, match=r"lengths must have shape \(batch\); got \(1, 2\)"):
        padding_mask(torch.tensor([[1, 2]]), 3)
    with pytest.raises(ValueError, match=r"lengths must lie between 0 and num_tokens=3; got \[1, 4\]"):
        padding_mask(torch.tensor([1, 4]), 3)
    with pytest.raises(ValueError, match=r"lengths must lie between 0 and num_tokens=3; got \[-1\]"):
        padding_mask(torch.tensor([-1]), 3)
