"""Settings of a calibration: the target precision, the prevalence, and the labelled pairs."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from asap.storage.location import Location
from jobs.settings import CorpusSettings, Device


class CalibrateSettings(CorpusSettings):
    """Thresholds of a model for a precision at a prevalence: from which scores, and how sure."""

    model: str
    corpus: str
    """A folder in DGM4's layout, or s3://."""
    precision: float = Field(gt=0, lt=1)
    """Of all pairs that a threshold flags, the share that must be flagged rightly."""
    prevalence: float = Field(gt=0, lt=1)
    """Share of manipulated pairs where the thresholds will be used."""
    review_precision: float | None = Field(default=None, gt=0, lt=1)
    """Of the pairs from `review` up to `manipulated`, which people look at, the share that must be manipulated; None: a
    quarter of the way from the prevalence to the precision, so where few are, people look at four or fewer for one."""
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    """With which each threshold keeps its precision."""
    split: str = "val"
    out: str | None = None
    """The file to write; None: `policy.json` of the model folder."""
    keep: tuple[Literal["face_swap", "face_attribute", "text_swap", "text_attribute", "word"], ...] = ()
    """Thresholds that stay as the model's policy has them."""
    device: Device = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the encoders compute in, which must be what they will be used in."""
    batch_size: int = Field(default=32, ge=1)
    max_failed_share: float = Field(default=0.01, ge=0, lt=1)
    """Of pairs that cannot be scored, for whatever reason; more are refused, fewer are left out and counted."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.precision <= self.prevalence:
            raise ValueError(
                f"precision {self.precision} is no more than the prevalence {self.prevalence}: flagging every pair "
                "reaches it"
            )
        if not self.prevalence < self.effective_review_precision <= self.precision:
            raise ValueError(
                f"review_precision {self.review_precision} is not above the prevalence {self.prevalence} (which "
                f"pairs drawn at random reach) and at most the precision {self.precision}"
            )
        return self

    @property
    def effective_review_precision(self) -> float:
        """What `review_precision` stands for."""
        if self.review_precision is None:
            return self.prevalence + (self.precision - self.prevalence) / 4
        return self.review_precision

    @property
    def target(self) -> Location:
        """The policy file to write."""
        return Location.parse(self.out) if self.out else Location.parse(self.model) / "policy.json"
