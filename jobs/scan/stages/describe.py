"""The stage of an engine: an actor that adds a caption, or an explanation, to each row of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import pyarrow as pa
from PIL import Image

from asap.preprocessing.words import replace_unreadable
from asap.storage.location import Location
from jobs.descriptions.engine import Engine, Failure, Outcome, Reply, Request, Usage, total_usage
from jobs.descriptions.left_out import LeftOut
from jobs.descriptions.prompts import chat_prompt, fill
from jobs.descriptions.settings import DescriptionSettings, Kind
from jobs.descriptions.vllm_rows import Asked, Written, ask
from jobs.metrics import PairMetrics, count
from jobs.scan.input.manifest import readable_text, storable
from jobs.scan.stages.captioners import load_captioner


def ask_batch(batch: pa.Table, settings: DescriptionSettings) -> pa.Table:
    """Return the rows of a batch with their requests for vLLM's stages. Rows that need none ask nothing."""
    wanted = set(_positions(batch, settings.kind))
    asked = []
    for position in range(len(batch)):
        if position not in wanted:
            asked.append(Asked([position]))
            continue
        request = _request(batch, position, settings.kind)
        picture = batch["thumbnail"][position].as_py() if settings.kind == "caption" else None
        asked.append(Asked([position], fill(chat_prompt(settings), request.text), picture))
    return ask(batch, asked)


class DescriptionStage:
    """The actor that captions prepared rows, or explains their texts, as the kind of its engine says."""

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
        """Load the captioner or explainer.

        Args:
            settings: Settings of the captioner or explainer.
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
        self._engine: Engine
        if is_left_out:
            self._engine = LeftOut()
        elif settings.engine == "vllm":
            self._engine = Written(settings)
        else:
            self._engine = load_captioner(settings, input, device, content)
        self._job = job

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the rows with `caption` or `explanation` filled in.

        A row with neither text nor caption becomes an error; one without a text gets no explanation.
        """
        kind = self._settings.kind
        if isinstance(self._engine, Written):
            batch = self._engine.read(batch)
        positions = _positions(batch, kind)
        requests = [_request(batch, position, kind) for position in positions]
        outcomes: list[Outcome | None] = [None] * len(batch)
        with PairMetrics("scan", self._job).stage_timed(kind):
            described = self._engine.describe(requests)
        self._count(total_usage(described))
        for position, outcome in zip(positions, described, strict=True):
            outcomes[position] = outcome
        batch = _with_captions(batch, outcomes) if kind == "caption" else _with_explanations(batch, outcomes)
        # The next stage need not receive the picture of the captioner.
        return batch.drop_columns("thumbnail") if "thumbnail" in batch.column_names else batch

    def _count(self, usage: Usage) -> None:
        name, cost = f"asap_scan_{self._settings.kind}", self._settings.cost(usage.input_tokens, usage.output_tokens)
        count(f"{name}_tokens_total", usage.input_tokens, job=self._job, direction="input")
        count(f"{name}_tokens_total", usage.output_tokens, job=self._job, direction="output")
        count(f"{name}_cost_total", cost, job=self._job)


def _positions(batch: pa.Table, kind: Kind) -> list[int]:
    """Return the positions of the rows to describe. Rows that failed before have no picture, and keep their error."""
    positions = [position for position, code in enumerate(batch["error_code"].to_pylist()) if code is None]
    if kind == "explanation":
        texts = batch["text"].to_pylist()
        positions = [position for position in positions if (texts[position] or "").strip()]
    return positions


_REQUEST_COLUMNS = ("custom_id", "given_id", "image_uri", "text", "text_escapes")


def _request(batch: pa.Table, position: int, kind: Kind) -> Request:
    thumbnail = batch["thumbnail"][position].as_py() if kind == "caption" else None
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
            errors[position] = _error_of(outcome)
            if texts[position] is None:
                codes[position] = "caption_failed"
                details[position] = f"the captioner failed ({outcome.kind}): {storable(outcome.detail)}"
                retryable[position] = outcome.is_retryable
        elif outcome is not None and outcome.is_cut:
            warnings[position] = [*warnings[position], "the caption is cut: its model reached max_new_tokens"]
    return _changed(batch, {
        "caption": _written(outcomes), "caption_error": errors, "error_code": codes, "error_detail": details,
        "retryable": retryable, "warnings": warnings,
    })  # fmt: skip


def _with_explanations(batch: pa.Table, outcomes: Sequence[Outcome | None]) -> pa.Table:
    """Return the batch with the explanations, and with `explanation_error` for those that failed.

    No detector reads an explanation, so one that fails is no error of its row.
    """
    warnings = batch["warnings"].to_pylist()
    for position, outcome in enumerate(outcomes):
        if isinstance(outcome, Reply) and outcome.is_cut:
            warnings[position] = [*warnings[position], "the explanation is cut: its model reached max_new_tokens"]
    errors = [_error_of(outcome) if isinstance(outcome, Failure) else None for outcome in outcomes]
    changes = {"explanation": _written(outcomes), "explanation_error": errors, "warnings": warnings}
    return _changed(batch, changes)


def _error_of(failure: Failure) -> dict[str, Any]:
    return {"kind": failure.kind, "detail": storable(failure.detail), "retryable": failure.is_retryable}


def _written(outcomes: Sequence[Outcome | None]) -> list[str | None]:
    return [replace_unreadable(outcome.text) if isinstance(outcome, Reply) else None for outcome in outcomes]


def _changed(batch: pa.Table, changes: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Return the batch with other values in some of its columns."""
    for name, values in changes.items():
        field = batch.schema.field(name)
        batch = batch.set_column(batch.schema.get_field_index(name), field, pa.array(values, field.type))
    return batch
