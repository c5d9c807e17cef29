"""Show sharded attention at work: torchrun --nproc-per-node=4 -m attnlib.sharded"""

import os
import time

import torch
import torch.distributed as dist
from torch import Tensor

from attnlib.attend import Attended, attend
from attnlib.sharded.ring import Ring
from attnlib.sharded.ring_attention import ring_attend

HEADS, TOKENS, HEAD_DIM = 4, 1024, 64


def loss(attended: Attended, weights: Tensor) -> Tensor:
    return (attended.output * weights).sum()


def main() -> None:
    """Every process computes its share with the others, then everything alone, and compares."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    ring = Ring()
    torch.manual_seed(0)
    whole = [torch.randn(HEADS, TOKENS, HEAD_DIM, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weights = torch.randn_like(whole[0])

    def mine(tensor: Tensor) -> Tensor:
        return tensor.detach().tensor_split(ring.size, dim=1)[ring.rank]

    query, key, value = (mine(tensor).clone().requires_grad_() for tensor in whole)
    dist.barrier()
    start = time.perf_counter()
    attended = ring_attend(ring, query, key, value, True, None)
    gradients = torch.autograd.grad(loss(attended, mine(weights)), (query, key, value))
    seconds = time.perf_counter() - start
    expected = attend(*whole, is_causal=True)
    expected_gradients = torch.autograd.grad(loss(expected, weights), whole)
    pairs = [(attended.output, expected.output), *zip(gradients, expected_gradients)]
    furthest = max((share - mine(complete)).abs().max().item() for share, complete in pairs)
    row = (query.shape[1], furthest, furthest < 1e-12, ring.bytes_sent / 2**20, seconds)
    rows: list = [None] * ring.size
    dist.all_gather_object(rows, row)
    if ring.rank == 0:
        print(f"Causal attention, forward and backward, in float64, on {ring.size} processes:")
        print(f"{HEADS} heads of {HEAD_DIM}, {TOKENS} tokens; compared with one process holding all")
        print("rank  tokens  largest difference  equal  MiB sent  seconds")
        for rank, (tokens, difference, equal, sent, taken) in enumerate(rows):
            print(f"{rank:4}  {tokens:6}  {difference:18.1e}  {equal!s:>5}  {sent:8.2f}  {taken:7.2f}")
    dist.destroy_process_group()
    if not all(row[2] for row in rows):
        raise SystemExit("the shares differ from one process holding all")


if __name__ == "__main__":
    main()
