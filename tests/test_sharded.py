"""sharded_attend and sharded_search on four processes, started once, in groups of 1, 2, 3 and 4."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from attnlib.memory import KVMemory
from attnlib.sharded import sharded_attend, sharded_search

LOOPBACK = {"linux": "lo", "darwin": "lo0"}  # elsewhere gloo finds it on its own
WORKER = Path(__file__).with_name("sharded_worker.py")
MEMBERS = {"1": [0], "2": [0, 1], "3": [0, 1, 2], "4": [0, 1, 2, 3], "1 and 3": [1, 3]}
CASES = ["random_partitions", "bytes_are_counted", "second_derivative", "search", "order", "disagreements"]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, str]:
    """How each case went, by its name and the rank in its world; what was printed."""
    folder = tmp_path_factory.mktemp("sharded")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.platform in LOOPBACK:
        environment["GLOO_SOCKET_IFNAME"] = LOOPBACK[sys.platform]
    with (folder / "printed").open("w") as printed:
        command = [sys.executable, str(WORKER), str(folder)]
        subprocess.run(command, stdout=printed, stderr=subprocess.STDOUT, env=environment, timeout=480)
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.suffix != ".store"}


@pytest.mark.parametrize("members", MEMBERS)
@pytest.mark.parametrize("case", CASES)
def test_several_processes_compute_what_one_does(outcomes, case, members):
    if case == "disagreements" and members == "1":
        assert f"{case}-1.0" not in outcomes  # there is nobody to disagree with
        return
    for rank in MEMBERS[members]:
        assert outcomes.get(f"{case}-{members}.{rank}", outcomes["printed"]) == "passed", f"rank {rank}"


@pytest.mark.parametrize("when", ["before the roll call", "in the ring"])
def test_a_process_that_hangs_is_named_within_the_time_out(outcomes, when):
    for rank in (0, 2):
        assert outcomes.get(f"a process hangs {when}.{rank}", outcomes["printed"]) == "passed", f"rank {rank}"


def test_a_process_that_is_killed_in_the_ring_is_named_within_the_time_out(outcomes):
    for rank in (0, 1, 3):
        assert outcomes.get(f"a process is killed.{rank}", outcomes["printed"]) == "passed", f"rank {rank}"
    assert "a process is killed.2" not in outcomes  # it died before it could report anything


def test_without_a_process_group_the_error_says_what_to_do():
    query, key, value = (torch.randn(tokens, 5) for tokens in (7, 11, 11))
    with pytest.raises(RuntimeError, match="use torchrun and init_process_group"):
        sharded_attend(query, key, value)
    with pytest.raises(RuntimeError, match="use torchrun and init_process_group"):
        sharded_search(KVMemory(4, 1, 5), torch.randn(1, 1, 7, 5), 2)


@pytest.fixture
def group_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_in_float32(dtype):
    memory = KVMemory(7, 1, 5, dtype=dtype)
    memory.add(torch.randn(1, 1, 7, 5).to(dtype), torch.randn(1, 1, 7, 5).to(dtype))
    query = torch.randn(1, 1, 3, 5).to(dtype)
    for found, expected in zip(sharded_search(memory, query, 2), memory.search(query, 2)):
        torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("group_of_one")
def test_bad_input_is_named():
    query, key, value = torch.randn(2, 7, 5), torch.randn(2, 11, 5), torch.randn(2, 11, 3)
    with pytest.raises(ValueError, match=r"key must have shape .*head_dim=5.*got \(2, 11, 3\)"):
        sharded_attend(query, value, value)
    with pytest.raises(TypeError, match="value must be a torch.Tensor; got list"):
        sharded_attend(query, key, [1.0])
    with pytest.raises(TypeError, match="key must have the dtype of query"):
        sharded_attend(query, key.double(), value)
    with pytest.raises(TypeError, match="scale must be a number or None; got Tensor"):
        sharded_attend(query, key, value, scale=torch.tensor(2.0))
    with pytest.raises(TypeError, match="is_causal must be a bool; got NoneType"):
        sharded_attend(query, key, value, is_causal=None)
    memory = KVMemory(4, 3, 5)
    with pytest.raises(TypeError, match="memory must be a KVMemory; got Tensor"):
        sharded_search(query, query, 2)
    with pytest.raises(ValueError, match=r"query must have shape \(batch=1, heads=3, tokens, head_dim=5\)"):
        sharded_search(memory, query[None], 2)
    with pytest.raises(ValueError, match="top_k must be at least 1; got 0"):
        sharded_search(memory, torch.randn(1, 3, 7, 5), 0)
    with pytest.raises(TypeError, match="query must have the dtype of memory"):
        sharded_search(memory, torch.randn(1, 3, 7, 5).double(), 2)


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun's own store is not in every build for Windows")
def test_the_demonstration_runs_under_torchrun(outcomes):
    said_by_a_rank = r"rank (.*) tokens, (.*) MiB sent in .* s; one process differs by (.*)"
    found = sorted(re.findall(said_by_a_rank, outcomes["printed"]))
    assert [tokens for tokens, _, _ in found] == ["0 of 2: 512", "1 of 2: 512"], outcomes["printed"]
    assert all(float(sent) > 0 for _, sent, _ in found)
    assert all(float(difference) < 1e-12 for _, _, difference in found)
