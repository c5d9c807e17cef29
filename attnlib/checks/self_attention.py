"""Exercises of notebook 02: scaled weights, self-attention, a linear layer, carrying weights over."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attnlib.checks.context_vectors import less, share  # noqa: F401 (the tables use them)
from attnlib.checks.exercise import Exercise, draw
from attnlib.self_attention import SelfAttention_v1, SelfAttention_v2

NAMES = ("W_query", "W_key", "W_value")


def scaled_weights(query: Tensor, key: Tensor) -> Tensor:
    scores = query @ key.T / query.shape[-1] ** 0.5  # (q_tokens, kv_tokens)
    return torch.softmax(scores, dim=-1)


def self_attention(x: Tensor, W_query: Tensor, W_key: Tensor, W_value: Tensor) -> Tensor:
    query, key, value = x @ W_query, x @ W_key, x @ W_value  # (tokens, d_out)
    scores = query @ key.T / key.shape[-1] ** 0.5  # (tokens, tokens)
    return torch.softmax(scores, dim=-1) @ value


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x @ weight.T + bias  # (..., d_out)


def v2_from_v1(v1: SelfAttention_v1) -> SelfAttention_v2:
    v2 = SelfAttention_v2(*v1.W_query.shape)
    with torch.no_grad():
        for name in ("W_query", "W_key", "W_value"):
            getattr(v2, name).weight.copy_(getattr(v1, name).T)
    return v2


KEYS = ((4, 4, 4), (3, 7, 5), (5, 3, 2), (2, 130, 6), (1, 1, 3))  # q_tokens, kv_tokens, head_dim
SIZES = ((4, 4, 4), (5, 3, 2), (3, 2, 7), (1, 5, 3), (130, 3, 4))  # tokens, d_in, d_out
X, *WEIGHTS = draw(30, (6, 3), (3, 5), (3, 5), (3, 5))

check_scaled_weights = Exercise(
    "Check ``answer(query, key)``: the weights (q_tokens, kv_tokens) of scaled dot-product attention.",
    scaled_weights,
    [draw(21 + i, (q, d), (k, d)) for i, (q, k, d) in enumerate(KEYS)]  # square first: mixed-up axes run, and are named
    + [(draw(26, (3, 7))[0] * torch.tensor([100.0, 0.0, 1.0])[:, None], 30 * draw(27, (4, 7))[0])]
    + [draw(28, (3, 2), (5, 2), double=True)],
    """
    root = query.shape[-1] ** 0.5; s = query @ key.T; divided = lambda n: (s / n).softmax(-1)
    s / root  # These are scores: take the softmax over the keys, dim=-1.
    s  # These are plain scores: divide them by √head_dim, and take the softmax over the keys.
    s.softmax(-1)  # The scale is missing: divide the scores by √head_dim before the softmax.
    share((s / root).exp())  # exp overflows for large scores: use torch.softmax.
    share(less(s / root, (0, 1)))  # Each row has its own largest score to subtract.
    divided(query.shape[-1])  # The scores are divided by head_dim: divide by its square root, once.
    divided(2 * query.shape[-1]); divided(query.shape[-1] / 2)  # `d ** 1 / 2` is d / 2 in Python: write d ** 0.5.
    divided(1 / root)  # The scores are multiplied by √head_dim: divide them.
    divided(2**0.5); divided(2)  # The divisor is a fixed number: use √head_dim.
    divided(len(key) ** 0.5); divided(len(query) ** 0.5)  # This is the root of the number of tokens: use √head_dim.
    s.softmax(-1) / root  # The division comes after the softmax: divide the scores.
    scaled_weights(query, query)  # Queries are compared with queries: the scores are query @ key.T.
    scaled_weights(key, query)  # Query and key are swapped: row i belongs to query i, so query @ key.T.
    scaled_weights(key, query).T  # The softmax runs over the queries: in query @ key.T the keys are dim=-1.
    scaled_weights(query, key).softmax(-1)  # Softmax is taken twice.
    (query @ key / root).softmax(-1)  # The transpose is missing: query @ key.T.
    (s / root).exp()  # These are exponentials: divide each row by its sum.
    """,
    "Right: softmax(query keyᵀ / √head_dim).",
)

check_self_attention = Exercise(
    "Check ``answer(x, W_query, W_key, W_value)``: the context vectors (tokens, d_out) of x (tokens, d_in).",
    self_attention,
    [draw(31 + tokens, (tokens, d_in), *[(d_in, d_out)] * 3) for tokens, d_in, d_out in SIZES]
    + [(X * torch.tensor([60.0, 0.1, 1.0, 20.0, 0.0, 5.0])[:, None], *WEIGHTS)]  # scores far apart
    + [draw(29, (4, 2), (2, 3), (2, 3), (2, 3), double=True)],
    """
    root = W_key.shape[-1] ** 0.5; v = x @ W_value; s = x @ W_query @ (x @ W_key).T / root
    over = lambda n: (s * root / n).softmax(-1) @ v
    over(1)  # The scale is missing: divide the scores by √d_out.
    over(x.shape[-1] ** 0.5)  # This is √d_in: a query has d_out numbers, so use √d_out.
    over(W_key.shape[-1])  # The scores are divided by d_out: take its square root.
    over(len(x) ** 0.5)  # This is the root of the number of tokens: use √d_out.
    over(1 / root)  # The scores are multiplied by √d_out: divide them.
    over(1) / root  # The division comes after the softmax.
    self_attention(x, W_query, W_value, W_key)  # Key and value are swapped.
    self_attention(x, W_key, W_query, W_value)  # Query and key are swapped: row i of the scores belongs to query i.
    self_attention(x, W_query, W_query, W_value)  # Queries are compared with queries: the scores are query @ key.T.
    self_attention(x, W_query, W_key, W_query); self_attention(x, W_query, W_key, W_key)  # Average the values.
    scaled_weights(x, x) @ v; (x @ x.T).softmax(-1) @ v  # The tokens are compared: project them first.
    (x @ x.T).softmax(-1) @ x; scaled_weights(x, x) @ x  # This is notebook 01: project x first.
    scaled_weights(x @ W_query, x @ W_key) @ x  # The tokens themselves are averaged: average the values.
    s.softmax(-1) * v  # `*` multiplies number by number: weights @ value averages.
    s.softmax(0) @ v  # The softmax runs over the queries: use dim=-1, the keys.
    share(s.exp()) @ v  # exp overflows for large scores: use torch.softmax.
    share(less(s, (0, 1))) @ v  # Each row has its own largest score to subtract.
    s @ v  # Softmax is missing: raw scores do not sum to one.
    s.softmax(-1)  # These are the weights, one step too early: average the values.
    s  # These are the scores: take their softmax, and average the values.
    """,
    "Right, even where d_in and d_out differ.",
)

LINEARS = [draw(41, (4, 4), (4, 4), (4,)), draw(42, (5, 3), (2, 3), (2,)), draw(43, (2, 5, 3), (7, 3), (7,))]
LINEARS += [draw(44, (3, 3, 3), (3, 3), (3,), scale=100.0), draw(45, (1, 4), (1, 4), (1,))]
LINEARS += [(torch.zeros(130, 2), *draw(46, (3, 2), (3,))), draw(47, (2, 1, 3), (2, 3), (2,), double=True)]

check_linear = Exercise(
    "Check ``answer(x, weight, bias)``: what ``nn.Linear`` computes, with x (…, d_in) and weight (d_out, d_in).",
    linear,
    LINEARS,
    """
    x @ weight + bias; x @ weight  # The weight is not transposed: it has the shape (d_out, d_in), so x @ weight.T.
    x @ weight.T  # The bias is missing.
    weight @ x.mT + bias; weight @ x.mT  # The result is transposed: a row for each token, so x @ weight.T.
    weight @ x + bias; weight @ x  # The weight is on the left, which sums over the tokens: x @ weight.T + bias.
    x.mT @ weight.T + bias; x.mT @ weight + bias  # x is transposed: its last axis is already d_in, so x @ weight.T.
    x @ (weight.T + bias); x @ (weight + bias).T; (x + bias) @ weight.T  # The bias comes after the product.
    (x @ weight.T + bias).relu(); (x @ weight.T + bias).softmax(-1)  # An activation is applied: nn.Linear has none.
    """,
    "Right: x @ weight.T + bias, for a batch as well.",
)


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
        before = [layer.weight.detach().clone() for layer in layers]
        unchanged = all(torch.equal(getattr(v1, name), weight) for name, weight in zip(NAMES, weights))
        for name in NAMES:
            getattr(v1, name).data.zero_()
        faults = [
            len(layers) < len(NAMES),  # by name and kind, because the notebook defines its own SelfAttention_v2
            not unchanged,
            any(layer.bias is not None and bool(layer.bias.any()) for layer in layers),
            not all(layer.weight.requires_grad and layer.weight.is_leaf for layer in layers),
            not all(torch.equal(layer.weight, held) for layer, held in zip(layers, before)),
        ]
        return torch.tensor(1.0 + faults.index(True)) if any(faults) else v2(x)

    return run


check_v2_from_v1 = Exercise(
    "Check ``answer(v1)``: a new ``SelfAttention_v2`` that computes what ``v1`` does, with weights of its own.",
    v2_from_v1,
    [draw(51 + n, (n, d_in), *[(d_in, d_out)] * 3) for n, d_in, d_out in ((5, 4, 4), (7, 3, 2), (3, 2, 5))],
    """
    v1; carried(v1).W_query; v1.state_dict()  # Return a new SelfAttention_v2, with layers W_query, W_key and W_value.
    [p.data.neg_() for p in v1.parameters()] and carried(v1)  # v1 was changed: write only into the weights of v2.
    SelfAttention_v2(*v1.W_query.shape, qkv_bias=True)  # v1 has no bias here: make v2 without one.
    carried(v1).requires_grad_(False)  # The weights of v2 are frozen: copy into its parameters, which can be trained.
    carried(v1, take=lambda weight: weight.T)  # v2 shares weights with v1, and changes when v1 does: copy them.
    carried(v1, take=torch.clone)  # The weights are not transposed: nn.Linear keeps (d_out, d_in).
    carried(v1, "W_key", "W_query", "W_value")  # Query and key are swapped.
    carried(v1, "W_query", "W_value", "W_key")  # Key and value are swapped.
    carried(v1, "W_query", "W_query", "W_query"); carried(v1, "W_query", "W_key", "W_key")  # Copy by name, one by one.
    """,
    "Right: the same numbers, in weights of its own.",
    chance="Two calls give different numbers: some weights of v2 are still drawn at random, so copy all three.",
    adapt=_outputs,
)
