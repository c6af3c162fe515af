"""The published initial values: those of the papers' code before a checkpoint is loaded over them."""

from __future__ import annotations

import torch
from torch import nn

from asap.model.asap import Asap

_STD = 0.02


@torch.no_grad()
def initialize_as_published(model: Asap) -> None:
    """Draw the weights of a new model again, as the published code does at any width.

    Each linear layer of the whole model, image encoder and output projections of attention included, has weights of a
    truncated normal distribution and no bias. So have the learned tokens and positions of the image side. Embeddings of
    the text are normal. Left as torch and `Asap` initialize them: norms at 1 and 0, the joint projections of queries,
    keys and values (Glorot's), the patch embedding, the temperature at 0.07, and the scalars at 0.5.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=_STD)
    for token in (model.image_encoder.cls_token, model.image_encoder.pos_embed, model.aggregate_token):
        nn.init.trunc_normal_(token, std=_STD)
