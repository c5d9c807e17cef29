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
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlib.lsh.hashing import numbers_at_a_time

HUGE = 2.0**96  # exp2(−HUGE / 4) is 0 in every dtype, and 2**24 · HUGE is finite in float32
LOG2_E = math.log2(math.e)
MOST = 2**22  # upper limit of the codes


class Heads(NamedTuple):
    """What LSH attention works on, with batch and heads as one axis. Padding is zeros, in a bucket after all others."""

    query_key: Tensor  # (heads, tokens, head_dim)
    value: Tensor  # (heads, tokens, value_dim)
    hashed: Tensor  # integers (heads, 2, num_hashes, tokens): each token's bucket; the token at each place when sorted


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
        """Two codes of each token, (heads, num_hashes, tokens). The first says who is visible within a round's own
        windows, the second whether an earlier round has shown a pair, for any two tokens of a head."""
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

        A gap is the key's code − the query's + the middle of the visible range, times HUGE: ``own`` by the first codes
        of this round, and ``earlier`` by the second codes of the rounds before.
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


class Layout:
    """The inputs and the rule, the sizes that follow from both, and the buffers that every block uses again."""

    def __init__(self, inputs: Heads, rule: Rule) -> None:
        (num_heads, _, self.num_hashes, self.tokens), c = inputs.hashed.shape, rule.chunk_size
        self.inputs, self.rule, self.device = inputs, rule, inputs.value.device
        self.head_dim, self.value_dim = inputs.query_key.shape[-1], inputs.value.shape[-1]
        self.chunks = -(-self.tokens // c)  # in each head; the last places of the last chunk may be empty
        self.span = self.chunks * c + (rule.num_buckets + 2) * max(c, 2)  # how many codes a head may use
        self.dtype = torch.promote_types(inputs.value.dtype, torch.float32) if self.span < MOST else torch.float64
        block = max(1, numbers_at_a_time(self.device) // (2 * c * c))
        self.group = min(num_heads, max(1, min(block // self.chunks, MOST // self.span)))  # heads sorted together
        self.block = min(block, self.group * self.chunks)  # chunks whose scores exist at the same time

        width = self.head_dim + self.value_dim
        self.table = self.new(1 + self.group * self.tokens, width)  # unit keys and values, in the order of the tokens
        self.table[0] = 0.0  # for empty places
        self.places = self.new((1 + self.block) * c, width)  # rows of the table, in sorted order
        windows = self.windows(self.places)  # so these two are views of places, (block, 2c, …):
        self.keys, self.values = windows[..., : self.head_dim], windows[..., self.head_dim :]
        self.queries = self.new(self.block, c, self.head_dim)
        self.gaps = self.new(min(3, self.num_hashes) if rule.count_once else 1, self.block, c, 2 * c)

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def windows(self, rows: Tensor) -> Tensor:
        """Every chunk but the first, each with the chunk before it, as an overlapping view: (chunks − 1, 2c, …)."""
        c = self.rule.chunk_size
        size, stride = (len(rows) // c - 1, 2 * c, *rows.shape[1:]), (c * rows.stride(0), *rows.stride())
        return rows.as_strided(size, stride)

    def groups(self) -> Iterator["Group"]:
        """Load one group of heads after another. They share the buffers, so finish with one before the next."""
        return (Group(self, slice(first, last)) for first, last in _ranges(len(self.inputs.value), self.group))


class Group:
    """Some heads, loaded: their unit keys and values are in the table, in the order of the tokens."""

    def __init__(self, layout: Layout, which: slice) -> None:
        heads = Heads._make(t[which] for t in layout.inputs)
        self.layout, self.heads = layout, which
        count, tokens, rule = len(heads.value), layout.tokens, layout.rule
        query = heads.query_key.to(layout.dtype)
        norm = torch.linalg.vector_norm(query, dim=-1, keepdim=True)  # (count, tokens, 1)
        inverse = norm.reciprocal().masked_fill_(norm == 0, 0.0)
        self.table = layout.table[1 : 1 + count * tokens]  # (count · tokens, head_dim + value_dim)
        table = self.table.view(count, tokens, -1)
        torch.mul(query, inverse, out=table[..., : layout.head_dim])
        table[..., layout.head_dim :] = heads.value
        # (1 + count · tokens,): factors that turn the table's unit keys into queries, scale and log2 e included
        self.norm = F.pad((norm * (rule.scale * LOG2_E)).flatten(), (1, 0))
        self.inverse_norm = inverse.flatten()[:, None]  # (count · tokens, 1)

        buckets, order = heads.hashed.unbind(1)  # (count, num_hashes, tokens) each
        places = torch.arange(tokens, dtype=order.dtype, device=layout.device).expand_as(order)
        slot = places.new_empty(places.shape).scatter_(-1, order.long(), places)  # where each token is
        far = 2.0 * (layout.group + 1) * layout.span  # the code of padding and of empty places

        def padded(code: Tensor) -> Tensor:
            code = code.to(layout.dtype).masked_fill(buckets == rule.num_buckets, far)
            return F.pad(code.transpose(0, 1).flatten(1), (1, 0), value=far) * HUGE

        # (num_hashes, 1 + count · tokens): the two codes of ``Rule.codes``, times HUGE
        self.own_codes, self.codes = map(padded, rule.codes(slot, buckets, layout.span))
        first, width = torch.arange(count, device=layout.device)[:, None, None], layout.chunks * rule.chunk_size
        # (num_hashes, count · tokens): where each token is in the sorted order
        self.place = (slot + first * width).transpose(0, 1).flatten(1)
        # (count, num_hashes, width): the row of the layout's table for each place, 0 for an empty place
        self.taken = F.pad(order + (1 + first * tokens), (0, width - tokens))
        # the chunks of each block, and the tokens of runs as long as a block, counted over all heads of the group
        self.blocks = _ranges(count * layout.chunks, layout.block)
        self.pieces = _ranges(count * tokens, layout.block * rule.chunk_size)


class Round:
    """A group of heads in the sorted order of round r, behind an empty chunk for the first one to look back to."""

    def __init__(self, group: Group, r: int) -> None:
        self.layout, c, rule = group.layout, group.layout.rule.chunk_size, group.layout.rule
        self.rows = F.pad(group.taken[:, r].flatten(), (c, 0))  # (c + count · width,), rows of the table
        self.norm = group.norm[self.rows[c:]].view(-1, c, 1)  # (chunks, c, 1)
        earlier, (own_middle, middle) = r if rule.count_once else 0, rule.middles()
        codes = torch.cat([group.own_codes[r : r + 1], group.codes[:earlier]]).index_select(1, self.rows)
        shift = torch.tensor([own_middle] + [middle] * earlier, dtype=codes.dtype, device=codes.device) * HUGE
        # For this round and each earlier one (chunks, c, 1) and (chunks, 1, 2c).
        self.query_codes = (codes[:, c:] - shift[:, None]).view(len(codes), -1, c, 1)
        self.key_codes = [self.layout.windows(code).unsqueeze(1) for code in codes]

    def block(self, first: int, last: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The chunks first … last − 1, in buffers that the next block overwrites.

        Scores (chunks, c, 2c), times log2 e, at most −HUGE/8 for hidden pairs; scaled queries (chunks, c, head_dim);
        keys of length 1 (chunks, 2c, head_dim); values (chunks, 2c, value_dim).
        """
        layout, count, c = self.layout, last - first, self.layout.rule.chunk_size
        rows = self.rows[first * c : (last + 1) * c]
        torch.index_select(layout.table, 0, rows, out=layout.places[: len(rows)])
        keys, values = layout.keys[:count], layout.values[:count]
        query = torch.mul(keys[:, c:], self.norm[first:last], out=layout.queries[:count])

        def gap(i: int) -> Tensor:
            out = layout.gaps[min(i, 2), :count]
            return torch.sub(self.key_codes[i][first:last], self.query_codes[i, first:last], out=out)

        penalty = layout.rule.penalty(gap(0), map(gap, range(1, len(self.key_codes))))
        return penalty.baddbmm_(query, keys.mT, beta=-1), query, keys, values


def _ranges(total: int, size: int) -> list[tuple[int, int]]:
    """First and last (exclusive) of each range that is as long as ``size``, or shorter at the end."""
    return [(first, min(first + size, total)) for first in range(0, total, size)]
