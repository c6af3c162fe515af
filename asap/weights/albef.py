"""ALBEF's pre-training checkpoint as a start for training, with a report on the use of each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from asap.errors import CheckpointError
from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.weights.checkpoint_file import read_state, title_of
from asap.weights.matching import (
    POSITIONS,
    InitializationReport,
    describe_mismatches,
    expected_shapes,
    has_another_size,
    resize_positions,
)
from asap.weights.published import TWINNED, Twins, published_name, queues

_PRETRAINED = ("image_encoder.", "text_encoder.", "fusion_encoder.", "image_projection.", "text_projection.")
"""Prefixes of the modules that ALBEF has too, each with a twin. It also has the temperature."""
_QUEUE_KEYS = {"image_queue", "text_queue", "queue_ptr"}


def import_albef(source: str | Path | Mapping[str, Any], config: ModelConfig) -> tuple[Asap, InitializationReport]:
    """Build a model to train, in train mode, that starts from ALBEF, and a report on what was taken.

    Encoders, projections and temperature must all be there and fit `config`. Only position embeddings are resized to
    its image size, and a conv patch embedding stays fresh. Heads and image side keep the initialization that torch's
    seed gives them.

    Args:
        source: a `.pth` file or a state dict, bare or under "model".
        config: the configuration of the model.

    Raises:
        CheckpointError: with every key that is missing or does not fit.
    """
    state = read_state(source)
    weights, resized = _pretrained_weights(state, title_of(source), config, twin=False)
    model = Asap(config)
    model.load_state_dict(weights, strict=False)
    # Each tensor of the checkpoint counts once: used by the model, by its twin, or dropped.
    used = {published_name(name, config) for name in weights}
    for_twins = {published_name(name, config, twin=True) for name in weights if name.startswith(TWINNED)} | _QUEUE_KEYS
    report = InitializationReport(
        taken=sorted(weights),
        resized=resized,
        fresh=sorted(set(model.state_dict()) - set(weights)),
        for_twins=sorted(for_twins & set(state)),
        dropped=sorted(set(state) - used - for_twins),
    )
    return model, report


def albef_twins(source: str | Path | Mapping[str, Any], config: ModelConfig) -> Twins:
    """Return ALBEF's momentum twin and its image and text queues, for a model that `import_albef` built.

    Parameters that are fresh in the student (token head, conv patch embedding) are absent: there the twin starts as a
    copy of the student. A checkpoint without a twin gives empty weights. Raises as `import_albef` does.
    """
    state = read_state(source)
    weights: dict[str, Tensor] = {}
    if any(key.startswith("visual_encoder_m.") for key in state):
        weights, _ = _pretrained_weights(state, title_of(source), config, twin=True)
    return Twins(weights, queues(state))


def _pretrained_weights(
    state: dict[str, Tensor], title: str, config: ModelConfig, *, twin: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the pretrained weights under our names, resized where needed, and the names of the resized ones."""
    prefixes = _PRETRAINED if twin else (*_PRETRAINED, "temperature")
    conv = config.patch_embedding == "conv"
    ours = {
        name: shape
        for name, shape in expected_shapes(config).items()
        if name.startswith(prefixes) and not (conv and name.startswith("image_encoder.patch_embed."))
    }
    keys = {name: published_name(name, config, twin=twin) for name in ours}
    weights = {name: state[key] for name, key in keys.items() if key in state}
    resized = [POSITIONS] if has_another_size(weights.get(POSITIONS), ours[POSITIONS]) else []
    weights |= {name: resize_positions(weights[name], config) for name in resized}
    # Compared by the checkpoint's names, which are the ones that a person can look up in it.
    expected = {keys[name]: shape for name, shape in ours.items()}
    if lines := describe_mismatches(expected, {keys[name]: tuple(tensor.shape) for name, tensor in weights.items()}):
        raise CheckpointError(f"{title} is not an ALBEF checkpoint of the configured size; nothing was loaded\n{lines}")
    return weights, resized
