"""MemoryAttention: causal attention where there is no memory, full attention where the memory holds everything."""

import copy
import io
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from attnlib.memory import KVMemory, MemoryAttention, kv_memory
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
    """The definition: the output for x, (tokens, d_in), after `past`, one head and one token at a time. What is past
    has no gradient."""
    heads = []
    for head in range(HEADS):
        columns = slice(head * layer.head_dim, (head + 1) * layer.head_dim)
        query, key, value = (
            torch.cat([linear(past).detach(), linear(x)])[:, columns]
            for linear in (layer.W_query, layer.W_key, layer.W_value)
        )
        query, key = (t / t.norm(dim=-1, keepdim=True) for t in (query, key))
        scale = 1 / layer.log_temperature[head].exp()
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
    for size in (3, 7, 6, 3):  # the second segment finds fewer than top_k
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


# A forward only reads


REENTRANT = pytest.mark.parametrize("use_reentrant", [False, True], ids=["not reentrant", "reentrant"])
WRITTEN = "call remember after backward, or read outside the checkpoint"


def gradients_over_segments(layer, attend, all_at_once, afterwards=lambda memory: None):
    """Read and store four segments; one backward pass at the end, or one before each segment is stored."""
    layer.zero_grad()
    memory = layer.new_memory(19, batch_size=BATCH)
    segments = [x.requires_grad_() for x in tokens_of(20, dtype=memory.dtype).split(5, dim=1)]
    losses = []
    for segment in segments:
        losses.append(attend(segment, memory).pow(2).sum())
        if not all_at_once:
            losses.pop().backward()
        layer.remember(segment, memory)
    if all_at_once:
        afterwards(memory)
        torch.stack(losses).sum().backward()
    return [leaf.grad.clone() for leaf in (*segments, *layer.parameters())], memory


@FUSIONS
@pytest.mark.parametrize(
    ("use_reentrant", "dtype"),
    [(False, torch.float64), (True, torch.float32), (False, torch.bfloat16), (True, torch.float16)],
)
def test_gradients_under_checkpoint_are_equal_to_the_last_digit(fusion, use_reentrant, dtype):
    layer = layer_of(fusion, dtype=dtype)

    def with_memory(x, memory):
        return checkpoint(layer, x, memory, use_reentrant=use_reentrant)

    def with_hits(x, memory):
        return checkpoint(layer, x, layer.read(x, memory), use_reentrant=use_reentrant)

    for all_at_once, attends in ((False, (with_memory, with_hits)), (True, (with_hits,))):
        expected, memory = gradients_over_segments(layer, layer, all_at_once)
        assert memory._next == [20] * BATCH
        for attend in attends:
            gradients, again = gradients_over_segments(layer, attend, all_at_once)
            assert all(torch.equal(one, other) for one, other in zip(gradients, expected, strict=True))
            assert again._next == memory._next
            assert torch.equal(again._keys, memory._keys)
            assert torch.equal(again._values, memory._values)


@FUSIONS
@REENTRANT
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("block", [False, True])
def test_a_checkpoint_of_a_memory_that_grows_before_backward_is_refused(fusion, use_reentrant, frozen, block):
    """Whatever is trained, wherever in the checkpoint the layer is, and whatever looked at the memory in between."""
    layer = layer_of(fusion)
    layer.W_query.requires_grad_(not frozen)

    def run(x, memory):
        return layer(x.tanh(), memory).tanh() if block else layer(x, memory)

    def look(memory):
        layer(tokens_of(3), memory)
        layer.read(tokens_of(3), memory)

    for afterwards in (lambda memory: None, look, KVMemory.clear):
        with pytest.raises(RuntimeError, match=WRITTEN):
            gradients_over_segments(
                layer, lambda x, memory: checkpoint(run, x, memory, use_reentrant=use_reentrant), True, afterwards
            )


