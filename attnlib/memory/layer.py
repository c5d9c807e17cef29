"""Causal attention that also reads, and then writes, a memory of what came before."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlib._validate import check_count, check_input, check_probability
from attnlib.attend import Attended, attend, attention, attention_weights, merge
from attnlib.memory.hits import MemoryHits, attend_hits
from attnlib.memory.kv_memory import KVMemory
from attnlib.multi_head import join_heads, split_heads


class MemoryAttention(nn.Module):
    """Causal multi-head attention whose tokens also see the best memories of what came before x.

    Formula: with unit queries and keys, ``scores = q · k / temperature``. Local scores run over the tokens of x up to
    each one, memory scores over its top_k memories. ``fusion="joint"`` takes one softmax over both;
    ``fusion="gate"`` takes two, and mixes: ``g · memory + (1 − g) · local`` with ``g = sigmoid(gate)`` for each head.
    The heads are joined and go through ``out_proj``.

    Args:
        d_in: size of a token's vector.
        d_out: size of a context vector.
        context_length: the most tokens that x may have.
        dropout: share of the weights dropped while training, 0 … 1.
        num_heads: how many heads.
        top_k: how many memories each token and head may see.
        fusion: "joint" or "gate".
        qkv_bias: whether W_query, W_key and W_value have a bias; ``out_proj`` always has one.
        head_dim: size of each head's queries, keys and values: ``d_out / num_heads`` where it is left out, so that the
            heads are cut from d_out; ``d_out`` gives every head the complete size.

    Attributes:
        W_query, W_key, W_value: ``nn.Linear(d_in, num_heads · head_dim)``; out_proj:
            ``nn.Linear(num_heads · head_dim, d_out)``; created in this order.
        log_temperature: (num_heads,), learned, log 0.1 at first. gate: (num_heads,), 0 at first; None for "joint".

    Raises:
        TypeError, ValueError: a size or an option that cannot be, or d_out not divisible by ``num_heads``.

    Source: Wu et al. 2022 (Memorizing Transformers), section 3; unit queries and keys: Henry et al. 2020 (Query-Key
    Normalization for Transformers), section 2.

    >>> layer = MemoryAttention(d_in=3, d_out=4, context_length=6, dropout=0.0, num_heads=2)
    >>> memory = layer.new_memory(capacity=100, batch_size=5)
    >>> for segment in torch.rand(5, 18, 3).split(6, dim=1):
    ...     context = layer(segment, memory)
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
        sizes = {"d_in": d_in, "d_out": d_out, "context_length": context_length, "num_heads": num_heads}
        for name, size in {**sizes, "top_k": top_k}.items():
            check_count(name, size)
        check_probability("dropout", dropout)
        if fusion not in ("joint", "gate"):
            raise ValueError(f'fusion must be "joint" or "gate"; got {fusion!r}')
        if head_dim is None:
            if d_out % num_heads:
                raise ValueError(f"d_out must be divisible by num_heads; got d_out={d_out}, num_heads={num_heads}")
            head_dim = d_out // num_heads
        check_count("head_dim", head_dim)
        self.context_length, self.num_heads, self.head_dim = context_length, num_heads, head_dim
        self.top_k, self.fusion = top_k, fusion
        self.W_query = nn.Linear(d_in, num_heads * head_dim, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, num_heads * head_dim, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, num_heads * head_dim, bias=qkv_bias)
        self.out_proj = nn.Linear(num_heads * head_dim, d_out)
        self.dropout = nn.Dropout(dropout)
        self.log_temperature = nn.Parameter(torch.full((num_heads,), math.log(0.1)))
        self.gate = nn.Parameter(torch.zeros(num_heads)) if fusion == "gate" else None

    def new_memory(self, capacity: int, *, batch_size: int = 1) -> KVMemory:
        """Make an empty memory that fits this layer: its heads, its dtype, its device."""
        weight = self.W_key.weight
        return KVMemory(
            capacity,
            self.num_heads,
            self.head_dim,
            batch_size=batch_size,
            dtype=weight.dtype,
            device=weight.device,
        )

    def forward(self, x: Tensor, memory: KVMemory | None = None) -> Tensor:
        """Give the context vectors of x, and then add the keys and values of x to the memory.

        Args:
            x: (batch, tokens, d_in), or (tokens, d_in) as one row.
            memory: of the same batch, from ``new_memory``. Without it, and for each row that holds nothing yet, this is
                causal attention.

        Returns:
            (batch, tokens, d_out), or (tokens, d_out).

        Raises:
            TypeError: x is no tensor of the layer's dtype, or ``memory`` no ``KVMemory``.
            ValueError: a shape, a size or a device does not fit. The memory is then as it was.
        """
        query, key, value = self._heads(x)
        dropout_p = self.dropout.p if self.training else 0.0
        if memory is None:
            heads = attention(query, key, value, is_causal=True, scale=1.0, dropout_p=dropout_p)
        else:
            local = attend(query, key, value, is_causal=True, scale=1.0, dropout_p=dropout_p)
            hits = self._search(query, memory)
            remote = attend_hits(query, hits, scale=1.0, dropout_p=dropout_p)
            heads = self._fuse(local, remote)
            memory.add(key.to(memory.dtype), value.to(memory.dtype))  # written after it was read
        context = self.out_proj(join_heads(heads))  # (batch, tokens, d_out)
        return context if x.ndim == 3 else context.squeeze(0)

    def read(self, x: Tensor, memory: KVMemory) -> MemoryHits:
        """Find the memories that ``forward(x, memory)`` would see, and leave the memory as it is."""
        return self._search(self._heads(x)[0], memory)

    def attention_weights(self, x: Tensor, memory: KVMemory | None = None) -> Tensor:
        """Weights before dropout, (…, num_heads, tokens, found + tokens): memories first, as ``read`` orders them, then
        the tokens of x. Rows sum to one. ``found`` is top_k, or the memory's capacity where that is less; 0 without
        memory."""
        query, key, value = self._heads(x)
        weights = attention_weights(query, key, is_causal=True, scale=1.0)  # (batch, num_heads, tokens, tokens)
        if memory is not None:
            hits = self._search(query, memory)
            found = attention_weights(query.unsqueeze(-2), hits.keys, hits.mask.unsqueeze(-2), scale=1.0).squeeze(-2)
            local = attend(query, key, value, is_causal=True, scale=1.0)
            share = self._memory_share(local, attend_hits(query, hits, scale=1.0)).unsqueeze(-1).to(weights.dtype)
            weights = torch.cat((share * found, (1 - share) * weights), dim=-1)
        return weights if x.ndim == 3 else weights.squeeze(0)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit queries over the temperature, unit keys, and values, each (batch, num_heads, tokens, head_dim)."""
        check_input(x, self.W_query.in_features, self.context_length)
        rows = x if x.ndim == 3 else x.unsqueeze(0)
        query, key, value = (
            split_heads(linear(rows), self.num_heads) for linear in (self.W_query, self.W_key, self.W_value)
        )
        dtype = torch.promote_types(value.dtype, torch.float32)  # in float16 normalising a zero vector divides by 0
        query, key = (F.normalize(t.to(dtype), dim=-1) for t in (query, key))
        query = query / self.log_temperature.exp()[:, None, None]
        return query.to(value.dtype), key.to(value.dtype), value

    def _search(self, query: Tensor, memory: KVMemory) -> MemoryHits:
        if not isinstance(memory, KVMemory):
            raise TypeError(f"memory must be a KVMemory; got {type(memory).__name__}")
        for name, size in {"num_heads": self.num_heads, "head_dim": self.head_dim, "value_dim": self.head_dim}.items():
            if getattr(memory, name) != size:  # the batch is looked at by search
                raise ValueError(f"memory must have {name}={size}, like the layer; got {getattr(memory, name)}")
        hits = memory.search(query.detach().to(memory.dtype), min(self.top_k, memory.capacity))
        return hits._replace(keys=hits.keys.to(query.dtype), values=hits.values.to(query.dtype))

    def _fuse(self, local: Attended, remote: Attended) -> Tensor:
        if self.gate is None:
            return merge([local, remote]).output
        share = self._memory_share(local, remote).unsqueeze(-1).to(local.output.dtype)
        return share * remote.output + (1 - share) * local.output

    def _memory_share(self, local: Attended, remote: Attended) -> Tensor:
        """How much of each token's weight lies on the memory, (batch, num_heads, tokens); 0 where it found nothing."""
        if self.gate is None:
            return (remote.logsumexp - merge([local, remote]).logsumexp).exp()
        return torch.where(remote.logsumexp == -torch.inf, 0.0, self.gate.sigmoid()[:, None])
