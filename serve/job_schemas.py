"""Requests and responses of the routes of jobs, as the OpenAPI document describes them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_NAME_CHARS = 200
MAX_ADDRESS_CHARS = 1024
MAX_JOB_BYTES = 2**16
"""Bytes of the body of a request of the routes of jobs."""
MAX_ROWS = 5000
"""Rows of one page."""
EXECUTION = frozenset({
    "allow_unreadable", "allow_unfamiliar", "retry_errors", "max_error_rate", "device", "detectors", "batch_size",
})  # fmt: skip
"""Settings that may differ between two starts of one job."""
Engine = Literal["transformers", "precomputed"]
"""Engines that a request may name. An endpoint's address and key are the operator's to choose, not a caller's."""


class JobRequest(BaseModel):
    """A scan in bulk. The fields are the options of `asap scan`; those that are left out have its defaults."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"input": "s3://pictures/may.jsonl", "out": "s3://scans/desk", "job": "may"}],
        },
    )

    input: str = Field(max_length=MAX_ADDRESS_CHARS, description="The pairs at s3://: a table, a folder or tars.")
    out: str = Field(max_length=MAX_ADDRESS_CHARS, description="The folder at s3:// that gets the job folder.")
    job: str | None = Field(
        None, max_length=MAX_NAME_CHARS, pattern=r"^[\w.+-]+$", description="The name of the job folder. Default: that "
        "of the input."
    )  # fmt: skip
    model: str | None = Field(
        None, max_length=MAX_ADDRESS_CHARS, description="The model, with its policy: `demo` or a folder at s3://, if "
        "the server allows it. Default: demo."
    )  # fmt: skip
    limit: int | None = Field(None, ge=1, lt=2**63, description="Pairs to scan, from the start. Default: all.")
    image_column: str | None = Field(None, max_length=MAX_NAME_CHARS, description="The column of the pictures.")
    text_column: str | None = Field(None, max_length=MAX_NAME_CHARS, description="The column of the texts.")
    id_column: str | None = Field(None, max_length=MAX_NAME_CHARS, description="The column of your names of the pairs.")
    encoding: str | None = Field(None, max_length=MAX_NAME_CHARS, description="The encoding of the text files.")
    delimiter: str | None = Field(None, max_length=MAX_NAME_CHARS, description="The character between cells of a CSV.")
    caption_engine: Engine | None = Field(None, description="The engine that captions the pictures. Default: none.")
    captioner: str | None = Field(
        None, max_length=MAX_ADDRESS_CHARS, description="The captioner: `demo`, or a model that the server allows; for "
        "`precomputed` a file of captions, where inputs may lie."
    )  # fmt: skip
    explanation_engine: Engine | None = Field(None, description="The engine that explains the texts. Default: none.")
    explainer: str | None = Field(
        None, max_length=MAX_ADDRESS_CHARS, description="The explainer, as the captioner."
    )  # fmt: skip
    captions: Literal["all", "flagged", "none"] | None = Field(
        None, description="The pairs that are captioned and explained. Default: all, if there is an engine."
    )
    min_text_read: float | None = Field(
        None, ge=0, le=1, description="The share of a text that the model must be able to read."
    )
    allow_unreadable: bool = Field(False, description="True to scan even if every pair of a sample would fail.")
    allow_unfamiliar: bool = Field(
        False, description="True to scan all pairs even if most of a sample are unfamiliar to the model."
    )
    retry_errors: str | None = Field(
        None, max_length=MAX_NAME_CHARS, description="`retryable` or error codes, as `timeout,not_found`: failed pairs "
        "of this job to judge again."
    )  # fmt: skip
    max_error_rate: float | None = Field(
        None, ge=0, le=1, description="The share of the pairs that may fail. With more, the exit code is 3."
    )
    device: Literal["auto", "cpu", "cuda"] | None = Field(None, description="Where the model runs.")
    precision: Literal["auto", "float32", "bfloat16"] | None = Field(None, description="The arithmetic of the model.")
    detectors: int | None = Field(None, ge=1, le=4096, description="Number of detectors. Default: as many as fit.")
    batch_size: int | None = Field(None, ge=1, le=4096, description="Pairs in one batch of a detector.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, value in self.model_dump(exclude_none=True).items():
            if isinstance(value, str) and not value.isprintable():
                raise ValueError(f"{name} has a character that cannot be printed")
        return self


class JobFiles(BaseModel):
    """Addresses in the job folder, for those who may read it themselves. Some exist only at the end."""

    results: str = Field(description="Folder of Parquet files: one row for each pair.")
    errors: str = Field(description="Failed rows, as JSON lines.")
    flagged: str = Field(description="Flagged rows, as JSON lines.")
    unfamiliar: str = Field(description="Unfamiliar rows, as JSON lines.")
    summary: str
    report: str = Field(description="The page for people.")


class Job(BaseModel):
    """A job, as `asap status --json` shows it, and who asked for it."""

    id: str = Field(description="The id of the job: the same for each request with this job folder.")
    folder: str = Field(description="The job folder.")
    key: str | None = Field(None, description="The name of the key that asked for it. Null: the command line did.")
    created: datetime | None = Field(None, description="The time of the first request.")
    state: str = Field(
        description="`submitted` until its process works on the folder; then validating, running, finalizing, and at "
        "the end completed, failed, cancelled or unfamiliar."
    )
    counts: dict[str, int] = Field({}, description="`done`, `total`, `errors`, `flagged` and `unfamiliar` pairs.")
    phase: str | None = Field(None, description="The work under way, such as captioning.")
    phase_counts: dict[str, int] = {}
    pairs_per_s: float | None = None
    left_s: float | None = Field(None, description="Seconds that are left at the present speed.")
    runs: int = Field(0, description="Number of times that the job was started.")
    heartbeat: datetime | None = Field(None, description="The last sign of life of its process.")
    silent: bool = Field(False, description="True if the process of the job has probably died.")
    exit_code: int | None = Field(
        None, description="The exit code of the command, once it has ended: 0 done, 1 failed, 3 more errors than "
        "allowed, 4 unfamiliar, 130 cancelled."
    )  # fmt: skip
    error: str | None = Field(None, description="Why the job stopped.")
    note: str | None = Field(None, description="What a person should know beyond that.")
    model_id: str | None = None
    policy_id: str | None = None
    settings: dict[str, Any] | None = Field(None, description="The last request, without what it left out.")
    files: JobFiles

    @property
    def has_ended(self) -> bool:
        """True once no process works on the job."""
        return self.exit_code is not None


class JobList(BaseModel):
    """Jobs, the newest first."""

    jobs: list[Job]


class JobLimits(BaseModel):
    """Limits of the jobs of the caller's key: what they may name, and how many may be under way."""

    inputs: list[str] = Field(description="Prefixes of inputs, and of the pictures that they name.")
    outputs: list[str] = Field(description="Prefixes of `out`.")
    models: list[str] = Field(description="Models, or prefixes of them with a slash at the end.")
    max_under_way: int = Field(description="Jobs of the key that may be under way at once.")
    max_bytes: int = Field(default=MAX_JOB_BYTES, description="Bytes of the body of a request.")
