"""attend, attention, attention_weights: the softmax-weighted average."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from attnlib.attend import attend, attention, attention_weights, merge
from attnlib.masks import causal_mask
from oracle import attend_by_loops

BATCH, HEADS, Q, K, D, V = 2, 3, 7, 11, 5, 13


def qkv(dtype=torch.float64, requires_grad=False, seed=0, q=Q, k=K):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((BATCH, HEADS, q, D), (BATCH, HEADS, k, D), (BATCH, HEADS, k, V))
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_(requires_grad) for s in shapes]


def random_mask(seed=1, q=Q, k=K):
    """A mask in which one query of one head sees nothing."""
    mask = torch.rand(BATCH, HEADS, q, k, generator=torch.Generator().manual_seed(seed)) > 0.4
    mask[1, 2, 3] = False
    return mask


def by_loops(query, key, value, mask=None, scale=None):
    mask = torch.ones(BATCH, HEADS, Q, K, dtype=torch.bool) if mask is None else mask.expand(BATCH, HEADS, Q, K)
    rows = [
        attend_by_loops(query[b, h], key[b, h], value[b, h], mask[b, h], scale)
        for b in range(BATCH)
        for h in range(HEADS)
    ]
    return [torch.stack(part).unflatten(0, (BATCH, HEADS)) for part in zip(*rows)]


# By hand


def test_identity_keys_give_one_and_e():
    query, eye = torch.tensor([[0.0, math.sqrt(2)]]), torch.eye(2)
    weights = torch.tensor([[1.0, math.e]]) / (1 + math.e)
    assert_close(attend(query, eye, eye).output, weights)
    assert_close(attention(query, eye, eye), weights)
    assert_close(attention_weights(query, eye), weights)
    assert_close(attend(query, eye, eye).logsumexp, torch.tensor([math.log(1 + math.e)]), check_dtype=False)


def test_scale_multiplies_the_scores():
    query, eye = torch.tensor([[0.0, 1.0]]), torch.eye(2)
    weights = torch.tensor([[1.0, math.exp(3)]]) / (1 + math.exp(3))
    for scale, expected in ((3.0, weights), (0.0, torch.tensor([[0.5, 0.5]]))):
        assert_close(attend(query, eye, eye, scale=scale).output, expected)
        assert_close(attention(query, eye, eye, scale=scale), expected)
        assert_close(attention_weights(query, eye, scale=scale), expected)


def test_a_single_visible_key_gives_its_value():
    query, key, value = qkv()
    mask = torch.zeros(Q, K, dtype=torch.bool)
    mask[:, 4] = True
    assert_close(attend(query, key, value, mask).output, value[..., 4:5, :].expand(BATCH, HEADS, Q, V))


def test_dropout_zeroes_a_share_and_scales_the_rest():
    torch.manual_seed(0)
    query, key, value = torch.zeros(1000, D), torch.zeros(2, D), torch.eye(2)
    output, logsumexp = attend(query, key, value, dropout_p=0.25)
    assert_close(output.unique(), torch.tensor([0.0, 0.5 / 0.75]))
    assert (output == 0).float().mean() == pytest.approx(0.25, abs=0.04)
    assert_close(logsumexp, torch.full((1000,), math.log(2)), check_dtype=False)
    assert (attention(query, key, value, dropout_p=0.25) == 0).float().mean() == pytest.approx(0.25, abs=0.04)
    assert not attend(query, key, value, dropout_p=1.0).output.any()


# Against others


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_equals_the_loops_forward_and_backward(masked, is_causal, scale):
    inputs = qkv(requires_grad=True)
    mask = random_mask() if masked else None
    visible = mask
    if is_causal:
        causal = torch.tensor([[j <= i for j in range(K)] for i in range(Q)])
        visible = causal if mask is None else mask & causal
    output, logsumexp = by_loops(*inputs, visible, scale)
    got = attend(*inputs, mask, is_causal=is_causal, scale=scale)
    assert_close(got.output, output)
    assert_close(got.logsumexp, logsumexp)
    assert_close(attention(*inputs, mask, is_causal=is_causal, scale=scale), output)
    weights = attention_weights(*inputs[:2], mask, is_causal=is_causal, scale=scale)
    assert_close(weights @ inputs[2], output)
    seen = logsumexp > -math.inf
    loss = output.square().sum() + logsumexp[seen].sin().sum()
    want = torch.autograd.grad(loss, inputs, retain_graph=True)
    assert_close(torch.autograd.grad(got.output.square().sum() + got.logsumexp[seen].sin().sum(), inputs), want)
    fused = attention(*inputs, mask, is_causal=is_causal, scale=scale)
    want = torch.autograd.grad(output.square().sum(), inputs)
    assert_close(torch.autograd.grad(fused.square().sum(), inputs), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_pytorch_in_every_dtype(dtype):
    query, key, value = qkv(dtype)
    want = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for output in (attend(query, key, value).output, attention(query, key, value)):
        assert output.dtype == dtype
        assert_close(output.double(), want, atol=tolerance, rtol=tolerance)
    assert attend(query, key, value).logsumexp.dtype == torch.float64
    assert attention_weights(query, key).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_scored_in_float32(dtype):
    query, key, value = qkv(dtype)
    want = attend(query.double(), key.double(), value.double()).logsumexp
    assert_close(attend(query, key, value).logsumexp.double(), want, atol=1e-5, rtol=1e-5)


def test_half_precision_scores_do_not_overflow():
    query = torch.full((1, 4), 200.0, dtype=torch.float16)
    output, logsumexp = attend(query, torch.cat([query, -query]), torch.eye(2, dtype=torch.float16))
    assert_close(output, torch.tensor([[1.0, 0.0]], dtype=torch.float16))
    assert_close(logsumexp, torch.tensor([80_000.0]), check_dtype=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_not_rounded_before_they_meet_the_values(dtype):
    """Weights of almost 1/2 times 1 and −1: the small difference of the two is what comes out."""
    query, key = torch.ones(1, 1, dtype=dtype), torch.tensor([[21 / 1024], [0.0]], dtype=dtype)
    value = torch.tensor([[1.0], [-1.0]], dtype=dtype)
    output = attend(query, key, value).output
    merged = merge([attend(query, key[:1], value[:1]), attend(query, key[1:], value[1:])]).output
    assert merged.dtype == dtype
    for result in (output, merged):
        assert result.item() == pytest.approx(math.tanh(21 / 2048), rel=0.005)


def test_heads_of_no_dimension_average_evenly():
    query, key, value = torch.ones(1, 0), torch.ones(3, 0), torch.arange(6.0).view(3, 2)
    assert_close(attend(query, key, value).output, value.mean(0, keepdim=True))
    assert_close(attention(query, key, value), value.mean(0, keepdim=True))
    assert_close(attention_weights(query, key), torch.full((1, 3), 1 / 3))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("shape", [(), (K,), (1, K), (Q, 1), (HEADS, 1, K), (BATCH, HEADS, Q, K)])
def test_every_mask_that_broadcasts(shape, is_causal):
    inputs = qkv()
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    want = attend(*inputs, mask.broadcast_to(BATCH, HEADS, Q, K), is_causal=is_causal).output
    assert_close(attend(*inputs, mask, is_causal=is_causal).output, want)
    assert_close(attention(*inputs, mask, is_causal=is_causal), want)
    assert_close(attention_weights(*inputs[:2], mask, is_causal=is_causal) @ inputs[2], want)


def test_a_mask_with_axes_that_only_value_has():
    query, key, value = torch.randn(Q, D), torch.randn(HEADS, K, D), torch.randn(BATCH, 1, K, V)
    mask = random_mask()
    want = attend(query.expand(BATCH, HEADS, Q, D), key, value, mask).output
    assert_close(attend(query, key, value, mask).output, want)
    assert_close(attention(query, key, value, mask), want)


def test_on_a_device_without_autocast():
    inputs = [tensor.to("meta") for tensor in qkv()]
    output, logsumexp = merge([attend(*inputs, is_causal=True)] * 2)
    assert (output.shape, output.device.type) == ((BATCH, HEADS, Q, V), "meta")
    assert logsumexp.shape == (BATCH, HEADS, Q)
    assert attention_weights(*inputs[:2]).shape == (BATCH, HEADS, Q, K)


def test_leading_axes_broadcast_as_in_pytorch():
    query, key, value = torch.randn(2, 1, 7, 5), torch.randn(1, 3, 11, 5), torch.randn(11, 13)
    want = torch.softmax(query @ key.mT / math.sqrt(5), dim=-1) @ value
    assert want.shape == (2, 3, 7, 13)
    assert_close(attend(query, key, value).output, want)
    assert_close(attention(query, key, value), want)
    query, key, value = query[0, 0], key[0, 0], torch.randn(2, 3, 11, 13)  # value alone has leading axes
    got = attend(query, key, value)
    assert_close(got.output, torch.softmax(query @ key.mT / math.sqrt(5), dim=-1) @ value)
    want = torch.logsumexp(query @ key.mT / math.sqrt(5), dim=-1).expand(2, 3, 7)
    assert_close(got.logsumexp, want, check_dtype=False)


def test_compiled_and_under_autocast():
    query, key, value = qkv(torch.float32)
    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    assert_close(compiled(query, key, value, is_causal=True), attend(query, key, value, is_causal=True))
    plain = attend(query, key, value)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(attend(query, key, value), plain)


class Exported(torch.nn.Module):
    def forward(self, query, key, value):
        scale = query.shape[-1] ** -0.5
        weights = attention_weights(query, key, is_causal=True, scale=scale)
        return attend(query, key, value, is_causal=True, scale=scale).output, weights @ value


def test_exported_with_any_number_of_tokens():
    tokens = torch.export.Dim("tokens", min=2, max=99)
    exported = torch.export.export(Exported(), tuple(qkv(k=Q)), dynamic_shapes=[{2: tokens}] * 3).module()
    query, key, value = qkv(q=K)
    for output in exported(query, key, value):
        assert_close(output, attend(query, key, value, is_causal=True).output)


# Properties


def test_rows_of_weights_sum_to_one_or_to_zero():
    query, key, _ = qkv()
    sums = attention_weights(query, key, random_mask()).sum(-1)
    empty = torch.zeros(BATCH, HEADS, Q, dtype=torch.bool)
    empty[1, 2, 3] = True
    assert_close(sums, (~empty).double())


def test_padding_may_hold_anything_in_every_function():
    """A mask that is the same for all queries hides NaN too, and its gradient."""
    real = torch.tensor([True] * 4 + [False] * 2 + [True] * (K - 6))
    for mask in (real, real[None], real.expand(BATCH, 1, 1, K)):
        for is_causal in (False, True):
            results = []
            for held in (0.0, torch.nan, torch.inf, 1e300):
                query, key, value = qkv()
                key, value = (tensor.masked_fill(~real[:, None], held) for tensor in (key, value))
                inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
                attended = attend(*inputs, mask, is_causal=is_causal)
                outputs = [
                    *attended,
                    attention(*inputs, mask, is_causal=is_causal),
                    attention_weights(query, key, mask, is_causal=is_causal),
                ]
                loss = sum(output.sin().sum() for output in outputs)
                results.append([*outputs, *torch.autograd.grad(loss, inputs)])
            for result in results[1:]:
                assert all(torch.equal(got, want) for got, want in zip(result, results[0]))


@pytest.mark.parametrize("call", [attention, lambda *inputs, **options: attend(*inputs, **options).output])
def test_what_only_some_queries_may_not_see_must_be_finite(call):
    query, key, value = qkv(q=K)
    value[..., -1, :] = torch.nan
    assert call(query, key, value, is_causal=True)[..., 0, :].isnan().any()  # 0 · NaN
    value[..., -1, :] = torch.finfo(value.dtype).max
    assert call(query, key, value, is_causal=True)[..., :-1, :].isfinite().all()


def test_a_query_that_sees_nothing_gets_zeros_and_no_nan():
    inputs = qkv(requires_grad=True)
    mask = random_mask()
    for call in (lambda: attend(*inputs, mask).output, lambda: attention(*inputs, mask)):
        output = call()
        assert not output[1, 2, 3].any()
        for gradient in torch.autograd.grad(output.square().sum(), inputs):
            assert gradient.isfinite().all()
    logsumexp = attend(*inputs, mask).logsumexp
    assert logsumexp[1, 2, 3] == -math.inf
    (gradient,) = torch.autograd.grad(logsumexp[logsumexp > -math.inf].sum(), inputs[:1])
    assert gradient.isfinite().all()


def test_the_future_changes_nothing_before_it():
    query, key, value = qkv(q=K)
    before = attend(query, key, value, is_causal=True)
    key[..., 6:, :], value[..., 6:, :] = 100.0, -100.0
    after = attend(query, key, value, is_causal=True)
    assert torch.equal(before.output[..., :6, :], after.output[..., :6, :])
    assert not torch.equal(before.output[..., 6:, :], after.output[..., 6:, :])


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(K)))
def test_the_order_of_the_keys_does_not_matter(order):
    query, key, value = qkv()
    got, want = attend(query, key[..., order, :], value[..., order, :]), attend(query, key, value)
    assert_close(got, want)


@pytest.mark.parametrize(("q", "k"), [(0, K), (1, K), (Q, 0), (Q, 1), (0, 0)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_zero_and_one_token(q, k, is_causal):
    query, key, value = qkv(requires_grad=True, q=q, k=k)
    got = attend(query, key, value, is_causal=is_causal)
    assert got.output.shape == (BATCH, HEADS, q, V)
    assert got.logsumexp.shape == (BATCH, HEADS, q)
    assert attention_weights(query, key, is_causal=is_causal).shape == (BATCH, HEADS, q, k)
    assert_close(attention(query, key, value, is_causal=is_causal), got.output)
    if k == 0:
        assert not got.output.any()
        assert (got.logsumexp == -math.inf).all()
    got.output.sum().backward()


@pytest.mark.parametrize("sizes", [(0, K, D, V), (Q, 0, D, V), (Q, K, 0, V), (Q, K, D, 0)])
def test_empty_axes_broadcast_too(sizes):
    q, k, d, v = sizes
    query, key, value = torch.randn(q, d), torch.randn(HEADS, k, d), torch.randn(BATCH, 1, k, v)
    got = attend(query, key, value)
    assert got.output.shape == (BATCH, HEADS, q, v)
    assert_close(attention(query, key, value), got.output)


def test_an_empty_batch():
    query, key, value = (tensor[:0] for tensor in qkv())
    assert attend(query, key, value).output.shape == (0, HEADS, Q, V)
    assert attention(query, key, value).shape == (0, HEADS, Q, V)


# Errors


CALLS = [attend, attention, lambda query, key, value, *rest, **options: attention_weights(query, key, *rest, **options)]


@pytest.mark.parametrize("call", CALLS)
def test_errors_name_the_argument(call):
    query, key, value = qkv(torch.float32)
    with pytest.raises(TypeError, match="query must be a torch.Tensor; got list"):
        call([1.0], key, value)
    with pytest.raises(TypeError, match="key must have a floating-point dtype; got torch.int64"):
        call(query, key.long(), value)
    with pytest.raises(TypeError, match="key must have the dtype of query, torch.float32; got torch.float64"):
        call(query, key.double(), value)
    with pytest.raises(ValueError, match=r"query must have shape \(..., q_tokens, head_dim\); got \(5,\)"):
        call(query[0, 0, 0], key, value)
    with pytest.raises(ValueError, match=r"key must have shape \(..., kv_tokens, head_dim=5\); got \(2, 3, 11, 4\)"):
        call(query, key[..., :4], value)
    with pytest.raises(ValueError, match="key must be on the device of query, cpu; got meta"):
        call(query, key.to("meta"), value)
    with pytest.raises(ValueError, match="query, key and value must have leading axes that broadcast"):
        call(query[:, :2], key, value)
    with pytest.raises(TypeError, match="mask must be a boolean tensor, True = may attend; got torch.float32"):
        call(query, key, value, torch.ones(Q, K))
    with pytest.raises(ValueError, match=r"mask must broadcast to \(2, 3, q_tokens=7, kv_tokens=11\); got \(11, 7\)"):
        call(query, key, value, torch.ones(K, Q, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must broadcast to .*; got \(1, 1, 1, 7, 11\)"):
        call(query, key, value, torch.ones(1, 1, 1, Q, K, dtype=torch.bool))
    for scale in ("2", torch.tensor(2.0), True, [1.0]):
        with pytest.raises(TypeError, match=f"scale must be a number or None; got {type(scale).__name__}"):
            call(query, key, value, scale=scale)
    for is_causal in (None, "yes", 1, torch.tensor([True, False])):
        with pytest.raises(TypeError, match=f"is_causal must be a bool; got {type(is_causal).__name__}"):
            call(query, key, value, is_causal=is_causal)
    with pytest.raises(TypeError, match=r"is_causal must be a Python bool; got numpy.bool_? \(wrap it in bool\(\)\)"):
        call(query, key, value, is_causal=np.bool_(True))
    with pytest.raises(ValueError, match="mask must be on the device of query, cpu; got meta"):
        call(query, key, value, torch.ones(Q, K, dtype=torch.bool, device="meta"))


@pytest.mark.parametrize("call", CALLS[:2])
def test_errors_of_value_and_dropout(call):
    query, key, value = qkv(torch.float32)
    with pytest.raises(
        ValueError, match=r"value must have shape \(..., kv_tokens=11, value_dim\); got \(2, 3, 10, 13\)"
    ):
        call(query, key, value[..., :10, :])
    with pytest.raises(ValueError, match=r"dropout_p must lie between 0 and 1; got 1.5"):
        call(query, key, value, dropout_p=1.5)
    with pytest.raises(TypeError, match="dropout_p must be a number; got str"):
        call(query, key, value, dropout_p="0.5")


def test_is_causal_is_aligned_upper_left_and_joins_a_mask():
    query, key, value = qkv()
    assert_close(attend(query, key, value, is_causal=True), attend(query, key, value, causal_mask(Q, K)))
    want = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert_close(attend(query, key, value, is_causal=True).output, want)
