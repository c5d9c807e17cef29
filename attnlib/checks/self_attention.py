"""Exercises of notebook 02: scaled weights, self-attention, a linear layer, carrying weights over."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attnlib.checks.context_vectors import AVERAGE_ROWS, OVERFLOW_ROWS, SOFTMAX_ROWS
from attnlib.checks.exercise import Exercise, draw
from attnlib.self_attention import SelfAttention_v1, SelfAttention_v2

NAMES = ("W_query", "W_key", "W_value")


def scaled_weights(query: Tensor, key: Tensor) -> Tensor:
    """The weights (q_tokens, kv_tokens) of scaled dot-product attention."""
    scores = query @ key.T / query.shape[-1] ** 0.5  # (q_tokens, kv_tokens)
    return torch.softmax(scores, dim=-1)


def self_attention(x: Tensor, W_query: Tensor, W_key: Tensor, W_value: Tensor) -> Tensor:
    """The context vectors (tokens, d_out) of x (tokens, d_in)."""
    query, key, value = x @ W_query, x @ W_key, x @ W_value  # (tokens, d_out)
    scores = query @ key.T / key.shape[-1] ** 0.5  # (tokens, tokens)
    return torch.softmax(scores, dim=-1) @ value


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What ``nn.Linear`` computes, with x (…, d_in) and weight (d_out, d_in)."""
    return x @ weight.T + bias  # (..., d_out)


def v2_from_v1(v1: SelfAttention_v1) -> SelfAttention_v2:
    """A new ``SelfAttention_v2`` that computes what ``v1`` does, with weights of its own."""
    v2 = SelfAttention_v2(*v1.W_query.shape)
    with torch.no_grad():
        for name in NAMES:
            getattr(v2, name).weight.copy_(getattr(v1, name).T)
    return v2


# Mistakes with the scale. A table says what head_dim is, `d`, and what comes of scores divided by √n, `over(n)`.
SCALE_ROWS = """
over(1)  # The scale is missing: divide the scores by √head_dim before the softmax.
over(d**2)  # The scores are divided by head_dim: divide by its square root, once.
over(1 / d)  # The scores are multiplied by √head_dim: divide them.
over(1) / d**0.5  # The scale belongs inside the softmax: divide the scores, not the result.
"""

KEYS = ((4, 4, 4), (3, 7, 5), (5, 3, 2), (2, 130, 6), (1, 1, 3))  # square first: mixed-up axes run, and are named
WEIGHTED = [draw(21 + i, (q_tokens, d), (kv_tokens, d)) for i, (q_tokens, kv_tokens, d) in enumerate(KEYS)]
WEIGHTED += [draw(26, (3, 7), (4, 7), scale=5.0, rows=(100, 0, 1)), draw(28, (3, 2), (5, 2), double=True)]
WEIGHTS_TABLE = f"""
Right: softmax(query keyᵀ / √head_dim).
d = query.shape[-1]; over = lambda n: (query @ key.T / n**0.5).softmax(-1); s = query @ key.T / d**0.5
query @ key.T  # These are plain scores: divide them by √head_dim, and take the softmax over the keys.
over((2 * d) ** 2); over((d / 2) ** 2)  # `d ** 1 / 2` is d / 2 in Python: write d ** 0.5.
over(2); over(4)  # The divisor is a fixed number: use √head_dim.
over(len(key)); over(len(query))  # This is the root of the number of tokens: use √head_dim.
scaled_weights(query, query)  # Queries are compared with queries: the scores are query @ key.T.
scaled_weights(key, query)  # Query and key are swapped: row i belongs to query i, so query @ key.T.
(query @ key / d**0.5).softmax(-1)  # The transpose is missing: query @ key.T.
average = lambda weights: weights
{SCALE_ROWS}{OVERFLOW_ROWS}{SOFTMAX_ROWS}"""
check_scaled_weights = Exercise(scaled_weights, WEIGHTED, WEIGHTS_TABLE)

SIZES = ((4, 4, 4), (5, 3, 2), (3, 2, 7), (1, 5, 3), (130, 3, 4))  # tokens, d_in, d_out
ATTENDED = [draw(31 + tokens, (tokens, d_in), *[(d_in, d_out)] * 3) for tokens, d_in, d_out in SIZES]
ATTENDED += [draw(30, (6, 3), *[(3, 5)] * 3, rows=(60, 0.1, 1, 20, 0, 5)), draw(29, (4, 2), *[(2, 3)] * 3, double=True)]
ATTENTION_TABLE = f"""
Right, even where d_in and d_out differ.
d = W_key.shape[-1]; v = x @ W_value; s = x @ W_query @ (x @ W_key).T / d**0.5; average = lambda weights: weights @ v
over = lambda n: average((s * (d / n) ** 0.5).softmax(-1))
over(x.shape[-1])  # This is √d_in: a query has d_out numbers, so use √d_out.
over(len(x))  # This is the root of the number of tokens: use √d_out.
self_attention(x, W_query, W_value, W_key)  # Key and value are swapped.
self_attention(x, W_key, W_query, W_value)  # Query and key are swapped: row i of the scores belongs to query i.
self_attention(x, W_query, W_query, W_value)  # Queries are compared with queries: the scores are query @ key.T.
self_attention(x, W_query, W_key, W_query)  # The queries are averaged: average the values.
self_attention(x, W_query, W_key, W_key)  # The keys are averaged: average the values.
scaled_weights(x, x) @ v; (x @ x.T).softmax(-1) @ v  # The tokens are compared: project them first.
(x @ x.T).softmax(-1) @ x; scaled_weights(x, x) @ x  # This is notebook 01: project x first.
scaled_weights(x @ W_query, x @ W_key) @ x  # The tokens themselves are averaged: average the values.
s.softmax(-1) * v  # `*` multiplies number by number: weights @ value averages.
{SCALE_ROWS.replace("head_dim", "d_out")}{OVERFLOW_ROWS}{AVERAGE_ROWS}"""
check_self_attention = Exercise(self_attention, ATTENDED, ATTENTION_TABLE)

