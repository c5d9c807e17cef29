"""Causal attention: a token sees itself and what came before it."""

from typing import Any

from torch import nn

from attnlib._validate import check_counts, check_probability
from attnlib.self_attention import SelfAttention_v2


class CausalAttention(SelfAttention_v2):
    """Single-head self-attention in which no token sees a later one.

    Formula: ``dropout(softmax(Q Kᵀ / √d_out + M)) V`` with ``M_ij = 0`` for j ≤ i and −∞ after it. Errors are as in
    ``SelfAttention_v1``.

    Args:
        d_in, d_out, qkv_bias: as in ``SelfAttention_v2``.
        context_length: the largest number of tokens in x; with more, ``forward`` raises a ValueError.
        dropout: share of the weights dropped while training, 0 … 1; the others grow by 1/(1 − dropout).

    Attributes:
        W_query, W_key, W_value: as in ``SelfAttention_v2``. The mask is not a buffer, so a ``mask`` in a state
            dict is ignored.
        dropout: ``nn.Dropout``; its own ``training`` decides whether it drops.

    Source: Vaswani et al. 2017, section 3.2.3.

    >>> import torch
    >>> CausalAttention(d_in=3, d_out=2, context_length=6)(torch.rand(5, 6, 3)).shape
    torch.Size([5, 6, 2])
    """

    is_causal = True

    def __init__(
        self, d_in: int, d_out: int, context_length: int, dropout: float = 0.0, qkv_bias: bool = False
    ) -> None:
        super().__init__(d_in, d_out, qkv_bias)
        check_counts(context_length=context_length)
        check_probability("dropout", dropout)
        self.context_length, self.dropout = context_length, nn.Dropout(dropout)
        self.register_load_state_dict_pre_hook(drop_mask_buffer)


def drop_mask_buffer(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Allow a state dict that holds the mask as a buffer, as the classes in many books do."""
    state_dict.pop(f"{prefix}mask", None)
