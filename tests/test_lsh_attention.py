"""lsh_attention: values by hand, limits, padding and errors. test_lsh_rounds.py has the full definition."""

import functools
import itertools
import math

import pytest
import torch

from attnlib.attend import attend
from attnlib.lsh import hash_buckets, lsh_attention, random_rotations
from attnlib.masks import causal_mask
from lsh_oracle import oracle

FLAGS = [
    dict(zip(("is_causal", "count_once", "across_buckets"), on)) for on in itertools.product([False, True], repeat=3)
]
ONE_BUCKET = torch.zeros(1, 3, 5, 1, dtype=torch.float64)  # every projection is 0: bucket 0, in each of 3 rounds


def make_inputs(tokens, *, batch=2, heads=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(tokens)
    shapes = (batch, heads, tokens, 5), (batch, heads, tokens, 7)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def full_attention(query_key, value, *, is_causal=False):
    """Shared queries and keys; each token sees all others, and itself only if there are none."""
    tokens = query_key.shape[2]
    mask = ~torch.eye(tokens, dtype=torch.bool)
    if is_causal:
        mask &= causal_mask(tokens)
        mask[0, 0] = True
    if tokens == 1:
        mask[:] = True
    return attend(query_key, torch.nn.functional.normalize(query_key, dim=-1), value, mask, scale=1.0).output


# By hand


def test_two_tokens_see_each_other_but_a_causal_first_token_sees_itself():
    query_key, value = torch.randn(1, 1, 2, 5), torch.tensor([[[[1.0], [2.0]]]])
    both = lsh_attention(query_key, value, ONE_BUCKET, chunk_size=2)
    assert both.flatten().tolist() == [2.0, 1.0]
    causal = lsh_attention(query_key, value, ONE_BUCKET, chunk_size=2, is_causal=True)
    assert causal.flatten().tolist() == [1.0, 1.0]


def test_keys_have_length_one_and_queries_their_own():
    query_key = torch.tensor([[[[math.log(3.0), 0.0], [7.0, 0.0], [0.0, 9.0]]]])  # scores of token 0: log 3 and 0
    value = torch.tensor([[[[100.0], [1.0], [0.0]]]])
    output = lsh_attention(query_key, value, torch.zeros(1, 1, 2, 1), chunk_size=3)
    assert output[0, 0, 0, 0].item() == pytest.approx(3 / 4)
    half = lsh_attention(query_key, value, torch.zeros(1, 1, 2, 1), chunk_size=3, scale=0.5)
    assert half[0, 0, 0, 0].item() == pytest.approx(math.sqrt(3) / (math.sqrt(3) + 1))


def test_a_key_met_twice_counts_once_or_twice():
    """Token 0 meets token 1 in both rounds and token 2 in one; all scores are 0."""
    query_key = torch.tensor([[[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]]]) * 1e-30
    rotations = torch.zeros(1, 2, 3, 1)
    rotations[0, 1, :, 0] = torch.tensor([1.0, 0.0, 1.0])  # round 1: buckets 0, 0, 1; round 0: 0, 0, 0
    value = torch.tensor([[[[0.0], [6.0], [12.0]]]])
    once = lsh_attention(query_key, value, rotations, chunk_size=3)
    assert once[0, 0, 0, 0].item() == pytest.approx((6 + 12) / 2)
    often = lsh_attention(query_key, value, rotations, chunk_size=3, count_once=False)
    assert often[0, 0, 0, 0].item() == pytest.approx((6 + 6 + 12) / 3)


# Against full attention, the limit


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("count_once", [False, True])
@pytest.mark.parametrize("across_buckets", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 29])
def test_one_bucket_and_one_chunk_are_full_attention(tokens, is_causal, count_once, across_buckets):
    query_key, value = make_inputs(tokens)
    flags = {"is_causal": is_causal, "count_once": count_once, "across_buckets": across_buckets}
    actual = lsh_attention(query_key, value, ONE_BUCKET, chunk_size=tokens, **flags)
    torch.testing.assert_close(actual, full_attention(query_key, value, is_causal=is_causal))


