"""merge: any partition of the keys gives what attend gives over all of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from attnlib.attend import Attended, attend, merge

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-7}


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Differences of at most `tolerance`, relative to the largest finite number expected where that is above 1."""
    finite = expected[expected.isfinite()].abs()
    largest = max(1.0, finite.max().item()) if finite.numel() else 1.0
    assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * largest)


def exact_scores(seed: int, q_tokens: int, kv_tokens: int, exponent: int, dtype: torch.dtype) -> list[Tensor]:
    """Query and key of small integers times a power of two: their products are exact in every dtype, in any order, so
    that what is compared is the softmax. Scores reach 96 · 2**exponent."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randint(-4, 5, (2, 1, q_tokens, 3), generator=generator).to(dtype)
    key = torch.randint(-8, 9, (3, kv_tokens, 3), generator=generator).to(dtype) * 2.0**exponent
    value = (torch.rand(2, 3, kv_tokens, 5, generator=generator) * 2 - 1).to(dtype)
    return [tensor.requires_grad_() for tensor in (query, key, value)]


@st.composite
def partitions(draw) -> tuple[int, list[list[int]]]:
    """A number of keys, and who gets which: any assignment to 1 … 5 parts, empty parts included."""
    kv_tokens, parts = draw(st.integers(0, 13)), draw(st.integers(1, 5))
    owners = draw(st.lists(st.integers(0, parts - 1), min_size=kv_tokens, max_size=kv_tokens))
    return kv_tokens, [[j for j, owner in enumerate(owners) if owner == part] for part in range(parts)]


def test_merge_by_hand():
    """Scores 0, log 2 | log 3, log 4 weigh 1 + 2 and 3 + 4; values 10, 20 | 30, 40 average to 50/3 and 250/7."""
    left = Attended(torch.tensor([[50 / 3]]), torch.tensor([math.log(3)]))
    right = Attended(torch.tensor([[250 / 7]]), torch.tensor([math.log(7)]))
    merged = merge([left, right])
    assert_close(merged.output, torch.tensor([[30.0]]))  # (1·10 + 2·20 + 3·30 + 4·40) / 10
    assert_close(merged.logsumexp, torch.tensor([math.log(10)]))


@settings(max_examples=100, deadline=None)
@given(
    partition=partitions(),
    q_tokens=st.integers(0, 7),
    exponent=st.sampled_from([-6, 0, 7]),
    dtype=st.sampled_from(list(TOLERANCE)),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**20),
)
def test_any_partition_merges_to_attend(partition, q_tokens, exponent, dtype, density, seed):
    """Random partitions, masks that hide everything or nothing, scores of ±96/64, ±96 and ±12288."""
    kv_tokens, parts = partition
    qkv = query, key, value = exact_scores(seed, q_tokens, kv_tokens, exponent, dtype)
    mask = torch.rand(2, 1, q_tokens, kv_tokens, generator=torch.Generator().manual_seed(seed)) < density
    whole = attend(query, key, value, mask, scale=1.0)
    pieces = [attend(query, key[:, j], value[..., j, :], mask[..., j], scale=1.0) for j in parts]
    merged = merge(pieces)
    tolerance = TOLERANCE[dtype]
    close(merged.output, whole.output, tolerance)
    close(merged.logsumexp, whole.logsumexp, min(tolerance, 1e-6))  # in float32 even for bfloat16
    assert not merged.output.isnan().any()

    up = torch.rand(2, 3, q_tokens, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1)) - 0.5
    side = torch.rand(2, 3, q_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 2)) - 0.5

    def gradients(attended: Attended) -> tuple[Tensor, ...]:
        visible = attended.logsumexp.masked_fill(attended.logsumexp == -torch.inf, 0.0)
        return torch.autograd.grad((attended.output * up).sum() + (visible * side).sum(), qkv)

    for actual, expected in zip(gradients(merged), gradients(whole)):
        close(actual, expected, tolerance)


@settings(max_examples=50, deadline=None)
@given(partition=partitions(), seed=st.integers(0, 2**20))
def test_merging_is_associative_and_has_no_order(partition, seed):
    kv_tokens, parts = partition
    query, key, value = exact_scores(seed, 5, kv_tokens, 0, torch.float64)
    pieces = [attend(query, key[:, j], value[..., j, :], scale=1.0) for j in parts]
    at_once = merge(pieces)
    one_by_one = pieces[-1]
    for piece in reversed(pieces[:-1]):
        one_by_one = merge([one_by_one, piece])
    close(one_by_one.output, at_once.output, 1e-12)
    close(one_by_one.logsumexp, at_once.logsumexp, 1e-12)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_huge_scores_neither_overflow_nor_vanish(sign):
    """exp(10 000) is inf and exp(−10 000) is 0 in every dtype: only differences may be exponentiated."""
    scores = sign * torch.tensor([10_000.0, 9_999.0, 9_998.0])
    parts = [attend(torch.ones(1, 1), s.view(1, 1), torch.eye(3)[j : j + 1], scale=1.0) for j, s in enumerate(scores)]
    for merged in (merge(parts), merge([merge(parts[:2]), parts[2]])):
        assert_close(merged.output, scores.double().softmax(0).float()[None], rtol=0, atol=1e-6)
        assert_close(merged.logsumexp, scores.double().logsumexp(0)[None], rtol=0, atol=1e-6)


def test_near_ties_in_parts_of_several_keys_stay_exact():
    """The log-sum-exp of 10 000 and 9 999 is 10 000.3133; float32 would keep 10 000.3135 and merge with that."""
    scores = torch.tensor([[10_000.0], [9_999.0], [9_998.0], [9_997.0], [10_000.0]])
    parts = [attend(torch.ones(1, 1), scores[j], torch.eye(5)[j], scale=1.0) for j in ([0, 1], [2, 3, 4])]
    assert_close(merge(parts).output, scores.double().softmax(0).float().mT, rtol=0, atol=1e-6)


def test_parts_that_see_nothing_change_nothing():
    """Neither the numbers nor the gradients; and nothing but such parts gives zeros and −inf."""
    query, key, value = exact_scores(0, 7, 11, 0, torch.float64)
    some = attend(query, key, value)
    nothing = attend(query, key, value, torch.zeros(7, 11, dtype=torch.bool))
    empty = attend(query, key[:, :0], value[..., :0, :])
    merged = merge([nothing, some, empty])
    assert_close(merged.output, some.output, rtol=0, atol=0)
    assert_close(merged.logsumexp, some.logsumexp, rtol=0, atol=0)
    blind = merge([nothing, empty])
    assert not blind.output.any()
    assert (blind.logsumexp == -torch.inf).all()
    for tensor in torch.autograd.grad(merged.output.sum() + blind.output.sum(), (query, key, value)):
        assert tensor.isfinite().all()


def test_merge_broadcasts_the_leading_axes_of_all_parts():
    """Every logsumexp and every output may lack an axis that another has."""
    shapes = [((2, 1, 7, 5), (7,)), ((3, 7, 5), (3, 7)), ((7, 5), (2, 1, 7))]
    parts = [Attended(torch.randn(output), torch.randn(logsumexp)) for output, logsumexp in shapes]
    whole = [Attended(part.output.expand(2, 3, 7, 5), part.logsumexp.expand(2, 3, 7)) for part in parts]
    assert_close(merge(parts), merge(whole))
    assert_close(merge(parts[:1]).logsumexp, parts[0].logsumexp.expand(2, 1, 7))


def test_errors_of_merge():
    part = Attended(torch.randn(2, 7, 5), torch.randn(2, 7))
    with pytest.raises(ValueError, match="parts must hold at least one Attended; got none"):
        merge([])
    with pytest.raises(TypeError, match=r"parts\[1\] must be an Attended; got Tensor"):
        merge([part, part.output])
    with pytest.raises(TypeError, match=r"parts\[1\].output must be a torch.Tensor; got list"):
        merge([part, Attended(part.output.tolist(), part.logsumexp)])
    with pytest.raises(TypeError, match=r"parts\[1\].output must have the dtype of parts\[0\].output"):
        merge([part, Attended(part.output.double(), part.logsumexp)])
    with pytest.raises(ValueError, match=r"parts\[1\] must have output .* got \(2, 7, 4\) and \(2, 7\)"):
        merge([part, Attended(part.output[..., :4], part.logsumexp)])
    with pytest.raises(ValueError, match=r"parts\[0\] must have output .* got \(2, 7, 5\) and \(2, 6\)"):
        merge([Attended(part.output, part.logsumexp[:, :6])])
    with pytest.raises(TypeError, match=r"parts\[1\].logsumexp must have the dtype of parts\[0\].logsumexp"):
        merge([part, Attended(part.output, part.logsumexp.double())])
    with pytest.raises(ValueError, match=r"parts\[0\].logsumexp must be on the device of its output, cpu; got meta"):
        merge([Attended(part.output, part.logsumexp.to("meta"))])
    with pytest.raises(ValueError, match=r"parts\[0\] must have output .* got \(\) and \(\)"):
        merge([Attended(torch.zeros(()), torch.zeros(()))])
    rows = [Attended(torch.randn(n, 7, 5), torch.randn(n, 7)) for n in (1, 2, 3)]
    with pytest.raises(ValueError, match=r"parts\[2\] must .* broadcast with the parts before it; got \(3, 7, 5\) and"):
        merge(rows)
