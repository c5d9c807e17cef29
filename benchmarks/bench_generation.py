"""Generating one token at a time, beside the same loop by hand and Hugging Face: python run.py bench generation

One layer, 256 wide, 8 heads of 32 numbers. First, outputs must be equal: to the attention of Llama, Mistral and Cohere
with copied weights, with and without their cache, and to PyTorch's grouped kernel. Then the time of a token with and
without a cache, the bytes of a cache, and a step beside others. All sides take turns, in a new order each round;
medians, and ratios to attnlib's.
"""

import argparse
import inspect
import random
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import DynamicCache

from attnlib import GroupedQueryAttention, convert_rotary_layout

WIDTH, HEADS = 256, 8


class ByHand:
    """The same step as people write it: a preallocated cache, a table of angles, PyTorch's grouped kernel, no check."""

    def __init__(self, layer: GroupedQueryAttention, prompt: Tensor, room: int) -> None:
        self.layer, self.length = layer, prompt.shape[1]
        head_dim, kv_heads = layer.head_dim, layer.num_kv_heads
        self.key, self.value = torch.zeros(2, len(prompt), kv_heads, room, head_dim)
        angles = torch.arange(room)[:, None] * layer.base ** (-torch.arange(0, head_dim, 2).double() / head_dim)
        self.cos, self.sin = angles.cos().float(), angles.sin().float()
        shape = *prompt.shape[:2], kv_heads, head_dim
        key, value = (f(prompt).view(shape).transpose(1, 2) for f in (layer.W_key, layer.W_value))
        self.key[:, :, : self.length] = self.turned(key, slice(self.length))
        self.value[:, :, : self.length] = value

    def turned(self, x: Tensor, where: slice) -> Tensor:
        cos, sin = self.cos[where], self.sin[where]
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

    def __call__(self, x: Tensor) -> Tensor:
        layer, here = self.layer, slice(self.length, self.length + 1)
        query = layer.W_query(x).view(len(x), 1, layer.num_heads, layer.head_dim).transpose(1, 2)
        key = layer.W_key(x).view(len(x), 1, layer.num_kv_heads, layer.head_dim).transpose(1, 2)
        value = layer.W_value(x).view(len(x), 1, layer.num_kv_heads, layer.head_dim).transpose(1, 2)
        self.key[:, :, here], self.value[:, :, here] = self.turned(key, here), value
        self.length += 1
        past = self.key[:, :, : self.length], self.value[:, :, : self.length]
        heads = F.scaled_dot_product_attention(self.turned(query, here), *past, enable_gqa=True)
        return layer.out_proj(heads.transpose(1, 2).reshape(len(x), 1, -1))


class HuggingFace:
    """Llama's attention with its DynamicCache; the angles are computed beforehand, as its model does for all layers."""

    def __init__(self, layer: GroupedQueryAttention, prompt: Tensor, room: int) -> None:
        model = hugging_face("Llama", WIDTH, HEADS, layer.num_kv_heads)
        self.attention, self.cache, self.length = model.layers[0].self_attn, DynamicCache(), 0
        copy_weights(layer, self.attention)
        self.cos, self.sin = model.rotary_emb(prompt, torch.arange(room)[None])
        self(prompt)

    def __call__(self, x: Tensor) -> Tensor:
        here = slice(self.length, self.length + x.shape[1])
        self.length += x.shape[1]
        return self.attention(x, (self.cos[:, here], self.sin[:, here]), None, self.cache)[0]


class Attnlib:
    def __init__(self, layer: GroupedQueryAttention, prompt: Tensor, room: int) -> None:
        self.layer, self.cache = layer, layer.new_cache()
        self(prompt)

    def __call__(self, x: Tensor) -> Tensor:
        self.layer.append(x, self.cache)
        return self.layer(x, self.cache)


def hugging_face(name: str, width: int, heads: int, kv_heads: int, base: float = 10000.0, window: int | None = None):
    """A model of one layer."""
    options = {"hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": 7}
    options |= {"intermediate_size": 8, "num_hidden_layers": 1, "max_position_embeddings": 8192, "rope_theta": base}
    if name == "Mistral":
        options["sliding_window"] = window
    options |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    config = getattr(transformers, f"{name}Config")(**options, attn_implementation="sdpa")
    return getattr(transformers, f"{name}Model")(config).eval()


def copy_weights(layer: GroupedQueryAttention, attention: nn.Module) -> None:
    """From ours to theirs."""
    for name, linear in zip("qkvo", (layer.W_query, layer.W_key, layer.W_value, layer.out_proj)):
        getattr(attention, f"{name}_proj").weight.copy_(linear.weight)
    layer.out_proj.bias.zero_()  # theirs has none


