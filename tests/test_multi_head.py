"""Multi-head attention: the wrapper, the split, and the way to PyTorch's module and back."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from attnlib.attend import attend
from attnlib.multi_head import MultiHeadAttention, MultiHeadAttentionWrapper, join_heads, split_heads
from attnlib.self_attention import CausalAttention
from largest_tensor import LargestTensor
from oracle import attend_by_loops

D_IN, HEADS, HEAD_DIM, TOKENS, BATCH, CONTEXT = 5, 3, 7, 11, 2, 13
D_OUT = HEADS * HEAD_DIM


def module(**options):
    torch.manual_seed(0)
    return MultiHeadAttention(D_IN, D_OUT, CONTEXT, options.pop("dropout", 0.0), HEADS, **options).double()


def wrapper(**options):
    torch.manual_seed(0)
    return MultiHeadAttentionWrapper(D_IN, HEAD_DIM, CONTEXT, HEADS, options.pop("dropout", 0.0), **options).double()


def tokens(*shape, **options):
    return torch.randn(*(shape or (BATCH, TOKENS, D_IN)), dtype=torch.float64, **options)


# By hand


def test_split_heads_of_counted_numbers():
    """Token 0 holds 0 … 5, token 1 holds 6 … 11: head 0 gets the first three of each, head 1 the last three."""
    x = torch.arange(12.0).reshape(1, 2, 6)
    assert split_heads(x, 2).tolist() == [[[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9, 10, 11]]]]
    assert join_heads(split_heads(x, 2)).tolist() == x.tolist()


def test_the_wrappers_shape_is_the_heads_times_d_out():
    assert MultiHeadAttentionWrapper(3, 2, 6, 2)(torch.rand(2, 6, 3)).shape == (2, 6, 4)
    assert MultiHeadAttentionWrapper(3, 1, 6, 2)(torch.rand(2, 6, 3)).shape == (2, 6, 2)
    assert MultiHeadAttentionWrapper(3, 2, 6, 2).heads[0].dropout.p == 0.1


def test_the_first_token_gets_its_own_value_projected():
    attention, x = module(), tokens()
    assert_close(attention(x)[:, 0], attention.out_proj(attention.W_value(x))[:, 0])


# Against others


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_equals_the_loops_forward_and_backward(qkv_bias):
    attention, x = module(qkv_bias=qkv_bias), tokens(requires_grad=True)
    mask = torch.tensor([[j <= i for j in range(TOKENS)] for i in range(TOKENS)])
    projected = [linear(x) for linear in (attention.W_query, attention.W_key, attention.W_value)]
    slices = [slice(h * HEAD_DIM, (h + 1) * HEAD_DIM) for h in range(HEADS)]
    heads = [attend_by_loops(*(p[..., columns] for p in projected), mask)[0] for columns in slices]
    want, got = attention.out_proj(torch.cat(heads, dim=-1)), attention(x)
    assert_close(got, want)
    values = split_heads(attention.W_value(x), HEADS)
    assert_close(attention.out_proj(join_heads(attention.attention_weights(x) @ values)), want)
    inputs = [x, *attention.parameters()]
    want = torch.autograd.grad(want.square().sum(), inputs)
    assert_close(torch.autograd.grad(got.square().sum(), inputs), want)


def test_wrapper_and_split_are_equal_when_weights_are_copied():
    split, wrapped, x = module(), wrapper(), tokens()
    with torch.no_grad():
        for name in ("W_query", "W_key", "W_value"):
            getattr(split, name).weight.copy_(torch.cat([getattr(head, name).weight for head in wrapped.heads]))
        split.out_proj.weight.copy_(torch.eye(D_OUT))
        split.out_proj.bias.zero_()
    assert_close(split(x), wrapped(x))
    assert_close(split.attention_weights(x), wrapped.attention_weights(x))
    assert_close(wrapped(x), torch.cat([head(x) for head in wrapped.heads], dim=-1))


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_equals_nn_multihead_attention(bias, batch_first, is_causal):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(D_OUT, HEADS, bias=bias, batch_first=batch_first).double()
    if bias:
        nn.init.normal_(theirs.in_proj_bias)
        nn.init.normal_(theirs.out_proj.bias)
    ours = MultiHeadAttention.from_torch(theirs, is_causal=is_causal)
    x = tokens(BATCH, TOKENS, D_OUT, requires_grad=True)
    long = torch.empty(1, 5_000, D_OUT, dtype=torch.float64, device="meta")
    assert copy.deepcopy(ours).to("meta")(long).shape == long.shape  # no limit, as in the original
    hide = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1) if is_causal else None
    turned = x if batch_first else x.transpose(0, 1)
    want, weights = theirs(turned, turned, turned, attn_mask=hide, average_attn_weights=False)
    want = want if batch_first else want.transpose(0, 1)
    assert_close(ours(x), want)
    assert_close(ours.attention_weights(x), weights)
    (want,) = torch.autograd.grad(want.square().sum(), x)
    assert_close(torch.autograd.grad(ours(x).square().sum(), x), (want,))


def test_padding_means_what_it_means_in_nn_multihead_attention():
    """There True means padding."""
    theirs = nn.MultiheadAttention(D_OUT, HEADS, batch_first=True).double()
    ours, x = MultiHeadAttention.from_torch(theirs, is_causal=False), tokens(BATCH, TOKENS, D_OUT)
    real = torch.arange(TOKENS) < torch.tensor([[TOKENS], [4]])
    assert_close(ours(x, real)[real], theirs(x, x, x, key_padding_mask=~real, need_weights=False)[0][real])


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [("in_proj",), ("out_proj",), ("in_proj", "out_proj"), ("bias",), ()])
def test_copies_are_frozen_where_the_original_is(bias, frozen, mode):
    theirs = nn.MultiheadAttention(D_OUT, HEADS, bias=bias, batch_first=True)
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_(not any(word in name for word in frozen))
    with mode():
        ours = MultiHeadAttention.from_torch(theirs)
        again = dict(ours.to_torch().named_parameters())
    for linear in (ours.W_query, ours.W_key, ours.W_value):
        assert linear.weight.requires_grad == theirs.in_proj_weight.requires_grad
        assert not bias or linear.bias.requires_grad == theirs.in_proj_bias.requires_grad
    assert ours.out_proj.weight.requires_grad == theirs.out_proj.weight.requires_grad
    for name, parameter in theirs.named_parameters():
        assert parameter.requires_grad == again[name].requires_grad, name
    if frozen == ("in_proj", "out_proj"):
        assert not any(parameter.requires_grad for parameter in (*ours.parameters(), *again.values()))


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_to_torch_is_the_way_back(qkv_bias):
    torch.manual_seed(0)
    ours = MultiHeadAttention(D_OUT, D_OUT, CONTEXT, 0.25, HEADS, qkv_bias).double().eval()
    theirs, x = ours.to_torch(), tokens(BATCH, TOKENS, D_OUT)
    hide = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    assert_close(theirs(x, x, x, attn_mask=hide, need_weights=False)[0], ours(x))
    again = MultiHeadAttention.from_torch(theirs, context_length=TOKENS)
    assert_close(again(x), ours(x))
    assert (theirs.dropout, again.dropout.p, again.context_length, again.training) == (0.25, 0.25, TOKENS, False)
    with torch.no_grad():
        again.W_query.weight.zero_()
        again.out_proj.bias.add_(1)
    assert_close(theirs(x, x, x, attn_mask=hide, need_weights=False)[0], ours(x))


def test_the_seed_gives_the_draws_of_the_walk_throughs_and_no_mask_is_stored():
    torch.manual_seed(123)
    linears = [nn.Linear(D_IN, D_OUT, bias=False) for _ in range(3)] + [nn.Linear(D_OUT, D_OUT)]
    torch.manual_seed(123)
    ours = MultiHeadAttention(D_IN, D_OUT, 1_000_000, 0.0, HEADS)
    for mine, theirs in zip((ours.W_query, ours.W_key, ours.W_value, ours.out_proj), linears):
        assert torch.equal(mine.weight, theirs.weight)
    names = ["W_query.weight", "W_key.weight", "W_value.weight", "out_proj.weight", "out_proj.bias"]
    assert list(ours.state_dict()) == names
    assert not list(ours.buffers())
    torch.manual_seed(123)
    first = CausalAttention(D_IN, HEAD_DIM, CONTEXT)
    torch.manual_seed(123)
    assert torch.equal(
        MultiHeadAttentionWrapper(D_IN, HEAD_DIM, CONTEXT, HEADS).heads[0].W_query.weight, first.W_query.weight
    )


# Properties


@pytest.mark.parametrize("make", [module, wrapper])
@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, TOKENS - 1), seed=st.integers(0, 1_000))
def test_the_future_changes_nothing_before_it(make, cut, seed):
    attention, x = make(), tokens()
    changed = x.clone()
    changed[:, cut:] = torch.randn(changed[:, cut:].shape, generator=torch.Generator().manual_seed(seed)).double() * 9
    assert torch.equal(attention(x)[:, :cut], attention(changed)[:, :cut])
    assert not torch.allclose(attention(x)[:, cut:], attention(changed)[:, cut:])


@pytest.mark.parametrize("make", [module, wrapper])
def test_dropout_acts_in_training_only(make):
    attention, x = make(dropout=0.5), tokens()
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert_close(attention(x), make()(x))
    weights = attention.train().attention_weights(x)
    assert weights.shape == (BATCH, HEADS, TOKENS, TOKENS)
    assert_close(weights.sum(-1), torch.ones(BATCH, HEADS, TOKENS, dtype=torch.float64))


@pytest.mark.parametrize("make", [module, wrapper])
@pytest.mark.parametrize("shape", [(TOKENS, D_IN), (1, D_IN), (0, D_IN), (BATCH, 0, D_IN), (0, TOKENS, D_IN)])
def test_any_number_of_tokens_and_rows(make, shape):
    x = tokens(*shape, requires_grad=True)
    output = make()(x)
    assert output.shape == (*shape[:-1], D_OUT)
    assert make().attention_weights(x).shape == (*shape[:-2], HEADS, shape[-2], shape[-2])
    output.sum().backward()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 3), st.integers(0, 5), st.integers(1, 4), st.integers(1, 5))
def test_joining_undoes_splitting(batch, length, heads, head_dim):
    x = torch.randn(batch, length, heads * head_dim)
    assert split_heads(x, heads).shape == (batch, heads, length, head_dim)
    assert torch.equal(join_heads(split_heads(x, heads)), x)


def test_no_tensor_of_tokens_by_tokens_is_made():
    length = 1_021
    attention = MultiHeadAttention(8, 8, length, 0.0, 2)
    with LargestTensor() as largest:
        attention(torch.randn(1, length, 8)).sum().backward()
    assert largest.numbers < length * length
    with LargestTensor() as largest:
        attention.attention_weights(torch.randn(1, length, 8))
    assert largest.numbers >= length * length  # the counter does see such a tensor


def test_compiled_and_under_autocast():
    attention = module().float()
    x = tokens().float()
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    assert_close(compiled(x), attention(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = attention(x)
        assert_close(attention(x.bfloat16()), output)
    assert output.dtype == torch.bfloat16
    assert_close(output.float(), attention(x), atol=0.03, rtol=0.03)


# Errors


@pytest.mark.parametrize("make", [module, wrapper])
@pytest.mark.parametrize("method", ["forward", "attention_weights"])
def test_errors(make, method):
    call = getattr(make(), method)
    with pytest.raises(ValueError, match="x must have at most context_length=13 tokens; got 14"):
        call(tokens(BATCH, 14, D_IN))
    with pytest.raises(ValueError, match=r"x must have shape \(batch, tokens, d_in=5\) or .*; got \(2, 11, 21\)"):
        call(tokens(BATCH, TOKENS, D_OUT))


def test_errors_of_construction():
    with pytest.raises(ValueError, match="d_out must be divisible by num_heads; got d_out=20, num_heads=3"):
        MultiHeadAttention(5, 20, 13, 0.0, 3)
    with pytest.raises(ValueError, match="num_heads must be at least 1; got 0"):
        MultiHeadAttention(5, 20, 13, 0.0, 0)
    with pytest.raises(ValueError, match="num_heads must be at least 1; got 0"):
        MultiHeadAttentionWrapper(5, 20, 13, 0)
    with pytest.raises(ValueError, match="dropout must lie between 0 and 1; got 3"):
        MultiHeadAttention(5, 20, 13, 3, 2)  # dropout and num_heads in the wrong order
    with pytest.raises(ValueError, match="context_length must be at least 1; got 0"):
        MultiHeadAttention(5, 20, 0, 0.0, 2)
    with pytest.raises(TypeError, match="is_causal must be a bool; got str"):
        MultiHeadAttention(5, 20, 13, 0.0, 2, is_causal="no")


def test_errors_of_conversion():
    with pytest.raises(TypeError, match="attention must be an nn.MultiheadAttention; got Linear"):
        MultiHeadAttention.from_torch(nn.Linear(2, 2))
    for options in ({"kdim": 3}, {"add_bias_kv": True}, {"add_zero_attn": True}):
        with pytest.raises(ValueError, match="attention must be plain self-attention"):
            MultiHeadAttention.from_torch(nn.MultiheadAttention(4, 2, **options))
    with pytest.raises(ValueError, match="nn.MultiheadAttention needs d_in equal to d_out; got d_in=5, d_out=21"):
        module().to_torch()


def test_errors_of_splitting_and_joining():
    with pytest.raises(ValueError, match="d_out must be divisible by num_heads; got d_out=5, num_heads=3"):
        split_heads(torch.zeros(2, 5), 3)
    with pytest.raises(ValueError, match=r"x must have shape \(..., tokens, d_out\); got \(5,\)"):
        split_heads(torch.zeros(5), 1)
    with pytest.raises(TypeError, match="num_heads must be an int; got float"):
        split_heads(torch.zeros(2, 6), 2.0)
    with pytest.raises(ValueError, match=r"x must have shape \(..., num_heads, tokens, head_dim\); got \(2, 5\)"):
        join_heads(torch.zeros(2, 5))
    with pytest.raises(TypeError, match="x must have a floating-point dtype; got torch.int64"):
        join_heads(torch.zeros(2, 5, 3, dtype=torch.int64))


def cross_layer():
    torch.manual_seed(3)
    return MultiHeadAttention(5, 6, 11, 0.0, 3, is_causal=False)


def test_cross_attention_takes_queries_from_x_and_keys_and_values_from_context():
    layer, x, context = cross_layer(), torch.randn(2, 7, 5), torch.randn(2, 13, 5)
    query, key, value = (
        split_heads(linear(t), 3)
        for linear, t in ((layer.W_query, x), (layer.W_key, context), (layer.W_value, context))
    )
    expected = layer.out_proj(join_heads(attend(query, key, value).output))
    torch.testing.assert_close(layer(x, context=context), expected)
    torch.testing.assert_close(layer(x, context=x), layer(x))
    torch.testing.assert_close(layer(x[0], context=context[0]), expected[0])


def test_cross_attention_ignores_padding_of_its_context():
    layer, x, context = cross_layer(), torch.randn(2, 7, 5), torch.randn(2, 13, 5)
    real = torch.arange(13) < torch.tensor([[9], [13]])
    broken = context.masked_fill(~real[..., None], torch.nan)
    torch.testing.assert_close(layer(x, real, context=broken)[0], layer(x[:1], context=context[:1, :9])[0])


def test_cross_attention_says_what_does_not_fit():
    x, context = torch.randn(2, 7, 5), torch.randn(2, 13, 5)
    with pytest.raises(ValueError, match="context needs is_causal=False"):
        MultiHeadAttention(5, 6, 11, 0.0, 3)(x, context=context)
    with pytest.raises(
        ValueError, match=r"context must have shape \(batch=2, context_tokens, d_in=5\); got \(3, 13, 5\)"
    ):
        cross_layer()(x, context=context[[0, 1, 1]])
    for single in (False, True):
        axes = r"\(context_tokens, d_in=5\)" if single else r"\(batch=2, context_tokens, d_in=5\)"
        with pytest.raises(ValueError, match=f"context must have shape {axes}; got"):
            cross_layer()(x[0] if single else x, context=(context[0] if single else context)[..., :4])
    with pytest.raises(ValueError, match=r"context must have shape \(context_tokens, d_in=5\); got \(2, 13, 5\)"):
        cross_layer()(x[0], context=context)
