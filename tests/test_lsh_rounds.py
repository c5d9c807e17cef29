"""The rounds of LSH attention against the definition, in float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from attnlib.lsh import _sorted, hash_buckets, lsh_attention, random_rotations
from lsh_oracle import oracle

FLAGS = [
    dict(zip(("is_causal", "count_once", "across_buckets"), on)) for on in itertools.product([False, True], repeat=3)
]
PADDING = ["none", "left", "right", "middle"]


def name_flags(flags: dict[str, bool]) -> str:
    return "-".join(name for name, on in flags.items() if on) or "plain"


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
    mask[0, {"left": slice(0, cut), "right": slice(tokens - cut, None), "middle": slice(cut, 2 * cut)}[padding]] = False
    mask[1:, tokens // 2] = False
    return mask


def check_against_oracle(query_key, value, rotations, *, gradients=True, **options):
    query_key, value = query_key.clone().requires_grad_(), value.clone().requires_grad_()
    expected = oracle(query_key, value, hash_buckets(query_key, rotations), **options)
    actual = lsh_attention(query_key, value, rotations, **options)
    assert actual.dtype == value.dtype
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    if gradients:
        direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        wanted = torch.autograd.grad(expected, (query_key, value), direction)
        given = torch.autograd.grad(actual, (query_key, value), direction)
        torch.testing.assert_close(given, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("flags", FLAGS, ids=name_flags)
def test_every_combination_agrees_with_the_definition(flags, padding):
    for tokens, chunk_size, num_buckets, num_hashes in [(29, 3, 4, 3), (13, 5, 2, 2), (41, 4, 6, 1)]:
        query_key, value = make_inputs(tokens)
        rotations = random_rotations(5, num_buckets, num_hashes, num_heads=3, dtype=torch.float64)
        mask = make_mask(padding, tokens)
        check_against_oracle(query_key, value, rotations, chunk_size=chunk_size, key_mask=mask, scale=0.7, **flags)


@pytest.mark.parametrize(("tokens", "chunk_size", "heads"), [(97, 53, 1), (139, 16, 1), (37, 8, 13)])
@pytest.mark.parametrize("flags", FLAGS, ids=name_flags)
def test_sequences_and_heads_that_take_several_blocks(flags, tokens, chunk_size, heads, monkeypatch):
    """Blocks of one chunk; of eight chunks; and all chunks of several heads, with some heads left over."""
    monkeypatch.setattr(_sorted, "numbers_at_a_time", lambda device: 2**12)
    query_key, value = make_inputs(tokens, batch=1, heads=heads)
    rotations = random_rotations(5, 4, 3, num_heads=heads, dtype=torch.float64)
    for mask in (None, make_mask("middle", tokens, 1)):
        check_against_oracle(query_key, value, rotations, chunk_size=chunk_size, key_mask=mask, **flags)


@pytest.mark.parametrize("flags", FLAGS, ids=name_flags)
def test_a_bucket_longer_than_many_chunks(flags):
    query_key, value = make_inputs(37, batch=1)
    one_bucket = torch.zeros(
        1, 2, 5, 1, dtype=torch.float64
    )  # every projection is 0, so every token falls into bucket 0
    assert (hash_buckets(query_key, one_bucket) == 0).all()
    check_against_oracle(query_key, value, one_bucket, chunk_size=3, **flags)


@pytest.mark.parametrize("flags", FLAGS, ids=name_flags)
def test_a_chunk_longer_than_the_sequence(flags):
    query_key, value = make_inputs(11)
    rotations = random_rotations(5, 2, 3, dtype=torch.float64)
    check_against_oracle(query_key, value, rotations, chunk_size=100, key_mask=make_mask("left", 11), **flags)


def test_a_chunk_far_longer_than_the_sequence_needs_no_extra_memory():
    query_key, value = make_inputs(11)
    rotations = random_rotations(5, 2, 3, dtype=torch.float64)
    for flags in FLAGS:
        outputs = [lsh_attention(query_key, value, rotations, chunk_size=size, **flags) for size in (11, 10**9)]
        assert torch.equal(*outputs)
        one_bucket = torch.zeros_like(rotations)
        check_against_oracle(query_key, value, one_bucket, chunk_size=10**9, **flags)
    nothing = lsh_attention(query_key[:, :, :0], value[:, :, :0], rotations, chunk_size=10**9)
    assert nothing.shape == (2, 3, 0, 7)


@pytest.mark.parametrize("flags", FLAGS, ids=name_flags)
def test_a_chunk_of_one_and_buckets_with_one_token(flags):
    query_key, value = make_inputs(17)
    rotations = random_rotations(5, 64, 2, dtype=torch.float64)
    check_against_oracle(query_key, value, rotations, chunk_size=1, **flags)


@pytest.mark.parametrize("tokens", range(1, 1 + 8 * 13))
def test_every_length_up_to_104(tokens):
    """Flags, padding, chunk size and number of heads vary with the length; all flags meet all chunk sizes."""
    flags = FLAGS[tokens % len(FLAGS)]
    mask = make_mask(PADDING[tokens // 3 % len(PADDING)], tokens)
    query_key, value = make_inputs(tokens, heads=1 + tokens % 2, seed=tokens)
    rotations = random_rotations(5, 2 * (1 + tokens % 4), 1 + tokens % 3, dtype=torch.float64)
    check_against_oracle(
        query_key, value, rotations, gradients=tokens <= 60, chunk_size=1 + tokens % 13, key_mask=mask, **flags
    )


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_buckets_and_any_padding(data):
    tokens = data.draw(st.integers(1, 23))
    flags = {name: data.draw(st.booleans(), label=name) for name in ("is_causal", "count_once", "across_buckets")}
    mask = data.draw(st.lists(st.booleans(), min_size=2 * tokens, max_size=2 * tokens))
    query_key, value = make_inputs(tokens, seed=data.draw(st.integers(0, 99)))
    rotations = random_rotations(5, data.draw(st.sampled_from([2, 4, 6])), data.draw(st.integers(1, 5)))
    check_against_oracle(
        query_key,
        value,
        rotations.double(),
        chunk_size=data.draw(st.integers(1, 9)),
        key_mask=torch.tensor(mask).view(2, tokens),
        scale=data.draw(st.sampled_from([None, -0.5, 3.0])),
        **flags,
    )


@pytest.mark.parametrize("flags", FLAGS, ids=name_flags)
def test_gradients_against_finite_differences(flags):
    query_key, value = (t[..., :3] for t in make_inputs(7, batch=1, heads=1))
    rotations = random_rotations(3, 2, 3, dtype=torch.float64)
    mask = torch.arange(7)[None] != 4

    def call(query_key, value):
        return lsh_attention(query_key, value, rotations, chunk_size=2, key_mask=mask, **flags)

    inputs = query_key.clone().requires_grad_(), value.clone().requires_grad_()
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


class Operators(TorchDispatchMode):
    """Records the last call of each operator that attnlib has registered with torch."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "attnlib":
            self.calls[function] = args
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "layout", "chunk_size", "num_buckets"),
    [
        (torch.float32, "rows", 3, 4),
        (torch.float32, "split heads", 67, 2**16),  # these codes need float64
        (torch.bfloat16, "split heads", 3, 4),
    ],
)
def test_the_operators_keep_what_they_promise_to_torch(dtype, layout, chunk_size, num_buckets):
    """torch.compile plans with the shapes, dtypes and strides that the operators declare."""
    query_key, value = (t.to(dtype) for t in make_inputs(71, batch=1))
    if layout == "split heads":
        query_key, value = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (query_key, value))
    query_key.requires_grad_(), value.requires_grad_()
    with Operators() as operators:
        rotations = random_rotations(5, num_buckets, 2)
        lsh_attention(query_key, value, rotations, chunk_size=chunk_size).sin().sum().backward()
    for operator, inputs in operators.calls.items():
        inputs = tuple(t.detach() if isinstance(t, torch.Tensor) else t for t in inputs)
        torch.library.opcheck(operator, inputs, test_utils=("test_schema", "test_faketensor"))
    assert len(operators.calls) == 3  # hash, forward, backward


