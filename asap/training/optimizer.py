"""AdamW as the paper trains with: two learning rates, decay where it belongs, warmup and cosine by step."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

_IMAGE_SIDE = ("image_encoder.", "aggregator.", "image_side_attention.", "box_head.")


def adamw(step: nn.Module, learning_rate: float, image_learning_rate: float, weight_decay: float) -> AdamW:
    """AdamW with `image_learning_rate` for vision, aggregator, image-side attention and box head (published recipe).

    step: a model, or a training step with its `student`; what is frozen is left alone.
    Weight decay spares biases, norms, scalars and learned tokens, which have nothing to be shrunk towards.
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
    optimiser: AdamW, warmup_steps: int, total_steps: int, final: float = 0.01, *, held_steps: int = 0
) -> LambdaLR:
    """Linear from 0 over `warmup_steps`, then half a cosine down to the share `final` of each group's rate.

    Before that, `held_steps` at the full rate with a warmup of their own: a stage that others follow.
    """

    def share(step: int) -> float:
        if step < held_steps:
            return min(1.0, (step + 1) / warmup_steps)
        return of_the_rest(step - held_steps, total_steps - held_steps)

    def of_the_rest(step: int, steps: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimiser, share)
