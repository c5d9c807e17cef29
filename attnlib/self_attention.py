"""Self-attention: every token asks and every token answers. In causal attention, later tokens do not answer."""

from typing import Any

import torch
from torch import Tensor, nn

from attnlib._fused import fused_attention
from attnlib._validate import check_counts, check_input, check_probability, check_tensor
from attnlib.attend import _scores, _softmax, active_dropout, blank, hide_padding


def context_vectors(x: Tensor) -> Tensor:
    """Average the tokens by how alike they are, with no trained weights and no scale.

    Formula: ``softmax(x xᵀ) x``, a softmax over each row; x and the result are (…, tokens, d_in). Raises a TypeError or
    ValueError if x is not a floating-point tensor, or has fewer than two axes.

    Source: Raschka 2024, "Build a Large Language Model (From Scratch)", section 3.3.

    >>> context_vectors(torch.eye(2))  # weights [e, 1] / (e + 1)
    tensor([[0.7311, 0.2689],
            [0.2689, 0.7311]])
    """
    check_tensor("x", x, "... tokens d_in")
    return fused_attention(x, x, x, scale=1.0)


class Layer(nn.Module):
    """What the layers of this module, and those built on them, share. Some hide the future, or drop weights."""

    d_in: int
    context_length: int | None = None
    is_causal = False

    def _project(self, x: Tensor, name: str) -> Tensor:
        """The queries, keys or values of x, (…, tokens, d_out)."""
        return getattr(self, f"W_{name}")(x)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Context vectors (…, tokens, d_out) of x (batch, tokens, d_in) or (tokens, d_in).

        ``key_mask`` is boolean (batch, tokens) or (tokens,), True = real token. No token sees padding, whatever it
        holds, and its own context vectors are zero.
        """
        check_input(x, self.d_in, self.context_length)
        x, mask = hide_padding(x, key_mask)
        query, key, value = (self._project(x, name) for name in ("query", "key", "value"))
        dropout_p = active_dropout(getattr(self, "dropout", None))
        return blank(fused_attention(query, key, value, mask, self.is_causal, None, dropout_p), mask)

    def attention_weights(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Weights before dropout, (…, tokens, tokens), or (…, num_heads, tokens, tokens) of several heads. Rows sum to
        one, or to zero for padding."""
        check_input(x, self.d_in, self.context_length)
        x, mask = hide_padding(x, key_mask)
        query, key = self._project(x, "query"), self._project(x, "key")
        if mask is not None and query.ndim > x.ndim:
            mask = mask.unsqueeze(-3)  # for all heads
        weights, _ = _softmax(_scores(query, key, mask, self.is_causal, None))
        return blank(weights.to(query.dtype), mask)


class SelfAttention_v1(Layer):
    """Self-attention with its three weight matrices as bare parameters.

    Formula: ``softmax(Q Kᵀ / √d_out) V`` with ``Q = x W_query + bias_query``, and K and V likewise.

    Args:
        d_in, d_out: size of a token's vector, and that of a query, a key, a value and a context vector.
        qkv_bias: add a trained vector (d_out,) after each product; it starts at zero.

    W_query, W_key and W_value, (d_in, d_out), are drawn with ``torch.randn`` in this order; bias_query, bias_key and
    bias_value, (d_out,), are None without ``qkv_bias``. TypeError, ValueError: ``d_in`` or ``d_out`` is not a positive
    int; in ``forward``, x or ``key_mask`` does not fit. Only the matrix products check the dtype and device of x.

    Source: Vaswani et al. 2017, section 3.2.1.

    >>> SelfAttention_v1(d_in=3, d_out=2)(torch.rand(6, 3)).shape
    torch.Size([6, 2])
    """

    def __init__(self, d_in: int, d_out: int, qkv_bias: bool = False) -> None:
        super().__init__()
        check_counts(d_in=d_in, d_out=d_out)
        self.d_in = d_in
        self.W_query, self.W_key, self.W_value = (nn.Parameter(torch.randn(d_in, d_out)) for _ in range(3))
        for name in ("bias_query", "bias_key", "bias_value"):
            self.register_parameter(name, nn.Parameter(torch.zeros(d_out)) if qkv_bias else None)

    @classmethod
    def from_v2(cls, v2: "SelfAttention_v2") -> "SelfAttention_v1":
        """Make a v1 with copies of the weights of ``v2``, transposed, and of its biases; what is frozen stays frozen.
        TypeError: ``v2`` is not a ``SelfAttention_v2``."""
        if type(v2) is not SelfAttention_v2:  # CausalAttention is one of its subclasses
            raise TypeError(f"v2 must be a SelfAttention_v2; got {type(v2).__name__}")
        v1 = cls(v2.d_in, v2.W_query.out_features, qkv_bias=v2.W_query.bias is not None)
        for name in ("query", "key", "value"):
            weight, bias = getattr(v2, f"W_{name}").weight, getattr(v2, f"W_{name}").bias
            setattr(v1, f"W_{name}", nn.Parameter(weight.detach().T.clone(), weight.requires_grad))
            if bias is not None:
                setattr(v1, f"bias_{name}", nn.Parameter(bias.detach().clone(), bias.requires_grad))
        return v1.train(v2.training)

    def _project(self, x: Tensor, name: str) -> Tensor:
        projected, bias = x @ getattr(self, f"W_{name}"), getattr(self, f"bias_{name}")
        return projected if bias is None else projected + bias


class SelfAttention_v2(Layer):
    """Self-attention with ``nn.Linear`` layers, which bring a better initialisation and a real bias.

    Formula, arguments and errors: as ``SelfAttention_v1``, with ``Q = W_query(x)``. W_query, W_key and W_value are
    ``nn.Linear(d_in, d_out)``, created in this order. A Linear stores (d_out, d_in), the transpose of v1's weight.

    >>> SelfAttention_v2(d_in=3, d_out=2)(torch.rand(5, 6, 3)).shape
    torch.Size([5, 6, 2])
    """

    def __init__(self, d_in: int, d_out: int, qkv_bias: bool = False) -> None:
        super().__init__()
        check_counts(d_in=d_in, d_out=d_out)
        self.d_in = d_in
        self.W_query, self.W_key, self.W_value = (nn.Linear(d_in, d_out, bias=qkv_bias) for _ in range(3))


class CausalAttention(SelfAttention_v2):
    """Single-head self-attention in which no token sees a later one.

    Formula: ``dropout(softmax(Q Kᵀ / √d_out + M)) V`` with ``M_ij = 0`` for j ≤ i and −∞ after it. Errors are as in
    ``SelfAttention_v1``.

    Args:
        d_in, d_out, qkv_bias: as in ``SelfAttention_v2``.
        context_length: the largest number of tokens in x; with more, ``forward`` raises a ValueError.
        dropout: share of the weights dropped while training, 0 … 1; the others grow by 1/(1 − dropout).

    Attributes are those of ``SelfAttention_v2``, and ``dropout``, an ``nn.Dropout`` whose own ``training`` decides
    whether it drops. The mask is not a buffer, so a ``mask`` in a state dict is ignored.

    Source: Vaswani et al. 2017, section 3.2.3.

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
