"""Heads in the sorted order of each round, cut into chunks, and the masked scores of a block of chunks.

Masking is arithmetic here. Every token has a code, and a query sees a key if the difference of their codes lies in a
certain range. How far it lies outside, times ``HUGE``, is a penalty that the matrix product of the scores starts from.
Subtracting and clamping floats uses a processor's vector units, which comparing and masking do not. The codes are
integers or halves below 2**22 and HUGE is a power of two, so nothing is rounded: the penalty of a visible pair is 0.

Scores and log-sum-exps are in base 2, ``2^(score · log2 e) = e^score``. Hidden pairs make most results round to zero,
and there PyTorch's exp is up to sixty times slower on some processors, while exp2 is not.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlib.lsh.hashing import numbers_at_a_time

HUGE = 2.0**96  # exp2(−HUGE / 4) is 0 in every dtype, and 2**24 · HUGE is finite in float32
LOG2_E = math.log2(math.e)
MOST = 2**22  # upper limit of the codes


class Heads(NamedTuple):
    """What LSH attention works on, with batch and heads as one axis; a real token is one that is not padding."""

    query_key: Tensor  # (heads, tokens, head_dim)
    value: Tensor  # (heads, tokens, value_dim)
    buckets: Tensor  # integers (heads, num_hashes, tokens)
    order: Tensor  # integers (heads, num_hashes, tokens), the token at each place of the sorted order
    real: Tensor | None  # boolean (heads, tokens)


class Rule(NamedTuple):
    """Who may see whom: the options of ``lsh_attention``, and the arithmetic that they stand for."""

    chunk_size: int
    num_buckets: int
    is_causal: bool
    count_once: bool
    across_buckets: bool
    scale: float

    def packed(self) -> tuple[list[int], float]:
        """All fields in their order, as torch can put them into a graph."""
        return [self.chunk_size, self.num_buckets, *map(int, self[2:5])], self.scale

    def codes(self, slot: Tensor, buckets: Tensor, span: int) -> tuple[Tensor, Tensor]:
        """Two codes of each token, (heads, num_hashes, tokens).

        The first decides who is visible within a round's own windows. The second decides for any pair of tokens of one
        head, so it can tell whether an earlier round has shown the pair.
        """
        head = torch.arange(len(slot), device=slot.device)[:, None, None]
        if self.is_causal and not self.across_buckets:
            code = slot + buckets * self.chunk_size + head * span
            return code, code
        code = slot // self.chunk_size  # only the first codes need to tell heads apart
        if not self.across_buckets:
            return buckets + head * span, code + 2 * buckets
        if self.is_causal:
            position = torch.arange(slot.shape[2], device=slot.device)
            return (position + (len(slot) - head) * slot.shape[2]).expand_as(code), code
        return head.expand_as(code), code

    def middles(self) -> tuple[float, float]:
        """The middle of the visible range of differences, for the first codes and for the second."""
        if self.is_causal and not self.across_buckets:
            return (self.chunk_size + 1) / 2, (self.chunk_size + 1) / 2  # 1 … chunk_size places back
        return float(self.is_causal), 0.5  # 0 or 1 chunks back

    def penalty(self, own: Tensor, earlier: Iterator[Tensor]) -> Tensor:
        """Turn gaps into penalties, in place: 0 for a visible pair, and at least HUGE/4 for a hidden one.

        A gap is the key's code − the query's code + the middle of the visible range, times HUGE: ``own`` by the first
        codes of this round, and ``earlier`` by the second codes of the rounds before.
        """
        reach = HUGE / 4
        if self.is_causal and not self.across_buckets:
            reach += HUGE * (self.chunk_size - 1) / 2
            own.abs_().sub_(reach).clamp_min_(0.0)
        else:
            reach += HUGE / 2
            if self.is_causal:  # these codes are positions
                own.clamp_min_(0.0)
            else:  # these codes are buckets; a token does not see itself
                own.abs_().diagonal(self.chunk_size, 1, 2).fill_(HUGE)
        nearest = next(earlier, None)
        if nearest is not None:
            nearest.abs_()
            for gap in earlier:
                torch.minimum(nearest, gap.abs_(), out=nearest)
            own.add_(nearest.neg_().add_(reach).clamp_min_(0.0))
        return own


@dataclass(frozen=True)
class Layout:
    """The inputs, the rule, and the sizes that follow from both, all fixed before anything is computed."""

    inputs: Heads
    rule: Rule
    num_hashes: int
    tokens: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    chunks: int  # in each head; the last places of the last chunk may be empty
    span: int  # how many codes a head may use
    group: int  # heads that are sorted together
    block: int  # chunks whose scores exist at the same time

    @classmethod
    def of(cls, heads: Heads, rule: Rule) -> "Layout":
        (num_heads, num_hashes, tokens), device = heads.order.shape, heads.value.device
        c = rule.chunk_size
        chunks = -(-tokens // c)
        span = chunks * c + (rule.num_buckets + 2) * max(c, 2)
        dtype = torch.promote_types(heads.value.dtype, torch.float32) if span < MOST else torch.float64
        block = max(1, numbers_at_a_time(device) // (2 * c * c))
        group = min(num_heads, max(1, min(block // chunks, MOST // span)))
        sizes = num_hashes, tokens, heads.query_key.shape[-1], heads.value.shape[-1]
        return cls(heads, rule, *sizes, dtype, device, chunks, span, group, min(block, group * chunks))

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def windows(self, rows: Tensor) -> Tensor:
        """Every chunk but the first, each with the chunk before it, as an overlapping view: (chunks − 1, 2c, …)."""
        c = self.rule.chunk_size
        size, stride = (len(rows) // c - 1, 2 * c, *rows.shape[1:]), (c * rows.stride(0), *rows.stride())
        return rows.as_strided(size, stride)

    def groups(self) -> Iterator["Group"]:
        """Load one group of heads after another. They share their buffers, so finish with one before the next."""
        buffers = Buffers.of(self)
        for first, last in _ranges(len(self.inputs.order), self.group):
            yield Group.load(self, buffers, slice(first, last))


@dataclass(frozen=True, eq=False)
class Buffers:
    """Memory that is allocated once and used for every block."""

    table: Tensor  # (1 + group · tokens, head_dim + value_dim): unit keys and values; row 0 is for empty places
    places: Tensor  # ((1 + block) · c, head_dim + value_dim): rows of the table, in sorted order
    keys: Tensor  # (block, 2c, head_dim), a view of places
    values: Tensor  # (block, 2c, value_dim), a view of places
    queries: Tensor  # (block, c, head_dim)
    gaps: Tensor  # (1 … 3, block, c, 2c)

    @classmethod
    def of(cls, layout: Layout) -> "Buffers":
        c, d, width = layout.rule.chunk_size, layout.head_dim, layout.head_dim + layout.value_dim
        table = layout.new(1 + layout.group * layout.tokens, width)
        table[0] = 0.0
        places = layout.new((1 + layout.block) * c, width)
        windows = layout.windows(places)
        gaps = layout.new(min(3, layout.num_hashes) if layout.rule.count_once else 1, layout.block, c, 2 * c)
        return cls(table, places, windows[..., :d], windows[..., d:], layout.new(layout.block, c, d), gaps)


@dataclass(frozen=True, eq=False)
class Group:
    """Some heads, loaded: their unit keys and values are in the table, in the order of the tokens."""

    layout: Layout
    buffers: Buffers
    heads: slice
    table: Tensor  # (count · tokens, head_dim + value_dim): unit keys and values
    real: Tensor | None  # (count · tokens, 1)
    norm: Tensor  # (1 + count · tokens,): factors that turn unit keys into queries, scale and log2 e included
    inverse_norm: Tensor  # (count · tokens, 1)
    own_codes: Tensor  # (num_hashes, 1 + count · tokens): the first codes of ``Rule.codes``, times HUGE
    codes: Tensor  # (num_hashes, 1 + count · tokens): the second codes, times HUGE
    place: Tensor  # (num_hashes, count · tokens): where each token is in the sorted order
    taken: Tensor  # (count, num_hashes, width): the row of the table for each place, 0 for an empty place

    @classmethod
    def load(cls, layout: Layout, buffers: Buffers, which: slice) -> "Group":
        heads = Heads._make(None if t is None else t[which] for t in layout.inputs)
        count, c = len(heads.value), layout.rule.chunk_size
        query = heads.query_key.to(layout.dtype)
        norm = torch.linalg.vector_norm(query, dim=-1, keepdim=True)  # (count, tokens, 1)
        inverse = norm.reciprocal().masked_fill_(norm == 0, 0.0)
        rows = buffers.table[1 : 1 + count * layout.tokens]
        table = rows.view(count, layout.tokens, -1)
        torch.mul(query, inverse, out=table[..., : layout.head_dim])
        table[..., layout.head_dim :] = heads.value
        if heads.real is not None:
            hidden = ~heads.real[..., None]
            table.masked_fill_(hidden, 0.0)
            norm, inverse = norm.masked_fill(hidden, 0.0), inverse.masked_fill(hidden, 0.0)
        norm = F.pad((norm * (layout.rule.scale * LOG2_E)).flatten(), (1, 0))
        places = torch.arange(layout.tokens, dtype=heads.order.dtype, device=layout.device).expand_as(heads.order)
        slot = places.new_empty(places.shape).scatter_(-1, heads.order.long(), places)  # where each token is
        far = 2.0 * (layout.group + 1) * layout.span  # the code of padding and of empty places

        def padded(code: Tensor) -> Tensor:
            code = code.to(layout.dtype)
            code = code if heads.real is None else code.masked_fill(~heads.real[:, None], far)
            return F.pad(code.transpose(0, 1).flatten(1), (1, 0), value=far) * HUGE

        own_codes, codes = map(padded, layout.rule.codes(slot, heads.buckets, layout.span))
        first, width = torch.arange(count, device=layout.device)[:, None, None], layout.chunks * c
        place = (slot + first * width).transpose(0, 1).flatten(1)
        taken = F.pad(heads.order + (1 + first * layout.tokens), (0, width - layout.tokens))
        real = None if heads.real is None else heads.real.flatten()[:, None]
        inverse = inverse.flatten()[:, None]
        return cls(layout, buffers, which, rows, real, norm, inverse, own_codes, codes, place, taken)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First and last chunk (exclusive) of each block, counted over all heads of the group."""
        return _ranges(len(self.taken) * self.layout.chunks, self.layout.block)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """First and last token (exclusive) of runs as long as a block, counted over all heads of the group."""
        return _ranges(self.place.shape[1], self.layout.block * self.layout.rule.chunk_size)

    def sort(self, r: int) -> "Round":
        """Put the heads into the sorted order of round r."""
        c, rule = self.layout.rule.chunk_size, self.layout.rule
        rows = F.pad(self.taken[:, r].flatten(), (c, 0))
        earlier, (own_middle, middle) = r if rule.count_once else 0, rule.middles()
        codes = torch.cat([self.own_codes[r : r + 1], self.codes[:earlier]]).index_select(1, rows)
        shift = torch.tensor([own_middle] + [middle] * earlier, dtype=codes.dtype, device=codes.device) * HUGE
        query_codes = (codes[:, c:] - shift[:, None]).view(len(codes), -1, c, 1)
        key_codes = [self.layout.windows(code).unsqueeze(1) for code in codes]
        return Round(self, rows, self.norm[rows[c:]].view(-1, c, 1), query_codes, key_codes)


