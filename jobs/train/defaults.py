"""Defaults of a training run that follow from other settings: from first weights, and from the published recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asap.training.objective import RECIPES

PUBLISHED_RECIPES = ("asap", "asap-as-published", "hammer")
"""The recipes that were published. With `defects`, the first two are the same."""
DEFAULT_PAIRS = 140_000
"""Pairs of a run whose length is not given."""


def warm_start_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of a run that starts from pretrained weights, by the name of the setting.

    The defaults of `TrainSettings` are for random weights. Their rates of 1e-3 would destroy pretrained weights, and
    their stages spare work that pretrained weights have behind them: everything is trained from the first step. The
    rates of the base size are the published ones. Those of the tiny size are a tenth of its rates for random weights:
    its layers are narrower, so a step may be larger, but it must not replace what they know. The recipe is the one that
    was chosen from pretrained weights. A side whose weights no source brings keeps the defaults for random weights.

    Args:
        given: The settings that were given.
    """
    image_rate = {"image_learning_rate": 1e-4}
    text_rate = {"learning_rate": 1e-4 if given.get("preset", "tiny") == "tiny" else 2e-5}
    sources = [str(source) for source in given.get("init") or ("",)]
    if all(source.startswith("timm:") for source in sources):
        return image_rate
    if all(source.startswith("bert:") for source in sources):
        return text_rate | {"words_until": 0.0}
    return {
        "recipe": "asap-ray-pretrained",
        **text_rate,
        **image_rate,
        "warmup_pairs": None,
        "words_until": 0.0,
        "alignment_from": given.get("words_until", 0.0),  # it cannot be earlier
        "alpha_ramp_pairs": None,
    }


def published_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the published training by the name of the setting: that of HAMMER for its recipe, else that of ASAP.

    Args:
        given: The settings that were given.
    """
    recipe = str(given.get("recipe", "asap"))
    is_hammer = recipe in RECIPES and RECIPES[recipe].model.get("variant") == "hammer"
    return {
        "name": "hammer" if is_hammer else "asap",
        "recipe": recipe,
        "defects": True,
        "loss_weights": {},
        "model": {},
        "initial_values": "published",
        "epochs": 50.0,
        "batch_size": 256 if is_hammer else 1024,  # eight GPUs
        "accumulation": 1,
        "learning_rate": 2e-5,
        "image_learning_rate": 1e-4,
        "weight_decay": 0.02,
        "optimizer_groups": "published",
        "schedule": "published",
        "gradient_norm": None,
        "augmentation": "published",
        "words_until": 0.0,
        "alignment_from": given.get("words_until", 0.0),  # it cannot be earlier
        "lock_image_from": 1.0,
        "alpha": 0.4,
        "alpha_ramp_pairs": None,
        "queue_size": 65_536,
        "momentum": 0.995,
        "twin_dropout": True,
        "precision": "tf32",
        "checkpoint_pairs": "epoch",
        "validation_pairs": None,
        "weights": "student",
        "export": "best",
    }
