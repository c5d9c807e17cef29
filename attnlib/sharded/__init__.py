"""Attention and memory spread over several processes, with ``torch.distributed``.

``torchrun --nproc-per-node=4 -m attnlib.sharded`` runs a demonstration.
"""

from attnlib.sharded.ring_attention import sharded_attend
from attnlib.sharded.search import sharded_search

__all__ = ["sharded_attend", "sharded_search"]
