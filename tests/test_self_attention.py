"""context_vectors, SelfAttention_v1 and SelfAttention_v2."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from attnlib.self_attention import SelfAttention_v1, SelfAttention_v2, context_vectors
from oracle import attend_by_loops

D_IN, D_OUT, TOKENS, BATCH = 5, 3, 7, 2
SENTENCE = torch.tensor(
    [
        [0.43, 0.15, 0.89],
        [0.55, 0.87, 0.66],
        [0.57, 0.85, 0.64],
        [0.22, 0.58, 0.33],
        [0.77, 0.25, 0.10],
        [0.05, 0.80, 0.55],
    ]
)


def modules(qkv_bias=False):
    torch.manual_seed(0)
    return [kind(D_IN, D_OUT, qkv_bias).double() for kind in (SelfAttention_v1, SelfAttention_v2)]


def projections(module, x):
    if isinstance(module, SelfAttention_v2):
        return [linear(x) for linear in (module.W_query, module.W_key, module.W_value)]
    return [
        x @ weight + (0 if bias is None else bias)
        for weight, bias in (
            (module.W_query, module.bias_query),
            (module.W_key, module.bias_key),
            (module.W_value, module.bias_value),
        )
    ]


def with_random_biases(module):
    for name, parameter in module.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return module


# By hand


def test_context_vectors_of_the_sentence():
    """The second token's scores, weights and context vector, to the four digits that walk-throughs print."""
    assert_close(context_vectors(SENTENCE)[1], torch.tensor([0.4419, 0.6515, 0.5683]), atol=5e-5, rtol=0)


def test_context_vectors_of_the_identity():
    assert_close(context_vectors(torch.eye(2)), torch.tensor([[math.e, 1], [1, math.e]]) / (1 + math.e))


def test_identity_weights_and_two_tokens():
    """Queries [0, √2] on identity keys: weights [1, e] / (1 + e)."""
    module = SelfAttention_v1(2, 2)
    module.W_query.data, module.W_key.data, module.W_value.data = (
        math.sqrt(2) * torch.eye(2),
        torch.eye(2),
        torch.eye(2),
    )
    weights = torch.tensor([[math.e, 1], [1, math.e]]) / (1 + math.e)
    assert_close(module.attention_weights(torch.eye(2)), weights)
    assert_close(module(torch.eye(2)), weights)


# Against others


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("version", [0, 1])
def test_equals_the_loops_forward_and_backward(version, qkv_bias):
    module = with_random_biases(modules(qkv_bias)[version])
    x = torch.randn(TOKENS, D_IN, dtype=torch.float64, requires_grad=True)
    query, key, value = projections(module, x)
    want, _ = attend_by_loops(query, key, value)
    got = module(x)
    assert_close(got, want)
    assert_close(module.attention_weights(x) @ value, want)
    inputs = [x, *module.parameters()]
    assert len(inputs) == (7 if qkv_bias else 4)
    want = torch.autograd.grad(want.square().sum(), inputs)
    assert_close(torch.autograd.grad(got.square().sum(), inputs), want)


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_v1_from_v2_gives_the_same_numbers_and_owns_them(qkv_bias):
    v2 = modules(qkv_bias)[1]
    v1 = SelfAttention_v1.from_v2(v2)
    x = torch.randn(BATCH, TOKENS, D_IN, dtype=torch.float64)
    before = v2(x)
    assert_close(v1(x), before)
    with torch.no_grad():
        for parameter in v1.parameters():
            parameter.zero_()
    assert_close(v2(x), before)


def test_v1_from_v2_is_frozen_where_v2_is():
    v2 = modules(qkv_bias=True)[1].eval()
    v2.W_key.requires_grad_(False)
    v2.W_value.bias.requires_grad_(False)
    v1 = SelfAttention_v1.from_v2(v2)
    frozen = [name for name, parameter in v1.named_parameters() if not parameter.requires_grad]
    assert sorted(frozen) == ["W_key", "bias_key", "bias_value"]
    assert not v1.training


