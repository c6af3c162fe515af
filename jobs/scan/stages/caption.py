"""The caption stage: an actor that adds a caption to each row of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import pyarrow as pa
from PIL import Image

from asap.preprocessing.words import replace_unreadable
from asap.storage.location import Location
from jobs.descriptions.engine import Engine, Failure, Outcome, Reply, Request, Usage, total_usage
from jobs.descriptions.left_out import LeftOut
from jobs.descriptions.settings import DescriptionSettings
from jobs.metrics import PairMetrics, count
from jobs.scan.input.manifest import readable_text, storable
from jobs.scan.stages.captioners import load_captioner


class CaptionStage:
    """The actor that captions prepared rows."""

    def __init__(
        self,
        settings: DescriptionSettings,
        input: Location,
        device: str | None = None,
        job: str = "",
        threads: int | None = None,
        is_left_out: bool = False,
        content: str | None = None,
    ) -> None:
        """Load the captioner.

        Args:
            settings: Settings of the captioner.
            input: Input of the scan, from which paths in a file of captions may start.
            device: Device of a model that captions. None: CUDA if there is any, else the CPU.
            job: Name of the job, for its metrics.
            threads: Threads of a model on a CPU, so that other stages keep theirs. None: torch decides.
            is_left_out: True for rows that ended the process of a captioner: their captions are errors.
            content: Fingerprint of the captioner's files, as in `load_captioner`.
        """
        if threads:
            import torch

            torch.set_num_threads(threads)
        self._settings = settings
        self._captioner: Engine = LeftOut() if is_left_out else load_captioner(settings, input, device, content)
        self._job = job

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the rows with `caption` filled in; a row with neither text nor caption becomes an error."""
        # Rows that failed before have no picture, and keep their error.
        positions = [position for position, code in enumerate(batch["error_code"].to_pylist()) if code is None]
        requests = [_request(batch, position) for position in positions]
        outcomes: list[Outcome | None] = [None] * len(batch)
        with PairMetrics("scan", self._job).stage_timed("caption"):
            captions = self._captioner.describe(requests)
        self._count(total_usage(captions))
        for position, outcome in zip(positions, captions, strict=True):
            outcomes[position] = outcome
        return _with_captions(batch, outcomes)

    def _count(self, usage: Usage) -> None:
        count("asap_scan_caption_tokens_total", usage.input_tokens, job=self._job, direction="input")
        count("asap_scan_caption_tokens_total", usage.output_tokens, job=self._job, direction="output")
        count(
            "asap_scan_caption_cost_total", self._settings.cost(usage.input_tokens, usage.output_tokens), job=self._job
        )


_REQUEST_COLUMNS = ("custom_id", "given_id", "image_uri", "text", "text_escapes")


def _request(batch: pa.Table, position: int) -> Request:
    thumbnail = batch["thumbnail"][position].as_py()
    image = None if thumbnail is None else Image.open(BytesIO(thumbnail), formats=["JPEG"])
    row = {name: batch[name][position].as_py() for name in _REQUEST_COLUMNS}
    text = None if row["text"] is None else readable_text(row["text"], row["text_escapes"])
    return Request(row["custom_id"], row["image_uri"], image, text, row["given_id"])


def _with_captions(batch: pa.Table, outcomes: Sequence[Outcome | None]) -> pa.Table:
    """Return the batch with the captions, and with `caption_error` for those that failed."""
    texts, warnings = batch["text"].to_pylist(), batch["warnings"].to_pylist()
    codes, details = batch["error_code"].to_pylist(), batch["error_detail"].to_pylist()
    retryable, errors = batch["retryable"].to_pylist(), batch["caption_error"].to_pylist()
    # A failed caption is an error of the row only for a pair without a text: the others are scored by their text.
    for position, outcome in enumerate(outcomes):
        if isinstance(outcome, Failure):
            detail = storable(outcome.detail)
            errors[position] = {"kind": outcome.kind, "detail": detail, "retryable": outcome.is_retryable}
            if texts[position] is None:
                codes[position] = "caption_failed"
                details[position] = f"the captioner failed ({outcome.kind}): {detail}"
                retryable[position] = outcome.is_retryable
        elif outcome is not None and outcome.is_cut:
            warnings[position] = [*warnings[position], "the caption is cut: its model reached max_new_tokens"]
    captions = [replace_unreadable(outcome.text) if isinstance(outcome, Reply) else None for outcome in outcomes]
    changed: dict[str, list[Any]] = {
        "caption": captions, "caption_error": errors, "error_code": codes, "error_detail": details,
        "retryable": retryable, "warnings": warnings,
    }  # fmt: skip
    for name, values in changed.items():
        field = batch.schema.field(name)
        batch = batch.set_column(batch.schema.get_field_index(name), field, pa.array(values, field.type))
    return batch.drop_columns("thumbnail")  # the next stage need not receive it
