"""Before anything travels, all processes compare what they were asked to do: a mistake becomes an error everywhere."""

import json
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from attnlib.sharded.ring import Ring

CARD = 2048  # bytes in which a process says what it was asked to do


def agree(
    ring: Ring,
    check: Callable[[], object],
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, object],
    *,
    free_axis: int | None = None,
) -> list[dict[str, list[int]]]:
    """Make sure that all processes were called with arguments that fit together.

    Args:
        ring: the processes.
        check: raises if this process's arguments are wrong in themselves.
        tensors: what must have one dtype, and one shape but for ``free_axis``, on all processes.
        facts: what must be the same on all processes, by name.
        free_axis: the axis whose length may differ.

    Returns:
        The shapes of all processes' tensors, by rank and name.

    Raises:
        TypeError, ValueError: what ``check`` raised here; or that another rank's arguments were refused there; or that
            a rank differs from rank 0, and in what.
    """
    error, card, device = None, "{}", torch.device("cpu")
    try:
        check()
        device = next(iter(tensors.values())).device
        dtypes = {f"dtype of {name}": str(tensor.dtype) for name, tensor in tensors.items()}
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        card = json.dumps({"shapes": shapes, "facts": {**dtypes, **facts}})
    except (TypeError, ValueError) as refused:
        error = refused
    packet = torch.frombuffer(bytearray(card.encode().ljust(CARD)), dtype=torch.uint8)
    packets = ring.gather(packet.to(device))
    if error is not None:
        raise error
    cards = [json.loads(bytes(packet.tolist())) for packet in packets]
    for rank, other in enumerate(cards):
        if not other:
            raise ValueError(f"rank {rank} refused its arguments: its own error says why")
    for rank, other in enumerate(cards):
        for name, first in _to_compare(cards[0], free_axis).items():
            got = _to_compare(other, free_axis)[name]
            if got != first:
                raise ValueError(f"{name} must be the same on all ranks; rank 0 has {first}, rank {rank} has {got}")
    return [other["shapes"] for other in cards]


def _to_compare(card: dict, free_axis: int | None) -> dict[str, object]:
    """The facts of a card and its shapes, the free axis written as `*`."""
    shapes = {}
    for name, shape in card["shapes"].items():
        words = [str(size) for size in shape]
        if free_axis is not None:
            words[free_axis] = "*"
        shapes[f"shape of {name}"] = f"({', '.join(words)})"
    return {**shapes, **card["facts"]}