@pytest.mark.parametrize("is_causal", [False, True])
def test_more_rounds_approach_full_attention_only_if_keys_count_once(is_causal):
    query_key, value = make_inputs(29, batch=1)
    full = full_attention(query_key, value, is_causal=is_causal)
    error = {}
    for count_once, num_hashes in [(True, 1), (True, 4), (True, 16), (True, 64), (False, 64)]:
        rotations = random_rotations(5, 2, num_hashes, dtype=torch.float64)
        options = {"chunk_size": 16, "is_causal": is_causal, "count_once": count_once}
        output = lsh_attention(query_key, value, rotations, **options)
        error[count_once, num_hashes] = (output - full).abs().mean().item()
    assert error[True, 1] > error[True, 4] > error[True, 16] > error[True, 64]
    assert error[True, 64] < 1e-12
    assert error[False, 64] > 0.03


# Causality


@pytest.mark.parametrize("count_once", [False, True])
def test_a_forward_on_any_prefix_equals_the_forward_on_the_whole(count_once):
    query_key, value = make_inputs(97)
    rotations = random_rotations(5, 6, 3, num_heads=3, dtype=torch.float64)
    options = {"chunk_size": 5, "is_causal": True, "count_once": count_once}
    whole = lsh_attention(query_key, value, rotations, **options)
    for length in range(1, 98):
        prefix = lsh_attention(query_key[:, :, :length], value[:, :, :length], rotations, **options)
        torch.testing.assert_close(prefix, whole[:, :, :length], rtol=0, atol=1e-12)


def test_across_buckets_prefixes_differ():
    query_key, value = make_inputs(64)
    rotations = random_rotations(5, 6, 3, num_heads=3, dtype=torch.float64)
    options = {"chunk_size": 5, "is_causal": True, "across_buckets": True}
    whole = lsh_attention(query_key, value, rotations, **options)
    prefix = lsh_attention(query_key[:, :, :63], value[:, :, :63], rotations, **options)
    assert (prefix - whole[:, :, :63]).abs().max() > 0.01


@pytest.mark.parametrize("flags", [flags for flags in FLAGS if flags["is_causal"]], ids=str)
def test_no_future_value_leaks(flags):
    query_key, value = make_inputs(41)
    rotations = random_rotations(5, 4, 3, num_heads=3, dtype=torch.float64)
    before = lsh_attention(query_key, value, rotations, chunk_size=4, **flags)
    changed = value.clone()
    changed[:, :, 20:] = 1e6
    after = lsh_attention(query_key, changed, rotations, chunk_size=4, **flags)
    assert torch.equal(after[:, :, :20], before[:, :, :20])
    assert not torch.equal(after[:, :, 21:], before[:, :, 21:])


def test_no_future_query_or_key_leaks():
    query_key, value = make_inputs(41)
    rotations = random_rotations(5, 4, 3, num_heads=3, dtype=torch.float64)
    before = lsh_attention(query_key, value, rotations, chunk_size=4, is_causal=True)
    changed = query_key.clone()
    changed[:, :, 20:] = -3 * changed[:, :, 20:].roll(5, 2)
    after = lsh_attention(changed, value, rotations, chunk_size=4, is_causal=True)
    torch.testing.assert_close(after[:, :, :20], before[:, :, :20], rtol=0, atol=1e-12)


# Padding


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("content", [1e30, math.nan, math.inf])
def test_the_content_of_padding_changes_nothing_anywhere(flags, content):
    query_key, value = make_inputs(23)
    mask = torch.ones(2, 23, dtype=torch.bool)
    mask[0, [0, 1, 7, 22]] = mask[1, 20:] = False
    rotations = random_rotations(5, 4, 3, dtype=torch.float64)
    results = []
    for fill in (0.0, content):
        padded = [torch.where(mask[:, None, :, None], t, fill).requires_grad_() for t in (query_key, value)]
        output = lsh_attention(*padded, rotations, chunk_size=3, key_mask=mask, **flags)
        output.sin().sum().backward()
        results.append((output, *(t.grad for t in padded)))
    for clean, dirty in zip(*results):
        assert torch.equal(clean, dirty)
        assert (clean.transpose(1, 2)[~mask] == 0).all()


@pytest.mark.parametrize("is_causal", [False, True])
def test_removing_the_padding_gives_the_same(is_causal):
    query_key, value = make_inputs(23, batch=1)
    mask = torch.ones(1, 23, dtype=torch.bool)
    mask[0, [0, 1, 7, 8, 9, 22]] = False
    rotations = random_rotations(5, 4, 3, dtype=torch.float64)
    padded = lsh_attention(query_key, value, rotations, chunk_size=3, is_causal=is_causal, key_mask=mask)
    short = lsh_attention(query_key[:, :, mask[0]], value[:, :, mask[0]], rotations, chunk_size=3, is_causal=is_causal)
    torch.testing.assert_close(padded[:, :, mask[0]], short)


