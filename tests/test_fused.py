"""fused_attention: every shape and mask through PyTorch's kernel, in linear memory."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from attnlib import _fused
from attnlib.attend import attend, attention
from largest_tensor import LargestTensor

BATCH, HEADS, Q, K, D, V = 2, 3, 7, 11, 5, 13
SHAPES = {
    "two axes": [(Q, D), (K, D), (K, D)],
    "three axes": [(BATCH, Q, D), (BATCH, K, D), (BATCH, K, D)],
    "four axes": [(BATCH, HEADS, Q, D), (BATCH, HEADS, K, D), (BATCH, HEADS, K, D)],
    "five axes": [(BATCH, 2, HEADS, Q, D), (BATCH, 2, HEADS, K, D), (BATCH, 2, HEADS, K, D)],
    "six axes": [(2, 1, BATCH, HEADS, Q, D), (2, 1, BATCH, HEADS, K, D), (BATCH, HEADS, K, V)],
    "one key head": [(BATCH, HEADS, Q, D), (BATCH, 1, K, D), (BATCH, 1, K, D)],
    "grouped queries": [(BATCH, 2, HEADS, Q, D), (BATCH, 2, 1, K, D), (BATCH, 2, 1, K, V)],
    "value_dim": [(BATCH, HEADS, Q, D), (BATCH, HEADS, K, D), (BATCH, HEADS, K, V)],
    "small values": [(BATCH, HEADS, Q, D), (BATCH, HEADS, K, D), (BATCH, HEADS, K, 2)],
    "value alone": [(Q, D), (K, D), (BATCH, HEADS, K, V)],
}
MASKS = ["none", "keys", "queries", "both", "whole"]


def inputs_of(case, dtype=torch.float64, swap=False, q=Q, k=K):
    """Inputs with gradients; with ``swap``, the numbers of a row do not lie side by side."""
    generator, sizes, inputs = torch.Generator().manual_seed(0), {Q: q, K: k}, []
    for shape in SHAPES[case]:
        shape = (*shape[:-2], sizes[shape[-2]], shape[-1])
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        inputs.append((tensor.mT.contiguous().mT if swap else tensor).requires_grad_())
    return inputs


def mask_of(kind, leading, q=Q, k=K):
    rows = {"keys": (1, k), "queries": (q, 1), "both": (q, k), "whole": (q, k)}
    if kind == "none":
        return None
    front = leading if kind == "whole" else (*leading[:1], *(1 for _ in leading[1:]))
    mask = torch.empty(*front, *rows[kind], dtype=torch.bool)
    return mask.bernoulli_(0.6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("case", SHAPES)
def test_the_fused_kernel_gets_every_shape_and_mask_right(case, kind, is_causal, swap):
    for dtype, scale in ((torch.float64, -0.7), (torch.float64, 0.0), (torch.float32, None), (torch.float16, None)):
        inputs = inputs_of(case, dtype, swap)
        mask = mask_of(kind, torch.broadcast_shapes(*(tensor.shape[:-2] for tensor in inputs)))
        wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
        want, got = (f(*i, mask, is_causal=is_causal, scale=scale) for f, i in ((attend, wide), (attention, inputs)))
        tolerance = {"atol": 1e-2, "rtol": 1e-2} if dtype == torch.float16 else {"atol": 1e-5, "rtol": 1e-5}
        assert got.dtype == dtype
        assert_close(got.double(), want.output, **tolerance)
        gradients = torch.autograd.grad(got.double().square().sum(), inputs)
        want = torch.autograd.grad(want.output.square().sum(), wide)
        assert_close([gradient.double() for gradient in gradients], list(want), **tolerance)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("front", [(2, HEADS), (HEADS,), (2, 1), ()])
def test_a_mask_may_lack_leading_axes(front, is_causal):
    inputs = inputs_of("five axes")
    for rows in (1, Q):
        mask = torch.rand(*front, rows, K, generator=torch.Generator().manual_seed(1)) > 0.4
        want = attend(*inputs, mask, is_causal=is_causal).output
        assert_close(attention(*inputs, mask, is_causal=is_causal), want)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("case", sorted({*SHAPES} - {"three axes", "five axes"}))  # they go the way of two and six axes
def test_attention_stores_neither_weights_nor_masks_of_that_size(case, kind, is_causal, monkeypatch):
    """Neither at one time, forward or backward, nor in sum for the backward pass."""
    monkeypatch.setattr(_fused, "MASK_BLOCK", 2**19)  # much less than the weights
    q, k = 1_409, 1_423
    inputs = inputs_of(case, torch.float32, q=q, k=k)
    leading = torch.broadcast_shapes(*(tensor.shape[:-2] for tensor in inputs))
    mask = mask_of("both" if kind == "whole" else kind, leading if kind == "whole" else leading[:0], q, k)
    saved = []

    def save(tensor):
        saved.append(tensor)
        return tensor

    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        output = attention(*inputs, mask, is_causal=is_causal)
    linear = max(max(tensor.numel() for tensor in inputs), output.numel())
    assert largest.numbers <= max(2 * linear, 1.1 * _fused.MASK_BLOCK)
    assert largest.numbers < q * k / 3
    if mask is None or mask.numel() < q * k:  # what the kernel converts of a whole mask is kept for the backward pass
        assert sum(tensor.untyped_storage().nbytes() // 4 for tensor in saved if tensor is not None) < q * k / 2
    with LargestTensor() as largest:
        output.sum().backward()
    assert largest.numbers < q * k / 3
    if case == "two axes":
        with LargestTensor() as largest:
            attend(*inputs, is_causal=is_causal)
        assert largest.numbers >= q * k  # the counter does see such a tensor


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [(torch.float64, 2.0**44), (torch.float32, 2.0**44), (torch.bfloat16, 2.0**44), (torch.float16, 2.0**11)],
)
@pytest.mark.parametrize("scale", [None, 1.0])
def test_hidden_keys_stay_hidden_below_very_negative_scores(dtype, largest, scale):
    """The products of what is visible are −2⁹⁴, or −2²⁸ in float16."""
    query = torch.full((1, 1, K, 64), largest, dtype=dtype)
    value, real = torch.ones(1, 1, K, D, dtype=dtype), torch.arange(K) % 3 != 1
    assert torch.equal(attention(query, -query, value, real, is_causal=True, scale=scale), value)


@pytest.mark.parametrize("masked", [False, True])
def test_second_derivatives_need_the_math_backend(masked):
    inputs = inputs_of("value_dim")
    mask = mask_of("keys", (BATCH, HEADS)) if masked else None

    def penalty(call):
        gradients = torch.autograd.grad(call(*inputs, mask, is_causal=True).square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), inputs)

    want = penalty(lambda *inputs, **options: attend(*inputs, **options).output)
    with sdpa_kernel(SDPBackend.MATH):
        assert_close(penalty(attention), want)
    with pytest.raises(RuntimeError, match="derivative for .* is not implemented"):
        penalty(attention)
