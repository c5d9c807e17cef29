"""A demonstration of sharded attention: torchrun --nproc-per-node=4 -m attnlib.sharded"""

import os
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from attnlib.attend import attend
from attnlib.sharded.ring import Ring
from attnlib.sharded.ring_attention import ring_attend

HEADS, TOKENS, HEAD_DIM = 4, 1024, 64


def main() -> None:
    """Each process computes its share together with the others, then everything on its own, and compares."""
    alone: dict[str, Any] = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("gloo", **alone)
    ring = Ring()
    torch.manual_seed(0)
    whole = [torch.randn(HEADS, TOKENS, HEAD_DIM, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def mine(tensor: Tensor) -> Tensor:
        return tensor.detach().tensor_split(ring.size, dim=1)[ring.rank]

    shares = query, key, value = [mine(tensor).clone().requires_grad_() for tensor in whole]
    dist.barrier()
    start = time.perf_counter()
    output = ring_attend(ring, query, key, value, is_causal=True).output
    results = [output, *torch.autograd.grad(output.sin().sum(), shares)]
    seconds = time.perf_counter() - start
    output = attend(*whole, is_causal=True).output
    expected = [output, *torch.autograd.grad(output.sin().sum(), whole)]
    difference = max((share - mine(complete)).abs().max().item() for share, complete in zip(results, expected))
    equal = difference < 1e-12
    row = f"{len(shares[0][0]):6}  {difference:18.1e}  {equal!s:>5}  {ring.bytes_sent / 2**20:8.2f}  {seconds:7.2f}"
    rows: list = [None] * ring.size
    dist.all_gather_object(rows, row)
    if ring.rank == 0:
        print(f"Causal attention, forward and backward, in float64, on {ring.size} processes:")
        print(f"{HEADS} heads of {HEAD_DIM}, {TOKENS} tokens; compared with one process that holds everything")
        print("rank  tokens  largest difference  equal  MiB sent  seconds")
        print("\n".join(f"{rank:4}  {row}" for rank, row in enumerate(rows)))
    dist.destroy_process_group()
    if not equal:
        raise SystemExit("this share differs from what one process computes")


if __name__ == "__main__":
    main()
