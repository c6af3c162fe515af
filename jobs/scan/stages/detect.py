"""The Detector actor around `asap.predictor`: it turns prepared rows into result rows of the declared schema."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from asap.errors import CheckpointError
from asap.finding import Finding
from asap.preprocessing.images import PreparedImage
from asap.preprocessing.words import MIN_TEXT_READ, READING_VERSION
from jobs.metrics import DetectorTime, PairMetrics
from jobs.scan.input.manifest import readable_text
from jobs.scan.stages.pair_values import ReuseContext
from jobs.scan.stages.progress import count_batch
from jobs.scan.stages.result_rows import columns_of, failure, result_table
from jobs.scan.stages.reuse import JudgedBefore, Reuse

if TYPE_CHECKING:
    # Torch takes seconds to load, in every process that reads this module.
    from asap.predictor import Precision, Predictor

_SMALL_COLUMNS = ["text", "text_escapes", "caption", "caption_error", "explanation", "explanation_error", "width",
                  "height", "image_sha256", "warnings", "attempt", "error_code", "error_detail",
                  "retryable"]  # fmt: skip
"""Columns that become Python values; `pixels` is read where it lies."""


@dataclass(frozen=True)
class Detection:
    """The model of the detectors, and how it runs."""

    model: str
    device: str = "auto"
    precision: Precision = "auto"
    threads: int | None = None
    """Threads of torch on a CPU. None: torch decides."""
    batch_size: int = 32
    min_text_read: float = MIN_TEXT_READ
    """Share of a text's characters that the vocabulary must read; see `Predictor.from_folder`."""
    job: str = ""
    """Name of the job, for its metrics."""
    run_id: str | None = None
    """Id of the run of the job, which becomes `judged_run` of the rows."""
    ids: tuple[str, str, str | None] | None = None
    """Ids of the model, its policy and its familiarity, which must be the same on every machine. None: not compared."""


def _check_ids(detection: Detection, predictor: Predictor) -> None:
    """Raise `CheckpointError` if the model that was loaded is not the one that the job began with."""
    familiarity = predictor.familiarity
    found = (predictor.model_id, predictor.policy.policy_id, familiarity.familiarity_id if familiarity else None)
    if detection.ids not in (None, found):
        raise CheckpointError(
            f"the model {detection.model} has changed, or differs on the machine {socket.gethostname()}: it is "
            f"{_named(found)}, and was {_named(detection.ids)}. Restore it, or choose another folder for the job."
        )


def _named(ids: tuple[str, str, str | None] | None) -> str:
    return ", ".join(filter(None, ids or ()))


class Detector:
    """The actor that runs the model on prepared rows. It loads the model once, and never raises for a row."""

    def __init__(
        self, detection: Detection, progress: Any = None, writers: Sequence[Any] = (), reuse: Reuse | None = None
    ) -> None:
        """Load the model.

        Args:
            detection: The model, and how it runs.
            progress: The actor that counts finished rows.
            writers: Actors of `stages.write`, one of which takes over the rows. None: the rows are returned.
            reuse: Where pairs are found that were judged before. None: every pair is judged.
        """
        self._metrics, self._time = PairMetrics("scan", detection.job), DetectorTime(detection.job)
        self._run_id, self._progress = detection.run_id, progress
        self._note_first("worker")
        import torch

        from asap.predictor import Predictor

        if detection.threads:
            torch.set_num_threads(detection.threads)
        self._predictor = Predictor.from_folder(
            detection.model,
            detection.device,
            detection.precision,
            batch_size=detection.batch_size,
            min_text_read=detection.min_text_read,
        )
        _check_ids(detection, self._predictor)
        self._device_errors = (torch.AcceleratorError,)
        self._writer = random.choice(writers) if writers else None
        self._before = self._judged_before(reuse, detection) if reuse else None
        self._note_first("model")
        self._time.leave("loading")

    @property
    def image_size(self) -> int:
        """Side of the pictures that the model takes, in pixels."""
        return self._predictor.image_size

    def _judged_before(self, reuse: Reuse, detection: Detection) -> JudgedBefore:
        predictor = self._predictor
        familiarity_id = predictor.familiarity.familiarity_id if predictor.familiarity else None
        precision = str(predictor.dtype).removeprefix("torch.")
        context = ReuseContext(predictor.model_id, familiarity_id, precision, detection.min_text_read, READING_VERSION)
        return JudgedBefore(reuse, context, predictor.policy, detection.run_id)

    def _note_first(self, event: str) -> None:
        if self._progress is not None:
            self._progress.note_first.remote(event, time.time())

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Turn prepared rows (see `PREPARED_FIELDS`) into rows of `RESULT_SCHEMA`, in their order.

        With a writer, the rows go there, and a table with their number is returned.
        """
        self._time.leave("idle")
        table = self._before.complete(batch, self._judge) if self._before else self._judge(batch)
        self._time.leave("busy")
        # Rows are counted once the writer has them, since a stop keeps those.
        if self._writer is not None:
            ray.get(self._writer.add.remote(table))
        if self._before is not None:
            self._before.keep(table)
        if self._progress is not None:
            count_batch(self._progress, table)
        self._metrics.count_rows(table)
        return table if self._writer is None else pa.table({"rows": [table.num_rows]})

    def _judge(self, batch: pa.Table) -> pa.Table:
        """Return the result rows of prepared rows, all of which are judged."""
        prepared = batch.select(_SMALL_COLUMNS).to_pylist()
        # Rows that failed in an earlier stage have no pixels; they keep their error.
        positions = [position for position, row in enumerate(prepared) if row["error_code"] is None]
        try:
            with self._metrics.stage_timed("detect"):
                findings = self._detect(batch["pixels"], prepared, positions)
        except self._device_errors:
            os._exit(1)  # the device computes nothing more in this process: let Ray start another and try again
        model = {
            "model_id": self._predictor.model_id,
            "policy_id": self._predictor.policy.policy_id,
            "judged_run": self._run_id,
            "familiarity_id": self._predictor.familiarity and self._predictor.familiarity.familiarity_id,
        }
        rows: list[dict[str, Any]] = [row | model for row in prepared]
        for row in rows:
            if row["error_code"] is not None:
                row.update(failure(row["error_code"], row["error_detail"], retryable=row["retryable"]))
        for position, finding in zip(positions, findings, strict=True):
            fields = columns_of(finding)
            rows[position] |= fields | {"warnings": rows[position]["warnings"] + fields["warnings"]}
        return result_table(batch, rows)

    def _detect(self, pixels: pa.ChunkedArray, prepared: list[dict[str, Any]], positions: list[int]) -> list[Finding]:
        """Run the model on the rows at these positions; return their findings."""
        size = self._predictor.image_size
        images, texts, captioned, captions = [], [], [], []
        for position in positions:
            row = prepared[position]
            array = np.frombuffer(pixels[position].as_buffer(), np.uint8).reshape(size, size, 3)
            images.append(
                PreparedImage(pixels=array, width=row["width"], height=row["height"], sha256=row["image_sha256"])
            )
            # The picture is compared with the pair's text, or with the caption if there is no text that can be read.
            text = None if row["text"] is None else readable_text(row["text"], row["text_escapes"])
            uses_caption = row["caption"] is not None and (text is None or not self._predictor.reads(text))
            if uses_caption and text is not None:
                row["warnings"] = [*row["warnings"], "the model cannot read the text, so a caption replaced it"]
            texts.append(row["caption"] if uses_caption else text)
            captioned.append(uses_caption)
            captions.append(row["caption"])
        return self._predictor.predict_prepared(images, texts, captioned=captioned, captions=captions)
