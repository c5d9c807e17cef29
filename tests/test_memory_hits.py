"""The two layouts of what a search brings back, and attention over it."""

import pytest
import torch

from attnlib.attend import attend, merge
from attnlib.memory import KVMemory, MemoryHits, split_memory_heads, topk_attend
from oracle import attend_by_loops

BATCH, HEADS, TOKENS, TOP_K, HEAD_DIM, VALUE_DIM = 2, 3, 7, 5, 11, 13


def hits_of(batch=BATCH, heads=HEADS, value_dim=VALUE_DIM, dtype=torch.float32, seed=0):
    """Random hits, of which some are missing, and for one token all."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, TOKENS, TOP_K)
    keys = torch.randn(*shape, HEAD_DIM, generator=generator, dtype=torch.float64).to(dtype)
    values = torch.randn(*shape, value_dim, generator=generator, dtype=torch.float64).to(dtype)
    mask = torch.rand(shape, generator=generator) < 0.7
    mask[0, 0, 3] = False
    return MemoryHits(keys, values, torch.empty(shape), torch.zeros(shape, dtype=torch.int64), mask)


def query_of(dtype=torch.float32):
    generator = torch.Generator().manual_seed(9)
    return torch.randn(BATCH, HEADS, TOKENS, HEAD_DIM, generator=generator, dtype=torch.float64).to(dtype)


# By hand


def test_the_worked_products_of_the_note():
    score = torch.tensor([1.0, 2.0, 3.0]) @ torch.tensor([[2.0, 4.0], [4.0, 5.0], [6.0, 7.0]])
    assert score.tolist() == [28.0, 35.0]
    stacked = torch.tensor([[[2.0, 4.0, 6.0], [4.0, 5.0, 7.0]], [[0.0] * 3] * 2]).permute(1, 0, 2)[None, None]
    keys, _ = split_memory_heads(stacked, num_heads=1)  # (1, 1, 1, 3, 2)
    query = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)
    assert (query.unsqueeze(-2) @ keys).flatten().tolist() == [28.0, 35.0]
    weighted = torch.tensor([2.0, 3.0]) @ torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    assert weighted.tolist() == [17.0, 22.0, 27.0, 32.0]


def test_topk_attend_by_hand():
    eye = torch.eye(2).view(1, 1, 1, 2, 2)
    hits = MemoryHits(eye, eye, torch.empty(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2) > 0)
    output, logsumexp = topk_attend(torch.tensor([[[[0.0, 2**0.5]]]]), hits)  # scores [0, 1]
    e = torch.tensor(1.0).exp()
    torch.testing.assert_close(output.flatten(), torch.stack([1 / (1 + e), e / (1 + e)]))
    torch.testing.assert_close(logsumexp.flatten().float(), (1 + e).log().view(1))


# Against others


@pytest.mark.parametrize("scale", [None, 0.3])
def test_topk_attend_against_loops(scale):
    query, hits = query_of(torch.float64), hits_of(dtype=torch.float64)
    output, logsumexp = topk_attend(query, hits, scale=scale)
    assert output.shape == (BATCH, HEADS, TOKENS, VALUE_DIM)
    for place in torch.cartesian_prod(*map(torch.arange, (BATCH, HEADS, TOKENS))).tolist():
        row, head, token = place
        one = (tensor[row, head, token] for tensor in (hits.keys, hits.values))
        expected = attend_by_loops(query[row, head, token][None], *one, hits.mask[row, head, token][None], scale)
        torch.testing.assert_close(output[row, head, token], expected[0][0])
        torch.testing.assert_close(logsumexp[row, head, token], expected[1][0])
    assert not output[0, 0, 3].any()
    assert logsumexp[0, 0, 3] == -torch.inf


def test_only_the_top_k_get_weight_and_k_of_all_is_full_attention():
    torch.manual_seed(0)
    key, value = torch.randn(1, 2, 23, 5), torch.randn(1, 2, 23, 5)
    query = torch.randn(1, 2, 7, 5)
    memory = KVMemory(23, 2, 5)
    memory.add(key, value)
    errors = []
    for top_k in (1, 3, 11, 23, 29):
        output, logsumexp = topk_attend(query, memory.search(query, top_k))
        scores = query @ key.mT
        best = scores >= scores.topk(min(top_k, 23)).values[..., -1:]  # top-k written down as a mask
        torch.testing.assert_close(output, attend(query, key, value, best).output)
        torch.testing.assert_close(logsumexp, attend(query, key, value, best).logsumexp)
        errors.append((output - attend(query, key, value).output).abs().max().item())
    assert errors[0] > errors[2] > errors[3]
    assert max(errors[3:]) < 1e-6


def test_merging_with_the_local_part_is_attention_over_both():
    torch.manual_seed(0)
    key, value, query = torch.randn(2, 3, 29, 5), torch.randn(2, 3, 29, 11), torch.randn(2, 3, 7, 5)
    memory = KVMemory(19, 3, 5, value_dim=11, batch_size=2)
    memory.add(key[:, :, :19], value[:, :, :19])
    parts = [topk_attend(query, memory.search(query, 19)), attend(query, key[:, :, 19:], value[:, :, 19:])]
    torch.testing.assert_close(merge(parts).output, attend(query, key, value).output)


def test_gradients_of_topk_attend():
    hits = hits_of(dtype=torch.float64)
    hits = MemoryHits(*(tensor[:1, :2, 2:5, :3] for tensor in hits))  # among them the token that finds nothing
    query = query_of(torch.float64)[:1, :2, 2:5].requires_grad_()
    keys, values = hits.keys.requires_grad_(), hits.values.requires_grad_()

    def function(query, keys, values):
        output, logsumexp = topk_attend(query, hits._replace(keys=keys, values=values))
        return output, logsumexp.masked_fill(logsumexp == -torch.inf, 0.0)

    assert torch.autograd.gradcheck(function, (query, keys, values), fast_mode=True)


def test_every_head_may_attend_to_the_same_memories():
    query, hits = query_of(), hits_of(heads=1)
    alike = hits._replace(
        **{
            name: getattr(hits, name).expand(-1, HEADS, *[-1] * n)
            for name, n in (("keys", 3), ("values", 3), ("mask", 2))
        }
    )
    torch.testing.assert_close(topk_attend(query, hits), topk_attend(query, alike))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_and_a_finer_log_sum_exp(dtype):
    output, logsumexp = topk_attend(query_of(dtype), hits_of(dtype=dtype))
    assert output.dtype == dtype
    assert logsumexp.dtype in (torch.float32, torch.float64)
    expected = topk_attend(
        query_of(dtype).double(),
        hits_of(dtype=dtype)._replace(
            keys=hits_of(dtype=dtype).keys.double(), values=hits_of(dtype=dtype).values.double()
        ),
    )
    torch.testing.assert_close(output.double(), expected.output, atol=2e-2, rtol=2e-2)


# Layouts


def test_stacked_and_split_do_the_steps_of_the_note():
    hits = hits_of(heads=1, value_dim=HEAD_DIM)
    stacked = hits.stacked()
    assert stacked.shape == (BATCH, TOKENS, TOP_K, 2, HEAD_DIM)
    for place in torch.cartesian_prod(*map(torch.arange, (BATCH, TOKENS, TOP_K))).tolist():
        row, token, k = place
        assert torch.equal(stacked[row, token, k, 0], hits.keys[row, 0, token, k])
        assert torch.equal(stacked[row, token, k, 1], hits.values[row, 0, token, k])


def test_split_memory_heads_element_by_element():
    heads, head_dim = 3, 2
    stacked = torch.randn(BATCH, TOKENS, TOP_K, 2, heads * head_dim)
    keys, values = split_memory_heads(stacked, heads)
    assert keys.shape == (BATCH, heads, TOKENS, head_dim, TOP_K)
    assert values.shape == (BATCH, heads, TOKENS, TOP_K, head_dim)
    for place in torch.cartesian_prod(*map(torch.arange, (BATCH, heads, TOKENS, TOP_K, head_dim))).tolist():
        row, head, token, k, dim = place
        assert keys[row, head, token, dim, k] == stacked[row, token, k, 0, head * head_dim + dim]
        assert values[row, head, token, k, dim] == stacked[row, token, k, 1, head * head_dim + dim]


# Errors


def ones(two, embed_dim):
    return torch.ones(2, 7, 5, two, embed_dim)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda q, h: topk_attend(q[0], h),
            ValueError,
            r"query must have shape \(batch, heads, tokens.*got \(3",
        ),
        (lambda q, h: topk_attend(q.int(), h), TypeError, "query must have a floating-point dtype; got torch.int32"),
        (lambda q, h: topk_attend(q, tuple(h)), TypeError, "hits must be MemoryHits; got tuple"),
        (lambda q, h: topk_attend(q.double(), h), TypeError, "hits.keys must have the dtype of query, torch.float64"),
        (lambda q, h: topk_attend(q[:, :2], h), ValueError, "hits.keys must have shape .*heads=2.*got .2, 3"),
        (lambda q, h: topk_attend(q[:, :, :4], h), ValueError, "hits.keys must have shape .*tokens=4.*got .2, 3, 7"),
        (lambda q, h: topk_attend(q[..., :9], h), ValueError, "hits.keys must have shape .*head_dim=9.*11"),
        (lambda q, h: topk_attend(q, h._replace(keys=h.keys[0])), ValueError, "hits.keys must have shape"),
        (
            lambda q, h: topk_attend(q, h._replace(values=h.values[..., :2, :])),
            ValueError,
            "hits.values .*top_k=5.*2, 1",
        ),
        (lambda q, h: topk_attend(q, h._replace(mask=h.mask[..., :2])), ValueError, "hits.mask .*top_k=5.*got .*2"),
        (lambda q, h: topk_attend(q, h._replace(mask=h.mask.int())), TypeError, "mask must be a boolean tensor"),
        (lambda q, h: topk_attend(q, h._replace(mask=None)), TypeError, "hits.mask must be a boolean tensor.*NoneType"),
        (lambda q, h: h.stacked(), ValueError, "num_heads=1; got 3 heads"),
        (lambda q, h: hits_of(heads=1).stacked(), ValueError, "head_dim equal to value_dim; got 11 and 13"),
        (
            lambda q, h: split_memory_heads(ones(2, 11), 3),
            ValueError,
            "embed_dim must be divisible .*11 and num_heads=3",
        ),
        (lambda q, h: split_memory_heads(ones(3, 12), 3), ValueError, r"stacked must have .*two=2.*got \(2, 7, 5, 3"),
        (lambda q, h: split_memory_heads(ones(2, 12).int(), 3), TypeError, "stacked must have a floating-point dtype"),
        (lambda q, h: split_memory_heads(ones(2, 12), 0), ValueError, "num_heads must be at least 1; got 0"),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call(query_of(), hits_of())
