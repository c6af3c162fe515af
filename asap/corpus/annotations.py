"""One row of a corpus's metadata: its fields checked, then its box and positions kept, repaired or refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from asap.corpus.report import CorpusReport
from asap.errors import AnnotationError, ConfigError
from asap.labels import LabelSet, label_set, shows_a_fake_face
from asap.preprocessing.words import split_words

BadBox = Literal["boxless", "skip", "refuse"]


BadPosition = Literal["drop", "skip", "refuse"]


@dataclass(frozen=True, kw_only=True)
class ReadRules:
    """What to make of a corpus that is not as it should be. A row that is no record is refused always."""

    label_set: str = "dgm4"
    """Whose classes the rows have; the model's (`ModelConfig.label_set`)."""
    missing_images: float = 0.01
    """Share of a split's pairs whose picture may be missing: they are left out. Above it the split is refused."""
    bad_boxes: BadBox = "boxless"
    """Of a box that is missing, no box, or has no area inside the picture: `boxless` keeps the pair without box terms
    and patch labels (MGCA sees no patch marked, and an evaluation has no box that a prediction could meet); `skip`
    leaves it out; `refuse` stops."""
    stray_positions: BadPosition = "drop"
    """Of positions beyond the text: `drop` drops them, `skip` leaves the pair out, `refuse` stops."""

    def __post_init__(self) -> None:
        label_set(self.label_set)
        if not 0 <= self.missing_images <= 1:
            raise ConfigError(f"missing_images {self.missing_images} is not a share between 0 and 1")
        for name, known in (("bad_boxes", ("boxless", "skip", "refuse")),
                            ("stray_positions", ("drop", "skip", "refuse"))):  # fmt: skip
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} {getattr(self, name)!r} is unknown; {', '.join(known)} are known")


DEFAULT_RULES = ReadRules()


STRICT = ReadRules(missing_images=0, bad_boxes="refuse", stray_positions="refuse")
"""Everything that a report would have to tell of is refused."""


class Row(NamedTuple):
    """A row of the metadata whose fields have the right types."""

    id: str
    image: str
    text: str
    fake_cls: str
    fake_image_box: tuple[Any, ...]
    fake_text_pos: tuple[Any, ...]
    where: str
    """File and number, for messages."""


def read_row(row: Any, where: str, labels: LabelSet) -> Row:
    """A row as JSON has it, `where` naming it in messages. Raises `AnnotationError` for one that is no record."""
    try:
        checked = Row(
            id=str(row["id"]),
            image=_typed(row["image"], "image", str),
            text=_typed(row["text"], "text", str),
            fake_cls=row["fake_cls"],
            fake_image_box=tuple(_typed(row.get("fake_image_box") or [], "fake_image_box", list)),
            fake_text_pos=tuple(_typed(row.get("fake_text_pos") or [], "fake_text_pos", list)),
            where=where,
        )
        labels.types_of(checked.fake_cls)
    except (KeyError, TypeError, AttributeError) as error:
        raise AnnotationError(f"{where} is not a DGM4 record: {error!r} in {row!r:.500}") from error
    except AnnotationError as error:
        raise AnnotationError(f"{where}: {error}") from error
    return checked


def _typed(value: Any, name: str, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}")
    return value


def repaired(row: Row, rules: ReadRules, report: CorpusReport) -> Row | None:
    """The row with a box and positions that can be used; None for one to leave out."""
    if shows_a_fake_face(row.fake_cls, label_set(rules.label_set)) and not _is_a_box(row.fake_image_box):
        what = f"fake_image_box {list(row.fake_image_box)} of a {row.fake_cls} is not xmin, ymin, xmax, ymax in pixels"
        if not _keeps(rules.bad_boxes, row, what, report):
            return None
        report.boxless.add(f"{list(row.fake_image_box)} ({row.where})")
        row = row._replace(fake_image_box=())
    words = len(split_words(row.text)) if row.fake_text_pos else 0
    stray = [position for position in row.fake_text_pos if not _is_a_position(position, words)]
    if stray:
        what = f"fake_text_pos has {str(stray)[1:-1]}, but the text has words 0 to {words - 1}: {row.text!r:.200}"
        if not _keeps(rules.stray_positions, row, what, report):
            return None
        report.stray_positions.add(f"{stray} of {words} words ({row.where})")
        row = row._replace(fake_text_pos=tuple(one for one in row.fake_text_pos if _is_a_position(one, words)))
    return row


def _keeps(rule: BadBox | BadPosition, row: Row, what: str, report: CorpusReport) -> bool:
    """Whether the row is kept for repair; a rule that refuses raises."""
    if rule == "refuse":
        raise AnnotationError(f"{row.where}: record {row.id}: {what}")
    if rule == "skip":
        report.skipped.add(f"{what} ({row.where})")
    return rule != "skip"


def _is_a_box(box: tuple[Any, ...]) -> bool:
    """Whether it has an area in some picture. Whether in this one, is known once that is decoded."""
    if len(box) != 4 or not all(type(edge) in (int, float) and math.isfinite(edge) for edge in box):
        return False
    x0, y0, x1, y1 = box
    return bool(x0 < x1 and y0 < y1 and x1 > 0 and y1 > 0)


def _is_a_position(position: Any, words: int) -> bool:
    return type(position) is int and 0 <= position < words
