"""The checks of notebook 02 pass what is right, and name what is wrong."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnlib import SelfAttention_v2
from attnlib.checks import check_linear, check_scaled_weights, check_self_attention, check_v2_from_v1

CHECKS = [check_linear, check_scaled_weights, check_self_attention]


def weights_with_loops(query, key):
    rows = []
    for q in query:
        exponentials = torch.stack([torch.exp(q @ k / len(q) ** 0.5) for k in key])
        rows.append(exponentials / exponentials.sum())
    return torch.stack(rows)


def attention_by_torch(x, w_query, w_key, w_value):
    return F.scaled_dot_product_attention(x @ w_query, x @ w_key, x @ w_value)


def attend(query, key, value, size, dim=-1):
    return (query @ key.T / size**0.5).softmax(dim) @ value


def carry(v1, *, order=("W_query", "W_key", "W_value"), transpose=True, copy=True):
    v2 = SelfAttention_v2(*v1.W_query.shape)
    for theirs, mine in zip(order, ("W_query", "W_key", "W_value")):
        weight = getattr(v1, theirs).detach()
        weight = weight.T if transpose else weight
        getattr(v2, mine).weight = nn.Parameter(weight.clone() if copy else weight)
    return v2


def exp_scores(query, key):
    return (query @ key.T / query.shape[-1] ** 0.5).exp()


def carry_and_change(v1):
    v2 = carry(v1)
    with torch.no_grad():
        v1.W_key.mul_(2)
    return v2


def share_one(v1):
    v2 = carry(v1)
    v2.W_query.weight = nn.Parameter(v1.W_query.detach().T)
    return v2


def carry_with_biases_of_zero(v1):
    v2 = SelfAttention_v2(*v1.W_query.shape, qkv_bias=True)
    with torch.no_grad():
        for name in ("W_query", "W_key", "W_value"):
            getattr(v2, name).weight.copy_(getattr(v1, name).T)
            getattr(v2, name).bias.zero_()
    return v2


RIGHT = [
    (check_scaled_weights, weights_with_loops),
    (check_self_attention, attention_by_torch),
    (check_linear, lambda x, weight, bias: torch.einsum("...i,oi->...o", x, weight) + bias),
    (check_v2_from_v1, carry),
    (check_v2_from_v1, carry_with_biases_of_zero),
]

WRONG = [
    (check_scaled_weights, lambda q, k: (q @ k.T).softmax(-1), "factor is missing"),
    (check_scaled_weights, lambda q, k: (q @ k.T / q.shape[1]).softmax(-1), "head_dim itself"),
    (check_scaled_weights, lambda q, k: (q @ k.T * q.shape[1] ** 0.5).softmax(-1), "multiplied"),
    (check_scaled_weights, lambda q, k: (q @ k.T).softmax(-1) / q.shape[1] ** 0.5, "comes after softmax"),
    (check_scaled_weights, lambda q, k: (q @ k.T / q.shape[1] ** 1 / 2).softmax(-1), "half of d"),
    (check_scaled_weights, lambda q, k: (q @ k.T / 2**0.5).softmax(-1), "always √2"),
    (check_scaled_weights, lambda q, k: q @ k.T, "plain scores"),
    (check_scaled_weights, lambda q, k: weights_with_loops(q, k).T, "result is transposed"),
    (check_scaled_weights, lambda q, k: weights_with_loops(q, q), "compared with queries"),
    (check_scaled_weights, lambda q, k: weights_with_loops(k, k), "compared with keys"),
    (check_scaled_weights, lambda q, k: exp_scores(q, k) / exp_scores(q, k).sum(), "over everything"),
    (check_scaled_weights, lambda q, k: weights_with_loops(q, k).softmax(-1), "twice"),
    (check_linear, lambda x, weight, bias: weight @ x.mT + bias, "result is transposed"),
    (check_linear, lambda x, weight, bias: weight @ x + bias, "stands on the left"),
    (check_linear, lambda x, weight, bias: x @ weight.T * bias, "multiplied"),
    (check_linear, lambda x, weight, bias: x @ weight.T + bias.sum(), "into one number"),
    (check_linear, lambda x, weight, bias: torch.addmm(bias, x, weight.T), "Right for one sentence"),
    (check_v2_from_v1, carry_and_change, "v1 is changed"),
    (check_v2_from_v1, lambda v1: SelfAttention_v2(*v1.W_query.shape, qkv_bias=True), "qkv_bias=False"),
    (check_v2_from_v1, lambda v1: carry(v1, order=("W_query", "W_key", "W_key")), "transposed, in W_value."),
    (check_v2_from_v1, lambda v1: carry(v1, order=("W_value",) * 3), "in W_query and W_key."),
    (check_v2_from_v1, share_one, "share their weights"),
    (check_v2_from_v1, lambda v1: v1, "Return a new SelfAttention_v2"),
    (check_scaled_weights, lambda q, k: (q @ k.T / len(k) ** 0.5).softmax(-1), "number of keys"),
    (check_scaled_weights, lambda q, k: (q @ k.T / len(q) ** 0.5).softmax(-1), "number of queries"),
    (check_scaled_weights, lambda q, k: (q @ k.T / q.shape[1] ** 0.5).softmax(0), "over the queries"),
    (check_scaled_weights, lambda q, k: (k @ q.T / q.shape[1] ** 0.5).softmax(-1), "changed places"),
    (check_scaled_weights, lambda q, k: (q @ k / q.shape[1] ** 0.5).softmax(-1), "transpose is missing"),
    (check_scaled_weights, lambda q, k: q @ k.T / q.shape[1] ** 0.5, "These are scores"),
    (check_scaled_weights, lambda q, k: weights_with_loops(q, k)[:1], "should return the shape"),
    (check_self_attention, lambda x, q, k, v: attend(x @ q, x @ k, x @ v, 1), "factor is missing"),
    (check_self_attention, lambda x, q, k, v: attend(x @ q, x @ k, x @ v, x.shape[1]), "√d_in"),
    (check_self_attention, lambda x, q, k, v: attend(x @ q, x @ k, x @ v, q.shape[1] ** 2), "d_out itself"),
    (check_self_attention, lambda x, q, k, v: attend(x @ q, x @ k, x @ v, x.shape[1] ** 2), "d_in itself"),
    (check_self_attention, lambda x, q, k, v: attend(x @ q, x @ k, x @ v, (q.shape[1] / 2) ** 2), "half of d_out"),
    (check_self_attention, lambda x, q, k, v: attend(x @ q, x @ k, x @ v, (q.shape[1] * 2) ** 2), "half of d in"),
    (check_self_attention, lambda x, q, k, v: attend(x @ q, x @ k, x @ v, len(x)), "number of tokens"),
    (check_self_attention, lambda x, q, k, v: attend(x @ q, x @ k, x @ v, 1 / q.shape[1]), "multiplied"),
    (check_self_attention, lambda x, q, k, v: attend(x @ q, x @ k, x @ v, 1) / q.shape[1] ** 0.5, "after softmax"),
    (check_self_attention, lambda x, q, k, v: attend(x @ q, x @ v, x @ k, q.shape[1]), "Key and value"),
    (check_self_attention, lambda x, q, k, v: attend(x @ v, x @ k, x @ q, q.shape[1]), "Query and value"),
    (check_self_attention, lambda x, q, k, v: attend(x, x, x @ v, x.shape[1]), "tokens themselves are compared"),
    (check_self_attention, lambda x, q, k, v: attend(x @ k, x @ k, x @ v, q.shape[1]), "compared with keys"),
    (check_self_attention, lambda x, q, k, v: attend(x @ q, x @ k, x @ q, q.shape[1]), "average the queries"),
    (check_self_attention, lambda x, q, k, v: x @ q @ (x @ k).T @ (x @ v), "Softmax and √d_out"),
    (check_self_attention, lambda x, q, k, v: attend(x @ q, x @ k, x @ v, q.shape[1]).T, "result is transposed"),
    (check_self_attention, lambda x, q, k, v: attend(x @ k, x @ q, x @ v, q.shape[1]), "Query and key"),
    (check_self_attention, lambda x, q, k, v: attend(x @ q, x @ k, x, q.shape[1]), "tokens themselves"),
    (check_self_attention, lambda x, q, k, v: attend(x @ q, x @ k, x @ k, q.shape[1]), "average the keys"),
    (check_self_attention, lambda x, q, k, v: attend(x @ q.T, x @ k.T, x @ v.T, q.shape[1]), "are transposed"),
    (check_self_attention, lambda x, q, k, v: attend(x @ q, x @ k, x @ v, q.shape[1], 0), "over the queries"),
    (check_self_attention, lambda x, q, k, v: x @ q @ (x @ k).T / q.shape[1] ** 0.5 @ (x @ v), "Softmax is missing"),
    (check_self_attention, lambda x, q, k, v: weights_with_loops(x @ q, x @ k), "These are the weights"),
    (check_linear, lambda x, weight, bias: x @ weight + bias, "not transposed"),
    (check_linear, lambda x, weight, bias: x @ weight, "bias is missing, and the weight"),
    (check_linear, lambda x, weight, bias: x @ weight.T, "The bias is missing."),
    (check_linear, lambda x, weight, bias: x @ (weight.T + bias), "makes another weight"),
    (check_linear, lambda x, weight, bias: x @ (weight + bias).T, "every token alike"),
    (check_linear, lambda x, weight, bias: x @ weight.T - bias, "subtracted"),
    (check_linear, lambda x, weight, bias: x @ weight.T + bias[:, None], "Each token gets its own"),
    (check_linear, lambda x, weight, bias: (x + bias) @ weight.T, "goes through the weight"),
    (check_linear, lambda x, weight, bias: (weight @ x.transpose(0, 1)).T + bias, "raised RuntimeError"),
    (check_v2_from_v1, lambda v1: carry(v1, copy=False), "share their weights"),
    (check_v2_from_v1, lambda v1: carry(v1, transpose=False), "not transposed"),
    (check_v2_from_v1, lambda v1: carry(v1, order=("W_key", "W_query", "W_value")), "Query and key"),
    (check_v2_from_v1, lambda v1: carry(v1, order=("W_query", "W_value", "W_key")), "Key and value"),
    (check_v2_from_v1, lambda v1: carry(v1, order=("W_query", "W_query", "W_query")), "W_query's numbers"),
    (check_v2_from_v1, lambda v1: SelfAttention_v2(*v1.W_query.shape), "W_query and W_key and W_value"),
    (check_v2_from_v1, lambda v1: 3, "Return a new"),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_passes_what_is_right(check, answer):
    verdict = check(answer)
    assert verdict
    assert repr(verdict).startswith("✓ Right")


@pytest.mark.parametrize(("check", "answer", "named"), WRONG, ids=[f"{w[0].__name__}-{w[2]}" for w in WRONG])
def test_names_the_mistake(check, answer, named):
    verdict = check(answer)
    assert not verdict
    assert verdict.status == "failed"
    assert named in verdict.message, verdict


@pytest.mark.parametrize("check", [*CHECKS, check_v2_from_v1])
def test_a_stub_is_not_written_yet(check):
    assert check(lambda *inputs: None).status == "not yet"
    assert "uncalled" in check(torch.ones(3)).message


@pytest.mark.parametrize("check", CHECKS)
def test_the_global_generator_is_left_alone(check):
    state = torch.random.get_rng_state()
    check(lambda *inputs: inputs[0])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_message_speaks_of_the_learners_function_by_name():
    def my_v2_from_v1(v1):
        raise KeyError("W_q")

    assert check_v2_from_v1(my_v2_from_v1).message == "my_v2_from_v1 raised KeyError: 'W_q'"


def test_nothing_but_the_size_of_v1_is_needed():
    sizes = []

    def my_v2_from_v1(v1):
        sizes.append(tuple(v1.W_query.shape))
        return carry(v1)

    assert check_v2_from_v1(my_v2_from_v1)
    assert sizes == [(4, 4), (3, 2)]
