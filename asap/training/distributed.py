"""The collectives that training needs. One process is the plain case; no process group is needed for it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Workers that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This worker's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(features_BE: Tensor) -> Tensor:
    """Everybody's rows, in rank order: (world * B, E). No gradient flows back; every worker must bring B rows."""
    if world_size() == 1:
        return features_BE.detach()
    parts = [torch.empty_like(features_BE) for _ in range(world_size())]
    dist.all_gather(parts, features_BE.detach().contiguous())
    return torch.cat(parts)


def add_over_workers(values: Tensor) -> Tensor:
    """The sum of everybody's values, element by element. No gradient flows back."""
    values = values.detach().clone()
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def mean_over_workers(total: Tensor, count: Tensor) -> Tensor:
    """`total / count` with the count of all workers, scaled so that averaging gradients gives the global mean.

    A term that nobody has is 0, never NaN, and keeps its graph, so that every parameter still gets a gradient.
    """
    count = count.detach().to(total.dtype)
    if world_size() > 1:
        dist.all_reduce(count)
    return total * (world_size() / count.clamp(min=1))


@torch.no_grad()
def average_running_statistics(model: nn.Module) -> None:
    """Set the running means and variances of all batch normalisation to their mean over workers, in one message.

    As each worker normalises by its own part of a batch, a variance is that of a part. What is in eval mode rests:
    it is the same everywhere already, and averaging would make it drift by rounding.
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
