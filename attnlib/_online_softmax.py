"""Attention one block of scores at a time, forward and backward. Chunked and sharded attention are built on it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attnlib.attend import Attended, logsumexp_dtype, without_autocast

QKV = tuple[Tensor, Tensor, Tensor]


class Blocks(NamedTuple):
    """How the scores are cut into blocks, and which of them count."""

    scale: float
    block_size: int = 256  # the most queries, and the most keys, in one block
    mask: Tensor | None = None  # as in ``attend``
    lead: int | None = None  # query i may see keys j ≤ i + lead, so 0 means causal attention; None hides nothing

    def pairs(self, query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice, Tensor | None]]:
        """Yield the rows, columns and mask of each block in which some query may see some key."""
        q_tokens, kv_tokens, size = query.shape[-2], key.shape[-2], self.block_size
        mask = None if self.mask is None else self.mask.broadcast_to((*self.mask.shape[:-2], q_tokens, kv_tokens))
        for row in range(0, q_tokens, size):
            rows = slice(row, min(row + size, q_tokens))
            for column in range(0, kv_tokens, size):
                columns = slice(column, min(column + size, kv_tokens))
                if self.lead is not None and column > rows.stop - 1 + self.lead:
                    break  # from here on, every key is in the future of every row
                block = None if mask is None else mask[..., rows, columns]
                if self.lead is not None and columns.stop - 1 > row + self.lead:  # on the diagonal
                    past = query.new_ones(rows.stop - row, columns.stop - column, dtype=torch.bool)
                    past = past.tril(row + self.lead - column)
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
        return cls(numerator, numerator.sum(-1), numerator.sum(-1) - torch.inf)

    def update(self, query: Tensor, key: Tensor, value: Tensor, blocks: Blocks) -> None:
        """Add more keys to the average, in place, block by block.

        Formula: ``top' = max(top, max_j scores_j)``; the sums so far shrink by ``exp(top − top')``, and each new key
        adds ``exp(scores_j − top')``. No exponent is ever positive.

        Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax".
        """
        with without_autocast(query.device):
            for rows, _, (_, _, v), scores in self._blocks((query, key, value), blocks):
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

    def gradients(self, qkv: QKV, gradient: Attended, blocks: Blocks) -> QKV:
        """Gradients of query, key and value, in float32 or wider; the weights are recomputed block by block.

        Formula: with ``w_ij = exp(scores_ij − top_i) / total_i``, ``dv_j = Σ_i w_ij do_i`` and
        ``dscores_ij = w_ij (do_i · v_j − do_i · o_i + dlogsumexp_i)``. Since top and total cover *all* keys, key and
        value may be just some of them: the gradients of the parts add up. ``gradient`` is that of ``attended()``.

        Source: Dao et al. 2022 (FlashAttention), appendix B.4, plus a term for the log-sum-exp.
        """
        grad_query, grad_key, grad_value = (torch.zeros_like(t, dtype=self.total.dtype) for t in qkv)
        top, total = (t[..., None] for t in self._finite())  # (…, q_tokens, 1)
        grad_output = gradient.output / total  # divide here, once, rather than every weight
        grad_logsumexp = gradient.logsumexp.to(total.dtype)[..., None].masked_fill(self.total[..., None] == 0, 0.0)
        shift = (grad_output * self.numerator).sum(-1, keepdim=True) / total - grad_logsumexp / total
        with without_autocast(total.device):
            for rows, columns, (q, k, v), scores in self._blocks(qkv, blocks):
                d_out = grad_output[..., rows, :]
                weights = scores.sub_(top[..., rows, :]).exp_()  # (…, rows, columns), times total
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

    def _blocks(self, qkv: QKV, blocks: Blocks) -> Iterator[tuple[slice, slice, QKV, Tensor]]:
        """Yield the rows, columns, scaled queries, keys and values, and scores of each block, in the sums' dtype."""
        (query, key, value), leading, dtype = qkv, self.total.shape[:-1], self.total.dtype
        for rows, columns, mask in blocks.pairs(query, key):
            q = query[..., rows, :].to(dtype) * blocks.scale
            k, v = key[..., columns, :].to(dtype), value[..., columns, :].to(dtype)
            scores = q @ k.mT
            if scores.shape[:-2] != leading:  # axes that only value has, too, because scores are changed in place
                scores = scores.expand(*leading, -1, -1).clone()
            yield rows, columns, (q, k, v), scores if mask is None else scores.masked_fill_(~mask, -torch.inf)
