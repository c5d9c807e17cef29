"""Attention one block of scores at a time, forward and backward. Chunked and sharded attention are built on it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attnlib.attend import Attended, logsumexp_dtype, without_autocast


class Blocks(NamedTuple):
    """How the scores are cut into blocks, and which of them count."""

    scale: float
    block_size: int = 256  # the most queries, and the most keys, in one block
    mask: Tensor | None = None  # as in ``attend``
    lead: int | None = None  # query i may see keys j ≤ i + lead, so 0 means causal attention; None hides nothing

    def pairs(self, query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice, Tensor | None]]:
        """Yield the rows, columns and mask of each block in which some query may see some key."""
        q_tokens, kv_tokens, size = query.shape[-2], key.shape[-2], self.block_size
        mask = self.mask
        if mask is not None:
            mask = mask.broadcast_to((*mask.shape[:-2], q_tokens, kv_tokens))  # a view
        for row in range(0, q_tokens, size):
            rows = slice(row, min(row + size, q_tokens))
            for column in range(0, kv_tokens, size):
                columns = slice(column, min(column + size, kv_tokens))
                if self.lead is not None and columns.start > rows.stop - 1 + self.lead:
                    break  # from here on, every key is in the future of every row
                block = None if mask is None else mask[..., rows, columns]
                if self.lead is not None and columns.stop - 1 > rows.start + self.lead:  # on the diagonal
                    i = torch.arange(rows.start, rows.stop, device=query.device)
                    j = torch.arange(columns.start, columns.stop, device=query.device)
                    past = j <= i[:, None] + self.lead
                    block = past if block is None else block & past
                yield rows, columns, block


@dataclass(eq=False)
class OnlineSoftmax:
    """The softmax-weighted average over the keys seen so far, before the division; in float32 or wider.

    ``output = numerator / total`` and ``logsumexp = top + log(total)``. We keep ``top`` and ``total`` apart because
    their sum would be rounded: float32 has steps of 0.001 near 10⁴, and the weights would be off by as much.

    Attributes:
        numerator: (…, q_tokens, value_dim), ``Σ_j exp(scores_ij − top_i) · v_j``.
        total: (…, q_tokens), ``Σ_j exp(scores_ij − top_i)``; 0 for a query that has seen no key.
        top: (…, q_tokens), the largest score so far; −inf for a query that has seen no key.
    """

    numerator: Tensor
    total: Tensor
    top: Tensor

    @classmethod
    def start(cls, query: Tensor, key: Tensor, value: Tensor) -> "OnlineSoftmax":
        """The average over no keys at all."""
        dtype = torch.promote_types(query.dtype, torch.float32)
        leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
        numerator = query.new_zeros(*leading, query.shape[-2], value.shape[-1], dtype=dtype)
        total = numerator.new_zeros(numerator.shape[:-1])
        return cls(numerator, total, torch.full_like(total, -torch.inf))

    def update(self, query: Tensor, key: Tensor, value: Tensor, blocks: Blocks) -> None:
        """Add more keys to the average, in place, block by block.

        Formula: ``top' = max(top, max_j scores_j)``; the sums so far shrink by ``exp(top − top')``, and each new key
        adds ``exp(scores_j − top')``. No exponent is ever positive.

        Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax".
        """
        with without_autocast(query.device):
            for rows, columns, mask in blocks.pairs(query, key):
                q, k, v = self._cut(query, key, value, rows, columns)
                scores = self._scores(q * blocks.scale, k)
                if mask is not None:
                    scores = scores.masked_fill(~mask, -torch.inf)
                numerator, total, top = self.numerator[..., rows, :], self.total[..., rows], self.top[..., rows]
                new_top = torch.maximum(top, scores.amax(-1))
                finite = new_top.masked_fill(new_top == -torch.inf, 0.0)  # −inf − −inf would be NaN
                weights = scores.sub_(finite[..., None]).exp_()
                shrink = (top - finite).exp_()
                total.mul_(shrink).add_(weights.sum(-1))
                numerator.mul_(shrink[..., None]).add_(weights @ v)
                top.copy_(new_top)

    def attended(self) -> Attended:
        """Divide: the output and the log-sum-exp, or zeros and −inf for a query that has seen no key."""
        _, total = self._finite()
        return Attended(self.numerator / total[..., None], self.top.to(logsumexp_dtype(total)) + total.log())

    def gradients(
        self, qkv: tuple[Tensor, Tensor, Tensor], gradient: Attended, blocks: Blocks
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value, in float32 or wider; the weights are recomputed block by block.

        Formula: with ``w_ij = exp(scores_ij − top_i) / total_i``, ``dv_j = Σ_i w_ij do_i`` and
        ``dscores_ij = w_ij (do_i · v_j − do_i · o_i + dlogsumexp_i)``. Since top and total cover *all* keys, key and
        value may be just some of them: the gradients of the parts add up. ``gradient`` is that of ``attended()``.

        Source: Dao et al. 2022 (FlashAttention), appendix B.4, plus a term for the log-sum-exp.
        """
        query, key, value = qkv
        grad_query, grad_key, grad_value = (torch.zeros_like(t, dtype=self.total.dtype) for t in qkv)
        top, total = (t[..., None] for t in self._finite())  # (…, q_tokens, 1)
        grad_output = gradient.output / total  # divide here, once, rather than every weight
        grad_logsumexp = gradient.logsumexp.to(total.dtype)[..., None].masked_fill(self.total[..., None] == 0, 0.0)
        shift = (grad_output * self.numerator).sum(-1, keepdim=True) / total - grad_logsumexp / total
        with without_autocast(query.device):
            for rows, columns, mask in blocks.pairs(query, key):
                q, k, v = self._cut(query, key, value, rows, columns)
                q, d_out = q * blocks.scale, grad_output[..., rows, :]
                weights = self._scores(q, k).sub_(top[..., rows, :])
                if mask is not None:
                    weights = weights.masked_fill(~mask, -torch.inf)
                weights = weights.exp_()  # (…, rows, columns), total times too large
                grad_scores = (d_out @ v.mT).sub_(shift[..., rows, :]).mul_(weights)
                for whole, part in (
                    (grad_query[..., rows, :], grad_scores @ k * blocks.scale),
                    (grad_key[..., columns, :], grad_scores.mT @ q),
                    (grad_value[..., columns, :], weights.mT @ d_out),
                ):
                    whole += part.sum_to_size(whole.shape)
        return grad_query, grad_key, grad_value

    def _finite(self) -> tuple[Tensor, Tensor]:
        """top and total, replaced by 0 and 1 for a query that has seen no key."""
        blind = self.total == 0
        return self.top.masked_fill(blind, 0.0), self.total.masked_fill(blind, 1.0)

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        """(…, rows, columns) with all leading axes, even those that only value has, so they can be changed in place."""
        scores = q @ k.mT
        leading = self.total.shape[:-1]
        return scores if scores.shape[:-2] == leading else scores.expand(*leading, -1, -1).clone()

    def _cut(self, query: Tensor, key: Tensor, value: Tensor, rows: slice, columns: slice) -> Iterator[Tensor]:
        """The blocks of query, key and value, in the dtype of the sums."""
        return (t.to(self.total.dtype) for t in (query[..., rows, :], key[..., columns, :], value[..., columns, :]))
