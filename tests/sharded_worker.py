"""Processes that test sharded attention and search: python sharded_worker.py FOLDER

This process imports torch once, and forks the others where that is safe. Four of them run the cases in groups of 1, 2,
3 and 4. Meanwhile each failure happens among processes of its own, so that nobody else waits for it. FOLDER/NAME.RANK
says how each case went. Last, torchrun runs the demonstration.
"""

import multiprocessing
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.run
import torch.distributed.tensor  # otherwise each process imports it with its first assert_close
from torch import Tensor
from torch.testing import assert_close

import attnlib.sharded
from attnlib.attend import Attended, attend
from attnlib.memory import KVMemory
from attnlib.sharded import sharded_attend, sharded_search
from attnlib.sharded.ring_attention import Ring, ring_attend

WORLD = 4
PATIENCE = timedelta(seconds=3)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-8}


def close(actual: Tensor, expected: Tensor, tolerance: float, of: Tensor | None = None) -> None:
    """Compare with an absolute tolerance, times the largest number in `of` (default: expected) if that exceeds 1."""
    of = expected if of is None else of
    finite = of[of.isfinite()].abs()
    largest = max(1.0, finite.max().item()) if finite.numel() else 1.0
    assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * largest)


def loss(attended: Attended, up: Tensor, side: Tensor) -> Tensor:
    visible = attended.logsumexp.masked_fill(attended.logsumexp == -torch.inf, 0.0)
    return (attended.output * up).sum() + (visible * side).sum()


def compare_with_one_process(group, generator: random.Random, dtype: torch.dtype, is_causal: bool) -> None:
    """Random shares, some of them empty; scores up to ±12288, exact in every dtype; forward and backward."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    q_shares, kv_shares = ([generator.choice([0, 1, 2, 3, 5, 7]) for _ in range(size)] for _ in range(2))
    torch.manual_seed(generator.randrange(2**20))
    query = torch.randint(-4, 5, (2, 1, sum(q_shares), 3)).to(dtype).requires_grad_()
    key = torch.randint(-8, 9, (3, sum(kv_shares), 3)).to(dtype) * 2.0 ** generator.choice([-6, 0, 7])
    key.requires_grad_()
    value = (torch.rand(2, 3, sum(kv_shares), 5) * 2 - 1).to(dtype).requires_grad_()
    whole = attend(query, key, value, is_causal=is_causal, scale=1.0)
    up, side = torch.rand_like(whole.output.double()) - 0.5, torch.rand_like(whole.logsumexp) - 0.5
    expected = torch.autograd.grad(loss(whole, up, side), (query, key, value))

    def mine(tensor: Tensor, shares: list[int], axis: int = -2) -> Tensor:
        return tensor.detach().split(shares, axis)[rank].clone()

    all_shares = (q_shares, kv_shares, kv_shares)
    qkv = [mine(t, shares).requires_grad_() for t, shares in zip((query, key, value), all_shares)]
    share = sharded_attend(*qkv, is_causal=is_causal, scale=1.0, group=group)
    assert share.output.dtype == dtype
    close(share.output, mine(whole.output, q_shares), TOLERANCE[dtype])
    close(share.logsumexp, mine(whole.logsumexp, q_shares, -1), min(TOLERANCE[dtype], 1e-6))
    actual = torch.autograd.grad(loss(share, mine(up, q_shares), mine(side, q_shares, -1)), qkv)
    for got, want, terms, shares in zip(actual, expected, (key, query, value), all_shares):
        assert got.dtype == dtype
        close(got, mine(want, shares), TOLERANCE[dtype], of=torch.cat([want.flatten(), terms.detach().flatten()]))


def random_partitions(group) -> None:
    for seed, dtype in enumerate([*TOLERANCE] * 4):
        compare_with_one_process(group, random.Random(seed), dtype, is_causal=seed % 2 == 1)


def bytes_are_counted(group) -> None:
    """Each share of key and value travels size − 1 steps, and its gradient one more, all in float32."""
    ring = Ring(group)
    qkv = [torch.randn(2, tokens, dim, requires_grad=True) for tokens, dim in ((7, 5), (11, 5), (11, 3))]
    attended = ring_attend(ring, *qkv)
    steps, share = ring.size - 1, 2 * 11 * (5 + 3) * 4
    assert ring.bytes_sent == steps * (4 + share)  # the roll call is one number
    attended.output.sum().backward()
    assert ring.bytes_sent == steps * (4 + 2 * share) + (ring.size * share if steps else 0)


def second_derivative(group) -> None:
    qkv = [torch.randn(tokens, 5, requires_grad=True) for tokens in (7, 11, 11)]
    (first,) = torch.autograd.grad(sharded_attend(*qkv, group=group).output.sum(), qkv[:1], create_graph=True)
    raises(NotImplementedError, "sharded_attend can be differentiated only once", lambda: first.sum().backward())


def raises(kind: type[Exception], message: str, call: Callable) -> None:
    said = f"no {kind.__name__}"
    try:
        call()
    except kind as error:
        said = str(error)
    assert message in said, said


def disagreements(group) -> None:
    """One process gets other arguments than the rest: all of them raise an error that names it."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    odd = rank == size - 1
    query, key, value = (torch.randn(2, tokens, 5) for tokens in (7, 11, 11))
    said = f"is_causal must be the same on all ranks; rank 0 has False, rank {size - 1} has True"
    raises(ValueError, said, lambda: sharded_attend(query, key, value, is_causal=odd, group=group))
    said = f"scale must be the same on all ranks; rank 0 has None, rank {size - 1} has 2.0"
    raises(ValueError, said, lambda: sharded_attend(query, key, value, scale=2.0 if odd else None, group=group))
    said = f"shape of value must be the same on all ranks; rank 0 has (2, *, 5), rank {size - 1} has (2, *, 3)"
    other = value[..., :3] if odd else value
    raises(ValueError, said, lambda: sharded_attend(query, key, other, group=group))
    halves = [t.bfloat16() if odd else t for t in (query, key, value)]
    said = f"dtype of query must be the same on all ranks; rank 0 has torch.float32, rank {size - 1} has torch.bfloat16"
    raises(ValueError, said, lambda: sharded_attend(*halves, group=group))
    said = f"gradients wanted must be the same on all ranks; rank 0 has False, rank {size - 1} has True"
    raises(ValueError, said, lambda: sharded_attend(query.clone().requires_grad_(odd), key, value, group=group))
    for refused, said, kind in ((torch.tensor(2.0), "scale must be a number", TypeError), (10**5000, "", ValueError)):
        scale = refused if odd else 2.0
        said, kind = (said, kind) if odd else (f"rank {size - 1} refused its arguments", ValueError)
        raises(kind, said, lambda scale=scale: sharded_attend(query, key, value, scale=scale, group=group))
    said = "value must have shape" if odd else f"rank {size - 1} refused its arguments"
    raises(ValueError, said, lambda: sharded_attend(query, key, value[:, :3] if odd else value, group=group))
    memory, asked = KVMemory(4, 1, 5), torch.ones(1, 1, 7, 5)
    raises(ValueError, "content of query must be", lambda: sharded_search(memory, asked + odd, 2, group=group))
    raises(ValueError, "top_k must be the same", lambda: sharded_search(memory, asked, 2 + odd, group=group))


