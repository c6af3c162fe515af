"""Activations of the encoders, pooled over positions: the features that `asap.familiarity` compares.

Early layers still see what kind of picture or text they read. Late layers keep what their task needs, and map a
photograph onto the drawings that a model was trained on (docs/familiarity.md has the comparison).

Shapes: B images, P passes over texts, L text tokens with [CLS], N image tokens, C channels, W width, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast

import torch
from torch import Tensor, nn

from asap.model.asap import Asap
from asap.model.encoders import ConvStem

_collected: ContextVar[list[Tensor] | None] = ContextVar("_collected", default=None)
"""The features of the image that is being encoded. It is a context variable, since threads may share a model."""


class EarlyActivations:
    """Encodes the images and texts of a model, and returns the features of their early layers too."""

    def __init__(self, model: Asap) -> None:
        """Watch the early layers of the model's image encoder, which stays as it is."""
        self._model = model
        for layer in _early_layers(model.image_encoder):
            if _collect not in layer._forward_hooks.values():  # another instance may watch the same model
                layer.register_forward_hook(_collect)

    def encode_image(self, images_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels (B, 3, S, S), normalized or uint8, as image tokens (B, N, W) and features (B, D), float32."""
        with _collecting() as features:
            image_BNW = self._model.encode_image(images_B3SS)
        return image_BNW, torch.cat(features, dim=1)


def _early_layers(encoder: nn.Module) -> Sequence[nn.Module]:
    """Return the last three convolutions of a convolutional stem; else the patch embedding and the first block."""
    embedding = cast("nn.Module", encoder.patch_embed)
    if isinstance(embedding, ConvStem):
        return [layer for layer in embedding.proj if isinstance(layer, nn.ReLU)][-3:]
    return [embedding, cast("nn.ModuleList", encoder.blocks)[0]]


def _collect(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Append mean and standard deviation of each channel over the image, (B, 2 * C), if features are collected."""
    features = _collected.get()
    if features is not None:
        tokens_BNC = (output.permute(0, 2, 3, 1).flatten(1, 2) if output.ndim == 4 else output).float()
        mean_BC = tokens_BNC.mean(1)
        # The norm takes a third of the time of torch.var.
        squares_BC = torch.linalg.vector_norm(tokens_BNC, dim=1).square() / tokens_BNC.shape[1]
        features += [mean_BC, (squares_BC - mean_BC.square()).clamp(min=0).sqrt()]


@contextmanager
def _collecting() -> Iterator[list[Tensor]]:
    features: list[Tensor] = []
    token = _collected.set(features)
    try:
        yield features
    finally:
        _collected.reset(token)


def token_features(image_BNW: Tensor) -> Tensor:
    """Return the features of image tokens, (B, 3 * W), float32: mean and deviation of the patches, and [CLS]."""
    patches_BPW = image_BNW[:, 1:].float()
    return torch.cat([patches_BPW.mean(1), patches_BPW.std(1, correction=0), image_BNW[:, 0].float()], dim=1)


def text_sums(text_PLW: Tensor, mask_PL: Tensor | None) -> Tensor:
    """Return what the features of a text are computed from, (P, 2 * W + 1), float32; passes over one text add up.

    These are sum, sum of squares and number of the tokens after [CLS].

    Args:
        text_PLW: tokens of the text encoder.
        mask_PL: 0 for padding, else 1. None: nothing is padded.
    """
    tokens_PLW = text_PLW[:, 1:].float()
    if mask_PL is None:
        count_P1 = torch.full_like(tokens_PLW[:, 0, :1], tokens_PLW.shape[1])
    else:
        mask_PL1 = mask_PL[:, 1:, None].float()
        tokens_PLW, count_P1 = tokens_PLW * mask_PL1, mask_PL1.sum(1)
    return torch.cat([tokens_PLW.sum(1), tokens_PLW.square().sum(1), count_P1], dim=1)


def text_features(sums_RD: Tensor) -> Tensor:
    """Return mean and standard deviation of each channel over the tokens of texts, (R, 2 * W), from their sums."""
    width = (sums_RD.shape[1] - 1) // 2
    sum_RW, squares_RW, count_R1 = sums_RD.split([width, width, 1], dim=1)
    mean_RW = sum_RW / count_R1
    variance_RW = (squares_RW / count_R1 - mean_RW.square()).clamp(min=0)
    return torch.cat([mean_RW, variance_RW.sqrt()], dim=1)
