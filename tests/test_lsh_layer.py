"""LSHSelfAttention."""

import pytest
import torch
import torch.nn.functional as F

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
    assert [name for name, _ in layer.named_parameters()] == list(layer.state_dict())[1:]


def test_a_causal_layer_gives_a_prefix_what_it_gives_the_whole():
    layer, x = make_layer().double(), make_input(dtype=torch.float64)
    whole = layer(x)
    for length in range(1, 30):
        torch.testing.assert_close(layer(x[:, :length]), whole[:, :length], rtol=0, atol=1e-12)


def test_forwards_are_equal_to_the_bit_and_leave_the_global_generator_alone():
    layer, x = make_layer().eval(), make_input()
    before = torch.get_rng_state()
    assert torch.equal(layer(x), layer(x))
    layer.resample_rotations(torch.Generator().manual_seed(3))
    layer.resample_rotations()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_saved_layer_finds_the_same_buckets_again():
    layer, x = make_layer(), make_input()
    layer.resample_rotations(torch.Generator().manual_seed(3))
    other = make_layer()
    assert not torch.equal(other.rotations, layer.rotations)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_resampling_draws_new_directions_in_place():
    layer = make_layer()
    first, place = layer.rotations.clone(), layer.rotations.data_ptr()
    layer.resample_rotations(torch.Generator().manual_seed(3))
    assert not torch.equal(layer.rotations, first)
    layer.resample_rotations()
    assert torch.equal(layer.rotations, first)
    assert layer.rotations.data_ptr() == place


def test_padding_changes_nothing():
    layer, x = make_layer(), make_input()
    mask = torch.arange(29) < torch.tensor([[23], [29]])
    output = layer(x, mask)
    torch.testing.assert_close(output[0, :23], layer(x[0, :23]))
    torch.testing.assert_close(layer(x[0], mask[0]), output[0])
    torch.testing.assert_close(output[0, 23:], layer.out_proj.bias.expand(6, 6))


@pytest.mark.parametrize("batch", [1, 2])
def test_compiled_it_is_the_same(batch):
    layer, x = make_layer(), make_input()[:batch]
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    wanted = torch.autograd.grad(layer(x).sin().sum(), list(layer.parameters()))
    torch.testing.assert_close(torch.autograd.grad(compiled(x).sin().sum(), list(layer.parameters())), wanted)


def test_all_of_a_layer_is_made_on_the_default_device():
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


def test_errors():
    with pytest.raises(ValueError, match="d_out must be divisible by num_heads; got d_out=6, num_heads=4"):
        LSHSelfAttention(11, 6, 4)
    with pytest.raises(ValueError, match="num_buckets must be even"):
        make_layer(num_buckets=3)
    with pytest.raises(ValueError, match="chunk_size must be at least 1; got 0"):
        make_layer(chunk_size=0)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, tokens, d_in=11\) or \(tokens, d_in=11\)"):
        make_layer()(torch.ones(2, 29, 7))
    with pytest.raises(ValueError, match=r"key_mask must have shape \(batch=2, tokens=29\); got \(2, 7\)"):
        make_layer()(make_input(), torch.ones(2, 7, dtype=torch.bool))
    for x in (make_input(), make_input()[0]):
        with pytest.raises(TypeError, match="key_mask must be a boolean tensor, True = real; got list"):
            make_layer()(x, [True] * 29)
