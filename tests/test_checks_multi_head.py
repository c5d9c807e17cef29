"""The checks of notebook 04 pass what is right, and name what is wrong."""

import re

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from attnlib import MultiHeadAttention, MultiHeadAttentionWrapper
from attnlib.checks import (
    check_join_heads,
    check_multi_head,
    check_parameter_count,
    check_split_heads,
    check_two_columns,
)

CHECKS = [check_two_columns, check_split_heads, check_join_heads, check_parameter_count, check_multi_head]
SPLIT, JOIN = "b t (h c) -> b h t c", "b h t c -> b t (h c)"


def two_columns(x, d_out=1, num_heads=2, dropout=0.0, seed=5, qkv_bias=False, layer=MultiHeadAttentionWrapper):
    torch.manual_seed(seed)
    return layer(x.shape[2], d_out, x.shape[1], num_heads, dropout=dropout, qkv_bias=qkv_bias)(x)


def split_layer(d_in, d_out, context_length, num_heads, **options):
    return MultiHeadAttention(d_in, num_heads * d_out, context_length, num_heads=num_heads, **options)


def without_a_seed(x):
    return MultiHeadAttentionWrapper(x.shape[2], 1, x.shape[1], 2, dropout=0.0)(x)


def counted(d_in, d_out, num_heads, qkv_bias):
    with torch.device("meta"):
        layer = MultiHeadAttention(d_in, d_out, 7, 0.0, num_heads, qkv_bias)
    return sum(parameter.numel() for parameter in layer.parameters())


def linears(d_in, d_out, qkv_bias):
    return 3 * (d_in * d_out + d_out * qkv_bias)


