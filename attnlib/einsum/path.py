"""The order in which to join three or more operands two by two, and its cost."""

import itertools
import math
import string
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from attnlib.einsum.bind import Contraction

EXACT = 4  # up to this many operands, all orders are compared: 18 for four, but 180 for five
Order = tuple[tuple[int, int], ...]  # which two tensors of a list to join; the result goes to the end of the list


class PathStep(NamedTuple):
    """Two tensors become one.

    Attributes:
        left, right: the operands' letters: `A`, or `AB` for the result of A and B.
        axes: the axes of the result.
        multiplications: one for each cell of the result and each value of the axes summed in this step.
        elements: how many numbers the result holds.
    """

    left: str
    right: str
    axes: tuple[str, ...]
    multiplications: int
    elements: int


def path_steps(contraction: Contraction) -> tuple[PathStep, ...]:
    """The steps of the cheapest order for up to four operands, and of a good one (opt_einsum's) for more."""
    count = len(contraction.inputs)
    orders: Iterable[Order] = _orders(count) if count <= EXACT else [_good_order(contraction)]
    return min((_steps(contraction, order) for order in orders), key=_cost)


def longer(one: int, other: int) -> int:
    """The size that two axes broadcast to."""
    return other if one == 1 else one


def _orders(count: int) -> Iterator[Order]:
    if count == 1:
        yield ()
        return
    for pair in itertools.combinations(range(count), 2):
        for rest in _orders(count - 1):
            yield (pair, *rest)


def _good_order(contraction: Contraction) -> Order:
    import opt_einsum

    letters = dict(zip(contraction.sizes, string.ascii_letters))
    terms = ["".join(letters[axis] for axis in dict.fromkeys(axes)) for axes in contraction.inputs]
    shapes = [tuple(dict(zip(*pair)).values()) for pair in zip(contraction.inputs, contraction.shapes)]
    equation = f"{','.join(terms)}->{''.join(letters[axis] for axis in contraction.free)}"
    path, _ = opt_einsum.contract_path(equation, *shapes, shapes=True)
    return tuple((first, second) for first, second in path)


def _steps(contraction: Contraction, order: Order) -> tuple[PathStep, ...]:
    """Axes that only one of the two has are summed before they meet, without any multiplication."""
    sizes = (dict(zip(*pair)) for pair in zip(contraction.inputs, contraction.shapes))
    tensors = list(zip(contraction.tensors, sizes))
    steps = []
    for pair in order:
        (left, lefts), (right, rights) = sorted(tensors.pop(place) for place in sorted(pair, reverse=True))
        needed = {*contraction.free, *(axis for _, sizes in tensors for axis in sizes)}
        result = {
            axis: longer(lefts.get(axis, 1), rights.get(axis, 1))
            for axis in dict.fromkeys([*contraction.free, *contraction.sizes])
            if axis in needed and (axis in lefts or axis in rights)
        }
        inner = math.prod(size for axis, size in lefts.items() if axis not in needed and rights.get(axis) == size)
        elements = math.prod(result.values())
        steps.append(PathStep(left, right, tuple(result), elements * inner, elements))
        tensors.append((left + right, result))
    return tuple(steps)


def _cost(steps: tuple[PathStep, ...]) -> tuple[int, int]:
    """Multiplications first; of two orders that need equally many, the one with the smaller intermediate results."""
    return sum(step.multiplications for step in steps), max((step.elements for step in steps[:-1]), default=0)
