"""Several processes under ``torchrun``, one GPU (nccl) or a share of the CPU (gloo) each.

Gradients are averaged by hand, in one flat all-reduce after each backward pass: ``DistributedDataParallel`` officially
supports neither a second backward through the first (R1) nor several forward passes before one backward; an average
taken after everything is exact wherever the loss is a mean over the batch. The price, communication that does not
overlap with the backward pass, is small at our model sizes.
"""

from __future__ import annotations

import atexit
import importlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from counterscan.errors import CounterscanError, InputError


@dataclass(frozen=True)
class World:
    """This process among the others; the default is to be alone."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


def join(device: str = "auto") -> World:
    """Join the processes that ``torchrun`` started, unless that is done; or be alone."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no GPU that torch can use", field="device", remedy='Use "auto" or "cpu"')
    gpu = device != "cpu" and torch.cuda.is_available()
    chosen = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if gpu else "cpu")
    if gpu:
        torch.cuda.set_device(chosen)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return World(device=chosen)
    if not dist.is_initialized():
        # Optimizers import this at their first step, and imported after the group it keeps the group alive past its
        # destruction. The group's threads then run into the interpreter's end, where they often abort the process.
        importlib.import_module("torch._dynamo")
        dist.init_process_group("nccl" if gpu else "gloo")
        atexit.register(leave)
    return World(dist.get_rank(), dist.get_world_size(), chosen)


def leave() -> None:
    """Leave the other processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def all_reduce_mean(tensor: Tensor, world: World) -> Tensor:
    """Mean over the processes, in place."""
    if world.size > 1:
        dist.all_reduce(tensor)
        tensor /= world.size
    return tensor


def average_gradients(parameters: Sequence[nn.Parameter], loss: Tensor, world: World) -> Tensor:
    """Average gradients over the processes; returns the average of ``loss``, so that all learn of a bad one.

    A parameter without gradient here but with one elsewhere counts as zero here; without any, it stays without.
    """
    if world.size == 1:
        return loss
    has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=loss.device)
    grads = [(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1).float() for p in parameters]
    flat = all_reduce_mean(torch.cat([loss.reshape(1), has, *grads]), world)
    mean, has, *pieces = flat.split([1, len(parameters), *(p.numel() for p in parameters)])
    for parameter, piece, used in zip(parameters, pieces, has.tolist(), strict=True):
        parameter.grad = piece.view_as(parameter).to(parameter.dtype) if used else None
    return mean[0]


def average_buffers(modules: Iterable[nn.Module], world: World) -> None:
    """Average floating-point buffers (batch-norm statistics), which each process computed from its own images."""
    buffers = [b for module in modules for b in module.buffers() if b.is_floating_point()]
    if world.size > 1 and buffers:
        flat = all_reduce_mean(torch.cat([b.reshape(-1).float() for b in buffers]), world)
        for buffer, piece in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(piece.view_as(buffer))


def broadcast(modules: Iterable[nn.Module], world: World) -> None:
    """Give every process the weights and buffers of rank 0."""
    for tensor in (t for module in modules for t in module.state_dict().values() if world.size > 1):
        dist.broadcast(tensor, src=0)


def check_agreement(modules: Iterable[nn.Module], world: World) -> None:
    """Raise CounterscanError on every process when their weights are not bit for bit the same."""
    if world.size > 1:
        sums = torch.stack([p.detach().double().sum() for module in modules for p in module.parameters()])
        low = sums.clone()
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(sums, dist.ReduceOp.MAX)
        if not torch.equal(low, sums):
            raise CounterscanError("the processes' weights differ: a step made them depend on the rank")
