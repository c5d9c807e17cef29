"""chunked_attend: attend, a block of scores at a time, forward and backward."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from attnlib.attend import Attended, attend, attention, merge
from attnlib.chunked import Blocks, OnlineSoftmax, chunked_attend

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-8}


def close(actual: Tensor, expected: Tensor, tolerance: float, of: Tensor | None = None) -> None:
    """Differ by at most `tolerance`, times the largest number in `of` (default: expected) if that exceeds 1."""
    of = expected if of is None else of
    finite = of[of.isfinite()].abs()
    largest = max(1.0, finite.max().item()) if finite.numel() else 1.0
    assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * largest)


def make(seed: int, q_tokens: int, kv_tokens: int, exponent: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Small integers times a power of two, so sums are exact in any order; scores reach 96 · 2**exponent."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randint(-4, 5, (2, 1, q_tokens, 3), generator=generator).to(dtype)
    key = torch.randint(-8, 9, (3, kv_tokens, 3), generator=generator).to(dtype) * 2.0**exponent
    value = (torch.rand(2, 3, kv_tokens, 5, generator=generator) * 2 - 1).to(dtype)
    return tuple(tensor.requires_grad_() for tensor in (query, key, value))


def random_qkv(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def gradients(attended: Attended, qkv: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    """Gradients of a loss that gives each output and each finite log-sum-exp its own random weight."""
    generator = torch.Generator().manual_seed(seed)
    up = torch.rand(attended.output.shape, dtype=torch.float64, generator=generator) - 0.5
    side = torch.rand(attended.logsumexp.shape, dtype=torch.float64, generator=generator) - 0.5
    visible = attended.logsumexp.masked_fill(attended.logsumexp == -torch.inf, 0.0)
    return torch.autograd.grad((attended.output * up).sum() + (visible * side).sum(), qkv)


def by_definition(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, scale: float) -> Attended:
    """One query at a time, in float64; (tokens, dim) each."""
    outputs, logsumexps = [], []
    for i in range(query.shape[0]):
        seen = [j for j in range(key.shape[0]) if allowed[i, j]]
        scores = [scale * (query[i] * key[j]).sum().double() for j in seen]
        total = sum((score.exp() for score in scores), torch.zeros((), dtype=torch.float64))
        outputs.append(sum((s.exp() / total * value[j] for s, j in zip(scores, seen)), 0 * value.sum(0)))
        logsumexps.append(total.log())
    return Attended(torch.stack(outputs), torch.stack(logsumexps))


def test_by_hand():
    """Weights 1, 2, 3, 4 over values 10, 20, 30, 40, in blocks of three keys and one: 30, and log 10."""
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0]).log()[:, None]
    output, logsumexp = chunked_attend(
        torch.ones(1, 1), scores, torch.tensor([[10.0], [20.0], [30.0], [40.0]]), scale=1.0, block_size=3
    )
    assert_close(output, torch.tensor([[30.0]]))
    assert_close(logsumexp, torch.tensor([10.0], dtype=torch.float64).log(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("is_causal", [False, True])
def test_equals_the_definition(is_causal):
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(n, d, dtype=torch.float64, requires_grad=True) for n, d in ((7, 5), (11, 5), (11, 3))
    )
    mask = torch.rand(7, 11) < 0.6
    mask[:, 0] = True
    allowed = mask & torch.ones(7, 11).tril().bool() if is_causal else mask
    expected = by_definition(query, key, value, allowed, 5**-0.5)
    actual = chunked_attend(query, key, value, mask, is_causal=is_causal, block_size=3)
    assert_close(actual.output, expected.output, rtol=0, atol=1e-12)
    assert_close(actual.logsumexp, expected.logsumexp, rtol=0, atol=1e-12)
    for mine, theirs in zip(gradients(actual, (query, key, value), 1), gradients(expected, (query, key, value), 1)):
        assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_a_head_dim_of_one_is_not_scaled():
    query, key, value = torch.ones(1, 1), torch.tensor([[1.0], [3.0]]), torch.eye(2)
    want = torch.tensor([[1.0, 3.0]]).softmax(-1)
    for output in (chunked_attend(query, key, value).output, attend(query, key, value).output):
        assert_close(output, want)
    assert_close(attention(query, key, value), want)


def test_zero_head_dim():
    """With head_dim 0 every score is 0, so the output is the mean."""
    value = torch.arange(6.0).view(3, 2)
    assert_close(chunked_attend(torch.ones(1, 0), torch.ones(3, 0), value).output, value.mean(0, keepdim=True))


def test_equals_the_fused_kernel():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, n, 5, dtype=torch.float64) for n in (7, 11, 11))
    for is_causal in (False, True):
        expected = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
        actual = chunked_attend(query, key, value, is_causal=is_causal, block_size=2).output
        assert_close(actual, expected, rtol=0, atol=1e-12)


@settings(max_examples=120, deadline=None)
@given(
    q_tokens=st.integers(0, 13),
    kv_tokens=st.integers(0, 13),
    block_size=st.integers(1, 16),
    exponent=st.sampled_from([-6, 0, 7]),
    dtype=st.sampled_from(list(TOLERANCE)),
    density=st.sampled_from([None, 0.0, 0.3, 1.0]),
    is_causal=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_equals_attend(q_tokens, kv_tokens, block_size, exponent, dtype, density, is_causal, seed):
    """Any lengths, blocks, mask and dtype; scores up to ±12288; broadcast leading axes; forward and backward."""
    qkv = make(seed, q_tokens, kv_tokens, exponent, dtype)
    mask = None
    if density is not None:
        mask = torch.rand(2, 1, q_tokens, kv_tokens, generator=torch.Generator().manual_seed(seed)) < density
    expected = attend(*qkv, mask, is_causal=is_causal, scale=1.0)
    actual = chunked_attend(*qkv, mask, is_causal=is_causal, scale=1.0, block_size=block_size)
    assert actual.output.dtype == expected.output.dtype
    assert actual.logsumexp.dtype == expected.logsumexp.dtype
    close(actual.output, expected.output, TOLERANCE[dtype])
    close(actual.logsumexp, expected.logsumexp, min(TOLERANCE[dtype], 1e-6))
    query, key, value = qkv
    summed = (
        key,
        query,
        value,
    )  # query's gradient is a sum of keys and key's a sum of queries: rounding is relative to those
    for mine, theirs, terms in zip(gradients(actual, qkv, seed), gradients(expected, qkv, seed), summed):
        assert mine.dtype == dtype
        close(mine, theirs, TOLERANCE[dtype], of=torch.cat([theirs.flatten(), terms.flatten()]))


@pytest.mark.parametrize("sign", [-1, 1])
def test_near_ties_among_huge_scores_stay_exact_in_float32(sign):
    """Scores 10 000, 9 999, 9 998 … in blocks of three. Near 10⁴, float32 has steps of 0.001, so weights computed from
    a float32 log-sum-exp, forward or backward, would be off by as much."""
    scores = sign * torch.arange(10_000.0, 9_989.0, -1)[:, None]
    query, key, value = torch.ones(1, 1, requires_grad=True), scores.requires_grad_(), torch.eye(11)
    actual = chunked_attend(query, key, value, scale=1.0, block_size=3)
    wide = query.detach().double().requires_grad_(), key.detach().double().requires_grad_(), value.double()
    expected = attend(*wide, scale=1.0)
    assert_close(actual.output.double(), expected.output, rtol=0, atol=1e-6)
    up = torch.rand(11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (mine,) = torch.autograd.grad((actual.output * up).sum(), key)
    (theirs,) = torch.autograd.grad((expected.output * up).sum(), wide[1])
    assert_close(mine.double(), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (11,), (1, 11), (7, 1), (3, 1, 11), (2, 3, 7, 11)])
def test_every_mask_that_broadcasts(shape):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, n, 5, dtype=torch.float64) for n in (7, 11, 11))
    mask = torch.rand(shape) < 0.5
    expected, actual = attend(query, key, value, mask), chunked_attend(query, key, value, mask, block_size=4)
    assert_close(actual.output, expected.output, rtol=0, atol=1e-12)
    assert_close(actual.logsumexp, expected.logsumexp, rtol=0, atol=1e-12)


def test_padding_may_hold_anything():
    """As in attend: a mask that is the same for all queries hides NaN too, forward and backward."""
    query, key, value = random_qkv((2, 7, 5), (2, 11, 5), (2, 11, 3))
    real = torch.arange(11) < torch.tensor([[[11]], [[6]]])
    broken = [tensor.detach().masked_fill(~real.mT, torch.nan).requires_grad_() for tensor in (key, value)]
    want, got = (chunked_attend(query, *kv, real, block_size=4) for kv in ((key, value), broken))
    assert_close(got, want)
    want, got = (
        torch.autograd.grad(result.output.sum(), inputs)
        for result, inputs in ((want, (query, key, value)), (got, (query, *broken)))
    )
    assert_close(got, want)


@pytest.mark.parametrize("leading", [((), (), (2, 3)), ((), (3,), (2, 1)), ((2, 1), (), (3,)), ((2, 3), (), ())])
def test_every_leading_axis_that_broadcasts(leading):
    """Axes that only value has appear in the output and in the log-sum-exp too."""
    torch.manual_seed(0)
    qkv = random_qkv(*((*axes, *sizes) for axes, sizes in zip(leading, ((7, 5), (11, 5), (11, 13)))))
    mask = torch.rand(2, 1, 7, 11) < 0.5
    for options in ({}, {"is_causal": True}, {"mask": mask}):
        expected, actual = attend(*qkv, **options), chunked_attend(*qkv, **options, block_size=4)
        assert actual.output.shape == (2, 3, 7, 13)
        for mine, theirs in zip((*actual, *gradients(actual, qkv, 1)), (*expected, *gradients(expected, qkv, 1))):
            assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_the_infinite_gradient_of_an_empty_log_sum_exp_is_dropped():
    """The derivative of logsumexp² at −inf is −inf, but no key contributed to it."""
    qkv = random_qkv((7, 5), (11, 5), (11, 3))
    mask = torch.ones(7, 11, dtype=torch.bool)
    mask[3] = False
    for function in (attend, chunked_attend):
        for gradient in torch.autograd.grad(function(*qkv, mask).logsumexp.square().sum(), qkv[:2]):
            assert gradient.isfinite().all()


def test_gradients_against_finite_differences():
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(n, d, dtype=torch.float64, requires_grad=True) for n, d in ((5, 3), (7, 3), (7, 2))
    )
    assert torch.autograd.gradcheck(lambda *qkv: tuple(chunked_attend(*qkv, block_size=3)), (query, key, value))


def test_only_some_inputs_need_gradients():
    query, key, value = (torch.randn(n, 5) for n in (7, 11, 11))
    assert not chunked_attend(query, key, value).output.requires_grad
    value.requires_grad_()
    chunked_attend(query, key, value, block_size=4).output.sum().backward()
    assert_close(value.grad.sum(), torch.tensor(7.0 * 5))


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that any operation creates."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes():
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("tokens", [128, 512])
def test_never_holds_more_than_a_block_of_scores(tokens):
    """Forward and backward, no tensor is larger than an input (tokens × 8) or a block of scores (16 × 16). That is
    linear in the tokens, while attend's scores are quadratic."""
    query, key, value = (torch.randn(tokens, 8, requires_grad=True) for _ in range(3))
    largest = {}
    for function, options in ((chunked_attend, {"block_size": 16}), (attend, {})):
        with Largest() as watch:
            output, logsumexp = function(query, key, value, is_causal=True, **options)
            (output.sum() + logsumexp.sum()).backward()
        largest[function] = watch.numel
    assert largest[chunked_attend] <= tokens * 8
    assert largest[attend] >= tokens * tokens


