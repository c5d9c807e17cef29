"""MemoryAttention: causal attention where there is no memory, full attention where the memory holds everything."""

import copy

import pytest
import torch
import torch.nn.functional as F

from attnlib.memory import KVMemory, MemoryAttention
from oracle import attend_by_loops

D_IN, D_OUT, HEADS, CONTEXT, BATCH = 11, 12, 3, 7, 2
FUSIONS = pytest.mark.parametrize("fusion", ["joint", "gate"])
LAYOUTS = pytest.mark.parametrize("head_dim", [None, D_OUT], ids=["cut", "complete"])


def layer_of(fusion="joint", head_dim=None, top_k=5, dropout=0.0, dtype=torch.float64, qkv_bias=True):
    torch.manual_seed(0)
    layer = MemoryAttention(
        D_IN, D_OUT, CONTEXT, dropout, HEADS, top_k=top_k, fusion=fusion, qkv_bias=qkv_bias, head_dim=head_dim
    )
    with torch.no_grad():  # heads that differ
        layer.log_temperature.add_(torch.tensor([0.0, 0.7, -0.7]))
        if fusion == "gate":
            layer.gate.copy_(torch.tensor([-1.0, 0.5, 2.0]))
    return layer.to(dtype).eval()


def tokens_of(tokens, seed=1, batch=BATCH, dtype=torch.float64):
    return torch.randn(batch, tokens, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def read_and_store(layer, x, memory):
    context = layer(x, memory)
    layer.remember(x, memory)
    return context


def by_loops(layer, past, x, top_k):
    """The definition: the output for x, (tokens, d_in), after `past`, one head and one token at a time."""
    heads = []
    for head in range(HEADS):
        columns = slice(head * layer.head_dim, (head + 1) * layer.head_dim)
        query, key, value = (
            linear(torch.cat([past, x]))[:, columns] for linear in (layer.W_query, layer.W_key, layer.W_value)
        )
        query, key = (t / t.norm(dim=-1, keepdim=True) for t in (query, key))
        scale = 1 / layer.log_temperature[head].exp().item()
        rows = []
        for i in range(len(past), len(past) + len(x)):
            best = (key[: len(past)] @ query[i]).argsort(descending=True)[:top_k].tolist()
            local = list(range(len(past), i + 1))
            parts = [
                attend_by_loops(query[i][None], key[j], value[j], None, scale)[0][0]
                for j in (best + local, best, local)
            ]
            if layer.fusion == "joint" or not len(past):
                rows.append(parts[0])
            else:
                gate = layer.gate[head].sigmoid()
                rows.append(gate * parts[1] + (1 - gate) * parts[2])
        heads.append(torch.stack(rows))
    return layer.out_proj(torch.cat(heads, dim=-1))


# Against loops, and against causal attention


@FUSIONS
@LAYOUTS
def test_against_loops(fusion, head_dim):
    layer, memory = layer_of(fusion, head_dim), layer_of(fusion, head_dim).new_memory(19, batch_size=BATCH)
    x = tokens_of(23)
    start = 0
    for size in (7, 6, 3):
        context = read_and_store(layer, x[:, start : start + size], memory)
        for row in range(BATCH):
            expected = by_loops(layer, x[row, :start], x[row, start : start + size], top_k=5)
            torch.testing.assert_close(context[row], expected)
        start += size


@LAYOUTS
@pytest.mark.parametrize("segments", [[7, 7, 7, 5], [1] * 26, [3, 7, 2, 7, 7]])
def test_segments_with_room_for_everything_are_causal_attention_over_the_whole(head_dim, segments):
    layer = layer_of(head_dim=head_dim, top_k=26)
    whole = copy.deepcopy(layer)
    whole.context_length = 26
    memory = layer.new_memory(26, batch_size=BATCH)
    x = tokens_of(26)
    pieces = [piece.clone().requires_grad_() for piece in x.split(segments, dim=1)]
    outputs = [read_and_store(layer, piece, memory) for piece in pieces]
    last = pieces[-1].detach().clone().requires_grad_()
    expected = whole(torch.cat([*(piece.detach() for piece in pieces[:-1]), last], dim=1))
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected)
    weight = torch.randn(outputs[-1].shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((outputs[-1] * weight).sum(), pieces[-1])
    (wanted,) = torch.autograd.grad((expected[:, -segments[-1] :] * weight).sum(), last)
    torch.testing.assert_close(gradient, wanted)


@FUSIONS
@LAYOUTS
def test_no_memory_an_empty_one_and_an_empty_row_are_causal_attention(fusion, head_dim):
    layer, x = layer_of(fusion, head_dim), tokens_of(7)
    alone = layer(x)
    for row in range(BATCH):
        torch.testing.assert_close(alone[row], by_loops(layer, x[row, :0], x[row], top_k=5))
    torch.testing.assert_close(layer(x, layer.new_memory(19, batch_size=BATCH)), alone)
    memory = layer.new_memory(19, batch_size=BATCH)
    layer.remember(tokens_of(7, seed=5), memory)
    memory.clear(rows=1)
    mixed = layer(x, memory)
    torch.testing.assert_close(mixed[1], alone[1])
    assert (mixed[0] - alone[0]).abs().max() > 0.01


@FUSIONS
def test_gradients_reach_every_parameter_and_x(fusion):
    layer, memory = layer_of(fusion), layer_of(fusion).new_memory(19, batch_size=BATCH)
    layer.remember(tokens_of(7, seed=3), memory)
    x = tokens_of(5).requires_grad_()

    assert torch.autograd.gradcheck(lambda x, *_: layer(x, memory), (x, *layer.parameters()), fast_mode=True)
    layer(x, memory).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


# Properties


@FUSIONS
def test_changing_a_token_changes_nothing_before_it(fusion):
    layer, x = layer_of(fusion), tokens_of(14)
    changed = x.clone()
    changed[:, 11] += 1
    outputs = []
    for each in (x, changed):
        memory = layer.new_memory(19, batch_size=BATCH)
        outputs.append(torch.cat([read_and_store(layer, piece, memory) for piece in each.split(7, dim=1)], dim=1))
    assert torch.equal(outputs[0][:, :11], outputs[1][:, :11])
    assert (outputs[0][:, 11:] != outputs[1][:, 11:]).any(-1).all()


@FUSIONS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nothing_crosses_rows(fusion, dtype):
    layer = layer_of(fusion, dtype=dtype)

    def outputs_of_row_1(seed, clear):
        memory, outputs = layer.new_memory(10, batch_size=BATCH), []
        for segment in range(4):
            x = tokens_of(7, seed=segment, dtype=dtype)
            x[0] = tokens_of(7, seed=seed + segment, dtype=dtype)[0]
            outputs.append(read_and_store(layer, x, memory)[1])
            if segment in clear:
                memory.clear(rows=0)
        return torch.cat(outputs)

    expected = outputs_of_row_1(100, clear=())
    for seed, clear in ((200, ()), (100, (0, 2)), (300, (3,))):
        assert torch.equal(outputs_of_row_1(seed, clear), expected)


@FUSIONS
@LAYOUTS
def test_weights_sum_to_one_and_give_the_output(fusion, head_dim):
    layer = layer_of(fusion, head_dim)
    memory = layer.new_memory(19, batch_size=BATCH)
    layer.remember(tokens_of(7, seed=3), memory)
    memory.clear(rows=1)
    layer.remember(tokens_of(3, seed=4), memory)  # row 0 now holds 10, row 1 only 3
    x = tokens_of(6)
    before = memory._held()
    weights, hits = layer.attention_weights(x, memory), layer.read(x, memory)
    assert memory._held() == before
    assert weights.shape == (BATCH, HEADS, 6, 5 + 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, HEADS, 6, dtype=torch.float64))
    assert not weights[..., :5][~hits.mask].any()
    assert not weights[..., 5:].triu(1).any()
    value = layer.W_value(x).view(BATCH, 6, HEADS, -1).transpose(1, 2)
    heads = (weights[..., :5].unsqueeze(-2) @ hits.values).squeeze(-2) + weights[..., 5:] @ value
    torch.testing.assert_close(layer.out_proj(heads.transpose(1, 2).flatten(2)), layer(x, memory))
    torch.testing.assert_close(layer.attention_weights(x).sum(-1), torch.ones(BATCH, HEADS, 6, dtype=torch.float64))


