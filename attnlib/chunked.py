"""Attention one block of scores at a time, forward and backward; attention over several machines is built on it too."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attnlib._validate import check_counts, check_qkv
from attnlib.attend import Attended, blank, logsumexp_dtype, without_autocast

QKV = tuple[Tensor, Tensor, Tensor]


def chunked_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    block_size: int = 256,
) -> Attended:
    """Compute what ``attend`` computes, one block of scores at a time, in memory linear in the tokens.

    Formula: ``merge_b(attend(query, key_b, value_b))`` over blocks b of the keys, each merged as soon as it is computed
    (online softmax). The backward pass recomputes the weights of each block, so it stores no scores either.

    For each leading index, at most ``block_size`` queries times ``block_size`` keys have scores at one time; with
    ``is_causal``, blocks in the future cost nothing. Other arguments, result and errors are as in ``attend``.
    NotImplementedError: under ``torch.vmap``, or if its gradient is differentiated again; ``attend`` can do both.

    Source: Dao et al. 2022 (FlashAttention), section 3.1; Rabe and Staats 2021, "Self-attention does not need O(n²)
    memory".

    >>> from attnlib.attend import attend
    >>> query, key, value = torch.randn(7, 5), torch.randn(11, 5), torch.randn(11, 3)
    >>> chunked = chunked_attend(query, key, value, block_size=2)
    >>> torch.allclose(chunked.output, attend(query, key, value).output, atol=1e-6)
    True
    """
    check_qkv(query, key, value, mask, is_causal, scale)
    check_counts(block_size=block_size)
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
    blocks = Blocks(scale, block_size, lead=0 if is_causal else None)
    key, value = blank(key, mask), blank(value, mask)
    return Attended(*_Chunked.apply(query, key, value, mask, blocks)[:2])


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


class _Chunked(torch.autograd.Function):
    """Output and log-sum-exp, and what the backward pass needs: numerator, total and top."""

    @staticmethod
    def forward(query, key, value, mask, blocks):
        softmax = OnlineSoftmax.start(query, key, value)
        softmax.update(query, key, value, blocks._replace(mask=mask))
        output, logsumexp = softmax.attended()
        return output.to(value.dtype), logsumexp, softmax.numerator, softmax.total, softmax.top

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, ctx.blocks = inputs
        ctx.save_for_backward(*tensors, *outputs[2:])
        ctx.mark_non_differentiable(*outputs[2:])

    @staticmethod
    def backward(ctx, grad_output, grad_logsumexp, *_):
        return *_ChunkedGradient.apply(*ctx.saved_tensors, grad_output, grad_logsumexp, ctx.blocks), None, None

    @staticmethod
    def vmap(info, in_dims, *inputs):
        raise NotImplementedError("torch.vmap cannot map chunked_attend; make samples a leading axis, or use attend")


class _ChunkedGradient(torch.autograd.Function):
    """A separate step, so that a second derivative raises an error instead of giving a wrong number."""

    @staticmethod
    def forward(query, key, value, mask, numerator, total, top, grad_output, grad_logsumexp, blocks):
        softmax, gradient = OnlineSoftmax(numerator, total, top), Attended(grad_output, grad_logsumexp)
        gradients = softmax.gradients((query, key, value), gradient, blocks._replace(mask=mask))
        return tuple(gradient.to(query.dtype) for gradient in gradients)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        pass

    @staticmethod
    def backward(ctx, *gradients):
        raise NotImplementedError("chunked_attend can be differentiated once; to differentiate twice, use attend")
