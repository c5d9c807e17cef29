"""Saves a memory over and over, and is killed in the middle of a save. Run by test_memory_storage.py.

A process with one thread forks. The child saves versions 1, 2, 3, … over each other and reports when each save starts
and ends. The parent kills it at a random moment, checks what the file holds, and prints what it saw as JSON.
"""

import json
import os
import random
import signal
import sys
import time

import torch

from attnlib.memory import KVMemory

SLOTS, DIM = 500, 64


def memory_of(version: int) -> KVMemory:
    """A memory of about half a megabyte, filled with the version number."""
    memory = KVMemory(SLOTS, 2, DIM)
    filled = torch.full((1, 2, SLOTS, DIM), float(version))
    memory.add(filled, -filled)
    return memory


def save_forever(path: str, pipe: int) -> None:
    version = 0
    while True:
        version += 1
        memory = memory_of(version)
        os.write(pipe, f"start {version}\n".encode())
        memory.save(path)
        os.write(pipe, f"done {version}\n".encode())


def kill_once(path: str, chance: random.Random) -> tuple[bool, str, bool]:
    """Whether the kill came in the middle of a save; what the file holds: old, new or neither; whether a partial file
    was left beside it."""
    memory_of(0).save(path)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        save_forever(path, writing)
    os.close(writing)
    time.sleep(chance.uniform(0.005, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = b""
    while piece := os.read(reading, 2**16):
        said += piece
    os.close(reading)
    lines = said.decode().splitlines()
    what, last = lines[-1].split() if lines else ("done", "0")
    held = KVMemory.load(path)
    version = held._keys[0, 0, 0, 0].item()
    whole = bool((held._keys == version).all() and (held._values == -version).all()) and len(held) == SLOTS
    newest = int(last)
    state = {newest: "new", newest - 1: "old"}.get(int(version), "neither") if whole else "mixed"
    folder = os.path.dirname(path)
    parts = [name for name in os.listdir(folder) if name.endswith(".partial")]
    for name in parts:
        os.unlink(os.path.join(folder, name))
    return what == "start", state, bool(parts)


if __name__ == "__main__":
    torch.set_num_threads(1)
    chance, seen = random.Random(0), []
    for _ in range(2000):
        in_the_middle, state, part = kill_once(sys.argv[1], chance)
        seen.append((in_the_middle, state, part))
        if sum(middle for middle, _, _ in seen) == int(sys.argv[2]):
            break
    print(json.dumps(seen))
