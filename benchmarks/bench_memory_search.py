"""Exact search of attnlib's KVMemory compared with faiss.IndexFlatIP and the bare matrix product, on the same data.

    python benchmarks/bench_memory_search.py [--rounds 5] [--clock cpu]

512 queries of 64 numbers look for the best 32 of 8 K to 1 M keys. Before anything is timed, both searches must find the
same memories and scores, up to rounding. ``KVMemory.search`` returns keys and values as well as ids and scores; faiss
returns ids and scores. "in blocks" is the least that any exact search has to do: every dot product once, into a block
that is reused. "at once" is ``query @ keys.T``, which has to allocate room for all scores. The times are medians
of rounds in which all take turns; on a busy machine, ``--clock cpu`` counts the processor time of one thread instead.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import faiss
import torch

from attnlib import KVMemory

QUERIES, DIM, TOP_K, BLOCK = 512, 64, 32, 1024


def product_in_blocks(query: torch.Tensor, keys: torch.Tensor, scores: torch.Tensor) -> None:
    for block in keys.split(BLOCK):
        torch.mm(query, block.T, out=scores[: len(query) * len(block)].view(len(query), len(block)))


def extra_memory(call: Callable[[], object], result: int) -> float:
    """MiB that torch allocates at the peak of a call, above the bytes of its result."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return (peak - result) / 2**20


def measure(memories: int, rounds: int, clock: Callable[[], float]) -> None:
    torch.manual_seed(0)
    keys, query = torch.randn(1, 1, memories, DIM), torch.randn(1, 1, QUERIES, DIM)
    memory = KVMemory(memories, 1, DIM)
    memory.add(keys, keys)
    index = faiss.IndexFlatIP(DIM)
    index.add(keys[0, 0].numpy())
    hits = memory.search(query, TOP_K)
    scores, ids = (torch.from_numpy(found) for found in index.search(query[0, 0].numpy(), TOP_K))
    torch.testing.assert_close(hits.scores[0, 0], scores)
    share = (hits.ids[0, 0].unsqueeze(-1) == ids.unsqueeze(-2)).any(-1).float().mean().item()
    assert share > 0.9999, share  # rounding may decide the last place

    scores = torch.empty(QUERIES * BLOCK)
    sides = {
        "attnlib": lambda: memory.search(query, TOP_K),
        "faiss": lambda: index.search(query[0, 0].numpy(), TOP_K),
        "product, in blocks": lambda: product_in_blocks(query[0, 0], keys[0, 0], scores),
        "product, at once": lambda: query[0, 0] @ keys[0, 0].T,
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            start = clock()
            call()
            times[name].append(clock() - start)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    result = sum(tensor.numel() * tensor.element_size() for tensor in hits)
    ours = median["attnlib"]
    print(
        f"{memories:>9,}  {ours * 1e3:>9.1f} ms  {median['faiss'] / ours:>12.2f}  "
        f"{ours / median['product, in blocks']:>18.2f}  {ours / median['product, at once']:>16.2f}  "
        f"{extra_memory(sides['attnlib'], result):>9.1f} MiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--memories", type=int, nargs="*", default=[2**13, 2**15, 2**17, 2**18, 2**20])
    options = parser.parse_args()
    if options.clock == "cpu":
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    print(
        f"torch {torch.__version__}, faiss {faiss.__version__}, {torch.get_num_threads()} threads, {options.clock} time"
    )
    print(" memories       attnlib  faiss / ours  ours / in blocks    ours / at once  extra memory")
    for memories in options.memories:
        measure(memories, options.rounds, clock)


if __name__ == "__main__":
    main()
