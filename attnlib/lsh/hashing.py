"""Hashing by random directions: vectors that point in similar directions tend to share a bucket."""

import torch
from torch import Tensor

from attnlib._validate import check_counts, check_device, check_dtype, check_tensor
from attnlib.attend import without_autocast


def numbers_at_a_time(device: torch.device) -> int:
    """How many projections or scores to hold: what the cache of one core holds, or what keeps an accelerator busy."""
    return 2**18 if device.type == "cpu" else 2**23


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

    Formula: each number is drawn from the standard normal distribution. The directions are not orthogonal, so calling
    them "rotations" is only a convention. With 2 buckets, two vectors at angle θ share one with probability 1 − θ/π.

    Args:
        head_dim: size of the vectors to be hashed.
        num_buckets: number of buckets; even, because each direction gives one bucket and its opposite another.
        num_hashes: number of rounds, each with its own directions.
        num_heads: number of heads with their own directions; 1 means that all heads share them.
        generator: source of the numbers, which are drawn on its device; default: a fresh one with seed 0, so every call
            returns the same directions. Pass ``torch.default_generator`` for PyTorch's global generator.
        dtype, device: of the result; default: PyTorch's default dtype, and the generator's device.

    Returns (num_heads, num_hashes, head_dim, num_buckets // 2). TypeError, ValueError: a size is not a positive int,
    ``num_buckets`` is odd, or the dtype or the generator is of the wrong kind.

    Source: Kitaev et al. 2020, "Reformer", section 2; Andoni et al. 2015, "Practical and optimal LSH for angular
    distance", section 3.

    >>> random_rotations(head_dim=5, num_buckets=6, num_hashes=2, num_heads=7).shape
    torch.Size([7, 2, 5, 3])
    """
    check_counts(head_dim=head_dim, num_buckets=num_buckets, num_hashes=num_hashes, num_heads=num_heads)
    if num_buckets % 2:
        raise ValueError(f"num_buckets must be even: each direction gives two; got {num_buckets}")
    dtype = dtype or torch.get_default_dtype()
    check_dtype(dtype)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator; got {type(generator).__name__}")
    shape = (num_heads, num_hashes, head_dim, num_buckets // 2)
    draw_dtype = torch.promote_types(dtype, torch.float32)  # half precision gets the same directions, rounded
    directions = torch.randn(shape, generator=generator, dtype=draw_dtype, device=generator.device)
    return directions.to(device=device, dtype=dtype)


def hash_buckets(vectors: Tensor, rotations: Tensor) -> Tensor:
    """Hash each vector, once for every round, by the direction it is closest to.

    Formula: ``bucket = argmax([x R, −x R])``, the first one if there are ties. The length of x does not matter. Bucket
    numbers carry no gradient.

    Takes ``vectors`` (batch, heads, tokens, head_dim), and ``rotations`` (heads or 1, num_hashes, head_dim,
    num_buckets // 2) from ``random_rotations``. Returns int64 (batch, heads, num_hashes, tokens), each in
    0 … num_buckets − 1. TypeError, ValueError: one is not a floating-point tensor, or its shape or device does not fit.

    Source: Kitaev et al. 2020, "Reformer", section 2, "Locality sensitive hashing".

    >>> east_and_north = torch.eye(2)[None, None]  # 2 directions, 4 buckets, 1 head, 1 round
    >>> vectors = torch.tensor([[[[3.0, 1.0], [1.0, 2.0], [-5.0, 1.0], [0.0, -1.0]]]])
    >>> hash_buckets(vectors, east_and_north)
    tensor([[[[0, 1, 2, 3]]]])
    """
    check_tensor("vectors", vectors, "batch heads tokens head_dim")
    check_rotations(rotations, vectors, "vectors")
    return find_buckets(vectors.detach(), rotations.detach())


@torch.library.custom_op("attnlib::find_buckets", mutates_args=())
def find_buckets(vectors: Tensor, rotations: Tensor) -> Tensor:
    """``hash_buckets`` without its checks, in pieces that fit into the cache."""
    batch, heads, tokens, _ = vectors.shape
    num_hashes, half = rotations.shape[1], rotations.shape[3]
    buckets = torch.empty(batch * heads, num_hashes, tokens, dtype=torch.int64, device=vectors.device)
    dtype = torch.promote_types(torch.promote_types(vectors.dtype, rotations.dtype), torch.float32)
    side_by_side = rotations.to(dtype).transpose(1, 2).flatten(2).expand(heads, -1, -1)  # (heads, head_dim, …)
    vectors, head = vectors.flatten(0, 1), torch.arange(batch * heads, device=vectors.device) % heads
    rows = max(1, numbers_at_a_time(vectors.device) // (num_hashes * half))  # tokens at a time
    group = max(1, rows // max(tokens, 1))
    for start in range(0, batch * heads, group):
        some = slice(start, start + group)
        for first in range(0, tokens, rows):
            here = vectors[some, first : first + rows].to(dtype)  # (group, rows, head_dim)
            with without_autocast(vectors.device):
                projected = here @ side_by_side[head[some]]  # (group, rows, num_hashes · num_buckets / 2)
            buckets[some, :, first : first + rows] = _largest(projected.unflatten(-1, (num_hashes, half))).mT
    return buckets.unflatten(0, (batch, heads))


@find_buckets.register_fake
def _(vectors, rotations):
    batch, heads, tokens, _ = vectors.shape
    return vectors.new_empty((batch, heads, rotations.shape[1], tokens), dtype=torch.int64)


def no_vmap(info, in_dims, *inputs):
    raise NotImplementedError("torch.vmap cannot map LSH attention; loop over the samples, or make them a batch")


find_buckets.register_vmap(no_vmap)


def _largest(projected: Tensor) -> Tensor:
    """``argmax([x, −x])`` along the last axis, without argmax, which is slow because it is not vectorised on CPUs.

    Take how far each entry lies below the largest, times a huge negative number, and add a rank that falls from first
    to last. The maximum of that is the rank of the first of the largest entries.
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
    """Raise unless the directions fit vectors (batch, heads, tokens, head_dim), which the caller calls `name`."""
    check_tensor("rotations", rotations)
    (_, heads, _, head_dim), shape = vectors.shape, tuple(rotations.shape)
    if len(shape) != 4 or shape[0] not in (1, heads) or shape[2] != head_dim or 0 in shape[1:]:
        expected = f"(heads={heads} or 1, num_hashes, head_dim={head_dim}, num_buckets // 2)"
        raise ValueError(f"rotations must have shape {expected}, with at least 1 hash and 2 buckets; got {shape}")
    check_device("rotations", rotations, name, vectors.device)
