"""Processes in a circle: each sends to the next, receives from the one before, and says who is missing."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

GRACE = timedelta(seconds=2)  # the part of the time-out that is kept for finding out who is missing


class Parcel:
    """Something under way: what this process sends, and what it is about to receive."""

    def __init__(self, sent: Tensor, received: Tensor, works: list[tuple[int, dist.Work]]) -> None:
        self.sent = sent  # held until it is gone
        self.received = received
        self.works = works  # with the rank at the other end


class Ring:
    """The processes of a group, in the order of their ranks, the last before the first.

    Args:
        group: a process group; the default group where it is left out.

    Attributes:
        rank, size: of this process in the group, and of the group.
        bytes_sent: what this process has sent so far.

    Raises:
        RuntimeError: torch.distributed is not there or not initialised.
        ValueError: this process is not in the group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "torch.distributed is not initialised: start with torchrun and call init_process_group('gloo') first"
            )
        self.group: dist.ProcessGroup = dist.distributed_c10d._get_default_group() if group is None else group
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        if self.rank < 0:
            raise ValueError("group must contain this process; got a group that it is not in")
        self.next, self.previous = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        self.bytes_sent = 0

    def start(self, packet: Tensor, numel: int, *, tag: int = 0) -> Parcel:
        """Begin to send a flat tensor to the next process, and to receive one of ``numel`` from the one before.

        Nothing is sent where there is nothing to send. All processes start their parcels in the same order.
        """
        if self.size == 1:
            return Parcel(packet, packet, [])
        received = packet.new_empty(numel)
        operations = []
        for send_or_receive, tensor, peer in ((dist.isend, packet, self.next), (dist.irecv, received, self.previous)):
            if tensor.numel():
                operation = dist.P2POp(send_or_receive, tensor, group=self.group, tag=tag, group_peer=peer)
                operations.append((peer, operation))
        self.bytes_sent += packet.numel() * packet.element_size()
        works = []
        if dist.get_backend(self.group) == dist.Backend.NCCL and operations:  # NCCL wants them as one
            with self._blaming(self.previous):
                posted = dist.batch_isend_irecv([operation for _, operation in operations])
            works = [(self.previous, work) for work in posted]
        else:
            for peer, operation in operations:
                with self._blaming(peer):
                    works += [(peer, work) for work in dist.batch_isend_irecv([operation])]
        return Parcel(packet, received, works)

    def finish(self, parcel: Parcel) -> Tensor:
        """Wait until a parcel is sent and received, and give what was received.

        Raises:
            ConnectionError: a process has died, or does not answer within the time-out of the group.
        """
        timeout = self._timeout()
        for peer, work in parcel.works:
            with self._blaming(peer):
                if timeout is None:
                    work.wait()  # NCCL: its own watchdog ends what hangs
                else:
                    work.wait(timeout - self._grace())
        return parcel.received

    def gather(self, packet: Tensor) -> list[Tensor]:
        """Give every process the packets of all, in the order of the ranks; all packets have one size."""
        packets = [packet] * self.size
        for step in range(self.size - 1):
            packet = self.finish(self.start(packet, packet.numel()))
            packets[(self.rank - step - 1) % self.size] = packet
        return packets

    def _timeout(self) -> timedelta | None:
        backend = self.group._get_backend(torch.device("cpu")) if dist.get_backend(self.group) == "gloo" else None
        return None if backend is None else backend.options._timeout

    def _grace(self) -> timedelta:
        return min(GRACE, (self._timeout() or GRACE) / 4)

    @contextmanager
    def _blaming(self, peer: int) -> Iterator[None]:
        """Turn a failure with a neighbour into an error that names the process behind it."""
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
        """Follow the complaints: whoever fails leaves a note with whom it waited for; who left none is missing."""
        suspects = [peer]

        def follow() -> None:
            store = dist.PrefixStore(f"attnlib/{self.group.group_name}", dist.distributed_c10d._get_default_store())
            store.set(str(self.rank), str(peer))
            while suspects[-1] != self.rank and len(suspects) <= self.size:
                while not store.check([str(suspects[-1])]):
                    time.sleep(0.02)
                suspects.append(int(store.get(str(suspects[-1]))))

        def follow_while_the_store_lives() -> None:
            with suppress(RuntimeError):  # the store was kept by a process that is gone: the last suspect stands
                follow()

        thread = threading.Thread(target=follow_while_the_store_lives, daemon=True)
        thread.start()
        thread.join(self._grace().total_seconds())
        return suspects[-1]
