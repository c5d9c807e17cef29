"""KVMemory against a plain list of everything, and everything that published memories get wrong."""

import itertools
import os
from contextlib import contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from attnlib.memory import KVMemory, search, topk_attend
from memory_oracle import ListMemory

HEADS, HEAD_DIM, VALUE_DIM = 2, 3, 5
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@contextmanager
def tiny_tournament():
    """Let the tournament of the search run, through all its rounds, on a handful of keys."""
    with mock.patch.multiple(search, FEW=0, FAN=2, WINDOW=3, QUERIES=4, CANDIDATES=7):
        yield


def whole_numbers(*shape, seed, size=3):
    """Small whole numbers: their dot products are exact in every dtype, and often equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-size, size + 1, shape, generator=generator).float()


def check_hits(hits, everything, top_k):
    """The best of `everything`, best first, of equal scores the newer first; nothing where there is none."""
    batch, heads, tokens, _ = hits.ids.shape
    mask, ids, scores, keys, values = (t.tolist() for t in (hits.mask, hits.ids, hits.scores, hits.keys, hits.values))
    for row, head, token in itertools.product(range(batch), range(heads), range(tokens)):
        best = sorted(everything[row][head][token], key=lambda hit: hit[:2], reverse=True)[:top_k]
        missing = top_k - len(best)
        assert mask[row][head][token] == [True] * len(best) + [False] * missing
        assert scores[row][head][token] == [hit[0] for hit in best] + [-torch.inf] * missing
        assert ids[row][head][token] == [hit[1] for hit in best] + [-1] * missing
        assert keys[row][head][token] == [hit[2] for hit in best] + [[0.0] * hits.keys.shape[-1]] * missing
        assert values[row][head][token] == [hit[3] for hit in best] + [[0.0] * hits.values.shape[-1]] * missing


class MemoryMachine(RuleBasedStateMachine):
    """Random sequences of everything that a memory can do."""

    path = None

    @initialize(
        capacity=st.integers(1, 7),
        batch=st.integers(1, 3),
        dtype=st.sampled_from(DTYPES),
    )
    def start(self, capacity, batch, dtype):
        self.batch, self.dtype = batch, dtype
        self.memory = KVMemory(capacity, HEADS, HEAD_DIM, value_dim=VALUE_DIM, batch_size=batch, dtype=dtype)
        self.oracle = ListMemory(capacity, batch)

    @rule(extra=st.integers(-1, 1), seed=st.integers(0, 2**20))
    def add_about_capacity(self, extra, seed):
        self.add(self.memory.capacity + extra, seed, None)

    @rule(tokens=st.integers(0, 17), seed=st.integers(0, 2**20), data=st.data())
    def add_masked(self, tokens, seed, data):
        row = st.lists(st.booleans(), min_size=tokens, max_size=tokens)
        self.add(tokens, seed, data.draw(st.lists(row, min_size=self.batch, max_size=self.batch)))

    def add(self, tokens, seed, mask):
        key = whole_numbers(self.batch, HEADS, tokens, HEAD_DIM, seed=seed)
        value = whole_numbers(self.batch, HEADS, tokens, VALUE_DIM, seed=seed + 1, size=100)
        as_mask = None if mask is None else torch.tensor(mask, dtype=torch.bool).view(self.batch, tokens)
        self.memory.add(key.to(self.dtype), value.to(self.dtype), as_mask)
        self.oracle.add(key.tolist(), value.tolist(), mask)

    @rule(data=st.data())
    def clear(self, data):
        rows = data.draw(st.lists(st.integers(0, self.batch - 1), unique=True))
        as_mask = torch.zeros(self.batch, dtype=torch.bool)
        as_mask[rows] = True
        self.memory.clear(data.draw(st.sampled_from([rows, as_mask])))
        self.oracle.clear(rows)

    @rule()
    def clear_all(self):
        self.memory.clear()
        self.oracle.clear(range(self.batch))

    @rule(
        tokens=st.integers(0, 3),
        top_k=st.integers(1, 9),
        tournament=st.booleans(),
        seed=st.integers(0, 2**20),
    )
    def search(self, tokens, top_k, tournament, seed):
        query = whole_numbers(self.batch, HEADS, tokens, HEAD_DIM, seed=seed)
        with tiny_tournament() if tournament else nullcontext():
            hits = self.memory.search(query.to(self.dtype), top_k)
        check_hits(hits, self.oracle.search(query.tolist()), top_k)

    @rule()
    def save_and_load(self):
        self.memory.save(self.path)
        self.memory = KVMemory.load(self.path)

    @invariant()
    def lengths_agree(self):
        if hasattr(self, "memory"):
            assert self.memory.lengths.tolist() == [len(row) for row in self.oracle.rows]
            assert len(self.memory) == max(len(row) for row in self.oracle.rows)


def test_random_sequences_agree_with_a_list_of_everything(tmp_path):
    MemoryMachine.path = tmp_path / "memory"
    many = settings(max_examples=200, stateful_step_count=8, deadline=None, derandomize=True, database=None)
    with mock.patch.object(os, "fsync"):  # many of them take long; test_memory_storage.py does not skip them
        run_state_machine_as_test(MemoryMachine, settings=many)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# By hand


def test_five_memories_and_one_query_by_hand():
    memory = KVMemory(capacity=5, num_heads=1, head_dim=2, value_dim=1)
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0], [2.0, -1.0]])
    memory.add(keys[None, None], torch.arange(5.0).view(1, 1, 5, 1) * 10)
    hits = memory.search(torch.tensor([[[[3.0, 1.0]]]]), top_k=3)  # scores 3, 1, 4, −3, 5
    assert hits.scores.flatten().tolist() == [5.0, 4.0, 3.0]
    assert hits.ids.flatten().tolist() == [4, 2, 0]
    assert hits.values.flatten().tolist() == [40.0, 20.0, 0.0]
    assert hits.keys[0, 0, 0].tolist() == [[2.0, -1.0], [1.0, 1.0], [1.0, 0.0]]


def test_ids_count_on_after_clear_and_after_the_ring_has_turned():
    memory = KVMemory(capacity=3, num_heads=1, head_dim=1)
    for tokens in (2, 3):
        memory.add(random(1, 1, tokens, 1), random(1, 1, tokens, 1))
    assert sorted(memory.search(torch.ones(1, 1, 1, 1), 3).ids.flatten().tolist()) == [2, 3, 4]
    memory.clear()
    assert len(memory) == 0
    memory.add(random(1, 1, 1, 1), random(1, 1, 1, 1))
    assert memory.search(torch.ones(1, 1, 1, 1), 2).ids.flatten().tolist() == [5, -1]


@pytest.mark.parametrize("tokens", [2, 3, 4, 7])
def test_more_tokens_than_capacity_keep_the_last_and_no_more_hits_than_memories(tokens):
    memory = KVMemory(capacity=3, num_heads=1, head_dim=1)
    key = torch.arange(1.0, tokens + 1).view(1, 1, tokens, 1)
    memory.add(key, -key)
    hits = memory.search(torch.ones(1, 1, 1, 1), top_k=5)
    kept = list(range(tokens, max(0, tokens - 3), -1))
    missing = 5 - len(kept)
    assert hits.scores.flatten().tolist() == kept + [-torch.inf] * missing
    assert hits.values.flatten().tolist() == [-number for number in kept] + [0] * missing
    assert hits.ids.flatten().tolist() == [number - 1 for number in kept] + [-1] * missing


# What published memories get wrong, one test for each


def test_after_overflow_each_key_still_has_its_own_value():
    memory = KVMemory(capacity=13, num_heads=1, head_dim=5)
    for start in range(0, 70, 7):
        key = random(1, 1, 7, 5, seed=start)
        memory.add(key, -key)
    hits = memory.search(random(1, 1, 3, 5, seed=1), top_k=13)
    assert torch.equal(hits.values, -hits.keys)
    assert hits.ids.sort(-1).values[0, 0, 0].tolist() == list(range(57, 70))


def test_rows_advance_on_their_own():
    memory = KVMemory(capacity=5, num_heads=1, head_dim=1, batch_size=3)
    tokens = torch.arange(1.0, 5.0).view(1, 1, 4, 1).expand(3, 1, 4, 1)
    for _ in range(2):
        memory.add(tokens, tokens, torch.tensor([[True] * 4, [False] * 4, [False, True, False, False]]))
    assert memory.lengths.tolist() == [5, 0, 2]
    hits = memory.search(torch.ones(3, 1, 1, 1), top_k=5)
    assert hits.values.flatten(1).tolist() == [[4.0, 4.0, 3.0, 2.0, 1.0], [0.0] * 5, [2.0, 2.0, 0.0, 0.0, 0.0]]
    assert hits.ids.flatten(1).tolist() == [[7, 3, 6, 5, 4], [-1] * 5, [1, 0, -1, -1, -1]]


def test_clearing_asks_for_rows_and_not_for_what_a_key_looks_like():
    memory = KVMemory(capacity=5, num_heads=1, head_dim=2, batch_size=2)
    memory.add(torch.zeros(2, 1, 3, 2), torch.zeros(2, 1, 3, 2))  # keys that look like a start token's
    assert memory.lengths.tolist() == [3, 3]
    memory.clear(rows=1)
    assert memory.lengths.tolist() == [3, 0]
    memory.clear(torch.tensor([True, False]))
    assert memory.lengths.tolist() == [0, 0]
    memory.add(key := torch.randn(2, 1, 3, 2), key)
    memory.clear((0, -1))  # both rows: a tuple is a list, and −1 is the last
    assert memory.lengths.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changing_one_row_changes_no_bit_of_another(dtype):
    def hits_of_row_1(seed, tokens):
        memory = KVMemory(capacity=70, num_heads=3, head_dim=5, batch_size=2, dtype=dtype)
        key, value = random(2, 3, 37, 5, seed=1).to(dtype), random(2, 3, 37, 5, seed=2).to(dtype)
        key[0], value[0] = random(3, 37, 5, seed=seed), random(3, 37, 5, seed=seed + 1)
        memory.add(key, value, (torch.arange(37) < torch.tensor([[tokens], [31]])))
        query = random(2, 3, 7, 5, seed=3).to(dtype)
        query[0] = random(3, 7, 5, seed=seed + 2)
        return [tensor[1] for tensor in memory.search(query, top_k=11)]

    expected = hits_of_row_1(seed=10, tokens=31)
    for seed, tokens in ((20, 31), (30, 0), (40, 5), (50, 37)):
        for one, other in zip(expected, hits_of_row_1(seed, tokens)):
            assert torch.equal(one, other)


def test_exact_search_finds_all_of_the_best_where_a_graph_index_finds_four_in_ten():
    key = torch.nn.functional.normalize(random(1, 1, 8192, 64), dim=-1)
    query = torch.nn.functional.normalize(random(1, 1, 17, 64, seed=1), dim=-1)
    memory = KVMemory(8192, 1, 64)
    memory.add(key, key)
    expected = (query.double() @ key.double().mT).topk(32).indices
    assert torch.equal(memory.search(query, 32).ids.sort(-1).values, expected.sort(-1).values)


def test_missing_hits_are_masked_and_are_not_token_0():
    memory = KVMemory(capacity=5, num_heads=1, head_dim=1)
    memory.add(torch.tensor([7.0]).view(1, 1, 1, 1), torch.tensor([9.0]).view(1, 1, 1, 1))
    hits = memory.search(torch.ones(1, 1, 2, 1), top_k=3)
    assert hits.mask[0, 0].tolist() == [[True, False, False]] * 2
    assert hits.values[0, 0, 0].flatten().tolist() == [9.0, 0.0, 0.0]
    assert hits.ids[0, 0, 0].tolist() == [0, -1, -1]


def test_search_is_by_dot_product_and_not_by_distance():
    memory = KVMemory(capacity=2, num_heads=1, head_dim=2)
    key = torch.tensor([[1.0, 1.0], [10.0, 10.0]])[None, None]  # the first is nearest, the second scores more
    memory.add(key, key)
    assert memory.search(torch.ones(1, 1, 1, 2), top_k=1).scores.item() == 20.0


def test_the_query_gets_its_gradient_and_what_is_stored_gets_none():
    memory = KVMemory(capacity=23, num_heads=2, head_dim=5, dtype=torch.float64)
    key = random(1, 2, 19, 5, dtype=torch.float64).requires_grad_()
    value = random(1, 2, 19, 5, seed=1, dtype=torch.float64).requires_grad_()
    memory.add(key, value)
    query = random(1, 2, 7, 5, seed=2, dtype=torch.float64).requires_grad_()
    hits = memory.search(query, top_k=3)
    assert hits.scores.requires_grad
    assert not hits.keys.requires_grad
    assert not hits.values.requires_grad
    (gradient,) = torch.autograd.grad((hits.scores * hits.values.sum(-1)).sum(), query)
    torch.testing.assert_close(gradient, (hits.values.sum(-1, keepdim=True) * hits.keys).sum(-2))
    assert torch.autograd.gradcheck(lambda q: memory.search(q, 3).scores, query)
    memory.add(key, value)  # writing over the slots changes neither the hits nor a backward pass yet to come
    torch.testing.assert_close(hits.scores, (query.unsqueeze(-2) * hits.keys).sum(-1))


# Dtypes, devices, modes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_searched_and_scored_in_float32(dtype):
    memory = KVMemory(capacity=3, num_heads=1, head_dim=2, dtype=dtype)
    key = torch.tensor([[256.0, 1.0], [256.0, 2.0], [256.0, 0.0]], dtype=dtype)[None, None]
    memory.add(key, key)
    hits = memory.search(torch.tensor([[[[16.0, 1.0]]]], dtype=dtype), top_k=3)  # 4097, 4098, 4096: half rounds them
    assert hits.scores.dtype == torch.float32
    assert hits.keys.dtype == hits.values.dtype == dtype
    assert hits.scores.flatten().tolist() == [4098.0, 4097.0, 4096.0]


def test_autocast_changes_nothing():
    memory = KVMemory(capacity=3000, num_heads=1, head_dim=7)
    memory.add(random(1, 1, 3000, 7), random(1, 1, 3000, 7, seed=1))
    query = random(1, 1, 5, 7, seed=2)
    expected = memory.search(query, 11)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hits = memory.search(query, 11)
    for one, other in zip(expected, hits):
        assert torch.equal(one, other)


def test_a_memory_made_in_inference_mode_works_outside_it():
    with torch.inference_mode():
        memory = KVMemory(capacity=3, num_heads=1, head_dim=2)
        memory.add(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    memory.add(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    memory.clear()
    assert len(memory) == 0


def test_a_memory_moved_in_inference_mode_works_outside_it():
    memory = KVMemory(capacity=3, num_heads=1, head_dim=2)
    with torch.inference_mode():
        memory.to("meta")
    assert not memory._keys.is_inference()
    assert not memory._values.is_inference()


def test_a_memory_lives_on_its_own_device_whatever_the_default(tmp_path):
    memory, tokens = KVMemory(capacity=3, num_heads=1, head_dim=2), random(1, 1, 5, 2)
    with torch.device("meta"):
        memory.add(tokens, tokens)
        hits = memory.search(memory._keys[:, :, :1], 2)
        memory.save(tmp_path / "m")
        loaded = KVMemory.load(tmp_path / "m", device="cpu")
        assert repr(loaded).endswith("lengths=[3])")
    assert {tensor.device.type for tensor in (*hits, memory.lengths)} == {"cpu"}
    assert torch.equal(loaded.search(memory._keys[:, :, :1], 2).ids, hits.ids)


def test_to_moves_and_returns_the_memory():
    memory = KVMemory(capacity=3, num_heads=1, head_dim=2)
    assert memory.to("cpu") is memory
    assert memory.device == torch.device("cpu")
    assert memory.to("meta").device == torch.device("meta")


@pytest.mark.parametrize("tournament", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("broken", [0, 1, 17, 39, 40])
def test_a_memory_whose_score_is_nan_is_never_found(broken, dtype, tournament):
    """With 40 memories, of which some hold a NaN, and all 40 asked for."""
    key, value = whole_numbers(1, 2, 40, 3, seed=0), whole_numbers(1, 2, 40, 3, seed=1)
    query = whole_numbers(1, 2, 5, 3, seed=2).to(dtype)
    bad = torch.randperm(40, generator=torch.Generator().manual_seed(3))[:broken]
    key[:, :, bad, 1] = torch.nan
    memory, oracle = KVMemory(40, 2, 3, dtype=dtype), ListMemory(40, 1)
    memory.add(key.to(dtype), value.to(dtype))
    oracle.add(key.tolist(), value.tolist())
    oracle.rows[0] = [entry for entry in oracle.rows[0] if entry[0] not in bad.tolist()]
    with tiny_tournament() if tournament else nullcontext():
        hits = memory.search(query.requires_grad_(), 40)
    check_hits(hits, oracle.search(query.tolist()), 40)
    hits.scores[hits.mask].sum().backward()
    assert query.grad.isfinite().all()
    assert topk_attend(query.detach(), hits).output.isfinite().all()


@pytest.mark.parametrize("tournament", [False, True])
def test_a_query_that_holds_nan_finds_nothing_and_disturbs_no_other(tournament):
    memory = KVMemory(capacity=40, num_heads=1, head_dim=2)
    memory.add(random(1, 1, 40, 2), random(1, 1, 40, 2))
    query = random(1, 1, 3, 2, seed=1)
    expected = memory.search(query, 5)
    query[0, 0, 1] = torch.nan
    with tiny_tournament() if tournament else nullcontext():
        hits = memory.search(query, 5)
    assert not hits.mask[0, 0, 1].any()
    assert torch.equal(hits.ids[0, 0, ::2], expected.ids[0, 0, ::2])


@pytest.mark.parametrize("tournament", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_holds_among_equal_keys(dtype, tournament):
    """Rounding may decide which of equal keys are found, but none that is found scores less than one that is not; of
    equal scores the newer comes first."""
    key = random(1, 1, 5, 7, dtype=dtype).repeat(1, 1, 13, 1)
    memory, query = KVMemory(65, 1, 7, dtype=dtype), random(1, 1, 11, 7, seed=1, dtype=dtype)
    memory.add(key, key)
    with tiny_tournament() if tournament else nullcontext():
        hits = memory.search(query, 20)
    torch.testing.assert_close(hits.scores.squeeze(), (query @ key.mT).squeeze().topk(20).values)
    for query_scores, ids in zip(hits.scores.squeeze().tolist(), hits.ids.squeeze().tolist()):
        found = list(zip(query_scores, ids))
        assert found == sorted(found, reverse=True)


def test_repr_says_the_sizes_and_how_much_is_held():
    memory = KVMemory(capacity=3, num_heads=2, head_dim=5, value_dim=7, batch_size=2)
    assert repr(memory) == ("KVMemory(capacity=3, num_heads=2, head_dim=5, value_dim=7, batch_size=2, lengths=[0, 0])")


# State


@pytest.mark.parametrize("tokens", [0, 1, 6, 7, 8, 29])
def test_a_state_dict_is_a_copy_and_loads_over_anything(tokens):
    memory, other = (KVMemory(7, 2, 3, batch_size=2) for _ in range(2))
    mask = torch.arange(tokens) < torch.tensor([[tokens], [tokens // 2]])
    memory.add(random(2, 2, tokens, 3), random(2, 2, tokens, 3, seed=1), mask)
    memory.clear(rows=tokens % 2)
    other.add(random(2, 2, 9, 3, seed=2), random(2, 2, 9, 3, seed=3))
    state = memory.state_dict()
    memory.add(random(2, 2, 3, 3), random(2, 2, 3, 3))  # the state is of the moment before
    for each in (other, memory):
        each.load_state_dict(state)
        assert all(torch.equal(one, state[name]) for name, one in each.state_dict().items())
    for each in (other, memory):
        each.add(random(2, 2, 3, 3, seed=4), random(2, 2, 3, 3, seed=5))
    for one, two in zip(*(each.search(random(2, 2, 5, 3, seed=6), 7) for each in (memory, other))):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("sizes", "change", "match"),
    [
        ({"num_heads": 1}, {}, r"keys must be \(2, 1, 5, 3\), torch.float32; got \(2, 2, 5, 3\)"),
        ({"value_dim": 4}, {}, r"values must be \(2, 2, 5, 4\)"),
        ({"capacity": 4}, {}, r"keys must be \(2, 2, 4, 3\)"),
        ({"dtype": torch.float64}, {}, "torch.float64; got .*torch.float32"),
        ({"batch_size": 1}, {}, r"counters that do not fit: \[0, 0\] and \[5, 5\]"),
        ({}, {"next": torch.tensor([4, 9])}, r"keys must be \(2, 2, 7, 3\)"),
        ({}, {"more": torch.ones(1)}, "state must hold keys, values, next and cleared; got .*more"),
    ],
)
def test_a_state_dict_of_another_memory_is_refused_and_nothing_changes(sizes, change, match):
    memory = KVMemory(7, 2, 3, batch_size=2)
    memory.add(random(2, 2, 5, 3), random(2, 2, 5, 3))
    other = KVMemory(**{"capacity": 7, "num_heads": 2, "head_dim": 3, "batch_size": 2, **sizes})
    one = torch.ones(other.batch_size, other.num_heads, 1, 3, dtype=other.dtype)
    other.add(one, one.new_ones(*one.shape[:3], other.value_dim))
    before = other.state_dict()
    with pytest.raises(ValueError, match=match):
        other.load_state_dict({**memory.state_dict(), **change})
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


# Errors

ONE = torch.ones(2, 3, 7, 5)
ERRORS = [
    (
        lambda m: m.add(ONE[:1], ONE),
        ValueError,
        r"key must have shape \(batch=2, heads=3, tokens, head_dim=5\); got \(1",
    ),
    (
        lambda m: m.add(ONE, ONE[:, :, :4]),
        ValueError,
        r"value must have shape \(batch=2, heads=3, tokens=7, value_dim=5",
    ),
    (lambda m: m.add(ONE[..., :4], ONE), ValueError, "head_dim=5.*got .*4"),
    (
        lambda m: m.add(ONE.double(), ONE),
        TypeError,
        "key must have the dtype of memory, torch.float32; got torch.float64",
    ),
    (lambda m: m.add(ONE, ONE.int()), TypeError, "value must have a floating-point dtype"),
    (
        lambda m: m.add(ONE, ONE, torch.ones(2, 7)),
        TypeError,
        "key_mask must be a boolean tensor, True = real token; got torch.float32",
    ),
    (
        lambda m: m.add(ONE, ONE, torch.ones(7, 2) > 0),
        ValueError,
        r"key_mask must have shape \(batch=2, tokens=7\); got \(7, 2\)",
    ),
    (
        lambda m: m.add(ONE, ONE, torch.ones(2, 7, device="meta") > 0),
        ValueError,
        "key_mask must be on the device of x, cpu",
    ),
    (lambda m: m.add(ONE.to("meta"), ONE), ValueError, "key must be on the device of memory, cpu; got meta"),
    (
        lambda m: m.search(ONE[0], 3),
        ValueError,
        r"query must have shape \(batch=2, heads=3, tokens, head_dim=5\); got \(3",
    ),
    (lambda m: m.search(ONE.half(), 3), TypeError, "query must have the dtype of memory"),
    (lambda m: m.search(ONE, 0), ValueError, "top_k must be at least 1; got 0"),
    (lambda m: m.search(ONE, 2.0), TypeError, "top_k must be an int; got float"),
    (lambda m: m.clear(2), ValueError, "rows must be rows of the batch, which has 2; got 2"),
    (lambda m: m.clear([0, -3]), ValueError, r"rows must be .*got \[0, -3\]"),
    (lambda m: m.clear(["a"]), ValueError, "rows must be"),
    (lambda m: m.clear(torch.ones(3) > 0), ValueError, r"rows must be .*got tensor\(\[True, True, True\]\)"),
    (lambda m: m.clear(1.5), ValueError, "rows must be"),
    (lambda m: m.clear(True), ValueError, "rows must be"),
    (lambda m: m.to(torch.float64), TypeError, "dtype"),
    (lambda m: KVMemory(0, 3, 5), ValueError, "capacity must be at least 1; got 0"),
    (lambda m: KVMemory(3, 3, 5, value_dim=True), TypeError, "value_dim must be an int; got bool"),
    (lambda m: KVMemory(3, 3, 5, batch_size=-1), ValueError, "batch_size must be at least 1; got -1"),
    (
        lambda m: KVMemory(3, 3, 5, dtype=torch.int64),
        TypeError,
        "dtype must be a floating-point dtype; got torch.int64",
    ),
]


@pytest.mark.parametrize(("call", "error", "match"), ERRORS)
def test_errors(call, error, match):
    memory = KVMemory(capacity=11, num_heads=3, head_dim=5, batch_size=2)
    with pytest.raises(error, match=match):
        call(memory)
    assert memory.lengths.tolist() == [0, 0]
