"""What each job can be told, one pydantic model a job; what cannot work is refused when it is built."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from asap.corpus.annotations import BadBox, BadPosition, ReadRules

Device = Literal["auto", "cpu", "cuda"]


class Settings(BaseModel):
    """Frozen, and strict about names: a setting that is misspelt is an error, not ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CorpusSettings(Settings):
    """How a labelled corpus is read, and what is made of one that is not as it should be (docs/corpora.md)."""

    missing_images: float = Field(default=0.01, ge=0, le=1)
    """Share of a split's pairs whose picture may be missing or broken: they are left out. Above it nothing starts."""
    bad_boxes: BadBox = "boxless"
    """Of a box that is no box: `boxless` keeps the pair without it, `skip` leaves the pair out, `refuse` stops."""
    stray_positions: BadPosition = "drop"
    """Of positions beyond the text: `drop` drops them, `skip` leaves the pair out, `refuse` stops."""
    files: dict[Literal["train", "val", "test"], list[str]] = {}
    """Of metadata, by split, where they are not found by themselves: in the corpus, or by path or s3:// address."""
    captions: list[str] = []
    """Files of captions, those before going before; none: `captions.json` of the corpus, if it is there."""
    explanations: list[str] = []
    """Likewise, `explanations.json`."""
    pictures: str | None = None
    """The folder or s3:// that the pictures lie in, if it is not the corpus."""

    def rules(self, label_set: str) -> ReadRules:
        """For a corpus of this label set, the model's."""
        return ReadRules(
            label_set=label_set,
            missing_images=self.missing_images,
            bad_boxes=self.bad_boxes,
            stray_positions=self.stray_positions,
        )
