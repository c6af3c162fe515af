"""AdamW and its schedule as in the paper: two learning rates, selective decay, warmup and cosine by step."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

_IMAGE_SIDE = ("image_encoder.", "aggregator.", "image_side_attention.", "box_head.")


def adamw(step: nn.Module, learning_rate: float, image_learning_rate: float, weight_decay: float) -> AdamW:
    """Create AdamW with a learning rate of its own for the image side (published recipe).

    Weight decay spares biases, norms, scalars and learned tokens: zero is no sensible target for them.

    Args:
        step: a model, or a training step with its `student`. Frozen parameters are left out.
        learning_rate: the rate of all other parameters.
        image_learning_rate: the rate of image encoder, aggregator, image-side attention and box head.
        weight_decay: the decay of matrices.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in step.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and "token" not in name.rsplit(".", 1)[-1] and "pos_embed" not in name
            groups.setdefault((name.removeprefix("student.").startswith(_IMAGE_SIDE), decays), []).append(parameter)
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
