"""A model of 48 channels and batches of noise: real parts that take no time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from asap.labels import IMAGE_TYPES, is_manipulated
from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.training.batch import Batch, Tokens
from asap.training.targets import box_targets, multi_hot, patch_labels, patch_mask

CLASSES = ("orig", "face_swap", "text_swap", "face_attribute&text_attribute")


def tiny_config(**changes: Any) -> ModelConfig:
    """Return a configuration with one layer in each encoder, nine patches and no dropout."""
    shape: dict[str, Any] = {
        "image_size": 48, "width": 48, "heads": 4, "image_layers": 1, "image_mlp_width": 48, "text_layers": 1,
        "fusion_layers": 1, "text_mlp_width": 48, "vocab_size": 50, "max_positions": 32, "max_tokens": 32,
        "embed_dim": 8, "dropout": 0.0,
    }  # fmt: skip
    return ModelConfig.tiny(**(shape | changes))


def tiny_model(seed: int = 0, **changes: Any) -> Asap:
    """Build a model in eval mode whose outputs differ clearly between pairs.

    With the initial weights for training, they hardly differ.
    """
    torch.manual_seed(seed)
    model = Asap(tiny_config(**changes))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5 if "embed" in name else 1.5 * parameter[0].numel() ** -0.5)
        elif name.endswith("_scale"):
            nn.init.constant_(parameter, 0.5)
    return model.eval()


def draw_texts(generator: torch.Generator, lengths: Sequence[int]) -> Tokens:
    """Draw texts with these numbers of tokens, padded to the longest."""
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    return Tokens(torch.randint(5, 50, mask.shape, generator=generator) * mask, mask)


def draw_batch(classes: Sequence[str] = CLASSES, *, seed: int = 0, config: ModelConfig | None = None) -> Batch:
    """Draw a pair for each class. Texts have 3 to 7 tokens; the first is manipulated if the class has a text type."""
    config = config or tiny_config()
    generator = torch.Generator().manual_seed(seed)
    pairs = len(classes)
    types = torch.stack([multi_hot(name) for name in classes])
    has_box = types[:, : len(IMAGE_TYPES)].any(dim=1)
    corners = torch.rand(pairs, 2, 2, generator=generator).mul(0.4).add(torch.tensor([[0.05], [0.5]]))
    boxes = corners.flatten(1).double() * config.image_size * has_box[:, None]
    text = draw_texts(generator, [3 + number % 5 for number in range(pairs)])
    labels = torch.full_like(text.input_ids[:, 1:], -100).masked_fill(text.mask[:, 1:] == 1, 0)
    labels[types[:, len(IMAGE_TYPES) :].any(dim=1), 0] = 1
    mask = patch_mask(boxes, has_box, config.image_size, config.patch_size)
    return Batch(
        images=torch.randn(pairs, 3, config.image_size, config.image_size, generator=generator),
        text=text,
        caption=draw_texts(generator, [4 + number % 3 for number in range(pairs)]),
        explanation=draw_texts(generator, [6 - number % 3 for number in range(pairs)]),
        manipulated=torch.tensor([is_manipulated(name) for name in classes]),
        types=types,
        box_cxcywh=box_targets(boxes, config.image_size),
        has_box=has_box,
        token_labels=labels,
        patch_mask=mask,
        patch_labels=patch_labels(mask),
    )
