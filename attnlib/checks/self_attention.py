"""Exercises of notebook 02: scaled weights, self-attention, a linear layer, carrying weights over."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

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


def divided(scores: Tensor, divisor: float = 1.0, dim: int = -1) -> Tensor:
    return (scores / divisor).softmax(dim)


def shares(scores: Tensor) -> Tensor:
    """The softmax that overflows."""
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


check_scaled_weights = Exercise(
    "Check ``answer(query, key)``: the weights (q_tokens, kv_tokens) of scaled dot-product attention.",
    scaled_weights,
    [
        draw(21, (4, 4), (4, 4)),  # square first: mixed-up axes run, and are named
        draw(22, (3, 5), (7, 5)),
        draw(23, (5, 2), (3, 2)),
        draw(24, (2, 6), (130, 6)),
        draw(25, (1, 3), (1, 3)),
        (draw(26, (3, 7))[0] * torch.tensor([100.0, 0.0, 1.0])[:, None], 30 * draw(27, (4, 7))[0]),
        tuple(x.double() for x in draw(28, (3, 2), (5, 2))),
    ],
    """
    query @ key.T / query.shape[-1] ** 0.5  # These are scores: take the softmax over the keys, dim=-1.
    query @ key.T  # These are plain scores: divide them by √head_dim, and take the softmax over the keys.
    divided(query @ key.T)  # The scale is missing: divide the scores by √head_dim before the softmax.
    shares(query @ key.T / query.shape[-1] ** 0.5)  # exp overflows for large scores: use torch.softmax.
    shares((query @ key.T - (query @ key.T).max()) / query.shape[-1] ** 0.5)  # One largest score is subtracted from all
        # rows: each row has its own.
    divided(query @ key.T, query.shape[-1] ** -0.5)  # The scores are multiplied by √head_dim: divide by it.
    divided(query @ key.T, query.shape[-1])  # The scores are divided by head_dim: divide by its square root, once.
    divided(query @ key.T, 2 * query.shape[-1])  # `/ d ** 1 / 2` divides by 2 d in Python: write d ** 0.5.
    divided(query @ key.T, query.shape[-1] / 2)  # The scores are divided by half of head_dim: write head_dim ** 0.5.
    divided(query @ key.T, 2**0.5)  # The divisor is always √2: use √head_dim of the query that comes.
    divided(query @ key.T, 2)  # The divisor is always 2: use √head_dim of the query that comes.
    divided(query @ key.T, len(key) ** 0.5)  # This is the root of the number of keys: use √head_dim.
    divided(query @ key.T, len(query) ** 0.5)  # This is the root of the number of queries: use √head_dim.
    divided(query @ key.T, len(key))  # The scores are divided by the number of keys: divide by √head_dim.
    divided(query @ key.T) / query.shape[-1] ** 0.5  # The division comes after the softmax: divide the scores.
    scaled_weights(query, key).T  # The result is transposed: a row for each query, a column for each key.
    scaled_weights(query, query)  # Queries are compared with queries: the scores are query @ key.T.
    scaled_weights(key, key)  # Keys are compared with keys: the scores are query @ key.T.
    scaled_weights(key, query)  # Query and key are swapped: row i belongs to query i, so query @ key.T.
    divided(query @ key.T, query.shape[-1] ** 0.5, 0)  # The softmax runs over the queries: use dim=-1, the keys.
    divided((query @ key.T).flatten(), query.shape[-1] ** 0.5).view(len(query), -1)  # One softmax is taken over all
        # scores: use dim=-1.
    divided(scaled_weights(query, key))  # Softmax is taken twice.
    divided(query @ key, query.shape[-1] ** 0.5)  # The transpose is missing: query @ key.T.
    divided(query.T @ key, query.shape[-1] ** 0.5)  # query.T @ key sums over the tokens: use query @ key.T.
    (query @ key.T / query.shape[-1] ** 0.5).exp()  # These are exponentials: divide each row by its sum.
    (query @ key.T / query.shape[-1] ** 0.5).log_softmax(-1)  # These are logarithms: use softmax.
    (query @ key.T / query.shape[-1] ** 0.5).sigmoid()  # A sigmoid looks at each score alone: use softmax.
    divided(-query @ key.T, query.shape[-1] ** 0.5)  # The sign is flipped: the largest score gets the largest weight.
    scaled_weights(query, key) @ key  # This is one step too far: return the weights.
    divided(query.softmax(-1) @ key.softmax(-1).T, query.shape[-1] ** 0.5)  # The softmax belongs to the scores only.
    """,
    "Right: softmax(query keyᵀ / √head_dim).",
)


def raw(x: Tensor, W_query: Tensor, W_key: Tensor) -> Tensor:
    """The scaled scores."""
    return x @ W_query @ (x @ W_key).T / W_key.shape[-1] ** 0.5


def over(divisor: float, x: Tensor, W_query: Tensor, W_key: Tensor, W_value: Tensor) -> Tensor:
    """Self-attention with another divisor of the scores."""
    return divided(x @ W_query @ (x @ W_key).T, divisor) @ x @ W_value


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return divided(query @ key.T, query.shape[-1] ** 0.5) @ value


def _projection_cases() -> list[tuple[Tensor, ...]]:
    sizes = ((4, 4, 4), (5, 3, 2), (3, 2, 7), (1, 5, 3), (130, 3, 4))  # tokens, d_in, d_out
    cases = [draw(31 + tokens, (tokens, d_in), *[(d_in, d_out)] * 3) for tokens, d_in, d_out in sizes]
    x, *weights = draw(30, (6, 3), (3, 5), (3, 5), (3, 5))
    far_apart = x * torch.tensor([60.0, 0.1, 1.0, 20.0, 0.0, 5.0])[:, None]
    return [*cases, (far_apart, *weights), tuple(x.double() for x in draw(29, (4, 2), (2, 3), (2, 3), (2, 3)))]


check_self_attention = Exercise(
    "Check ``answer(x, W_query, W_key, W_value)``: the context vectors (tokens, d_out) of x (tokens, d_in).",
    self_attention,
    _projection_cases(),
    """
    over(1, x, W_query, W_key, W_value)  # The scale is missing: divide the scores by √d_out.
    over(x.shape[-1] ** 0.5, x, W_query, W_key, W_value)  # This is √d_in: a query has d_out numbers, so use √d_out.
    over(W_key.shape[-1], x, W_query, W_key, W_value)  # The scores are divided by d_out: take its square root.
    over(x.shape[-1], x, W_query, W_key, W_value)  # The scores are divided by d_in: use √d_out.
    over(2 * W_key.shape[-1], x, W_query, W_key, W_value)  # `/ d_out ** 1 / 2` divides by 2 d_out in Python: write
        # d_out ** 0.5.
    over(W_key.shape[-1] / 2, x, W_query, W_key, W_value)  # The scores are divided by half of d_out: use √d_out.
    over(2**0.5, x, W_query, W_key, W_value)  # The divisor is always √2: use √d_out of the weights that come.
    over(len(x) ** 0.5, x, W_query, W_key, W_value)  # This is the root of the number of tokens: use √d_out.
    over(W_key.shape[-1] ** -0.5, x, W_query, W_key, W_value)  # The scores are multiplied by √d_out: divide by it.
    over(1, x, W_query, W_key, W_value) / W_key.shape[-1] ** 0.5  # The division comes after the softmax: divide the
        # scores.
    self_attention(x, W_query, W_value, W_key)  # Key and value are swapped.
    self_attention(x, W_value, W_key, W_query)  # Query and value are swapped.
    self_attention(x, W_key, W_query, W_value)  # Query and key are swapped: row i of the scores belongs to query i.
    self_attention(x, W_key, W_value, W_query)  # The roles are rotated: match W_query, W_key and W_value by name.
    self_attention(x, W_value, W_query, W_key)
    self_attention(x, W_key, W_key, W_value)  # Keys are compared with keys: the scores are query @ key.T.
    self_attention(x, W_query, W_query, W_value)  # Queries are compared with queries: the scores are query @ key.T.
    self_attention(x, W_query, W_key, W_key)  # The keys are averaged: average the values, x @ W_value.
    self_attention(x, W_query, W_key, W_query)  # The queries are averaged: average the values, x @ W_value.
    self_attention(x, W_query, W_query, W_query)  # W_query makes everything here: keys need W_key, values W_value.
    attended(x, x, x @ W_value)  # The tokens themselves are compared: project them first.
    attended(x @ W_query, x, x @ W_value)  # The keys are not projected: x @ W_key.
    attended(x, x @ W_key, x @ W_value)  # The queries are not projected: x @ W_query.
    attended(x @ W_query, x @ W_key, x)  # The tokens themselves are averaged: average the values.
    raw(x, W_query, W_key).softmax(-1).T @ x @ W_value  # The weights are transposed: row i must belong to query i.
    self_attention(x, W_query.T, W_key.T, W_value.T)  # The weights are transposed: they have the shape (d_in, d_out),
        # so x @ W.
    raw(x, W_query, W_key).softmax(0) @ x @ W_value  # The softmax runs over the queries: use dim=-1, the keys.
    shares(raw(x, W_query, W_key)) @ x @ W_value  # exp overflows for large scores: use torch.softmax.
    shares(raw(x, W_query, W_key) - raw(x, W_query, W_key).max()) @ x @ W_value  # One largest score is subtracted from
        # all rows: each row has its own.
    (raw(x, W_query, W_key)).exp() @ x @ W_value  # The exponentials are not divided by their sum: use softmax.
    raw(x, W_query, W_key) @ x @ W_value  # Softmax is missing: raw scores do not sum to one.
    x @ W_query @ (x @ W_key).T @ x @ W_value  # Softmax and √d_out are missing: raw scores do not sum to one.
    raw(x, W_query, W_key).softmax(-1).softmax(-1) @ x @ W_value  # Softmax is taken twice.
    raw(x, W_query, W_key).flatten().softmax(0).view(len(x), -1) @ x @ W_value  # One softmax is taken over all scores:
        # use dim=-1.
    self_attention(x, W_query, W_key, W_value).softmax(-1)  # There is a softmax after the average: leave it out.
    self_attention(x, W_query, W_key, W_value).T  # The result is transposed: a row for each token.
    raw(x, W_query, W_key).softmax(-1)  # These are the weights, one step too early: average the values.
    raw(x, W_query, W_key)  # These are the scores: take their softmax, and average the values.
    x @ W_value  # These are the values: average them with the weights.
    self_attention(x, W_query, W_key, W_value).sum(0)  # The context vectors are summed: return one for each token.
    self_attention(x, W_query, W_key, W_value)[-1]  # This is the context vector of the last token: return all.
    """,
    "Right, even where d_in and d_out differ.",
)


check_linear = Exercise(
    "Check ``answer(x, weight, bias)``: what ``nn.Linear`` computes, with x (…, d_in) and weight (d_out, d_in).",
    linear,
    [
        draw(41, (4, 4), (4, 4), (4,)),
        draw(42, (5, 3), (2, 3), (2,)),
        draw(43, (2, 5, 3), (7, 3), (7,)),
        draw(44, (3, 3, 3), (3, 3), (3,), scale=100.0),
        draw(45, (1, 4), (1, 4), (1,)),
        (torch.zeros(130, 2), *draw(46, (3, 2), (3,))),
        tuple(x.double() for x in draw(47, (2, 1, 3), (2, 3), (2,))),
    ],
    """
    x @ weight + bias  # The weight is not transposed: it has the shape (d_out, d_in), so x @ weight.T.
    x @ weight.T  # The bias is missing.
    x @ weight  # The bias is missing, and the weight is not transposed.
    weight @ x.mT + bias  # The result is transposed: a row for each token, so x @ weight.T.
    weight @ x.mT + bias[:, None]
    weight @ x.mT  # The bias is missing, and the result is transposed: a row for each token, so x @ weight.T.
    weight @ x + bias  # The weight is on the left, which sums over the tokens: x @ weight.T.
    weight @ x  # The weight is on the left, which sums over the tokens, and the bias is missing.
    x.mT @ weight.T + bias  # x is transposed: its last axis is already d_in, so x @ weight.T.
    x.mT @ weight + bias
    x @ weight.T * bias  # The bias is multiplied: add it.
    x @ weight.T - bias  # The bias is subtracted: add it.
    x @ weight.T + 2 * bias  # The bias is added twice.
    x @ weight.T + bias.sum()  # The bias became one number: it has one for each output, and broadcasts as it is.
    x @ weight.T + bias.mean()
    x @ weight.T + bias[0]
    x @ weight.T + bias[:, None]  # Each token gets its own number of the bias: it has one for each output.
    x @ (weight.T + bias)  # The bias is added to the weight, which makes another weight: add it after the product.
    x @ (weight + bias).T
    x @ (weight + bias[:, None]).T
    (x + bias) @ weight.T  # The bias goes through the weight as well: add it after the product.
    x @ weight.T / x.shape[-1] ** 0.5 + bias  # There is no root in nn.Linear: leave it out.
    (x @ weight.T + bias) / x.shape[-1] ** 0.5
    x @ weight.T / x.shape[-1] + bias  # This is a mean of products: a linear layer takes their sum.
    (x @ weight.T + bias).relu()  # An activation is applied: nn.Linear has none.
    (x @ weight.T + bias).sigmoid()
    (x @ weight.T + bias).tanh()
    (x @ weight.T + bias).softmax(-1)  # A softmax is applied: nn.Linear has none.
    x * weight[0] + bias  # This multiplies entry by entry: a matrix product sums as well, x @ weight.T.
    x * weight + bias
    (x @ weight.T + bias).sum(-1)  # The outputs are summed: keep one number for each output.
    (x @ weight.T + bias).mean(-2)  # The tokens are averaged: keep one row for each token.
    (x @ weight.T + bias)[0]  # Only the first row is returned: keep one row for each token.
    torch.cat([x @ weight.T, bias.expand(*x.shape[:-1], -1)], -1)  # The bias is appended: add it.
    (x - x.mean(-1, keepdim=True)) @ weight.T + bias  # A mean is subtracted first: leave it out.
    """,
    "Right: x @ weight.T + bias, for a batch as well.",
)


def carried(v1: SelfAttention_v1, *order: str, take: Callable = lambda weight: weight.T.clone()) -> SelfAttention_v2:
    """A v2 whose three weights are what ``take`` makes of v1's weights in this order."""
    v2 = SelfAttention_v2(*v1.W_query.shape)
    for mine, other in zip(NAMES, order or NAMES):
        getattr(v2, mine).weight = nn.Parameter(take(getattr(v1, other).detach()))
    return v2


