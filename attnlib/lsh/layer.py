"""A causal self-attention layer that looks by hashing, for long sequences."""

import torch
from torch import Tensor, nn

from attnlib._validate import check_count, check_input
from attnlib.lsh.attention import lsh_attention
from attnlib.lsh.hashing import random_rotations
from attnlib.multi_head import join_heads, split_heads


class LSHSelfAttention(nn.Module):
    """Multi-head self-attention by hashing, with one projection for queries and keys.

    Formula: ``out_proj(concat(A_1, …, A_n))`` where A_h is ``lsh_attention`` of the h-th slices of ``W_query_key(x)``
    and ``W_value(x)``, each ``head_dim = d_out / num_heads`` wide, with scale 1 and every key counted once.

    The rounds hash with directions that are a buffer, so that a saved layer finds the same buckets again and every
    forward is deterministic. They are drawn from a seed of their own, 0, and never touch the global generator. To
    train, call ``resample_rotations`` before each step or now and then.

    There is no length below which this layer falls back to full attention: it hides the tokens of other buckets, so
    that full attention is another function however few the tokens are.

    Args:
        d_in: size of a token's vector.
        d_out: size of a context vector, over all heads together; divisible by ``num_heads``.
        num_heads: how many heads.
        chunk_size: number of sorted tokens in a chunk; a causal token sees as many of its bucket.
        num_buckets: number of buckets, even. It does not depend on the length, so that prefixes equal the whole.
        num_hashes: number of rounds.
        is_causal: hide later tokens.
        qkv_bias: whether W_query_key and W_value have a bias; ``out_proj`` always has one.

    Attributes:
        W_query_key, W_value: ``nn.Linear(d_in, d_out)``; out_proj: ``nn.Linear(d_out, d_out)``; created in this order.
        rotations: buffer (num_heads, num_hashes, head_dim, num_buckets // 2), kept in the ``state_dict``.

    Raises:
        TypeError, ValueError: a size is no positive int, d_out is not divisible by ``num_heads``, or ``num_buckets`` is
            odd; in ``forward``, x of a wrong shape, dtype or device.

    Source: Kitaev et al. 2020, "Reformer", section 2.

    >>> LSHSelfAttention(d_in=3, d_out=4, num_heads=2)(torch.rand(2, 6, 3)).shape
    torch.Size([2, 6, 4])
    """

    rotations: Tensor

    def __init__(
        self,
        d_in: int,
        d_out: int,
        num_heads: int,
        *,
        chunk_size: int = 64,
        num_buckets: int = 128,
        num_hashes: int = 4,
        is_causal: bool = True,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        check_count("d_in", d_in)
        check_count("d_out", d_out)
        check_count("num_heads", num_heads)
        check_count("chunk_size", chunk_size)
        if d_out % num_heads:
            raise ValueError(f"d_out must be divisible by num_heads; got d_out={d_out}, num_heads={num_heads}")
        self.num_heads, self.chunk_size, self.is_causal = num_heads, chunk_size, is_causal
        rotations = random_rotations(d_out // num_heads, num_buckets, num_hashes, num_heads=num_heads)
        self.W_query_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.register_buffer("rotations", rotations.to(self.W_value.weight.device))

    def resample_rotations(self, generator: torch.Generator | None = None) -> None:
        """Draw new directions into the buffer, from ``generator`` as in ``random_rotations``."""
        heads, num_hashes, head_dim, half = self.rotations.shape
        self.rotations.copy_(random_rotations(head_dim, 2 * half, num_hashes, num_heads=heads, generator=generator))

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Context vectors (…, tokens, d_out) of x (batch, tokens, d_in) or (tokens, d_in).

        ``key_mask`` is boolean (batch, tokens) or (tokens,), True = real; padding gets what ``out_proj`` makes of 0.
        """
        check_input(x, self.W_query_key.in_features)
        if x.ndim == 2:
            return self.forward(x[None], key_mask[None] if isinstance(key_mask, Tensor) else key_mask)[0]
        query_key, value = (split_heads(linear(x), self.num_heads) for linear in (self.W_query_key, self.W_value))
        heads = lsh_attention(
            query_key, value, self.rotations, chunk_size=self.chunk_size, is_causal=self.is_causal, key_mask=key_mask
        )  # (batch, num_heads, tokens, head_dim)
        return self.out_proj(join_heads(heads))
