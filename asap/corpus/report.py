"""What a corpus was found to be when it was read: nothing is repaired or left out without a line here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

JoinedBy = Literal["by_id", "by_path", "fallback", "ambiguous"]

SHOWN = 3
"""Examples that are kept of each finding."""


@dataclass
class Found:
    """How often something was met, and the first few times."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Once more."""
        self.count += 1
        if len(self.examples) < SHOWN:
            self.examples.append(example)

    def __bool__(self) -> bool:
        return self.count > 0


@dataclass
class Joined:
    """How many pairs got their caption, or explanation, and from where."""

    files: list[str] = field(default_factory=list)
    by_id: int = 0
    by_path: int = 0
    fallback: int = 0
    """Pairs described by their text instead, the ambiguous ones with them."""
    ambiguous: int = 0
    """Pairs whose entries may be of another pair."""
    blank: int = 0
    """Entries of the files without a word in them."""

    def count(self, way: JoinedBy) -> None:
        """One more pair."""
        if way == "ambiguous":
            self.fallback += 1
        setattr(self, way, getattr(self, way) + 1)

    def line(self, what: str) -> str:
        """In words. `what`: captions or explanations."""
        if not self.files:
            return f"{what}: none are given; this is a run without them, every pair has its text in their place"
        joined = self.by_id + self.by_path
        nobody = f" {', '.join(self.files)} belongs to no pair: this is a run without {what}." if not joined else ""
        unsure = f" ({self.ambiguous:,} of them because the entry may be of another pair)" if self.ambiguous else ""
        blank = f"; {self.blank:,} entries have no word" if self.blank else ""
        counts = f"{self.by_id:,} by id, {self.by_path:,} by image path, {self.fallback:,} fall back to the text"
        return f"{what}: {counts}{unsure}{blank}.{nobody}"


@dataclass
class CorpusReport:
    """What reading a split of a corpus found. `str` is what a person should see."""

    corpus: str
    split: str
    label_set: str
    files: list[str] = field(default_factory=list)
    """Of metadata."""
    rows: int = 0
    """Annotated pairs in the files."""
    records: int = 0
    """Pairs that were kept."""
    classes: dict[str, int] = field(default_factory=dict)
    """Pairs kept of each `fake_cls`."""
    missing_images: list[str] = field(default_factory=list)
    """All pictures that are not there, as the metadata names them; their pairs are left out."""
    missing_pairs: int = 0
    broken_images: Found = field(default_factory=Found)
    """Pairs left out because their picture cannot be decoded. Known once pictures are decoded."""
    relocated_images: Found = field(default_factory=Found)
    """Pairs whose picture has another spelling, or lies in another folder, than the metadata says."""
    clipped_boxes: Found = field(default_factory=Found)
    """Pairs whose box reaches out of the picture; the part inside counts. Known once pictures are decoded."""
    boxless: Found = field(default_factory=Found)
    """Pairs whose box is no box, and that are kept without one."""
    stray_positions: Found = field(default_factory=Found)
    """Pairs with positions beyond their text, which are dropped."""
    skipped: Found = field(default_factory=Found)
    """Pairs left out because of such a box or position."""
    captions: Joined = field(default_factory=Joined)
    explanations: Joined = field(default_factory=Joined)

    def lines(self) -> list[str]:
        """A sentence for each thing that a person should know."""
        classes = ", ".join(f"{name} {count:,}" for name, count in self.classes.items())
        lines = [
            f"{self.split} of {self.corpus}: {self.records:,} of {self.rows:,} pairs ({', '.join(self.files)}), "
            f"label set {self.label_set}: {classes}"
        ]
        if self.missing_images:
            share = self.missing_pairs / self.rows
            shown = ", ".join(self.missing_images[:SHOWN])
            lines.append(f"pictures missing of {self.missing_pairs:,} pairs ({share:.2%}), left out: {shown}")
        for found, what in (
            (self.broken_images, "pairs were left out because their picture cannot be decoded"),
            (self.relocated_images, "pictures found under another spelling or in another folder"),
            (self.clipped_boxes, "boxes reach out of their picture and were clipped"),
            (self.boxless, "boxes are no boxes; their pairs are kept without one"),
            (self.stray_positions, "pairs have positions beyond their text, which were dropped"),
            (self.skipped, "pairs were left out for a box or position that cannot be used"),
        ):
            if found:
                lines.append(f"{found.count:,} {what}: {', '.join(found.examples)}")
        return [*lines, self.captions.line("captions"), self.explanations.line("explanations")]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with every missing picture."""
        return dataclasses.asdict(self)
