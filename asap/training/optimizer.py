"""AdamW with two learning rates, and its schedules: ours by step, and the published one by epoch."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

_IMAGE_SIDE = ("image_encoder.", "aggregator.", "image_side_attention.", "box_head.")
_PUBLISHED_IMAGE_SIDE = (*_IMAGE_SIDE, "aggregate_token", "aggregate_norm.", "image_side_norm.")

_FLOOR = 1e-6
"""The published lowest rate of every group: at the start of the warmup and at the end of the cosine."""
_STAIR_STEPS, _STAIRS = 100, 10
"""The published warmup rises in so many stairs, each of so many steps."""


def adamw(
    step: nn.Module,
    learning_rate: float,
    image_learning_rate: float,
    weight_decay: float,
    *,
    published_groups: bool = False,
) -> AdamW:
    """Create AdamW with a learning rate of its own for the image side.

    Weight decay spares biases, norms, scalars and learned tokens: zero is no sensible target for them.

    Args:
        step: a model, or a training step with its `student`. Frozen parameters are left out.
        learning_rate: the rate of all other parameters.
        image_learning_rate: the rate of image encoder, aggregator, image-side attention and box head.
        weight_decay: the decay of matrices.
        published_groups: use exactly the two published groups. The aggregate token and the two norms of the image side
            have the image's rate too, and every parameter decays.
    """
    image_side = _PUBLISHED_IMAGE_SIDE if published_groups else _IMAGE_SIDE
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in step.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim >= 2 and "token" not in name.rsplit(".", 1)[-1] and "pos_embed" not in name
            group = name.removeprefix("student.").startswith(image_side), published_groups or is_matrix
            groups.setdefault(group, []).append(parameter)
    return AdamW(
        [
            {
                "params": parameters,
                "lr": image_learning_rate if is_image_side else learning_rate,
                "weight_decay": weight_decay if decays else 0.0,
            }
            for (is_image_side, decays), parameters in groups.items()
        ]
    )


def warmup_cosine(
    optimizer: AdamW, warmup_steps: int, total_steps: int, final: float = 0.01, *, held_steps: int = 0
) -> LambdaLR:
    """Create the schedule: a linear warmup, then half a cosine.

    Args:
        optimizer: the optimizer whose rates are scheduled.
        warmup_steps: steps of the linear warmup from 0.
        total_steps: all steps, `held_steps` included.
        final: the factor of each group's rate at the end of the cosine.
        held_steps: steps before all that, which hold the full rate after a warmup of their own (a first stage).
    """

    def factor(step: int) -> float:
        if step < held_steps:
            return min(1.0, (step + 1) / warmup_steps)
        # After the held steps, count from zero: warmup and cosine share the steps that are left.
        step, steps = step - held_steps, total_steps - held_steps
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def published_schedule(optimizer: AdamW, steps_an_epoch: int, epochs: int) -> LambdaLR:
    """Create the published schedule, in which every group has the same lowest rate.

    The first epoch warms up in ten stairs of 100 steps, and then holds the full rate. A shorter first epoch never
    reaches it. Every later epoch has one rate, on half a cosine over all epochs.

    Args:
        optimizer: the optimizer whose rates are scheduled.
        steps_an_epoch: steps of an epoch.
        epochs: number of epochs, over which the cosine falls.
    """

    def rate(step: int, peak: float) -> float:
        epoch, number = divmod(step, steps_an_epoch)
        if epoch == 0:
            # The published loop climbs after the steps 0, 100, 200 ..., so step 100 is still on the lowest stair.
            stair = min(max(0, number - 1) // _STAIR_STEPS, _STAIRS)
            return _FLOOR + (peak - _FLOOR) * stair / _STAIRS
        progress = min(1.0, epoch / epochs)
        return _FLOOR + (peak - _FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))

    def factor_of(peak: float) -> Callable[[int], float]:
        return lambda step: rate(step, peak) / peak

    return LambdaLR(optimizer, [factor_of(group["lr"]) for group in optimizer.param_groups])
