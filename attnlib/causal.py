"""Causal attention: a token sees itself and what came before it."""

from torch import Tensor, nn

from attnlib._validate import check_count, check_input, check_probability
from attnlib.attend import attention, attention_weights


class CausalAttention(nn.Module):
    """Single-head self-attention in which no token sees a later one.

    Formula: ``softmax(Q Kᵀ / √d_out + M) V`` with ``M_ij = 0`` for j ≤ i and −∞ after it; dropout on the weights while
    training.

    Args:
        d_in: size of a token's vector.
        d_out: size of a query, a key, a value and a context vector.
        context_length: the most tokens that x may have.
        dropout: share of the weights dropped while training, 0 … 1; the others grow by 1/(1 − dropout).
        qkv_bias: whether the three Linears have a bias.

    Attributes:
        W_query, W_key, W_value: ``nn.Linear(d_in, d_out)``, created in this order. There is no mask buffer.

    Raises:
        TypeError, ValueError: a size is no positive int, or dropout no probability; in ``forward``, x of a wrong
            shape, dtype or device, or of more than ``context_length`` tokens.

    Source: Vaswani et al. 2017, section 3.2.3.

    >>> import torch
    >>> CausalAttention(d_in=3, d_out=2, context_length=6)(torch.rand(5, 6, 3)).shape
    torch.Size([5, 6, 2])
    """

    def __init__(
        self, d_in: int, d_out: int, context_length: int, dropout: float = 0.0, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        check_count("d_in", d_in)
        check_count("d_out", d_out)
        check_count("context_length", context_length)
        check_probability("dropout", dropout)
        self.context_length = context_length
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Context vectors (…, tokens, d_out) of x (batch, tokens, d_in) or (tokens, d_in)."""
        check_input(x, self.W_query.in_features, self.context_length)
        dropout_p = self.dropout.p if self.training else 0.0
        return attention(self.W_query(x), self.W_key(x), self.W_value(x), is_causal=True, dropout_p=dropout_p)

    def attention_weights(self, x: Tensor) -> Tensor:
        """Weights (…, tokens, tokens) before dropout, zero above the diagonal; rows sum to one."""
        check_input(x, self.W_query.in_features, self.context_length)
        return attention_weights(self.W_query(x), self.W_key(x), is_causal=True)
