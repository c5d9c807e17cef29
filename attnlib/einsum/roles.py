"""Which axis is free, which is summed, and why."""

from typing import NamedTuple

from attnlib.einsum.bind import Contraction


class Axis(NamedTuple):
    """One name of an equation: its size, what it does, and why."""

    name: str  # as the user wrote it; `dots1`, `dots2`, … for the axes that `...` stands for
    size: int
    places: tuple[tuple[str, int], ...]  # where it occurs: (tensor, position); the output comes last
    roles: tuple[str, ...]  # "free" or "summed"; then "batch", "diagonal" and "broadcast" if they apply
    why: str


def axes_of(contraction: Contraction) -> tuple[Axis, ...]:
    """All axes in the order of the loops, so the free ones come first."""
    return tuple(_axis(name, contraction) for name in (*contraction.free, *contraction.summed))


def _axis(name: str, contraction: Contraction) -> Axis:
    size, free = contraction.sizes[name], name in contraction.free
    named = list(zip(contraction.tensors, contraction.inputs, contraction.shapes))
    places = [(tensor, place) for tensor, axes, _ in named for place, axis in enumerate(axes) if axis == name]
    owners = list(dict.fromkeys(tensor for tensor, _ in places))
    repeated = [tensor for tensor, axes, _ in named if axes.count(name) > 1]
    short = [tensor for tensor, axes, shape in named if name in axes and shape[axes.index(name)] == 1 != size]
    roles, why = ["free" if free else "summed"], []
    if free:
        why.append("in the output: one cell for each value")
    elif len(places) == 1:
        why.append(f"not in the output: {owners[0]}'s entries along it are added up, although the name occurs once")
    elif len(owners) == 1:
        why.append(f"not in the output: the entries on the diagonal of {owners[0]} are added up")
    else:
        why.append(f"not in the output: {' and '.join(owners)} are multiplied along it and the products added up")
    if free and len(owners) > 1:
        roles.append("batch")
        why.append(f"{' and '.join(owners)} are matched along it, not summed")
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
