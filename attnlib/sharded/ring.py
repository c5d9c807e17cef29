"""Processes in a circle: each sends to the next, receives from the previous, and can name the one that is missing."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

GRACE = timedelta(seconds=2)  # how long to wait for another process to say what it is waiting for


class Ring:
    """The processes of a group in the order of their ranks; the first follows the last.

    ``rank`` is this process's in the group, whose size is ``size``; ``bytes_sent`` counts the bytes of the tensors that
    this process has sent. RuntimeError: torch.distributed is not initialised. ValueError: the process is not in it.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "torch.distributed is not initialised: start with torchrun and call init_process_group('gloo') first"
            )
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
            missing = self._find_missing(peer)
            through = "" if missing == peer else f", which rank {peer} was waiting for,"
            raise ConnectionError(
                f"rank {missing}{through} has died or does not answer: rank {self.rank} of {self.size} gave up after "
                f"{seconds:.1f} s ({str(error).splitlines()[0]})"
            ) from error

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
