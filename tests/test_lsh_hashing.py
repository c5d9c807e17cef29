"""Hashing by random directions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlib.lsh import hash_buckets, random_rotations


def definition(vectors: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    projected = torch.einsum("bhnd,hrdk->bhrnk", vectors, rotations.expand(vectors.shape[1], -1, -1, -1))
    return torch.cat([projected, -projected], -1).argmax(-1)


# By hand


def test_four_directions_on_a_circle():
    east_and_north = torch.eye(2)[None, None]
    angles = torch.tensor([0, 40, 50, 130, 140, 220, 230, 310, 320]) * math.pi / 180
    vectors = torch.stack([angles.cos(), angles.sin()], -1)[None, None]
    assert hash_buckets(vectors, east_and_north).tolist() == [[[[0, 0, 1, 1, 2, 2, 3, 3, 0]]]]


def test_ties_go_to_the_first():
    directions = torch.eye(3)[None, None]
    vectors = torch.tensor([[1.0, 1, 0], [0, 0, 0], [-1, 1, 0], [-1, -1, 0], [0, -1, 1], [-2, 0, -2]])
    assert hash_buckets(vectors[None, None], directions).tolist() == [[[[0, 0, 1, 3, 2, 3]]]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_length_does_not_matter(dtype):
    vectors = torch.randn(2, 3, 29, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    rotations = random_rotations(5, 6, 2, num_heads=3, dtype=dtype)
    buckets = hash_buckets(vectors, rotations)
    for factor in (2.0**-10, 2.0**5):
        assert torch.equal(hash_buckets(vectors * factor, rotations), buckets)


@pytest.mark.parametrize(("dtype", "factors"), [(torch.float64, (1e-290, 1e290)), (torch.float32, (1e-30, 1e30))])
def test_a_tiny_or_huge_length_does_not_matter(dtype, factors):
    vectors = torch.randn(2, 3, 29, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)
    rotations = random_rotations(5, 6, 2, num_heads=3, dtype=dtype)
    for factor in factors:
        assert torch.equal(hash_buckets(vectors * factor, rotations), hash_buckets(vectors, rotations))


# Against others


@pytest.mark.parametrize("heads", [1, 3])
def test_equals_argmax_over_both_signs(heads):
    vectors = torch.randn(2, 3, 101, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rotations = random_rotations(5, 14, 7, num_heads=heads, dtype=torch.float64)
    buckets = hash_buckets(vectors, rotations)
    assert buckets.dtype == torch.int64
    assert torch.equal(buckets, definition(vectors, rotations))
    whole = vectors.round(), rotations.round()  # many ties
    assert torch.equal(hash_buckets(*whole), definition(*whole))


@pytest.mark.parametrize(("tokens", "num_buckets"), [(41, 200), (101, 2000), (3, 80_000)])
def test_many_buckets_that_take_several_pieces(tokens, num_buckets):
    """On a CPU: several heads at a time, some tokens of one head, and one token."""
    vectors = torch.randn(5, 3, tokens, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rotations = random_rotations(5, num_buckets, 7, num_heads=3, dtype=torch.float64)
    assert torch.equal(hash_buckets(vectors, rotations), definition(vectors, rotations))


@pytest.mark.parametrize("degrees", [20, 60, 100])
def test_two_buckets_collide_with_one_minus_angle_over_pi(degrees):
    angle = math.radians(degrees)
    pair = torch.tensor([[1.0, 0, 0], [math.cos(angle), math.sin(angle), 0]])[None, None]
    buckets = hash_buckets(pair, random_rotations(3, 2, 20_000))
    assert (buckets[..., 0] == buckets[..., 1]).float().mean().item() == pytest.approx(1 - degrees / 180, abs=0.015)


# Properties


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 17), st.integers(0, 999))
def test_buckets_are_in_range_and_opposite_vectors_get_opposite_buckets(half, num_hashes, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(1, 2, tokens, 3, generator=generator, dtype=torch.float64)
    rotations = random_rotations(3, 2 * half, num_hashes, num_heads=2, generator=generator, dtype=torch.float64)
    buckets = hash_buckets(vectors, rotations)
    assert buckets.shape == (1, 2, num_hashes, tokens)
    assert ((buckets >= 0) & (buckets < 2 * half)).all()
    assert torch.equal(hash_buckets(-vectors, rotations), (buckets + half) % (2 * half))


def test_nan_and_infinity_still_get_a_bucket():
    vectors = torch.tensor([[[[math.nan, 1.0], [math.inf, 1.0], [-math.inf, math.inf]]]])
    buckets = hash_buckets(vectors, random_rotations(2, 6, 5))
    assert ((buckets >= 0) & (buckets < 6)).all()


def test_draws_are_reproducible_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    first = random_rotations(5, 6, 2, num_heads=3)
    assert torch.equal(first, random_rotations(5, 6, 2, num_heads=3))
    mine = random_rotations(5, 6, 2, num_heads=3, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(first, mine)
    assert torch.equal(mine, random_rotations(5, 6, 2, num_heads=3, generator=torch.Generator().manual_seed(1)))
    hash_buckets(torch.ones(1, 3, 4, 5), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_draws_the_same_directions():
    full = random_rotations(5, 6, 2)
    assert torch.equal(random_rotations(5, 6, 2, dtype=torch.bfloat16), full.to(torch.bfloat16))
    assert random_rotations(5, 6, 2, dtype=torch.float64).dtype == torch.float64


def test_directions_are_standard_normal():
    drawn = random_rotations(50, 100, 10)
    assert drawn.mean().item() == pytest.approx(0, abs=0.02)
    assert drawn.std().item() == pytest.approx(1, abs=0.02)


# Errors


@pytest.mark.parametrize("num_buckets", [1, 7])
def test_odd_number_of_buckets(num_buckets):
    with pytest.raises(ValueError, match=f"num_buckets must be even.*got {num_buckets}"):
        random_rotations(5, num_buckets, 2)


@pytest.mark.parametrize("name", ["head_dim", "num_buckets", "num_hashes", "num_heads"])
def test_sizes_below_one(name):
    sizes = {"head_dim": 5, "num_buckets": 4, "num_hashes": 2, "num_heads": 3}
    with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
        random_rotations(**sizes | {name: 0})
    with pytest.raises(TypeError, match=f"{name} must be an int; got float"):
        random_rotations(**sizes | {name: 2.0})


def test_a_seed_is_not_a_generator():
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator; got int"):
        random_rotations(5, 4, 2, generator=3)


def test_dtype_of_integers():
    with pytest.raises(TypeError, match=r"dtype must be a floating-point dtype; got torch\.int64"):
        random_rotations(5, 4, 2, dtype=torch.int64)


@pytest.mark.parametrize("shape", [(3, 2, 5), (2, 2, 5, 3), (3, 2, 7, 3), (3, 0, 5, 3), (3, 2, 5, 0)])
def test_rotations_of_a_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"rotations must have shape \(heads=3 or 1, num_hashes, head_dim=5"):
        hash_buckets(torch.ones(2, 3, 7, 5), torch.ones(shape))


def test_vectors_of_a_wrong_shape_or_type():
    with pytest.raises(ValueError, match=r"vectors must have shape \(batch, heads, tokens, head_dim\); got \(7, 5\)"):
        hash_buckets(torch.ones(7, 5), torch.ones(1, 2, 5, 3))
    with pytest.raises(TypeError, match=r"vectors must have a floating-point dtype; got torch\.int64"):
        hash_buckets(torch.ones(2, 3, 7, 5, dtype=torch.int64), torch.ones(1, 2, 5, 3))
    with pytest.raises(ValueError, match="rotations must be on the device of vectors, cpu; got meta"):
        hash_buckets(torch.ones(2, 3, 7, 5), torch.ones(1, 2, 5, 3, device="meta"))
