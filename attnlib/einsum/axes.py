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
    size, free = contraction.sizes[name], name in contraction.free
    named = zip(contraction.tensors, contraction.inputs)
    places = [(tensor, place) for tensor, axes in named for place, axis in enumerate(axes) if axis == name]
    times = Counter(tensor for tensor, _ in places)
    repeated, short = [tensor for tensor in times if times[tensor] > 1], contraction.broadcast(name)
    owners = " and ".join(times)
    roles, why = ["free" if free else "summed"], []
    if free:
        why.append("in the output: one cell for each value")
    elif len(places) == 1:
        why.append(f"not in the output: {owners}'s entries along it are added up, although the name occurs once")
    elif len(times) == 1:
        why.append(f"not in the output: the entries on the diagonal of {owners} are added up")
    else:
        why.append(f"not in the output: {owners} are multiplied along it and the products added up")
    if free and len(times) > 1:
        roles.append("batch")
        why.append(f"{owners} are matched along it, not summed")
    if repeated:
        roles.append("diagonal")
        why.append(f"it occurs more than once in {' and '.join(repeated)}: only entries with equal indices count")
    if short:
        roles.append("broadcast")
        why.append(f"size 1 in {' and '.join(short)}, whose one entry is used for all {size} values")
    if name in contraction.dots:
        why.append("one of the axes that `...` stands for")
    if free:
        places.append(("output", contraction.free.index(name)))
    return Axis(name, size, tuple(places), tuple(roles), "; ".join(why))


def pitfalls(equation: Equation, contraction: Contraction) -> Iterator[str]:
    """Warnings about a correct equation that often does not mean what its author intended."""
    output = [axis for axis in contraction.free if axis not in contraction.dots]
    appearance = [axis for axis in contraction.sizes if axis in output]
    if equation.output is None and appearance != output:
        yield (
            f"without an arrow the output's axes are sorted by name: ({', '.join(output)}), not in the order of "
            f"appearance ({', '.join(appearance)}). This transposes; write the arrow."
        )
    if contraction.dots and equation.output is not None and not equation.output.has_dots:
        yield "`...` is not in the output: torch sums the axes that it stands for, but NumPy raises an error."
    for name in contraction.summed:
        size, short = contraction.sizes[name], contraction.broadcast(name)
        if short:
            yield (
                f"`{name}` has size 1 in {' and '.join(short)} but {size} elsewhere, and is "
                f"summed: that one entry is used {size} times. Einsum gives no error here."
            )
        if sum(axes.count(name) for axes in contraction.inputs) == 1 and name not in contraction.dots:
            yield (
                f"`{name}` occurs once and is not in the output, so it is summed. If you meant to keep it, "
                "put it after the arrow."
            )
    terms = [*equation.inputs, *([equation.output] if equation.output else [])]
    times = Counter(name for term in terms for name in term.names)
    for one, other in itertools.combinations(times, 2):
        differing = set(one) ^ set(other)
        deliberate = 1 not in (times[one], times[other]) or (differing and differing <= _DELIBERATE)
        if not deliberate and SequenceMatcher(None, one.lower(), other.lower()).ratio() >= 0.8:
            yield f"`{one}` and `{other}` are nearly the same, and are two axes. Is one a typo?"
