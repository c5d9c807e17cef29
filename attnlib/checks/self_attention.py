"""Checks of notebook 02: scaled weights, self-attention, a linear layer, carrying weights over."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor, nn

from attnlib.checks._judge import Verdict, judge
from attnlib.self_attention import SelfAttention_v1


def check_scaled_weights(answer: Callable) -> Verdict:
    """Judge ``answer(query, key)``: the weights (q_tokens, kv_tokens) of scaled dot-product attention."""
    draw = torch.Generator().manual_seed(21)
    shapes = [((4, 4), (4, 4)), ((3, 5), (7, 5)), ((5, 2), (3, 2))]  # square first: mixed-up axes run, and are named
    cases = [tuple(torch.randn(*shape, generator=draw) for shape in pair) for pair in shapes]
    return judge(
        answer,
        _weights,
        cases,
        mistakes={
            "These are scores: softmax over the keys (dim=-1) is missing.": lambda q, k: q @ k.T / q.shape[-1] ** 0.5,
            "The factor is missing: divide the scores by √head_dim before softmax.": lambda q, k: (q @ k.T).softmax(-1),
            "The scores are multiplied by √head_dim: divide by it.": lambda q, k: (
                q @ k.T * q.shape[-1] ** 0.5
            ).softmax(-1),
            "The scores are divided by head_dim itself: take its square root.": lambda q, k: (
                q @ k.T / q.shape[-1]
            ).softmax(-1),
            "d ** 1 / 2 is half of d in Python: write d ** 0.5.": lambda q, k: (q @ k.T / q.shape[-1] / 2).softmax(-1),
            "The divisor is always √2: it must be √head_dim of the query that comes.": lambda q, k: (
                q @ k.T / 2**0.5
            ).softmax(-1),
            "The division comes after softmax, so the rows no longer sum to one: divide the scores.": lambda q, k: (
                (q @ k.T).softmax(-1) / q.shape[-1] ** 0.5
            ),
            "The square root is that of the number of keys: it is head_dim, the length of a query, that "
            "counts.": lambda q, k: (q @ k.T / k.shape[0] ** 0.5).softmax(-1),
            "The square root is that of the number of queries: it is head_dim, the length of a query, that "
            "counts.": lambda q, k: (q @ k.T / q.shape[0] ** 0.5).softmax(-1),
            "These are plain scores: divide them by √head_dim, and take softmax over the keys.": lambda q, k: q @ k.T,
            "The result is transposed: a row for each query, a column for each key.": lambda q, k: _weights(q, k).T,
            "Queries are compared with queries: the scores are query @ key.T.": lambda q, k: _weights(q, q),
            "Keys are compared with keys: the scores are query @ key.T.": lambda q, k: _weights(k, k),
            "One sum is taken over everything: each row of weights must sum to one by itself.": lambda q, k: (
                (q @ k.T / q.shape[-1] ** 0.5).flatten().softmax(0).view(len(q), len(k))
            ),
            "Softmax is taken twice.": lambda q, k: _weights(q, k).softmax(-1),
            "Softmax runs over the queries: it must run over the keys, dim=-1.": lambda q, k: (
                q @ k.T / q.shape[-1] ** 0.5
            ).softmax(0),
            "Queries and keys have changed places: row i belongs to query i, so query @ key.T.": lambda q, k: _weights(
                k, q
            ),
            "The transpose is missing: query @ key.T pairs the coordinates of a query with those of a "
            "key.": lambda q, k: (q @ k / q.shape[-1] ** 0.5).softmax(-1),
        },
        success="Right: softmax(query keyᵀ / √head_dim).",
    )


def check_self_attention(answer: Callable) -> Verdict:
    """Judge ``answer(x, W_query, W_key, W_value)``: the context vectors (tokens, d_out) of x (tokens, d_in)."""
    draw = torch.Generator().manual_seed(22)
    cases = [
        tuple(torch.randn(*shape, generator=draw) for shape in ((tokens, d_in), *[(d_in, d_out)] * 3))
        for tokens, d_in, d_out in ((4, 4, 4), (5, 3, 2), (3, 2, 7))
    ]
    return judge(
        answer,
        _self_attention,
        cases,
        mistakes={
            "The factor is missing: divide the scores by √d_out before softmax.": lambda x, q, k, v: (
                (x @ q @ (x @ k).T).softmax(-1) @ (x @ v)
            ),
            "The scores are divided by √d_in: the dot product has d_out terms, so √d_out it is.": lambda x, q, k, v: (
                (x @ q @ (x @ k).T / x.shape[-1] ** 0.5).softmax(-1) @ (x @ v)
            ),
            "The scores are divided by d_out itself: take its square root.": lambda x, q, k, v: (
                (x @ q @ (x @ k).T / q.shape[-1]).softmax(-1) @ (x @ v)
            ),
            "The scores are divided by d_in itself: √d_out it is.": lambda x, q, k, v: (
                (x @ q @ (x @ k).T / x.shape[-1]).softmax(-1) @ (x @ v)
            ),
            "d ** 1 / 2 is half of d in Python: write d ** 0.5.": lambda x, q, k, v: (
                (x @ q @ (x @ k).T / q.shape[-1] / 2).softmax(-1) @ (x @ v)
            ),
            "The scores are divided by half of d_out: take its square root.": lambda x, q, k, v: (
                (x @ q @ (x @ k).T / q.shape[-1] * 2).softmax(-1) @ (x @ v)
            ),
            "The square root is that of the number of tokens: it is d_out, the length of a query, that counts.": (
                lambda x, q, k, v: (x @ q @ (x @ k).T / len(x) ** 0.5).softmax(-1) @ (x @ v)
            ),
            "The scores are multiplied by √d_out: divide by it.": lambda x, q, k, v: (
                (x @ q @ (x @ k).T * q.shape[-1] ** 0.5).softmax(-1) @ (x @ v)
            ),
            "The division comes after softmax, so the rows no longer sum to one: divide the scores.": (
                lambda x, q, k, v: (x @ q @ (x @ k).T).softmax(-1) / q.shape[-1] ** 0.5 @ (x @ v)
            ),
            "Key and value have changed places.": lambda x, q, k, v: _self_attention(x, q, v, k),
            "Query and value have changed places.": lambda x, q, k, v: _self_attention(x, v, k, q),
            "The tokens themselves are compared: project them to queries and keys first.": lambda x, q, k, v: (
                _weights(x, x) @ (x @ v)
            ),
            "Keys are compared with keys: the scores are query @ key.T.": lambda x, q, k, v: _self_attention(
                x, k, k, v
            ),
            "Query and key have changed places: row i of the scores belongs to query i.": lambda x, q, k, v: (
                _self_attention(x, k, q, v)
            ),
            "The weights average the tokens themselves: average the values, x @ W_value.": lambda x, q, k, v: (
                _weights(x @ q, x @ k) @ x
            ),
            "The weights average the keys: average the values, x @ W_value.": lambda x, q, k, v: (
                _weights(x @ q, x @ k) @ (x @ k)
            ),
            "Queries are compared with queries: the scores are query @ key.T.": lambda x, q, k, v: _self_attention(
                x, q, q, v
            ),
            "The weights are transposed: row i must belong to query i.": lambda x, q, k, v: (
                _weights(x @ q, x @ k).T @ (x @ v)
            ),
            "The weight matrices are transposed: here they have shape (d_in, d_out), so x @ W.": lambda x, q, k, v: (
                _self_attention(x, q.T, k.T, v.T)
            ),
            "Softmax runs over the queries: it must run over the keys, dim=-1.": lambda x, q, k, v: (
                (x @ q @ (x @ k).T / q.shape[-1] ** 0.5).softmax(0) @ (x @ v)
            ),
            "Softmax is missing: raw scores do not sum to one, so this is no average.": lambda x, q, k, v: (
                x @ q @ (x @ k).T / q.shape[-1] ** 0.5 @ (x @ v)
            ),
            "Softmax and √d_out are missing: raw scores do not sum to one, so this is no average.": lambda x, q, k, v: (
                x @ q @ (x @ k).T @ (x @ v)
            ),
            "The weights average the queries: average the values, x @ W_value.": lambda x, q, k, v: (
                _weights(x @ q, x @ k) @ (x @ q)
            ),
            "The result is transposed: a row for each token.": lambda x, q, k, v: _self_attention(x, q, k, v).T,
            "These are the weights. One step is left: average the values with them.": lambda x, q, k, v: _weights(
                x @ q, x @ k
            ),
        },
        success="Right, also where d_in and d_out differ.",
    )


def check_linear(answer: Callable) -> Verdict:
    """Judge ``answer(x, weight, bias)``: what ``nn.Linear`` computes, with x (…, d_in) and weight (d_out, d_in)."""
    draw = torch.Generator().manual_seed(23)
    shapes = [((4, 4), (4, 4), (4,)), ((5, 3), (2, 3), (2,)), ((2, 5, 3), (7, 3), (7,))]
    cases = [tuple(torch.randn(*shape, generator=draw) for shape in case) for case in shapes]
    verdict = judge(
        answer,
        torch.nn.functional.linear,
        cases,
        mistakes={
            "The weight is not transposed. It has shape (d_out, d_in), so x @ weight only runs where both are equal, "
            "and is wrong even there.": lambda x, weight, bias: x @ weight + bias,
            "The bias is missing.": lambda x, weight, bias: x @ weight.T,
            "The result is transposed: a row for each token, so x @ weight.T.": lambda x, weight, bias: (
                weight @ x.mT + bias
            ),
            "The weight stands on the left, so the tokens are summed: x @ weight.T.": lambda x, weight, bias: (
                weight @ x + bias
            ),
            "The bias is multiplied: add it.": lambda x, weight, bias: x @ weight.T * bias,
            "The bias is summed into one number: it has one for each output, and broadcasts as it is.": (
                lambda x, weight, bias: x @ weight.T + bias.sum()
            ),
            "The bias is missing, and the weight is not transposed.": lambda x, weight, bias: x @ weight,
            "The bias is added to the weight, which makes another weight. Add it after the product.": (
                lambda x, weight, bias: x @ (weight.T + bias)
            ),
            "The bias is added to the weight, which makes another weight. Add it after the product, and to every "
            "token alike.": lambda x, weight, bias: x @ (weight + bias).T,
            "The bias is subtracted: add it.": lambda x, weight, bias: x @ weight.T - bias,
            "Each token gets its own number of the bias: the bias has one number for each output, (d_out,), and "
            "broadcasts as it is.": lambda x, weight, bias: x @ weight.T + bias[:, None],
            "The bias goes through the weight too: add it after the product.": lambda x, weight, bias: (
                (x + bias) @ weight.T
            ),
        },
        success="Right: x @ weight.T + bias, and the same for a batch.",
    )
    if " raised " in verdict.message and judge(answer, torch.nn.functional.linear, cases[:2]):
        told = f"Right for one sentence. With a batch, {verdict.message} (x @ weight.T works for both.)"
        return Verdict("failed", told)
    return verdict


def check_v2_from_v1(answer: Callable) -> Verdict:
    """Judge ``answer(v1)``: a ``SelfAttention_v2`` that computes what ``v1`` does, with weights of its own."""
    if not callable(answer):
        return judge(answer, _self_attention, [])
    names = ("W_query", "W_key", "W_value")
    told: list[str] = []  # what no difference of numbers says
    astray: list[str] = []  # layers that do not hold what v1 has under their name

    @wraps(answer)
    def outputs(x: Tensor, *weights: Tensor) -> Tensor | None:
        v1 = SelfAttention_v1(*weights[0].shape)
        for name, weight in zip(names, weights):
            setattr(v1, name, nn.Parameter(weight.clone()))
        v2 = answer(v1)
        if v2 is None or v2 is Ellipsis:
            return None
        layers = [layer for name in names if isinstance(layer := getattr(v2, name, None), nn.Linear)]
        if len(layers) < len(names):  # no isinstance of v2: the notebook has a SelfAttention_v2 of its own
            told.append("Return a new SelfAttention_v2, not v1 itself or something else.")
            return None
        if not all(torch.equal(getattr(v1, name), weight) for name, weight in zip(names, weights)):
            told.append("v1 is changed: read its weights, and write into those of v2 alone.")
        if any(layer.bias is not None and bool(layer.bias.any()) for layer in layers):
            told.append("v1 has no bias here, so make v2 with qkv_bias=False.")
        before = [layer.weight.detach().clone() for layer in layers]
        astray.extend(n for n, held, weight in zip(names, before, weights) if not torch.equal(held, weight.T))
        with torch.no_grad():
            for parameter in v1.parameters():
                parameter.zero_()  # v2's own weights do not notice
        if not all(torch.equal(layer.weight, held) for layer, held in zip(layers, before)):
            told.append(
                "v2 and v1 share their weights: when v1 changes, v2 changes too. Copy the numbers, with clone() or "
                "copy_()."
            )
        return v2(x).detach()

    draw = torch.Generator().manual_seed(24)
    cases = [
        tuple(torch.randn(*shape, generator=draw) for shape in ((tokens, d_in), *[(d_in, d_out)] * 3))
        for tokens, d_in, d_out in ((5, 4, 4), (7, 3, 2))
    ]
    verdict = judge(
        outputs,
        _self_attention,
        cases,
        mistakes={
            "The weights are carried over, but not transposed: nn.Linear keeps (d_out, d_in).": lambda x, q, k, v: (
                _self_attention(x, q.T, k.T, v.T)
            ),
            "Query and key have changed places.": lambda x, q, k, v: _self_attention(x, k, q, v),
            "All three layers have W_query's numbers: each takes those of its own name.": lambda x, q, k, v: (
                _self_attention(x, q, q, q)
            ),
            "Key and value have changed places.": lambda x, q, k, v: _self_attention(x, q, v, k),
        },
        success="Right: the same numbers, in weights of its own.",
    )
    if told:
        return Verdict("failed", told[0])
    if verdict.message.endswith(" is right.") and astray:
        return Verdict(
            "failed", f"v2 does not hold v1's numbers, transposed, in {' and '.join(dict.fromkeys(astray))}."
        )
    return verdict


def _weights(query: Tensor, key: Tensor) -> Tensor:
    return (query @ key.T / query.shape[-1] ** 0.5).softmax(-1)  # (q_tokens, kv_tokens)


def _self_attention(x: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor) -> Tensor:
    return _weights(x @ w_query, x @ w_key) @ (x @ w_value)  # (tokens, d_out)
