"""The Detector actor around `asap.predictor`: it turns prepared rows into result rows of the declared schema."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from asap.errors import CheckpointError, ConfigError, InputError, TextUnreadable
from asap.preprocessing.images import Pixels
from asap.preprocessing.text import EncodedText
from asap.preprocessing.words import MIN_TEXT_READ, READING_VERSION
from jobs.metrics import DetectorTime, PairMetrics
from jobs.scan.input.manifest import readable_text
from jobs.scan.stages.pair_values import ReuseContext
from jobs.scan.stages.progress import count_batch
from jobs.scan.stages.result_rows import scored_table
from jobs.scan.stages.reuse import JudgedBefore, Reuse
from jobs.scan.stages.texts import decode_texts

if TYPE_CHECKING:
    # Torch takes seconds to load, in every process that reads this module.
    from asap.predictor import Precision, Predictor, StagedPairs

_REPLACED = "the model cannot read the text, so a caption replaced it"


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
    found = (predictor.model_id, predictor.policy.policy_id, predictor.familiarity_id)
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
        # Batches are staged side by side, and the model has one at a time.
        self._turn = threading.Lock()
        self._note_first("model")
        self._time.leave("loading")

    def _judged_before(self, reuse: Reuse, detection: Detection) -> JudgedBefore:
        predictor = self._predictor
        precision = str(predictor.dtype).removeprefix("torch.")
        context = ReuseContext(
            predictor.model_id, predictor.familiarity_id, precision, detection.min_text_read, READING_VERSION
        )
        return JudgedBefore(reuse, context, predictor.policy, detection.run_id)

    def _note_first(self, event: str) -> None:
        if self._progress is not None:
            self._progress.note_first.remote(event, time.time())

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Turn prepared rows (see `PREPARED_FIELDS`) into rows of `RESULT_SCHEMA`, in their order.

        With a writer, the rows go there, and a table with their number is returned.
        """
        self._time.enter()
        try:
            table = self._before.complete(batch, self._detect) if self._before else self._detect(batch)
        except self._device_errors:
            os._exit(1)  # the device computes nothing more in this process: let Ray start another and try again
        finally:
            self._time.exit()
        # Rows are counted once the writer has them, since a stop keeps those.
        if self._writer is not None:
            ray.get(self._writer.add.remote(table))
        if self._before is not None:
            self._before.keep(table)
        if self._progress is not None:
            count_batch(self._progress, table)
        self._metrics.count_rows(table)
        return table if self._writer is None else pa.table({"rows": [table.num_rows]})

    def _detect(self, batch: pa.Table) -> pa.Table:
        """Return the result rows of a batch."""
        predictor, texts = self._predictor, self._read_texts(batch)
        # Rows that failed in an earlier stage have no pixels; they keep their error.
        rows = np.array([row for row, text in texts.read.items() if isinstance(text, EncodedText)], np.int64)
        staged = self._stage(batch, texts, rows)
        with self._turn, self._metrics.stage_timed("detect"):
            for _ in predictor.score_in_steps(staged):
                pass
        scores = staged.scores
        errors = {row: text for row, text in texts.read.items() if isinstance(text, InputError)}
        warnings = dict(texts.warnings)
        for number, row in enumerate(rows.tolist()):
            if number not in scores.errors and (
                found := predictor.warnings(scores.texts[number], is_caption=row in texts.captioned)
            ):
                warnings[row] = [*warnings.get(row, ()), *found]
        ids = {
            "model_id": predictor.model_id,
            "policy_id": predictor.policy.policy_id,
            "judged_run": self._run_id,
            "familiarity_id": predictor.familiarity_id,
        }
        return scored_table(batch, scores, predictor.policy, rows, errors, warnings, ids)

    def _read_texts(self, batch: pa.Table) -> _Texts:
        """Return the texts of the rows without an error. What the tasks before have not read is read here."""
        predictor = self._predictor
        codes, texts, escapes, captions = (
            batch[name].to_pylist() for name in ("error_code", "text", "text_escapes", "caption")
        )
        texts = [
            None if text is None else readable_text(text, places) for text, places in zip(texts, escapes, strict=True)
        ]
        encoded = decode_texts(batch["encoded_text"], texts, predictor.reader_id)
        found = _Texts({}, {}, {}, set())
        for row, (code, text, known, caption) in enumerate(zip(codes, texts, encoded, captions, strict=True)):
            if code is not None:
                continue
            read = predictor.read_text(text) if known is None else predictor.check_readable(known)
            # The picture is compared with the pair's text, or with the caption if there is no text that can be read.
            if caption is not None and (text is None or isinstance(read, TextUnreadable)):
                if text is not None:
                    found.warnings[row] = [_REPLACED]
                read = predictor.read_text(caption)
                found.captioned.add(row)
            elif caption is not None and (beside := predictor.read_caption(caption)) is not None:
                found.captions[row] = beside
            found.read[row] = read
        return found

    def _stage(self, batch: pa.Table, texts: _Texts, rows: NDArray[np.int64]) -> StagedPairs:
        """Return the pairs of these rows, ready for the model."""
        sizes = np.stack([batch[name].to_numpy() for name in ("width", "height")], axis=1)[rows]
        return self._predictor.stage(
            _pixels(batch["pixels"], rows, self._predictor.image_size),
            sizes.astype(np.int64),
            [cast("EncodedText", texts.read[row]) for row in rows.tolist()],
            np.array([row in texts.captioned for row in rows.tolist()], bool),
            [texts.captions.get(row) for row in rows.tolist()],
        )


class _Texts(NamedTuple):
    """The texts of the rows of a batch, by the positions of their rows."""

    read: dict[int, EncodedText | InputError]
    captions: dict[int, EncodedText]
    """The captions beside texts."""
    warnings: dict[int, list[str]]
    captioned: set[int]
    """The rows whose text is a caption."""


def _pixels(column: pa.ChunkedArray, rows: NDArray[np.int64], size: int) -> list[Pixels]:
    """Return the pixels of rows where they lie in memory."""
    array = column.combine_chunks()
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(array.buffers()[2] or b"", np.uint8)
    if (np.diff(offsets)[rows] != size * size * 3).any():
        raise ConfigError(f"the pictures of a batch were prepared for another model, whose image_size is not {size}")
    return [data[start : start + size * size * 3].reshape(size, size, 3) for start in offsets[rows].tolist()]
