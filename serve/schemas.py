"""Requests and responses of the API, as its OpenAPI document describes them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from asap.finding import Finding, Verdict
from asap.labels import TYPES
from serve.errors import MEANINGS, ErrorCode
from serve.job_schemas import JobLimits

EXAMPLE_TEXT = "A smiling minister opens the bridge"
LATER_CODES = {"later_codes": True}
"""Context of a validation that accepts the error codes of a later version, as `input_error`."""
MAX_CUSTOM_ID = 200
"""Characters of the name that a caller gives a pair."""
MAX_URI_CHARS = 2048
"""Characters of the address of a picture. Browsers, proxies and stores write none that is longer."""
_FAMILIARITY_ID = (
    "The id of the file that says what the model's own pairs look like. Null if the model has none: it then judges "
    "every pair, also those that are like nothing it has seen."
)
_LIMITS = "What the model was made from and must not be used for, in two or three sentences. Show it beside a verdict."


class DetectRequest(BaseModel):
    """One pair: the picture in base64 or its address, but not both, and its text."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"image": "/9j/4AAQSkZJRg…", "text": EXAMPLE_TEXT}]}
    )

    image: str | None = Field(
        default=None,
        description="The encoded picture (JPEG, PNG, WebP, …) in base64 of the standard or the URL-safe alphabet.",
    )
    uri: str | None = Field(
        default=None,
        max_length=MAX_URI_CHARS,
        description="The picture's s3:// or https:// address, if the server allows its beginning.",
    )
    text: str = Field(description="The text that goes with the picture.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.image is None) == (self.uri is None):
            raise ValueError("give either image or uri")
        return self


class BatchPair(DetectRequest):
    """One pair of a batch, with the name by which its caller knows it."""

    custom_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_CUSTOM_ID,
        description="The caller's own name of the pair, which its item in the response has too. No two pairs of a "
        "batch may have the same.",
    )


class BatchRequest(BaseModel):
    """Several pairs. Each is validated separately as a `BatchPair`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"items": [{"custom_id": "page-1", "image": "/9j/4AAQSkZJRg…", "text": EXAMPLE_TEXT}]}]
        },
    )

    items: list[Any] = Field(min_length=1, description="Pairs, each as in POST /v1/detect, with an id if you like.")


class TypeScore(BaseModel):
    """The score of one of the four manipulation types."""

    score: float | None = Field(ge=0, le=1, description="Probability of this type.")
    flagged: bool = Field(description="True if the score reaches the policy's threshold.")


class BoxPixels(BaseModel):
    """A box in pixels of the original picture, after EXIF rotation."""

    x0: float
    y0: float
    x1: float
    y1: float


class BoxShares(BoxPixels):
    """The same box as fractions of the picture's width and height, each in [0, 1]."""


class WordScore(BaseModel):
    """A flagged word. `start` and `end` are offsets in Unicode code points of the text, end exclusive."""

    index: int
    start: int
    end: int
    word: str
    score: float = Field(ge=0, le=1)


class Evidence(BaseModel):
    """The face box, which is present only if an image type is flagged, and the flagged words.

    An unfamiliar pair has neither.
    """

    box_px: BoxPixels | None
    box: BoxShares | None
    words: list[WordScore]
    note: str = Field(
        "",
        description="A sentence to show beside the verdict: why the pair was not judged, or that no type, word or box "
        "supports the verdict. Empty for all other pairs.",
    )
    image: str | None = Field(description="With ?evidence=image: a data: URL of a JPEG, the picture with its box.")


class Input(BaseModel):
    """The picture as it was sent."""

    sha256: str | None
    width: int
    height: int


class Detection(BaseModel):
    """The result for one pair. It is evidence for a person to weigh, not proof."""

    id: str = Field(description="The id of the request or, in a batch, of the item. The server's log has it too.")
    model_id: str
    policy_id: str
    verdict: Verdict = Field(
        description="`unfamiliar` says that the model has seen nothing like the pair, so it was not judged: its score "
        "and its types mean nothing, and it counts neither as authentic nor as flagged."
    )
    score: float = Field(
        ge=0,
        le=1,
        description="The model's probability that the pair was manipulated. It means nothing for an unfamiliar pair.",
    )
    types: dict[Literal["face_swap", "face_attribute", "text_swap", "text_attribute"], TypeScore]
    evidence: Evidence
    input: Input
    text_read: float | None = Field(
        None, ge=0, le=1, description="The share of the text's characters that the model reads."
    )
    familiarity: float | None = Field(
        None,
        ge=0,
        le=1,
        description="The share of the model's own held-out pairs that are at least as strange as this pair. Below the "
        "threshold `unfamiliar` of the model, the verdict is `unfamiliar`. Null if the model does not know its pairs.",
    )
    familiarity_image: float | None = Field(None, ge=0, le=1, description="The same share for the picture alone.")
    familiarity_text: float | None = Field(None, ge=0, le=1, description="The same share for the text alone.")
    unfamiliar_parts: list[Literal["image", "text"]] = Field(
        default=[], description="The parts that make the pair unfamiliar; empty for any other verdict."
    )
    familiarity_id: str | None = Field(None, description=_FAMILIARITY_ID)
    limits: str = Field("", description=_LIMITS)
    warnings: list[str]
    timings: dict[str, float] = Field(
        description="Milliseconds by step: read, fetch, decode, detect (with waiting), draw, total."
    )


class ErrorBody(BaseModel):
    """The error, for programs (`code`) and for people (`message`)."""

    code: ErrorCode = Field(
        description="\n".join(f"- `{code}`: {meaning}" for code, meaning in MEANINGS.items()),
    )
    message: str
    param: str | None = Field(description="The field that the error is about.")
    request_id: str

    @field_validator("code", mode="before")
    @classmethod
    def _known(cls, code: object, info: ValidationInfo) -> object:
        return "input_error" if info.context is LATER_CODES and code not in MEANINGS else code