def changed(module: nn.Module, change: Callable) -> nn.Module:
    """This module after each of its parameters was changed in place."""
    for parameter in module.parameters():
        change(parameter.data)
    return module


def with_bias(v1: SelfAttention_v1) -> SelfAttention_v2:
    v2 = SelfAttention_v2(len(v1.W_query), v1.W_query.shape[1], qkv_bias=True)
    for name in NAMES:
        getattr(v2, name).weight.data.copy_(getattr(v1, name).T)
    return v2


def _outputs(answer: Callable) -> Callable:
    """What v2 computes after v1 is set to zero, or a number of its own for each fault that no output shows."""

    def run(x: Tensor, W_query: Tensor, W_key: Tensor, W_value: Tensor) -> object:
        v1, weights = SelfAttention_v1(*W_query.shape), (W_query, W_key, W_value)
        for name, weight in zip(NAMES, weights):
            setattr(v1, name, nn.Parameter(weight.clone()))
        v2 = answer(v1)
        if v2 is None or v2 is Ellipsis:
            return v2
        layers = [layer for name in NAMES if isinstance(layer := getattr(v2, name, None), nn.Linear)]
        if len(layers) < len(NAMES):  # the notebook has a SelfAttention_v2 of its own
            return torch.tensor(1.0)
        if not all(torch.equal(getattr(v1, name), weight) for name, weight in zip(NAMES, weights)):
            return torch.tensor(2.0)
        if any(layer.bias is not None and bool(layer.bias.any()) for layer in layers):
            return torch.tensor(3.0)
        if not all(layer.weight.requires_grad and layer.weight.is_leaf for layer in layers):
            return torch.tensor(4.0)
        before = [layer.weight.detach().clone() for layer in layers]
        changed(v1, torch.Tensor.zero_)
        if not all(torch.equal(layer.weight, held) for layer, held in zip(layers, before)):
            return torch.tensor(5.0)
        return v2(x)

    return run


