"""LSH attention compared with the packages people would use instead: first the numbers, then time and memory.

    python benchmarks/bench_lsh.py                       # the table, on two CPU threads
    python benchmarks/bench_lsh.py --device cuda         # the same on a GPU
    python benchmarks/bench_lsh.py --sections equal speed --tokens 4096

The peers are reformer_pytorch's LSHAttention and the LSH layer of Hugging Face's Reformer, both named in
benchmarks/requirements.txt. If one is not installed, a line says so and it is skipped. 8 heads of 64, 4 rounds, chunks
of 64, causal, float32.
"""

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlib.lsh import hash_buckets, lsh_attention, random_rotations
from attnlib.multi_head import join_heads, split_heads

HEADS, HEAD_DIM, ROUNDS, CHUNK = 8, 64, 4, 64
LOOSE = {"count_once": False, "across_buckets": True}  # what both peers compute
Call = Callable[[], Tensor]


def load_peers() -> dict[str, object]:
    """The installed peers, by name."""
    peers = {}
    try:
        from reformer_pytorch import LSHAttention

        peers["reformer_pytorch"] = LSHAttention
    except ImportError as error:
        print(f"skipping reformer_pytorch: {error}")
    try:
        from transformers import ReformerConfig
        from transformers.models.reformer import modeling_reformer

        peers["Hugging Face"] = (ReformerConfig, modeling_reformer.LSHSelfAttention)
    except ImportError as error:
        print(f"skipping Hugging Face's layer: {error}")
    return peers


