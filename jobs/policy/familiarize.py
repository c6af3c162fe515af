"""Familiarity of an existing model folder: what the pairs of its training look like to the model.

`asap train` fits it by itself. An imported model, or one from before familiarity, gets it here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from asap.errors import CheckpointError, ConfigError, CorpusError
from asap.storage.files import write_bytes
from asap.storage.location import Location
from asap.storage.s3 import check_writable
from asap.weights.model_folder import (
    FAMILIARITY,
    check_folder,
    load_folder,
    model_config,
    replace_familiarity,
    weights_sha256,
)
from jobs.corpus import read_corpus
from jobs.policy.settings import FamiliarizeSettings

if TYPE_CHECKING:
    from asap.familiarity import Familiarity

OnPairs = Callable[[int, int], None]


@dataclass(frozen=True)
class Familiarized:
    """The familiarity that was written into a model folder."""

    familiarity: Familiarity
    folder: Location
    read: list[str]
    """Findings of reading the corpus, one sentence each."""


def familiarize(settings: FamiliarizeSettings, progress: OnPairs = lambda done, total: None) -> Familiarized:
    """Fit the familiarity of a model to a corpus, and write it into the model folder. A former one is replaced.

    `progress` receives the number of pairs read and of all pairs to read. Raises `ConfigError`, `CorpusError`,
    `AnnotationError`, `CheckpointError`, `StorageError`. The folder is then as it was.
    """
    model = _writable(settings.model)
    folder = check_folder(settings.model)
    label_set = model_config(folder).label_set
    known, held_out = (
        read_corpus(settings, settings.corpus, split, label_set)
        for split in (settings.fit_split, settings.held_out_split)
    )
    # These load torch, which takes seconds, so the corpus is read before.
    from asap.evaluation.own_pairs import fit_familiarity, without
    from asap.familiarity import MIN_PAIRS
    from asap.predictor import Predictor

    counts = {
        settings.fit_split: len(known.records),
        settings.held_out_split: len(without(held_out.records, known.records)),
    }
    for split, count in counts.items():
        if count < MIN_PAIRS:
            raise CorpusError(
                f"split {split} of {settings.corpus} has {count:,} pairs that can be used; familiarity needs "
                f"{MIN_PAIRS:,}. A pair of {settings.fit_split} does not count in {settings.held_out_split} again."
            )
    # A former familiarity may belong to other weights, so it is not read.
    loaded = load_folder(folder, with_familiarity=False)
    familiarity = fit_familiarity(
        Predictor(loaded, device=settings.device, precision="float32", batch_size=settings.batch_size),
        known.records,
        held_out.records,
        weights_sha256=weights_sha256(folder),
        corpus=Location.parse(settings.corpus).name,
        progress=progress,
    )
    _write(familiarity, model, folder)
    return Familiarized(familiarity, model, [*known.report.lines(), *held_out.report.lines()])


def _writable(model: str) -> Location:
    """Return the place of the model folder. Raises an error if there is none that can be written to."""
    if model == "demo":
        raise ConfigError("the model 'demo' ships with asap and is not written to. Copy its folder, and name the copy.")
    location = Location.parse(model)
    folder = check_folder(model)
    if location.is_s3:
        check_writable(location)
    elif not os.access(folder, os.W_OK):
        raise CheckpointError(f"model folder {folder} cannot be written to. Copy it, and name the copy.")
    return location


def _write(familiarity: Familiarity, model: Location, folder: Path) -> None:
    """Write the familiarity into a model folder, whose files on this machine it was fitted to.

    Raises `CheckpointError` if the weights of a model in a bucket are others by now.
    """
    if not model.is_s3:
        replace_familiarity(folder, familiarity)
        return
    familiarity.check_weights(weights_sha256(model.uri), "the familiarity")
    write_bytes(model / FAMILIARITY, familiarity.to_bytes())
