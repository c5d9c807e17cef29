"""Rotary positions: two layouts, and scores that depend on distances only."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from attnlib.multi_head import split_heads
from attnlib.positions import convert_rotary_layout, rotate

BATCH, HEADS, TOKENS, HEAD_DIM, D_IN = 2, 3, 7, 10, 11
layouts = pytest.mark.parametrize("layout", ["halves", "pairs"])


def tokens(*shape, seed=0):
    shape = shape or (BATCH, HEADS, TOKENS, HEAD_DIM)
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotate_by_loops(x, positions, base, layout):
    """The definition, for (tokens, head_dim): each pair as a complex number, times exp(i · angle)."""
    pairs = x.shape[-1] // 2
    out = torch.zeros_like(x, dtype=torch.float64)
    for t, position in enumerate(positions.tolist()):
        for i in range(pairs):
            first, second = (i, i + pairs) if layout == "halves" else (2 * i, 2 * i + 1)
            angle = position * base ** (-2 * i / x.shape[-1])
            number = complex(x[t, first], x[t, second]) * complex(math.cos(angle), math.sin(angle))
            out[t, first], out[t, second] = number.real, number.imag
    return out


# By hand


@layouts
def test_two_numbers_turn_like_a_hand_of_a_clock(layout):
    turned = rotate(torch.tensor([[3.0, 4.0]] * 3), torch.tensor([0.0, math.pi / 2, math.pi]), layout=layout)
    assert_close(turned, torch.tensor([[3.0, 4.0], [-4.0, 3.0], [-3.0, -4.0]]))


def test_which_components_form_a_pair_and_how_fast_each_turns():
    """base=4 and head_dim=4: the second pair turns half as fast as the first."""
    one = torch.tensor([math.pi])
    assert_close(rotate(torch.tensor([[1.0, 2.0, 0.0, 0.0]]), one, base=4), torch.tensor([[-1.0, 0.0, 0.0, 2.0]]))
    assert_close(
        rotate(torch.tensor([[1.0, 0.0, 2.0, 0.0]]), one, base=4, layout="pairs"), torch.tensor([[-1.0, 0.0, 0.0, 2.0]])
    )


# Against the definition


@layouts
@pytest.mark.parametrize("base", [10000.0, 500])
def test_equals_the_loops(layout, base):
    x, positions = tokens(), torch.tensor([0, 1, 2, 5, 30, 31, 977])
    got = rotate(x, positions, base=base, layout=layout)
    for row in range(BATCH):
        for head in range(HEADS):
            assert_close(got[row, head], rotate_by_loops(x[row, head], positions, base, layout), atol=1e-12, rtol=0)


def test_positions_broadcast_against_the_axes_before_the_tokens():
    x, shared = tokens(), torch.arange(TOKENS)
    by_row = torch.stack([shared, shared + 5])
    got = rotate(x, by_row[:, None])
    for row in range(BATCH):
        assert torch.equal(got[row], rotate(x[row], by_row[row]))
    assert torch.equal(rotate(x, shared), rotate(x, shared.expand(BATCH, HEADS, -1)))
    assert torch.equal(rotate(x, torch.tensor([3])), rotate(x, torch.full((TOKENS,), 3)))
    assert torch.equal(rotate(x, torch.tensor(3)), rotate(x, torch.full((TOKENS,), 3)))


@layouts
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-7), (torch.bfloat16, 5e-3), (torch.float16, 6e-4)])
def test_a_million_positions_in_each_dtype(layout, dtype, error):
    """Angles of float32 would be off by 0.03 at a million."""
    positions = torch.cat([torch.arange(1_000), torch.arange(999_001, 1_000_001)])
    x = tokens(len(positions), HEAD_DIM).to(dtype)
    want = rotate(x.double(), positions, layout=layout)
    got = rotate(x, positions, layout=layout)
    assert got.dtype == dtype
    pairs = (lambda t: t.unflatten(-1, (2, -1)).mT) if layout == "halves" else (lambda t: t.unflatten(-1, (-1, 2)))
    assert ((pairs(got.double()) - pairs(want)).norm(dim=-1) <= error * pairs(want).norm(dim=-1)).all()


@layouts
def test_gradients(layout):
    x = tokens(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rotate(x, torch.tensor([0, 2, 9]), layout=layout), x)


# Properties


@layouts
@settings(max_examples=30, deadline=None)
@given(shift=st.integers(-1_000, 1_000), seed=st.integers(0, 1_000))
def test_scores_depend_on_distances_only(layout, shift, seed):
    query, key = (F.normalize(tokens(TOKENS, HEAD_DIM, seed=s), dim=-1) for s in (seed, seed + 1))
    positions = torch.arange(TOKENS)
    there = [rotate(x, positions, layout=layout) for x in (query, key)]
    elsewhere = [rotate(x, positions + shift, layout=layout) for x in (query, key)]
    assert_close(elsewhere[0] @ elsewhere[1].mT, there[0] @ there[1].mT, atol=1e-12, rtol=0)


@layouts
def test_turning_keeps_lengths_and_moves_all_but_position_zero(layout):
    x = tokens()
    turned = rotate(x, torch.arange(TOKENS), layout=layout)
    assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-12, rtol=0)
    assert torch.equal(turned[..., 0, :], x[..., 0, :])
    assert not torch.isclose(turned[..., 1:, :], x[..., 1:, :]).all(-1).any()


@pytest.mark.parametrize("num_heads", [1, 3])
def test_both_layouts_give_the_same_scores_once_the_rows_are_permuted(num_heads):
    x, positions = tokens(TOKENS, D_IN), torch.arange(TOKENS)
    weights = [tokens(num_heads * HEAD_DIM, D_IN, seed=seed) for seed in (1, 2)]
    biases = [tokens(num_heads * HEAD_DIM, seed=seed) for seed in (3, 4)]

    def scores(weights, biases, layout):
        query, key = (
            rotate(split_heads(x @ weight.mT + bias, num_heads), positions, layout=layout)
            for weight, bias in zip(weights, biases)
        )
        return query @ key.mT

    for old, new in (("pairs", "halves"), ("halves", "pairs")):
        moved = [[convert_rotary_layout(t, num_heads, to=new) for t in group] for group in (weights, biases)]
        want = scores(weights, biases, old)
        assert_close(scores(*moved, new), want, atol=1e-11, rtol=0)
        assert not torch.allclose(scores(weights, biases, new), want)  # without it they run, and are wrong
        assert torch.equal(convert_rotary_layout(moved[0][0], num_heads, to=old), weights[0])


def test_compiled_on_meta_and_without_tokens():
    x, positions = tokens(), torch.arange(TOKENS)
    assert_close(torch.compile(rotate, backend="eager", fullgraph=True)(x, positions), rotate(x, positions))
    assert rotate(x.to("meta"), positions.to("meta")).shape == x.shape
    assert rotate(x[..., :0, :], positions[:0]).shape == (BATCH, HEADS, 0, HEAD_DIM)


# Errors


def test_errors():
    x, positions = tokens(), torch.arange(TOKENS)
    with pytest.raises(ValueError, match="head_dim must be even, because components turn in pairs; got 9"):
        rotate(x[..., :9], positions)
    with pytest.raises(ValueError, match=r"positions must broadcast to \(2, 3, tokens=7\); got \(6,\)"):
        rotate(x, positions[:6])
    with pytest.raises(ValueError, match=r"positions must broadcast to \(2, 3, tokens=7\); got \(2, 7\)"):
        rotate(x, positions.expand(2, -1))
    with pytest.raises(ValueError, match=r"positions must broadcast to \(tokens=7\); got \(1, 7\)"):
        rotate(x[0, 0], positions[None])
    with pytest.raises(TypeError, match="positions must be a tensor of numbers; got range"):
        rotate(x, range(TOKENS))
    with pytest.raises(TypeError, match="positions must be a tensor of numbers; got torch.bool"):
        rotate(x, positions > 0)
    with pytest.raises(ValueError, match="positions must be on the device of x, cpu; got meta"):
        rotate(x, positions.to("meta"))
    with pytest.raises(ValueError, match="layout must be .halves. or .pairs.; got 'interleaved'"):
        rotate(x, positions, layout="interleaved")
    with pytest.raises(ValueError, match="base must be positive; got 0"):
        rotate(x, positions, base=0)
    with pytest.raises(TypeError, match="base must be a number; got str"):
        rotate(x, positions, base="10000")
    with pytest.raises(ValueError, match=r"x must have shape \(..., tokens, head_dim\); got \(10,\)"):
        rotate(x[0, 0, 0], positions)
    with pytest.raises(TypeError, match="x must have a floating-point dtype; got torch.int64"):
        rotate(x.long(), positions)


def test_errors_of_conversion():
    weight = tokens(HEADS * HEAD_DIM, D_IN)
    with pytest.raises(ValueError, match=r"weight must have num_heads=4 heads of an even .*; got shape \(30, 11\)"):
        convert_rotary_layout(weight, 4, to="halves")
    with pytest.raises(ValueError, match="weight must have num_heads=2 heads of an even number of rows"):
        convert_rotary_layout(weight, 2, to="halves")  # 15 rows each
    with pytest.raises(ValueError, match='to must be "halves" or "pairs"; got None'):
        convert_rotary_layout(weight, 3, to=None)
