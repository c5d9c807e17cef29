"""What a search of the memory returns, in both layouts, and attention over it."""

from typing import NamedTuple

import torch
from torch import Tensor

from attnlib._validate import check_boolean, check_counts, check_options, check_same, check_shape, check_tensor
from attnlib.attend import Attended, _average


class MemoryHits(NamedTuple):
    """The memories found for each token and head, best first; of equal scores the newer one first.

    Attributes:
        keys: (batch, heads, tokens, top_k, head_dim), without gradient.
        values: (batch, heads, tokens, top_k, value_dim), without gradient.
        scores: (batch, heads, tokens, top_k), the plain dot product of the query with each key, not scaled, in float32
            at least; the gradient flows to the query.
        ids: (batch, heads, tokens, top_k), int64: the index of each memory within its row, counted from 0.
        mask: (batch, heads, tokens, top_k), boolean, True = a memory. If fewer than top_k were found, the rest is
            False, with keys and values 0, score −inf and id −1.
    """

    keys: Tensor
    values: Tensor
    scores: Tensor
    ids: Tensor
    mask: Tensor

    def stacked(self) -> Tensor:
        """Return keys and values as one tensor, (batch, tokens, top_k, 2, head_dim), keys first. ValueError: the memory
        has more than one head, or head_dim differs from value_dim.

        >>> hits = MemoryHits(torch.rand(2, 1, 7, 3, 5), torch.rand(2, 1, 7, 3, 5), *[torch.empty(2, 1, 7, 3)] * 3)
        >>> hits.stacked().shape
        torch.Size([2, 7, 3, 2, 5])
        """
        if self.keys.shape[1] != 1:
            raise ValueError(f"stacked() needs hits of a memory with num_heads=1; got {self.keys.shape[1]} heads")
        if self.keys.shape != self.values.shape:
            head_dim, value_dim = self.keys.shape[-1], self.values.shape[-1]
            raise ValueError(f"stacked() needs head_dim equal to value_dim; got {head_dim} and {value_dim}")
        return torch.stack((self.keys, self.values), dim=-2).squeeze(1)  # (batch, tokens, top_k, 2, head_dim)


def split_memory_heads(stacked: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Split what a memory of one head returned into the pieces that several heads work on.

    Formula: separate keys from values, split embed_dim into (heads, head_dim), bring the heads forward, and for the
    keys bring head_dim forward too. The scores are then ``query.unsqueeze(-2) @ keys``.

    ``stacked`` is (b_s, seq_len, top_k, 2, embed_dim), as from ``MemoryHits.stacked``. Returns keys (b_s, num_heads,
    seq_len, head_dim, top_k) and values (b_s, num_heads, seq_len, top_k, head_dim). TypeError, ValueError: an argument
    has the wrong kind or shape, or embed_dim is not divisible by ``num_heads``.

    >>> keys, values = split_memory_heads(torch.rand(2, 7, 5, 2, 12), num_heads=3)
    >>> keys.shape, values.shape
    (torch.Size([2, 3, 7, 4, 5]), torch.Size([2, 3, 7, 5, 4]))
    """
    check_tensor("stacked", stacked, "b_s seq_len top_k two embed_dim", {"two": 2})
    check_counts(num_heads=num_heads)
    embed_dim = stacked.shape[-1]
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim must be divisible by num_heads; got {embed_dim} and num_heads={num_heads}")
    keys, values = stacked.unflatten(-1, (num_heads, -1)).unbind(3)  # (b_s, seq_len, top_k, num_heads, head_dim) each
    return keys.permute(0, 3, 1, 4, 2), values.permute(0, 3, 1, 2, 4)


def topk_attend(query: Tensor, hits: MemoryHits, *, scale: float | None = None) -> Attended:
    """Let each token attend to the memories that were found for it, and to no others.

    Formula: as ``attend``, with ``scores_tj = scale · q_t · k_tj`` for the token's own top_k. The scores are computed
    from ``query``, so it gets a gradient even if it is not the query that searched.

    ``query`` is (batch, heads, tokens, head_dim); ``hits`` are what ``KVMemory.search`` found, for as many heads, or
    for one that all share. Returns output (batch, heads, tokens, value_dim) and logsumexp (batch, heads, tokens);
    zeros and −inf where nothing was found. TypeError, ValueError: kinds, dtypes, shapes or devices do not fit.

    Source: Wu et al. 2022 (Memorizing Transformers), section 3.2.

    >>> from attnlib.memory import KVMemory
    >>> memory = KVMemory(capacity=4, num_heads=1, head_dim=2)
    >>> memory.add(torch.eye(2)[None, None], torch.eye(2)[None, None])
    >>> query = torch.tensor([[[[0.0, 2**0.5]]]])
    >>> topk_attend(query, memory.search(query, top_k=2)).output  # [1, e] / (1 + e), whichever comes first
    tensor([[[[0.2689, 0.7311]]]])
    """
    check_hits(query, hits)
    check_options(scale=scale)
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
    query = query.to(torch.promote_types(query.dtype, torch.float32)) * scale
    return average_values(score_keys(query, hits.keys, hits.mask), hits.values)


def score_keys(query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Score the memories found for each query: (batch, heads, tokens, top_k), in float32 or wider, −inf where masked.
    A sum of products, because a matrix product may round the same key differently in another place."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = (query.unsqueeze(-2).to(dtype) * keys.to(dtype)).sum(-1)
    return scores.masked_fill(~mask, -torch.inf)


def best_first(scores: Tensor, ids: Tensor) -> Tensor:
    """Positions that sort the last axis by descending score, and equal scores by descending id."""
    by_id = ids.argsort(-1, descending=True)
    return by_id.gather(-1, scores.gather(-1, by_id).argsort(dim=-1, descending=True, stable=True))


def average_values(scores: Tensor, values: Tensor, dropout_p: float = 0.0) -> Attended:
    """Softmax over the memories of each token, and the average of their values."""
    output, logsumexp = _average(scores.unsqueeze(-2), values, dropout_p)  # as a single query for each token
    return Attended(output.squeeze(-2), logsumexp.squeeze(-1))


def check_hits(query: Tensor, hits: MemoryHits) -> None:
    """Raise unless the query and its hits fit together."""
    check_tensor("query", query, "batch heads tokens head_dim")
    if not isinstance(hits, MemoryHits):
        raise TypeError(f"hits must be MemoryHits; got {type(hits).__name__}")
    check_tensor("hits.keys", hits.keys, "batch heads tokens top_k head_dim")
    sizes = dict(zip(("batch", "heads", "tokens", "head_dim"), query.shape), top_k=hits.keys.shape[3])
    if hits.keys.shape[1] == 1:  # all heads share the memories
        sizes["heads"] = 1
    check_shape("hits.keys", hits.keys, "batch heads tokens top_k head_dim", sizes)
    check_tensor("hits.values", hits.values, "batch heads tokens top_k value_dim", sizes)
    check_same(query=query, **{"hits.keys": hits.keys, "hits.values": hits.values})
    check_boolean("hits.mask", hits.mask, "a memory", "query", query.device)
    check_shape("hits.mask", hits.mask, "batch heads tokens top_k", sizes)
