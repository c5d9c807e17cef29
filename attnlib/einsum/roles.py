"""Which axis is free, which is summed, and why."""

from dataclasses import dataclass

from attnlib.einsum.bind import Contraction


@dataclass(frozen=True)
class Axis:
    """One name of an equation.

    Attributes:
        name: as the user wrote it; `dots1`, `dots2`, … for the axes that `...` stands for.
        size: how many values its index takes.
        places: where it occurs, as (tensor, position); the output comes last.
        roles: "free" or "summed" first; then "batch", "diagonal" and "broadcast" if they apply.
        why: the reason, in words.
    """

    name: str
    size: int
    places: tuple[tuple[str, int], ...]
    roles: tuple[str, ...]
    why: str


def axes_of(contraction: Contraction) -> tuple[Axis, ...]:
    """All axes in the order of the loops, so the free ones come first."""
    return tuple(_axis(name, contraction) for name in (*contraction.free, *contraction.summed))


def _axis(name: str, contraction: Contraction) -> Axis:
    places, short = [], []
    for tensor, axes, shape in zip(contraction.tensors, contraction.inputs, contraction.shapes):
        places += [(tensor, position) for position, axis in enumerate(axes) if axis == name]
        if name in axes and shape[axes.index(name)] == 1 != contraction.sizes[name]:
            short.append(tensor)
    owners = list(dict.fromkeys(tensor for tensor, _ in places))
    repeated = [owner for owner in owners if [tensor for tensor, _ in places].count(owner) > 1]
    free = name in contraction.free
    roles, why = ["free" if free else "summed"], []
    if free:
        why.append("in the output: one cell for each value")
    elif len(places) == 1:
        why.append(f"not in the output: {owners[0]}'s entries along it are added up, although the name occurs once")
    elif len(owners) == 1:
        why.append(f"not in the output: the entries on the diagonal of {owners[0]} are added up")
    else:
        why.append(f"not in the output: {_listed(owners)} are multiplied along it and the products added up")
    if free and len(owners) > 1:
        roles.append("batch")
        why.append(f"{_listed(owners)} are matched along it, not summed")
    if repeated:
        roles.append("diagonal")
        why.append(f"it occurs more than once in {_listed(repeated)}: only entries with equal indices count")
    if short:
        roles.append("broadcast")
        why.append(f"size 1 in {_listed(short)}, whose one entry is used for all {contraction.sizes[name]} values")
    if name in contraction.dots:
        why.append("one of the axes that `...` stands for")
    if free:
        places.append(("output", contraction.free.index(name)))
    return Axis(name, contraction.sizes[name], tuple(places), tuple(roles), "; ".join(why))


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
