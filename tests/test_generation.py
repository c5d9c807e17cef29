"""Grouped-query attention: a cache changes nothing but the time."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from attnlib import generation
from attnlib.generation import GroupedQueryAttention
from attnlib.kv_cache import KVCache
from attnlib.masks import sliding_window_mask
from attnlib.multi_head import MultiHeadAttention, join_heads, split_heads
from attnlib.positions import convert_rotary_layout, rotate
from largest_tensor import LargestTensor
from oracle import attend_by_loops

BATCH, TOKENS, D_IN, HEADS, HEAD_DIM, CONTEXT = 3, 11, 5, 6, 4, 23
D_OUT = HEADS * HEAD_DIM
EXACT = {"atol": 1e-12, "rtol": 0}
WINDOWS = [{}, {"window": 1}, {"window": 3}, {"window": 3, "sinks": 2}, {"window": 1, "sinks": 1}, {"window": CONTEXT}]
windows = pytest.mark.parametrize("options", WINDOWS, ids=str)


def make(num_kv_heads=2, num_heads=HEADS, context_length=CONTEXT, **options):
    torch.manual_seed(0)
    return GroupedQueryAttention(D_IN, D_OUT, context_length, num_heads, num_kv_heads, **options).double()


def draw(*shape, seed=1):
    shape = shape or (BATCH, TOKENS, D_IN)
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def in_pieces(layer, x, sizes, key_mask=None, cache=None):
    """The outputs for x, given to the layer a piece at a time, with a cache."""
    cache = layer.new_cache() if cache is None else cache
    masks = [None] * len(sizes) if key_mask is None else key_mask.split(sizes, dim=-1)
    outputs = []
    for piece, mask in zip(x.split(sizes, dim=-2), masks):
        layer.append(piece, cache, mask)
        outputs.append(layer(piece, cache))
    return torch.cat(outputs, dim=-2)


def by_loops(layer, x):
    """The definition for rows (batch, tokens, d_in) without padding, a head at a time."""
    tokens, group, heads = x.shape[1], layer.num_heads // layer.num_kv_heads, []
    for h in range(layer.num_heads):
        own, shared = (slice(i * HEAD_DIM, (i + 1) * HEAD_DIM) for i in (h, h // group))
        query, key, value = layer.W_query(x)[..., own], layer.W_key(x)[..., shared], layer.W_value(x)[..., shared]
        if layer.rotary:
            query, key = (rotate(t, torch.arange(tokens), base=layer.base) for t in (query, key))
        window = layer.window or tokens
        mask = [[j <= i and (i - j < window or j < layer.sinks) for j in range(tokens)] for i in range(tokens)]
        heads.append(attend_by_loops(query, key, value, torch.tensor(mask))[0])
    return layer.out_proj(torch.cat(heads, dim=-1))


# By hand


def test_query_heads_share_the_key_heads_of_their_group():
    """A token that sees itself only gets its own value: heads 0, 1, 2 that of key head 0, heads 3, 4, 5 that of 1."""
    layer, x = make(window=1), draw()
    with torch.no_grad():
        layer.out_proj.weight.copy_(torch.eye(D_OUT))
        layer.out_proj.bias.zero_()
    first, second = layer.W_value(x).chunk(2, dim=-1)
    assert_close(layer(x), torch.cat([first] * 3 + [second] * 3, dim=-1), **EXACT)


def test_one_new_token_sees_the_whole_cache():
    layer, x, cache = make(), draw(), make().new_cache()
    layer.append(x, cache)
    last = layer(x, cache)[:, -1]
    changed = x.clone()
    changed[:, 0] += 1.0
    assert not torch.allclose(in_pieces(layer, changed, [TOKENS - 1, 1])[:, -1], last)


def test_bytes_of_the_cache():
    """2 · kv_heads · head_dim · bytes for each token of each row."""
    for num_kv_heads in (1, 2, 3, 6):
        layer = make(num_kv_heads).float()
        cache = layer.new_cache()
        layer.append(draw().float(), cache)
        assert cache.nbytes == BATCH * TOKENS * 2 * num_kv_heads * HEAD_DIM * 4


# Against others


@windows
@pytest.mark.parametrize(("num_kv_heads", "rotary"), [(1, True), (2, True), (3, False), (6, True)])
def test_equals_the_loops_forward_and_backward(num_kv_heads, rotary, options, monkeypatch):
    layer, x = make(num_kv_heads, rotary=rotary, base=50.0, qkv_bias=True, **options), draw().requires_grad_()
    leaves = [x, *layer.parameters()]
    want = by_loops(layer, x)
    wanted_gradients = torch.autograd.grad(want.square().sum(), leaves)
    for block in (2, 128):
        monkeypatch.setattr(generation, "QUERY_BLOCK", block)
        got = layer(x)
        assert_close(got, want, **EXACT)
        assert_close(torch.autograd.grad(got.square().sum(), leaves), wanted_gradients, atol=1e-11, rtol=0)


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_with_as_many_key_heads_and_no_turning_it_is_multi_head_attention(qkv_bias):
    layer = make(HEADS, rotary=False, qkv_bias=qkv_bias)
    torch.manual_seed(0)
    plain = MultiHeadAttention(D_IN, D_OUT, CONTEXT, 0.0, HEADS, qkv_bias).double()
    x, real = draw(), torch.arange(TOKENS) >= torch.tensor([[0], [3], [TOKENS]])
    assert_close(layer(x), plain(x), **EXACT)  # the seed gives the same draws
    nn.init.normal_(plain.W_key.weight)
    layer.load_state_dict(plain.state_dict())
    assert_close(layer(x, key_mask=real), plain(x, real), **EXACT)
    assert_close(layer.attention_weights(x), plain.attention_weights(x), **EXACT)
    assert_close(in_pieces(layer, x, [4, 1, 6]), plain(x), **EXACT)


@windows
def test_equals_the_grouped_kernel_of_torch(options):
    layer, x = make(**options), draw()
    query, key, value = (
        split_heads(linear(x), heads) for linear, heads in ((layer.W_query, 6), (layer.W_key, 2), (layer.W_value, 2))
    )
    query, key = (rotate(t, torch.arange(TOKENS)) for t in (query, key))
    mask = sliding_window_mask(TOKENS, TOKENS, options.get("window", TOKENS), sinks=options.get("sinks", 0))
    want = layer.out_proj(join_heads(F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)))
    assert_close(layer(x), want, **EXACT)
    assert_close(in_pieces(layer, x, [1] * TOKENS), want, **EXACT)


HUGGING_FACE = {  # the first 4 of 24 numbers of tokens 1, 3 and 5, in float64 with float32 angles; base and window
    ("Llama", 10000.0, None): [[0.21206, -2.6439, -2.45503, 0.56115], [0.50034, -0.81363, -1.19059, -0.19642],
                               [0.09093, -0.13407, -0.20467, -0.03956]],
    ("Llama", 500000.0, None): [[0.21248, -2.65467, -2.46459, 0.56381], [0.49675, -0.80322, -1.17816, -0.19628],
                                [0.09802, -0.11329, -0.19413, -0.05141]],
    ("Mistral", 10000.0, 3): [[0.21206, -2.6439, -2.45503, 0.56115], [0.58746, -0.91254, -1.36162, -0.2426],
                              [-0.18528, 2.01094, 1.89128, -0.40646]],
    ("Cohere", 10000.0, None): [[0.3457, -2.40433, -2.38543, 0.38063], [0.42384, -1.61795, -1.79644, 0.09392],
                                [-0.0163, -0.38933, -0.31399, 0.12295]],
}  # fmt: skip


@pytest.mark.parametrize(("name", "base", "window"), HUGGING_FACE)
def test_equals_the_attention_of_transformers(name, base, window):
    """Numbers of LlamaAttention, MistralAttention and CohereAttention of transformers 5.24.0, with 4 heads and 2 key
    heads. Cohere pairs neighbours. ``python run.py bench generation`` compares with the installed version."""

    def waves(*shape, step):
        return (step * torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64)).sin().view(shape)

    layer, x = GroupedQueryAttention(24, 24, 7, 4, 2, base=base, window=window).double(), waves(7, 24, step=0.3)
    weights = [waves(rows, 24, step=step) for rows, step in ((24, 0.7), (12, 0.8), (12, 0.9), (24, 1.0))]
    if name == "Cohere":
        weights[:2] = (convert_rotary_layout(weight, n, to="halves") for weight, n in zip(weights, (4, 2)))
    with torch.no_grad():
        for linear, weight in zip((layer.W_query, layer.W_key, layer.W_value, layer.out_proj), weights):
            linear.weight.copy_(weight)
        layer.out_proj.bias.zero_()
        for got in (layer(x), in_pieces(layer, x, [4, 1, 1, 1]), in_pieces(layer, x, [1] * 7)):
            assert_close(got[1::2, :4], torch.tensor(HUGGING_FACE[name, base, window]).double(), atol=1e-5, rtol=0)


# Properties


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_cache_changes_nothing(data):
    """Any split into calls, any heads, windows and sinks, and padding anywhere, whatever it holds."""
    options = data.draw(st.sampled_from(WINDOWS))
    layer = make(data.draw(st.sampled_from([1, 2, 3, 6])), rotary=data.draw(st.booleans()), **options)
    cuts = sorted(data.draw(st.lists(st.integers(0, TOKENS), max_size=TOKENS)))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, TOKENS])]
    x, kind = draw(seed=data.draw(st.integers(0, 99))), data.draw(st.sampled_from(["none", "left", "anywhere"]))
    real = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    if kind == "left":
        real = torch.arange(TOKENS) >= torch.tensor([[data.draw(st.integers(0, TOKENS))] for _ in range(BATCH)])
    elif kind == "anywhere":
        real = torch.tensor(data.draw(st.lists(st.booleans(), min_size=BATCH * TOKENS, max_size=BATCH * TOKENS)))
        real = real.view(BATCH, TOKENS)
    x = x.masked_fill(~real[..., None], torch.nan)
    mask = None if kind == "none" else real
    keeps_all = data.draw(st.booleans())
    with mock.patch.object(generation, "QUERY_BLOCK", data.draw(st.integers(1, TOKENS))):
        got = in_pieces(layer, x, sizes, mask, KVCache() if keeps_all else None)
    assert_close(got, layer(x, key_mask=mask), **EXACT)
    for row in range(BATCH):
        assert_close(got[row, real[row]], layer(x[row, real[row]]), **EXACT)


@windows
def test_padding_that_comes_after_the_prompt(options):
    """Left padding in the prompt only: the mask is given once."""
    layer, x = make(**options), draw()
    real = torch.arange(5) >= torch.tensor([[0], [2], [5]])
    cache = layer.new_cache()
    layer.append(x[:, :5], cache, real)
    outputs = [layer(x[:, :5], cache)]
    for token in x[:, 5:].split(1, dim=1):
        layer.append(token, cache)
        outputs.append(layer(token, cache))
    real = torch.cat([real, torch.ones(BATCH, TOKENS - 5, dtype=torch.bool)], dim=1)
    assert_close(torch.cat(outputs, dim=1), layer(x, key_mask=real), **EXACT)


@windows
def test_a_single_row_without_a_batch(options):
    layer, x = make(**options), draw()
    assert_close(in_pieces(layer, x[0], [4, 1, 6]), layer(x)[0], **EXACT)
    real = torch.arange(TOKENS) >= 3
    assert_close(in_pieces(layer, x[0], [4, 1, 6], real), layer(x[0], key_mask=real), **EXACT)
    assert_close(layer.attention_weights(x[0]), layer.attention_weights(x)[0], **EXACT)


@windows
@pytest.mark.parametrize("padded", [False, True])
def test_attention_weights_with_and_without_a_cache(options, padded):
    layer, x = make(**options), draw()
    real = torch.arange(TOKENS) >= torch.tensor([[0], [4], [TOKENS]]) if padded else None
    weights = layer.attention_weights(x, key_mask=real)
    assert weights.shape == (BATCH, HEADS, TOKENS, TOKENS)
    values = split_heads(layer.W_value(x), 2).repeat_interleave(3, dim=1)
    assert_close(layer.out_proj(join_heads(weights @ values)), layer(x, key_mask=real), **EXACT)
    cache = KVCache()
    for first, last in ((0, 4), (4, 5), (5, TOKENS)):
        layer.append(x[:, first:last], cache, None if real is None else real[:, first:last])
        assert_close(layer.attention_weights(x[:, first:last], cache), weights[:, :, first:last, :last], **EXACT)


def test_a_window_goes_on_beyond_the_context_length_in_constant_memory():
    layer, cache = make(window=4, sinks=1, context_length=5), KVCache(window=4, sinks=1)
    x = draw(1, 150, D_IN)
    outputs, sizes = [], []
    for token in x.split(1, dim=1):
        layer.append(token, cache)
        outputs.append(layer(token, cache))
        sizes.append((cache.nbytes, cache._key.untyped_storage().nbytes()))
    assert len({size for size, _ in sizes}) == 5  # 1, 2, 3, 4, 5 tokens, and no more
    assert {storage for _, storage in sizes[20:]} == {(5 + 16) * 2 * HEAD_DIM * 8}
    longer = make(window=4, sinks=1, context_length=150)
    assert_close(torch.cat(outputs, dim=1), longer(x), **EXACT)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_a_long_prompt_makes_no_mask_of_tokens_by_tokens(padded, cached):
    """At one time, forward or backward, and without padding in sum for the backward pass."""
    tokens, window = 2_003, 61
    layer, cache = make(context_length=tokens, window=window, sinks=3).float(), KVCache() if cached else None
    x, real = draw(1, tokens, D_IN).float().requires_grad_(), torch.arange(tokens)[None] >= 1_000 if padded else None
    saved = []
    if cached:
        layer.append(x, cache, real)
    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: None):
        layer(x, cache, None if cached else real)
    assert largest.numbers <= 2 * tokens * 128  # a block's mask for each key head
    if not padded:
        assert largest.numbers <= 2 * 128 * (window + 128 + 3)
        assert sum(tensor.numel() for tensor in saved) < 8 * tokens * D_OUT + 2 * tokens * (window + 128 + 3)
    output = layer(x, cache, None if cached else real)
    with LargestTensor() as largest:
        output.sum().backward()
    assert largest.numbers <= 2 * tokens * 128


@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_a_step_copies_no_keys(num_kv_heads):
    layer, cache = make(num_kv_heads, context_length=1_021), KVCache()
    layer.append(draw(1, 1_020, D_IN), cache)
    layer.append(draw(1, 1, D_IN), cache)
    with LargestTensor() as largest:
        layer(draw(1, 1, D_IN), cache)
    assert largest.numbers <= cache.key.numel()


def test_rows_are_reordered_as_in_a_beam_search():
    layer, x, rows = make(), draw(), torch.tensor([2, 0, 2, 1])
    cache = layer.new_cache()
    layer.append(x[:, :6], cache, torch.arange(6) >= torch.tensor([[0], [1], [4]]))
    prompt = layer(x[:, :6], cache)
    beams = cache.select_rows(rows)
    assert_close(layer(x[rows, :6], beams), prompt[rows], **EXACT)
    after = draw(4, 2, D_IN, seed=2)
    real = torch.arange(8) >= torch.tensor([[0], [1], [4]])[rows]
    want = layer(torch.cat([x[rows, :6], after], dim=1), key_mask=real)[:, 6:]
    assert_close(in_pieces(layer, after, [1, 1], cache=beams), want, **EXACT)
    assert_close(layer(x[:, :6], cache), prompt, **EXACT)  # the first cache is as it was


def test_forward_changes_nothing_and_append_leaves_no_gradient():
    layer, x, cache = make(), draw().requires_grad_(), KVCache()
    layer.append(x, cache)
    first, before = layer(x, cache), cache.key.clone()
    assert torch.equal(layer(x, cache), first)
    assert torch.equal(cache.key, before)
    assert not cache.key.requires_grad
    first.square().sum().backward()
    assert layer.W_key.weight.grad is None  # gradients of keys need a call without a cache
    assert layer.W_query.weight.grad.abs().sum() > 0
    layer(x).square().sum().backward()
    assert layer.W_key.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("padded", [False, True])
def test_a_cache_filled_in_inference_mode_is_used_and_added_to_outside_of_it(padded):
    layer, x, cache = make(window=7, sinks=1), draw(), KVCache(window=7, sinks=1)
    real = torch.arange(5) >= torch.tensor([[0], [2], [4]]) if padded else None
    with torch.inference_mode():
        layer.append(x[:, :5], cache, real)
        prompt = layer(x[:, :5], cache)
    assert_close(layer(x[:, :5], cache).detach(), prompt, **EXACT)
    for token in x[:, 5:].split(1, dim=1):
        with torch.inference_mode():
            layer.append(token, cache)
        layer(token, cache).sum().backward()
        with torch.no_grad():
            layer.append(token, cache)
    assert layer.W_query.weight.grad.abs().sum() > 0


def test_padding_spoils_no_gradient_of_a_call_with_a_cache():
    layer, cache, real = make(), KVCache(), torch.arange(TOKENS) >= torch.tensor([[0], [4], [TOKENS]])
    x = draw().masked_fill(~real[..., None], torch.nan).requires_grad_()
    layer.append(x, cache, real)
    grads = torch.autograd.grad(layer(x, cache).square().sum(), [x, layer.W_query.weight])
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[0][~real].any()


def test_keys_that_were_turned_by_hand():
    layer, x, cache = make(), draw(), KVCache()
    key, value = (split_heads(linear(x), 2) for linear in (layer.W_key, layer.W_value))
    cache.append(rotate(key, torch.arange(TOKENS)), value)
    assert_close(layer(x, cache), layer(x), **EXACT)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_without_gradients(mode, dtype):
    layer, x = make(window=3, sinks=1), draw()
    want = layer(x)
    with mode():
        got = in_pieces(layer.to(dtype), x.to(dtype), [4, 1, 6])
    assert got.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    assert_close(got.double(), want.detach(), atol=tolerance, rtol=0)


def test_keys_turn_by_the_angles_of_their_own_layer_and_dtype():
    """Angles are computed ahead, and must not be those of another base or of float32."""
    layers, x, cache = {base: make(base=base) for base in (100.0, 500000.0)}, draw(BATCH, 4, D_IN), KVCache()
    for t, (base, dtype) in enumerate([(100.0, torch.float64), (100.0, torch.float32), (500000.0, torch.float32)]):
        layers[base].to(dtype).append(x[:, t : t + 1].to(dtype), cache)
    layer = layers[500000.0].double()
    layer.append(x[:, 3:], cache)
    want = rotate(split_heads(layer.W_key(x[:, 2:]), 2), torch.arange(2, 4), base=500000.0)
    assert_close(cache.key[:, :, 2:3], want[:, :, :1], atol=1e-6, rtol=0)
    assert_close(cache.key[:, :, 3:], want[:, :, 1:], **EXACT)


def test_a_cache_filled_under_autocast():
    layer, x = make().float(), draw().float()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        cache = KVCache()
        got = in_pieces(layer, x, [4, 1, 6], cache=cache)
    assert cache.key.dtype == torch.bfloat16
    assert_close(got.float(), layer(x), atol=0.05, rtol=0)


@windows
@pytest.mark.parametrize("padded", [False, True])
def test_everything_stays_on_the_device_of_its_input(options, padded):
    layer, x = make(**options).to("meta"), draw().to("meta")
    real = torch.ones(BATCH, TOKENS, dtype=torch.bool, device="meta") if padded else None
    for cache in (layer.new_cache(), KVCache()):
        assert in_pieces(layer, x, [4, 1, 6], real, cache).device.type == "meta"
        assert {cache.positions.device, cache.lengths.device, cache.key.device} == {x.device}
    for got in (layer(x, key_mask=real), layer.attention_weights(x, key_mask=real)):
        assert got.device.type == "meta"


def test_compiled_with_a_cache():
    layer, x, cache = make(), draw(), KVCache()
    compiled = torch.compile(layer, backend="eager")
    for first in range(3):
        layer.append(x[:, first : first + 1], cache)
        assert_close(compiled(x[:, first : first + 1], cache), layer(x[:, first : first + 1], cache))
    torch._dynamo.reset()


def test_a_batch_of_one_keeps_its_axis():
    layer, x = GroupedQueryAttention(11, 24, 13, 6, 2), torch.rand(1, 7, 11)
    assert layer(x).shape == (1, 7, 24)
    assert layer.attention_weights(x).shape == (1, 6, 7, 7)


# Errors


def test_errors_of_construction():
    with pytest.raises(ValueError, match="context_length must be at least 1; got 0"):
        GroupedQueryAttention(11, 24, 0, 6, 2)
    with pytest.raises(
        ValueError, match="num_heads must be divisible by num_kv_heads; got num_heads=6, num_kv_heads=4"
    ):
        make(4)
    with pytest.raises(ValueError, match="num_kv_heads must be at least 1; got 0"):
        make(0)
    with pytest.raises(ValueError, match="d_out must be divisible by num_heads; got d_out=24, num_heads=7"):
        make(7, 7)
    with pytest.raises(ValueError, match="head_dim must be even, .*; got 3"):
        make(8, 8)
    make(8, 8, rotary=False)
    with pytest.raises(ValueError, match="sinks need a window, .*; got sinks=2"):
        make(sinks=2)
    with pytest.raises(TypeError, match="rotary must be a bool; got str"):
        make(rotary="halves")
    with pytest.raises(ValueError, match="base must be positive; got -1"):
        make(base=-1)


def test_errors_of_the_cache():
    layer, x, cache = make(window=3, sinks=1), draw(), KVCache(window=3, sinks=1)
    with pytest.raises(TypeError, match="cache must be a KVCache; got NoneType"):
        layer.append(x, None)
    for call in (layer, layer.append, layer.attention_weights):
        with pytest.raises(TypeError, match="cache must be a KVCache; got list"):
            call(x, [])
        with pytest.raises(
            ValueError, match="cache must have the layer's window=3, sinks=1, or no .* window=3, sinks=0"
        ):
            call(x, KVCache(window=3))
    with pytest.raises(ValueError, match=r"append\(x, cache\) stored last, batch=0, tokens=0; got \(3, 11, 5\)"):
        layer(x, cache)
    layer.append(x, cache)
    with pytest.raises(ValueError, match=r"append\(x, cache\) stored last, batch=3, tokens=11; got \(3, 1, 5\)"):
        layer(x[:, :1], cache)
    with pytest.raises(ValueError, match="key_mask belongs to append"):
        layer(x, cache, torch.ones(BATCH, TOKENS, dtype=torch.bool))
    for call in (layer, layer.append, layer.attention_weights):
        with pytest.raises(ValueError, match="x must have the cache's batch size, 3; got 2"):
            call(x[:2], cache)
        with pytest.raises(ValueError, match="x must be on the device of the cache, cpu; got meta"):
            call(x.to("meta"), cache)
    with pytest.raises(ValueError, match=r"key must have shape .*num_kv_heads=2.*; got \(3, 3, 11, 4\)"):
        make(3, window=3, sinks=1).append(x, cache)
    assert cache.lengths.tolist() == [TOKENS] * BATCH


def test_errors_of_too_many_tokens():
    layer, cache = make(), KVCache()
    with pytest.raises(ValueError, match="x must have at most context_length=23 tokens; got 24"):
        layer(draw(1, 24, D_IN))
    layer.append(draw(1, 20, D_IN), cache)
    with pytest.raises(ValueError, match="cache must hold at most context_length=23 tokens; got 20 and 4 more"):
        layer.append(draw(1, 4, D_IN), cache)
    layer.append(draw(1, 3, D_IN), cache)
    assert len(cache) == 23