def test_a_memory_smaller_than_top_k_is_found_whole():
    layer = layer_of(top_k=5)
    memory = layer.new_memory(3, batch_size=BATCH)
    layer.remember(tokens_of(4), memory)
    assert layer.attention_weights(tokens_of(2, seed=2), memory).shape == (BATCH, HEADS, 2, 3 + 2)
    assert layer.read(tokens_of(2, seed=2), memory).mask.all()


def test_the_gate_is_the_paper_s():
    """sigmoid(0) takes the half of each; a gate far down is causal attention, far up the memory alone."""
    layer, x = layer_of("gate"), tokens_of(5)
    memory = layer.new_memory(19, batch_size=BATCH)
    layer.remember(tokens_of(7, seed=3), memory)
    outputs = {}
    for gate in (-100.0, 0.0, 100.0):
        torch.nn.init.constant_(layer.gate, gate)
        outputs[gate] = layer(x, memory)
    torch.testing.assert_close(outputs[-100.0], layer(x))
    torch.testing.assert_close(outputs[0.0], (outputs[-100.0] + outputs[100.0]) / 2)
    weights = layer.attention_weights(x, memory)
    assert weights[..., 5:].max() < 1e-9


def test_queries_and_keys_are_unit_vectors():
    """Three times the weights of queries and keys change nothing; what is stored has length 1."""
    layer, x = layer_of(qkv_bias=False), tokens_of(5)
    memory = layer.new_memory(19, batch_size=BATCH)
    before = read_and_store(layer, x, memory)
    with torch.no_grad():
        layer.W_query.weight.mul_(3)
        layer.W_key.weight.mul_(3)
    torch.testing.assert_close(layer(x), before)
    torch.testing.assert_close(memory._keys[:, :, :5].norm(dim=-1), torch.ones(BATCH, HEADS, 5, dtype=torch.float64))


