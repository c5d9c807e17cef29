"""What in a correct equation often is not what its author meant."""

import itertools
from collections import Counter
from collections.abc import Iterator

from attnlib.einsum.bind import Contraction
from attnlib.einsum.parse import Equation

_DELIBERATE = set("qkvQKV0123456789")  # seq_q and seq_k, dim1 and dim2 are two axes on purpose


def pitfalls(equation: Equation, contraction: Contraction, *, implicit: bool) -> tuple[str, ...]:
    """Sentences, one for each."""
    return (
        *_sorted_output(contraction, implicit),
        *_summed_size_one(contraction),
        *_dropped(contraction),
        *_lost_dots(equation, contraction),
        *_look_alikes(equation),
    )


def _sorted_output(contraction: Contraction, implicit: bool) -> Iterator[str]:
    appearance = [axis for axis in contraction.sizes if axis in contraction.output and axis not in contraction.dots]
    output = [axis for axis in contraction.output if axis not in contraction.dots]
    if implicit and appearance != output:
        yield (
            f"without an arrow the output's axes are sorted by name: ({', '.join(output)}), not in the order of "
            f"appearance ({', '.join(appearance)}). This transposes; write the arrow."
        )


def _summed_size_one(contraction: Contraction) -> Iterator[str]:
    for name in contraction.summed:
        sizes = [shape[axes.index(name)] for axes, shape in zip(contraction.inputs, contraction.shapes) if name in axes]
        if 1 not in sizes:
            continue
        tensors = contraction.tensor_names()
        owners = [tensor for tensor, axes, shape in zip(tensors, contraction.inputs, contraction.shapes)
                  if name in axes and shape[axes.index(name)] == 1]  # fmt: skip
        if max(sizes) > 1 or 0 in sizes:
            yield (
                f"`{name}` has size 1 in {' and '.join(owners)} but {contraction.sizes[name]} elsewhere, and is "
                f"summed: that one entry is used {contraction.sizes[name]} times. Einsum gives no error here."
            )
        else:
            yield f"`{name}` is summed and has size 1: one entry is the whole sum. Is the shape the one you meant?"


def _dropped(contraction: Contraction) -> Iterator[str]:
    times = Counter(axis for axes in contraction.inputs for axis in axes)
    for name in contraction.summed:
        if times[name] == 1 and name not in contraction.dots:
            yield (
                f"`{name}` occurs once and is not in the output, so it is summed. If you meant to keep it, "
                "name it behind the arrow."
            )


def _lost_dots(equation: Equation, contraction: Contraction) -> Iterator[str]:
    if contraction.dots and equation.output is not None and not equation.output.has_dots:
        yield "`...` is not in the output: torch sums the axes that it stands for, NumPy raises an error."


def _look_alikes(equation: Equation) -> Iterator[str]:
    terms = [*equation.inputs, *([equation.output] if equation.output else [])]
    times = Counter(name for term in terms for name in term.names)
    for one, other in itertools.combinations(times, 2):
        if one.lower() == other.lower():
            yield f"`{one}` and `{other}` differ only by case, and are two axes."
        elif _is_slip(*sorted((one, other), key=len), once=1 in (times[one], times[other])):
            yield f"`{one}` and `{other}` differ by one slip of the keyboard, and are two axes. Is one a typo?"


def _is_slip(short: str, long: str, *, once: bool) -> bool:
    """One letter missing, two neighbours swapped, or one letter replaced in a name that occurs once."""
    if len(long) < 4:
        return False
    differing = [place for place, (one, other) in enumerate(itertools.zip_longest(short, long)) if one != other]
    first = differing[0]
    if len(short) + 1 == len(long):
        return short == long[:first] + long[first + 1 :] and long[first] not in _DELIBERATE
    if len(short) != len(long):
        return False
    if len(differing) == 2 and differing[1] == first + 1:
        return short[first] == long[first + 1] and short[first + 1] == long[first]
    return len(differing) == 1 and once and not {short[first], long[first]} <= _DELIBERATE