@FUSIONS
@pytest.mark.parametrize("change", ["remember", "add", "clear", "load_state_dict"])
@pytest.mark.parametrize("between", ["nothing", "a forward", "its backward", "another checkpoint", "an inner one"])
def test_a_reentrant_checkpoint_of_a_shared_memory_is_refused_until_it_is_recomputed(fusion, between, change):
    """No read of the memory in between lifts the refusal, and it holds for every way to change the memory."""
    layer, other, x = layer_of(fusion), layer_of(fusion), tokens_of(5).requires_grad_()
    memory = layer.new_memory(19, batch_size=BATCH)
    layer.remember(tokens_of(7, seed=3), memory)
    key, state = torch.ones(BATCH, HEADS, 1, layer.head_dim, dtype=torch.float64), memory.state_dict()
    changes = {
        "remember": lambda: layer.remember(x, memory),
        "add": lambda: memory.add(key, key),
        "clear": memory.clear,
        "load_state_dict": lambda: memory.load_state_dict(state),
    }

    def inner(x, memory):
        return checkpoint(layer, x, memory, use_reentrant=True)

    read = inner if between != "an inner one" else lambda x, m: checkpoint(inner, x, m, use_reentrant=True)
    context = read(x, memory)
    if between == "a forward":
        other(x, memory)
    elif between == "its backward":
        other(x, memory).sum().backward()
    elif between == "another checkpoint":
        checkpoint(other, x, memory, use_reentrant=False).sum().backward()
    before = memory.state_dict()
    with pytest.raises(RuntimeError, match=f"{WRITTEN}.*Otherwise, change it under torch.no_grad"):
        changes[change]()
    assert all(torch.equal(tensor, before[name]) for name, tensor in memory.state_dict().items())
    layer.zero_grad()
    context.sum().backward()
    changes[change]()
    with torch.no_grad():  # evaluation, which nothing recomputes
        layer(x, memory)
        changes[change]()
    changes[change]()


@FUSIONS
def test_each_key_is_scored_twice_once_to_search_and_once_for_the_gradient(fusion):
    layer, x = layer_of(fusion, dtype=torch.float32), tokens_of(5, dtype=torch.float32)
    memory = layer.new_memory(19, batch_size=BATCH)
    layer.remember(tokens_of(7, seed=3, dtype=torch.float32), memory)
    queries, head_dim = BATCH * HEADS * 5, D_OUT // HEADS

    def products(call):
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops() // 2

    with mock.patch.object(kv_memory, "score_keys", wraps=kv_memory.score_keys) as again:
        assert products(lambda: layer.read(x, memory)) - products(lambda: layer._query(x)) == queries * 7 * head_dim
    assert [call.args[1].shape for call in again.call_args_list] == [(BATCH, HEADS, 5, 5, head_dim)]
    with_hits = products(lambda: layer(x, layer.read(x, memory))) - products(lambda: layer.read(x, memory))
    with_memory = products(lambda: layer(x, memory))
    assert with_memory == with_hits + queries * 7 * head_dim


@FUSIONS
def test_forward_read_and_attention_weights_leave_the_memory_as_it_was(fusion):
    layer, x = layer_of(fusion), tokens_of(7)
    memory = layer.new_memory(19, batch_size=BATCH)
    layer.remember(x, memory)
    before = memory.state_dict()
    for call in (layer, layer.read, layer.attention_weights):
        for training in (False, True):
            call(tokens_of(5, seed=2), memory)
            layer.train(training)
    after = memory.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@FUSIONS
def test_hits_stand_in_for_the_memory_they_were_found_in(fusion):
    layer, x = layer_of(fusion), tokens_of(5)
    memory = layer.new_memory(19, batch_size=BATCH)
    layer.remember(tokens_of(7, seed=3), memory)
    hits = layer.read(x, memory)
    assert not hits.scores.requires_grad
    assert torch.equal(layer(x, hits), layer(x, memory))
    assert torch.equal(layer.attention_weights(x, hits), layer.attention_weights(x, memory))


@FUSIONS
@LAYOUTS
def test_gradients_through_the_hits_against_loops(fusion, head_dim):
    layer, past = layer_of(fusion, head_dim), tokens_of(11, seed=3)
    memory = layer.new_memory(19, batch_size=BATCH)
    layer.remember(past[:, :7], memory)
    layer.remember(past[:, 7:], memory)
    x, weight = tokens_of(5).requires_grad_(), torch.randn(BATCH, 5, D_OUT, dtype=torch.float64)
    leaves = (x, layer.W_query.weight, layer.W_query.bias, layer.log_temperature, layer.out_proj.weight)
    gradients = torch.autograd.grad((layer(x, memory) * weight).sum(), leaves)
    expected = [by_loops(layer, past[row], x[row], top_k=5) for row in range(BATCH)]
    wanted = torch.autograd.grad((torch.stack(expected) * weight).sum(), leaves)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other)