def assert_equal_to_hugging_face(name: str, kv_heads: int, base: float, window: int | None) -> None:
    """Whatever their model gives to its attention, ours makes the same of it, with their masks, angles and caches."""
    width, heads, tokens, seen = 60, 6, 23, []
    layer = GroupedQueryAttention(width, width, tokens, heads, kv_heads, base=base, window=window).eval()
    model = hugging_face(name, width, heads, kv_heads, base, window)
    attention = model.layers[0].self_attn
    cache_name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # until 5.40
    copy_weights(layer, attention)
    attention.register_forward_hook(
        lambda _, args, named, output: seen.append((named.get("hidden_states", *args[:1]), output[0])), with_kwargs=True
    )
    if name == "Cohere":  # it has the other layout
        for linear, count in ((layer.W_query, heads), (layer.W_key, kv_heads)):
            linear.weight.copy_(convert_rotary_layout(linear.weight, count, to="halves"))
    x, real = torch.randn(2, tokens, width), torch.ones(2, tokens, dtype=torch.bool)
    for padding in (0, 4):
        real[1, :padding] = False
        for sizes in ([tokens], [13, 1, 1, 8], [1] * tokens):
            theirs = {cache_name: DynamicCache(config=model.config)} if len(sizes) > 1 else {"use_cache": False}
            cache, first = layer.new_cache(), 0
            for size in sizes:
                last = first + size
                mask = real[:, :last].long() if padding else None
                model(inputs_embeds=x[:, first:last], attention_mask=mask, **theirs)
                given, want = seen.pop()
                kept = real[:, first:last]
                layer.append(given, cache, kept if padding else None)
                assert_close(layer(given, cache)[kept], want[kept], atol=2e-6, rtol=1e-5)
                if size == tokens:
                    assert_close(layer(given, key_mask=real)[kept], want[kept], atol=2e-6, rtol=1e-5)
                first = last


def assert_equal() -> None:
    for kv_heads in (1, 2, 3, 6):
        for base in (10000.0, 500000.0):
            assert_equal_to_hugging_face("Llama", kv_heads, base, None)
            assert_equal_to_hugging_face("Cohere", kv_heads, base, None)
            assert_equal_to_hugging_face("Mistral", kv_heads, base, 5)
    print(f"equal to Llama, Cohere and Mistral of transformers {transformers.__version__}, with and without a cache")


def medians(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of each side."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    shuffler = random.Random(0)
    for number in range(-1, rounds):
        for name in shuffler.sample(list(sides), len(sides)):
            start = time.perf_counter()
            sides[name]()
            if number >= 0:  # before that, warm-up
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def with_and_without_cache(rounds: int) -> None:
    print(f"\n{'':12}{'tokens per second':>24}{'time, that at 256 = 1':>24}")
    print(f"{'tokens held':12}{'with cache':>12}{'without':>12}{'with cache':>12}{'without':>12}{'ratio':>8}")
    layer, first = GroupedQueryAttention(WIDTH, WIDTH, 8192, HEADS, 2).eval(), {}
    for held in (256, 512, 1024, 2048, 4096):
        x = torch.randn(1, held + 1, WIDTH)
        step = Attnlib(layer, x[:, :-1], 0)
        assert_close(step(x[:, -1:]), layer(x)[:, -1:], atol=1e-5, rtol=1e-4)
        steps = medians({"with": lambda step=step, x=x: step(x[:, -1:])}, 20 * rounds)
        got = steps | medians({"without": lambda x=x: layer(x)}, max(3, rounds * 256 // held))
        first = first or got
        speeds = "".join(f"{1e3 / t:12.0f}" for t in got.values())
        growths = "".join(f"{t / first[name]:12.1f}" for name, t in got.items())
        print(f"{held:<12}{speeds}{growths}{got['without'] / got['with']:8.0f}")


def bytes_of_a_cache() -> None:
    print("\nKiB of a cache of 4,096 tokens in float32")
    for kv_heads in (1, 2, 4, 8):
        layer = GroupedQueryAttention(WIDTH, WIDTH, 8192, HEADS, kv_heads).eval()
        cache = layer.new_cache()
        layer.append(torch.randn(1, 4096, WIDTH), cache)
        assert cache.nbytes == 4096 * 2 * kv_heads * WIDTH // HEADS * 4
        print(f"{kv_heads} key heads{cache.nbytes / 1024:12.0f}")


def beside_others(rounds: int) -> None:
    print(f"\n{'microseconds of a step':34}{'attnlib':>9}{'by hand':>18}{'transformers':>18}")
    for batch in (1, 8):
        for kv_heads in (2, 4):
            for held in (256, 1024, 4096):
                layer = GroupedQueryAttention(WIDTH, WIDTH, 8192, HEADS, kv_heads).eval()
                prompt, token = torch.randn(batch, held, WIDTH), torch.randn(batch, 1, WIDTH)
                steps = [side(layer, prompt, held + 20 * rounds + 3) for side in (Attnlib, ByHand, HuggingFace)]
                outputs = [step(token) for step in steps]
                assert_close(outputs[1:], outputs[:1] * 2, atol=1e-5, rtol=1e-4)
                sides = {type(step).__name__: lambda step=step, token=token: step(token) for step in steps}
                ours, *others = medians(sides, 20 * rounds // batch).values()
                cells = "".join(f"{1e3 * t:10.0f} ({ours / t:.2f}×)" for t in others)
                print(f"{f'batch {batch}, {kv_heads} key heads, {held} held':34}{1e3 * ours:9.0f}{cells}")
    print("in brackets: the time of attnlib divided by that one")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    assert_equal()
    bytes_of_a_cache()
    beside_others(arguments.rounds)
    with_and_without_cache(arguments.rounds)


if __name__ == "__main__":
    main()