LINEARS = [draw(41, (4, 4), (4, 4), (4,)), draw(42, (5, 3), (2, 3), (2,)), draw(43, (2, 5, 3), (7, 3), (7,))]
LINEARS += [draw(44, (3, 3, 3), (3, 3), (3,), scale=100.0), draw(45, (1, 4), (1, 4), (1,))]
LINEARS += [(torch.zeros(130, 2), *draw(46, (3, 2), (3,))), draw(47, (2, 1, 3), (2, 3), (2,), double=True)]
LINEAR_TABLE = """
Right: x @ weight.T + bias, for a batch as well.
x @ weight + bias; x @ weight  # The weight is not transposed: it has the shape (d_out, d_in), so x @ weight.T.
x @ weight.T  # The bias is missing.
weight @ x.mT + bias; weight @ x.mT  # The result is transposed: a row for each token, so x @ weight.T.
weight @ x + bias; weight @ x  # The weight is on the left, which sums over the tokens: x @ weight.T + bias.
x.mT @ weight.T + bias; x.mT @ weight + bias  # x is transposed: its last axis is already d_in, so x @ weight.T.
x @ (weight.T + bias); x @ (weight + bias).T; (x + bias) @ weight.T  # The bias comes too early: add it at the end.
"""
check_linear = Exercise(linear, LINEARS, LINEAR_TABLE)


def carried(v1: SelfAttention_v1, *order: str, take: Callable = lambda weight: weight.T.clone()) -> SelfAttention_v2:
    """A v2 whose three weights are what ``take`` makes of v1's weights in this order."""
    v2 = SelfAttention_v2(*v1.W_query.shape)
    for mine, other in zip(NAMES, order or NAMES):
        getattr(v2, mine).weight = nn.Parameter(take(getattr(v1, other).detach()))
    return v2


def _outputs(answer: Callable) -> Callable:
    """What v2 computes after v1 is set to zero, or a distinct number for each fault that no output shows."""

    def run(x: Tensor, *weights: Tensor) -> object:
        v1 = SelfAttention_v1(*weights[0].shape)
        for name, weight in zip(NAMES, weights):
            setattr(v1, name, nn.Parameter(weight.clone()))
        v2 = answer(v1)
        if v2 is None or v2 is Ellipsis:
            return v2
        layers = [layer for name in NAMES if isinstance(layer := getattr(v2, name, None), nn.Linear)]
        copies = [layer.weight.detach().clone() for layer in layers]
        faults = [
            len(layers) < len(NAMES),  # by name and kind, because the notebook defines its own SelfAttention_v2
            not all(torch.equal(getattr(v1, name), weight) for name, weight in zip(NAMES, weights)),
            any(layer.bias is not None and bool(layer.bias.any()) for layer in layers),
            not all(layer.weight.requires_grad and layer.weight.is_leaf for layer in layers),
        ]
        for name in NAMES:
            getattr(v1, name).data.zero_()
        faults.append(not all(torch.equal(layer.weight, copy) for layer, copy in zip(layers, copies)))
        return torch.tensor(1.0 + faults.index(True)) if any(faults) else v2(x)

    return run


V2_TABLE = """
Right: the same numbers, in weights of its own.
v1; carried(v1).W_query; v1.state_dict()  # W_query, W_key and W_value are not all found: return a SelfAttention_v2.
[p.data.neg_() for p in v1.parameters()] and carried(v1)  # v1 was changed: write only into the weights of v2.
SelfAttention_v2(*v1.W_query.shape, qkv_bias=True)  # v1 has no bias here: make v2 without one.
carried(v1).requires_grad_(False)  # The weights of v2 are frozen: copy into its parameters, which can be trained.
carried(v1, take=lambda weight: weight.T)  # v2 shares weights with v1, and changes when v1 does: copy them.
carried(v1, take=torch.clone)  # The weights are not transposed: nn.Linear keeps (d_out, d_in).
carried(v1, "W_key", "W_query", "W_value")  # Query and key are swapped.
carried(v1, "W_query", "W_value", "W_key")  # Key and value are swapped.
carried(v1, "W_query", "W_query", "W_query")  # All three are W_query: copy each by its own name.
carried(v1, "W_query", "W_key", "W_key")  # W_value has the weights of W_key: copy each by its own name.
"""
RANDOM = "some weights of v2 are still drawn at random, so copy all three."
check_v2_from_v1 = Exercise(v2_from_v1, ATTENDED[:3], V2_TABLE, chance=RANDOM, adapt=_outputs)
