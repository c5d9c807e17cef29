"""An explanation for the eye: Markdown with formulas for a notebook, plain text for a terminal."""

import textwrap

from attnlib.einsum.facts import EinsumFacts
from attnlib.einsum.roles import Axis


def as_markdown(explanation: EinsumFacts) -> str:
    rows = [
        f"| `{axis.name}` | {axis.size} | {_places(axis)} | {', '.join(axis.roles)} | {axis.why} |"
        for axis in explanation.axes
    ]
    table = ["| axis | size | where | role | why |", "|---|---|---|---|---|", *rows] if rows else ["No axes."]
    blocks = [
        f"**`{explanation.equation.strip()}`**  \n{_signature(explanation)}",
        "\n".join(table),
        f"$${as_latex(explanation)}$$",
        f"**Loops**\n\n```python\n{explanation.loops}\n```",
        f"**{_code_title(explanation)}**\n\n```python\n{explanation.torch_code}\n```",
        "**Cost**\n\n" + "\n".join(f"- {line}" for line in _costs(explanation)),
    ]
    if explanation.warnings:
        blocks.append("**Take care**\n\n" + "\n".join(f"- ⚠ {warning}" for warning in explanation.warnings))
    return "\n\n".join(blocks)


def as_text(explanation: EinsumFacts) -> str:
    rows = [("axis", "size", "where", "role", "why")]
    rows += [(axis.name, str(axis.size), _places(axis), ", ".join(axis.roles), axis.why) for axis in explanation.axes]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    table = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[4]]) for row in rows]
    blocks = [
        f"{explanation.equation.strip()}\n{_signature(explanation)}",
        "\n".join(table if explanation.axes else ["No axes."]),
        _formula(explanation),
        f"Loops\n{_indented(explanation.loops)}",
        f"{_code_title(explanation)}\n{_indented(explanation.torch_code)}",
        "Cost\n" + _indented("\n".join(_costs(explanation))),
    ]
    if explanation.warnings:
        blocks.append("Take care\n" + _indented("\n".join(f"! {warning}" for warning in explanation.warnings)))
    return "\n\n".join(blocks)


def as_latex(explanation: EinsumFacts) -> str:
    """`output_{i, k} = Σ_j A_{i, j} B_{j, k}`, without the dollars."""
    sums = "".join(rf"\sum_{{{_latex(name)}=0}}^{{{_size(explanation, name) - 1}}} " for name in explanation.summed)
    factors = r" \, ".join(
        _subscripted(_latex(tensor), index) for tensor, index in zip(explanation.tensors, _indices(explanation))
    )
    return f"{_subscripted(_latex('output'), explanation.free)} = {sums}{factors}"


def _formula(explanation: EinsumFacts) -> str:
    """The same in one line of plain text."""
    entries = [
        f"{tensor}[{', '.join(index)}]" if index else tensor
        for tensor, index in zip(("output", *explanation.tensors), (explanation.free, *_indices(explanation)))
    ]
    sums = f"Σ_{{{', '.join(explanation.summed)}}} " if explanation.summed else ""
    return f"{entries[0]} = {sums}{' · '.join(entries[1:])}"


def _indices(explanation: EinsumFacts) -> list[tuple[str, ...]]:
    """The index of each operand: names, and 0 where an axis of size 1 broadcasts."""
    return [
        tuple("0" if size == 1 != _size(explanation, name) else name for name, size in zip(names, shape))
        for names, shape in zip(explanation.inputs, explanation.shapes)
    ]


def _size(explanation: EinsumFacts, name: str) -> int:
    return next(axis.size for axis in explanation.axes if axis.name == name)


def _subscripted(name: str, index: tuple[str, ...]) -> str:
    return f"{name}_{{{', '.join(map(_latex, index))}}}" if index else name


def _latex(name: str) -> str:
    escaped = name.replace("_", r"\_")
    return escaped if len(name) == 1 else rf"\mathrm{{{escaped}}}"


def _places(axis: Axis) -> str:
    return ", ".join(f"{tensor} axis {position}" for tensor, position in axis.places)


def _signature(explanation: EinsumFacts) -> str:
    operands = ", ".join(f"{tensor} {shape}" for tensor, shape in zip(explanation.tensors, explanation.shapes))
    return f"{operands} → output {explanation.output_shape}"


def _code_title(explanation: EinsumFacts) -> str:
    return "The same with permute and matmul" if "@" in explanation.torch_code else "The same without einsum"


def _costs(explanation: EinsumFacts) -> list[str]:
    lines = [f"multiplications in the loops: {explanation.multiplications:,}"]
    if len(explanation.shapes) > 2:
        lines.append(f"joined two by two: {explanation.path_multiplications:,}")
        lines += [
            f"{step.left} with {step.right} → ({', '.join(step.axes)}): "
            f"{step.multiplications:,} multiplications, {step.elements:,} numbers"
            for step in explanation.path
        ]
        lines.append(f"memory of the largest intermediate: {_memory(explanation.largest_intermediate_bytes)}")
    lines.append(f"memory of the output: {_memory(explanation.output_bytes)}")
    return lines


def _memory(size: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size} bytes"


def _indented(text: str) -> str:
    return textwrap.indent(text, "    ")
