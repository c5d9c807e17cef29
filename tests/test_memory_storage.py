"""The file of a memory: bit-equal after a round trip, whole after a crash, refused when it was damaged."""

import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from attnlib.memory import KVMemory, storage

TESTS = Path(__file__).parent
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def full_memory(dtype=torch.float32, batch=2, capacity=7):
    """Two rows of different lengths, one of them past its capacity, the other cleared in between."""
    generator = torch.Generator().manual_seed(0)
    memory = KVMemory(capacity, 3, 5, value_dim=2, batch_size=batch, dtype=dtype)
    for tokens in (4, 6, 3):
        key = torch.randn(batch, 3, tokens, 5, generator=generator, dtype=torch.float64).to(dtype)
        value = torch.randn(batch, 3, tokens, 2, generator=generator, dtype=torch.float64).to(dtype)
        memory.add(key, value, torch.tensor([[True] * tokens, [False] + [True] * (tokens - 1)]))
        if tokens == 6:
            memory.clear(rows=1)
    return memory


def assert_same(one, other):
    for name in ("capacity", "num_heads", "head_dim", "value_dim", "batch_size", "dtype"):
        assert getattr(one, name) == getattr(other, name)
    assert torch.equal(one._keys, other._keys)
    assert torch.equal(one._values, other._values)
    assert one._held() == other._held()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_round_trip_is_bit_equal_and_goes_on_the_same(tmp_path, dtype):
    memory = full_memory(dtype)
    memory.save(tmp_path / "memory.safetensors")
    loaded = KVMemory.load(str(tmp_path / "memory.safetensors"))
    assert_same(memory, loaded)
    for each in (memory, loaded):  # the same ids go on, and the same memories make room
        torch.manual_seed(1)
        each.add(torch.randn(2, 3, 5, 5).to(dtype), torch.randn(2, 3, 5, 2).to(dtype))
    assert_same(memory, loaded)
    query = torch.randn(2, 3, 4, 5).to(dtype)
    for one, other in zip(memory.search(query, 5), loaded.search(query, 5)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("tokens", [0, 1, 6, 7, 8, 29])
def test_empty_part_full_and_wrapped_memories_survive(tmp_path, tokens):
    memory = KVMemory(7, 1, 2)
    memory.add(torch.randn(1, 1, tokens, 2), torch.randn(1, 1, tokens, 2))
    memory.save(tmp_path / "m")
    assert_same(memory, KVMemory.load(tmp_path / "m"))


def test_nan_infinity_and_minus_zero_survive(tmp_path):
    memory = KVMemory(4, 1, 1)
    odd = torch.tensor([torch.nan, torch.inf, -0.0, 1e-45]).view(1, 1, 4, 1)
    memory.add(odd, odd)
    memory.save(tmp_path / "m")
    loaded = KVMemory.load(tmp_path / "m")
    assert torch.equal(memory._keys.view(torch.int32), loaded._keys.view(torch.int32))


def test_what_was_cleared_is_not_in_the_file(tmp_path):
    memory = KVMemory(3, 1, 2)
    memory.add(torch.full((1, 1, 2, 2), 1.2345), torch.full((1, 1, 2, 2), 5.4321))
    memory.clear()
    memory.save(tmp_path / "m")
    content = (tmp_path / "m").read_bytes()
    for number in (1.2345, 5.4321):
        assert np.float32(number).tobytes() not in content


def test_a_loaded_memory_no_longer_needs_its_file(tmp_path):
    memory = full_memory()
    memory.save(tmp_path / "m")
    loaded = KVMemory.load(tmp_path / "m")
    (tmp_path / "m").write_bytes(b"\xff" * (tmp_path / "m").stat().st_size)
    assert_same(memory, loaded)


def test_saving_leaves_one_file_and_overwrites_only_its_own(tmp_path):
    memories = {name: full_memory(capacity=size) for name, size in (("a", 5), ("b", 11), ("a.safetensors", 13))}
    for memory in memories.values():
        memory.save(tmp_path / "first")
    for name, memory in memories.items():
        memory.save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.safetensors", "b", "first"]
    for name, memory in memories.items():
        assert_same(memory, KVMemory.load(tmp_path / name))


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_an_error_while_saving_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, broken):
    old = full_memory()
    old.save(tmp_path / "m")
    before = (tmp_path / "m").read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        full_memory(capacity=3).save(tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="killing a process that was forked needs os.fork (not on Windows)")
def test_killed_twenty_times_in_the_middle_of_save(tmp_path):
    command = [sys.executable, str(TESTS / "memory_saver.py"), str(tmp_path / "memory"), "20"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert sum(in_the_middle for in_the_middle, _, _ in seen) == 20
    assert {state for _, state, _ in seen} <= {"old", "new"}
    assert {state for in_the_middle, state, _ in seen if not in_the_middle} <= {"new"}
    assert any(part for _, _, part in seen)  # some kills came while the new file was being written


def damage(content: bytes, chance: random.Random) -> bytes:
    """One of the ways in which files go bad."""
    head = 8 + int.from_bytes(content[:8], "little")
    kind = chance.choice(
        ["cut", "flip", "flip head", "flip length", "insert", "append", "zero", "swap", "drop", "text"]
    )
    at = chance.randrange(len(content))
    if kind == "cut":
        return content[:at]
    if kind == "append":
        return content + chance.randbytes(chance.randint(1, 9))
    if kind == "insert":
        return content[:at] + chance.randbytes(chance.randint(1, 9)) + content[at:]
    if kind == "drop":
        return content[:at] + content[at + chance.randint(1, 9) :]
    if kind == "zero":
        return content[:at] + bytes(len(content) - at)
    if kind == "swap":
        return content[at:] + content[:at] if at else content[::-1]
    if kind == "text":  # as a transfer in text mode does
        return content.replace(b"\x00", b" ", 1 + at % 99)
    at = chance.randrange({"flip": len(content), "flip head": head, "flip length": 8}[kind])
    return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]