def search(group) -> None:
    """A memory dealt out over the group finds what one memory finds: evictions, ties, rows of unequal length."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    for seed in range(8):
        torch.manual_seed(seed)
        sizes = {"num_heads": 3, "head_dim": 5, "value_dim": 2, "batch_size": 2}
        whole, share = KVMemory(5 * size, **sizes), KVMemory(5, **sizes)
        numbers = torch.zeros(2, 1, dtype=torch.int64)
        for tokens in (3, 0, 4, 13)[: 1 + seed // 2]:
            stored = torch.rand(2, tokens) < 0.7
            key = torch.randint(-2, 3, (2, 3, tokens, 5)).float()  # few different keys: many ties
            value = torch.randn(2, 3, tokens, 2)
            whole.add(key, value, stored)
            number = numbers + stored.cumsum(-1) - 1  # in the whole, counted in each row
            share.add(key, value, stored & (number % size == rank))
            numbers = numbers + stored.sum(-1, keepdim=True)
        query = torch.randint(-2, 3, (2, 3, 7, 5)).float().requires_grad_()
        everything = whole.search(query, 5 * size + 1)  # the last one is always empty, with id −1
        actual = sharded_search(share, query, 4, group=group)
        equal(actual.scores, everything.scores[..., :4])
        places = (
            (everything.ids.unsqueeze(-2) == actual.ids.unsqueeze(-1)).int().argmax(-1)
        )  # of the hits in everything
        for name in ("ids", "mask", "scores"):
            equal(getattr(actual, name), getattr(everything, name).gather(-1, places))
        for name in ("keys", "values"):
            equal(getattr(actual, name), getattr(everything, name).take_along_dim(places.unsqueeze(-1), dim=3))
        assert (places == torch.arange(4))[actual.mask].all()  # each once, best first, newer first among equals
        gradient = torch.autograd.grad(actual.scores[actual.mask].square().sum(), query)[0]
        factors = 2 * actual.scores.masked_fill(~actual.mask, 0.0).unsqueeze(-1)
        assert_close(gradient, (factors * actual.keys).sum(-2))


def equal(actual: Tensor, expected: Tensor) -> None:
    assert_close(actual, expected, rtol=0, atol=0)


def order(group) -> None:
    """Thousands of scores that rounding alone sets apart come back best first, newer first among equals."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    torch.manual_seed(3)
    key, numbers = torch.randn(61) + 1e-6 * torch.randn(1, 2, 1999, 61), torch.arange(1999)
    memory = KVMemory(1999, num_heads=2, head_dim=61)
    memory.add(key, key, (numbers % size == rank)[None])
    hits = sharded_search(memory, torch.randn(1, 2, 31, 61), 101, group=group)
    better, equal = hits.scores.diff(dim=-1) < 0, hits.scores.diff(dim=-1) == 0
    assert (better | (equal & (hits.ids.diff(dim=-1) < 0))).all()


