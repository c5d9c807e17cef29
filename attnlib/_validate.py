"""Bad input becomes one clear error, raised on entry, that names the argument."""

from collections.abc import Mapping

import torch
from torch import Tensor


def check_tensor(name: str, value: object, axes: str = "", sizes: Mapping[str, int] | None = None) -> None:
    """TypeError unless `value` is a tensor of a real floating-point dtype; then, with `axes`, ``check_shape``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must have a floating-point dtype; got {value.dtype}")
    if axes:
        check_shape(name, value, axes, sizes)


def check_shape(name: str, tensor: Tensor, axes: str, sizes: Mapping[str, int] | None = None) -> None:
    """ValueError unless `tensor` has the axes named, such as "... tokens d_in", with the sizes that are known."""
    sizes = sizes or {}
    words, shape = axes.split(), tuple(tensor.shape)
    named = [word for word in words if word != "..."]
    fits = len(shape) == len(named) or (len(shape) > len(named) and "..." in words)
    if not fits or any(size != sizes.get(word, size) for word, size in zip(named[::-1], shape[::-1])):
        expected = ", ".join(f"{word}={sizes[word]}" if word in sizes else word for word in words)
        raise ValueError(f"{name} must have shape ({expected}); got {shape}")


def check_device(name: str, tensor: Tensor, other: str, device: torch.device) -> None:
    """ValueError unless `tensor` is on the device of the argument called `other`."""
    if tensor.device != device:
        raise ValueError(f"{name} must be on the device of {other}, {device}; got {tensor.device}")


def check_same(**tensors: Tensor) -> None:
    """All must be on one device (otherwise ValueError) and of one dtype (otherwise TypeError)."""
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        check_device(name, tensor, first_name, first.device)
        if tensor.dtype != first.dtype:
            raise TypeError(f"{name} must have the dtype of {first_name}, {first.dtype}; got {tensor.dtype}")


def check_boolean(name: str, mask: object, meaning: str, other: str, device: torch.device) -> None:
    """TypeError unless `mask` is a boolean tensor, where True has this meaning; then ``check_device``."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a boolean tensor, True = {meaning}; got {got}")
    check_device(name, mask, other, device)


def check_qkv(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *options: object) -> None:
    """What every attention function takes: shapes that fit, leading axes that broadcast, one device and one dtype."""
    check_tensor("query", query, "... q_tokens head_dim")
    check_tensor("key", key, "... kv_tokens head_dim", {"head_dim": query.shape[-1]})
    check_tensor("value", value, "... kv_tokens value_dim", {"kv_tokens": key.shape[-2]})
    check_same(query=query, key=key, value=value)
    check_options(*options)
    try:
        leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    except RuntimeError:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (query, key, value))
        raise ValueError(f"query, key and value must have leading axes that broadcast; got {shapes}") from None
    if mask is None:
        return
    check_boolean("mask", mask, "may attend", "query", query.device)
    shape = (*leading, query.shape[-2], key.shape[-2])
    if mask.ndim > len(shape) or any(m not in (1, s) for m, s in zip(mask.shape[::-1], shape[::-1])):
        axes = ", ".join([*map(str, leading), f"q_tokens={shape[-2]}", f"kv_tokens={shape[-1]}"])
        raise ValueError(f"mask must broadcast to ({axes}); got {tuple(mask.shape)}")


def check_options(is_causal: object = False, scale: object = None, dropout_p: object = 0.0) -> None:
    """`is_causal` must be a bool, `scale` a number or None, and `dropout_p` a probability."""
    check_bool("is_causal", is_causal)
    if scale is not None and (not isinstance(scale, (int, float, torch.SymFloat)) or isinstance(scale, bool)):
        raise TypeError(f"scale must be a number or None; got {type(scale).__name__}")
    check_probability("dropout_p", dropout_p)


def check_bool(name: str, value: object) -> None:
    """TypeError unless True or False: elsewhere a word such as "no" counts as true."""
    if type(value).__module__ == "numpy":
        raise TypeError(f"{name} must be a Python bool; got numpy.{type(value).__name__} (wrap it in bool())")
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool; got {type(value).__name__}")


def check_input(x: Tensor, d_in: int, context_length: int | None = None) -> None:
    """What a layer checks of x; dtype and device are for its Linears, which may be quantised, offloaded or adapted."""
    check_tensor("x", x)
    if not 2 <= x.ndim <= 3 or x.shape[-1] != d_in:
        shapes = f"(batch, tokens, d_in={d_in}) or (tokens, d_in={d_in})"
        raise ValueError(f"x must have shape {shapes}; got {tuple(x.shape)}")
    if context_length is not None and x.shape[-2] > context_length:
        raise ValueError(f"x must have at most context_length={context_length} tokens; got {x.shape[-2]}")


def check_key_mask(key_mask: Tensor, x: Tensor) -> None:
    """A boolean mask of real tokens, True = real: (batch, tokens) like `x` without its last axis."""
    check_boolean("key_mask", key_mask, "real token", "x", x.device)
    axes = "batch tokens" if x.ndim == 3 else "tokens"
    check_shape("key_mask", key_mask, axes, dict(zip(axes.split(), x.shape)))


def check_counts(*, at_least: int = 1, **values: object) -> None:
    """TypeError unless every value is an int (a bool does not count), ValueError if one is below `at_least`."""
    for name, value in values.items():
        if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):  # SymInt: sizes in torch.export
            raise TypeError(f"{name} must be an int; got {type(value).__name__}")
        if value < at_least:
            raise ValueError(f"{name} must be at least {at_least}; got {value}")


def check_dtype(dtype: object) -> None:
    """TypeError unless the dtype of floating-point numbers."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point dtype; got {dtype}")


def check_probability(name: str, value: object) -> None:
    """A probability of dropping: a number in [0, 1]."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie between 0 and 1; got {value}")


def check_choice(name: str, value: object, first: str, second: str) -> None:
    """ValueError unless one of the two."""
    if value not in (first, second):
        raise ValueError(f'{name} must be "{first}" or "{second}"; got {value!r}')


def check_divisible(**sizes: int) -> None:
    """ValueError unless the first of the two sizes can be shared out evenly among the second, such as heads."""
    (name, size), (parts, count) = sizes.items()
    if size % count:
        raise ValueError(f"{name} must be divisible by {parts}; got {name}={size}, {parts}={count}")