def multi_head(query, key, value, heads, split=SPLIT, join=JOIN, is_causal=True, scale=None):
    sizes = {"h": heads, "t": query.shape[1]} if split == SPLIT else {"h": heads, "c": query.shape[-1] // heads}
    parts = [rearrange(x, split, **sizes) for x in (query, key, value)]
    output = F.scaled_dot_product_attention(*parts, is_causal=is_causal, scale=scale)
    return rearrange(output, join, c=output.shape[-1])


def straight(x, heads):
    return x.reshape(len(x), heads, x.shape[1], x.shape[2] // heads)


def straight_multi_head(query, key, value, heads, join):
    parts = [straight(x, heads) for x in (query, key, value)]
    return join(F.scaled_dot_product_attention(*parts, is_causal=True))


def step_by_step(query, key, value, heads, weigh, split=SPLIT, join=JOIN):
    q, k, v = (rearrange(x, split, h=heads) for x in (query, key, value))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return rearrange(weigh(scores, torch.ones(scores.shape[-2:]).bool().triu(1)) @ v, join)


def hidden(scores, mask, dim=-1):
    return F.softmax(scores.masked_fill(mask, float("-inf")), dim)


def uncrossed(join):
    """The split without its transpose, with a mask that is made for tokens."""

    def answer(query, key, value, heads):
        future = torch.ones(query.shape[1], query.shape[1]).bool().triu(1)
        weigh = lambda scores, _: hidden(scores, future)  # noqa: E731
        return step_by_step(query, key, value, heads, weigh, "b t (h c) -> b t h c", join)

    return answer


def weights_alone(query, key, value, heads):
    q, k = (rearrange(x, SPLIT, h=heads) for x in (query, key))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return hidden(scores, torch.ones(scores.shape[-2:]).bool().triu(1))


def hides_the_past(query, key, value, heads):
    turned = [x.flip(1) for x in (query, key, value)]
    return multi_head(*turned, heads).flip(1)


RIGHT = [
    (check_two_columns, two_columns),
    (check_split_heads, lambda x, h: rearrange(x, SPLIT, h=h)),
    (check_split_heads, lambda x, h: torch.stack(x.chunk(h, -1), 1)),
    (check_join_heads, lambda x: rearrange(x, JOIN)),
    (check_join_heads, lambda x: torch.cat(list(x.unbind(1)), -1)),
    (check_parameter_count, counted),
    (check_multi_head, multi_head),
]

WRONG = [
    (check_two_columns, lambda x: two_columns(x, d_out=2), "d_out=2 that is four"),
    (check_two_columns, lambda x: two_columns(x, d_out=2, num_heads=1), "one head with two columns"),
    (check_two_columns, lambda x: two_columns(x, dropout=0.1), "Dropout is on"),
    (check_two_columns, lambda x: two_columns(x, num_heads=1), "needs num_heads=2"),
    (check_two_columns, lambda x: two_columns(x, seed=6), "has the right shape, but"),
    (check_two_columns, without_a_seed, "right before you make the wrapper"),
    (check_two_columns, lambda x: torch.cat([without_a_seed(x)] * 2, -1), "should return the shape"),
    (check_two_columns, lambda x: two_columns(x, num_heads=1).expand(-1, -1, 2), "come from one head"),
    (check_two_columns, lambda x: torch.cat([two_columns(x, num_heads=1) for _ in range(2)], -1), "same weights"),
    (check_two_columns, lambda x: two_columns(x, qkv_bias=True), "have a bias"),
    (check_two_columns, lambda x: two_columns(x, layer=split_layer), "has an out_proj besides"),
    (check_split_heads, straight, "mixes the tokens"),
    (check_split_heads, lambda x, h: x.unflatten(-1, (h, -1)), "have not changed places"),
    (check_split_heads, lambda x, h: rearrange(x, "b t (c h) -> b h t c", h=h), "Neighbouring columns"),
    (check_split_heads, lambda x, h: rearrange(x, "b t (h c) -> b t c h", h=h), "last two axes"),
    (check_split_heads, lambda x, h: rearrange(x, "b t (h c) -> b h c t", h=h), "Each head is transposed"),
    (check_split_heads, lambda x, h: rearrange(x, "b t (h c) -> h b t c", h=h), "on axis 1"),
    (check_split_heads, lambda x, h: x, "should return the shape"),
    (check_split_heads, lambda x, h: straight(x.transpose(1, 2).flatten(1).view(x.shape), h), "comes before the cut"),
    (check_split_heads, lambda x, h: torch.stack(x.split(h, -1), 1), "not how wide one is"),
    (check_split_heads, lambda x, h: x.unflatten(-1, (-1, h)), "nothing changes places"),
    (check_join_heads, lambda x: x.reshape(len(x), x.shape[2], -1), "without the transpose"),
    (check_join_heads, lambda x: x.mean(dim=1), "averaged"),
    (check_join_heads, lambda x: x.sum(dim=1), "added"),
    (check_join_heads, lambda x: rearrange(x, "b h t c -> b t (c h)"), "alternate"),
    (check_join_heads, lambda x: rearrange(x, "b h t c -> b (h t) c"), "below each other"),
    (check_join_heads, lambda x: rearrange(x, "b h t c -> b t h c"), "still two axes"),
    (check_join_heads, lambda x: x.transpose(1, 2).view(len(x), x.shape[2], -1), "RuntimeError"),
    (check_join_heads, lambda x: x.reshape(*x.shape[:2], -1), "tokens and head_dim became one"),
    (check_join_heads, lambda x: rearrange(x, "b h t c -> b (t h) c"), "tokens and the heads became one"),
    (check_join_heads, lambda x: x.transpose(2, 3).reshape(len(x), x.shape[2], -1), "turns each head over"),
    (check_parameter_count, lambda i, o, h, b: h * counted(i, o, h, b), "number of heads does not count"),
    (check_parameter_count, lambda i, o, h, b: linears(i, o, b), "out_proj is missing"),
    (check_parameter_count, lambda i, o, h, b: linears(i, o, b) + o * o, "out_proj has a bias"),
    (check_parameter_count, lambda i, o, h, b: linears(i, o, 0) + o * o, "No bias is counted"),
    (check_parameter_count, lambda i, o, h, b: linears(i, o, b) // 3 + o * o + o, "three matrices"),
    (check_parameter_count, lambda i, o, h, b: linears(i, o, 0) + o * o + o, "have d_out biases each"),
    (check_parameter_count, lambda i, o, h, b: linears(i, o, 1) + o * o + o, "only with qkv_bias"),
    (check_parameter_count, lambda i, o, h, b: linears(i, o, b) + i * o + o, "not d_in"),
    (check_parameter_count, lambda i, o, h, b: linears(i, o, 0) + 3 * i * b + o * o + o, "column that comes out"),
    (check_parameter_count, lambda i, o, h, b: linears(o, o, b) + o * o + o, "not d_out · d_out"),
    (check_parameter_count, lambda i, o, h, b: linears(i, o, b) + i * i + i, "d_in plays no part"),
    (check_parameter_count, lambda i, o, h, b: linears(i, o, b) + o * o + i, "d_out numbers, not d_in"),
    (check_parameter_count, lambda i, o, h, b: 3 * i * o + b * o + o * o + o, "its own bias"),
    (
        check_parameter_count,
        lambda i, o, h, b: 3 * i * o + 3 * b + o * o + o,
        "for each column, d_out in all",
    ),
    (check_parameter_count, lambda i, o, h, b: 2 * (i * o + b * o) + o * o + o, "three projections"),
    (check_parameter_count, lambda i, o, h, b: h * linears(i, o, b) + o * o + o, "not once for each head"),
    (check_parameter_count, lambda i, o, h, b: h * linears(i, o, b), "heads of the wrapper"),
    (check_parameter_count, lambda i, o, h, b: linears(i, o // h, b) + o * o + o, "count all heads"),
    (check_parameter_count, lambda i, o, h, b: 3 * i * o + o * o + o + 3 * o if b else 0, "parentheses"),
    (check_multi_head, lambda q, k, v, h: multi_head(q, k, v, h, scale=q.shape[-1] ** -0.5), "divided by √d_out"),
    (check_multi_head, lambda q, k, v, h: multi_head(q, k, v, h, scale=1.0), "not scaled"),
    (check_multi_head, lambda q, k, v, h: multi_head(q, k, v, h, scale=h / q.shape[-1]), "take its root"),
    (check_multi_head, lambda q, k, v, h: multi_head(q, k, v, h, is_causal=False), "future is not hidden"),
    (check_multi_head, hides_the_past, "hides the past"),
    (check_multi_head, lambda *x: step_by_step(*x, lambda s, m: hidden(s, ~m)), "last query sees nothing"),
    (check_multi_head, lambda *x: step_by_step(*x, lambda s, m: hidden(s, ~m.mT)), "first query sees nothing"),
    (check_multi_head, lambda *x: step_by_step(*x, lambda s, m: s.softmax(-1) * ~m), "do not sum to one"),
    (check_multi_head, lambda *x: step_by_step(*x, lambda s, m: hidden(s, m, -2)), "over the queries"),
    (check_multi_head, lambda *x: step_by_step(*x, lambda s, m: hidden(s, m.triu(2))), "One later token"),
    (check_multi_head, lambda *x: step_by_step(*x, lambda s, m: (s * ~m).softmax(-1)), "set to 0"),
    (check_multi_head, lambda *x: step_by_step(*x, lambda s, m: hidden(s, m, 1)), "over the heads"),
    (check_multi_head, lambda *x: step_by_step(*x, lambda s, m: s * ~m), "softmax is missing"),
    (check_multi_head, lambda *x: step_by_step(*x, lambda s, m: hidden(s, m).softmax(-1)), "too many, the second"),
    (check_multi_head, lambda *x: step_by_step(*x, lambda s, m: hidden(s, m).mT), "weights are transposed"),
    (
        check_multi_head,
        lambda q, k, v, h: multi_head(q, k, v / (v.shape[-1] / h) ** 0.5, h, scale=1.0),
        "after the softmax",
    ),
    (check_multi_head, lambda q, k, v, h: multi_head(q, k, v, h, scale=(q.shape[-1] / h) ** 0.5), "multiplied"),
    (check_multi_head, lambda q, k, v, h: multi_head(q, k, v, h, scale=h**-0.5), "√num_heads"),
    (check_multi_head, lambda q, k, v, h: multi_head(q, k, v, h, scale=q.shape[1] ** -0.5), "√tokens"),
    (check_multi_head, lambda q, k, v, h: multi_head(k, q, v, h), "Query and key"),
    (check_multi_head, lambda q, k, v, h: multi_head(q, v, k, h), "Key and value"),
    (check_multi_head, lambda q, k, v, h: multi_head(q, k, k, h), "keys are averaged"),
    (check_multi_head, weights_alone, "These are the weights"),
    (check_multi_head, lambda *x: multi_head(*x, split="b t (c h) -> b h t c"), "alternate in the split"),
    (check_multi_head, lambda *x: multi_head(*x, join="b h t c -> b t (c h)"), "alternate in the join"),
    (check_multi_head, lambda *x: multi_head(*x, join="b h t c -> b h t c").mean(1), "averaged: put"),
    (check_multi_head, lambda *x: multi_head(*x, join="b h t c -> b h t c").sum(1), "added: put"),
    (check_multi_head, lambda *x: multi_head(*x, join="b h t c -> b (h t) c"), "below each other"),
    (check_multi_head, lambda *x: multi_head(*x, join="b h t c -> b t h c"), "two axes still"),
    (check_multi_head, uncrossed(JOIN), "have not changed places"),
    (check_multi_head, uncrossed("b t h c -> b t (h c)"), "never change places"),
    (
        check_multi_head,
        lambda *x: step_by_step(*x, hidden, "b t (h c) -> b t h c", "b t h c -> b t (h c)"),
        "never change places",
    ),
    (check_multi_head, lambda q, k, v, h: F.scaled_dot_product_attention(q, k, v, is_causal=True), "one head only"),
    (
        check_multi_head,
        lambda *inputs: straight_multi_head(*inputs, join=lambda x: rearrange(x, JOIN)),
        "A view straight",
    ),
    (
        check_multi_head,
        lambda *inputs: straight_multi_head(*inputs, join=lambda x: x.flatten(1).view(inputs[0].shape)),
        "Split and join are straight",
    ),
    (
        check_multi_head,
        lambda *inputs: multi_head(*inputs, join="b h t c -> b (h t c)").view(inputs[0].shape),
        "joined",
    ),
    (check_multi_head, lambda *inputs: multi_head(*inputs, join="b h t c -> b h t c"), "still apart"),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_right_answers_pass(check, answer):
    verdict = check(answer)
    assert verdict, verdict
    assert repr(verdict).startswith("✓ Right")


@pytest.mark.parametrize(("check", "answer", "words"), WRONG, ids=[words for _, _, words in WRONG])
def test_wrong_answers_are_named(check, answer, words):
    verdict = check(answer)
    assert verdict.status == "failed"
    assert re.search(words, verdict.message), verdict.message


@pytest.mark.parametrize("check", CHECKS)
def test_stubs_crashes_and_constants_do_not_pass(check):
    def stub(*arguments): ...

    def crash(*arguments):
        raise KeyError("no such thing")

    assert check(stub).status == "not yet"
    assert "crash raised KeyError" in check(crash).message
    assert not check(lambda *arguments: torch.ones(2, 2))
    assert not check(lambda *arguments: 150)
    assert "uncalled" in check(torch.ones(2)).message


@pytest.mark.parametrize("check", CHECKS)
def test_checks_leave_the_global_generator_alone(check):
    state = torch.get_rng_state()
    check(lambda *arguments: None)
    check_two_columns(two_columns)
    assert torch.equal(state, torch.get_rng_state())
