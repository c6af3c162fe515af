"""The Detector actor around `asap.predictor`: prepared rows in, result rows of the declared schema out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from asap.finding import Finding
from asap.preprocessing.images import PreparedImage
from jobs.scan.input.manifest import readable_text
from jobs.scan.stages.progress import count_batch
from jobs.scan.stages.result_rows import columns_of, failure, result_table

if TYPE_CHECKING:
    from asap.predictor import Precision  # torch takes seconds to load, in every process that reads this module

_GIVEN = ["text", "text_escapes", "caption", "width", "height", "image_sha256", "warnings", "attempt",
          "error_code", "error_detail", "retryable"]  # fmt: skip


@dataclass(frozen=True)
class Detection:
    """Which model, and how it runs."""

    model: str
    device: str = "auto"
    precision: Precision = "auto"
    threads: int | None = None
    """Of torch, on a CPU; None leaves it to torch."""
    batch_size: int = 32


class Detector:
    """Loads the model once; a call judges a batch of prepared rows and never raises for a row."""

    def __init__(self, detection: Detection, progress: Any = None) -> None:
        import torch

        from asap.predictor import Predictor

        if detection.threads:
            torch.set_num_threads(detection.threads)
        self._predictor = Predictor.from_folder(
            detection.model, detection.device, detection.precision, batch_size=detection.batch_size
        )
        self._device_errors = (torch.AcceleratorError,)
        self._progress = progress

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Prepared rows (see `PREPARED_FIELDS`) to rows of `RESULT_SCHEMA`, in their order."""
        given = batch.select(_GIVEN).to_pylist()
        rows = [self._known(row) for row in given]
        places = [place for place, row in enumerate(given) if row["error_code"] is None]
        try:
            findings = self._detect(batch, given, places)
        except self._device_errors:
            os._exit(1)  # the device computes nothing more in this process: let Ray start another and try again
        for place, finding in zip(places, findings, strict=True):
            told = columns_of(finding)
            rows[place] |= told | {"warnings": rows[place]["warnings"] + told["warnings"]}
        table = result_table(batch, rows)
        if self._progress is not None:
            count_batch(self._progress, table)
        return table

    def _known(self, row: dict[str, Any]) -> dict[str, Any]:
        """What is known of a row before the model sees it."""
        model = {"model_id": self._predictor.model_id, "policy_id": self._predictor.policy.policy_id}
        if row["error_code"] is None:
            return row | model
        return row | model | failure(row["error_code"], row["error_detail"], retryable=row["retryable"])

    def _detect(self, batch: pa.Table, given: list[dict[str, Any]], places: list[int]) -> list[Finding]:
        size, pixels = self._predictor.image_size, batch["pixels"]
        return self._predictor.predict_prepared(
            [_image(pixels[place].as_buffer(), given[place], size) for place in places],
            [_text(given[place]) for place in places],
            captioned=[given[place]["text"] is None and given[place]["caption"] is not None for place in places],
        )


def _text(row: dict[str, Any]) -> str | None:
    """What the picture is held against: the pair's text, else the caption."""
    caption: str | None = row["caption"]
    return caption if row["text"] is None else readable_text(row["text"], row["text_escapes"])


def _image(buffer: pa.Buffer, row: dict[str, Any], size: int) -> PreparedImage:
    pixels = np.frombuffer(buffer, np.uint8).reshape(size, size, 3)
    return PreparedImage(pixels=pixels, width=row["width"], height=row["height"], sha256=row["image_sha256"])