def test_the_seed_gives_the_draws_of_the_walk_throughs():
    torch.manual_seed(123)
    weights = [torch.randn(D_IN, D_OUT) for _ in range(3)]
    torch.manual_seed(123)
    v1 = SelfAttention_v1(D_IN, D_OUT, qkv_bias=True)
    assert_close([v1.W_query, v1.W_key, v1.W_value], weights, check_dtype=False)
    torch.manual_seed(123)
    linears = [nn.Linear(D_IN, D_OUT, bias=False) for _ in range(3)]
    torch.manual_seed(123)
    v2 = SelfAttention_v2(D_IN, D_OUT)
    for ours, theirs in zip((v2.W_query, v2.W_key, v2.W_value), linears):
        assert torch.equal(ours.weight, theirs.weight)


# Properties


@pytest.mark.parametrize("version", [0, 1])
def test_permuting_tokens_permutes_outputs(version):
    module, x = modules()[version], torch.randn(BATCH, TOKENS, D_IN, dtype=torch.float64)
    order = torch.randperm(TOKENS)
    assert_close(module(x[:, order]), module(x)[:, order])
    assert_close(module.attention_weights(x).sum(-1), torch.ones(BATCH, TOKENS, dtype=torch.float64))


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("shape", [(TOKENS, D_IN), (1, D_IN), (0, D_IN), (BATCH, 0, D_IN), (0, TOKENS, D_IN)])
def test_any_number_of_tokens_and_rows(version, shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    output = modules()[version](x)
    assert output.shape == (*shape[:-1], D_OUT)
    assert modules()[version].attention_weights(x).shape == (*shape[:-1], shape[-2])
    assert context_vectors(x).shape == shape
    output.sum().backward()


def test_a_bias_is_added_after_the_product_and_starts_at_zero_in_v1():
    v1 = modules(qkv_bias=True)[0]
    assert not v1.bias_query.any()
    assert v1.bias_query.shape == (D_OUT,)
    assert modules()[0].bias_query is None
    x = torch.randn(TOKENS, D_IN, dtype=torch.float64)
    before = v1(x)
    v1.bias_value.data += 1.0  # weights sum to one, so every output moves by exactly one
    assert_close(v1(x), before + 1.0)


# Errors


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("method", ["forward", "attention_weights"])
def test_errors(version, method):
    call = getattr(modules()[version], method)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, tokens, d_in=5\) or .*; got \(7, 4\)"):
        call(torch.randn(7, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"x must have shape .*; got \(5,\)"):
        call(torch.randn(5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"x must have shape .*; got \(1, 2, 7, 5\)"):
        call(torch.randn(1, 2, 7, 5, dtype=torch.float64))
    with pytest.raises(TypeError, match="x must have a floating-point dtype; got torch.int64"):
        call(torch.ones(7, 5, dtype=torch.int64))
    with pytest.raises(TypeError, match="x must be a torch.Tensor; got list"):
        call([[1.0] * 5])


def test_errors_of_construction_and_of_context_vectors():
    for kind in (SelfAttention_v1, SelfAttention_v2):
        with pytest.raises(ValueError, match="d_in must be at least 1; got 0"):
            kind(0, 3)
        with pytest.raises(TypeError, match="d_out must be an int; got float"):
            kind(5, 3.0)
    with pytest.raises(TypeError, match="v2 must be a SelfAttention_v2; got SelfAttention_v1"):
        SelfAttention_v1.from_v2(SelfAttention_v1(5, 3))
    with pytest.raises(ValueError, match=r"x must have shape \(..., tokens, d_in\); got \(3,\)"):
        context_vectors(torch.randn(3))
    with pytest.raises(TypeError, match="x must have a floating-point dtype"):
        context_vectors(torch.ones(3, 3, dtype=torch.int64))
