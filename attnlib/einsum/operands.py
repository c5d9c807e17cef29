"""Tensors, arrays and plain shapes as operands: their shapes, their dtype, their numbers."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnlib.einsum.bind import Shape

_COMPUTES = (  # the dtypes that torch.einsum computes in on the CPU; bools are counted as int64
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16),
    *(torch.float32, torch.float64, torch.complex64, torch.complex128),
)


def is_shape(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(type(size) is int for size in value)


def shape_of(index: int, operand: Any) -> Shape:
    name = f"operand {chr(ord('A') + index)}"
    if is_shape(operand):
        if any(size < 0 for size in operand):
            raise ValueError(f"{name} must be a shape without negative sizes; got {tuple(operand)}")
        return tuple(operand)
    is_array = isinstance(operand, Tensor) or (hasattr(operand, "__array__") and hasattr(operand, "shape"))
    if not is_array or getattr(operand, "is_nested", False):
        raise TypeError(f"{name} must be a tensor, an array or a shape such as (2, 3); got {type(operand).__name__}")
    return tuple(operand.shape)


def dtypes_of(operands: list) -> tuple[list[torch.dtype], torch.dtype]:
    """The dtype of each operand, and the one that torch promotes them to. A plain shape has the others' dtype."""
    given = [None if is_shape(operand) else _as_tensor(operand).dtype for operand in operands]
    known = [dtype for dtype in given if dtype is not None] or [torch.get_default_dtype()]
    common = known[0]
    try:
        for dtype in known[1:]:
            common = torch.promote_types(common, dtype)
    except RuntimeError as error:
        raise TypeError(f"operands must have dtypes that go together: {error}") from None
    if common == torch.bool:
        common = torch.int64
    if common not in _COMPUTES:
        raise TypeError(f"operands must have a dtype that torch.einsum can compute in; got {common}")
    return [common if dtype is None else dtype for dtype in given], common


def draw(operands: list, dtypes: list[torch.dtype]) -> list[Tensor]:
    """The operands as tensors on the CPU. A shape becomes random numbers, the same each time."""
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = []
    for operand, dtype in zip(operands, dtypes):
        if is_shape(operand) or (isinstance(operand, Tensor) and operand.is_meta):
            shape = operand if is_shape(operand) else operand.shape
            drawn.append(torch.randn(tuple(shape), generator=generator, dtype=torch.float64, device="cpu").to(dtype))
        else:
            drawn.append(_as_tensor(operand).to("cpu"))
    return drawn


def _as_tensor(operand: object) -> Tensor:
    if isinstance(operand, Tensor):
        return operand.detach() if operand.layout == torch.strided else operand.detach().to_dense()
    array = np.array(operand, order="C")
    if array.dtype.kind not in "biufc":
        raise TypeError(f"operands must hold numbers; got an array of dtype {array.dtype}")
    return torch.tensor(array.astype(array.dtype.newbyteorder("=")), device="cpu")