# Padding


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    fusion=st.sampled_from(["joint", "gate"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    real=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=BATCH, max_size=BATCH),
    padding=st.sampled_from([9.0, -6e4, 6e4, -1e38, 1e38, torch.nan, torch.inf, -torch.inf]),
    matrix=st.booleans(),
)
def test_padding_moves_nothing_and_is_not_stored(fusion, dtype, real, padding, matrix):
    layer, key_mask = layer_of(fusion, dtype=dtype), torch.tensor(real)
    past, x = tokens_of(6, seed=3, dtype=dtype), tokens_of(6, dtype=dtype)
    if matrix:
        past, x, key_mask = past[:1].squeeze(0), x[:1].squeeze(0), key_mask[0]

    def everything(fill):
        layer.zero_grad()
        fill = torch.tensor(fill, dtype=torch.float64).to(dtype)  # in float16, 1e38 is ∞
        filled = [torch.where(key_mask.unsqueeze(-1), tokens, fill) for tokens in (past, x)]
        memory, leaf = layer.new_memory(19, batch_size=1 if matrix else BATCH), filled[1].requires_grad_()
        layer.remember(filled[0], memory, key_mask)
        output = layer(leaf, memory, key_mask)
        output.pow(2).sum().backward()
        gradients = [leaf.grad, *(parameter.grad for parameter in layer.parameters())]
        results = [output, layer.attention_weights(leaf, memory, key_mask), layer(leaf, None, key_mask)]
        return [*results, *gradients, memory._keys, memory._values], memory

    expected, _ = everything(0.0)
    results, memory = everything(padding)
    assert all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))
    rows = key_mask if not matrix else key_mask.unsqueeze(0)
    assert memory.lengths.tolist() == rows.sum(-1).tolist()
    assert not results[3][~key_mask].any()  # the gradient of padding
    output, weights = (tensor.unsqueeze(0) if matrix else tensor for tensor in results[:2])
    torch.testing.assert_close(output[~rows], layer.out_proj.bias.expand(int((~rows).sum()), -1))
    assert not weights.transpose(1, 2)[~rows].any()
    for row, mask in enumerate(rows):  # each row as if it had never been padded
        alone = layer.new_memory(19)
        layer.remember((past if matrix else past[row])[mask], alone)
        expected = layer((x if matrix else x[row])[mask], alone)
        tolerance = {torch.bfloat16: 3e-2, torch.float16: 1e-2}.get(dtype, 1e-5)
        torch.testing.assert_close(output[row][mask], expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@FUSIONS
def test_a_broken_token_in_the_memory_is_never_found(fusion, bad):
    layer, x, past = layer_of(fusion), tokens_of(5), tokens_of(7, seed=3)
    memory, expected = (layer.new_memory(19, batch_size=BATCH) for _ in range(2))
    layer.remember(past, expected)
    for position in range(7):  # a broken token before each good one
        layer.remember(torch.full((BATCH, 1, D_IN), bad, dtype=torch.float64), memory)
        layer.remember(past[:, position : position + 1], memory)
    assert memory.lengths.tolist() == [14] * BATCH
    torch.testing.assert_close(layer(x, memory), layer(x, expected))
    torch.testing.assert_close(layer.attention_weights(x, memory), layer.attention_weights(x, expected))


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


@FUSIONS
def test_the_dropout_module_decides(fusion):
    layer, x = layer_of(fusion, dropout=0.5, dtype=torch.float32), tokens_of(7, dtype=torch.float32)
    memory = layer.new_memory(19, batch_size=BATCH)
    layer.remember(x, memory)
    exact = layer(x, memory), layer(x)

    def varies():
        return [
            not torch.equal(call(), expected)
            for call, expected in zip((lambda: layer(x, memory), lambda: layer(x)), exact)
        ]

    layer.eval().dropout.train()  # Monte Carlo dropout
    assert varies() == [True, True]
    layer.train().dropout.eval()  # frozen
    assert varies() == [False, False]
    layer.train().dropout = nn.Identity()
    assert varies() == [False, False]


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


# Tools


def test_torch_compile_of_a_model_that_reads_and_stores_at_any_fill():
    """Empty, up to top_k = 5, beyond it, and beyond the capacity of 11, where the ring wraps around."""
    torch.compiler.reset()
    layer = layer_of(dtype=torch.float32)
    memory, other = layer.new_memory(11, batch_size=BATCH), layer.new_memory(11, batch_size=BATCH)
    compiled = torch.compile(read_and_store, backend="aot_eager")
    for step in range(9):
        piece = tokens_of(3, seed=step, dtype=torch.float32)
        outputs = compiled(layer, piece, memory), read_and_store(layer, piece, other)
        torch.testing.assert_close(*outputs)
        gradients = [torch.autograd.grad(output.sum(), layer.W_query.weight)[0] for output in outputs]
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
    assert memory._held() == other._held()


@pytest.fixture
def filled():
    """A layer, a memory that holds something, and x, in float32."""
    layer = layer_of(dtype=torch.float32)
    memory = layer.new_memory(19, batch_size=BATCH)
    layer.remember(tokens_of(7, seed=3, dtype=torch.float32), memory)
    return layer, memory, tokens_of(5, dtype=torch.float32)


def test_export_takes_hits(filled):
    layer, memory, x = filled
    arguments = x, layer.read(x, memory)
    program = torch.export.export(layer, arguments, strict=False)
    torch.testing.assert_close(program.module()(*arguments), layer(*arguments))


def test_export_of_a_search_is_refused(filled):
    layer, memory, x = filled

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x, memory)

    with pytest.raises(NotImplementedError, match="torch.export cannot search or write a KVMemory; search it first"):
        torch.export.export(Model(), (x,), strict=False)


