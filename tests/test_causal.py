"""CausalAttention: no token sees a later one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from attnlib.self_attention import CausalAttention
from oracle import attend_by_loops

D_IN, D_OUT, TOKENS, BATCH, CONTEXT = 5, 3, 7, 2, 11


def module(**options):
    torch.manual_seed(0)
    return CausalAttention(D_IN, D_OUT, CONTEXT, **options).double()


def tokens(*shape, **options):
    return torch.randn(*(shape or (BATCH, TOKENS, D_IN)), dtype=torch.float64, **options)


# By hand


def test_the_first_token_sees_itself_alone_and_equal_keys_share_evenly():
    attention = module()
    x = tokens()
    assert_close(attention(x)[:, 0], attention.W_value(x)[:, 0])
    nn.init.zeros_(attention.W_query.weight)
    share = torch.tensor([[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    assert_close(attention.attention_weights(x[0, :3]), share)


# Against others


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_equals_the_loops_forward_and_backward(qkv_bias):
    attention, x = module(qkv_bias=qkv_bias), tokens(requires_grad=True)
    mask = torch.tensor([[j <= i for j in range(TOKENS)] for i in range(TOKENS)])
    want, _ = attend_by_loops(attention.W_query(x), attention.W_key(x), attention.W_value(x), mask)
    got = attention(x)
    assert_close(got, want)
    assert_close(attention.attention_weights(x) @ attention.W_value(x), want)
    inputs = [x, *attention.parameters()]
    want = torch.autograd.grad(want.square().sum(), inputs)
    assert_close(torch.autograd.grad(got.square().sum(), inputs), want)


def test_the_seed_gives_the_draws_of_the_walk_throughs_and_no_mask_is_stored():
    torch.manual_seed(123)
    linears = [nn.Linear(D_IN, D_OUT, bias=False) for _ in range(3)]
    torch.manual_seed(123)
    attention = CausalAttention(D_IN, D_OUT, 1_000_000)
    for ours, theirs in zip((attention.W_query, attention.W_key, attention.W_value), linears):
        assert torch.equal(ours.weight, theirs.weight)
    assert list(attention.state_dict()) == ["W_query.weight", "W_key.weight", "W_value.weight"]
    assert not list(attention.buffers())


# Properties


@settings(max_examples=20, deadline=None)
@given(st.integers(1, TOKENS - 1), st.integers(0, 1_000))
def test_the_future_changes_nothing_before_it(cut, seed):
    attention, x = module(), tokens()
    changed = x.clone()
    changed[:, cut:] = torch.randn(changed[:, cut:].shape, generator=torch.Generator().manual_seed(seed)).double() * 9
    assert torch.equal(attention(x)[:, :cut], attention(changed)[:, :cut])
    assert not torch.allclose(attention(x)[:, cut:], attention(changed)[:, cut:])
    assert_close(attention(x[:, :cut]), attention(x)[:, :cut])


def test_weights_are_zero_above_the_diagonal_and_sum_to_one():
    weights = module(dropout=0.5).attention_weights(tokens())
    assert not weights.triu(1).any()
    assert_close(weights.sum(-1), torch.ones(BATCH, TOKENS, dtype=torch.float64))


def test_dropout_acts_in_training_only():
    attention, x = module(dropout=0.5), tokens()
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))
    assert_close(attention(x), module(dropout=0.0)(x))
    attention.train()
    mean = attention(x.repeat(4_000, 1, 1)).unflatten(0, (4_000, BATCH)).mean(0)
    assert_close(mean, attention.eval()(x), atol=0.08, rtol=0)  # the factor 1 / (1 − p) keeps the mean


@pytest.mark.parametrize(
    "shape", [(TOKENS, D_IN), (1, D_IN), (0, D_IN), (BATCH, 0, D_IN), (0, TOKENS, D_IN), (CONTEXT, D_IN)]
)
def test_any_number_of_tokens_and_rows(shape):
    x = tokens(*shape, requires_grad=True)
    output = module()(x)
    assert output.shape == (*shape[:-1], D_OUT)
    assert module().attention_weights(x).shape == (*shape[:-1], shape[-2])
    output.sum().backward()


def test_on_a_device_without_autocast():
    attention, x = module().to("meta"), tokens().to("meta")
    assert attention(x).shape == (BATCH, TOKENS, D_OUT)
    assert attention.attention_weights(x).shape == (BATCH, TOKENS, TOKENS)


# Errors


@pytest.mark.parametrize("method", ["forward", "attention_weights"])
def test_errors(method):
    call = getattr(module(), method)
    with pytest.raises(ValueError, match="x must have at most context_length=11 tokens; got 12"):
        call(tokens(BATCH, 12, D_IN))
    with pytest.raises(ValueError, match=r"x must have shape \(batch, tokens, d_in=5\) or .*; got \(2, 7, 3\)"):
        call(tokens(BATCH, TOKENS, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 3, 11), ValueError, "d_in must be at least 1; got 0"),
        ((5, -1, 11), ValueError, "d_out must be at least 1; got -1"),
        ((5, 3, 0), ValueError, "context_length must be at least 1; got 0"),
        ((5, 3, 11.0), TypeError, "context_length must be an int; got float"),
        ((5, 3, 11, 1.5), ValueError, "dropout must lie between 0 and 1; got 1.5"),
        ((5, 3, 11, "x"), TypeError, "dropout must be a number; got str"),
    ],
)
def test_errors_of_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        CausalAttention(*arguments)