def someone_fails(group, victim: int, how: Callable, laps: int) -> None:
    """The victim stops after some laps of the ring: the others name it, and within the time-out."""
    rank, post, count = dist.get_rank(group), dist.batch_isend_irecv, 0
    steps = dist.get_world_size(group) - 1
    before = [0, 2 * steps, 6 * steps][laps]  # a receive and a send each for the roll call, then for key and for value

    def post_or_fail(operations):
        nonlocal count
        count += 1
        if count == before + 1:
            how()
        return post(operations)

    if rank == victim:
        dist.batch_isend_irecv = post_or_fail
    qkv = [torch.randn(2, tokens, 5, requires_grad=True) for tokens in (7, 11, 11)]
    dist.barrier()
    start, said = time.monotonic(), "no ConnectionError"
    try:
        sharded_attend(*qkv, group=group).output.sum().backward()
    except ConnectionError as error:
        said = str(error)
    seconds = time.monotonic() - start
    assert f"rank {victim}" in said.split(":")[0], said
    assert seconds < PATIENCE.total_seconds() + 4, seconds  # 4 s for a busy machine


FAILURES = {  # how many processes, which of them fails, how, and after how many laps
    "a process hangs before the roll call": (3, 1, lambda: time.sleep(3600), 0),
    "a process hangs in the ring": (3, 1, lambda: time.sleep(3600), 1),
    "a process is killed": (4, 2, lambda: os._exit(9), 2),
}


def join(folder: Path, name: str, rank: int, size: int) -> None:
    store, timeout = dist.FileStore(str(folder / f"{name}.store"), size), timedelta(seconds=120)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)


def record(outcome: Path, case: Callable, *args) -> None:
    said = "passed"
    try:
        case(*args)
    except Exception:
        said = traceback.format_exc()
    outcome.write_text(said, encoding="utf-8")


def run_cases(folder: Path, rank: int) -> None:
    join(folder, "cases", rank, WORLD)
    groups = {str(size): dist.new_group(list(range(size))) for size in range(1, WORLD + 1)}
    groups["1 and 3"] = dist.new_group([1, 3])  # here a rank in the group differs from the rank in the world
    for members, group in groups.items():
        if group is dist.GroupMember.NON_GROUP_MEMBER:
            continue
        for case in (random_partitions, bytes_are_counted, second_derivative, search, order, disagreements):
            if not (case is disagreements and members == "1"):
                record(folder / f"{case.__name__}-{members}.{rank}", case, group)


def run_failure(folder: Path, rank: int, name: str) -> None:
    size, *rest = FAILURES[name]
    join(folder, name, rank, size)
    group = dist.new_group(list(range(size)), timeout=PATIENCE)
    record(folder / f"{name}.{rank}", someone_fails, group, *rest)
    os._exit(0)  # a group with a failed process cannot be shut down cleanly


def main(folder: Path) -> None:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    processes = [context.Process(target=run_cases, args=(folder, rank)) for rank in range(WORLD)]
    victims = []
    for name, (size, victim, *_) in FAILURES.items():
        for rank in range(size):
            process = context.Process(target=run_failure, args=(folder, rank, name))
            (victims if rank == victim else processes).append(process)
    for process in [*processes, *victims]:
        process.start()
    end = time.monotonic() + 240
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    for process in [*processes, *victims]:
        process.kill()
    if sys.platform != "win32":  # torchrun's own store is not in every build for Windows
        demonstration = ["--run-path", str(Path(attnlib.sharded.__file__).with_name("__main__.py"))]
        start = f"--start-method={context.get_start_method()}"
        torch.distributed.run.main(["--standalone", "--nproc-per-node=2", start, *demonstration])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
