"""attnlib: attention, worked by hand. The tested implementations behind the notebooks."""

from importlib import import_module
from typing import TYPE_CHECKING

from attnlib.attend import Attended, attend, attention, attention_weights, merge
from attnlib.chunked import chunked_attend
from attnlib.device import describe_device, get_device
from attnlib.generation import GroupedQueryAttention
from attnlib.kv_cache import KVCache
from attnlib.masks import causal_mask, padding_mask, sliding_window_mask
from attnlib.multi_head import MultiHeadAttention, MultiHeadAttentionWrapper, join_heads, split_heads
from attnlib.positions import convert_rotary_layout, rotate
from attnlib.self_attention import CausalAttention, SelfAttention_v1, SelfAttention_v2, context_vectors

if TYPE_CHECKING:
    from attnlib.einsum import EinsumExplanation, explain_einsum
    from attnlib.lsh import LSHSelfAttention, hash_buckets, lsh_attention, random_rotations
    from attnlib.memory import IVFIndex, KVMemory, MemoryAttention, MemoryHits, split_memory_heads, topk_attend
    from attnlib.real_model import Encoder, load_encoder
    from attnlib.sharded import sharded_attend, sharded_search

__version__ = "2.0.0"
__all__ = ["Attended", "attend", "attention", "attention_weights", "chunked_attend", "merge"]
__all__ += ["causal_mask", "describe_device", "get_device", "padding_mask", "sliding_window_mask"]
__all__ += ["CausalAttention", "SelfAttention_v1", "SelfAttention_v2", "context_vectors"]
__all__ += ["MultiHeadAttention", "MultiHeadAttentionWrapper", "join_heads", "split_heads"]
__all__ += ["GroupedQueryAttention", "KVCache", "convert_rotary_layout", "rotate"]
__all__ += ["LSHSelfAttention", "hash_buckets", "lsh_attention", "random_rotations"]
__all__ += ["IVFIndex", "KVMemory", "MemoryAttention", "MemoryHits", "split_memory_heads", "topk_attend"]
__all__ += ["EinsumExplanation", "Encoder", "explain_einsum", "load_encoder", "sharded_attend", "sharded_search"]

_LATER = ("einsum", "lsh", "memory", "real_model", "sharded")  # loaded on first use, so importing attnlib is cheap


def __getattr__(name: str) -> object:
    """Load the package with this name, or packages in turn until one defines it."""
    if name in _LATER:
        return import_module(f"attnlib.{name}")
    if name in __all__:
        return next(vars(package)[name] for package in map(__getattr__, _LATER) if name in vars(package))
    raise AttributeError(f"module 'attnlib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
