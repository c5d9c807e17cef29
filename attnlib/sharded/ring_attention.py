"""Ring attention: queries stay where they are, keys and values travel, and what each has seen is merged."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from attnlib._online_softmax import Blocks, OnlineSoftmax
from attnlib._validate import check_options, check_qkv
from attnlib.attend import Attended
from attnlib.sharded.agreement import agree
from attnlib.sharded.ring import Ring


def sharded_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    group: dist.ProcessGroup | None = None,
) -> Attended:
    """Attend from this process's queries to the keys and values of all processes.

    Formula: ``merge_r(attend(query, key_r, value_r))`` over the ranks r. The shares of key and value go around the
    ring, each one step further while the last one is computed; the gradients go around with them.

    Args:
        query: (…, q_tokens, head_dim), this process's share. Together the shares, in the order of the ranks, are the
            whole sequence; they may differ in length, and may be empty.
        key: (…, kv_tokens, head_dim), this process's share.
        value: (…, kv_tokens, value_dim), this process's share.
        is_causal: hide the keys that come after a query in the whole sequence (upper-left alignment).
        scale: factor on the scores; ``1/√head_dim`` where it is left out.
        group: the processes; the default group where it is left out.

    Returns:
        ``Attended(output, logsumexp)`` for this process's queries: what ``attend`` gives for them over the whole
        sequence. Differentiable once; all processes of the group must then run the backward pass.

    Raises:
        TypeError, ValueError: as ``attend``; or the processes disagree on dtype, sizes, ``is_causal``, ``scale`` or on
            whether gradients are wanted: then all raise, and the message names the rank.
        RuntimeError: torch.distributed is not initialised.
        ConnectionError: a process died, or did not answer within the time-out of the group; the message names its rank.

    Source: Liu, Zaharia and Abbeel 2023, "Ring Attention with Blockwise Transformers for Near-Infinite Context".

    >>> from attnlib.attend import attend
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # a ring of one
    >>> query, key, value = torch.randn(7, 5), torch.randn(11, 5), torch.randn(11, 3)
    >>> torch.allclose(sharded_attend(query, key, value).output, attend(query, key, value).output, atol=1e-6)
    True
    >>> dist.destroy_process_group()
    """
    return ring_attend(Ring(group), query, key, value, is_causal, scale)


def ring_attend(
    ring: Ring, query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float | None
) -> Attended:
    """``sharded_attend`` on a ring that the caller keeps, and whose bytes it can count."""
    wants_gradients = torch.is_grad_enabled() and any(getattr(t, "requires_grad", False) for t in (query, key, value))

    def check() -> None:
        check_qkv(query, key, value)
        check_options(is_causal, scale)

    facts = {"is_causal": is_causal, "scale": scale, "gradients wanted": wants_gradients}
    tensors = {"query": query, "key": key, "value": value}
    shapes = agree(ring, check, tensors, facts, free_axis=-2)
    if scale is None:
        scale = max(query.shape[-1], 1) ** -0.5
    plan = Plan(ring, scale, is_causal, tuple(s["query"][-2] for s in shapes), tuple(s["key"][-2] for s in shapes))
    return Attended(*_Sharded.apply(query, key, value, plan))


class Plan(NamedTuple):
    """Who holds which tokens, and how they travel.

    Attributes:
        ring: the processes.
        scale: factor on the scores.
        is_causal: whether the future is hidden.
        q_tokens, kv_tokens: the length of each rank's share.
    """

    ring: Ring
    scale: float
    is_causal: bool
    q_tokens: tuple[int, ...]
    kv_tokens: tuple[int, ...]

    def blocks(self, owner: int) -> Blocks:
        """Which of the keys of ``owner`` this process's queries see."""
        lead = sum(self.q_tokens[: self.ring.rank]) - sum(self.kv_tokens[:owner])
        return Blocks(self.scale, lead=lead if self.is_causal else None)

    def travel(self, key: Tensor, value: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each owner's key and value in turn, this process's first; the next ones arrive while these are worked on."""
        ring, packet = self.ring, pack(key, value)
        for step in range(ring.size):
            owner, coming = (ring.rank - step) % ring.size, (ring.rank - step - 1) % ring.size
            last = step == ring.size - 1
            parcel = None if last else ring.start(packet, self.numel(coming, key, value))
            some_key, some_value = self.unpack(packet, owner, key, value)
            yield owner, some_key, some_value
            if parcel is not None:
                packet = ring.finish(parcel)

    def numel(self, owner: int, key: Tensor, value: Tensor) -> int:
        """How many numbers the share of ``owner`` has."""
        return sum(torch.Size(shape).numel() for shape in self._shapes(owner, key, value))

    def unpack(self, packet: Tensor, owner: int, key: Tensor, value: Tensor) -> list[Tensor]:
        """The key and value of ``owner``, as views of what ``pack`` made."""
        shapes = self._shapes(owner, key, value)
        parts = packet.split([torch.Size(shape).numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes)]

    def _shapes(self, owner: int, key: Tensor, value: Tensor) -> list[tuple[int, ...]]:
        """Those of this process's key and value, but for the number of tokens."""
        return [(*t.shape[:-2], self.kv_tokens[owner], t.shape[-1]) for t in (key, value)]


def pack(key: Tensor, value: Tensor) -> Tensor:
    """All numbers of both in one flat tensor."""
    return torch.cat([key.flatten(), value.flatten()])


class _Sharded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, plan):
        softmax = OnlineSoftmax.start(query, key, value)
        for owner, some_key, some_value in plan.travel(key, value):
            softmax.update(query, some_key, some_value, plan.blocks(owner))
        ctx.save_for_backward(query, key, value, softmax.numerator, softmax.total, softmax.top)
        ctx.plan = plan
        output, logsumexp = softmax.attended()
        return output.to(value.dtype), logsumexp

    @staticmethod
    def backward(ctx, *gradient):
        return *_ShardedGradient.apply(*ctx.saved_tensors, *gradient, ctx.plan), None


class _ShardedGradient(torch.autograd.Function):
    """A step of its own only so that a second derivative is an error, not a wrong number."""

    @staticmethod
    def forward(ctx, query, key, value, numerator, total, top, grad_output, grad_logsumexp, plan):
        """Keys and values go around again; the gradient of each follows one step behind, and ends at its owner."""
        ring, softmax = plan.ring, OnlineSoftmax(numerator, total, top)
        gradient = Attended(grad_output, grad_logsumexp)
        grad_query, parcel = torch.zeros_like(query, dtype=total.dtype), None
        for owner, some_key, some_value in plan.travel(key, value):
            mine, *share = softmax.gradients((query, some_key, some_value), gradient, plan.blocks(owner))
            grad_query += mine
            grad_share = pack(*share)
            if parcel is not None:
                grad_share += ring.finish(parcel)  # what the processes before this one found for the owner
            parcel = ring.start(grad_share, plan.numel((owner - 1) % ring.size, key, value), tag=1)
        grad_key, grad_value = plan.unpack(ring.finish(parcel), ring.rank, key, value)
        return tuple(gradient.to(query.dtype) for gradient in (grad_query, grad_key, grad_value))

    @staticmethod
    def backward(ctx, *gradients):
        raise NotImplementedError("sharded_attend can be differentiated once, not twice")
