"""Which axis is free, which is summed, and why."""

from dataclasses import dataclass

from attnlib.einsum.bind import Contraction


@dataclass(frozen=True)
class Axis:
    """One name of an equation.

    Attributes:
        name: as the user wrote it; `dots1`, `dots2`, … for the axes that `...` stands for.
        size: how many values its index takes.
        places: where it occurs: (tensor, position), the output's last.
        roles: "free" or "summed" first; then "batch", "diagonal", "broadcast" where they apply.
        why: the reason, in words.
    """

    name: str
    size: int
    places: tuple[tuple[str, int], ...]
    roles: tuple[str, ...]
    why: str


def axes_of(contraction: Contraction) -> tuple[Axis, ...]:
    """The axes, free ones first, in the order of the loops."""
    return tuple(_axis(name, contraction) for name in (*contraction.output, *contraction.summed))


def _axis(name: str, contraction: Contraction) -> Axis:
    tensors = contraction.tensor_names()
    places = [
        (tensor, position)
        for tensor, axes in zip(tensors, contraction.inputs)
        for position, axis in enumerate(axes)
        if axis == name
    ]
    owners = list(dict.fromkeys(tensor for tensor, _ in places))
    sizes = {tensor: contraction.shapes[tensors.index(tensor)][position] for tensor, position in places}
    repeated = [tensor for tensor in owners if [place[0] for place in places].count(tensor) > 1]
    short = [tensor for tensor in owners if sizes[tensor] == 1 != contraction.sizes[name]]
    free = name in contraction.output
    roles = ["free" if free else "summed"]
    why = ["in the output: one cell for each value" if free else "not in the output"]
    if not free and len(places) == 1:
        why[0] += f": {owners[0]}'s entries along it are added up, although the name occurs once"
    elif not free and len(owners) == 1:
        why[0] += f": the entries on the diagonal of {owners[0]} are added up"
    elif not free:
        why[0] += f": {_listed(owners)} are multiplied along it and the products added up"
    if free and len(owners) > 1:
        roles.append("batch")
        why.append(f"{_listed(owners)} are matched along it, not summed")
    if repeated:
        roles.append("diagonal")
        why.append(f"it stands more than once in {_listed(repeated)}: only entries whose indices are equal")
    if short:
        roles.append("broadcast")
        why.append(f"size 1 in {_listed(short)}, whose one entry is used for all {contraction.sizes[name]} values")
    if name in contraction.dots:
        why.append("one of the axes that `...` stands for")
    if free:
        places.append(("output", contraction.output.index(name)))
    return Axis(name, contraction.sizes[name], tuple(places), tuple(roles), "; ".join(why))


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
