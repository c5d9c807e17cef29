"""What a search of the memory brings back, in both layouts, and attention over it."""

from typing import NamedTuple

import torch
from torch import Tensor

from attnlib._validate import check_count, check_same, check_shape, check_tensor
from attnlib.attend import Attended, attend


class MemoryHits(NamedTuple):
    """The best memories of each token and head, best first; of equal scores the newer one first.

    Attributes:
        keys: (batch, heads, tokens, top_k, head_dim), without gradient.
        values: (batch, heads, tokens, top_k, value_dim), without gradient.
        scores: (batch, heads, tokens, top_k), the plain dot product of the query with each key, not scaled, in float32
            at least; the gradient flows to the query.
        ids: (batch, heads, tokens, top_k), int64: the how-manieth memory of its row each one is, counted from 0.
        mask: (batch, heads, tokens, top_k), boolean, True = a memory. Where a row holds fewer than top_k, the rest is
            False, with keys and values 0, score −inf and id −1.
    """

    keys: Tensor
    values: Tensor
    scores: Tensor
    ids: Tensor
    mask: Tensor

    def stacked(self) -> Tensor:
        """Give keys and values as one tensor, (batch, tokens, top_k, 2, head_dim): keys at 0, values at 1 of the 2.

        Raises:
            ValueError: the memory has more than one head, or head_dim differs from value_dim.

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
    """Cut what a memory of one head brought back into the pieces that several heads work on.

    These are steps 1 to 3 of the note on shapes: take keys and values apart, cut embed_dim into (heads, head_dim), pull
    the heads forward, and for the keys head_dim too. The scores of step 4 are then ``query.unsqueeze(-2) @ keys``.

    Args:
        stacked: (b_s, seq_len, top_k, 2, embed_dim), as from ``MemoryHits.stacked``.
        num_heads: how many heads; divides embed_dim.

    Returns:
        keys (b_s, num_heads, seq_len, head_dim, top_k) and values (b_s, num_heads, seq_len, top_k, head_dim).

    Raises:
        TypeError: ``stacked`` is no floating-point tensor, ``num_heads`` no int.
        ValueError: another shape, or embed_dim not divisible by ``num_heads``.

    >>> keys, values = split_memory_heads(torch.rand(2, 7, 5, 2, 12), num_heads=3)
    >>> keys.shape, values.shape
    (torch.Size([2, 3, 7, 4, 5]), torch.Size([2, 3, 7, 5, 4]))
    """
    check_tensor("stacked", stacked)
    check_shape("stacked", stacked, "b_s seq_len top_k two embed_dim", {"two": 2})
    check_count("num_heads", num_heads)
    embed_dim = stacked.shape[-1]
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim must be divisible by num_heads; got {embed_dim} and num_heads={num_heads}")
    keys, values = stacked.unbind(-2)  # 1. (b_s, seq_len, top_k, embed_dim), twice
    keys = keys.unflatten(-1, (num_heads, -1))  # 2. (b_s, seq_len, top_k, num_heads, head_dim)
    values = values.unflatten(-1, (num_heads, -1))
    keys = keys.permute(0, 3, 1, 4, 2)  # 3. (b_s, num_heads, seq_len, head_dim, top_k)
    return keys, values.permute(0, 3, 1, 2, 4)  # 3. (b_s, num_heads, seq_len, top_k, head_dim)


def topk_attend(query: Tensor, hits: MemoryHits, *, scale: float | None = None) -> Attended:
    """Let each token attend to the memories that were found for it, and to no others.

    Formula: as ``attend``, with j running over the token's own top_k: ``scores_tj = scale · q_t · k_tj``. The keys are
    scored again with ``query``, which so gets its gradient.

    Args:
        query: (batch, heads, tokens, head_dim).
        hits: what ``KVMemory.search`` found, with keys (batch, heads, tokens, top_k, head_dim). The heads may also be
            1: then every head attends to the same memories.
        scale: factor on the scores; ``1/√head_dim`` where it is left out.

    Returns:
        ``Attended`` with output (batch, heads, tokens, value_dim) and logsumexp (batch, heads, tokens); zeros and −inf
        where nothing was found. ``merge`` joins it with attention to other keys.

    Raises:
        TypeError: ``query`` is no floating-point tensor, ``hits`` no ``MemoryHits``, or dtypes differ.
        ValueError: shapes or devices do not fit.

    Source: Wu et al. 2022 (Memorizing Transformers), section 3.2.

    >>> from attnlib.memory import KVMemory
    >>> memory = KVMemory(capacity=4, num_heads=1, head_dim=2)
    >>> memory.add(torch.eye(2)[None, None], torch.eye(2)[None, None])
    >>> query = torch.tensor([[[[0.0, 2**0.5]]]])
    >>> topk_attend(query, memory.search(query, top_k=2)).output  # [1, e] / (1 + e), whichever comes first
    tensor([[[[0.2689, 0.7311]]]])
    """
    return attend_hits(query, hits, scale=scale)


def attend_hits(query: Tensor, hits: MemoryHits, *, scale: float | None = None, dropout_p: float = 0.0) -> Attended:
    """``topk_attend`` with dropout on the weights."""
    check_hits(query, hits)
    output, logsumexp = attend(
        query.unsqueeze(-2),  # (batch, heads, tokens, 1, head_dim): every token is a batch of its own, with one query
        hits.keys,
        hits.values,
        hits.mask.unsqueeze(-2),
        scale=scale,
        dropout_p=dropout_p,
    )
    return Attended(output.squeeze(-2), logsumexp.squeeze(-1))


def check_hits(query: Tensor, hits: MemoryHits) -> None:
    """The query and its hits belong together; the mask is looked at by ``attend``."""
    check_tensor("query", query)
    check_shape("query", query, "batch heads tokens head_dim")
    if not isinstance(hits, MemoryHits):
        raise TypeError(f"hits must be MemoryHits; got {type(hits).__name__}")
    check_tensor("hits.keys", hits.keys)
    check_tensor("hits.values", hits.values)
    check_same(query=query, **{"hits.keys": hits.keys, "hits.values": hits.values})
    batch, heads, tokens, head_dim = query.shape
    sizes = {"batch": batch, "tokens": tokens, "head_dim": head_dim}
    if hits.keys.ndim == 5 and hits.keys.shape[1] != 1:
        sizes["heads"] = heads
    check_shape("hits.keys", hits.keys, "batch heads tokens top_k head_dim", sizes)
    if not isinstance(hits.mask, Tensor):
        raise TypeError(f"hits.mask must be a boolean tensor, True = a memory; got {type(hits.mask).__name__}")
    for name, tensor, axes in (("values", hits.values, " value_dim"), ("mask", hits.mask, "")):
        of_keys = dict(zip(("batch", "heads", "tokens", "top_k"), hits.keys.shape))
        check_shape(f"hits.{name}", tensor, f"batch heads tokens top_k{axes}", of_keys)