check_v2_from_v1 = Exercise(
    "Check ``answer(v1)``: a new ``SelfAttention_v2`` that computes what ``v1`` does, with weights of its own.",
    v2_from_v1,
    [
        draw(51 + tokens, (tokens, d_in), *[(d_in, d_out)] * 3)
        for tokens, d_in, d_out in ((5, 4, 4), (7, 3, 2), (3, 2, 5))
    ],
    """
    v1  # Return a new SelfAttention_v2, with layers W_query, W_key and W_value.
    carried(v1).W_query
    v1.state_dict()
    changed(v1, torch.Tensor.neg_) and carried(v1)  # v1 was changed: read its weights, and write only into those of v2.
    (carried(v1), changed(v1, torch.Tensor.zero_))[0]
    changed(with_bias(v1), lambda p: p.add_(p.ndim == 1))  # v1 has no bias here: make v2 without one.
    carried(v1).requires_grad_(False)  # The weights of v2 are frozen: copy into its parameters, so that it can still be
        # trained.
    carried(v1, take=lambda weight: weight.T)  # v2 shares weights with v1, and changes when v1 does: copy them, with
        # clone() or copy_().
    carried(v1, take=torch.clone)  # The weights are not transposed: nn.Linear keeps (d_out, d_in).
    carried(v1, "W_key", "W_query", "W_value")  # Query and key are swapped.
    carried(v1, "W_query", "W_value", "W_key")  # Key and value are swapped.
    carried(v1, "W_value", "W_key", "W_query")  # Query and value are swapped.
    carried(v1, "W_key", "W_value", "W_query")  # Each layer holds the weights of another: copy by name.
    carried(v1, "W_value", "W_query", "W_key")
    carried(v1, "W_query", "W_query", "W_query")  # All three layers hold the same weights: copy by name.
    carried(v1, "W_key", "W_key", "W_key")
    carried(v1, "W_value", "W_value", "W_value")
    carried(v1, "W_query", "W_key", "W_key")  # W_value holds the weights of W_key.
    carried(v1, "W_query", "W_key", "W_query")  # W_value holds the weights of W_query.
    carried(v1, "W_query", "W_query", "W_value")  # W_key holds the weights of W_query.
    carried(v1, "W_query", "W_value", "W_value")  # W_key holds the weights of W_value.
    carried(v1, "W_key", "W_key", "W_value")  # W_query holds the weights of W_key.
    carried(v1, "W_value", "W_key", "W_value")  # W_query holds the weights of W_value.
    carried(v1, take=lambda weight: torch.zeros_like(weight.T))  # The weights of v2 are zero: copy those of v1.
    carried(v1, take=lambda weight: weight.T / weight.shape[1] ** 0.5)  # The weights are divided by a root.
    carried(v1, take=lambda weight: -weight.T)  # The sign of the weights is flipped: copy them as they are.
    """,
    "Right: the same numbers, in weights of its own.",
    chance="Two calls give different numbers: some weights of v2 are still drawn at random, so copy all three.",
    adapt=_outputs,
)
