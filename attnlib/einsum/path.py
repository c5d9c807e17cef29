"""In which order three or more operands are best joined, and what that costs."""

import math
import string
from typing import NamedTuple

from attnlib.einsum.bind import Contraction


class PathStep(NamedTuple):
    """Two tensors become one.

    Attributes:
        left, right: the operands' letters, `A`, or `AB` for what A and B became.
        axes: the axes of the result.
        multiplications: one for each combination of the axes of both.
        elements: how many numbers the result holds.
    """

    left: str
    right: str
    axes: tuple[str, ...]
    multiplications: int
    elements: int


class _Sized(NamedTuple):
    name: str
    sizes: dict[str, int]


def contraction_pairs(contraction: Contraction) -> list[tuple[int, int]]:
    """Which two tensors to join, step by step: positions in a list from which both go and to whose end the result
    comes. The order is the one that opt_einsum finds cheapest."""
    count = len(contraction.inputs)
    if count < 3:
        return [(0, 1)] * (count - 1)
    import opt_einsum

    letters = dict(zip(contraction.sizes, string.ascii_letters))
    terms = ["".join(letters[axis] for axis in dict.fromkeys(axes)) for axes in contraction.inputs]
    shapes = [tuple(known_sizes(*pair).values()) for pair in zip(contraction.inputs, contraction.shapes)]
    equation = f"{','.join(terms)}->{''.join(letters[axis] for axis in contraction.output)}"
    path, _ = opt_einsum.contract_path(equation, *shapes, shapes=True)
    return [(first, second) for first, second in path]


def known_sizes(axes: tuple[str, ...], shape: tuple[int, ...]) -> dict[str, int]:
    """Each axis of one operand with its size there, 1 where it broadcasts; a repeated axis once."""
    return dict(zip(axes, shape))


def path_steps(contraction: Contraction) -> tuple[PathStep, ...]:
    """The pairwise path with its costs; one step for two operands, none for one."""
    tensors = [
        _Sized(letter, known_sizes(axes, shape))
        for letter, axes, shape in zip(string.ascii_uppercase, contraction.inputs, contraction.shapes)
    ]
    steps = []
    for pair in contraction_pairs(contraction):
        left, right = take_pair(tensors, pair)
        needed = axes_needed(contraction, [set(tensor.sizes) for tensor in tensors])
        shared = {axis: size for axis, size in left.sizes.items() if right.sizes.get(axis) == size}
        inner = math.prod(size for axis, size in shared.items() if axis not in needed)
        result = {
            axis: longer(left.sizes.get(axis, 1), right.sizes.get(axis, 1))
            for axis in contraction.sizes
            if axis in needed and (axis in left.sizes or axis in right.sizes)
        }
        elements = math.prod(result.values())
        steps.append(PathStep(left.name, right.name, tuple(result), elements * inner, elements))
        tensors.append(_Sized(left.name + right.name, result))
    return tuple(steps)


def longer(one: int, other: int) -> int:
    """The size that two axes broadcast to."""
    return other if one == 1 else one


def take_pair(tensors: list, pair: tuple[int, int]) -> list:
    """Remove two items from the list and give them in the order of their names."""
    return sorted((tensors.pop(max(pair)), tensors.pop(min(pair))), key=lambda tensor: tensor.name)


def axes_needed(contraction: Contraction, others: list[set[str]]) -> set[str]:
    """The axes that a step must keep: those of the output, and of the tensors that are still to come."""
    return set(contraction.output).union(*others)
