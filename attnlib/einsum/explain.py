"""The door: sorts out equation and operands in any of the orders that torch, NumPy and einops take."""

import re
import string
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnlib.einsum.bind import Contraction, Shape, bind
from attnlib.einsum.explanation import EinsumExplanation
from attnlib.einsum.parse import DOTS, Equation, check_characters, parse
from attnlib.einsum.pitfalls import pitfalls
from attnlib.einsum.roles import axes_of

MAX_OPERANDS = 26  # one letter each


def explain_einsum(equation: object, *operands: object) -> EinsumExplanation:
    """Explain an einsum: which axis is free or summed and why, the loops, the matmul that does the same, the cost.

    Formula: ``output[free axes] = Σ over all other axes of A[…] · B[…] · …``

    Args:
        equation: letters as in torch and NumPy (``"bqd,bkd->bqk"``), with or without the arrow, or whole words as in
            einops (``"batch q d, batch k d -> batch q k"``); ``...`` stands for axes without a name. Where letters and
            words are both possible, the number of axes decides.
        operands: 1 to 26 tensors, arrays, or plain shapes such as ``(2, 3)``. They may also come in one list, as in
            torch; the equation may also come last, as in einops; ``A, [0, 1], B, [1, 2], [0, 2]`` is taken too.

    Returns:
        An ``EinsumExplanation``: a table in a notebook or terminal, with ``loops``, ``torch_code``, ``warnings``,
        ``run_loops()``, ``verify()`` and ``trace(i, j, …)``.

    Raises:
        TypeError: the equation is no text, or an operand is neither tensor, array nor shape.
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
    text, given, comes_last = _sort_out((equation, *operands))
    if not 1 <= len(given) <= MAX_OPERANDS:
        raise ValueError(f"operands must be 1 to {MAX_OPERANDS} tensors or shapes; got {len(given)}")
    shapes = tuple(_shape(index, operand) for index, operand in enumerate(given))
    if isinstance(text, str):
        parsed, contraction, notes = _read(text, shapes, comes_last)
        implicit = parsed.output is None
    else:
        parsed, implicit = _from_numbers(text, len(given))
        contraction, notes = bind(parsed, shapes), ()
    dtype = _common_dtype(given)
    return EinsumExplanation(
        equation=parsed.source,
        spelling=parsed.spelling,
        axes=axes_of(contraction),
        warnings=(*notes, *pitfalls(parsed, contraction, implicit=implicit)),
        element_size=torch.empty((), dtype=dtype).element_size(),
        _contraction=contraction,
        _draw=lambda: _draw(given, shapes, dtype),
        _einsum=lambda tensors: _run_einsum(parsed, tensors),
    )


def _sort_out(arguments: tuple[object, ...]) -> tuple[str | list[list], list, bool]:
    """The equation, the operands, and whether the equation came last. Lists of numbers stand for an equation too."""
    first, last = arguments[0], arguments[-1]
    operands: Any
    if isinstance(first, str):
        equation, operands, comes_last = first, arguments[1:], False
    elif isinstance(last, str):
        equation, operands, comes_last = last, arguments[:-1], True
    elif any(isinstance(argument, str) for argument in arguments):
        raise ValueError("equation must come first, as in torch, or last, as in einops; it came in between")
    elif len(arguments) > 1 and _is_operand(first) and all(map(_is_numbers, arguments[1::2])):
        operands = arguments[: len(arguments) // 2 * 2 : 2]
        numbers: Any = [*arguments[1::2], *(arguments[-1:] if len(arguments) % 2 else [])]
        return [list(axes) for axes in numbers], list(operands), False
    else:
        raise TypeError(f"equation must be a str; got {type(first).__name__}")
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)) and not _is_shape(operands[0]):
        operands = operands[0]  # torch takes a list of tensors
    return equation, list(operands), comes_last


def _is_numbers(value: object) -> bool:
    """A list, as in torch; a tuple of numbers is a shape."""
    return isinstance(value, list) and all(item is Ellipsis or _is_int(item) for item in value)


def _is_operand(value: object) -> bool:
    return _is_shape(value) or isinstance(value, Tensor) or (hasattr(value, "__array__") and hasattr(value, "shape"))


def _is_shape(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_int, value))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _from_numbers(numbers: list[list], count: int) -> tuple[Equation, bool]:
    """Read `A, [0, 1], B, [1, 2], [0, 2]`: the axes are called axis0, axis1, …"""
    for axes in numbers:
        for item in axes:
            if item is not Ellipsis and not 0 <= item < 52:
                raise ValueError(f"axes given as numbers must lie between 0 and 51; got {item}")
    implicit = len(numbers) == count
    if implicit:
        every = [item for axes in numbers for item in axes]
        once = sorted(item for item in every if item is not Ellipsis and every.count(item) == 1)
        numbers = [*numbers, [*([...] if ... in every else []), *once]]
    terms = [" ".join(DOTS if item is Ellipsis else f"axis{item}" for item in axes) for axes in numbers]
    equation = parse(f"{', '.join(terms[:-1])} -> {terms[-1]}", "words")
    return equation._replace(spelling="numbers"), implicit


def _shape(index: int, operand: Any) -> Shape:
    name = f"operand {chr(ord('A') + index)}"
    if _is_shape(operand):
        if any(size < 0 for size in operand):
            raise ValueError(f"{name} must be a shape without negative sizes; got {tuple(operand)}")
        return tuple(operand)
    if not _is_operand(operand) or getattr(operand, "is_nested", False):
        raise TypeError(f"{name} must be a tensor, an array or a shape such as (2, 3); got {type(operand).__name__}")
    return tuple(operand.shape)


def _read(text: str, shapes: tuple[Shape, ...], comes_last: bool) -> tuple[Equation, Contraction, tuple[str, ...]]:
    """Read the text as letters or as words, whichever fits the shapes; where both do, the one that it looks like."""
    check_characters(text)
    found, errors = [], []
    for spelling in _spellings(text, shapes, comes_last):
        try:
            parsed = parse(text, spelling)
            found.append((parsed, bind(parsed, shapes)))
        except ValueError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    parsed, contraction = found[0]
    surprises = parsed.spelling != ("words" if comes_last else "letters") and not _has_words(text)
    if len(found) == 2 or (surprises and len(_spellings(text, shapes, comes_last)) == 2):
        unit, function = ("word", "torch.einsum") if parsed.spelling == "words" else ("letter", "einops.einsum")
        return parsed, contraction, (f"read with one axis for each {unit}; {function} would read it otherwise.",)
    return parsed, contraction, ()


_LETTERS = re.compile("[a-zA-Z .,>-]*")


def _chunks(text: str) -> list[list[str]]:
    """What spaces separate in each term, without dots."""
    terms = text.replace("->", ",").split(",")
    return [[chunk for chunk in term.replace(DOTS, " ").split(" ") if chunk] for term in terms]


def _has_words(text: str) -> bool:
    """Several names with spaces between them, one of them longer than a letter."""
    return any(len(term) > 1 and any(len(chunk) > 1 for chunk in term) for term in _chunks(text))


def _spellings(text: str, shapes: tuple[Shape, ...], comes_last: bool) -> tuple[str, ...]:
    """Which spellings to try, the likeliest first; its error is the one that is shown where none fits."""
    longest = max((len(chunk) for term in _chunks(text) for chunk in term), default=0)
    if not _LETTERS.fullmatch(text):
        return ("words",)
    if longest <= 1:
        return ("letters",)
    pairs = list(zip(_chunks(text.split("->")[0]), shapes))
    words_fit = sum(len(term) == len(shape) for term, shape in pairs)
    letters_fit = sum(len("".join(term)) == len(shape) for term, shape in pairs)
    if comes_last or _has_words(text) or (longest > 4 and words_fit > letters_fit):
        return ("words", "letters")
    return ("letters", "words")


def _common_dtype(operands: list) -> torch.dtype:
    dtypes = [_as_tensor(operand).dtype for operand in operands if not _is_shape(operand)]
    try:
        common = dtypes[0] if dtypes else torch.get_default_dtype()
        for dtype in dtypes[1:]:
            common = torch.promote_types(common, dtype)
    except RuntimeError as error:
        raise TypeError(f"operands must have dtypes that go together: {error}") from None
    return common


def _as_tensor(operand: object) -> Tensor:
    if isinstance(operand, Tensor):
        return operand.detach() if operand.layout == torch.strided else operand.detach().to_dense()
    array = np.array(operand, order="C")
    if array.dtype.kind not in "biufc":
        raise TypeError(f"operands must hold numbers; got an array of dtype {array.dtype}")
    return torch.tensor(array.astype(array.dtype.newbyteorder("=")), device="cpu")


def _draw(operands: list, shapes: tuple[Shape, ...], dtype: torch.dtype) -> list[Tensor]:
    """The operands as tensors on the CPU; random numbers, the same each time, where there are none."""
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = []
    for operand, shape in zip(operands, shapes):
        if _is_shape(operand) or (isinstance(operand, Tensor) and operand.is_meta):
            drawn.append(torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(dtype))
        else:
            drawn.append(_as_tensor(operand).to("cpu", dtype))
    return drawn


def _run_einsum(equation: Equation, tensors: list[Tensor]) -> Tensor:
    """torch.einsum on the equation as it was given; words become letters one by one, and nothing else changes."""
    if equation.spelling == "letters":
        return torch.einsum(equation.source, *tensors)
    names = dict.fromkeys(name for term in equation.inputs for name in term.names)
    letters = dict(zip(names, string.ascii_letters)) | {DOTS: DOTS}
    inputs = ("".join(letters[token.text] for token in term.tokens) for term in equation.inputs)
    output = "".join(letters[token.text] for token in equation.output.tokens) if equation.output else ""
    return torch.einsum(f"{','.join(inputs)}->{output}", *tensors)
