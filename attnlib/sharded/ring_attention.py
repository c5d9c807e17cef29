"""Ring attention: queries stay where they are while keys and values travel past them, and partial results merge."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from attnlib._online_softmax import Blocks, OnlineSoftmax
from attnlib._validate import check_qkv
from attnlib.attend import Attended
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

    Formula: ``merge_r(attend(query, key_r, value_r))`` over the ranks r. The shares of key and value travel around
    the ring: while a process computes with one share, the next one arrives. The gradients travel with them.

    Args:
        query: (…, q_tokens, head_dim), this process's share. Joined in the order of the ranks, the shares make up the
            whole sequence; their lengths may differ, and may be 0.
        key, value: (…, kv_tokens, head_dim) and (…, kv_tokens, value_dim), this process's shares.
        is_causal, scale: as for ``attend``, over the whole sequence.
        group: the processes; default: all.

    Returns what ``attend`` returns for this process's queries over the whole sequence. It can be differentiated once;
    then all processes of the group must run the backward pass.

    TypeError, ValueError: as ``attend``; or the processes disagree on dtypes, sizes, ``is_causal``, ``scale`` or
    whether gradients are wanted: then all raise, and the message names the rank. RuntimeError: torch.distributed is
    not initialised. ConnectionError: a process died or did not answer; the message names its rank. Each transfer may
    wait for the time-out of the group, and finding out which rank failed takes up to 2 more seconds per rank.

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
    ring: Ring, query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, scale: float | None = None
) -> Attended:
    """``sharded_attend`` on a ring that the caller keeps, for example to count its bytes."""

    def facts() -> dict[str, object]:
        check_qkv(query, key, value, None, is_causal, scale)
        wants_gradients = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        return {"is_causal": is_causal, "scale": scale, "gradients wanted": wants_gradients}

    shapes = ring.agree(facts, {"query": query, "key": key, "value": value}, free_axis=-2)
    if scale is None:
        scale = max(query.shape[-1], 1) ** -0.5
    plan = Plan(ring, scale, is_causal, tuple(s["query"][-2] for s in shapes), tuple(s["key"][-2] for s in shapes))
    return Attended(*_Sharded.apply(query, key, value, plan))


class Plan(NamedTuple):
    """Who holds which tokens, the length of each rank's share, and how they travel."""

    ring: Ring
    scale: float
    is_causal: bool
    q_tokens: tuple[int, ...]
    kv_tokens: tuple[int, ...]

    def blocks(self, owner: int) -> Blocks:
        """Which of the owner's keys this process's queries may see."""
        lead = sum(self.q_tokens[: self.ring.rank]) - sum(self.kv_tokens[:owner])
        return Blocks(self.scale, lead=lead if self.is_causal else None)

    def travel(self, key: Tensor, value: Tensor) -> Iterator[tuple[int, Sequence[Tensor]]]:
        """Each owner with its key and value, this process first; the next share arrives while this one is in use."""
        size, rank = self.ring.size, self.ring.rank
        share: Sequence[Tensor] = (key, value)
        for step in range(size - 1):
            owner = (rank - step) % size
            next_share = self.ring.pass_on(share, self.kv_tokens[owner - 1])
            yield owner, share
            share = next_share()
        yield (rank + 1) % size, share


class _Sharded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, plan):
        softmax = OnlineSoftmax.start(query, key, value)
        for owner, share in plan.travel(key, value):
            softmax.update(query, *share, plan.blocks(owner))
        ctx.save_for_backward(query, key, value, softmax.numerator, softmax.total, softmax.top)
        ctx.plan = plan
        output, logsumexp = softmax.attended()
        return output.to(value.dtype), logsumexp

    @staticmethod
    def backward(ctx, *gradient):
        return *_ShardedGradient.apply(*ctx.saved_tensors, *gradient, ctx.plan), None


class _ShardedGradient(torch.autograd.Function):
    """A separate function, so that a second derivative raises an error instead of returning a wrong number."""

    @staticmethod
    def forward(ctx, query, key, value, numerator, total, top, grad_output, grad_logsumexp, plan):
        """Keys and values go around again. Each share's gradient follows one step behind, and ends at its owner."""
        ring, softmax = plan.ring, OnlineSoftmax(numerator, total, top)
        gradient = Attended(grad_output, grad_logsumexp)
        grad_query, arrived = torch.zeros_like(query, dtype=total.dtype), None
        for owner, share in plan.travel(key, value):
            grad_here, *grad_share = softmax.gradients((query, *share), gradient, plan.blocks(owner))
            grad_query += grad_here
            if arrived is not None:  # what the processes before this one found for the owner
                grad_share = [here + before for here, before in zip(grad_share, arrived())]
            arrived = ring.pass_on(grad_share, plan.kv_tokens[owner - 1], tag=1)
        return tuple(gradient.to(query.dtype) for gradient in (grad_query, *arrived()))

    @staticmethod
    def backward(ctx, *gradients):
        raise NotImplementedError("sharded_attend can be differentiated only once")
