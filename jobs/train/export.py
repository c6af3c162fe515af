"""Export: choose a checkpoint of a run, evaluate its averaged weights or the student's, and write the model folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from asap.corpus.reader import Record
from asap.errors import ConfigError
from asap.evaluation.evaluate import predict_split
from asap.evaluation.intervals import bootstrap_intervals
from asap.evaluation.own_pairs import fit_familiarity
from asap.familiarity import Familiarity
from asap.model.asap import Asap
from asap.predictor import Predictor
from asap.preprocessing.text import load_tokenizer
from asap.storage.location import Location
from asap.weights.model_folder import load, save, weights_sha256
from jobs.train.card import model_card, model_limits
from jobs.train.data.splits import Split
from jobs.train.events import OnEvent
from jobs.train.run_folder.folder import RunFolder, checkpoint_folder
from jobs.train.run_folder.record import finish_record
from jobs.train.settings import TrainSettings
from jobs.train.trainer import model_config, read_weights

SCORE = "score"
"""The metric by which Ray Train keeps the best checkpoint: validation AUC, or -1 if the pairs do not define it."""
_FAMILIARITY_PAIRS = 20_000
"""Pairs of a split that familiarity is fitted to at most: minutes at the end of a run of hours."""


@dataclass(frozen=True)
class ChosenCheckpoint:
    """The weights of a checkpoint, and how it was chosen."""

    weights: dict[str, Tensor]
    pairs: int | None
    """Pairs trained on until then; None if the checkpoint has no metrics."""
    score: float | None
    """Validation AUC; None if the pairs do not define it."""
    rule: Literal["best", "last"]

    @classmethod
    def of(
        cls,
        kept: Sequence[tuple[Any, dict[str, Any]]],
        last: Any,
        rule: Literal["best", "last"],
        which: Literal["average", "student"] = "average",
    ) -> Self:
        """Choose among the checkpoints that Ray Train kept. Of two that are equally good, the later one is chosen.

        Args:
            kept: The checkpoints with their metrics.
            last: The last checkpoint.
            rule: `best` by validation AUC, or `last`.
            which: The weights of the checkpoint: the averaged ones, or the student's.
        """
        with_metrics = [(checkpoint, metrics or {}) for checkpoint, metrics in kept]
        if rule == "best":
            checkpoint, metrics = max(
                with_metrics, key=lambda pair: (_score(pair[1]), pair[1].get("pairs", 0)), default=(last, {})
            )
        else:
            checkpoint = last
            metrics = next((metrics for found, metrics in with_metrics if found.path == last.path), {})
        with checkpoint_folder(checkpoint) as folder:
            weights = read_weights(folder, which)
        score = _score(metrics)
        return cls(weights, metrics.get("pairs"), None if score < 0 else score, rule)

    def __str__(self) -> str:
        after = "" if self.pairs is None else f" after {self.pairs} pairs"
        metric = "" if self.score is None else f" (validation AUC {self.score:.3f})"
        return f"the {self.rule} checkpoint{after}{metric}"


def _score(metrics: dict[str, Any]) -> float:
    return float(metrics.get(SCORE, -1.0))


def export_model(
    folder: RunFolder, settings: TrainSettings, chosen: ChosenCheckpoint, progress: OnEvent = lambda event: None
) -> Path | Location:
    """Write the model folder: weights, familiarity, limits, and a card with the metrics on the test split.

    `progress` gets the events of `jobs.train.events`.
    """
    folder.pull(folder.progress.name)
    tokenizer = load_tokenizer(folder.tokenizer)
    model = Asap(model_config(settings, len(tokenizer))).eval()
    model.load_state_dict(chosen.weights)
    device = "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"
    with _draft(folder) as draft:
        save(model, draft, tokenizer=tokenizer, name=settings.name, dtype=torch.float16)
        report = _test_report(draft, device, settings, folder, progress)
        known, held_out = (
            Split.open(settings, folder, split, model.config, may_decode=False).pairs.records
            for split in ("train", "val")
        )
        familiarity, about_it = _familiarity(draft, device, settings, known, held_out, progress)
        progress({"note": about_it})
        limits = model_limits(settings, model.config, known)
        save(
            load(draft),
            folder.model,
            tokenizer=tokenizer,
            name=settings.name,
            card=model_card(settings, model.config, report, folder.progress, str(chosen), limits, about_it),
            limits=limits,
            familiarity=familiarity,
            dtype=torch.float16,
        )
    # A model at s3:// is complete once its config.json is there.
    progress({"phase": "writing the model folder"})
    folder.push("test_metrics.json", "tensorboard", "model", last="config.json")
    finish_record(folder, model={"checkpoint": str(chosen), "pairs": chosen.pairs, "validation_AUC": chosen.score})
    return folder.finished_model


@contextmanager
def _draft(folder: RunFolder) -> Iterator[Path]:
    """Provide the path of a model folder that lasts for the block. What a killed export left there is removed."""
    draft = folder.path / "model.draft"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _test_report(
    draft: Path, device: str, settings: TrainSettings, folder: RunFolder, progress: OnEvent
) -> dict[str, Any]:
    """Evaluate the stored model on the test split, and return the report, which is written to the run folder too.

    The model in memory is not evaluated: the weights of the stored one are rounded to float16.
    """
    model = load(draft).to(device)
    # Pixels are read from the cache of this machine, or decoded a batch at a time: a new cache would serve only once.
    test = Split.open(settings, folder, "test", model.config, may_decode=False)
    evaluation = predict_split(
        model, test.pairs, elsewhere=True, progress=_counter("evaluating the test pairs", progress)
    )
    report = evaluation.compute()
    if len(evaluation):
        progress({"phase": "computing the intervals of the metrics"})
        report["intervals"] = bootstrap_intervals(evaluation.predictions())
    (folder.path / "test_metrics.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def _counter(stage: str, progress: OnEvent) -> Callable[[int, int], None]:
    """Return a function that reports how many pairs of some work are done."""
    return lambda done, total: progress({"stage": stage, "done": done, "total": total})


def _familiarity(
    draft: Path,
    device: str,
    settings: TrainSettings,
    known: Sequence[Record],
    held_out: Sequence[Record],
    progress: OnEvent,
) -> tuple[Familiarity | None, str]:
    """Return the familiarity of the stored weights, None if there are too few pairs, and a sentence about it.

    Args:
        draft: The model folder with the stored weights.
        device: The device of the model.
        settings: The settings of the run.
        known: The training pairs, which are read without augmentation.
        held_out: The pairs of the validation split.
        progress: A function that gets the events of `jobs.train.events`.
    """

    try:
        familiarity = fit_familiarity(
            Predictor.from_folder(draft, device, "float32"),
            known,
            held_out,
            weights_sha256=weights_sha256(draft),
            corpus=Location.parse(settings.corpus).name,
            most_pairs=_FAMILIARITY_PAIRS,
            progress=_counter("fitting what the model can judge (familiarity), pairs", progress),
        )
    except ConfigError as error:  # the model is worth more than this file
        return None, f"The model has no familiarity file, so it judges every pair: {error}"
    about = familiarity.about
    return familiarity, (
        f"The model knows what it can judge: its familiarity file {familiarity.familiarity_id} was fitted to "
        f"{int(about['fitted_pairs']):,} training pairs and {int(about['held_out_pairs']):,} validation pairs."
    )
