"""LSHSelfAttention."""

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from attnlib.lsh import LSHSelfAttention, lsh_attention


def make_layer(**options):
    torch.manual_seed(0)
    return LSHSelfAttention(11, 6, 3, **{"chunk_size": 4, "num_buckets": 4, "num_hashes": 2} | options)


def make_input(tokens=29, **options):
    return torch.randn(2, tokens, 11, generator=torch.Generator().manual_seed(1), **options)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_projections_heads_and_output_by_hand(is_causal, qkv_bias):
    layer, x = make_layer(is_causal=is_causal, qkv_bias=qkv_bias), make_input()
    query_key = F.linear(x, layer.W_query_key.weight, layer.W_query_key.bias).view(2, 29, 3, 2).permute(0, 2, 1, 3)
    value = F.linear(x, layer.W_value.weight, layer.W_value.bias).view(2, 29, 3, 2).permute(0, 2, 1, 3)
    heads = lsh_attention(query_key, value, layer.rotations, chunk_size=4, is_causal=is_causal)
    expected = heads.permute(0, 2, 1, 3).reshape(2, 29, 6) @ layer.out_proj.weight.T + layer.out_proj.bias
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x[0]), expected[0])


def test_parameters_and_buffer():
    layer = make_layer()
    assert list(layer.state_dict()) == [
        "rotations",
        "W_query_key.weight",
        "W_value.weight",
        "out_proj.weight",
        "out_proj.bias",
    ]
    assert layer.rotations.shape == (3, 2, 2, 2)
    usual = LSHSelfAttention(11, 6, 3)
    assert (usual.chunk_size, usual.is_causal, usual.rotations.shape) == (64, True, (3, 4, 2, 128 // 2))
    assert [name for name, _ in layer.named_parameters()] == list(layer.state_dict())[1:]


def test_a_causal_layer_gives_a_prefix_what_it_gives_the_whole():
    layer, x = make_layer().double(), make_input(dtype=torch.float64)
    whole = layer(x)
    for length in range(1, 30):
        torch.testing.assert_close(layer(x[:, :length]), whole[:, :length], rtol=0, atol=1e-12)


def test_forwards_are_bitwise_reproducible_and_do_not_use_the_global_generator():
    layer, x = make_layer().eval(), make_input()
    before = torch.get_rng_state()
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(torch.get_rng_state(), before)


# Directions


def test_the_directions_are_drawn_after_the_weights():
    """So the weights that belong to a seed are those of three plain Linears."""
    layer = make_layer()
    torch.manual_seed(0)
    linears = nn.Linear(11, 6, bias=False), nn.Linear(11, 6, bias=False), nn.Linear(6, 6)
    for mine, linear in zip((layer.W_query_key, layer.W_value, layer.out_proj), linears):
        assert all(map(torch.equal, mine.parameters(), linear.parameters()))
    assert torch.equal(layer.rotations, torch.randn(3, 2, 2, 2))


def test_every_layer_has_its_own_directions_and_a_seed_repeats_them():
    def draw():
        torch.manual_seed(7)
        return [LSHSelfAttention(11, 6, 3, num_buckets=4).rotations for _ in range(2)]

    (first, second), again = draw(), draw()
    assert not torch.equal(first, second)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])


def test_resampling_draws_new_directions_each_time_in_place():
    layer = make_layer()
    place, seen = layer.rotations.data_ptr(), [layer.rotations.clone()]
    torch.manual_seed(7)
    for _ in range(3):
        layer.resample_rotations()
        assert not any(torch.equal(layer.rotations, earlier) for earlier in seen)
        seen.append(layer.rotations.clone())
    assert layer.rotations.data_ptr() == place
    torch.manual_seed(7)
    layer.resample_rotations()
    assert torch.equal(layer.rotations, seen[1])


def test_resampling_from_a_generator_is_repeatable_and_leaves_the_global_one_alone():
    layer, generator, before = make_layer(), torch.Generator().manual_seed(3), torch.get_rng_state()
    draws = []
    for _ in range(2):
        layer.resample_rotations(generator)
        draws.append(layer.rotations.clone())
    assert not torch.equal(*draws)
    layer.resample_rotations(torch.Generator().manual_seed(3))
    assert torch.equal(layer.rotations, draws[0])
    assert torch.equal(torch.get_rng_state(), before)


# Padding

FILLS = (9.0, 1e38, math.nan, math.inf)
PADDED = {"left": [0, 1, 2], "right": [26, 27, 28], "middle": [11, 12, 20], "everywhere": [0, 7, 8, 28]}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("where", PADDED.values(), ids=PADDED)
def test_padding_changes_no_bit_of_any_output_or_gradient(where, dtype):
    layer = make_layer(qkv_bias=True).to(dtype)
    mask = torch.ones(2, 29, dtype=torch.bool)
    mask[0, where] = mask[1, 3] = False
    for index in (slice(None), 0):  # (batch, tokens, d_in) and (tokens, d_in)
        results = []
        for content in (0.0, *FILLS):
            x = make_input(dtype=dtype)[index]
            x = torch.where(mask[index][..., None], x, torch.tensor(content).to(dtype)).requires_grad_()
            output = layer(x, mask[index])
            gradients = torch.autograd.grad(output.sin().sum(), [x, *layer.parameters()])
            results.append((output, *gradients))
            assert all(map(torch.equal, results[0], results[-1]))
        output, gradient, *_ = results[0]
        assert (gradient[~mask[index]] == 0).all()
        assert torch.equal(output[~mask[index]], layer.out_proj.bias.expand_as(output[~mask[index]]))


