"""Tensors in one file that is whole or not there, and that says so when it was damaged.

A safetensors file: its data are never executed. The header carries a name, a format version, sizes, and the SHA-256 of
the complete file, in which the checksum's own 64 characters count as zeros.
"""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

FORMAT = "attnlib.KVMemory"
VERSION = 1
BLANK = "0" * 64


def write_file(path: str | os.PathLike, tensors: dict[str, Tensor], sizes: dict[str, int]) -> None:
    """Write beside ``path``, then rename: whatever happens meanwhile, ``path`` holds the old file or the new one.

    Raises:
        OSError: the file cannot be written; an old one is left as it was.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    facts = {name: str(size) for name, size in sizes.items()}
    try:
        save_file(tensors, beside, metadata={"format": FORMAT, "version": str(VERSION), "sha256": BLANK, **facts})
        with open(beside, "r+b") as file:
            head = _read_head(file)
            checksum = _checksum(head, file)
            file.seek(head.index(BLANK.encode()))
            file.write(checksum.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from None
    finally:
        beside.unlink(missing_ok=True)
    if os.name == "posix":  # the new name, too, has to reach the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_file(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Read what ``write_file`` wrote: tensors on the CPU, and sizes.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is truncated, altered, foreign, or of another format version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with open(path, "rb") as file:
        head = _read_head(file)
        facts = _facts(head)
        if facts.get("format") != FORMAT:
            raise ValueError(f"{path} is no file that KVMemory.save wrote, or its first bytes are damaged")
        if facts.get("version") != str(VERSION):
            raise ValueError(f"{path} has format version {facts.get('version')}; this attnlib reads version {VERSION}")
        stored = facts.get("sha256", "").encode()
        if len(stored) != len(BLANK) or head.count(stored) != 1:
            raise ValueError(f"{path} is damaged: it has no checksum")
        if _checksum(head.replace(stored, BLANK.encode()), file).encode() != stored:
            raise ValueError(f"{path} is damaged: its checksum does not fit its content")
    try:
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # no longer tied to the file
        sizes = {name: int(text) for name, text in facts.items() if name not in ("format", "version", "sha256")}
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a memory: {error}") from None
    return tensors, sizes


def _read_head(file: BinaryIO) -> bytes:
    """The length of the header, in 8 bytes, and the header; what there is of it where the file ends too soon."""
    length = file.read(8)
    return length + file.read(min(int.from_bytes(length, "little"), 2**20))  # ours have a few hundred bytes


def _facts(head: bytes) -> dict[str, str]:
    """The metadata of a safetensors header; empty where it is none."""
    try:
        header = json.loads(head[8:])
    except (ValueError, RecursionError):
        return {}
    facts = header.get("__metadata__") if isinstance(header, dict) else None
    return facts if isinstance(facts, dict) and all(isinstance(text, str) for text in facts.values()) else {}


def _checksum(head: bytes, file: BinaryIO) -> str:
    """SHA-256 of ``head`` and of the rest of the file, in hexadecimal digits."""
    digest = hashlib.sha256(head)
    while piece := file.read(2**20):
        digest.update(piece)
    return digest.hexdigest()
