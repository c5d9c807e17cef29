"""Rotary positions (RoPE): queries and keys are turned, so that scores depend on how far apart two tokens are."""

import torch
from torch import Tensor

from attnlib._validate import check_choice, check_counts, check_device, check_tensor
from attnlib.attend import logsumexp_dtype


def rotate(x: Tensor, positions: Tensor, *, base: float = 10000.0, layout: str = "halves") -> Tensor:
    """Turn each pair of components of a query or key by an angle that grows with the token's position.

    Formula: pair i of ``head_dim / 2`` is ``(a, b)`` and becomes ``(a cos θ − b sin θ, a sin θ + b cos θ)`` with
    ``θ = position · base^(−2i / head_dim)``. A query at position p and a key at position q then have a score that
    depends on p − q only. Rotate queries and keys, never values. Angles are computed in float64. So in float32, each
    pair of the result is within 2·10⁻⁷ of its own length from the exact one at all positions up to a million.

    Args:
        x: (…, tokens, head_dim), head_dim even. The result has its shape and dtype.
        positions: numbers that broadcast to (…, tokens): (tokens,) for all rows alike, (batch, 1, tokens) for heads
            (batch, heads, tokens, head_dim) of rows that start at different tokens.
        base: how slowly the slowest pair turns; long-context models use a larger one, such as 500,000.
        layout: which components form a pair. "halves": i and i + head_dim / 2, as in GPT-NeoX and Hugging Face's Llama.
            "pairs": 2i and 2i + 1, as in the paper and Meta's Llama. ``convert_rotary_layout`` converts weights.

    TypeError, ValueError: an argument is of the wrong kind, or does not fit x.

    Source: Su et al. 2021 (RoFormer), section 3.2.2.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> rotate(x, torch.tensor([0, torch.pi / 2])).round().abs()  # by nothing, and by 90°
    tensor([[1., 0.],
            [0., 1.]])
    """
    check_tensor("x", x, "... tokens head_dim")
    if not isinstance(positions, Tensor) or positions.dtype == torch.bool or positions.is_complex():
        got = positions.dtype if isinstance(positions, Tensor) else type(positions).__name__
        raise TypeError(f"positions must be a tensor of numbers; got {got}")
    check_device("positions", positions, "x", x.device)
    if positions.ndim >= x.ndim or any(p not in (1, s) for p, s in zip(positions.shape[::-1], x.shape[-2::-1])):
        expected = ", ".join([*map(str, x.shape[:-2]), f"tokens={x.shape[-2]}"])
        raise ValueError(f"positions must broadcast to ({expected}); got {tuple(positions.shape)}")
    check_rotary(x.shape[-1], base)
    check_choice("layout", layout, "halves", "pairs")
    cos, sin = cos_sin(positions, x.shape[-1], base, layout)
    dtype = torch.promote_types(x.dtype, torch.float32)
    return turn(x, (cos.to(dtype), sin.to(dtype)), layout)


def cos_sin(positions: Tensor, head_dim: int, base: float, layout: str = "halves") -> tuple[Tensor, Tensor]:
    """What ``turn`` multiplies each component and its partner by, (…, tokens, head_dim), in float64 if possible."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)  # integers, so exact
    steps = steps.to(logsumexp_dtype(steps))
    speeds = base ** (-steps / head_dim)
    speeds = torch.stack([-speeds, speeds], dim=-2 if layout == "halves" else -1).flatten(-2)  # of a, and of b
    angles = positions.unsqueeze(-1) * speeds
    return angles.cos(), angles.sin()


def turn(x: Tensor, angles: tuple[Tensor, Tensor], layout: str = "halves") -> Tensor:
    """``rotate`` without its checks, by angles from ``cos_sin`` with this layout."""
    half = x.shape[-1] // 2
    partner = x.roll(half, -1) if layout == "halves" else x.unflatten(-1, (half, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * angles[0], partner, angles[1]).to(x.dtype)


def convert_rotary_layout(weight: Tensor, num_heads: int, *, to: str) -> Tensor:
    """Permute the rows of a query or key projection, so that weights trained in one layout work in the other.

    Formula: within each head, rows ``0, 2, 4, …, 1, 3, 5, …`` of a projection for "pairs" are the rows of one for
    "halves". Convert W_query and W_key, and their biases; scores are then the same. W_value stays as it is.

    ``weight`` is (num_heads · head_dim, d_in), or a bias (num_heads · head_dim,). ``num_heads`` counts the heads of
    this projection: for W_key of grouped queries, the key heads. Returns a permuted copy in the layout ``to``, "halves"
    or "pairs". Errors are as in ``rotate``.

    >>> convert_rotary_layout(torch.arange(8.0), num_heads=2, to="halves")
    tensor([0., 2., 1., 3., 4., 6., 5., 7.])
    """
    check_tensor("weight", weight)
    check_counts(num_heads=num_heads)
    check_choice("to", to, "halves", "pairs")
    if not weight.ndim or not len(weight) or len(weight) % (2 * num_heads):
        expected = f"num_heads={num_heads} heads of an even number of rows"
        raise ValueError(f"weight must have {expected}; got shape {tuple(weight.shape)}")
    cut = (num_heads, -1, 2) if to == "halves" else (num_heads, 2, -1)
    return weight.unflatten(0, cut).transpose(1, 2).flatten(0, 2)


def check_rotary(head_dim: int, base: object) -> None:
    """Components come in pairs, and the base is a positive number."""
    if head_dim % 2:
        raise ValueError(f"head_dim must be even, because components turn in pairs; got {head_dim}")
    if not isinstance(base, (int, float)) or isinstance(base, bool):
        raise TypeError(f"base must be a number; got {type(base).__name__}")
    if not base > 0:
        raise ValueError(f"base must be positive; got {base}")