def test_five_hundred_damaged_files_are_refused_each_with_a_sentence(tmp_path):
    path, chance = tmp_path / "memory.safetensors", random.Random(0)
    full_memory().save(path)
    content = path.read_bytes()
    reasons = set()
    for _ in range(500):
        damaged = damage(content, chance)
        if damaged == content:
            damaged = content[:-1]
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"memory\.safetensors (is|has|cannot|holds|does) [a-z]") as caught:
            KVMemory.load(path)
        reasons.add(str(caught.value).split("safetensors ")[1])
    path.write_bytes(content.replace(b'"sha256"', b'"sha255"'))
    with pytest.raises(ValueError, match="is damaged: its checksum does not match"):
        KVMemory.load(path)
    assert any("checksum does not match" in reason for reason in reasons)
    assert any("is not a file that KVMemory.save wrote" in reason for reason in reasons)
    path.write_bytes(content)
    assert_same(KVMemory.load(path), full_memory())


def test_every_single_byte_matters(tmp_path):
    memory = KVMemory(2, 1, 1)
    memory.add(torch.ones(1, 1, 2, 1), torch.ones(1, 1, 2, 1))
    memory.save(tmp_path / "m")
    content = (tmp_path / "m").read_bytes()
    for at in range(len(content)):
        (tmp_path / "m").write_bytes(content[:at] + bytes([content[at] ^ 0x20]) + content[at + 1 :])
        with pytest.raises(ValueError, match="m "):
            KVMemory.load(tmp_path / "m")


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_foreign_files_are_refused_and_never_executed(tmp_path):
    path, mark = tmp_path / "m", tmp_path / "executed"
    array = np.array([Bomb(mark)], dtype=object)
    writers = [
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(b"a shopping list"),
        lambda: path.write_bytes(pickle.dumps(Bomb(mark))),
        lambda: path.write_bytes((2**63).to_bytes(8, "little") + b"{}"),
        lambda: path.write_bytes((2**17).to_bytes(8, "little") + b"[" * 2**17),
        lambda: torch.save({"keys": Bomb(mark)}, path),
        lambda: np.save(path.open("wb"), array, allow_pickle=True),
        lambda: save_file({"keys": torch.ones(3)}, path),
        lambda: save_file({"keys": torch.ones(3)}, path, {"format": "pt"}),
    ]
    for write in writers:
        write()
        with pytest.raises(ValueError, match="is not a file that KVMemory.save wrote"):
            KVMemory.load(path)
        assert not mark.exists()


def test_another_format_version_is_refused_with_both_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "VERSION", 3)
    full_memory().save(tmp_path / "m")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format version 3; this attnlib reads version 2"):
        KVMemory.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("tensors", "sizes", "match"),
    [
        ({"more": torch.ones(2)}, {}, "state must hold keys, values, next and cleared; got .*more"),
        ({}, {"more": 3}, "does not hold a memory: .*more"),
        ({"keys": torch.ones(1, 1, 1, 1)}, {}, r"keys must be \(1, 2, 3, 4\), torch.float32; got \(1, 1, 1, 1\)"),
        (
            {"values": torch.ones(1, 2, 3, 4, dtype=torch.float16)},
            {},
            "values must be .*torch.float32; got .*torch.float16",
        ),
        ({"cleared": torch.tensor([9])}, {}, "holds counters that do not fit"),
        ({"next": torch.tensor([2, 2])}, {}, "holds counters that do not fit"),
        ({"cleared": torch.tensor([-1])}, {}, "holds counters that do not fit"),
        ({"next": torch.tensor([[3]]), "cleared": torch.tensor([[0]])}, {}, "holds counters that do not fit"),
        ({"next": torch.tensor([2.5])}, {}, "holds counters that do not fit"),
        ({"keys": torch.ones(1, 2, 3, 4, dtype=torch.int32)}, {}, "dtype must be a floating-point dtype"),
        ({}, {"capacity": 0}, "capacity must be at least 1"),
    ],
)
def test_a_file_of_the_right_form_that_is_no_memory_is_refused(tmp_path, tensors, sizes, match):
    good = {"keys": torch.ones(1, 2, 3, 4), "values": torch.ones(1, 2, 3, 4)}
    all_tensors = {**good, "next": torch.tensor([3]), "cleared": torch.tensor([0]), **tensors}
    all_sizes = {"capacity": 5, "num_heads": 2, "head_dim": 4, "value_dim": 4, "batch_size": 1, **sizes}
    storage.write_file(tmp_path / "m", all_tensors, all_sizes)
    with pytest.raises(ValueError, match=match):
        KVMemory.load(tmp_path / "m")


def test_a_missing_file_and_a_missing_folder_are_os_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        KVMemory.load(tmp_path / "nowhere")
    with pytest.raises(OSError, match="nowhere"):
        full_memory().save(tmp_path / "nowhere" / "m")
