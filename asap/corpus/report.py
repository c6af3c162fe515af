"""The report on a corpus that was read: every repair and every pair left out has a line in it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

JoinedBy = Literal["by_id", "by_path", "fallback", "ambiguous"]

SHOWN = 3
"""Examples that are kept of each kind of problem."""


@dataclass
class Occurrences:
    """The number of times that a problem occurred, and the first few examples."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count one more occurrence, and keep it as an example if there are few so far."""
        self.count += 1
        if len(self.examples) < SHOWN:
            self.examples.append(example)

    def __bool__(self) -> bool:
        return self.count > 0


@dataclass
class JoinReport:
    """The number of pairs that got their caption, or explanation, by each kind of key."""

    files: list[str] = field(default_factory=list)
    by_id: int = 0
    by_path: int = 0
    fallback: int = 0
    """Pairs described by their own text instead, including the ambiguous ones."""
    ambiguous: int = 0
    """Pairs whose entries may be of another pair."""
    blank: int = 0
    """Entries of the files without a word in them."""

    def count(self, joined_by: JoinedBy) -> None:
        """Count one more pair."""
        if joined_by == "ambiguous":
            self.fallback += 1
        setattr(self, joined_by, getattr(self, joined_by) + 1)

    def line(self, plural: str) -> str:
        """Return a sentence about the join; `plural` is "captions" or "explanations"."""
        if not self.files:
            return f"{plural}: none are given; this is a run without them, every pair has its text in their place"
        joined = self.by_id + self.by_path
        nobody = f" {', '.join(self.files)} belongs to no pair: this is a run without {plural}." if not joined else ""
        unsure = f" ({self.ambiguous:,} of them because the entry may be of another pair)" if self.ambiguous else ""
        blank = f"; {self.blank:,} entries have no word" if self.blank else ""
        counts = f"{self.by_id:,} by id, {self.by_path:,} by image path, {self.fallback:,} fall back to the text"
        return f"{plural}: {counts}{unsure}{blank}.{nobody}"


@dataclass
class CorpusReport:
    """The findings of reading one split of a corpus. `str` gives the text to show to a person."""

    corpus: str
    split: str
    label_set: str
    files: list[str] = field(default_factory=list)
    """Files of metadata that were read."""
    rows: int = 0
    """Annotated pairs in the files."""
    records: int = 0
    """Pairs that were kept."""
    classes: dict[str, int] = field(default_factory=dict)
    """Pairs that were kept of each `fake_cls`."""
    missing_images: list[str] = field(default_factory=list)
    """All pictures that do not exist, as the metadata names them. Their pairs are left out."""
    missing_pairs: int = 0
    """Pairs left out because their picture does not exist."""
    broken_images: Occurrences = field(default_factory=Occurrences)
    """Pairs left out because their picture cannot be decoded. Counted once the pictures are decoded."""
    relocated_images: Occurrences = field(default_factory=Occurrences)
    """Pairs whose picture has another spelling, or lies in another folder, than the metadata says."""
    clipped_boxes: Occurrences = field(default_factory=Occurrences)
    """Pairs whose box reaches out of the picture; the part inside is used. Counted once the pictures are decoded."""
    boxless: Occurrences = field(default_factory=Occurrences)
    """Pairs that are kept without their box, which is not a valid one."""
    stray_positions: Occurrences = field(default_factory=Occurrences)
    """Pairs with positions beyond their text, which are dropped."""
    unplaced_words: Occurrences = field(default_factory=Occurrences)
    """Pairs with a manipulated text whose manipulated words are not annotated."""
    has_word_positions: bool = True
    """False if texts are manipulated and none of them has word positions, as in MDSM."""
    skipped: Occurrences = field(default_factory=Occurrences)
    """Pairs left out because of such a box or position."""
    captions: JoinReport = field(default_factory=JoinReport)
    explanations: JoinReport = field(default_factory=JoinReport)

    def lines(self) -> list[str]:
        """Return a sentence for each finding that a person should see."""
        classes = ", ".join(f"{name} {count:,}" for name, count in self.classes.items())
        lines = [
            f"{self.split} of {self.corpus}: {self.records:,} of {self.rows:,} pairs ({', '.join(self.files)}), "
            f"label set {self.label_set}: {classes}"
        ]
        if self.missing_images:
            fraction = self.missing_pairs / self.rows
            shown = ", ".join(self.missing_images[:SHOWN])
            lines.append(f"pictures missing of {self.missing_pairs:,} pairs ({fraction:.2%}), left out: {shown}")
        for occurrences, sentence in (
            (self.broken_images, "pairs were left out because their picture cannot be decoded"),
            (self.relocated_images, "pictures found under another spelling or in another folder"),
            (self.clipped_boxes, "boxes reach out of their picture and were clipped"),
            (self.boxless, "boxes are no boxes; their pairs are kept without one"),
            (self.stray_positions, "pairs have positions beyond their text, which were dropped"),
            (self.skipped, "pairs were left out for a box or position that cannot be used"),
        ):
            if occurrences:
                lines.append(f"{occurrences.count:,} {sentence}: {', '.join(occurrences.examples)}")
        if self.unplaced_words:
            lines.append(self._unplaced_line())
        return [*lines, self.captions.line("captions"), self.explanations.line("explanations")]

    def _unplaced_line(self) -> str:
        """Return a sentence about manipulated texts whose manipulated words are not annotated."""
        if not self.has_word_positions:
            return (
                f"word positions: none of the {self.unplaced_words.count:,} manipulated texts has any (fake_text_pos). "
                "No word of this split is trained on or evaluated; pairs, types and boxes are."
            )
        return (
            f"word positions: {self.unplaced_words.count:,} manipulated texts have none (fake_text_pos), and their "
            f"words are neither trained on nor evaluated: {', '.join(self.unplaced_words.examples)}"
        )

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_dict(self) -> dict[str, Any]:
        """Return the report ready for JSON, with every missing picture."""
        return dataclasses.asdict(self)