def test_a_batch_of_padding_gives_zeros():
    query_key, value = make_inputs(11)
    mask = torch.zeros(2, 11, dtype=torch.bool)
    assert (lsh_attention(query_key, value, ONE_BUCKET, chunk_size=3, key_mask=mask) == 0).all()


# Numbers, dtypes, devices


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_lower_precision_stays_near_the_definition(flags, dtype):
    query_key, value = make_inputs(61, dtype=dtype)
    rotations = random_rotations(5, 4, 3, num_heads=3)
    buckets = hash_buckets(query_key, rotations)
    wide = [t.double().requires_grad_() for t in (query_key, value)]
    narrow = [t.clone().requires_grad_() for t in (query_key, value)]
    expected = oracle(*wide, buckets, chunk_size=4, **flags)
    actual = lsh_attention(*narrow, rotations, chunk_size=4, **flags)
    assert actual.dtype == dtype
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(actual.double(), expected, rtol=8 * unit, atol=8 * unit)
    expected.sum().backward()
    actual.sum().backward()
    for exact, given in zip(wide, narrow):
        assert given.grad.dtype == dtype
        torch.testing.assert_close(given.grad.double(), exact.grad, rtol=32 * unit, atol=32 * unit)


def test_half_precision_does_not_overflow_in_the_merge():
    query_key, value = make_inputs(61, dtype=torch.float16)
    rotations = random_rotations(5, 4, 4)
    output = lsh_attention(40 * query_key, value, rotations, chunk_size=4)  # exp(100) overflows float16
    assert output.isfinite().all()
    expected = oracle(40 * query_key, value, hash_buckets(40 * query_key, rotations), chunk_size=4)
    torch.testing.assert_close(output.double(), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_forward_and_backward_are_bitwise_reproducible(flags):
    query_key, value = (t.requires_grad_() for t in make_inputs(131, dtype=torch.float32))
    rotations = random_rotations(5, 4, 3)
    runs = []
    for _ in range(2):
        output = lsh_attention(query_key, value, rotations, chunk_size=7, **flags)
        runs.append((output, *torch.autograd.grad(output.sin().sum(), (query_key, value))))
    assert all(torch.equal(first, second) for first, second in zip(*runs))


def test_the_global_generator_is_not_used():
    query_key, value = (t.requires_grad_() for t in make_inputs(31))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    lsh_attention(query_key, value, random_rotations(5, 4, 3), chunk_size=4).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_inputs_are_not_changed_and_need_not_be_contiguous():
    query_key, value = make_inputs(31)
    rotations = random_rotations(5, 4, 3, dtype=torch.float64)
    expected = lsh_attention(query_key, value, rotations, chunk_size=4)
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for t in (query_key, value)]
    copies = [t.detach().clone() for t in strided]
    output = lsh_attention(*strided, rotations, chunk_size=4)
    assert torch.equal(output, expected)
    output.transpose(1, 2).flatten(2).sum().backward()
    assert all(torch.equal(t, copy) for t, copy in zip(strided, copies))


def test_a_zero_vector_gets_a_finite_gradient():
    query_key, value = make_inputs(13)
    query_key[:, :, 4] = 0.0
    query_key.requires_grad_()
    output = lsh_attention(query_key, value, ONE_BUCKET, chunk_size=13)
    mean = torch.cat([value[:, :, :4], value[:, :, 5:]], 2).mean(2)
    torch.testing.assert_close(output[:, :, 4], mean)
    output.sin().sum().backward()
    assert query_key.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3, 7), (2, 0, 7), (2, 3, 0)])
def test_empty_inputs(shape):
    query_key = torch.ones(*shape, 5, requires_grad=True)
    output = lsh_attention(query_key, torch.ones(*shape, 7), ONE_BUCKET.float(), chunk_size=4)
    assert output.shape == (*shape, 7)


