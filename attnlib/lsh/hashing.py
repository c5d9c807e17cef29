"""Hashing by random directions: vectors that point the same way tend to fall into the same bucket."""

import torch
from torch import Tensor

from attnlib._validate import check_count, check_shape, check_tensor
from attnlib.attend import without_autocast

PROJECTED = {"cpu": 2**18}  # projections held at a time: what a core's cache holds
PROJECTED_ELSEWHERE = 2**23  # what keeps an accelerator busy


def random_rotations(
    head_dim: int,
    num_buckets: int,
    num_hashes: int,
    *,
    num_heads: int = 1,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw the random directions that ``hash_buckets`` compares vectors with.

    Formula: every number is a draw from the standard normal distribution. The directions are not orthogonal, so that
    "rotations" is a habit of speech; with 2 buckets two vectors at angle θ share one with probability 1 − θ/π.

    Args:
        head_dim: size of the vectors to be hashed.
        num_buckets: number of buckets, even: each direction serves a bucket and its opposite another.
        num_hashes: number of rounds, each with directions of its own.
        num_heads: number of heads with directions of their own; 1 lets all heads share them.
        generator: where the numbers come from. Without one they come from a fresh generator with seed 0: the same
            directions at every call. The global generator is never touched.
        dtype: floating-point dtype of the result; PyTorch's default where it is left out.
        device: where the result lives; left out, it is where the generator lives. The draw is made there, then moved.

    Returns:
        (num_heads, num_hashes, head_dim, num_buckets // 2).

    Raises:
        TypeError: a size is no int, ``dtype`` no floating-point dtype, or ``generator`` no generator.
        ValueError: a size is below 1, or ``num_buckets`` is odd.

    Source: Kitaev et al. 2020, "Reformer", section 2; Andoni et al. 2015, "Practical and optimal LSH for angular
    distance", section 3.

    >>> random_rotations(head_dim=5, num_buckets=6, num_hashes=2, num_heads=7).shape
    torch.Size([7, 2, 5, 3])
    """
    check_count("head_dim", head_dim)
    check_count("num_buckets", num_buckets)
    check_count("num_hashes", num_hashes)
    check_count("num_heads", num_heads)
    if num_buckets % 2:
        raise ValueError(f"num_buckets must be even, a bucket for each direction and its opposite; got {num_buckets}")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point dtype; got {dtype}")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator; got {type(generator).__name__}")
    shape = (num_heads, num_hashes, head_dim, num_buckets // 2)
    draw_dtype = torch.promote_types(dtype, torch.float32)  # the same directions in half precision, rounded
    directions = torch.randn(shape, generator=generator, dtype=draw_dtype, device=generator.device)
    return directions.to(device=device, dtype=dtype)


@torch.no_grad()
def hash_buckets(vectors: Tensor, rotations: Tensor) -> Tensor:
    """Hash vectors by the direction that each lies nearest to, once for every round.

    Formula: ``bucket = argmax([x R, −x R])``; where several are largest, the first of them. The length of x does not
    matter. No gradient flows through a bucket's number.

    Args:
        vectors: (batch, heads, tokens, head_dim).
        rotations: (heads or 1, num_hashes, head_dim, num_buckets // 2), from ``random_rotations``.

    Returns:
        int64 (batch, heads, num_hashes, tokens), each in 0 … num_buckets − 1.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: a shape or a device does not fit.

    Source: Kitaev et al. 2020, "Reformer", section 2, "Locality sensitive hashing".

    >>> east_and_north = torch.eye(2)[None, None]  # 2 directions, 4 buckets, 1 head, 1 round
    >>> vectors = torch.tensor([[[[3.0, 1.0], [1.0, 2.0], [-5.0, 1.0], [0.0, -1.0]]]])
    >>> hash_buckets(vectors, east_and_north)
    tensor([[[[0, 1, 2, 3]]]])
    """
    check_tensor("vectors", vectors)
    check_shape("vectors", vectors, "batch heads tokens head_dim")
    check_rotations(rotations, vectors, "vectors")
    batch, heads, tokens, _ = vectors.shape
    num_hashes, half = rotations.shape[1], rotations.shape[3]
    buckets = torch.empty(batch * heads, num_hashes, tokens, dtype=torch.int64, device=vectors.device)
    dtype = torch.promote_types(torch.promote_types(vectors.dtype, rotations.dtype), torch.float32)
    side_by_side = rotations.to(dtype).transpose(1, 2).flatten(2).expand(heads, -1, -1)  # (heads, head_dim, …)
    vectors, head = vectors.flatten(0, 1), torch.arange(batch * heads, device=vectors.device) % heads
    budget = PROJECTED.get(vectors.device.type, PROJECTED_ELSEWHERE)
    rows = max(1, budget // (num_hashes * half))  # tokens at a time, over as many heads as that allows
    group = max(1, rows // max(tokens, 1))
    for start in range(0, batch * heads, group):
        some = slice(start, start + group)
        for first in range(0, tokens, rows):
            here = vectors[some, first : first + rows].to(dtype)  # (group, rows, head_dim)
            with without_autocast(vectors.device):
                projected = here @ side_by_side[head[some]]  # (group, rows, num_hashes · num_buckets / 2)
            buckets[some, :, first : first + rows] = _largest(projected.unflatten(-1, (num_hashes, half))).mT
    return buckets.unflatten(0, (batch, heads))


def _largest(projected: Tensor) -> Tensor:
    """``argmax([x, −x])`` along the last axis, of operations that a CPU does many numbers at a time; argmax is not.

    How far an entry lies below the largest, times a huge negative number, plus a rank that falls from first to last:
    its maximum is the rank of the first entry that is the largest.
    """
    half = projected.shape[-1]
    high, low = projected.amax(-1, keepdim=True), projected.amin(-1, keepdim=True)
    forward = high >= -low
    below = (projected - torch.where(forward, high, low)).abs_()  # 0 where largest
    rank = torch.arange(half, 0, -1, dtype=projected.dtype, device=projected.device)
    huge = torch.finfo(projected.dtype).max / 4
    first = half - torch.add(rank, below, alpha=-huge, out=below).amax(-1)
    return (first + half * ~forward[..., 0]).nan_to_num(0.0).to(torch.int64).clamp_(0, 2 * half - 1)


def check_rotations(rotations: Tensor, vectors: Tensor, name: str) -> None:
    """Directions that fit vectors (batch, heads, tokens, head_dim), which the caller knows as `name`."""
    check_tensor("rotations", rotations)
    heads, head_dim = vectors.shape[1], vectors.shape[3]
    shape = tuple(rotations.shape)
    if len(shape) != 4 or shape[0] not in (1, heads) or shape[2] != head_dim or 0 in shape[1:]:
        raise ValueError(
            f"rotations must have shape (heads={heads} or 1, num_hashes, head_dim={head_dim}, num_buckets // 2), "
            f"with at least one hash and 2 buckets; got {shape}"
        )
    if rotations.device != vectors.device:
        raise ValueError(f"rotations must be on the device of {name}, {vectors.device}; got {rotations.device}")
