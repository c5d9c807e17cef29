"""A memory of past keys and values, and attention over the best of them.

Shapes, everywhere in this package: batch rows, heads, tokens (of the query), top_k (memories found for each token and
head), head_dim (of keys and queries), value_dim (of values; default: head_dim).
"""

from attnlib.memory.hits import MemoryHits, split_memory_heads, topk_attend
from attnlib.memory.index import IVFIndex
from attnlib.memory.kv_memory import KVMemory
from attnlib.memory.layer import MemoryAttention

__all__ = ["IVFIndex", "KVMemory", "MemoryAttention", "MemoryHits", "split_memory_heads", "topk_attend"]
