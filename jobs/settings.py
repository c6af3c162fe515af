"""Settings that several jobs share. Values that cannot work are refused when the settings are built."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from asap.corpus.annotations import BadBox, BadPosition, ReadRules
from jobs.notify import check_target
from jobs.ray_address import joining_problem

Device = Literal["auto", "cpu", "cuda"]


class Settings(BaseModel):
    """Base of all settings: frozen, and strict about names, so that a misspelled setting is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WatchSettings(Settings):
    """The operator's view of a job (docs/watching.md). It is not kept in the job's record: addresses are secrets."""

    log_file: str | None = Field(default=None, exclude=True)
    """File that gets a JSON line for each change of the job's state; `-` for stderr. None: no lines."""
    notify: tuple[str, ...] = Field(default=(), exclude=True)
    """Commands and http(s):// addresses that get a JSON document when the job ends or stalls."""
    notify_for_s: float = Field(default=5, gt=0, le=3600, exclude=True)
    """Seconds in which a document is delivered, all tries together. The end of the command waits so long at most."""

    @model_validator(mode="after")
    def _check_notify(self) -> Self:
        for target in self.notify:
            check_target(target)
        return self


class ClusterSettings(Settings):
    """The Ray that a job runs on."""

    address: str | None = None
    """Address of a running Ray cluster. None: start Ray on this machine."""
    device: Device = "auto"
    """Device of the model. `auto`: GPUs if the machines have any at the start; `cuda`: wait for them."""
    wait_for_machines_s: float = Field(default=900, ge=0)
    """Seconds to wait for a cluster at `address` to add the machines that the workers need, as its autoscaler does; and
    for other jobs of the same Ray to free the resources that the workers need. Then the job gives up. A cluster without
    an autoscaler is waited for only if this is given: somebody has to start its machines."""
    stall_after_s: float = Field(default=60, gt=0)
    """Seconds without finished work after which a job that runs says so, and what it waits for."""
    metrics_targets: str | None = Field(default=None, exclude=True)
    """File that names the metrics pages of the machines while the job runs, for Prometheus (docs/watching.md)."""

    @field_validator("address")
    @classmethod
    def _check_address(cls, address: str | None) -> str | None:
        if address is not None and (problem := joining_problem(address)):
            raise ValueError(problem)
        return address

    @property
    def waits_for_people(self) -> bool:
        """True if machines are awaited that somebody has to start."""
        return "wait_for_machines_s" in self.model_fields_set


class CorpusSettings(Settings):
    """The files of a labeled corpus, and the handling of its defects (docs/corpora.md)."""

    missing_images: float = Field(default=0.01, ge=0, le=1)
    """Largest fraction of a split's pairs whose picture may be missing or broken. They are left out; if there are more,
    nothing starts."""
    bad_boxes: BadBox = "boxless"
    """Handling of an invalid box: `boxless` keeps the pair without it, `skip` leaves the pair out, `refuse` stops."""
    stray_positions: BadPosition = "drop"
    """Handling of positions beyond the text: `drop` drops them, `skip` leaves the pair out, `refuse` stops."""
    files: dict[Literal["train", "val", "test"], list[str]] = {}
    """Metadata files by split, for a corpus where they are not found automatically: names in the corpus, paths, or
    s3:// addresses."""
    captions: list[str] = []
    """Files of captions, or folders of `asap annotate`; an earlier one takes precedence. Empty: `captions.json` of the
    corpus, if it exists."""
    explanations: list[str] = []
    """Files or folders of explanations, handled as `captions`. Empty: `explanations.json` of the corpus."""
    pictures: str | None = None
    """Folder or s3:// prefix of the pictures. None: the corpus."""

    def rules(self, label_set: str) -> ReadRules:
        """Return the rules for reading a corpus with this label set, which is the model's."""
        return ReadRules(
            label_set=label_set,
            missing_images=self.missing_images,
            bad_boxes=self.bad_boxes,
            stray_positions=self.stray_positions,
        )
