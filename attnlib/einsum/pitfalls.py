"""Warns about correct equations that often do not mean what their author intended."""

import itertools
from collections import Counter
from collections.abc import Iterator

from attnlib.einsum.bind import Contraction
from attnlib.einsum.parse import Equation

_DELIBERATE = set("qkvQKV0123456789")  # seq_q and seq_k, dim1 and dim2 are two axes on purpose


def pitfalls(equation: Equation, contraction: Contraction) -> Iterator[str]:
    """One warning for each pitfall found."""
    yield from _outputs(equation, contraction)
    for name in contraction.summed:
        yield from _sums(name, contraction)
    yield from _look_alikes(equation)


def _outputs(equation: Equation, contraction: Contraction) -> Iterator[str]:
    appearance = [axis for axis in contraction.sizes if axis in contraction.free and axis not in contraction.dots]
    output = [axis for axis in contraction.free if axis not in contraction.dots]
    if equation.output is None and appearance != output:
        yield (
            f"without an arrow the output's axes are sorted by name: ({', '.join(output)}), not in the order of "
            f"appearance ({', '.join(appearance)}). This transposes; write the arrow."
        )
    if contraction.dots and equation.output is not None and not equation.output.has_dots:
        yield "`...` is not in the output: torch sums the axes that it stands for, but NumPy raises an error."


def _sums(name: str, contraction: Contraction) -> Iterator[str]:
    named = zip(contraction.tensors, contraction.inputs, contraction.shapes)
    sizes = {tensor: shape[axes.index(name)] for tensor, axes, shape in named if name in axes}
    size, owners = contraction.sizes[name], [tensor for tensor, one in sizes.items() if one == 1]
    if owners and size != 1:
        yield (
            f"`{name}` has size 1 in {' and '.join(owners)} but {size} elsewhere, and is "
            f"summed: that one entry is used {size} times. Einsum gives no error here."
        )
    elif owners:
        yield f"`{name}` is summed and has size 1: one entry is the whole sum. Is the shape the one you meant?"
    if sum(axes.count(name) for axes in contraction.inputs) == 1 and name not in contraction.dots:
        yield (
            f"`{name}` occurs once and is not in the output, so it is summed. If you meant to keep it, "
            "put it after the arrow."
        )


def _look_alikes(equation: Equation) -> Iterator[str]:
    terms = [*equation.inputs, *([equation.output] if equation.output else [])]
    times = Counter(name for term in terms for name in term.names)
    for one, other in itertools.combinations(times, 2):
        if one.lower() == other.lower():
            yield f"`{one}` and `{other}` differ only in case, and are two axes."
        elif _is_typo(one, other, once=1 in (times[one], times[other])):
            yield f"`{one}` and `{other}` are nearly the same, and are two axes. Is one a typo?"


def _is_typo(one: str, other: str, *, once: bool) -> bool:
    """Long names that differ in one letter: missing, moved, or (in a name that occurs once) replaced."""
    differing = set(one) ^ set(other)
    if max(len(one), len(other)) < 4 or (differing and differing <= _DELIBERATE):
        return False
    first, second = ({name[:place] + name[place + 1 :] for place in range(len(name))} for name in (one, other))
    return one in second or other in first or (bool(first & second) and (once or not differing))