def test_a_matrix_is_a_batch_of_one():
    layer, x = layer_of(), tokens_of(7, batch=1)
    memory = layer.new_memory(19)
    for each in (x[0], x):
        torch.testing.assert_close(layer(x[0], memory), layer(x, memory)[0])
        torch.testing.assert_close(layer.attention_weights(x[0], memory), layer.attention_weights(x, memory)[0])
        layer.remember(each, memory)
    assert len(memory) == 14


def test_dropout_is_for_training_and_reaches_the_memory_too():
    layer, x = layer_of(dropout=0.5, dtype=torch.float32), tokens_of(7, dtype=torch.float32)
    memory = layer.new_memory(19, batch_size=BATCH)
    layer.remember(x, memory)
    assert torch.equal(layer(x, memory), layer(x, memory))
    layer.train()
    assert not torch.equal(layer(x, memory), layer(x, memory))
    everything = MemoryAttention(D_IN, D_OUT, CONTEXT, 1.0, HEADS).train()
    torch.testing.assert_close(
        everything(x, memory_like(everything, memory)), everything.out_proj.bias.expand(BATCH, 7, -1)
    )


def memory_like(layer, other):
    memory = layer.new_memory(other.capacity, batch_size=other.batch_size)
    memory.add(*(torch.randn(BATCH, HEADS, 7, layer.head_dim) for _ in range(2)))
    return memory


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@FUSIONS
def test_half_precision(fusion, dtype):
    layer, reference = layer_of(fusion, dtype=dtype), layer_of(fusion)
    memory, exact = layer.new_memory(19, batch_size=BATCH), reference.new_memory(19, batch_size=BATCH)
    reference.load_state_dict(layer.state_dict())
    reference.top_k = layer.top_k = 19  # all, since rounding may choose another fifth
    for piece in tokens_of(14, dtype=dtype).split(7, dim=1):
        context = read_and_store(layer, piece, memory)
        assert context.dtype == memory.dtype == dtype
        torch.testing.assert_close(
            context.double(), read_and_store(reference, piece.double(), exact), atol=3e-2, rtol=3e-2
        )


