"""ALBEF's pre-training checkpoint as a start for training: what fits is taken, and a report says what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from asap.errors import CheckpointError
from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.weights.matching import (
    POSITIONS,
    InitialisationReport,
    expected_shapes,
    has_another_size,
    misfits,
    resize_positions,
)
from asap.weights.published import TWINNED, Twins, published_name, queues, read_state, title_of

_PRETRAINED = ("image_encoder.", "text_encoder.", "fusion_encoder.", "image_projection.", "text_projection.")
"""The modules that ALBEF has too, each with a twin; beside them it has the temperature."""
_QUEUE_KEYS = {"image_queue", "text_queue", "queue_ptr"}


def import_albef(source: str | Path | Mapping[str, Any], config: ModelConfig) -> tuple[Asap, InitialisationReport]:
    """A model to train, in train mode, that starts from ALBEF, and what was taken of it.

    source: a `.pth` file or a state dict, bare or under "model". Encoders, projections and temperature must all be
    there and fit `config`; only position embeddings are resized to its image size, and a conv patch embedding stays
    fresh. Heads and image side keep the initialisation that torch's seed gives them.
    Raises `CheckpointError` with every key that is missing or does not fit.
    """
    state = read_state(source)
    weights, resized = _fitting(state, title_of(source), config, twin=False)
    model = Asap(config)
    model.load_state_dict(weights, strict=False)
    used = {published_name(name, config) for name in weights}
    for_twins = {published_name(name, config, twin=True) for name in weights if name.startswith(TWINNED)} | _QUEUE_KEYS
    report = InitialisationReport(
        taken=sorted(weights),
        resized=resized,
        fresh=sorted(set(model.state_dict()) - set(weights)),
        for_twins=sorted(for_twins & set(state)),
        dropped=sorted(set(state) - used - for_twins),
    )
    return model, report


def albef_twins(source: str | Path | Mapping[str, Any], config: ModelConfig) -> Twins:
    """ALBEF's momentum twin and its image and text queues, for a model that `import_albef` gave.

    What is fresh in the student (token head, conv patch embedding) is absent: there the twin starts as its copy.
    A checkpoint without a twin gives none. Raises as `import_albef` does.
    """
    state = read_state(source)
    weights: dict[str, Tensor] = {}
    if any(key.startswith("visual_encoder_m.") for key in state):
        weights, _ = _fitting(state, title_of(source), config, twin=True)
    return Twins(weights, queues(state))


def _fitting(
    state: dict[str, Tensor], title: str, config: ModelConfig, *, twin: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """The pretrained weights under our names, resized where needed, and the names of those that were."""
    wanted = _PRETRAINED if twin else (*_PRETRAINED, "temperature")
    conv = config.patch_embedding == "conv"
    ours = {
        name: shape
        for name, shape in expected_shapes(config).items()
        if name.startswith(wanted) and not (conv and name.startswith("image_encoder.patch_embed."))
    }
    keys = {name: published_name(name, config, twin=twin) for name in ours}
    weights = {name: state[key] for name, key in keys.items() if key in state}
    resized = [POSITIONS] if has_another_size(weights.get(POSITIONS), ours[POSITIONS]) else []
    weights |= {name: resize_positions(weights[name], config) for name in resized}
    expected = {keys[name]: shape for name, shape in ours.items()}
    if lines := misfits(expected, {keys[name]: tuple(tensor.shape) for name, tensor in weights.items()}):
        raise CheckpointError(f"{title} is no ALBEF checkpoint of the configured size; nothing was loaded\n{lines}")
    return weights, resized
