"""Entry point: reads an equation and its operands, and explains what they mean together."""

import functools
import string
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnlib.einsum.axes import axis_of, pitfalls
from attnlib.einsum.code import loops_source, torch_source
from attnlib.einsum.equation import DOTS, read
from attnlib.einsum.explanation import EinsumExplanation
from attnlib.einsum.path import path_steps

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
    tensors, dtype = _read_operands(operands)
    parsed, contraction = read(equation.replace("…", DOTS), tuple(tuple(tensor.shape) for tensor in tensors))
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
        axes=tuple(axis_of(name, contraction) for name in (*contraction.free, *contraction.summed)),
        warnings=tuple(warnings),
        dtype=dtype,
        loops=converted + loops_source(contraction),
        torch_code=converted + torch_source(contraction, path, dtype),
        path=path,
        _given=tensors,
    )


def _read_operands(operands: tuple[Any, ...]) -> tuple[list[Tensor], torch.dtype]:
    """The operands as tensors, and the dtype that torch promotes them to (int64 for bools).

    A plain shape becomes a tensor on the meta device, which has no numbers, in the dtype of the others.
    """
    tensors = [_read(f"operand {letter}", operand) for letter, operand in zip(string.ascii_uppercase, operands)]
    dtypes = [one.dtype for one, operand in zip(tensors, operands) if not _is_shape(operand)]
    try:
        dtype = functools.reduce(torch.promote_types, dtypes or [torch.get_default_dtype()])
        dtype = torch.int64 if dtype == torch.bool else dtype
        number = torch.ones(1, 1, dtype=dtype, device="cpu")
        (number * number) @ number
    except RuntimeError as error:
        raise TypeError(f"operands must have dtypes that torch can promote and multiply: {error}") from None
    return [one.to(dtype) if _is_shape(operand) else one for one, operand in zip(tensors, operands)], dtype


def _is_shape(operand: object) -> bool:
    return isinstance(operand, (list, tuple)) and all(type(size) is int for size in operand)


def _read(name: str, operand: Any) -> Tensor:
    problem = ""
    try:
        if _is_shape(operand):
            return torch.empty(tuple(operand), device="meta")
        if isinstance(operand, Tensor):
            return operand.detach().to_dense()
        if hasattr(operand, "__array__"):
            return torch.tensor(np.array(operand, order="C"), device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        if _is_shape(operand):
            raise ValueError(f"{name} must be a shape that a tensor can have; got {tuple(operand)}") from None
        problem = f": {error}"
    kind = type(operand).__name__
    raise TypeError(f"{name} must be a tensor, an array of numbers or a shape such as (2, 3); got {kind}{problem}")
