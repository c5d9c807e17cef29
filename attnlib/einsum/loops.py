"""The loops that an equation means, as Python."""

from attnlib.einsum.bind import Contraction, own_name
from attnlib.einsum.parse import safe_name


def loops_source(contraction: Contraction, tensors: tuple[str, ...]) -> str:
    """Free axes in the output's order, then the summed ones in order of appearance, then one product."""
    free, summed = contraction.output, contraction.summed
    output, total = own_name("output", contraction.sizes), own_name("total", contraction.sizes)
    product = " * ".join(entry(contraction, operand, tensors) for operand in range(len(tensors)))
    cell = f"{output}[{', '.join(map(safe_name, free)) or '()'}]"
    lines = [f"{output} = torch.zeros({_shape(contraction)}, dtype={_dtype(tensors)})"]
    for depth, axis in enumerate(free):
        lines.append(_loop(depth, axis, contraction))
    indent = "    " * len(free)
    if not summed:
        return "\n".join([*lines, f"{indent}{cell} = {product}"])
    lines.append(f"{indent}{total} = 0")
    for depth, axis in enumerate(summed, start=len(free)):
        lines.append(_loop(depth, axis, contraction))
    lines.append("    " * (len(free) + len(summed)) + f"{total} += {product}")
    return "\n".join([*lines, f"{indent}{cell} = {total}"])


def entry(contraction: Contraction, operand: int, tensors: tuple[str, ...]) -> str:
    """`A[i, j]`: one entry of an operand; the index is 0 where an axis of size 1 broadcasts."""
    axes, shape = contraction.inputs[operand], contraction.shapes[operand]
    index = ["0" if size == 1 and contraction.sizes[axis] != 1 else safe_name(axis) for axis, size in zip(axes, shape)]
    return f"{tensors[operand]}[{', '.join(index)}]" if index else tensors[operand]


def _loop(depth: int, axis: str, contraction: Contraction) -> str:
    return "    " * depth + f"for {safe_name(axis)} in range({contraction.sizes[axis]}):"


def _shape(contraction: Contraction) -> str:
    return ", ".join(map(str, contraction.output_shape)) or "()"


def _dtype(tensors: tuple[str, ...]) -> str:
    return f"{tensors[0]}.dtype"
