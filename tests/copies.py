"""What is copied from the host to the device. On a GPU a step waits for it, and a CUDA graph cannot hold it."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Copies(TorchDispatchMode):
    """The operations in its body that make a tensor of the meta device out of one of the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        of_host = any(isinstance(value, torch.Tensor) and not value.is_meta for value in args)
        if of_host and isinstance(out, torch.Tensor) and out.is_meta:
            self.found.append((str(func), tuple(out.shape)))
        return out


def copied_again(work):
    """What the second call copies: tables may be copied once."""
    work()
    with Copies() as copies:
        work()
    return copies.found
