"""Mutants that change nothing on any input that the exercise allows, each with the reason."""

EQUIVALENT = {
    "check_leak": {
        "def leak(layer, x, position):\n    changed = x.clone()\n    changed[position:] += 1.0\n"
        "    difference = layer(x) - layer(changed)\n    return difference[:position].abs().max()": (
            "the absolute value does not depend on the order of the subtraction"
        ),
    },
}
