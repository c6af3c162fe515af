"""Collective operations of training. A single process needs no process group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Return the number of workers that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this worker, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(features_BE: Tensor) -> Tensor:
    """Concatenate the rows of all workers in rank order: (world * B, E).

    No gradient flows back. Every worker must pass B rows.
    """
    if world_size() == 1:
        return features_BE.detach()
    parts = [torch.empty_like(features_BE) for _ in range(world_size())]
    dist.all_gather(parts, features_BE.detach().contiguous())
    return torch.cat(parts)


def gather_objects(value: Any) -> list[Any]:
    """Return the values of all workers, in rank order. A value is anything that can be pickled."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def decided_by_first(decision: bool, device: torch.device) -> bool:
    """Return the decision of the first worker. Every worker must call this; those of the others do not count."""
    if world_size() == 1:
        return decision
    answer = torch.tensor([decision], dtype=torch.uint8, device=device)
    dist.broadcast(answer, src=0)
    return bool(answer.item())


def add_over_workers(values: Tensor) -> Tensor:
    """Sum the values over all workers, element by element. No gradient flows back."""
    values = values.detach().clone()
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def mean_over_workers(total: Tensor, count: Tensor) -> Tensor:
    """Divide `total` by the count of all workers, scaled so that averaging gradients gives the global mean.

    A term that no worker has is 0, never NaN. It keeps its graph, so that every parameter still gets a gradient.
    """
    count = count.detach().to(total.dtype)
    if world_size() > 1:
        dist.all_reduce(count)
    return total * (world_size() / count.clamp(min=1))


@torch.no_grad()
def average_running_statistics(model: nn.Module) -> None:
    """Average the running statistics of batch normalization over workers, in one message.

    Each worker normalizes by its own part of a batch, so a variance is the variance of a part. Modules in eval mode are
    skipped: their statistics are the same on all workers already, and averaging would make them drift by rounding.
    """
    if world_size() == 1:
        return
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    statistics = [values for norm in norms for values in (norm.running_mean, norm.running_var) if values is not None]
    if not statistics:
        return
    means = add_over_workers(torch.cat(statistics)) / world_size()
    for values, mean in zip(statistics, means.split([len(values) for values in statistics]), strict=True):
        values.copy_(mean)
