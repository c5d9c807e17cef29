"""Counts what an operation allocates, so that a test of memory does not depend on the machine."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Remembers the size, in numbers, of the largest tensor that any operation returned."""

    numbers = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                stored = tensor.untyped_storage().nbytes() // tensor.itemsize  # an expanded view stores fewer
                self.numbers = max(self.numbers, min(tensor.numel(), stored))
        return result
