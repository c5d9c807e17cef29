"""Atomic, checksummed storage of tensors in a single safetensors file, whose content is never executed."""

import hashlib
import os
import uuid
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "attnlib.KVMemory"
VERSION = 2


def write_file(path: str | os.PathLike, tensors: dict[str, Tensor], sizes: dict[str, int]) -> None:
    """Write to a file beside ``path``, then rename it: ``path`` is always the complete old file or the new one."""
    path = Path(path)
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    facts = {name: str(size) for name, size in sizes.items()} | {"format": FORMAT, "version": str(VERSION)}
    try:
        save_file(tensors, beside, metadata={**facts, "sha256": _checksum(tensors, facts)})
        _to_disk(beside, os.O_RDWR)
        os.replace(beside, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from None
    finally:
        beside.unlink(missing_ok=True)
    if os.name == "posix":  # the new name has to reach the disk as well
        _to_disk(path.parent, os.O_RDONLY)


def read_file(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Read what ``write_file`` wrote: tensors on the CPU, and sizes. ValueError: not the file that was written."""
    try:
        with safe_open(path, "pt", device="cpu") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a file that KVMemory.save wrote, or it is damaged: {error}") from None
    if facts.get("format") != FORMAT:
        raise ValueError(f"{path} is not a file that KVMemory.save wrote")
    if facts.get("version") != str(VERSION):
        raise ValueError(f"{path} has format version {facts.get('version')}; this attnlib reads version {VERSION}")
    if facts.pop("sha256", "") != _checksum(tensors, facts):
        raise ValueError(f"{path} is damaged: its checksum does not match its content")
    return tensors, {name: int(text) for name, text in facts.items() if name not in ("format", "version")}


def _checksum(tensors: dict[str, Tensor], facts: dict[str, str]) -> str:
    """SHA-256 of all names, dtypes, shapes, numbers and facts, as hexadecimal digits."""
    digest = hashlib.sha256(repr(sorted(facts.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _to_disk(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
