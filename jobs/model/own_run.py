"""A checkpoint that `asap train` wrote: the weights of its model, by the settings of its run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asap.errors import AsapError, CheckpointError
from asap.model.asap import Asap
from asap.weights.matching import describe_mismatches, expected_shapes
from asap.weights.published import build
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import NOT_SETTINGS, TrainSettings
from jobs.train.trainer import model_config

_KEYS = {"done", "module", "optimiser", "schedule"}
"""Keys of `jobs.train.trainer.Trainer.snapshot`."""
_LEVELS = 3
"""Folders above a checkpoint in which its run is looked for: RUN/ray_train/CHECKPOINT/state.pt."""


def is_own(content: object) -> bool:
    """Return True if the content of a file is the state of a training run."""
    return isinstance(content, Mapping) and content.keys() >= _KEYS


def run_of(file: Path) -> RunFolder | None:
    """Return the folder of the run that a checkpoint lies in; None if it lies in none."""
    folders = map(RunFolder, file.resolve().parents[:_LEVELS])
    return next((folder for folder in folders if folder.settings.is_file()), None)


def build_own(content: Mapping[str, Any], file: Path, vocab_size: int) -> tuple[Asap, str]:
    """Build the model of a run's checkpoint, and return it with a sentence on where its weights are from.

    Args:
        content: The content of the file.
        file: The file, which lies in its run folder.
        vocab_size: Pieces of the run's tokenizer.

    Raises:
        CheckpointError: If the run has no settings, or the weights do not fit them.
    """
    run = run_of(file)
    if run is None:
        raise CheckpointError(
            f"checkpoint {file} is one of `asap train`, and the settings of its run are not beside it. Name it where "
            "the run wrote it, RUN/ray_train/CHECKPOINT/state.pt, with train.json in RUN."
        )
    settings = _settings_of(run)
    config = model_config(settings, vocab_size)
    prefix = "twin.module." if settings.weights == "average" else "student."
    weights = {key.removeprefix(prefix): value for key, value in content["module"].items() if key.startswith(prefix)}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    if lines := describe_mismatches(expected_shapes(config), found):
        raise CheckpointError(
            f"checkpoint {file} does not fit the settings in {run.settings}; nothing was loaded\n{lines}"
        )
    averaged = "averaged over its steps" if settings.weights == "average" else "of its last step"
    return build(config, weights).eval(), f"the run {run.path.name}, after {content['done']:,} steps, {averaged}"


def _settings_of(run: RunFolder) -> TrainSettings:
    """Read the settings of a run; one of an older version has the defaults for what it lacks."""
    try:
        recorded = json.loads(run.settings.read_text(encoding="utf-8"))
        identity = {name: value for name, value in recorded.items() if name not in NOT_SETTINGS}
        defaults = TrainSettings(corpus="", out="").identity()
        return TrainSettings(**defaults | identity, out="")
    except (OSError, ValueError, TypeError, AttributeError, AsapError) as error:
        raise CheckpointError(f"{run.settings} cannot be read as the settings of a run: {error}") from error
