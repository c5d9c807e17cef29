"""Which axis is free, which is summed, and why; and what is surprising about a correct equation."""

import itertools
from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import NamedTuple

from attnlib.einsum.equation import Contraction, Equation

_DELIBERATE = set("qkvQKV0123456789")  # seq_q and seq_k, dim1 and dim2 are two axes on purpose


class Axis(NamedTuple):
    """One name of an equation: its size, what it does, and why."""

    name: str  # as the user wrote it; `dots1`, `dots2`, … for the axes that `...` stands for
    size: int
    places: tuple[tuple[str, int], ...]  # where it occurs: (tensor, position); the output comes last
    roles: tuple[str, ...]  # "free" or "summed"; then "batch", "diagonal" and "broadcast" if they apply
    why: str


def axis_of(name: str, contraction: Contraction) -> Axis:
    size, free, short = contraction.sizes[name], name in contraction.free, contraction.broadcast(name)
    named = zip(contraction.tensors, contraction.inputs)
    places = [(tensor, place) for tensor, axes in named for place, axis in enumerate(axes) if axis == name]
    times = Counter(tensor for tensor, _ in places)
    owners, repeated = " and ".join(times), " and ".join(tensor for tensor in times if times[tensor] > 1)
    if len(places) == 1:
        sums = f"{owners}'s entries along it are added up, although the name occurs once"
    elif len(times) == 1:
        sums = f"the entries on the diagonal of {owners} are added up"
    else:
        sums = f"{owners} are multiplied along it and the products added up"
    facts = {
        "free": (free, "in the output: one cell for each value"),
        "summed": (not free, f"not in the output: {sums}"),
        "batch": (free and len(times) > 1, f"{owners} are matched along it, not summed"),
        "diagonal": (repeated, f"it occurs more than once in {repeated}: only entries with equal indices count"),
        "broadcast": (short, f"size 1 in {short}, whose one entry is used for all {size} values"),
    }
    roles = tuple(role for role, (holds, _) in facts.items() if holds)
    why = [facts[role][1] for role in roles]
    if name in contraction.dots:
        why.append("one of the axes that `...` stands for")
    if free:
        places.append(("output", contraction.free.index(name)))
    return Axis(name, size, tuple(places), roles, "; ".join(why))


def pitfalls(equation: Equation, contraction: Contraction) -> Iterator[str]:
    """Warnings about a correct equation that often does not mean what its author intended."""
    output = [axis for axis in contraction.free if axis not in contraction.dots]
    appearance = [axis for axis in contraction.sizes if axis in output]
    if equation.output is None and appearance != output:
        orders = f"({', '.join(output)}), not in the order of appearance ({', '.join(appearance)})"
        yield f"without an arrow the output's axes are sorted by name: {orders}. This transposes; write the arrow."
    if contraction.dots and equation.output is not None and not equation.output.has_dots:
        yield "`...` is not in the output: torch sums the axes that it stands for, but NumPy raises an error."
    for name in contraction.summed:
        size, short = contraction.sizes[name], contraction.broadcast(name)
        if short:
            effect = f"that one entry is used {size} times. Einsum gives no error here."
            yield f"`{name}` has size 1 in {short} but {size} elsewhere, and is summed: {effect}"
        if sum(axes.count(name) for axes in contraction.inputs) == 1 and name not in contraction.dots:
            advice = "If you meant to keep it, put it after the arrow."
            yield f"`{name}` occurs once and is not in the output, so it is summed. {advice}"
    terms = [term for term in (*equation.inputs, equation.output) if term]
    times = Counter(name for term in terms for name in term.names)
    for one, other in itertools.combinations(times, 2):
        differing = set(one) ^ set(other)
        deliberate = 1 not in (times[one], times[other]) or (differing and differing <= _DELIBERATE)
        if not deliberate and SequenceMatcher(None, one.lower(), other.lower()).ratio() >= 0.8:
            yield f"`{one}` and `{other}` are nearly the same, and are two axes. Is one a typo?"
