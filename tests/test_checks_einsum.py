"""The checks of notebook 05 pass what is right, however it is written, and name what is wrong."""

import re

import einops
import pytest
import torch
import torch.nn.functional as F

from attnlib.checks import check_einsum_attention, check_head_output, check_loops_equation, check_matmul_equation

CHECKS = [check_loops_equation, check_matmul_equation, check_head_output, check_einsum_attention]


def says(equation):
    return lambda: equation


def project(x, weight):
    return torch.stack([x @ head for head in weight], dim=2)  # (batch, tokens, heads, d)


def attention_by_torch(x, w_query, w_key, w_value):
    query, key, value = (project(x, weight).transpose(1, 2) for weight in (w_query, w_key, w_value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


WEIGHT, SCORES, OUTPUT = "b t m, h m d -> b t h d", "b q h d, b k h d -> b h q k", "b h q k, b k h d -> b q h d"


def attend(
    x, *weights, scale=None, dim=-1, late=1.0, softmax=torch.softmax, weight=WEIGHT, scores=SCORES, output=OUTPUT
):
    query, key, value = (einops.einsum(x, one, weight) for one in weights)
    products = einops.einsum(query, key, scores) * (scale or query.shape[-1] ** -0.5)
    return einops.einsum(softmax(products, dim) * late, value, output)


def causal_softmax(scores, dim):
    return (scores + torch.full_like(scores, -torch.inf).triu(1)).softmax(dim)


def head_by_head(pattern, value):
    return torch.cat([pattern[:, head] @ value[:, :, head] for head in range(value.shape[2])], dim=-1)


RIGHT = [
    (check_loops_equation, says("head query key -> head key")),
    (check_loops_equation, says("hqk->hk")),
    (check_loops_equation, says("  a b c->a c ")),
    (check_matmul_equation, says("n t i, n t j -> i j")),
    (check_matmul_equation, says("nti,ntj")),  # implicit mode gives the same
    (check_head_output, head_by_head),
    (check_einsum_attention, attention_by_torch),
    (check_einsum_attention, attend),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_the_right_answer_passes(check, answer):
    verdict = check(answer)
    assert verdict, verdict
    assert repr(verdict).startswith("✓ Right")


@pytest.mark.parametrize("check", CHECKS)
def test_a_stub_is_not_yet_written(check):
    for stub in (lambda *inputs: None, lambda *inputs: ...):
        assert repr(check(stub)).startswith("○ Not written yet")
    assert "Hand over the function itself" in check("ij->i").message


WRONG = [
    (check_loops_equation, says("h q k -> h"), "`key` must be kept: every name that is missing"),
    (check_loops_equation, says("h q k -> h q"), "`query` must be summed.*`key` must be kept"),
    (check_loops_equation, says("h q k -> h q k"), "`query` must be summed, so it must not stand behind the arrow"),
    (check_loops_equation, says("h q k -> k h"), "axes are right, their order is not: the output is .head, key."),
    (check_loops_equation, says("hqk"), "`query` must be summed"),
    (check_loops_equation, says("h q -> h"), "ValueError: equation names 2 axes"),
    (check_loops_equation, says("h q k -> h kk"), "Did you mean `k`"),
    (check_loops_equation, says(("h q k", "h k")), "ValueError|TypeError"),
    (check_matmul_equation, says("n t i, n t j -> n i j"), "`batch` must be summed"),
    (check_matmul_equation, says("n t i, n t j -> j i"), "order is not: the output is .row, column."),
    (check_matmul_equation, says("n t i, n t j ->"), "`row` and `column` must be kept"),
    (check_matmul_equation, says("n t i, n t j -> t i j"), "`token` must be summed"),
    (check_matmul_equation, says("n i t, n t j -> i j"), "gives the axis `t` two sizes"),
    (check_matmul_equation, says("n t i, n t j, -> i j"), "stray comma"),
    (check_head_output, lambda p, v: torch.einsum("bhqk,bkhd->bqhd", p, v), "heads are not joined yet"),
    (check_head_output, lambda p, v: torch.einsum("bhqk,bkhd->bhqd", p, v), "stand before the tokens"),
    (check_head_output, lambda p, v: einops.rearrange(torch.einsum("bhqk,bkhd->bhqd", p, v), "b h q d -> b q (d h)"),
     "order .d heads."),
    (check_head_output, lambda p, v: torch.einsum("bhqk,bkhd->bhqd", p, v).reshape(p.shape[0], p.shape[2], -1),
     "merged without being moved"),
    (check_head_output, lambda p, v: torch.einsum("bhkq,bkhd->bqhd", p, v).flatten(2), "sum runs over the queries"),
    (check_head_output, lambda p, v: torch.einsum("bhqk,blhd->bqhd", p, v).flatten(2), "seq_k has two names"),
    (check_head_output, lambda p, v: torch.einsum("bhqk,bkgd->bqgd", p, v).flatten(2), "heads have two names"),
    (check_einsum_attention, lambda *i: attend(*i, scale=1.0), "scale is missing"),
    (check_einsum_attention, lambda x, q, k, v: attend(x, q, k, v, scale=x.shape[-1] ** -0.5), "scale is √d_model"),
    (check_einsum_attention, lambda x, q, k, v: attend(x, q, k, v, scale=1 / q.shape[-1]), "divided by d itself"),
    (check_einsum_attention, lambda x, q, k, v: attend(x, q, k, v, scale=1.0, late=q.shape[-1] ** -0.5),
     "scale comes after softmax"),
    (check_einsum_attention, lambda *i: attend(*i, dim=2), "Softmax runs over the queries"),
    (check_einsum_attention, lambda *i: attend(*i, dim=1), "Softmax runs over the heads"),
    (check_einsum_attention, lambda x, q, k, v: attend(x, k, q, v), "changed places"),
    (check_einsum_attention, lambda x, q, k, v: attend(x, q, k, k), "averages the keys"),
    (check_einsum_attention, lambda *i: attend(*i).transpose(1, 2), "heads stand before the tokens"),
    # what a reader really tried
    (check_loops_equation, says("head key query -> head key"), "you wrote `head query key -> head query`"),
    (check_loops_equation, says("q h k -> h k"), "you wrote `head query key -> query key`"),
    (check_matmul_equation, says("n t i, n t j -> n t i j"), "`batch` and `token` must be summed, so they must not"),
    (check_matmul_equation, says("n t i, m t j -> i j"), "^`batch` must have the same name in A and in B"),
    (check_matmul_equation, says("n t i, n s j -> i j"), "^`token` must have the same name in A and in B"),
    (check_matmul_equation, says("n t i, m s j -> i j"), "^`batch` and `token` must have the same name"),
    (check_head_output, lambda p, v: torch.einsum("bhqk,bkhd->bqd", p, v), "heads are added up: heads must stand"),
    (check_head_output, lambda p, v: torch.einsum("bhqk,bkgd->bqhd", p, v).flatten(2), "values of all heads are added"),
    (check_head_output, lambda p, v: head_by_head(p.softmax(-1), v), "softmax already"),
    (check_einsum_attention, lambda x, q, k, v: attend(x, q, k, v, scale=q.shape[-1] ** 0.5), "multiplied by √d"),
    (check_einsum_attention, lambda x, q, k, v: attend(x, q, v, k), "Key and value have changed places"),
    (check_einsum_attention, lambda *i: attend(*i, scores="b q h d, b k h e -> b h q k"), "^d has two names"),
    (check_einsum_attention, lambda *i: attend(*i, scores="b q h d, b k g d -> b h q k"), "two names in the scores"),
    (check_einsum_attention, lambda *i: attend(*i, output="b h q k, b k g d -> b q h d"), "two names in the output"),
    (check_einsum_attention, lambda *i: attend(*i, output="b h q k, b k h d -> b q d"), "heads are added up"),
    (check_einsum_attention, lambda *i: attend(*i, weight="b t m, h n d -> b t h d"), "d_model has two names"),
    (check_einsum_attention, lambda *i: attend(*i, weight="b t m, h d m -> b t h d"), "read as .heads, d, d_model."),
    (check_einsum_attention, lambda *i: attend(*i).flatten(2), "heads are joined"),
    (check_einsum_attention, lambda *i: attend(*i, softmax=causal_softmax), "future is hidden"),
    (check_einsum_attention, lambda *i: attend(*i, softmax=lambda s, dim: s).softmax(-1), "ends before the values"),
    (check_einsum_attention, lambda x, q, k, v: project(x, q).transpose(1, 2) @ project(x, k).transpose(1, 2).mT,
     "These are the scores"),
    (check_einsum_attention, lambda x, q, k, v: (project(x, q / q.shape[-1] ** 0.5).transpose(1, 2)
     @ project(x, k).transpose(1, 2).mT).softmax(-1), "This is the pattern"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "answer", "message"), WRONG)
def test_a_wrong_answer_is_named(check, answer, message):
    verdict = check(answer)
    assert not verdict
    assert verdict.status == "failed"
    assert re.search(message, verdict.message), verdict


def test_missing_softmax_is_named():
    def raw(x, w_query, w_key, w_value):
        query, key, value = project(x, w_query), project(x, w_key), project(x, w_value)
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        return torch.einsum("bhqk,bkhd->bqhd", scores, value)

    assert "Softmax is missing" in check_einsum_attention(raw).message
