"""Choosing where tensors live."""

import os
import platform

import torch


def get_device(prefer: str | torch.device | None = None) -> torch.device:
    """Choose the device to work on; nothing is remembered, so pass it on yourself.

    The first one given decides: ``prefer``, then the environment variable ``ATTNLIB_DEVICE``, then whichever of
    cuda, mps, xpu and cpu this machine has, in that order. Raises a TypeError if ``prefer`` is neither a device nor a
    name, such as ``"cpu"`` or ``"cuda:1"``, and a ValueError, which lists this machine's devices, if it is not there.

    >>> get_device("cpu")
    device(type='cpu')
    """
    if prefer is not None and not isinstance(prefer, (str, torch.device)):
        raise TypeError(f"prefer must be a device or its name; got {type(prefer).__name__}")
    kinds = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}
    available = [*(name for name, kind in kinds.items() if kind.is_available()), "cpu"]
    wanted = os.environ.get("ATTNLIB_DEVICE") or None if prefer is None else prefer
    if wanted is None:
        return torch.device(available[0])
    try:
        device = torch.device(wanted)
        count = torch.get_device_module(device).device_count() if device.type in available else 0
    except RuntimeError:  # what torch raises for a name that it does not know
        count = 0
    if count == 0 or (device.index or 0) >= count:
        asker = "ATTNLIB_DEVICE" if prefer is None else "prefer"
        raise ValueError(f"{asker} asks for the device {str(wanted)!r}; this machine has {', '.join(available)}")
    return device


def describe_device(device: torch.device | str) -> str:
    """Say in one line what a device is: its name, its memory, and the dtypes that attention can use on it.

    For example ``cuda: NVIDIA H200, 139.8 GiB, float64 float32 bfloat16 float16``; errors as in ``get_device``.

    >>> describe_device("cpu").startswith("cpu: ")
    True
    """
    device = get_device(device)
    dtypes = "float32 bfloat16 float16" if device.type == "mps" else "float64 float32 bfloat16 float16"
    if device.type == "cpu":
        name, memory = platform.processor() or platform.machine(), None
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:  # Linux and macOS; Windows has no sysconf
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    elif device.type == "mps":
        name, memory = "Apple GPU", torch.mps.recommended_max_memory()
    else:
        properties = torch.get_device_module(device).get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    size = f"{memory / 2**30:.1f} GiB" if memory else "memory unknown"
    return f"{device}: {name}, {size}, {dtypes}"
