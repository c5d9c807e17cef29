"""MultiHeadAttention beside the forms that people write by hand: python run.py bench multi_head

Causal, 1 × 1024 tokens × 768, 12 heads. The sides take turns in one run, in a new order each round; medians, and
ratios to attnlib's. One token and 64 tokens, 256 wide with 8 heads on one thread, show what a call costs beyond its
arithmetic. `import attnlib` is measured beside `import torch` in separate interpreters.
"""

import argparse
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlib import MultiHeadAttention, get_device

TOKENS, SIZE, HEADS = 1024, 768, 12


def by_hand(module: MultiHeadAttention, x: Tensor) -> Tensor:
    """The same module as a few lines on the fused kernel, without any check."""
    batch, tokens, _ = x.shape
    shape = (batch, tokens, module.num_heads, -1)
    query, key, value = (f(x).view(shape).transpose(1, 2) for f in (module.W_query, module.W_key, module.W_value))
    heads = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return module.out_proj(heads.transpose(1, 2).reshape(batch, tokens, -1))


def readable(module: MultiHeadAttention, x: Tensor) -> Tensor:
    """The form of notebook 04: scores, mask, softmax, product."""
    batch, tokens, _ = x.shape
    shape = (batch, tokens, HEADS, -1)
    query, key, value = (f(x).view(shape).transpose(1, 2) for f in (module.W_query, module.W_key, module.W_value))
    hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
    scores = (query @ key.mT).masked_fill(hidden, -torch.inf)
    weights = torch.softmax(scores / query.shape[-1] ** 0.5, dim=-1)
    return module.out_proj((weights @ value).transpose(1, 2).reshape(batch, tokens, -1))


def seconds(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
    return time.perf_counter() - start


def compare(title: str, sides: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> None:
    for call in sides.values():
        seconds(call, device)  # warm-up
    times: dict[str, list[float]] = {name: [] for name in sides}
    shuffler = random.Random(0)  # a side that always follows the readable form would always find cold caches
    for _ in range(rounds):
        for name in shuffler.sample(list(sides), len(sides)):
            times[name].append(seconds(sides[name], device))
    ours = statistics.median(times["attnlib"])
    print(f"\n{title}, {rounds} rounds\n{'':32}{'median ms':>12}{'ratio to attnlib':>20}")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:32}{1e3 * median:12.2f}{median / ours:20.2f}")


def import_seconds(module: str) -> float:
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=None)
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    device = get_device(arguments.device)
    torch.manual_seed(0)
    module = MultiHeadAttention(SIZE, SIZE, TOKENS, 0.0, HEADS, qkv_bias=True).to(device)
    theirs = module.to_torch()
    hide = torch.ones(TOKENS, TOKENS, dtype=torch.bool, device=device).triu(1)
    x = torch.randn(1, TOKENS, SIZE, device=device, requires_grad=True)
    forwards: dict[str, Callable[[], Tensor]] = {
        "attnlib": lambda: module(x),
        "by hand on the fused kernel": lambda: by_hand(module, x),
        "nn.MultiheadAttention": lambda: theirs(x, x, x, attn_mask=hide, is_causal=True, need_weights=False)[0],
        "readable form": lambda: readable(module, x),
    }
    for forward in forwards.values():
        torch.testing.assert_close(forward(), module(x), atol=1e-4, rtol=1e-4)

    def without_gradients(forward: Callable[[], Tensor]) -> Callable[[], object]:
        def call() -> Tensor:
            with torch.no_grad():
                return forward()

        return call

    compare("forward", {n: without_gradients(f) for n, f in forwards.items()}, arguments.rounds, device)
    leaves = [x, *module.parameters(), *theirs.parameters()]  # each side uses its own
    both = {
        name: (lambda f=forward: torch.autograd.grad(f().sum(), leaves, allow_unused=True))
        for name, forward in forwards.items()
    }
    compare("forward and backward", both, arguments.rounds, device)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    small = MultiHeadAttention(256, 256, TOKENS, 0.0, 8).to(device).eval()
    for tokens in (1, 64):
        few = torch.randn(1, tokens, 256, device=device)
        sides = {
            "attnlib": lambda few=few: small(few),
            "by hand on the fused kernel": lambda few=few: by_hand(small, few),
        }
        title = f"forward, {tokens} × 256, 8 heads, one thread"
        compare(title, {n: without_gradients(f) for n, f in sides.items()}, 40 * arguments.rounds, device)
    torch.set_num_threads(threads)

    imports = [(import_seconds("torch"), import_seconds("torch, attnlib")) for _ in range(7)]
    added = statistics.median(after for _, after in imports) - statistics.median(before for before, _ in imports)
    print(f"\nimport attnlib adds {1e3 * added:.0f} ms to import torch")


if __name__ == "__main__":
    main()
