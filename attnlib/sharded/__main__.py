"""A demonstration of sharded attention: torchrun --nproc-per-node=4 -m attnlib.sharded"""

import os
import time
from typing import Any

import torch
import torch.distributed as dist

from attnlib.attend import attend
from attnlib.sharded.ring_attention import Ring, ring_attend

HEADS, TOKENS, HEAD_DIM = 4, 1024, 64


def main() -> None:
    """Causal attention, forward and backward: each process computes its share together with the others, then everything
    on its own, and compares."""
    alone: dict[str, Any] = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("gloo", **alone)
    ring = Ring()
    torch.manual_seed(0)
    whole = [torch.randn(HEADS, TOKENS, HEAD_DIM, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mine = torch.arange(TOKENS).tensor_split(ring.size)[ring.rank]
    shares = query, key, value = [tensor.detach()[:, mine].requires_grad_() for tensor in whole]
    dist.barrier()
    start = time.perf_counter()
    output = ring_attend(ring, query, key, value, is_causal=True).output
    results = [output, *torch.autograd.grad(output.sin().sum(), shares)]
    seconds = time.perf_counter() - start
    output = attend(*whole, is_causal=True).output
    expected = [output, *torch.autograd.grad(output.sin().sum(), whole)]
    difference = max((share - complete[:, mine]).abs().max().item() for share, complete in zip(results, expected))
    cost = f"{ring.bytes_sent / 2**20:.2f} MiB sent in {seconds:.2f} s"
    print(f"rank {ring.rank} of {ring.size}: {len(mine)} tokens, {cost}; one process differs by {difference:.1e}")
    dist.destroy_process_group()
    if not difference < 1e-12:  # NaN is an error too
        raise SystemExit("this share differs from what one process computes")


if __name__ == "__main__":
    main()