def test_removing_the_padding_gives_the_same():
    layer, x = make_layer(), make_input()
    mask = torch.arange(29) < torch.tensor([[23], [29]])
    output = layer(x, mask)
    torch.testing.assert_close(output[0, :23], layer(x[0, :23]))
    torch.testing.assert_close(layer(x[0], mask[0]), output[0])
    assert torch.equal(layer(x, torch.ones_like(mask)), layer(x))


# With the rest of PyTorch


def test_state_dict_and_deepcopy_keep_the_buckets():
    layer, x = make_layer(), make_input()
    layer.resample_rotations()
    other = make_layer()
    assert not torch.equal(other.rotations, layer.rotations)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_compiled_it_gives_the_same_for_a_batch_of_one():
    """test_layers.py compiles it for a larger batch."""
    layer, x, mask = make_layer(), make_input()[:1], torch.arange(29)[None] > 3
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for inputs in ((x,), (x, mask)):
        torch.testing.assert_close(compiled(*inputs), layer(*inputs))
        wanted = torch.autograd.grad(layer(*inputs).sin().sum(), list(layer.parameters()))
        given = torch.autograd.grad(compiled(*inputs).sin().sum(), list(layer.parameters()))
        torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_no_gradient(use_reentrant):
    layer, x = make_layer(), make_input().requires_grad_()
    wanted = torch.autograd.grad(layer(x).sin().sum(), [x, *layer.parameters()])
    checkpoint(layer, x, use_reentrant=use_reentrant).sin().sum().backward()
    assert all(map(torch.equal, wanted, [x.grad, *(parameter.grad for parameter in layer.parameters())]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantised_it_stays_close():
    """Rounded vectors may change their bucket only if there are several: one chunk across all of them sees the same."""
    layer, x = make_layer(num_buckets=2, num_hashes=1, chunk_size=29, is_causal=False).eval(), make_input()
    layer.rotations.zero_()  # every vector falls in bucket 0
    quantised = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)
    assert not isinstance(quantised.W_query_key, nn.Linear)
    error = (quantised(x) - layer(x)).abs().max()
    assert 0 < error < 0.1 * layer(x).std()


def test_linears_may_be_replaced_by_any_module():
    layer, x = make_layer(), make_input()
    expected = layer(x)
    for name in ("W_query_key", "W_value", "out_proj"):
        linear = getattr(layer, name)
        setattr(layer, name, nn.Sequential(nn.Identity(), linear))  # has no weight and no in_features
    assert torch.equal(layer(x), expected)


def test_a_layer_is_created_entirely_on_the_default_device():
    with torch.device("meta"):
        layer = make_layer()
    assert {t.device.type for t in layer.state_dict().values()} == {"meta"}


def test_every_parameter_gets_a_gradient():
    layer = make_layer()
    layer(make_input()).sin().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


def test_half_precision_and_autocast():
    layer, x = make_layer(), make_input()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    assert layer.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(0, 29, 11), (2, 0, 11), (0, 11)])
def test_empty_inputs(shape):
    x, layer = torch.ones(shape), make_layer()
    assert layer(x).shape == (*shape[:-1], 6)
    assert layer(x, torch.ones(shape[:-1], dtype=torch.bool)).shape == (*shape[:-1], 6)


def test_errors():
    with pytest.raises(ValueError, match="d_out must be divisible by num_heads; got d_out=6, num_heads=4"):
        LSHSelfAttention(11, 6, 4)
    with pytest.raises(ValueError, match="num_buckets must be even"):
        make_layer(num_buckets=3)
    with pytest.raises(ValueError, match="chunk_size must be at least 1; got 0"):
        make_layer(chunk_size=0)
    for name in ("is_causal", "qkv_bias"):
        with pytest.raises(TypeError, match=f"{name} must be a .*bool; got str"):
            make_layer(**{name: "no"})
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator; got int"):
        make_layer().resample_rotations(3)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, tokens, d_in=11\) or \(tokens, d_in=11\)"):
        make_layer()(torch.ones(2, 29, 7))
    for x, axes, wrong in ((make_input(), "batch=2, tokens=29", (2, 7)), (make_input()[0], "tokens=29", (7,))):
        with pytest.raises(ValueError, match=re.escape(f"key_mask must have shape ({axes}); got {wrong}")):
            make_layer()(x, torch.ones(wrong, dtype=torch.bool))
        with pytest.raises(TypeError, match="key_mask must be a boolean tensor, True = real token; got list"):
            make_layer()(x, [True] * 29)
