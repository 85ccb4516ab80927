"""Networks split over the processes (FSDP), for networks too large for one GPU.

Each process holds a share of every weight, and the same share of its gradient, optimizer state and averages. The
weights of a block are gathered when it computes, and dropped afterwards.
"""

from __future__ import annotations

import torch
from torch import nn

from codegrid.errors import InputError


def check_can_shard(device: torch.device) -> None:
    """Raise `InputError` if this version of torch cannot split a network on a device."""
    if device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        raise InputError(f"`shard`: torch {torch.__version__} splits networks only on GPUs: use one later than 2.6")


def shard(module: nn.Module, device: torch.device) -> None:
    """Split a module over all processes, in place. It may be on the CPU: only this process's share is moved.

    All processes must hold the same weights, and call this in the same order.
    """
    # imported here: it takes half a second
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in blocks_of(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Return the parts whose weights are gathered one after the other: the members of each `nn.ModuleList`.

    They must be called as modules. Inner ones come before outer ones.
    """
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    members = [member for part in lists for member in part if not isinstance(member, nn.ModuleList | nn.ModuleDict)]
    return members[::-1]


def in_one_piece(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as a whole one, whether it is split or not. If it is split, all processes must call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def own_share(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's share of a tensor, without a copy: all of it if it is not split."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def deal_out(tensor: torch.Tensor, like: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the first process on all processes: split if `like` is, else whole.

    All processes must call this; the others pass a tensor of its shape on the meta device.
    """
    tensor = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)
    if hasattr(like, "device_mesh"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(like, DTensor)
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    torch.distributed.broadcast(tensor, 0)
    return tensor
