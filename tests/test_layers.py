"""Every layer in one table, under what people do with layers: padding, dtypes, layouts, copies, transforms."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from attnlib.generation import GroupedQueryAttention
from attnlib.lsh import LSHSelfAttention
from attnlib.memory import MemoryAttention
from attnlib.multi_head import MultiHeadAttention, MultiHeadAttentionWrapper
from attnlib.self_attention import CausalAttention, SelfAttention_v1, SelfAttention_v2

BATCH, TOKENS, D_IN, CONTEXT = 3, 7, 5, 19


@dataclass(frozen=True)
class Row:
    """A layer to be tested: how to make it, and what it can do."""

    make: Callable[[], nn.Module]
    is_causal: bool = True
    has_dropout: bool = True
    has_weights: bool = True
    has_linears: bool = True
    has_second_derivatives: bool = True
    has_vmap: bool = True


class MemoryAttentionAlone(MemoryAttention):
    """Without a memory, and with the arguments of the other layers."""

    def forward(self, x, key_mask=None):
        return super().forward(x, key_mask=key_mask)

    def attention_weights(self, x, key_mask=None):
        return super().attention_weights(x, key_mask=key_mask)


class GroupedQueryAttentionAlone(GroupedQueryAttention):
    """Without a cache, and with the arguments of the other layers."""

    def forward(self, x, key_mask=None):
        return super().forward(x, key_mask=key_mask)

    def attention_weights(self, x, key_mask=None):
        return super().attention_weights(x, key_mask=key_mask)


LAYERS = {
    "v1": Row(lambda: SelfAttention_v1(D_IN, 3, True), is_causal=False, has_dropout=False, has_linears=False),
    "v2": Row(lambda: SelfAttention_v2(D_IN, 3, True), is_causal=False, has_dropout=False),
    "causal": Row(lambda: CausalAttention(D_IN, 3, CONTEXT, qkv_bias=True)),
    "wrapper": Row(lambda: MultiHeadAttentionWrapper(D_IN, 3, CONTEXT, 2, 0.0, True)),
    "multi_head": Row(lambda: MultiHeadAttention(D_IN, 6, CONTEXT, 0.0, 2, True)),
    "lsh": Row(
        lambda: LSHSelfAttention(D_IN, 6, 2, chunk_size=4, num_buckets=4, num_hashes=2, qkv_bias=True),
        has_dropout=False,
        has_weights=False,
        has_second_derivatives=False,
        has_vmap=False,
    ),
    "memory": Row(lambda: MemoryAttentionAlone(D_IN, 6, CONTEXT, 0.0, 2, qkv_bias=True)),
    "grouped": Row(lambda: GroupedQueryAttentionAlone(D_IN, 12, CONTEXT, 6, 2, qkv_bias=True), has_dropout=False),
    "window": Row(
        lambda: GroupedQueryAttentionAlone(D_IN, 12, CONTEXT, 6, 3, window=3, sinks=1, qkv_bias=True), has_dropout=False
    ),
    "full": Row(lambda: MultiHeadAttention(D_IN, 6, CONTEXT, 0.0, 2, True, is_causal=False), is_causal=False),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
PADDINGS = {
    "none": [[True] * TOKENS] * BATCH,
    "right": [[j < n for j in range(TOKENS)] for n in (7, 4, 1)],
    "left": [[j >= n for j in range(TOKENS)] for n in (0, 4, 6)],
    "middle": [[j not in hidden for j in range(TOKENS)] for hidden in ((), (1, 2, 5), (0, 3, 6))],
    "a row of it": [[True] * TOKENS, [False] * TOKENS, [True] + [False] * (TOKENS - 1)],
}
LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "last axis strided": lambda x: x.mT.contiguous().mT,
    "every second number": lambda x: torch.stack([x, x], dim=-1).flatten(-2)[..., ::2],
}


def make(name, dtype=torch.float32):
    torch.manual_seed(0)
    layer = LAYERS[name].make()
    for parameter_name, parameter in layer.named_parameters():
        if "bias" in parameter_name:
            nn.init.normal_(parameter)
    return layer.to(dtype)


def tokens(dtype=torch.float32, tokens=TOKENS, seed=1):
    return torch.randn(BATCH, tokens, D_IN, generator=torch.Generator().manual_seed(seed)).to(dtype)


def padding(name):
    return torch.tensor(PADDINGS[name])


def run(layer, x, key_mask, real):
    """Real outputs, their gradients in the parameters, and in x."""
    x = x.detach().requires_grad_()
    output = layer(x, key_mask)
    leaves = [x, *layer.parameters()]
    (grad_x, *grads) = torch.autograd.grad(output[real].square().sum(), leaves, allow_unused=True)
    return output, grad_x, grads


# Padding


@every_layer
@pytest.mark.parametrize("where", list(PADDINGS)[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_changes_nothing_whatever_it_holds(name, where, dtype):
    layer, x, real = make(name, dtype), tokens(dtype), padding(where)
    weights = LAYERS[name].has_weights
    want_output, want_x, want_gradients = run(layer, x, real, real)
    want_weights = layer.attention_weights(x, real) if weights else None
    assert want_output.isfinite().all()
    assert not want_x[~real].any()
    for held in (9.0, torch.finfo(dtype).max, -torch.inf, torch.nan):
        padded = x.masked_fill(~real[..., None], held)
        output, grad_x, gradients = run(layer, padded, real, real)
        assert torch.equal(output, want_output)
        assert torch.equal(grad_x, want_x)
        for got, want in zip(gradients, want_gradients):
            assert got is want is None or torch.equal(got, want)
        if weights:
            assert torch.equal(layer.attention_weights(padded, real), want_weights)


@every_layer
@pytest.mark.parametrize("where", PADDINGS)
def test_a_padded_row_equals_its_real_tokens_alone(name, where):
    layer, x, real = make(name, torch.float64), tokens(torch.float64), padding(where)
    output = layer(x, real)
    nothing = (
        layer.out_proj(torch.zeros(1, dtype=x.dtype).expand(layer.out_proj.in_features))
        if hasattr(layer, "out_proj")
        else 0.0
    )
    for row in range(BATCH):
        alone = x[row, real[row]]
        assert_close(output[row, real[row]], layer(alone))
        assert_close(layer(x[row], real[row]), output[row])
        assert_close(output[row, ~real[row]], torch.zeros_like(output[row, ~real[row]]) + nothing)
        if LAYERS[name].has_weights:
            weights = layer.attention_weights(x, real)[row]
            assert_close(weights[..., real[row], :][..., real[row]], layer.attention_weights(alone))
            assert not weights[..., ~real[row]].any()
            assert not weights[..., ~real[row], :].any()
            assert_close(layer.attention_weights(x[row], real[row]), weights)


@every_layer
def test_a_mask_of_real_tokens_only_changes_nothing(name):
    layer, x = make(name, torch.float64), tokens(torch.float64)
    assert_close(layer(x, torch.ones(BATCH, TOKENS, dtype=torch.bool)), layer(x))


@every_layer
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_padding_of_any_length(name, data):
    length = data.draw(st.integers(0, CONTEXT))
    real = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=BATCH, max_size=BATCH))
    )
    real = real.reshape(BATCH, length).bool()
    layer, x = make(name, torch.float64), tokens(torch.float64, length)
    x = x.masked_fill(~real[..., None], torch.nan)
    output = layer(x, real)
    for row in range(BATCH):
        assert_close(output[row, real[row]], layer(x[row, real[row]]))


@every_layer
def test_errors_of_the_key_mask(name):
    layer, x = make(name), tokens()
    calls = [layer, layer.attention_weights] if LAYERS[name].has_weights else [layer]
    for call in calls:
        with pytest.raises(TypeError, match="key_mask must be a boolean tensor, True = real token; got torch.float32"):
            call(x, torch.ones(BATCH, TOKENS))
        with pytest.raises(TypeError, match="key_mask must be a boolean tensor, True = real token; got list"):
            call(x, PADDINGS["none"])
        with pytest.raises(ValueError, match=r"key_mask must have shape \(batch=3, tokens=7\); got \(3, 6\)"):
            call(x, torch.ones(BATCH, TOKENS - 1, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"key_mask must have shape \(tokens=7\); got \(3, 7\)"):
            call(x[0], torch.ones(BATCH, TOKENS, dtype=torch.bool))
        with pytest.raises(ValueError, match="key_mask must be on the device of x, cpu; got meta"):
            call(x, torch.ones(BATCH, TOKENS, dtype=torch.bool, device="meta"))


# Dtypes and layouts


@every_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_layout_of_x_does_not_matter(name, dtype):
    layer, x = make(name, dtype), tokens(dtype)
    tolerance = {torch.bfloat16: 0.06, torch.float16: 0.01}.get(dtype, 1e-5)
    wide = copy.deepcopy(layer).double()
    for real in (None, padding("left")):
        rows = slice(None) if real is None else real
        want_output, want_x, want_gradients = run(wide, x.double(), real, rows)
        wanted = (want_output, want_x, *want_gradients)
        largest = max(1.0, *(want.abs().max().item() for want in wanted if want is not None))
        for layout in LAYOUTS.values():
            laid_out = layout(x)
            assert torch.equal(laid_out, x)
            output, grad_x, gradients = run(layer, laid_out, real, rows)
            for got, want in zip((output, grad_x, *gradients), wanted):
                if got is None:  # nothing above padding depends on the last bias
                    assert want is None
                else:
                    assert got.dtype == dtype
                    assert_close(got.double(), want, atol=tolerance * largest, rtol=0)


@every_layer
def test_on_meta(name):
    layer, x = make(name).to("meta"), tokens().to("meta")
    assert layer(x, padding("left").to("meta")).shape == make(name)(tokens()).shape


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(name, dtype):
    layer, x, real = make(name), tokens(), padding("left")
    with torch.autocast("cpu", dtype=dtype):
        plain, padded = layer(x), layer(x, real)
        assert_close(layer(x.to(dtype)), plain)
    assert_close(plain.float(), layer(x), atol=0.06, rtol=0.06)
    assert_close(padded.float(), layer(x, real), atol=0.06, rtol=0.06)


# Copies and state


@every_layer
def test_deepcopy_and_state_dict(name):
    layer, x, real = make(name), tokens(), padding("middle")
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert not torch.equal(twin(x, real), layer(x, real))
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x, real), layer(x, real))
    assert torch.equal(functional_call(twin, dict(layer.named_parameters()), (x, real)), layer(x, real))


@pytest.mark.parametrize("name", ["causal", "wrapper", "multi_head"])
def test_a_state_dict_with_a_mask_buffer_loads(name):
    """As the classes of books store it, one for each head; what is unknown otherwise is still an error."""
    layer, x = make(name), tokens()
    state = {key: value + 1.0 for key, value in layer.state_dict().items()}
    prefixes = ("heads.0.", "heads.1.") if name == "wrapper" else ("",)
    state.update({f"{prefix}mask": torch.ones(CONTEXT, CONTEXT).triu(1) for prefix in prefixes})
    names = set(state)
    for twin in (layer, copy.deepcopy(layer)):
        before = twin(x)
        twin.load_state_dict(state, strict=True)
        assert not torch.equal(twin(x), before)
    assert set(state) == names  # the caller's dict is left as it was
    with pytest.raises(RuntimeError, match='Unexpected key\\(s\\) in state_dict: "masks"'):
        layer.load_state_dict({**state, "masks": torch.ones(1)})


@every_layer
def test_quantized_and_adapted_linears(name):
    """A layer asks nothing of its Linears but to be called."""
    if not LAYERS[name].has_linears:
        return
    layer, x, real = make(name).eval(), tokens(), padding("right")
    quantized = quantize_dynamic(copy.deepcopy(layer), {nn.Linear}, dtype=torch.qint8)
    assert not any(type(module) is nn.Linear for module in quantized.modules())
    assert_close(quantized(x, real), layer(x, real), atol=0.1, rtol=0.1)
    adapted = copy.deepcopy(layer)
    for module in list(adapted.modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, child_name, nn.Sequential(child, nn.Identity()))
    assert torch.equal(adapted(x, real), layer(x, real))


@every_layer
def test_offloaded_linears(name):
    """Weights rest on meta; a hook brings them before each call and takes them away after it, as accelerate does."""
    if not LAYERS[name].has_linears:
        return
    layer, x, real = make(name), tokens(), padding("left")
    want, calls = layer(x, real), []

    def bring(linear, _):
        calls.append(linear)
        for name, weight in at_home[linear].items():
            setattr(linear, name, nn.Parameter(weight))

    def take_away(linear, *_):
        linear.to("meta")

    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    at_home = {linear: {name: p.detach().clone() for name, p in linear.named_parameters()} for linear in linears}
    for linear in linears:
        take_away(linear)
        linear.register_forward_pre_hook(bring)
        linear.register_forward_hook(take_away)
    assert torch.equal(layer(x, real), want)
    assert set(calls) == set(linears)
    assert all(linear.weight.is_meta for linear in linears)


# Dropout


@every_layer
def test_the_dropout_module_decides_when_to_drop(name):
    if not LAYERS[name].has_dropout:
        return
    layer, x = make(name).eval(), tokens()
    want = layer(x)
    owners = [module for module in layer.modules() if isinstance(getattr(module, "dropout", None), nn.Dropout)]
    for owner in owners:
        owner.dropout.p = 0.5
        owner.dropout.train()  # Monte Carlo dropout: everything else stays in eval
    assert not torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    for owner in owners:
        owner.dropout.eval()  # frozen
    assert torch.equal(layer(x), want)
    for owner in owners:
        owner.dropout = nn.Identity()
    assert torch.equal(layer.train()(x), want)


# Transforms


SIMPLE = ("v1", "v2", "causal", "wrapper")  # the graph of "full" or "multi_head" holds every operation of theirs


@every_layer
def test_compiled(name):
    layer, x, real = make(name), tokens(), padding("left")
    backend = "eager" if name in SIMPLE else "inductor" if name == "multi_head" else "aot_eager"
    leaves = list(layer.parameters())
    for arguments, how in (((x,), "eager"), ((x, real), backend)):  # the second graph holds all of the first
        got, want = torch.compile(layer, backend=how, fullgraph=True)(*arguments), layer(*arguments)
        assert_close(got, want)
        gradients = [torch.autograd.grad(out.square().sum(), leaves, allow_unused=True) for out in (got, want)]
        for ours, theirs in zip(*gradients):
            assert ours is theirs is None or bool(torch.isclose(ours, theirs, atol=1e-4, rtol=1e-4).all())
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "padded"), [(name, padded) for name in LAYERS for padded in (False, True) if padded or name not in SIMPLE]
)
def test_exported_with_any_number_of_tokens(name, padded):
    layer, dim = make(name), torch.export.Dim("tokens", min=2, max=CONTEXT - 1)
    arguments = (tokens(), padding("left"))[: 1 + padded]
    exported = torch.export.export(layer, arguments, dynamic_shapes=({1: dim},) * len(arguments)).module()
    x = tokens(tokens=11, seed=2)
    arguments = (x, torch.arange(11) >= torch.tensor([[0], [4], [10]]))[: 1 + padded]
    assert_close(exported(*arguments), layer(*arguments))


@every_layer
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_each_row_by_vmap(name, padded):
    layer, x = make(name, torch.float64), tokens(torch.float64)
    parameters = dict(layer.named_parameters())

    def loss(parameters, *arguments):
        return functional_call(layer, parameters, arguments).square().sum()

    arguments = (x, padding("left"))[: 1 + padded]
    if not LAYERS[name].has_vmap:
        with pytest.raises(NotImplementedError, match="torch.vmap cannot map LSH attention"):
            vmap(grad(loss), in_dims=(None,) + (0,) * len(arguments))(parameters, *arguments)
        return
    got = vmap(grad(loss), in_dims=(None,) + (0,) * len(arguments))(parameters, *arguments)
    for row in range(BATCH):
        want = grad(loss)(parameters, *(argument[row] for argument in arguments))
        for key in want:
            assert_close(got[key][row], want[key])


@every_layer
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_digit(name, use_reentrant):
    layer, real = make(name), padding("middle")
    x = tokens().requires_grad_()
    leaves = [x, *layer.parameters()]
    output = checkpoint(layer, x, real, use_reentrant=use_reentrant)
    output.square().sum().backward()
    got = [leaf.grad for leaf in leaves]
    want = torch.autograd.grad(layer(x, real).square().sum(), leaves, allow_unused=True)
    for ours, theirs in zip(got, want):
        assert ours is theirs is None or torch.equal(ours, theirs)


@every_layer
@pytest.mark.parametrize("padded", [False, True])
def test_second_derivatives_through_the_math_backend(name, padded):
    layer = make(name, torch.float64)
    x = tokens(torch.float64)[:, :3].clone().requires_grad_()
    real = padding("middle")[:, :3] if padded else None
    if not LAYERS[name].has_second_derivatives:
        with pytest.raises(NotImplementedError, match="can be differentiated once"):
            torch.autograd.gradgradcheck(lambda x: layer(x, real), x, fast_mode=True)
        return
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(lambda x: layer(x, real), x, fast_mode=True)
