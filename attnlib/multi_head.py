"""Multi-head attention: several small attentions side by side, as copies and as one split projection."""

import sys

import torch
from torch import Tensor, nn

from attnlib._fused import fused_attention
from attnlib._validate import check_bool, check_counts, check_divisible, check_input, check_tensor
from attnlib.attend import active_dropout, blank, hide_padding
from attnlib.self_attention import CausalAttention


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Cut the last axis into heads and bring them before the tokens.

    Formula: ``out[…, h, t, c] = x[…, t, h · head_dim + c]`` with ``head_dim = d_out / num_heads``.

    Takes (…, tokens, d_out) and returns (…, num_heads, tokens, head_dim), a view of x where x is contiguous. Raises a
    TypeError or ValueError if x is not a floating-point tensor, has fewer than two axes, or cannot be split evenly.

    >>> split_heads(torch.rand(2, 5, 12), num_heads=3).shape
    torch.Size([2, 3, 5, 4])
    """
    check_tensor("x", x, "... tokens d_out")
    check_counts(num_heads=num_heads)
    check_divisible(d_out=x.shape[-1], num_heads=num_heads)
    return x.unflatten(-1, (num_heads, -1)).transpose(-2, -3)  # (…, num_heads, tokens, head_dim)


def join_heads(x: Tensor) -> Tensor:
    """Put the heads back side by side: the inverse of ``split_heads``.

    Takes (…, num_heads, tokens, head_dim) and returns (…, tokens, num_heads · head_dim). Raises a TypeError or
    ValueError if x is not a floating-point tensor, or has fewer than three axes.

    >>> x = torch.rand(2, 5, 12)
    >>> torch.equal(join_heads(split_heads(x, 3)), x)
    True
    """
    check_tensor("x", x, "... num_heads tokens head_dim")
    return x.transpose(-2, -3).flatten(-2)


class MultiHeadAttentionWrapper(nn.Module):
    """Several ``CausalAttention`` modules side by side, their outputs joined.

    Formula: ``concat(head_1(x), …, head_n(x))`` along the last axis; no output projection. Arguments and errors are
    those of ``CausalAttention``, which ``heads`` holds ``num_heads`` times: d_out is the size of each head's output.

    Source: Vaswani et al. 2017, section 3.2.2.

    >>> MultiHeadAttentionWrapper(d_in=3, d_out=2, context_length=6, num_heads=2)(torch.rand(2, 6, 3)).shape
    torch.Size([2, 6, 4])
    """

    def __init__(
        self, d_in: int, d_out: int, context_length: int, num_heads: int, dropout: float = 0.1, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        check_counts(num_heads=num_heads)
        arguments = d_in, d_out, context_length, dropout, qkv_bias
        self.heads = nn.ModuleList(CausalAttention(*arguments) for _ in range(num_heads))

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Joined context vectors (…, tokens, num_heads · d_out); arguments as in ``CausalAttention``."""
        return torch.cat([head(x, key_mask) for head in self.heads], dim=-1)

    def attention_weights(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Weights (…, num_heads, tokens, tokens) before dropout; rows sum to one, or to zero for padding."""
        weights = [head.attention_weights(x, key_mask) for head in self.heads]  # type: ignore[operator]
        return torch.stack(weights, dim=-3)


class MultiHeadAttention(CausalAttention):
    """Multi-head attention, causal by default, with one projection that is split into heads.

    Formula: ``out_proj(concat(A_1, …, A_n))`` with ``A_h = softmax(Q_h K_hᵀ / √head_dim + M) V_h``, where Q_h is the
    h-th slice of ``head_dim = d_out / num_heads`` columns of ``W_query(x)``, and M hides the future. Errors are as in
    ``SelfAttention_v1``.

    Args:
        d_in, context_length, dropout, qkv_bias: as in ``CausalAttention``.
        d_out: size of a context vector, over all heads together; divisible by ``num_heads``.
        num_heads: number of heads.
        is_causal: hide later tokens; False gives full attention.

    Attributes: those of ``CausalAttention``, and ``out_proj``, an ``nn.Linear(d_out, d_out)`` that always has a bias.

    Source: Vaswani et al. 2017, section 3.2.2.

    >>> MultiHeadAttention(d_in=3, d_out=4, context_length=6, dropout=0.0, num_heads=2)(torch.rand(2, 6, 3)).shape
    torch.Size([2, 6, 4])
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
        *,
        is_causal: bool = True,
    ) -> None:
        super().__init__(d_in, d_out, context_length, dropout, qkv_bias)
        check_counts(num_heads=num_heads)
        check_bool("is_causal", is_causal)
        check_divisible(d_out=d_out, num_heads=num_heads)
        self.num_heads, self.is_causal = num_heads, is_causal
        self.out_proj = nn.Linear(d_out, d_out)

    @classmethod
    def from_torch(
        cls, attention: nn.MultiheadAttention, *, context_length: int = sys.maxsize, is_causal: bool = True
    ) -> "MultiHeadAttention":
        """Make a module that computes what ``nn.MultiheadAttention`` does, with copies of its weights.

        To get the same numbers from the original, call it with ``need_weights=False``, and for a causal copy also with
        ``is_causal=True`` and an ``attn_mask`` that is True above the diagonal (there True means hide). Ours always
        takes the batch first, what is frozen in the original is frozen in the copy, and without a ``context_length``
        the number of tokens has no limit. Raises a TypeError or ValueError if ``attention`` is not an
        ``nn.MultiheadAttention`` whose ``kdim``, ``vdim``, ``add_bias_kv`` and ``add_zero_attn`` are at their defaults.
        """
        if not isinstance(attention, nn.MultiheadAttention):
            raise TypeError(f"attention must be an nn.MultiheadAttention; got {type(attention).__name__}")
        if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError("attention must be plain self-attention: no kdim, vdim, add_bias_kv or add_zero_attn")
        size, has_bias = attention.embed_dim, attention.in_proj_bias is not None
        module = cls(size, size, context_length, attention.dropout, attention.num_heads, has_bias, is_causal=is_causal)
        module.to(attention.in_proj_weight).train(attention.training)
        for kind in ("weight", "bias") if has_bias else ("weight",):
            _copy([getattr(attention, f"in_proj_{kind}")], module._qkv(kind))
            _copy([getattr(attention.out_proj, kind)], [getattr(module.out_proj, kind)])
        if not has_bias:
            nn.init.zeros_(module.out_proj.bias).requires_grad_(attention.out_proj.weight.requires_grad)
        return module

    def to_torch(self) -> nn.MultiheadAttention:
        """Make an ``nn.MultiheadAttention(batch_first=True)`` with copies of these weights: undoes ``from_torch``.

        Its three projections are one parameter, which is frozen if all three of ours are. Raises a ValueError if d_in
        differs from d_out, which ``nn.MultiheadAttention`` does not support for self-attention.
        """
        d_out, d_in = self.W_query.weight.shape
        if d_in != d_out:
            raise ValueError(f"nn.MultiheadAttention needs d_in equal to d_out; got d_in={d_in}, d_out={d_out}")
        attention = nn.MultiheadAttention(d_out, self.num_heads, self.dropout.p, batch_first=True)
        attention.to(self.W_query.weight).train(self.training)
        _copy(self._qkv("weight"), [attention.in_proj_weight])
        _copy([self.out_proj.weight], [attention.out_proj.weight])
        _copy([self.out_proj.bias], [attention.out_proj.bias])
        if self.W_query.bias is None:  # theirs is zero then
            attention.in_proj_bias.requires_grad_(attention.in_proj_weight.requires_grad)
        else:
            _copy(self._qkv("bias"), [attention.in_proj_bias])
        return attention

    def _qkv(self, kind: str) -> list[Tensor]:
        return [getattr(linear, kind) for linear in (self.W_query, self.W_key, self.W_value)]

    def forward(self, x: Tensor, key_mask: Tensor | None = None, *, context: Tensor | None = None) -> Tensor:
        """Context vectors; shapes and ``key_mask`` as in ``SelfAttention_v1.forward``.

        With ``context`` (…, context_tokens, d_in), queries come from x, and keys and values from ``context``: this is
        cross-attention, it needs ``is_causal=False``, and ``key_mask`` then marks the real tokens of ``context``. The
        context vectors of padding in x are what ``out_proj`` makes of zeros.
        """
        check_input(x, self.d_in, self.context_length)
        if context is not None:
            axes = "batch context_tokens d_in" if x.ndim == 3 else "context_tokens d_in"
            check_tensor("context", context, axes, {"batch": len(x), "d_in": self.d_in})
            if self.is_causal:
                raise ValueError("context needs is_causal=False: its tokens are neither before nor after those of x")
        source, mask = hide_padding(x if context is None else context, key_mask)
        query = self._project(source if context is None else x, "query")
        key, value = self._project(source, "key"), self._project(source, "value")
        visible = None if mask is None else mask.unsqueeze(-3)  # (…, 1, 1, tokens)
        heads = fused_attention(query, key, value, visible, self.is_causal, None, active_dropout(self.dropout))
        joined = heads.transpose(-2, -3).flatten(-2)  # (…, tokens, d_out)
        return self.out_proj(blank(joined, mask) if context is None else joined)

    def _project(self, x: Tensor, name: str) -> Tensor:
        """The queries, keys or values of x, (…, num_heads, tokens, head_dim)."""
        return super()._project(x, name).unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)


def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    """Copy parameters into others that hold the same rows, cut elsewhere, and whether they are trained."""
    for part, target in zip(torch.cat(sources).detach().chunk(len(targets)), targets):
        target.detach().copy_(part)
        target.requires_grad_(any(source.requires_grad for source in sources))