def test_compiled_it_is_the_same():
    query_key, value = (t.requires_grad_() for t in make_inputs(31, dtype=torch.float32))
    rotations = random_rotations(5, 4, 3)

    def call(query_key, value):
        return lsh_attention(query_key, value, rotations, chunk_size=4, is_causal=True).sin()

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)(query_key, value)
    plain = call(query_key, value)
    torch.testing.assert_close(compiled, plain)
    grads = [torch.autograd.grad(output.sum(), (query_key, value)) for output in (compiled, plain)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("device", ["meta", *["cuda"] * torch.cuda.is_available()])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_other_devices_give_the_same(flags, device):
    """The meta device has no numbers, so there only shapes, dtypes and strides are compared."""
    query_key, value = make_inputs(131)
    rotations = random_rotations(5, 4, 3, dtype=torch.float64)
    here = [t.clone().requires_grad_() for t in (query_key, value)]
    there = [t.to(device).requires_grad_() for t in (query_key, value)]
    results = []
    for inputs in (here, there):
        output = lsh_attention(*inputs, rotations.to(inputs[0].device), chunk_size=7, **flags)
        output.sin().sum().backward()
        results.append([output, *(t.grad for t in inputs)])
    if device == "meta":
        for mine, theirs in zip(*results):
            assert (mine.shape, mine.dtype, mine.stride()) == (theirs.shape, theirs.dtype, theirs.stride())
    else:
        torch.testing.assert_close([t.cpu() for t in results[1]], results[0])


@pytest.mark.parametrize("in_dims", list(itertools.product([None, 0], repeat=3))[1:], ids=str)
def test_vmap_is_refused(in_dims):
    rotations = random_rotations(5, 4, 2, dtype=torch.float64)
    inputs = [t if dim is None else t.expand(4, *t.shape) for t, dim in zip((*make_inputs(13), rotations), in_dims)]
    with pytest.raises(NotImplementedError, match="torch.vmap cannot map LSH attention"):
        torch.vmap(functools.partial(lsh_attention, chunk_size=3), in_dims)(*inputs)


def test_a_second_derivative_is_refused():
    query_key, value = (t.requires_grad_() for t in make_inputs(13))
    output = lsh_attention(query_key, value, ONE_BUCKET, chunk_size=4)
    (first,) = torch.autograd.grad(output.sin().sum(), query_key, create_graph=True)
    with pytest.raises(NotImplementedError, match="lsh_attention can be differentiated once"):
        first.sum().backward()


# Errors


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"query_key": torch.ones(3, 7, 5)},
            ValueError,
            r"query_key must have shape \(batch, heads, tokens, head_dim\)",
        ),
        (
            {"value": torch.ones(2, 3, 11, 5)},
            ValueError,
            r"value must have shape \(batch=2, heads=3, tokens=7, value_dim",
        ),
        ({"value": torch.ones(2, 3, 7, 5, dtype=torch.float64)}, TypeError, "value must have the dtype of query_key"),
        ({"value": [1.0]}, TypeError, r"value must be a torch\.Tensor; got list"),
        (
            {"rotations": torch.ones(1, 2, 11, 3)},
            ValueError,
            r"rotations must have shape .*head_dim=5.*\(1, 2, 11, 3\)",
        ),
        (
            {"rotations": torch.ones(1, 2, 5, 3, device="meta")},
            ValueError,
            "rotations must be on the device of query_key",
        ),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1; got 0"),
        ({"chunk_size": 2.0}, TypeError, "chunk_size must be an int; got float"),
        ({"is_causal": "no"}, TypeError, "is_causal must be a bool; got str"),
        ({"count_once": "no"}, TypeError, "count_once must be a bool; got str"),
        ({"across_buckets": 1}, TypeError, "across_buckets must be a bool; got int"),
        ({"scale": "1"}, TypeError, "scale must be a number or None; got str"),
        (
            {"key_mask": torch.ones(2, 7)},
            TypeError,
            r"key_mask must be a boolean tensor, True = real token; got torch\.float32",
        ),
        (
            {"key_mask": torch.ones(2, 11, dtype=torch.bool)},
            ValueError,
            r"key_mask must have .*tokens=7\); got \(2, 11\)",
        ),
        (
            {"key_mask": torch.ones(2, 7, dtype=torch.bool, device="meta")},
            ValueError,
            "key_mask must be on the device of x, cpu; got meta",
        ),
    ],
)
def test_bad_input_is_named(changed, error, message):
    options = {"query_key": torch.ones(2, 3, 7, 5), "value": torch.ones(2, 3, 7, 5), "chunk_size": 4}
    options |= {"rotations": torch.ones(1, 2, 5, 3)}
    with pytest.raises(error, match=message):
        lsh_attention(**options | changed)
