"""Mutants that change nothing on any input that the exercise allows, each with the reason."""


def _multi_head(shape="query", swap="(1, 2)", width="query", join="transpose(1, 2).flatten(-2)"):
    return (
        f"def multi_head(query, key, value, num_heads):\n    batch, tokens, d_out = {shape}.shape\n"
        "    sizes = (batch, tokens, num_heads, d_out // num_heads)\n"
        f"    query, key, value = (part.view(sizes).transpose{swap} for part in (query, key, value))\n"
        f"    scores = query @ key.mT / {width}.shape[-1] ** 0.5\n"
        "    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(diagonal=1)\n"
        "    weights = torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1)\n"
        f"    return (weights @ value).{join}"
    )


EQUIVALENT = {
    "check_split_heads": {
        "def split_heads(x, num_heads):\n    batch, tokens, d_out = x.shape\n"
        "    return x.view(batch, tokens, num_heads, d_out // num_heads).transpose(2, 1)": "a swap has no order",
    },
    "check_join_heads": {
        "def join_heads(heads):\n    return heads.transpose(2, 1).flatten(-2)": "a swap has no order",
        "def join_heads(heads):\n    return heads.transpose(1, 2).flatten(2)": "of four axes, 2 is the last but one",
    },
    "check_multi_head": {
        _multi_head(shape="key"): "query, key and value have the same shape",
        _multi_head(shape="value"): "query, key and value have the same shape",
        _multi_head(width="key"): "query, key and value have the same head_dim",
        _multi_head(width="value"): "query, key and value have the same head_dim",
        _multi_head(swap="(2, 1)"): "a swap has no order",
        _multi_head(join="transpose(2, 1).flatten(-2)"): "a swap has no order",
        _multi_head(join="transpose(1, 2).flatten(2)"): "of four axes, 2 is the last but one",
    },
    "check_scaled_weights": {
        "def scaled_weights(query, key):\n    scores = query @ key.T / query.shape[1] ** 0.5\n"
        "    return torch.softmax(scores, dim=-1)": "a query has two axes, so 1 is the last",
        "def scaled_weights(query, key):\n    scores = query @ key.T / key.shape[-1] ** 0.5\n"
        "    return torch.softmax(scores, dim=-1)": "queries and keys share head_dim",
        "def scaled_weights(query, key):\n    scores = query @ key.T / query.shape[-1] ** 0.5\n"
        "    return torch.softmax(scores, dim=1)": "scores have two axes, so 1 is the last",
    },
    "check_self_attention": {
        "def self_attention(x, W_query, W_key, W_value):\n"
        "    query, key, value = (x @ W_query, x @ W_key, x @ W_value)\n"
        "    scores = query @ key.T / key.shape[-1] ** 0.5\n"
        "    return torch.softmax(scores, dim=1) @ value": "scores have two axes, so 1 is the last",
        "def self_attention(x, W_query, W_key, W_value):\n"
        "    query, key, value = (x @ W_query, x @ W_key, x @ W_value)\n"
        "    scores = query @ key.T / key.shape[1] ** 0.5\n"
        "    return torch.softmax(scores, dim=-1) @ value": "a key has two axes, so 1 is the last",
    },
    "check_cosine_context": {
        "def cosine_context(tokens):\n    directions = tokens / tokens.norm(dim=1, keepdim=True)\n"
        "    return torch.softmax(directions @ directions.T, dim=-1) @ tokens": "tokens have two axes, 1 is the last",
        "def cosine_context(tokens):\n    directions = tokens / tokens.norm(dim=-1, keepdim=True)\n"
        "    return torch.softmax(directions @ directions.T, dim=1) @ tokens": "scores have two axes, so 1 is the last",
    },
    "check_same": {
        "def same(a, b):\n    return bool((b - a).abs().max() <= 1e-05)": (
            "the absolute value does not depend on the order of the subtraction"
        ),
        "def same(a, b):\n    return bool((a - b).abs().max() < 1e-05)": (
            "only a difference of 1e-05 to the last bit tells < from <=, and rounding decides whether there is one"
        ),
    },
    "check_leak": {
        "def leak(layer, x, position):\n    changed = x.clone()\n    changed[position:] += 1.0\n"
        "    difference = layer(x) - layer(changed)\n    return difference[:position].abs().max()": (
            "the absolute value does not depend on the order of the subtraction"
        ),
    },
    "check_loops_equation": {
        f"def loops_equation():\n    return 'head {query} key -> head key'": "a summed axis may have any name"
        for query in ("uqery", "qeury", "qurey", "queyr")
    },
    "check_topk_attention": {
        "def topk_attention(query, key, value, top_k):\n"
        f"    scores, ids = (query @ key.mT / {size} ** 0.5).topk(top_k)\n"
        f"    weights = torch.softmax(scores, dim={dim})\n"
        "    return torch.einsum('tk,tkd->td', weights, value[ids])": "the last axis of a matrix is axis 1, and "
        "queries are as long as keys"
        for size, dim in (("query.shape[-1]", 1), ("query.shape[1]", -1), ("key.shape[-1]", -1))
    },
    "check_hash": {
        "def hash_buckets(vectors, directions):\n    projected = vectors @ directions\n"
        f"    return torch.cat([projected, -projected], dim={cat}).argmax(dim={dim})": (
            "the last axis of a matrix is axis 1"
        )
        for cat, dim in ((-1, 1), (1, -1))
    },
    "check_sort_and_undo": {
        "def sort_and_undo(buckets):\n    places = torch.arange(len(buckets))\n"
        "    order = (buckets * len(buckets) + places).argsort()\n"
        "    undo = torch.empty_like(order).scatter_(-1, order, places)\n    return torch.stack([order, undo])": (
            "a vector has only one axis"
        ),
    },
    "check_online_step": {
        "def online_step(top, total, scores):\n    new_top = torch.maximum(scores.max(), top)\n"
        "    return torch.stack([new_top, total * (top - new_top).exp() + (scores - new_top).exp().sum()])": (
            "the order of the two does not matter to a maximum"
        ),
        "def online_step(top, total, scores):\n    new_top = torch.maximum(top, scores.max())\n"
        "    return [new_top, total * (top - new_top).exp() + (scores - new_top).exp().sum()]": (
            "a list of two numbers says the same as a tensor of two"
        ),
    },
    "check_overlapping": {
        "def overlapping(scores, values, seen):\n    once = scores.masked_fill(~seen.any(dim=0), -torch.inf)\n"
        "    return torch.softmax(once, dim=-1) @ values": "a vector has only one axis",
    },
}
