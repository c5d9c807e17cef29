"""Mutants that change nothing on any input that the exercise allows, each with the reason."""

EQUIVALENT = {
    "check_cosine_context": {
        "def cosine_context(tokens):\n    directions = tokens / tokens.norm(dim=1, keepdim=True)\n"
        "    return torch.softmax(directions @ directions.T, dim=-1) @ tokens": "tokens have two axes, so 1 is the last",
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
}