@FUSIONS
def test_autocast(fusion):
    layer = layer_of(fusion, dtype=torch.float32, top_k=19)
    memory, exact = layer.new_memory(19, batch_size=BATCH), layer.new_memory(19, batch_size=BATCH)
    for piece in tokens_of(14, dtype=torch.float32).split(7, dim=1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            context = read_and_store(layer, piece, memory)
            layer.attention_weights(piece, memory)
        torch.testing.assert_close(context.float(), read_and_store(layer, piece, exact), atol=3e-2, rtol=3e-2)
    assert memory.dtype == torch.float32


def test_torch_compile():
    layer = layer_of(dtype=torch.float32)
    compiled, x = torch.compile(layer, backend="eager"), tokens_of(14, dtype=torch.float32)
    memory, other = layer.new_memory(19, batch_size=BATCH), layer.new_memory(19, batch_size=BATCH)
    for piece in x.split(7, dim=1):
        torch.testing.assert_close(read_and_store(compiled, piece, memory), read_and_store(layer, piece, other))
    assert memory._held() == other._held()
    torch.testing.assert_close(compiled(x[:, :7]), layer(x[:, :7]))


def test_parameters_their_order_and_no_buffer():
    assert list(layer_of("gate").state_dict()) == [
        "log_temperature",
        "gate",
        "W_query.weight",
        "W_query.bias",
        "W_key.weight",
        "W_key.bias",
        "W_value.weight",
        "W_value.bias",
        "out_proj.weight",
        "out_proj.bias",
    ]
    assert "gate" not in layer_of("joint").state_dict()
    torch.manual_seed(3)
    layer = MemoryAttention(D_IN, D_OUT, CONTEXT, 0.0, HEADS)
    torch.manual_seed(3)
    for linear in (layer.W_query, layer.W_key, layer.W_value):
        assert torch.equal(linear.weight, torch.nn.Linear(D_IN, D_OUT, bias=False).weight)
    assert torch.equal(layer.out_proj.weight, torch.nn.Linear(D_OUT, D_OUT).weight)
    complete = layer_of(head_dim=D_OUT)
    assert complete.W_key.weight.shape == (HEADS * D_OUT, D_IN)
    assert complete.out_proj.weight.shape == (D_OUT, HEADS * D_OUT)


def test_scores_are_cosines_over_the_temperature():
    layer = MemoryAttention(2, 2, 7, 0.0, 1, top_k=1).double()
    with torch.no_grad():
        for linear in (layer.W_query, layer.W_key, layer.W_value, layer.out_proj):
            linear.weight.copy_(torch.eye(2))
        layer.out_proj.bias.zero_()
    memory = layer.new_memory(3)
    layer.remember(torch.tensor([[3.0, 0.0]], dtype=torch.float64), memory)
    x = torch.tensor([[0.0, 5.0]], dtype=torch.float64)  # its own key scores 1 / 0.1, the memory 0
    share = 1 / (1 + torch.tensor(10.0, dtype=torch.float64).exp())
    torch.testing.assert_close(layer.attention_weights(x, memory).flatten(), torch.stack([share, 1 - share]))
    torch.testing.assert_close(layer(x, memory)[0], torch.stack([share * 3, (1 - share) * 5]))


def test_normalising_copes_with_a_zero_vector():
    layer = layer_of(qkv_bias=False)
    x = torch.zeros(BATCH, 3, D_IN, dtype=torch.float64, requires_grad=True)
    memory = layer.new_memory(19, batch_size=BATCH)
    for _ in range(2):
        context = read_and_store(layer, x, memory)
    context.sum().backward()
    assert context.isfinite().all()
    assert x.grad.isfinite().all()
    assert F.normalize(x, dim=-1).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_zero_vector_stays_one_in_the_memory_in_every_dtype(dtype):
    layer = layer_of(qkv_bias=False, dtype=dtype)
    memory = layer.new_memory(19, batch_size=BATCH)
    for _ in range(2):
        assert read_and_store(layer, torch.zeros(BATCH, 3, D_IN, dtype=dtype), memory).isfinite().all()
    assert not memory._keys.any()


# Errors


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: layer_of()(tokens_of(8), m), ValueError, "x must have at most context_length=7 tokens; got 8"),
        (lambda m: layer_of()(tokens_of(7)[..., :5], m), ValueError, r"x must have shape .*d_in=11.*got \(2, 7, 5\)"),
        (lambda m: layer_of()(tokens_of(7), "memory"), TypeError, "memory must be a KVMemory; got str"),
        (lambda m: layer_of()(tokens_of(7, batch=3), m), ValueError, "query must have shape .*batch=2.*got .3"),
        (lambda m: layer_of()(tokens_of(7)[0], m), ValueError, "query must have shape .*batch=2.*got .1"),
        (lambda m: layer_of(head_dim=5)(tokens_of(7), m), ValueError, "memory must have head_dim=5, .*; got 4"),
        (
            lambda m: MemoryAttention(3, 4, 5, 0.0, 2, fusion="sum"),
            ValueError,
            'fusion must be "joint" or "gate"; got \'sum\'',
        ),
        (
            lambda m: MemoryAttention(3, 4, 5, 0.0, 3),
            ValueError,
            "d_out must be divisible by num_heads; got d_out=4, num_heads=3",
        ),
        (lambda m: MemoryAttention(3, 4, 5, 1.5, 2), ValueError, "dropout must lie between 0 and 1; got 1.5"),
        (lambda m: MemoryAttention(3, 4, 5, 0.0, 2, top_k=0), ValueError, "top_k must be at least 1; got 0"),
        (lambda m: MemoryAttention(3, 4, 5, 0.0, 2, head_dim=0), ValueError, "head_dim must be at least 1; got 0"),
        (lambda m: MemoryAttention(3.0, 4, 5, 0.0, 2), TypeError, "d_in must be an int; got float"),
    ],
)
def test_errors(call, error, match):
    memory = KVMemory(19, HEADS, 4, batch_size=BATCH, dtype=torch.float64)
    with pytest.raises(error, match=match):
        call(memory)
    assert len(memory) == 0


@FUSIONS
@pytest.mark.parametrize(("sizes", "match"), [((2, 4, 4), "num_heads=3, .*got 2"), ((3, 4, 1), "value_dim=4, .*got 1")])
def test_a_memory_of_other_sizes_is_refused_and_stays_as_it_was(fusion, sizes, match):
    num_heads, head_dim, value_dim = sizes
    memory = KVMemory(19, num_heads, head_dim, value_dim=value_dim, batch_size=BATCH, dtype=torch.float64)
    layer, x = layer_of(fusion), tokens_of(7)
    for call in (layer, layer.read, layer.remember, layer.attention_weights):
        with pytest.raises(ValueError, match=f"memory must have {match}"):
            call(x, memory)
    assert len(memory) == 0
