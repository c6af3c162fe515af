"""Tensors that others trained, under our names: taken where they fit the model to be trained, else refused."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from asap.errors import CheckpointError
from asap.model.config import ModelConfig
from asap.weights.albef import InitialisationReport, has_another_size
from asap.weights.published import POSITIONS, expected_shapes, misfits, resize_positions

PATCH_EMBEDDING = r"image_encoder\.patch_embed\."
WORDS = r"text_encoder\.embeddings\.word_embeddings\."
ASAP_ONLY = r"image_side_attention\.self_attention\.|explanation_head\.|patch_head\.|(real_fake|type)_scale$"
"""What HAMMER has not: one may start from the other."""


def fitting(
    found: Mapping[str, Tensor], config: ModelConfig, title: str, left_out: list[str], scope: tuple[str, ...] = ("",)
) -> tuple[dict[str, Tensor], InitialisationReport]:
    """What is taken of `found`, in float32, and the report of it, which does not say what stays fresh.

    All that the modules of `scope` have must be there, and nothing else, but for what matches a pattern of `left_out`:
    that is neither expected nor taken. Raises `CheckpointError` with every key that does not fit.
    """
    pattern = re.compile("|".join(left_out) or "(?!)")
    expected = {
        name: shape
        for name, shape in expected_shapes(config).items()
        if name.startswith(scope) and not pattern.match(name)
    }
    weights = {name: value for name, value in found.items() if not pattern.match(name)}
    resized = []
    if POSITIONS in expected and has_another_size(weights.get(POSITIONS), expected[POSITIONS]):
        weights[POSITIONS] = resize_positions(weights[POSITIONS], config)
        resized = [POSITIONS]
    if lines := misfits(expected, {name: tuple(value.shape) for name, value in weights.items()}):
        raise CheckpointError(f"{title} does not fit the model that is to be trained; nothing was loaded\n{lines}")
    weights = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    report = InitialisationReport(
        taken=sorted(weights), resized=resized, fresh=[], for_twins=[], dropped=sorted(set(found) - set(weights))
    )
    return weights, report


def check_post_norm(source: str, config: ModelConfig) -> None:
    """Raise `CheckpointError` unless the model normalises where BERT and every published checkpoint do."""
    if config.text_norm != "post":
        raise CheckpointError(
            f"{source} normalises after each residual sum, and the run's text_norm is {config.text_norm!r}; "
            'nothing was loaded: set model={"text_norm": "post"}, or preset=base'
        )