def test_blocks_in_the_future_are_never_computed():
    """Causal attention skips them, so a NaN in a later key or value cannot reach an earlier output."""
    query, key, value = (torch.randn(12, 5) for _ in range(3))
    expected = attend(query, key, value, is_causal=True).output[:8]
    key[8:], value[8:] = torch.nan, torch.nan
    assert_close(chunked_attend(query, key, value, is_causal=True, block_size=4).output[:8], expected)


def test_autocast_leaves_the_scores_in_float32():
    query, key, value = (torch.randn(2, 7, 5) for _ in range(3))
    expected = attend(query, key, value, is_causal=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = chunked_attend(query, key, value, is_causal=True, block_size=4)
    assert_close(actual.output, expected.output, rtol=0, atol=1e-6)


def test_autocast_leaves_the_backward_pass_in_float32():
    qkv = [torch.randn(n, 5, requires_grad=True) for n in (7, 11, 11)]
    expected = torch.autograd.grad(attend(*qkv).output.square().sum(), qkv)
    output = chunked_attend(*qkv, block_size=4).output
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = torch.autograd.grad(output.square().sum(), qkv)
    for mine, theirs in zip(actual, expected):
        assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_on_a_device_without_autocast():
    query, key, value = (torch.randn(n, 5, device="meta", requires_grad=True) for n in (7, 11, 11))
    output, logsumexp = chunked_attend(query, key, value, is_causal=True, block_size=4)
    assert (output.shape, logsumexp.shape) == ((7, 5), (7,))
    output.sum().backward()
    assert key.grad.shape == (11, 5)


def loss(function, *inputs, **options):
    output, logsumexp = function(*inputs, is_causal=True, **options)
    return output.sin().sum() + logsumexp.cos().sum()


def test_vmap_is_refused():
    query, key, value = random_qkv((2, 7, 5), (2, 11, 5), (2, 11, 3))
    for in_dims in ((0, 0, 0), (0, None, None), (None, None, 0)):
        with pytest.raises(NotImplementedError, match="torch.vmap cannot map chunked_attend"):
            torch.vmap(chunked_attend, in_dims)(query, key, value)


def test_compiled_and_exported_it_gives_the_same():
    qkv = random_qkv((3, 7, 5), (5, 5), (5, 13))
    whole = functools.partial(loss, chunked_attend, block_size=4)
    compiled = torch.compile(whole, backend="aot_eager", fullgraph=True)
    assert_close(compiled(*qkv), whole(*qkv))
    assert_close(torch.autograd.grad(compiled(*qkv), qkv), torch.autograd.grad(whole(*qkv), qkv))

    class Module(torch.nn.Module):
        def forward(self, *qkv):
            return whole(*qkv)

    qkv = [tensor.detach() for tensor in qkv]
    assert_close(torch.export.export(Module(), tuple(qkv)).module()(*qkv), whole(*qkv))


def gradients_of(total: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """As torch.autograd.grad, which reentrant checkpointing does not support."""
    for tensor in tensors:
        tensor.grad = None
    total.backward()
    return [tensor.grad for tensor in tensors]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_nothing(use_reentrant):
    qkv = random_qkv((3, 7, 5), (11, 5), (11, 13))
    whole = functools.partial(loss, chunked_attend, block_size=4)
    again = torch.utils.checkpoint.checkpoint(whole, *qkv, use_reentrant=use_reentrant)
    assert all(map(torch.equal, torch.autograd.grad(whole(*qkv), qkv), gradients_of(again, qkv)))


def test_a_second_derivative_is_refused():
    query, key, value = (torch.randn(n, 5, requires_grad=True) for n in (7, 11, 11))
    (first,) = torch.autograd.grad(chunked_attend(query, key, value).output.sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match="chunked_attend can be differentiated once"):
        first.sum().backward()


def test_changing_the_mask_before_the_backward_pass_is_an_error():
    query, key, value = (torch.randn(n, 5, requires_grad=True) for n in (7, 11, 11))
    mask = torch.ones(7, 11, dtype=torch.bool)
    output = chunked_attend(query, key, value, mask).output
    mask[0] = False
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_bad_input_is_named():
    query, key, value = torch.randn(2, 7, 5), torch.randn(2, 11, 5), torch.randn(2, 11, 3)
    with pytest.raises(ValueError, match=r"key must have shape .*head_dim=5.*got \(2, 11, 3\)"):
        chunked_attend(query, value, value)
    with pytest.raises(ValueError, match=r"value must have shape .*kv_tokens=11.*got \(2, 7, 5\)"):
        chunked_attend(query, key, query)
    with pytest.raises(ValueError, match=r"leading axes that broadcast.*\(2, 7, 5\), \(3, 11, 5\)"):
        chunked_attend(query, torch.randn(3, 11, 5), torch.randn(3, 11, 3))
    with pytest.raises(TypeError, match="key must have the dtype of query"):
        chunked_attend(query, key.double(), value)
    with pytest.raises(TypeError, match="mask must be a boolean tensor"):
        chunked_attend(query, key, value, torch.ones(7, 11))
    with pytest.raises(ValueError, match=r"mask must broadcast to \(2, q_tokens=7, kv_tokens=11\); got \(11, 7\)"):
        chunked_attend(query, key, value, torch.ones(11, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="block_size must be at least 1; got 0"):
        chunked_attend(query, key, value, block_size=0)
    with pytest.raises(TypeError, match="block_size must be an int; got float"):
        chunked_attend(query, key, value, block_size=2.0)
    with pytest.raises(TypeError, match="scale must be a number or None; got Tensor"):
        chunked_attend(query, key, value, scale=torch.tensor(2.0))  # it would get no gradient
    with pytest.raises(TypeError, match="is_causal must be a bool; got NoneType"):
        chunked_attend(query, key, value, is_causal=None)


# OnlineSoftmax, which sharded attention shares: its blocks, and gradients that add up over parts.


@settings(max_examples=200, deadline=None)
@given(
    q_tokens=st.integers(0, 13),
    kv_tokens=st.integers(0, 13),
    block_size=st.integers(1, 16),
    lead=st.none() | st.integers(-15, 15),
)
def test_blocks_cover_every_visible_pair_exactly_once(q_tokens, kv_tokens, block_size, lead):
    """Each visible pair of a query and a key is in exactly one block, and no hidden pair is in any."""
    query, key = torch.zeros(q_tokens, 2), torch.zeros(kv_tokens, 2)
    count = torch.zeros(q_tokens, kv_tokens, dtype=torch.int64)
    for rows, columns, mask in Blocks(1.0, block_size, lead=lead).pairs(query, key):
        assert rows.stop - rows.start <= block_size
        assert columns.stop - columns.start <= block_size
        block = count[rows, columns]
        assert lead is None or block.numel() == 0 or mask is None or mask.any()  # no block is wasted
        block += 1 if mask is None else mask
    expected = torch.ones(q_tokens, kv_tokens, dtype=torch.int64)
    if lead is not None:
        expected = expected.tril(lead)
    assert torch.equal(count, expected)


def test_mask_and_lead_combine():
    mask = torch.rand(7, 11) < 0.5
    seen = torch.zeros(7, 11, dtype=torch.bool)
    for rows, columns, block in Blocks(1.0, 3, mask, lead=2).pairs(torch.zeros(7, 2), torch.zeros(11, 2)):
        seen[rows, columns] = block
    assert torch.equal(seen, mask.tril(2))


def test_gradients_of_two_sets_of_keys_add_up():
    """One call for each set of keys: the gradients of query add up, those of key and value are concatenated."""
    torch.manual_seed(0)
    qkv = tuple(torch.randn(n, d, dtype=torch.float64, requires_grad=True) for n, d in ((7, 5), (11, 5), (11, 3)))
    query, key, value = (tensor.detach() for tensor in qkv)
    whole = attend(*qkv, scale=0.3)
    gradient = Attended(*(torch.randn_like(tensor) for tensor in whole))
    expected = torch.autograd.grad(whole, qkv, gradient)
    softmax = OnlineSoftmax.start(query, key, value)
    softmax.update(query, key, value, Blocks(0.3, 4))
    left = softmax.gradients((query, key[:4], value[:4]), gradient, Blocks(0.3, 3))
    right = softmax.gradients((query, key[4:], value[4:]), gradient, Blocks(0.3, 2))
    assert_close(left[0] + right[0], expected[0], rtol=0, atol=1e-12)
    assert_close(torch.cat([left[1], right[1]]), expected[1], rtol=0, atol=1e-12)
    assert_close(torch.cat([left[2], right[2]]), expected[2], rtol=0, atol=1e-12)


def test_updating_with_keys_in_any_pieces_equals_merging_them():
    torch.manual_seed(0)
    query, key, value = (torch.randn(n, d, dtype=torch.float64) for n, d in ((7, 5), (11, 5), (11, 3)))
    softmax = OnlineSoftmax.start(query, key, value)
    assert not softmax.attended().output.any()
    assert (softmax.attended().logsumexp == -torch.inf).all()
    pieces = []
    for piece in (slice(6, 11), slice(3, 3), slice(0, 6)):
        softmax.update(query, key[piece], value[piece], Blocks(0.3, 2))
        pieces.append(attend(query, key[piece], value[piece], scale=0.3))
        for mine, theirs in zip(softmax.attended(), merge(pieces)):
            assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_half_precision_accumulates_in_float32():
    query, key, value = (torch.ones(n, 2, dtype=torch.bfloat16) for n in (3, 700, 700))
    softmax = OnlineSoftmax.start(query, key, value)
    softmax.update(query, key, value, Blocks(1.0, 16))
    assert {tensor.dtype for tensor in (softmax.numerator, softmax.total, softmax.top)} == {torch.float32}
    logsumexp = softmax.attended().logsumexp
    assert_close(logsumexp, torch.full_like(logsumexp, 2 + math.log(700)), rtol=0, atol=1e-5)
