"""Heads laid out in the sorted order of one round, chunk after chunk, and the masked scores of a block of chunks.

Who sees whom is arithmetic here: every token has a code, a key is visible where the difference of two codes lies in a
range, and how far it lies outside becomes a penalty, times ``HUGE``, that the matrix product starts from. Subtracting
and clamping floats runs through the wide units of a processor, where comparing and masking do not. The codes are
integers or halves below 2**22, and HUGE is a power of two, so that nothing is rounded: a visible pair has penalty 0.

Scores and log-sum-exps are in base 2, ``2^(score · log2 e) = e^score``: where results round to zero, as they do for
whatever is hidden, PyTorch's exp takes up to sixty times as long on some processors, and exp2 no longer than elsewhere.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

HUGE = 2.0**96  # exp2(−HUGE / 4) is 0 in every dtype, and 2**24 · HUGE is finite in float32
LOG2_E = math.log2(math.e)
MOST = 2**22  # codes stay below
SCORES = {"cpu": 2**18}  # scores in a block: what a core's cache holds
SCORES_ELSEWHERE = 2**23  # what keeps an accelerator busy


class Rule(NamedTuple):
    """Who sees whom, besides the buckets: the options of ``lsh_attention``."""

    chunk_size: int
    num_buckets: int
    is_causal: bool
    count_once: bool
    across_buckets: bool
    scale: float


class SortedHeads:
    """Buffers for a group of heads, allocated once; ``load`` fills them with heads, ``sort`` with a round's order.

    Args:
        query_key: (heads, tokens, head_dim), batch and heads as one axis.
        value: (heads, tokens, value_dim).
        buckets, order, slot: integers (heads, num_hashes, tokens): the bucket of each token, the token in each place of
            the sorted order, and the place of each token.
        real: boolean (heads, tokens) or None; the others see and are seen by nobody.
    """

    def __init__(
        self,
        query_key: Tensor,
        value: Tensor,
        buckets: Tensor,
        order: Tensor,
        slot: Tensor,
        real: Tensor | None,
        rule: Rule,
    ) -> None:
        self.query_key, self.value, self.real, self.rule = query_key, value, real, rule
        self.buckets, self.order, self.slot = buckets, order, slot
        self.num_heads, self.num_hashes, self.tokens = order.shape
        self.head_dim, self.value_dim = query_key.shape[-1], value.shape[-1]
        c = self.chunk_size = rule.chunk_size
        self.chunks = -(-self.tokens // c)
        self.width = self.chunks * c  # places of a head, the last ones empty
        span = self.width + (rule.num_buckets + 2) * max(c, 2)  # codes of a head
        dtype = torch.promote_types(value.dtype, torch.float32)
        self.dtype = dtype if span < MOST else torch.float64
        block = max(1, SCORES.get(value.device.type, SCORES_ELSEWHERE) // (2 * c * c))
        self.group = min(self.num_heads, max(1, min(block // self.chunks, MOST // span)))
        self.block = min(block, self.group * self.chunks)
        self.span = span
        self.far = 2.0 * (self.group + 1) * span  # the code of padding and of places that no token fills
        # Row 0 of the table stands for a place that no token fills: zeros, seen by nobody.
        self.table = self.new(1 + self.group * self.tokens, self.head_dim + self.value_dim)
        self.table[0] = 0.0
        self.places = self.new((1 + self.block) * c, self.head_dim + self.value_dim)
        windows = self.windows(self.places)  # (block, 2c, head_dim + value_dim)
        self.all_keys, self.all_values = windows[..., : self.head_dim], windows[..., self.head_dim :]
        self.all_own = self.all_keys[:, c:]
        self.all_queries = self.new(self.block, c, self.head_dim)
        # A key is visible where query's code − key's code lies between these two.
        low, high = (1, c) if rule.is_causal and not rule.across_buckets else (0, 1)
        self.middle, self.reach = (low + high) / 2, ((high - low) / 2 + 0.25) * HUGE
        self.own_middle = self.middle if low else float(rule.is_causal)
        self.scratch = self.new(min(3, self.num_hashes) if rule.count_once else 1, self.block, c, 2 * c)

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.value.device)

    def groups(self) -> Iterator[slice]:
        for first in range(0, self.num_heads, self.group):
            yield slice(first, min(first + self.group, self.num_heads))

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First and last chunk (exclusive) of each block, counted over all heads of the group."""
        total = self.count * self.chunks
        for first in range(0, total, self.block):
            yield first, min(first + self.block, total)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """First and last token (exclusive) of runs as long as a block, counted over all heads of the group."""
        total, size = self.count * self.tokens, self.block * self.chunk_size
        for first in range(0, total, size):
            yield first, min(first + size, total)

    def load(self, heads: slice) -> None:
        """Fill the table with unit keys and values, in the order of tokens, and draw up the codes."""
        self.heads, self.count = heads, heads.stop - heads.start
        query = self.query_key[heads].to(self.dtype)
        norm = torch.linalg.vector_norm(query, dim=-1, keepdim=True)  # (count, tokens, 1)
        inverse = norm.reciprocal().masked_fill_(norm == 0, 0.0)
        table = self.table[1 : 1 + self.count * self.tokens].view(self.count, self.tokens, -1)
        torch.mul(query, inverse, out=table[..., : self.head_dim])
        table[..., self.head_dim :] = self.value[heads]
        if self.real is not None:
            hidden = ~self.real[heads][..., None]
            table.masked_fill_(hidden, 0.0)
            norm, inverse = norm.masked_fill(hidden, 0.0), inverse.masked_fill(hidden, 0.0)
        self.inverse_norm = inverse
        self.norm = F.pad((norm * (self.rule.scale * LOG2_E)).flatten(), (1, 0))
        self.own_codes, self.codes = (self._in_places(code) for code in self._codes())
        # Where each token stands in the sorted orders, and who stands in each place: a row of the table.
        first = torch.arange(self.count, device=self.slot.device)[:, None, None]
        self.place = (self.slot[heads] + first * self.width).transpose(0, 1).flatten(1)
        self.taken = F.pad(self.order[heads] + (1 + first * self.tokens), (0, self.width - self.tokens))

    def _codes(self) -> tuple[Tensor, Tensor]:
        """Two codes of each token, (count, num_hashes, tokens): ``own`` decides who is visible in a round's own windows
        and ``code`` for any pair of one head."""
        rule, slot, buckets = self.rule, self.slot[self.heads], self.buckets[self.heads]
        head = torch.arange(self.count, device=slot.device)[:, None, None]
        if rule.is_causal and not rule.across_buckets:
            code = slot + buckets * rule.chunk_size + head * self.span
            return code, code
        code = slot // rule.chunk_size  # heads are told apart by their own codes
        if not rule.across_buckets:
            return buckets + head * self.span, code + 2 * buckets
        if rule.is_causal:
            position = torch.arange(self.tokens, device=slot.device)
            return (position + (self.count - head) * self.tokens).expand_as(code), code
        return head.expand_as(code), code

    def _in_places(self, code: Tensor) -> Tensor:
        code = code.to(self.dtype)
        if self.real is not None:
            code = code.masked_fill(~self.real[self.heads][:, None], self.far)
        return F.pad(code.transpose(0, 1).flatten(1), (1, 0), value=self.far) * HUGE  # (num_hashes, 1 + count · tokens)

    def windows(self, rows: Tensor) -> Tensor:
        """Each chunk but the first, with its neighbour before it, as an overlapping view: (chunks − 1, 2c, …)."""
        c = self.chunk_size
        size, stride = (rows.shape[0] // c - 1, 2 * c, *rows.shape[1:]), (c * rows.stride(0), *rows.stride())
        return rows.as_strided(size, stride)

    def sort(self, r: int) -> None:
        """Take up the sorted order of round r, behind an empty chunk that the first may look back to."""
        c, rule = self.chunk_size, self.rule
        self.rows = F.pad(self.taken[:, r].flatten(), (c, 0))  # of the table
        self.sorted_norm = self.norm[self.rows[c:]].view(-1, c, 1)
        earlier = r if rule.count_once else 0
        codes = torch.cat([self.own_codes[r : r + 1], self.codes[:earlier]]).index_select(1, self.rows)
        shift = torch.tensor([self.own_middle] + [self.middle] * earlier, dtype=self.dtype, device=codes.device) * HUGE
        self.query_codes = (codes[:, c:] - shift[:, None]).view(len(codes), -1, c, 1)
        self.key_codes = [self.windows(code).unsqueeze(1) for code in codes]  # each (chunks, 1, 2c)

    def scores(self, first: int, last: int) -> Tensor:
        """Scores · log2 e, (block, c, 2c), of chunks first … last, at most −HUGE/8 where a query may not look.

        They lie in a buffer, like the block's ``query`` (block, c, head_dim), ``keys`` and ``values`` (block, 2c, …).
        """
        c, count = self.chunk_size, last - first
        torch.index_select(self.table, 0, self.rows[first * c : (last + 1) * c], out=self.places[: (count + 1) * c])
        self.keys, self.values = self.all_keys[:count], self.all_values[:count]
        self.query = torch.mul(self.all_own[:count], self.sorted_norm[first:last], out=self.all_queries[:count])
        return self._penalty(first, last).baddbmm_(self.query, self.keys.mT, beta=-1)

    def _penalty(self, first: int, last: int) -> Tensor:
        """HUGE times how far each pair is from being visible: 0, or at least HUGE/4; (block, c, 2c), in a buffer."""
        rule, scratch = self.rule, self.scratch[:, : last - first]
        penalty = self._gap(0, first, last, scratch[0])
        if rule.is_causal and rule.across_buckets:  # own codes are positions, and this is how far a key lies after
            penalty.clamp_min_(0.0)
        elif rule.is_causal:  # own codes tell bucket and place
            penalty.abs_().sub_(self.reach).clamp_min_(0.0)
        else:  # own codes are buckets
            penalty.abs_().diagonal(self.chunk_size, 1, 2).fill_(HUGE)  # not itself
        if len(self.key_codes) > 1:  # what an earlier round has shown
            nearest = self._gap(1, first, last, scratch[1]).abs_()
            for earlier in range(2, len(self.key_codes)):
                torch.minimum(nearest, self._gap(earlier, first, last, scratch[2]).abs_(), out=nearest)
            penalty.add_(nearest.neg_().add_(self.reach).clamp_min_(0.0))
        return penalty

    def _gap(self, index: int, first: int, last: int, out: Tensor) -> Tensor:
        """Key's code − query's code + the middle of the visible range, for the codes number `index`."""
        return torch.sub(self.key_codes[index][first:last], self.query_codes[index, first:last], out=out)
