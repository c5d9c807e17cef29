"""Full, chunked and fused attention side by side: peak memory and time; then the ring on 1, 2 and 4 processes.

python run.py bench chunked [--tokens 1024 4096 16384] [--heads 1] [--repeats 3]

Each way runs in its own process, so its peak memory is measured separately. Outputs and gradients are compared first.
The processes of the ring share one machine's cores, so their time shows the cost of communication, not the gain of a
cluster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

from attnlib import attend, attention, chunked_attend
from attnlib.sharded.ring_attention import Ring, ring_attend

WAYS = {
    "full": lambda q, k, v: attend(q, k, v, is_causal=True).output,
    "chunked": lambda q, k, v: chunked_attend(q, k, v, is_causal=True).output,
    "fused": lambda q, k, v: attention(q, k, v, is_causal=True),
}
HEAD_DIM = 64


def inputs(heads: int, tokens: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, heads, tokens, HEAD_DIM, requires_grad=True) for _ in range(3)]


def resident() -> int:
    """Bytes of memory that this process uses now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):  # not Linux
        return 0


class Peak(threading.Thread):
    """Samples the memory of this process every few milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first = self.most = resident()
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.002):
            self.most = max(self.most, resident())

    def extra(self) -> float:
        """MiB above the start."""
        self.done.set()
        self.join()
        return (self.most - self.first) / 2**20


def measure_way(way: str, heads: int, tokens: int, repeats: int) -> dict[str, float]:
    """Extra memory of a forward and backward pass, and the median times."""
    small, qkv = inputs(heads, 64), inputs(heads, tokens)
    torch.autograd.grad(WAYS[way](*small).sum(), small)  # do not count what the first call loads
    peak, forward, both = Peak(), [], []
    peak.start()
    for _ in range(repeats):
        start = time.perf_counter()
        output = WAYS[way](*qkv)
        forward.append(time.perf_counter() - start)
        torch.autograd.grad(output.sum(), qkv)
        both.append(time.perf_counter() - start)
        del output
    return {"MiB": peak.extra(), "forward": statistics.median(forward), "both": statistics.median(both)}


def measure_ring(rank: int, size: int, store: str, heads: int, tokens: int, repeats: int) -> dict[str, float]:
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    whole = inputs(heads, tokens)
    share = [tensor.detach().tensor_split(size, dim=2)[rank].clone().requires_grad_() for tensor in whole]
    expected = chunked_attend(*whole, is_causal=True).output.tensor_split(size, dim=2)[rank]
    torch.autograd.grad(expected.sum(), whole)
    forward, both, sent = [], [], 0
    for _ in range(repeats):
        ring = Ring()
        dist.barrier()
        start = time.perf_counter()
        output = ring_attend(ring, *share, True, None).output
        forward.append(time.perf_counter() - start)
        torch.autograd.grad(output.sum(), share)
        both.append(time.perf_counter() - start)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        sent = ring.bytes_sent
    dist.barrier()
    dist.destroy_process_group()
    return {"MiB": sent / 2**20, "forward": statistics.median(forward), "both": statistics.median(both)}


def in_processes(jobs: list[list]) -> list[dict[str, float]]:
    """Run the measurements in parallel, each in its own Python process, and read their results."""
    commands = [[sys.executable, __file__, "--job", json.dumps(job)] for job in jobs]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(jobs)))}
    started = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True, env=environment) for c in commands]
    results = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("a measurement failed; see above")
    return [json.loads(result.splitlines()[-1]) for result in results]


def compare(heads: int, tokens: int) -> None:
    """All three ways give the same outputs and gradients."""
    results = {}
    for name, way in WAYS.items():
        qkv = inputs(heads, tokens)
        output = way(*qkv)
        results[name] = (output, *torch.autograd.grad(output.square().sum(), qkv))
    for name in ("chunked", "fused"):
        torch.testing.assert_close(results[name], results["full"], rtol=1e-4, atol=1e-4)
    print(f"equal at {tokens} tokens: outputs and gradients of {', '.join(WAYS)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        kind, *arguments = options.job
        print(json.dumps({"way": measure_way, "ring": measure_ring}[kind](*arguments)))
        return
    compare(options.heads, 512)
    print(f"\ncausal, float32, {options.heads} heads of {HEAD_DIM}; extra MiB, seconds forward and forward + backward")
    print(f"{'tokens':>6}  {'way':8} {'MiB':>8} {'forward':>8} {'both':>8}   times full: MiB, both")
    for tokens in options.tokens:
        rows = {way: in_processes([["way", way, options.heads, tokens, options.repeats]])[0] for way in WAYS}
        for way, row in rows.items():
            ratios = (row[what] / max(rows["full"][what], 1e-9) for what in ("MiB", "both"))
            print(f"{tokens:6}  {way:8} {row['MiB']:8.1f} {row['forward']:8.3f} {row['both']:8.3f}", end="   ")
            print(*(f"{ratio:6.3f}" for ratio in ratios))
    tokens = options.tokens[-1]
    print(f"\nring, {tokens} tokens, {os.cpu_count()} cores in total: MiB sent by each process, seconds of the slowest")
    print(f"{'processes':>9} {'MiB sent':>9} {'forward':>8} {'both':>8}   both, times one process")
    one = None
    for size in (1, 2, 4):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            store = str(Path(folder, "store"))
            jobs = [["ring", rank, size, store, options.heads, tokens, options.repeats] for rank in range(size)]
            rows = in_processes(jobs)
        slowest = {what: max(row[what] for row in rows) for what in ("MiB", "forward", "both")}
        one = one or slowest["both"]
        print(f"{size:9} {slowest['MiB']:9.1f} {slowest['forward']:8.3f} {slowest['both']:8.3f}", end="   ")
        print(f"{slowest['both'] / one:6.2f}")


if __name__ == "__main__":
    main()
