"""The order in which to join three or more operands two by two, and its cost."""

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

from attnlib.einsum.equation import Contraction

EXACT = 4  # up to this many operands, all orders are compared: 18 for four, but 180 for five


class PathStep(NamedTuple):
    """Two tensors become one."""

    left: str  # a letter, such as `A`, or `AB` for the result of A and B
    right: str
    sizes: dict[str, int]  # of the axes of the result
    multiplications: int  # one for each cell of the result and each value of the axes summed in this step

    @property
    def elements(self) -> int:
        """How many numbers the result holds."""
        return math.prod(self.sizes.values())

    def __str__(self) -> str:
        cost = f"{self.multiplications:,} multiplications, {self.elements:,} numbers"
        return f"{self.left} with {self.right} → ({', '.join(self.sizes)}): {cost}"


def path_steps(contraction: Contraction) -> tuple[PathStep, ...]:
    """The steps of the cheapest order for up to four operands, and of a good one (opt_einsum's) for more.

    Of two orders that need equally many multiplications, the one with the smaller intermediate results is chosen.
    """
    count = len(contraction.inputs)
    if count > EXACT:
        import opt_einsum

        return _steps(contraction, opt_einsum.contract_path(contraction.letters, *contraction.shapes, shapes=True)[0])
    orders = itertools.product(*(itertools.combinations(range(left), 2) for left in range(count, 1, -1)))
    return min((_steps(contraction, order) for order in orders), key=_cost)


def largest_intermediate(steps: tuple[PathStep, ...]) -> int:
    """How many numbers the largest result that is not the output holds."""
    return max((step.elements for step in steps[:-1]), default=0)


def _cost(steps: tuple[PathStep, ...]) -> tuple[int, int]:
    return sum(step.multiplications for step in steps), largest_intermediate(steps)


def _steps(contraction: Contraction, order: Iterable[tuple[int, ...]]) -> tuple[PathStep, ...]:
    """Join pairs of a list of tensors, where each result goes to the end of the list.

    A summed axis that the two tensors do not share is summed before they meet, without any multiplication.
    """
    sizes = (dict(zip(*pair)) for pair in zip(contraction.inputs, contraction.shapes))
    tensors = list(zip(contraction.tensors, sizes))
    steps = []
    for pair in order:
        (left, lefts), (right, rights) = sorted(tensors.pop(place) for place in sorted(pair, reverse=True))
        needed = {*contraction.free, *(axis for _, sizes in tensors for axis in sizes)}
        shared = [axis for axis in lefts if axis in rights]
        axes = dict.fromkeys([*shared, *lefts, *rights]) if tensors else contraction.free  # the order that `@` gives
        result = {axis: (rights if lefts.get(axis, 1) == 1 else lefts).get(axis, 1) for axis in axes if axis in needed}
        inner = math.prod(lefts[axis] for axis in shared if axis not in needed and lefts[axis] == rights[axis])
        steps.append(PathStep(left, right, result, math.prod(result.values()) * inner))
        tensors.append((left + right, result))
    return tuple(steps)
