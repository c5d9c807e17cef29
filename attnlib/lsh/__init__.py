"""Attention by locality-sensitive hashing: each token looks only at those that fall into its bucket."""

from attnlib.lsh.attention import lsh_attention
from attnlib.lsh.hashing import hash_buckets, random_rotations
from attnlib.lsh.layer import LSHSelfAttention

__all__ = ["LSHSelfAttention", "hash_buckets", "lsh_attention", "random_rotations"]