def test_functional_call_and_per_sample_gradients(filled):
    layer, memory, x = filled
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(layer, parameters, (x, memory)), layer(x, memory))

    def loss(parameters, x, hits):
        one = type(hits)(*(tensor.unsqueeze(0) for tensor in hits))
        return torch.func.functional_call(layer, parameters, (x, one)).pow(2).sum()

    hits = layer.read(x, memory)
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, hits)
    for row in range(BATCH):
        expected = torch.func.grad(loss)(parameters, x[row], type(hits)(*(tensor[row] for tensor in hits)))
        for name in parameters:
            torch.testing.assert_close(gradients[name][row], expected[name], atol=1e-5, rtol=1e-5)
    alone = torch.func.grad(lambda p: torch.func.functional_call(layer, p, (x, memory)).pow(2).sum())(parameters)
    for name in parameters:
        torch.testing.assert_close(gradients[name].sum(0), alone[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["__call__", "remember", "read"])
def test_vmap_over_a_memory_is_refused(filled, method):
    layer, _, x = filled
    memory = layer.new_memory(19)
    layer.remember(x[0], memory)
    with pytest.raises(NotImplementedError, match="torch.vmap cannot search or write a KVMemory; search it first"):
        torch.func.vmap(lambda row: getattr(layer, method)(row, memory))(x)
    assert len(memory) == 5


def test_copies_state_dicts_and_replaced_projections(filled):
    layer, memory, x = filled
    expected = layer(x, memory)
    twin, held = copy.deepcopy((layer, memory))
    assert torch.equal(twin(x, held), expected)
    twin.remember(x, held)
    assert memory.lengths.tolist() == [7] * BATCH
    other = MemoryAttention(D_IN, D_OUT, CONTEXT, 0.0, HEADS, top_k=5, qkv_bias=True)
    file = io.BytesIO()
    torch.save({"layer": layer.state_dict(), "memory": memory.state_dict()}, file)
    file.seek(0)
    saved, loaded = torch.load(file, weights_only=True), other.new_memory(19, batch_size=BATCH)
    other.load_state_dict(saved["layer"])
    loaded.load_state_dict(saved["memory"])
    assert torch.equal(other(x, loaded), expected)
    for name in ("W_query", "W_key", "W_value", "out_proj"):  # an adapter has no weight of its own
        setattr(twin, name, nn.Sequential(getattr(twin, name)))
    assert torch.equal(twin(x, memory), expected)
    assert twin.new_memory(3).dtype == torch.float32


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantize_dynamic(filled):
    layer, memory, x = filled
    engines = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]
    if not engines:
        pytest.skip("torch was built without quantized kernels")
    quantized = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear}, torch.qint8)
    held = quantized.new_memory(19, batch_size=BATCH)
    quantized.remember(tokens_of(7, seed=3, dtype=torch.float32), held)
    torch.testing.assert_close(quantized(x, held), layer(x, memory), atol=0.1, rtol=0.1)
    torch.testing.assert_close(quantized(x), layer(x), atol=0.1, rtol=0.1)


def test_a_wrong_width_is_named_whatever_the_projections_are(filled):
    layer, memory, _ = filled
    layer.W_query = layer.W_key = layer.W_value = nn.Identity()
    for call in (layer, layer.remember, layer.read, layer.attention_weights):
        with pytest.raises(ValueError, match=r"x must have shape .*d_in=11.*got \(2, 5, 12\)"):
            call(torch.ones(2, 5, 12), memory)


# Parameters


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
        (lambda m: layer_of().remember(tokens_of(7), None), TypeError, "memory must be a KVMemory; got NoneType"),
        (lambda m: layer_of()(tokens_of(7), m, torch.ones(2, 7)), TypeError, "key_mask must be a boolean tensor"),
        (lambda m: layer_of().remember(tokens_of(7), m, torch.ones(2, 5) > 0), ValueError, "key_mask must have shape"),
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
