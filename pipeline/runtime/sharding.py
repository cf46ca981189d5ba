"""A network whose weights are divided over the ranks (`train.sharding=fsdp`), by torch's FSDP2.

Of every weight, a rank holds a run of its rows: a `DTensor`, whose shape is that of the whole. What works on each
number by itself (optimisers, EMA) works on the rows of each rank. Before a piece of the network computes, the ranks
exchange its rows, and forget those of others after it. Its gradients are averaged and divided at once.

Tensors that are not divided pass through `whole`, `part` and `rows` as they are: callers need not ask.
"""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.runtime.distributed import ranks


def shard(network: nn.Module, pieces: Iterable[nn.Module], *, device: torch.device) -> None:
    """Divide the weights of a network, in place, and move each rank's rows to its device.

    The network may be on the CPU: a device never holds more than one whole piece.

    Args:
        network: with equal weights on every rank.
        pieces: modules of it that are called as such and compute one after the other. The rest is one more piece.
        device: of this rank.
    """
    # They take half a second to load, which other jobs do not need.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if device.type == "cuda":
        torch.cuda.set_device(device)  # FSDP moves weights to the current one
    mesh = init_device_mesh(device.type, (ranks()[1],))
    # Torch keeps the mesh in caches for good. Without these references the process group can end, see `leave`: the mesh
    # finds it by its name.
    getattr(mesh, "_pg_registry", {}).clear()
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP divides no other order of dimensions
    for piece in (*pieces, network):
        # Torch would leave the last piece whole between the forward and the backward pass: here no piece is.
        fully_shard(piece, mesh=mesh, reshard_after_forward=True)


def hollowed(network: nn.Module, *, device: torch.device) -> nn.Module:
    """A copy of the network for evaluation that has no weights, to be called with whole ones by `functional_call`.

    A sharded network exchanges weights in every call, so all ranks must call it equally often. This one need not.
    """
    instead: dict[int, Tensor] = {id(b): b.to(device, copy=True) for b in network.buffers()}
    for p in network.parameters():
        instead[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
    return copy.deepcopy(network, instead).eval()


def whole(tensor: Tensor) -> Tensor:
    """The rows of all ranks together, on every rank. A collective."""
    found: Tensor = tensor.full_tensor() if _divided(tensor) else tensor  # type: ignore[attr-defined]
    return found


def rows(tensor: Tensor) -> Tensor:
    """This rank's rows: a view."""
    found: Tensor = tensor.to_local() if _divided(tensor) else tensor  # type: ignore[attr-defined]
    return found


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every rank has, divided as `like` is. No rank waits for another."""
    if not _divided(like):
        return tensor
    from torch.distributed.tensor import DTensor

    rank, size = ranks()
    divided = tensor.chunk(size)
    mine = divided[rank] if rank < len(divided) else tensor[:0]  # there are fewer rows than ranks
    return DTensor.from_local(
        mine.to(like.device),
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def _divided(tensor: Tensor) -> bool:
    """Whether it is a DTensor, asked without loading that class."""
    return hasattr(tensor, "device_mesh")
