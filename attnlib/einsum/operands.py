"""Tensors, arrays and plain shapes as operands: their dtype and their numbers."""

import functools
import string
from typing import Any

import numpy as np
import torch
from torch import Tensor


def read_operands(operands: tuple[Any, ...]) -> tuple[list[Tensor], torch.dtype]:
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


def draw(tensors: list[Tensor]) -> list[Tensor]:
    """The operands on the CPU. What has no numbers gets random ones, the same each time."""
    generator = torch.Generator("cpu").manual_seed(0)
    return [
        torch.randn(one.shape, generator=generator, dtype=torch.float64, device="cpu").to(one.dtype)
        if one.is_meta
        else one.to("cpu")
        for one in tensors
    ]


def _is_shape(operand: object) -> bool:
    return isinstance(operand, (list, tuple)) and all(type(size) is int for size in operand)


def _read(name: str, operand: Any) -> Tensor:
    if _is_shape(operand):
        try:
            return torch.empty(tuple(operand), device="meta")
        except (RuntimeError, TypeError):
            raise ValueError(f"{name} must be a shape that a tensor can have; got {tuple(operand)}") from None
    problem = ""
    try:
        if isinstance(operand, Tensor):
            return operand.detach().to_dense()
        if hasattr(operand, "__array__"):
            return torch.tensor(np.array(operand, order="C"), device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        problem = f": {error}"
    kind = type(operand).__name__
    raise TypeError(f"{name} must be a tensor, an array of numbers or a shape such as (2, 3); got {kind}{problem}")
