"""Warns about correct equations that often do not mean what their author intended."""

import itertools
from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher

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
    output = [axis for axis in contraction.free if axis not in contraction.dots]
    appearance = [axis for axis in contraction.sizes if axis in output]
    if equation.output is None and appearance != output:
        yield (
            f"without an arrow the output's axes are sorted by name: ({', '.join(output)}), not in the order of "
            f"appearance ({', '.join(appearance)}). This transposes; write the arrow."
        )
    if contraction.dots and equation.output is not None and not equation.output.has_dots:
        yield "`...` is not in the output: torch sums the axes that it stands for, but NumPy raises an error."


def _sums(name: str, contraction: Contraction) -> Iterator[str]:
    named = zip(contraction.tensors, contraction.inputs, contraction.shapes)
    size = contraction.sizes[name]
    owners = [tensor for tensor, axes, shape in named if name in axes and shape[axes.index(name)] == 1]
    if owners and size != 1:
        yield (
            f"`{name}` has size 1 in {' and '.join(owners)} but {size} elsewhere, and is "
            f"summed: that one entry is used {size} times. Einsum gives no error here."
        )
    if sum(axes.count(name) for axes in contraction.inputs) == 1 and name not in contraction.dots:
        yield (
            f"`{name}` occurs once and is not in the output, so it is summed. If you meant to keep it, "
            "put it after the arrow."
        )


def _look_alikes(equation: Equation) -> Iterator[str]:
    terms = [*equation.inputs, *([equation.output] if equation.output else [])]
    times = Counter(name for term in terms for name in term.names)
    for one, other in itertools.combinations(times, 2):
        differing = set(one) ^ set(other)
        deliberate = 1 not in (times[one], times[other]) or (differing and differing <= _DELIBERATE)
        if not deliberate and SequenceMatcher(None, one.lower(), other.lower()).ratio() >= 0.8:
            yield f"`{one}` and `{other}` are nearly the same, and are two axes. Is one a typo?"
