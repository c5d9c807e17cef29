"""Entry point: decides whether an equation is written in letters or in words, and explains it."""

import re

from attnlib.einsum.bind import Contraction, Shape, bind
from attnlib.einsum.code import loops_source, torch_source
from attnlib.einsum.explanation import EinsumExplanation
from attnlib.einsum.operands import read_operands
from attnlib.einsum.parse import DOTS, Equation, check_characters, parse
from attnlib.einsum.path import path_steps
from attnlib.einsum.pitfalls import pitfalls
from attnlib.einsum.roles import axes_of

MAX_OPERANDS = 26  # one letter each


def explain_einsum(equation: str, *operands: object) -> EinsumExplanation:
    """Explain an einsum: which axes are free or summed and why, the loops, the matmul that does the same, the cost.

    Formula: ``output[free axes] = Σ over all other axes of A[…] · B[…] · …``

    Args:
        equation: letters as in torch and NumPy (``"bqd,bkd->bqk"``), with or without the arrow, or whole words as in
            einops (``"batch q d, batch k d -> batch q k"``); ``...`` stands for axes without a name. If the text can
            be read both ways, the number of axes decides.
        operands: 1 to 26 tensors, arrays, or plain shapes such as ``(2, 3)``.

    Returns:
        An ``EinsumExplanation``: a table in a notebook or terminal, with ``loops``, ``torch_code``, ``warnings``,
        ``run_loops()``, ``verify()`` and ``trace(i, j, …)``.

    Raises:
        TypeError: the equation is not a string; an operand is not a tensor, array or shape; or torch cannot compute
            with the dtypes.
        ValueError: the equation is broken, or does not fit the operands; a caret marks the place.

    Source: the summation convention of Einstein 1916, "Die Grundlage der allgemeinen Relativitätstheorie", section 5;
    the meaning of an equation is that of ``torch.einsum``.

    >>> explanation = explain_einsum("ij,jk->ik", (2, 3), (3, 5))
    >>> explanation.free, explanation.summed
    (('i', 'k'), ('j',))
    >>> print(explanation.loops)
    output = torch.zeros(2, 5, dtype=A.dtype)
    for i in range(2):
        for k in range(5):
            total = 0
            for j in range(3):
                total += A[i, j] * B[j, k]
            output[i, k] = total
    >>> print(explanation.torch_code)
    output = A @ B  # (i, k)
    >>> explanation.verify()
    True
    """
    if not isinstance(equation, str):
        raise TypeError(f"equation must be a str and come first; got {type(equation).__name__}")
    if not 1 <= len(operands) <= MAX_OPERANDS:
        raise ValueError(f"operands must be 1 to {MAX_OPERANDS} tensors or shapes; got {len(operands)}")
    tensors, dtype = read_operands(operands)
    parsed, contraction = _read(equation.replace("…", DOTS), tuple(tuple(tensor.shape) for tensor in tensors))
    warnings = list(pitfalls(parsed, contraction))
    named = zip(contraction.tensors, tensors)
    converted = "".join(f"{name} = {name}.to({dtype})\n" for name, tensor in named if tensor.dtype != dtype)
    if converted:
        given = " and ".join(dict.fromkeys(str(tensor.dtype) for tensor in tensors))
        warnings.append(f"the operands are {given}: torch.einsum and `@` take one dtype, so convert to {dtype} first.")
    path = path_steps(contraction)
    return EinsumExplanation(
        **vars(contraction),
        equation=equation,
        spelling=parsed.spelling,
        axes=axes_of(contraction),
        warnings=tuple(warnings),
        dtype=dtype,
        loops=converted + loops_source(contraction),
        torch_code=converted + torch_source(contraction, path, dtype),
        path=path,
        _given=tensors,
    )


def _read(text: str, shapes: tuple[Shape, ...]) -> tuple[Equation, Contraction]:
    """Read the text as letters or as words, whichever fits the shapes."""
    check_characters(text)
    errors = []
    for spelling in _spellings(text, shapes):
        try:
            parsed = parse(text, spelling)
            return parsed, bind(parsed, shapes)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _spellings(text: str, shapes: tuple[Shape, ...]) -> list[str]:
    """The spellings to try, the likeliest first: if neither fits, its error is the one to show."""
    if not re.fullmatch("[a-zA-Z .,>-]*", text):
        return ["words"]
    terms = [term.replace(DOTS, " ").split() for term in text.partition("->")[0].split(",")]
    for names, shape in zip(terms, shapes):
        longest = max(map(len, names), default=0)
        if longest > 1 and (len(names) > 1 or (longest > 4 and len(shape) == 1)):
            return ["words", "letters"]
    return ["letters", "words"]
