"""Ring attention: queries stay where they are while keys and values travel past them, and partial results merge.

Each process sends to the next, receives from the previous, and can name the one that is missing.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from attnlib._validate import check_qkv
from attnlib.attend import Attended
from attnlib.chunked import Blocks, OnlineSoftmax

GRACE = timedelta(seconds=2)  # how long to wait for another process to say what it is waiting for


class Ring:
    """The processes of a group in the order of their ranks; the first follows the last.

    ``rank`` is this process's in the group, whose size is ``size``; ``bytes_sent`` counts the bytes of the tensors that
    this process has sent. RuntimeError: torch.distributed is not initialised. ValueError: the process is not in it.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError("torch.distributed is not initialised: use torchrun and init_process_group('gloo')")
        self.group: dist.ProcessGroup = dist.group.WORLD if group is None else group  # type: ignore[assignment]
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        if self.rank < 0:
            raise ValueError("group must contain this process; got a group that it is not in")
        self.is_nccl = dist.get_backend(self.group) == dist.Backend.NCCL
        self.bytes_sent = 0

    def pass_on(
        self, tensors: Sequence[Tensor], tokens: int | None = None, *, tag: int = 0
    ) -> Callable[[], Sequence[Tensor]]:
        """Start sending tensors to the next process, and receiving as many from the previous one.

        All processes must start their transfers in the same order; ``tag``, 0 or 1, keeps apart those that are under
        way at the same time. What arrives has the shapes of what is sent, but ``tokens`` along axis −2 if given.
        Returns a function that waits for both, and returns what arrived. ConnectionError, from either: as in
        ``sharded_attend``.
        """
        if self.size == 1:
            return lambda: tensors
        sent = [t.contiguous() for t in tensors]
        received = [t.new_empty(t.shape if tokens is None else (*t.shape[:-2], tokens, t.shape[-1])) for t in sent]
        before, after = (self.rank - 1) % self.size, (self.rank + 1) % self.size
        operations = [
            (peer, dist.P2POp(send_or_receive, tensor, group=self.group, tag=2 * index + tag, group_peer=peer))
            for send_or_receive, peer, side in ((dist.irecv, before, received), (dist.isend, after, sent))
            for index, tensor in enumerate(side)
            if tensor.numel()
        ]
        self.bytes_sent += sum(tensor.numel() * tensor.element_size() for tensor in sent)
        works = []
        # NCCL needs all of them in one batch. gloo takes one at a time, which tells whose operation failed.
        for batch in [operations] if self.is_nccl and operations else [[operation] for operation in operations]:
            peer = batch[0][0]
            with self._blaming(peer):
                works += [(peer, work) for work in dist.batch_isend_irecv([operation for _, operation in batch])]

        def wait() -> Sequence[Tensor]:
            for peer, work in works:
                with self._blaming(peer):
                    work.wait()
            return received

        return wait

    def gather(self, tensors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """Give every process the tensors of all, by rank; they have the same shapes everywhere."""
        shares = [tensors] * self.size
        for step in range(1, self.size):
            tensors = self.pass_on(tensors)()
            shares[(self.rank - step) % self.size] = tensors
        return shares

    def agree(
        self, facts: Callable[[], dict[str, object]], tensors: Mapping[str, Tensor], free_axis: int | None = None
    ) -> list[dict[str, torch.Size]]:
        """Compare what all processes were asked to do, so that a mistake becomes an error everywhere.

        ``facts`` raises if this process's own arguments are wrong; what it returns must be the same everywhere, and so
        must the dtypes and shapes of ``tensors``, except along ``free_axis``. Returns every rank's shapes, by name.
        """
        error = mine = None
        try:
            said = {name: str(fact) for name, fact in facts().items()}
            for name, tensor in tensors.items():
                sizes = [str(size) for size in tensor.shape]
                if free_axis is not None:
                    sizes[free_axis] = "*"
                said |= {f"dtype of {name}": str(tensor.dtype), f"shape of {name}": f"({', '.join(sizes)})"}
            mine = said, {name: tensor.shape for name, tensor in tensors.items()}
        except (TypeError, ValueError) as refused:
            error = refused
        roll_call = torch.zeros(1, device="cuda" if self.is_nccl else "cpu")
        self.gather([roll_call])  # names who is missing
        everybody: list = [None] * self.size
        dist.all_gather_object(everybody, mine, group=self.group)
        if error is not None:
            raise error
        if None in everybody:
            raise ValueError(f"rank {everybody.index(None)} refused its arguments: its own error says why")
        for name, first in everybody[0][0].items():
            for rank, (others, _) in enumerate(everybody):
                if others[name] != first:
                    both = f"rank 0 has {first}, rank {rank} has {others[name]}"
                    raise ValueError(f"{name} must be the same on all ranks; {both}")
        return [shapes for _, shapes in everybody]

    @contextmanager
    def _blaming(self, peer: int) -> Iterator[None]:
        """Turn a failure with a neighbour into an error that names the process responsible."""
        start = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            seconds = time.monotonic() - start
            missing, reason = self._find_missing(peer), str(error).splitlines()[0]
            through = "" if missing == peer else f", which rank {peer} was waiting for,"
            found = f"rank {missing}{through} has died or does not answer"
            gave_up = f"rank {self.rank} of {self.size} gave up after {seconds:.1f} s ({reason})"
            raise ConnectionError(f"{found}: {gave_up}") from error

    def _find_missing(self, peer: int) -> int:
        """Each failing rank records the peer it was waiting for; follow these records to a rank without one."""
        suspect = peer
        with suppress(RuntimeError):  # no record in time, or the process that kept the store is gone
            store = dist.PrefixStore("attnlib", self.group.get_group_store())
            store.set(str(self.rank), str(peer))
            for _ in range(self.size):
                store.wait([str(suspect)], GRACE)
                suspect = int(store.get(str(suspect)))
        return suspect


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
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
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
