"""Entry point: decides whether an equation is written in letters or in words, and explains it."""

import re

from attnlib.einsum.bind import Contraction, Shape, bind
from attnlib.einsum.explanation import EinsumExplanation
from attnlib.einsum.operands import dtypes_of, shape_of
from attnlib.einsum.parse import Equation, check_characters, parse
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
    shapes = tuple(shape_of(index, operand) for index, operand in enumerate(operands))
    parsed, contraction, warnings = _read(equation, shapes)
    dtypes, common = dtypes_of(list(operands))
    if any(dtype != common for dtype in dtypes):
        named = " and ".join(str(dtype) for dtype in dict.fromkeys(dtypes))
        warnings.append(f"the operands are {named}: torch.einsum and `@` take one dtype, so convert to {common} first.")
    return EinsumExplanation(
        **vars(contraction),
        equation=equation,
        spelling=parsed.spelling,
        axes=axes_of(contraction),
        warnings=(*warnings, *pitfalls(parsed, contraction)),
        dtype=common,
        _parsed=parsed,
        _given=list(operands),
        _dtypes=dtypes,
    )


def _read(text: str, shapes: tuple[Shape, ...]) -> tuple[Equation, Contraction, list[str]]:
    """Read the text as letters or as words, whichever fits the shapes; if both do, as what it looks like."""
    check_characters(text)
    found, errors = [], []
    for spelling in _spellings(text, shapes):
        try:
            parsed = parse(text, spelling)
            found.append((parsed, bind(parsed, shapes)))
        except ValueError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    other = "each word; torch.einsum" if found[0][0].spelling == "words" else "each letter; einops.einsum"
    return *found[0], [f"read with one axis for {other} would read it differently."] if len(found) == 2 else []


def _spellings(text: str, shapes: tuple[Shape, ...]) -> tuple[str, ...]:
    """The spellings to try, the likeliest first: if neither fits, its error is the one to show."""
    terms = [re.sub(r"\.\.\.|…", " ", term).split() for term in text.replace("->", ",").split(",")]
    longest = max(len(name) for names in terms for name in [*names, ""])
    if not re.fullmatch("[a-zA-Z .…,>-]*", text):
        return ("words",)
    if longest <= 1:
        return ("letters",)
    pairs = list(zip(terms, shapes))
    words_fit = sum(len(names) == len(shape) for names, shape in pairs)
    letters_fit = sum(len("".join(names)) == len(shape) for names, shape in pairs)
    spaced = any(len(names) > 1 and max(map(len, names)) > 1 for names in terms)
    return ("words", "letters") if spaced or (longest > 4 and words_fit > letters_fit) else ("letters", "words")
