"""The rounds of LSH attention against the definition, written with loops in float64."""

import itertools

import pytest
import torch
from lsh_oracle import oracle

from attnlib.lsh import hash_buckets, lsh_attention, random_rotations

FLAGS = [
    dict(zip(("is_causal", "count_once", "across_buckets"), flags))
    for flags in itertools.product([False, True], repeat=3)
]
PADDING = ["none", "left", "right", "middle"]


def make_inputs(tokens: int, *, batch: int = 2, heads: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query_key = torch.randn(batch, heads, tokens, 5, generator=generator, dtype=torch.float64)
    value = torch.randn(batch, heads, tokens, 7, generator=generator, dtype=torch.float64)
    return query_key, value


def make_mask(padding: str, tokens: int, batch: int = 2) -> torch.Tensor | None:
    if padding == "none":
        return None
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    cut = -(-tokens // 3)
    where = {"left": slice(0, cut), "right": slice(tokens - cut, None), "middle": slice(cut, 2 * cut)}[padding]
    mask[0, where] = False
    if batch > 1:
        mask[1, tokens // 2] = False
    return mask


def check_against_oracle(query_key, value, rotations, **options):
    query_key, value = query_key.clone().requires_grad_(), value.clone().requires_grad_()
    expected = oracle(query_key, value, hash_buckets(query_key, rotations), **options)
    actual = lsh_attention(query_key, value, rotations, **options)
    assert actual.dtype == value.dtype
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad(expected, (query_key, value), direction)
    given = torch.autograd.grad(actual, (query_key, value), direction)
    torch.testing.assert_close(given[0], wanted[0], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(given[1], wanted[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize(
    "flags", FLAGS, ids=lambda flags: "-".join(name for name, on in flags.items() if on) or "plain"
)
def test_every_combination_agrees_with_the_definition(flags, padding):
    for tokens, chunk_size, num_buckets, num_hashes in [(29, 3, 4, 3), (13, 5, 2, 2), (41, 4, 6, 1)]:
        query_key, value = make_inputs(tokens)
        rotations = random_rotations(5, num_buckets, num_hashes, num_heads=3, dtype=torch.float64)
        mask = make_mask(padding, tokens)
        check_against_oracle(query_key, value, rotations, chunk_size=chunk_size, key_mask=mask, scale=0.7, **flags)