def test_gradient_of_one_input_alone():
    query_key, value = make_inputs(13)
    rotations = random_rotations(5, 4, 2, dtype=torch.float64)
    both = query_key.clone().requires_grad_(), value.clone().requires_grad_()
    lsh_attention(*both, rotations, chunk_size=3).sin().sum().backward()
    for index in (0, 1):
        one = [query_key.clone(), value.clone()]
        one[index].requires_grad_()
        lsh_attention(*one, rotations, chunk_size=3).sin().sum().backward()
        torch.testing.assert_close(one[index].grad, both[index].grad)


@pytest.mark.parametrize("flags", FLAGS, ids=name_flags)
def test_large_scores_stay_exact(flags):
    """Scores in the thousands, and hidden ones far above the visible: the maximum must be over visible scores only."""
    query_key, value = make_inputs(29)
    rotations = random_rotations(5, 4, 3, dtype=torch.float64)
    check_against_oracle(1000 * query_key, value, rotations, chunk_size=3, **flags)
    expected = oracle(1000 * query_key, value, hash_buckets(query_key, rotations), chunk_size=3, **flags)
    actual = lsh_attention(1000 * query_key.float(), value.float(), rotations, chunk_size=3, **flags)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-2, atol=1e-2)
    assert actual.isfinite().all()


def test_codes_too_large_for_float32_are_kept_exact():
    """In the last of 2**17 buckets, codes reach 2**25, where float32 has steps of 2 and 4."""
    query_key, value = (t.float() for t in make_inputs(300, batch=1, heads=1))
    query_key[..., 0] = -query_key[..., 0].abs()
    one_direction = torch.zeros(1, 1, 5, 2**16)
    one_direction[..., 0, -1] = 1.0
    buckets = hash_buckets(query_key, one_direction)
    assert (buckets == 2**17 - 1).all()
    expected = oracle(query_key, value, buckets, chunk_size=257, is_causal=True)
    actual = lsh_attention(query_key, value, one_direction, chunk_size=257, is_causal=True)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
