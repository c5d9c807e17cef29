"""Causal attention that also looks up a memory of what came before."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlib._fused import fused_attention
from attnlib._validate import check_choice, check_counts, check_divisible, check_input, check_probability
from attnlib.attend import _average, _scores, _softmax, active_dropout, blank, hide_padding, merge
from attnlib.memory.hits import MemoryHits, average_values, check_hits, score_keys
from attnlib.memory.kv_memory import KVMemory
from attnlib.multi_head import join_heads, split_heads


class MemoryAttention(nn.Module):
    """Causal multi-head attention in which each token also sees the best memories of what came before x.

    Formula: queries and keys are scaled to length 1, and ``scores = q · k / temperature``. Local scores cover the
    tokens of x up to each one, memory scores its top_k memories. ``fusion="joint"`` takes one softmax over both;
    ``fusion="gate"`` takes two and mixes them: ``g · memory + (1 − g) · local`` with ``g = sigmoid(gate)`` for each
    head. The heads are joined and go through ``out_proj``.

    ``forward`` only reads. Call ``remember`` after it to store; before it, tokens would find themselves in the memory.

    Args:
        d_in, d_out, context_length, dropout, num_heads, qkv_bias: as in ``MultiHeadAttention``.
        top_k: how many memories each token and head may see.
        fusion: "joint" or "gate".
        head_dim: size of each head's queries, keys and values; default: ``d_out / num_heads``.

    W_query, W_key and W_value are ``nn.Linear(d_in, num_heads · head_dim)``, out_proj is
    ``nn.Linear(num_heads · head_dim, d_out)``, created in this order. ``log_temperature``, (num_heads,), is learned and
    starts at log 0.1; ``gate``, (num_heads,), starts at 0, and is None for "joint". TypeError, ValueError: an invalid
    size or option, or d_out is not divisible by ``num_heads``.

    Source: Wu et al. 2022 (Memorizing Transformers), section 3; unit queries and keys: Henry et al. 2020 (Query-Key
    Normalization for Transformers), section 2.

    >>> layer = MemoryAttention(d_in=3, d_out=4, context_length=6, dropout=0.0, num_heads=2)
    >>> memory = layer.new_memory(capacity=100, batch_size=5)
    >>> for segment in torch.rand(5, 18, 3).split(6, dim=1):
    ...     context = layer(segment, memory)
    ...     layer.remember(segment, memory)
    >>> context.shape, len(memory)
    (torch.Size([5, 6, 4]), 18)
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        *,
        top_k: int = 32,
        fusion: str = "joint",
        qkv_bias: bool = False,
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_counts(d_in=d_in, d_out=d_out, context_length=context_length, num_heads=num_heads, top_k=top_k)
        check_probability("dropout", dropout)
        check_choice("fusion", fusion, "joint", "gate")
        if head_dim is None:
            check_divisible(d_out=d_out, num_heads=num_heads)
            head_dim = d_out // num_heads
        check_counts(head_dim=head_dim)
        self.d_in, self.context_length, self.num_heads, self.head_dim = d_in, context_length, num_heads, head_dim
        self.top_k, self.fusion = top_k, fusion
        width = num_heads * head_dim
        self.W_query, self.W_key, self.W_value = (nn.Linear(d_in, width, bias=qkv_bias) for _ in range(3))
        self.out_proj = nn.Linear(width, d_out)
        self.dropout = nn.Dropout(dropout)
        self.log_temperature = nn.Parameter(torch.full((num_heads,), math.log(0.1)))
        self.gate = nn.Parameter(torch.zeros(num_heads)) if fusion == "gate" else None

    def new_memory(self, capacity: int, *, batch_size: int = 1) -> KVMemory:
        """Make an empty memory that fits this layer, with its heads, dtype and device."""
        like = self.log_temperature
        return KVMemory(
            capacity, self.num_heads, self.head_dim, batch_size=batch_size, dtype=like.dtype, device=like.device
        )

    def forward(self, x: Tensor, memory: KVMemory | MemoryHits | None = None, key_mask: Tensor | None = None) -> Tensor:
        """Compute the context vectors of x; shapes and ``key_mask`` as in ``SelfAttention_v1.forward``, except that the
        context vectors of padding are what ``out_proj`` makes of zeros.

        ``memory`` comes from ``new_memory`` and has as many rows as x, or 1 for a single text. Or it is the hits that
        ``read`` found there. Without it, and for each row that holds nothing yet, this is causal attention.

        ``torch.utils.checkpoint`` recomputes forward during the backward pass, and raises a RuntimeError if the memory
        has changed by then. To call ``remember`` before that, read outside the checkpoint:
        ``checkpoint(layer, x, layer.read(x, memory))``. ``torch.export`` and ``torch.func.vmap`` cannot search a
        memory, so they need the hits as well. TypeError, ValueError: x or ``memory`` is of the wrong kind, dtype,
        shape, size or device.
        """
        rows, visible = self._rows(x, key_mask)
        query, (key, value) = self._query(rows), self._key_value(rows)
        dropout_p = active_dropout(self.dropout)
        if memory is None:
            heads = fused_attention(query, key, value, visible, is_causal=True, scale=1.0, dropout_p=dropout_p)
        else:
            hits = self._find(query, memory)
            local = _average(_scores(query, key, visible, True, 1.0), value, dropout_p)
            remote = average_values(hits.scores, hits.values.to(value.dtype), dropout_p)
            if self.gate is None:
                heads = merge([local, remote]).output
            else:
                share = _memory_share(self.gate, hits).to(value.dtype)
                heads = share * remote.output + (1 - share) * local.output
        context = self.out_proj(join_heads(blank(heads, visible)))  # (batch, tokens, d_out)
        if isinstance(memory, KVMemory):
            context = memory._guard(context)
        return context if x.ndim == 3 else context.squeeze(0)

    def remember(self, x: Tensor, memory: KVMemory, key_mask: Tensor | None = None) -> None:
        """Store the keys and values of the real tokens of x in the memory, without their gradient. Arguments are those
        of ``forward``, errors also those of ``KVMemory.add``; after an error, the memory is as it was."""
        with torch.no_grad():
            rows, visible = self._rows(x, key_mask)
            self._check_memory(memory)
            key, value = self._key_value(rows)
        memory.add(key.to(memory.dtype), value.to(memory.dtype), None if visible is None else visible[:, 0, 0])

    @torch.no_grad()
    def read(self, x: Tensor, memory: KVMemory, key_mask: Tensor | None = None) -> MemoryHits:
        """Find the memories that ``forward(x, memory, key_mask)`` sees. They have no gradient."""
        return self._find(self._query(self._rows(x, key_mask)[0]), memory)

    def attention_weights(
        self, x: Tensor, memory: KVMemory | MemoryHits | None = None, key_mask: Tensor | None = None
    ) -> Tensor:
        """Weights before dropout, (…, num_heads, tokens, found + tokens): memories first, in the order of ``read``,
        then the tokens of x. Rows sum to one, or to zero for padding. ``found`` is top_k, or the memory's
        capacity if that is smaller; 0 without memory. Arguments as in ``forward``."""
        rows, visible = self._rows(x, key_mask)
        query, (key, _) = self._query(rows), self._key_value(rows)
        local = _scores(query, key, visible, True, 1.0)  # (batch, num_heads, tokens, tokens)
        hits = None if memory is None else self._find(query, memory)
        if hits is None:
            weights, _ = _softmax(local)
        elif self.gate is None:
            weights, _ = _softmax(torch.cat((hits.scores, local), dim=-1))
        else:
            share = _memory_share(self.gate, hits)
            weights = torch.cat((share * _softmax(hits.scores)[0], (1 - share) * _softmax(local)[0]), dim=-1)
        weights = blank(weights.to(query.dtype), visible)
        return weights if x.ndim == 3 else weights.squeeze(0)

    def _rows(self, x: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x as (batch, tokens, d_in) with zeros as padding, and which tokens are real, (batch, 1, 1, tokens)."""
        check_input(x, self.d_in, self.context_length)
        x, mask = hide_padding(x, key_mask)
        rows = x if x.ndim == 3 else x.unsqueeze(0)
        return rows, None if mask is None else mask.view(len(rows), 1, 1, -1)

    def _query(self, rows: Tensor) -> Tensor:
        """Unit queries divided by the temperature, (batch, num_heads, tokens, head_dim)."""
        query = self.W_query(rows)
        return (_unit(split_heads(query, self.num_heads)) / self.log_temperature.exp()[:, None, None]).to(query.dtype)

    def _key_value(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Unit keys, and values, each (batch, num_heads, tokens, head_dim)."""
        key, value = (split_heads(linear(rows), self.num_heads) for linear in (self.W_key, self.W_value))
        return _unit(key).to(key.dtype), value

    def _check_memory(self, memory: object) -> None:
        if not isinstance(memory, KVMemory):
            raise TypeError(f"memory must be a KVMemory; got {type(memory).__name__}")
        for name, size in {"num_heads": self.num_heads, "head_dim": self.head_dim, "value_dim": self.head_dim}.items():
            if getattr(memory, name) != size:  # the memory itself checks the batch
                raise ValueError(f"memory must have {name}={size}, like the layer; got {getattr(memory, name)}")

    def _find(self, query: Tensor, memory: KVMemory | MemoryHits) -> MemoryHits:
        """The hits of each query; their scores carry its gradient."""
        if isinstance(memory, MemoryHits):
            query = query.to(memory.keys.dtype)
            check_hits(query, memory)
            return memory._replace(scores=score_keys(query, memory.keys, memory.mask))
        self._check_memory(memory)
        return memory.search(query.to(memory.dtype), min(self.top_k, memory.capacity))


def _memory_share(gate: Tensor, hits: MemoryHits) -> Tensor:
    """The share of each token's weight that falls on the memory, (batch, num_heads, tokens, 1); 0 without hits."""
    return gate.sigmoid()[:, None, None].masked_fill((hits.scores == -torch.inf).all(-1, keepdim=True), 0.0)


def _unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1, in float32 or wider: in float16, normalising a zero vector divides by 0."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)
