"""The exact search against a full sort in float64, with ties, in blocks of every size, and in little memory."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlib.memory import search
from attnlib.memory.hits import best_first
from attnlib.memory.search import best_ids, top_newest


def sorted_ids(query, ring, held, top_k):
    """All ids by falling score, and where scores are equal by falling id."""
    ids = torch.arange(held.stop - 1, held.start - 1, -1)
    scores = query.double() @ ring[:, :, ids % ring.shape[2]].double().mT  # (batch, heads, tokens, held)
    return ids[scores.argsort(dim=-1, descending=True, stable=True)[..., :top_k]]


@st.composite
def problems(draw):
    capacity = draw(st.integers(1, 90))
    held = draw(st.integers(1, capacity))
    start = draw(st.integers(0, 3 * capacity))
    top_k = draw(st.integers(1, held))
    size = draw(st.sampled_from([1, 3, 1000]))  # of the whole numbers: many equal scores, or few
    shape = draw(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 5), st.integers(1, 3)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    batch, heads, _, head_dim = shape
    query = torch.randint(-size, size + 1, shape, generator=generator).float()
    ring = torch.randint(-size, size + 1, (batch, heads, capacity, head_dim), generator=generator).float()
    return query, ring, range(start, start + held), top_k


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    problem=problems(),
    constants=st.fixed_dictionaries(
        {
            "FEW": st.sampled_from([0, 2**16]),
            "FAN": st.sampled_from([2, 3]),
            "WINDOW": st.sampled_from([1, 2, 5, 100]),
            "QUERIES": st.sampled_from([1, 2, 7, 512]),
            "ALL_SCORES": st.sampled_from([1, 100, 2**22]),
            "BLOCK_SCORES": st.sampled_from([1, 100, 500, 2**19]),
            "CANDIDATES": st.sampled_from([1, 50, 2**19]),
        }
    ),
)
def test_any_cut_into_blocks_rounds_and_pieces_finds_the_same(problem, constants):
    query, ring, held, top_k = problem
    with mock.patch.multiple(search, **constants):
        found = best_ids(query, ring, held, top_k)
    assert torch.equal(found, sorted_ids(query, ring, held, top_k))


@pytest.mark.parametrize(
    ("tokens", "held", "top_k"),
    [(7, 40_013, 1), (7, 40_013, 32), (3, 70_001, 5), (2, 4099, 1021), (601, 3001, 3), (1, 200_003, 32)],
)
def test_many_keys_as_in_use(tokens, held, top_k):
    """The real constants, a ring that is not full and one that has turned, whole numbers that are often equal."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randint(-3, 4, (1, 2, tokens, 5), generator=generator)
    ring = torch.randint(-9, 10, (1, 2, held + 11, 5), generator=generator)
    for start in (3, held):
        ids = range(start, start + held)
        expected = sorted_ids(query, ring, ids, top_k)
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            assert torch.equal(best_ids(query.to(dtype), ring.to(dtype), ids, top_k), expected), dtype


def test_real_numbers_find_the_same_set():
    torch.manual_seed(0)
    query, ring = torch.randn(2, 2, 37, 64), torch.randn(2, 2, 20_011, 64)
    found = best_ids(query, ring, range(20_011), 32).sort(-1).values
    assert torch.equal(found, sorted_ids(query, ring, range(20_011), 32).sort(-1).values)


def test_rising_scores_lose_none():
    ring = torch.arange(100_003.0).view(1, 1, -1, 1)
    query = torch.tensor([1.0, -1.0]).view(1, 1, 2, 1)
    found = best_ids(query, ring, range(100_003), 3)
    assert found.flatten().tolist() == [100_002, 100_001, 100_000, 0, 1, 2]


def test_of_equal_scores_the_newest_win():
    found = best_ids(torch.ones(1, 1, 1, 3), torch.ones(1, 1, 5000, 3), range(7000, 12_000), 4)
    assert found.flatten().tolist() == [11_999, 11_998, 11_997, 11_996]


# Its parts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_in_float32(dtype):
    """4097 and 4096 are one number in half precision, and the newer would win."""
    query = torch.tensor([64.0, 1.0], dtype=dtype).view(1, 1, 1, 2)
    ring = torch.tensor([[64.0, 1.0], [64.0, 0.0]], dtype=dtype).view(1, 1, 2, 2)
    assert best_ids(query, ring, range(2), 1).item() == 0


def test_top_newest_by_hand():
    scores = torch.tensor([[3.0, 1.0, 3.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    assert top_newest(scores, 3).tolist() == [[0, 2, 4], [1, 2, 3], [0, 1, 2]]
    assert top_newest(scores, 5).tolist() == [[0, 1, 2, 3, 4]] * 3
    assert top_newest(scores, 9).tolist() == [[0, 1, 2, 3, 4]] * 3


def test_top_newest_with_infinities():
    scores = torch.tensor(
        [[-torch.inf] * 4, [torch.inf, 0.0, torch.inf, torch.inf], [0.0, -torch.inf, -torch.inf, -3.0]]
    )
    assert top_newest(scores, 2).tolist() == [[2, 3], [2, 3], [0, 3]]


def test_best_first_by_hand():
    scores, ids = torch.tensor([1.0, 3.0, 1.0, 2.0]), torch.tensor([4, 5, 9, 7])
    assert ids[best_first(scores, ids)].tolist() == [5, 7, 9, 4]


# Memory


@pytest.mark.parametrize(("tokens", "held"), [(277, 2**12), (277, 2**16), (521, 2**18 + 3)])
@pytest.mark.parametrize("alike", [False, True], ids=["different", "equal"])
def test_extra_memory_stays_below_64_mib_whatever_the_number_of_keys(tokens, held, alike):
    """Counts what torch allocates, at its peak, above the ids that are given back. There are more queries than are
    searched together."""
    query = torch.randn(1, 1, tokens, 64)
    ring = torch.ones(1, 1, held, 64) if alike else torch.randn(1, 1, held, 64)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        found = best_ids(query, ring, range(held), 32)
    live = peak = 0
    for event in profile.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert peak > 2**20  # it did count
    assert peak - found.numel() * found.element_size() <= 64 * 2**20
