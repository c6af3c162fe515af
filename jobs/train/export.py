"""Which of a run's checkpoints becomes its model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from asap.evaluation.evaluate import evaluate_split
from asap.model.asap import Asap
from asap.preprocessing.text import load_tokenizer
from asap.storage.location import Location
from asap.weights.model_folder import load, save
from jobs.train.card import model_card
from jobs.train.data.splits import Split
from jobs.train.run_folder.folder import RunFolder, checkpoint_folder
from jobs.train.run_folder.record import finish_record
from jobs.train.settings import TrainSettings
from jobs.train.trainer import Trainer, model_config

SCORE = "score"
"""Of a checkpoint, what Ray Train keeps the best by: its validation AUC, or -1 where the pairs cannot tell one."""


@dataclass(frozen=True)
class ChosenCheckpoint:
    """A checkpoint's averaged weights, and how it came to be chosen."""

    weights: dict[str, Tensor]
    pairs: int | None
    """Pairs trained on until then; None where the checkpoint does not say."""
    score: float | None
    """Validation AUC; None where the pairs could tell none."""
    way: Literal["best", "last"]

    @classmethod
    def of(cls, kept: Sequence[tuple[Any, dict[str, Any]]], last: Any, way: Literal["best", "last"]) -> Self:
        """From Ray Train's kept checkpoints with their metrics; of two that are equally good, the later."""
        figures = [(found, metrics or {}) for found, metrics in kept]
        best = max(figures, key=lambda one: (_score(one[1]), one[1].get("pairs", 0)), default=(last, {}))
        checkpoint, metrics = best if way == "best" else (last, _metrics_of(last, figures))
        with checkpoint_folder(checkpoint) as place:
            weights = Trainer.twin_weights(place)
        score = _score(metrics)
        return cls(weights, metrics.get("pairs"), None if score < 0 else score, way)

    def __str__(self) -> str:
        at = "" if self.pairs is None else f" after {self.pairs} pairs"
        figure = "" if self.score is None else f" (validation AUC {self.score:.3f})"
        return f"the {'best' if self.way == 'best' else 'last'} checkpoint{at}{figure}"


def _score(metrics: dict[str, Any]) -> float:
    return float(metrics.get(SCORE, -1.0))


def _metrics_of(checkpoint: Any, kept: Sequence[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    return next((metrics for found, metrics in kept if found.path == checkpoint.path), {})


def export_model(folder: RunFolder, settings: TrainSettings, chosen: ChosenCheckpoint) -> Path | Location:
    """Write the model folder, judge what was written, and put the figures on its card."""
    folder.pull(folder.progress.name)
    tokenizer = load_tokenizer(folder.tokenizer)
    model = Asap(model_config(settings, len(tokenizer))).eval()
    model.load_state_dict(chosen.weights)
    draft = folder.path / "model.draft"
    save(model, draft, tokenizer=tokenizer, name=settings.name, dtype=torch.float16)
    device = "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"
    report = evaluate_split(
        load(draft).to(device), Split.open(settings, folder, "test", model.config).pairs, elsewhere=True
    )
    (folder.path / "test_metrics.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    card = model_card(settings, model.config, report, folder.progress, str(chosen))
    save(load(draft), folder.model, tokenizer=tokenizer, name=settings.name, dtype=torch.float16, card=card)
    finish_record(folder, model={"checkpoint": str(chosen), "pairs": chosen.pairs, "validation_AUC": chosen.score})
    folder.push("test_metrics.json", "tensorboard", "model", last="config.json")
    return folder.finished_model
