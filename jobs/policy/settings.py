"""Settings of calibration and of familiarity: the target, and the labeled pairs."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from asap.storage.location import Location
from jobs.settings import ClusterSettings, CorpusSettings, Device, WatchSettings

Split = Literal["train", "val", "test"]


class CalibrateSettings(CorpusSettings, ClusterSettings, WatchSettings):
    """A calibration: the model, the labeled pairs, the target, and how sure to be."""

    model: str
    corpus: str
    """A folder in DGM4's layout, or s3://."""
    precision: float = Field(gt=0, lt=1)
    """Target precision: fraction of the pairs that a threshold flags that must be correct."""
    prevalence: float = Field(gt=0, lt=1)
    """Fraction of manipulated pairs where the thresholds will be used."""
    review_precision: float | None = Field(default=None, gt=0, lt=1)
    """Target precision of the review band: fraction of the pairs from `review` up to `manipulated`, which people look
    at, that must be manipulated. None: a quarter of the way from the prevalence to the precision. At a low prevalence
    and a precision near 1, people then look at about four pairs to find a manipulated one."""
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    """Confidence level at which each threshold keeps its precision."""
    split: str = "val"
    out: str | None = None
    """Policy file to write. None: `policy.json` of the model folder."""
    keep: tuple[Literal["face_swap", "face_attribute", "text_swap", "text_attribute", "word"], ...] = ()
    """Thresholds that are left as they are in the model's policy."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the encoders. It must be that of the scans to come."""
    batch_size: int = Field(default=32, ge=1)
    max_failed_share: float = Field(default=0.01, ge=0, lt=1)
    """Largest fraction of pairs that may fail to be scored, for any reason. They are left out and counted; if there are
    more, the calibration stops."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.precision <= self.prevalence:
            raise ValueError(
                f"precision {self.precision} is no more than the prevalence {self.prevalence}: flagging every pair "
                "reaches it. Choose a higher precision."
            )
        if not self.prevalence < self.effective_review_precision <= self.precision:
            raise ValueError(
                f"review_precision {self.review_precision} is not above the prevalence {self.prevalence} (which "
                f"pairs drawn at random reach) and at most the precision {self.precision}"
            )
        return self

    @property
    def effective_review_precision(self) -> float:
        """The target precision of the review band, with its default resolved."""
        if self.review_precision is None:
            return self.prevalence + (self.precision - self.prevalence) / 4
        return self.review_precision

    @property
    def target(self) -> Location:
        """The policy file to write."""
        return Location.parse(self.out) if self.out else Location.parse(self.model) / "policy.json"


class FamiliarizeSettings(CorpusSettings):
    """A fit of familiarity: the model, and the pairs of its training."""

    model: str
    """A model folder, on this machine or at s3://."""
    corpus: str
    """A folder in DGM4's layout, or s3://."""
    fit_split: Split = "train"
    """Split that the distributions are fitted to."""
    held_out_split: Split = "val"
    """Split whose pairs say how strange a pair of the corpus can be. Training never saw it."""
    device: Device = "auto"
    batch_size: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fit_split == self.held_out_split:
            raise ValueError(
                f"split {self.fit_split} is both fitted and held out: pairs that were fitted look less strange than "
                "others. Choose another split for one of them."
            )
        return self
