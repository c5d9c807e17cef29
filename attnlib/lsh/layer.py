"""A self-attention layer for long sequences: each token attends to those that hash to the same bucket."""

import torch
from torch import Tensor, nn

from attnlib._validate import check_bool, check_counts, check_divisible, check_input
from attnlib.attend import hide_padding
from attnlib.lsh._sorted import Rule
from attnlib.lsh.attention import attend_rounds
from attnlib.lsh.hashing import random_rotations
from attnlib.multi_head import split_heads


class LSHSelfAttention(nn.Module):
    """Multi-head self-attention by hashing, with one projection shared by queries and keys.

    Formula: ``out_proj(concat(A_1, …, A_n))`` where A_h is ``lsh_attention`` of the h-th slices of ``W_query_key(x)``
    and ``W_value(x)``, each ``head_dim = d_out / num_heads`` wide, with scale 1 and every key counted once.

    The directions that the rounds hash with are a buffer, so a saved layer finds the same buckets again and every
    forward pass is deterministic. Each layer draws its own from PyTorch's global generator, after its Linears. During
    training, call ``resample_rotations`` now and then, or before each step, so the layer cannot overfit to one draw.
    However short a sequence is, it never falls back to full attention.

    Args:
        d_in, d_out, num_heads, is_causal, qkv_bias: as in ``MultiHeadAttention``.
        chunk_size: number of sorted tokens in a chunk; a causal token sees at most this many others in a round.
        num_buckets: number of buckets, even. It is the same for every length, so prefixes agree with the whole.
        num_hashes: number of rounds.

    W_query_key, W_value (d_in to d_out) and out_proj (d_out to d_out) are ``nn.Linear``, created in this order; the
    buffer ``rotations`` is (num_heads, num_hashes, head_dim, num_buckets // 2). TypeError, ValueError: a size is not a
    positive int, d_out is not divisible by ``num_heads``, ``num_buckets`` is odd, or an option is not a bool; in
    ``forward``, x or ``key_mask`` is of the wrong kind or shape.

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
        check_counts(d_in=d_in, d_out=d_out, num_heads=num_heads, chunk_size=chunk_size)
        check_bool("is_causal", is_causal)
        check_bool("qkv_bias", qkv_bias)
        check_divisible(d_out=d_out, num_heads=num_heads)
        self.d_in, self.num_heads, self.chunk_size, self.is_causal = d_in, num_heads, chunk_size, is_causal
        self.W_query_key, self.W_value = (nn.Linear(d_in, d_out, bias=qkv_bias) for _ in range(2))
        self.out_proj = nn.Linear(d_out, d_out)
        rotations = random_rotations(
            d_out // num_heads, num_buckets, num_hashes, num_heads=num_heads, generator=torch.default_generator
        )
        self.register_buffer("rotations", rotations.to(self.W_value.weight.device))

    def resample_rotations(self, generator: torch.Generator | None = None) -> None:
        """Draw new directions, in place, from ``generator``; default: PyTorch's global generator."""
        heads, num_hashes, head_dim, half = self.rotations.shape
        generator = torch.default_generator if generator is None else generator
        self.rotations.copy_(random_rotations(head_dim, 2 * half, num_hashes, num_heads=heads, generator=generator))

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Context vectors; shapes and ``key_mask`` as in ``SelfAttention_v1.forward``. No real token sees padding,
        whatever it holds; its own output is ``out_proj``'s bias, and its gradient is zero."""
        check_input(x, self.d_in)
        x = hide_padding(x, key_mask)[0]
        rows, mask = (t if t is None or x.ndim == 3 else t.unsqueeze(0) for t in (x, key_mask))
        query_key, value = (split_heads(linear(rows), self.num_heads) for linear in (self.W_query_key, self.W_value))
        rule = Rule(self.chunk_size, 2 * self.rotations.shape[-1], self.is_causal, True, False, scale=1.0)
        heads = attend_rounds(query_key, value, self.rotations, mask, rule)  # (batch, num_heads, tokens, head_dim)
        output = self.out_proj(heads.transpose(1, 2).flatten(2))
        return output if x.ndim == 3 else output[0]