class Setting:
    """The same inputs for every side, with one number of tokens and as many buckets as chunks."""

    def __init__(
        self,
        tokens: int,
        device: str,
        peers: dict[str, object],
        num_buckets: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.tokens, self.device = tokens, device
        num_buckets = num_buckets or tokens // CHUNK
        generator = torch.Generator().manual_seed(tokens)
        x = torch.randn(1, tokens, HEADS * HEAD_DIM, generator=generator).to(device, dtype)
        weights = torch.randn(2, HEADS * HEAD_DIM, HEADS * HEAD_DIM, generator=generator).to(device, dtype) / 16
        self.x, self.weights = x, weights
        self.query_key, self.value = (split_heads(F.linear(x, weight), HEADS).contiguous() for weight in weights)
        self.rotations = random_rotations(HEAD_DIM, num_buckets, ROUNDS, num_heads=HEADS, dtype=dtype, device=device)
        self.flat = self.query_key[0], self.value[0]  # reformer_pytorch folds the heads into the batch
        if "reformer_pytorch" in peers:
            self.reformer = peers["reformer_pytorch"](bucket_size=CHUNK, n_hashes=ROUNDS, causal=True).to(device)
        if "Hugging Face" in peers:
            config, layer = peers["Hugging Face"]
            options = {"hidden_size": HEADS * HEAD_DIM, "num_attention_heads": HEADS, "attention_head_size": HEAD_DIM}
            options |= {"num_hashes": ROUNDS, "num_buckets": num_buckets, "lsh_attn_chunk_length": CHUNK}
            options |= {"lsh_attention_probs_dropout_prob": 0.0, "is_decoder": True, "attn_layers": ["lsh"]}
            self.layer = layer(config(hash_seed=0, **options), layer_idx=0).to(device, dtype).eval()
            with torch.no_grad():
                self.layer.query_key.weight.copy_(weights[0])
                self.layer.value.weight.copy_(weights[1])

    def ours(self, rotations: Tensor | None = None, **options: bool) -> Call:
        rotations = self.rotations if rotations is None else rotations
        return lambda: lsh_attention(self.query_key, self.value, rotations, chunk_size=CHUNK, is_causal=True, **options)

    def our_layer(self, rotations: Tensor | None = None, **options: bool) -> Call:
        """Starts from x and includes the projections, like Hugging Face's layer."""
        rotations = self.rotations if rotations is None else rotations

        def call() -> Tensor:
            query_key, value = (split_heads(F.linear(self.x, weight), HEADS) for weight in self.weights)
            return join_heads(lsh_attention(query_key, value, rotations, chunk_size=CHUNK, is_causal=True, **options))

        return call

    def reformer_pytorch(self) -> Tensor:
        return self.reformer(*self.flat)[0]

    def hugging_face(self) -> Tensor:
        return self.layer(self.x).hidden_states

    def fused(self) -> Tensor:
        return F.scaled_dot_product_attention(self.query_key, self.query_key, self.value, is_causal=True)

    def sides(self, peers: dict[str, object]) -> dict[str, Call]:
        """Every side; "ours" comes first, and "ours, layer" is what Hugging Face's layer is compared with."""
        sides: dict[str, Call] = {"ours": self.ours(**LOOSE), "ours, counted once": self.ours(across_buckets=True)}
        sides |= {"ours, own bucket, counted once": self.ours(), "fused full causal": self.fused}
        if "reformer_pytorch" in peers:
            sides["reformer_pytorch"] = self.reformer_pytorch
        if "Hugging Face" in peers:
            sides |= {"ours, layer": self.our_layer(**LOOSE), "Hugging Face": self.hugging_face}
        return sides

    def leaves(self) -> list[Tensor]:
        return [self.query_key, self.value, self.x]


def check_equal(device: str, peers: dict[str, object]) -> None:
    """Our outputs equal the peers' wherever both see the same keys; their first chunk also sees the last one.

    In float64, so that rounding never puts a vector into different buckets.
    """
    setting = Setting(2048, device, peers, dtype=torch.float64)
    cases = {}
    torch.manual_seed(0)
    shape = (HEADS, HEAD_DIM, ROUNDS, setting.tokens // CHUNK // 2)
    if "reformer_pytorch" in peers:
        drawn = torch.randn((1, *shape[1:]), dtype=torch.float64, device=device).transpose(
            1, 2
        )  # (1, rounds, head_dim, buckets / 2)
        torch.manual_seed(0)
        theirs = setting.reformer_pytorch()
        cases["reformer_pytorch"] = drawn, theirs[None], HEAD_DIM**-0.5
    if "Hugging Face" in peers:
        torch.manual_seed(0)
        drawn = torch.randn(shape, dtype=torch.float64, device=device).transpose(1, 2)
        cases["Hugging Face"] = drawn, split_heads(setting.hugging_face(), HEADS), 1.0
    for name, (rotations, theirs, scale) in cases.items():
        options = {"chunk_size": CHUNK, "is_causal": True, "scale": scale, **LOOSE}
        ours = lsh_attention(setting.query_key, setting.value, rotations, **options)
        order = hash_buckets(setting.query_key, rotations).argsort(dim=-1, stable=True)
        first = torch.zeros((*order.shape[:2], setting.tokens), dtype=torch.bool, device=device)
        first.scatter_(-1, order[..., :CHUNK].flatten(2), True)  # in the first chunk in some round
        torch.testing.assert_close(ours[~first], theirs[~first], rtol=1e-5, atol=1e-5)
        print(f"{name}: equal at {int((~first).sum()):,} of {first.numel():,} positions, those never in a first chunk")


def measure(calls: dict[str, Call], setting: Setting, repeats: int, backward: bool = False) -> dict[str, float]:
    """Median seconds of each call. The sides take turns, and the first turn is a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            for leaf in setting.leaves():
                leaf.grad = None
            synchronize(setting.device)
            start = time.perf_counter()
            with torch.set_grad_enabled(backward):
                output = call()
                if backward:
                    output.sum().backward()
            synchronize(setting.device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
            del output
    return {name: statistics.median(times) for name, times in seconds.items()}


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def compare_speed(tokens: int, device: str, peers: dict[str, object], repeats: int) -> None:
    setting = Setting(tokens, device, peers)
    for leaf in setting.leaves():
        leaf.requires_grad_()
    setting.flat = setting.query_key[0], setting.value[0]
    for backward in (False, True):
        median = measure(setting.sides(peers), setting, repeats, backward)
        print(f"\n{tokens:,} tokens, {'forward + backward' if backward else 'forward'}: ms, and the ratio to ours")
        for name, seconds in median.items():
            mine = median["ours, layer" if name == "Hugging Face" else "ours"]
            print(f"  {name:32}{seconds * 1e3:10.1f} {seconds / mine:7.2f}")


def compare_growth(device: str, repeats: int) -> None:
    """How the cost of a forward pass grows from 4 K to 64 K tokens, with a fixed and a growing number of buckets."""
    print("\nforward, 4,096 to 65,536 tokens: ms, and the exponent of the growth over the whole range")
    lengths = [4096, 16384, 65536]
    rows = {"128 buckets": 128, "as many buckets as chunks": None}
    for options in (LOOSE, {}):
        label = "counted once per meeting, across buckets" if options else "counted once, own bucket"
        for name, num_buckets in rows.items():
            settings = [Setting(tokens, device, {}, num_buckets) for tokens in lengths]
            calls = {str(s.tokens): s.ours(**options) for s in settings}
            median = measure(calls, settings[0], repeats)
            first, *_, last = median.values()
            exponent = math.log(last / first) / math.log(lengths[-1] / lengths[0])
            print(
                f"  {label}, {name}: " + " ".join(f"{s * 1e3:9.1f}" for s in median.values()) + f"   n^{exponent:.2f}"
            )


def compare_memory(tokens: int, device: str, peers: dict[str, object]) -> None:
    """Peak memory on top of the inputs, with each side in its own process."""
    for backward in (False, True):
        print(
            f"\n{tokens:,} tokens, peak extra memory of {'forward + backward' if backward else 'forward'}: MiB, ratio"
        )
        extra = {}
        for name in Setting(CHUNK * 2, "cpu", peers).sides(peers):
            command = [sys.executable, __file__, "--device", device, "--tokens", str(tokens), "--memory-of", name]
            child = subprocess.run(command + ["--backward"] * backward, capture_output=True, text=True)
            if child.returncode:
                print(f"  {name} could not be measured: {child.stderr.strip().splitlines()[-1]}")
                continue
            extra[name] = float(child.stdout.split()[-1])
            mine = extra["ours, layer" if name == "Hugging Face" else "ours"]
            print(f"  {name:32}{extra[name]:10.0f} {extra[name] / mine:7.2f}")


def print_memory(name: str, tokens: int, device: str, backward: bool) -> None:
    """In the child process: run one side once and print its peak memory on top of the inputs, in MiB."""
    peers = load_peers()
    small, setting = Setting(CHUNK * 2, device, peers), Setting(tokens, device, peers)
    for one in (small, setting):
        for leaf in one.leaves():
            leaf.requires_grad_(backward)
        one.flat = one.query_key[0], one.value[0]
        if one is setting:
            before = start_peak(device)
        with torch.set_grad_enabled(backward):
            output = one.sides(peers)[name]()
            if backward:
                output.sum().backward()
    print(read_peak(device) - before)


def start_peak(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    with open("/proc/self/clear_refs", "w") as file:  # Linux: resets the peak
        file.write("5")
    return read_peak(device)


def read_peak(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))


def main() -> None:
    sections = ["equal", "speed", "memory", "growth"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sections", nargs="+", default=sections, choices=sections)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--backward", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print_memory(args.memory_of, args.tokens[-1], args.device, args.backward)
        return
    peers = load_peers()
    if "equal" in args.sections:
        check_equal(args.device, peers)
    if "speed" in args.sections:
        for tokens in args.tokens:
            compare_speed(tokens, args.device, peers, args.repeats)
    if "memory" in args.sections:
        compare_memory(args.tokens[-1], args.device, peers)
    if "growth" in args.sections:
        compare_growth(args.device, max(1, args.repeats // 2))


if __name__ == "__main__":
    main()