class Round(NamedTuple):
    """A group of heads in the sorted order of one round, behind an empty chunk for the first one to look back to."""

    group: Group
    rows: Tensor  # (c + count · width,), rows of the table
    norm: Tensor  # (chunks, c, 1)
    query_codes: Tensor  # (1 + earlier rounds, chunks, c, 1)
    key_codes: list[Tensor]  # for this round and each earlier one (chunks, 1, 2c)

    def block(self, first: int, last: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The chunks first … last − 1, in buffers that the next block overwrites.

        Scores (chunks, c, 2c), times log2 e, at most −HUGE/8 for hidden pairs; scaled queries (chunks, c, head_dim);
        keys of length 1 (chunks, 2c, head_dim); values (chunks, 2c, value_dim).
        """
        buffers, rule, count = self.group.buffers, self.group.layout.rule, last - first
        c = rule.chunk_size
        rows = self.rows[first * c : (last + 1) * c]
        torch.index_select(buffers.table, 0, rows, out=buffers.places[: len(rows)])
        keys, values = buffers.keys[:count], buffers.values[:count]
        query = torch.mul(keys[:, c:], self.norm[first:last], out=buffers.queries[:count])

        def gap(i: int) -> Tensor:
            out = buffers.gaps[min(i, 2), :count]
            return torch.sub(self.key_codes[i][first:last], self.query_codes[i, first:last], out=out)

        penalty = rule.penalty(gap(0), map(gap, range(1, len(self.key_codes))))
        return penalty.baddbmm_(query, keys.mT, beta=-1), query, keys, values


def _ranges(total: int, size: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + size, total)) for first in range(0, total, size))