class ErrorResponse(BaseModel):
    """The error envelope: every error has this form."""

    error: ErrorBody


class BatchItem(BaseModel):
    """One pair of a batch: the status that it would have alone, and its result or its error."""

    id: str = Field(description="The id of the request, a hyphen, and the position of the pair in the batch from 0.")
    custom_id: str | None = Field(None, description="The caller's own name of the pair, if it gave a valid one.")
    status: int
    result: Detection | None = None
    error: ErrorBody | None = None


class BatchResponse(BaseModel):
    """One item for each pair, in the order of the pairs."""

    items: list[BatchItem]


class ModelCard(BaseModel):
    """A model of this server."""

    model_id: str
    policy_id: str
    image_size: int = Field(description="Side, in pixels, of the square input of the model.")
    thresholds: dict[str, float] = Field(
        description="The scores from which a pair, a type or a word is flagged, and `unfamiliar`: the familiarity "
        "below which a pair is not judged."
    )
    calibrated: bool = Field(description="True if the thresholds were calibrated, false if they were merely chosen.")
    familiarity_id: str | None = Field(None, description=_FAMILIARITY_ID)
    limits: str = Field("", description=_LIMITS)

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Restore a card from another process. One of an earlier version lacks fields, which get their defaults."""
        newer = {"familiarity_id": None, "limits": ""}
        super().__setstate__(state | {"__dict__": newer | state["__dict__"]})


class ModelList(BaseModel):
    """The models of this server."""

    models: list[ModelCard]


class KeyState(BaseModel):
    """The caller's key: what it may be used for, until when, and how much it may send now."""

    name: str
    scopes: list[str] = Field(description="What the key may be used for: `detect`, `metrics`, `jobs`, `all-jobs`.")
    expires: datetime | None = Field(description="The time from which the key is refused. Null: never.")
    pairs_per_second: float = Field(description="Pairs that it may send over a long time, as in `RateLimit-Policy`.")
    burst: int = Field(description="Pairs that it may send at once after a pause, as in `RateLimit-Limit`.")
    remaining: int = Field(description="Pairs that it may send at once now, as in `RateLimit-Remaining`.")
    reset_s: float = Field(description="Seconds until it may send `burst` pairs at once, as in `RateLimit-Reset`.")


class ServerLimits(BaseModel):
    """Limits of requests. Whatever exceeds one is refused, usually with 413, however often it is sent."""

    image_formats: list[str] = Field(description="Formats of pictures that are read.")
    max_image_bytes: int = Field(description="Bytes of an encoded picture.")
    max_image_pixels: int = Field(description="Pixels of a picture.")
    max_text_chars: int = Field(description="Characters of a text.")
    min_text_read: float = Field(description="Share of a text's characters that the model must be able to read.")
    max_body_bytes: int = Field(description="Bytes of the body of POST /v1/detect.")
    max_batch_items: int = Field(description="Pairs of a batch.")
    max_batch_bytes: int = Field(description="Bytes of the body of a batch.")
    deadline_s: float = Field(description="Seconds within which a request is answered, from its first byte.")
    idempotency_s: float = Field(description="Seconds for which a response to an `Idempotency-Key` is kept.")
    uri_prefixes: list[str] = Field(description="Beginnings of the addresses that pictures are fetched from.")
    max_uri_chars: int = Field(
        MAX_URI_CHARS, description="Characters of such an address. A longer one is refused with 422."
    )
    jobs: JobLimits | None = Field(None, description="What the caller may name in a job. Null: it may submit none.")
    key: KeyState | None = Field(description="The caller's key. Null if the server has no keys.")


class Health(BaseModel):
    """The status of a server that works: `ok`."""

    status: Literal["ok"] = "ok"


def detection(id_: str, finding: Finding, timings: dict[str, float], image: str | None) -> Detection:
    """Return the response for a finding that has no error.

    Args:
        id_: The id of the request, or of the item of a batch.
        finding: The finding of its pair.
        timings: Milliseconds by step.
        image: A data: URL of the picture with its evidence, if it was requested.
    """
    box = fractions = None
    if finding.box_px is not None and finding.width and finding.height:
        x0, y0, x1, y1 = finding.box_px
        box = BoxPixels(x0=x0, y0=y0, x1=x1, y1=y1)
        width, height = finding.width, finding.height
        fractions = BoxShares(x0=x0 / width, y0=y0 / height, x1=x1 / width, y1=y1 / height)
    scores = finding.types or {}
    types = {name: {"score": scores[name], "flagged": name in finding.flagged_types} for name in TYPES}
    words = [WordScore(**vars(word)) for word in finding.words or []]
    return Detection.model_validate({
        "id": id_,
        "model_id": finding.model_id,
        "policy_id": finding.policy_id,
        "verdict": finding.verdict,
        "score": finding.score,
        "types": types,
        "evidence": Evidence(box_px=box, box=fractions, words=words, note=finding.note, image=image),
        "input": {"sha256": finding.image_sha256, "width": finding.width, "height": finding.height},
        "text_read": finding.text_read,
        "familiarity": finding.familiarity,
        "familiarity_image": finding.familiarity_image,
        "familiarity_text": finding.familiarity_text,
        "unfamiliar_parts": finding.unfamiliar_parts,
        "familiarity_id": finding.familiarity_id,
        "limits": finding.limits,
        "warnings": finding.warnings,
        "timings": {name: round(value, 2) for name, value in timings.items()},
    })  # fmt: skip
