"""Checks the fields of a metadata row, then keeps, repairs or refuses its box and positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from asap.corpus.report import CorpusReport
from asap.errors import AnnotationError, ConfigError
from asap.labels import LabelSet, has_a_fake_text, label_set, shows_a_fake_face
from asap.preprocessing.words import split_words

BadBox = Literal["boxless", "skip", "refuse"]
BadPosition = Literal["drop", "skip", "refuse"]


@dataclass(frozen=True, kw_only=True)
class ReadRules:
    """The handling of faults in a corpus. A row that is not a record is always refused."""

    label_set: str = "dgm4"
    """The label set of the rows' classes; that of the model (`ModelConfig.label_set`)."""
    missing_images: float = 0.01
    """Fraction of a split's pairs whose picture may be missing. They are left out; above it the split is refused."""
    bad_boxes: BadBox = "boxless"
    """Handling of a box that is missing, malformed, or without an area inside the picture. `boxless` keeps the pair
    without box terms and patch labels: MGCA has no marked patch, and an evaluation has no box that a prediction could
    match. `skip` leaves the pair out. `refuse` raises."""
    stray_positions: BadPosition = "drop"
    """Handling of positions beyond the text. `drop` drops them, `skip` leaves the pair out, `refuse` raises."""

    def __post_init__(self) -> None:
        label_set(self.label_set)
        if not 0 <= self.missing_images <= 1:
            raise ConfigError(f"missing_images {self.missing_images} is not a share between 0 and 1")
        for name, allowed in (("bad_boxes", get_args(BadBox)), ("stray_positions", get_args(BadPosition))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} {getattr(self, name)!r} is unknown; {', '.join(allowed)} are known")


DEFAULT_RULES = ReadRules()
STRICT = ReadRules(missing_images=0, bad_boxes="refuse", stray_positions="refuse")
"""Rules that refuse every fault of a corpus."""


class Row(NamedTuple):
    """A row of metadata whose fields have the right types."""

    id: str
    image: str
    text: str
    fake_cls: str
    fake_image_box: tuple[Any, ...]
    fake_text_pos: tuple[Any, ...] | None
    """Positions of the manipulated words; None if the text is manipulated and nobody says where. In a row as it is
    parsed, absent positions are an empty tuple."""
    where: str
    """File and number of the row, for messages."""


def read_row(row: Any, where: str, labels: LabelSet) -> Row:
    """Check the fields of a row.

    Args:
        row: the row as parsed from JSON.
        where: the name of the row in messages.
        labels: the label set that the row's class must belong to.

    Raises:
        AnnotationError: if the row is not a record.
    """
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


def repair_row(row: Row, rules: ReadRules, report: CorpusReport) -> Row | None:
    """Return the row with a usable box and positions, or None if it is to be left out.

    A manipulated text without a position gets `fake_text_pos` None: it has manipulated words, and nobody knows which.
    Every repair is added to `report`. Raises `AnnotationError` if the rules refuse the row.
    """
    # Only a class with a fake face needs a box. A text manipulation may have any, which nothing reads.
    if shows_a_fake_face(row.fake_cls, label_set(rules.label_set)) and not _is_box(row.fake_image_box):
        fault = f"fake_image_box {list(row.fake_image_box)} of a {row.fake_cls} is not xmin, ymin, xmax, ymax in pixels"
        if not _is_kept(rules.bad_boxes, row, fault, report):
            return None
        report.boxless.add(f"{list(row.fake_image_box)} ({row.where})")
        row = row._replace(fake_image_box=())

    positions = row.fake_text_pos or ()
    words = len(split_words(row.text)) if positions else 0
    stray = [position for position in positions if not _is_position(position, words)]
    if stray:
        fault = f"fake_text_pos has {str(stray)[1:-1]}, but the text has words 0 to {words - 1}: {row.text!r:.200}"
        if not _is_kept(rules.stray_positions, row, fault, report):
            return None
        report.stray_positions.add(f"{stray} of {words} words ({row.where})")
        positions = tuple(position for position in positions if _is_position(position, words))
    if not positions and has_a_fake_text(row.fake_cls, label_set(rules.label_set)):
        report.unplaced_words.add(row.where)
        return row._replace(fake_text_pos=None)
    return row._replace(fake_text_pos=positions)


def _is_kept(rule: BadBox | BadPosition, row: Row, fault: str, report: CorpusReport) -> bool:
    """Return True if a row with a fault is kept for repair. Raises `AnnotationError` if the rule refuses it."""
    if rule == "refuse":
        raise AnnotationError(f"{row.where}: record {row.id}: {fault}")
    if rule == "skip":
        report.skipped.add(f"{fault} ({row.where})")
    return rule != "skip"


def _is_box(box: tuple[Any, ...]) -> bool:
    """Return True if the box has an area in a picture of some size. Its own picture is checked once that is decoded."""
    if len(box) != 4 or not all(type(edge) in (int, float) and math.isfinite(edge) for edge in box):
        return False
    x0, y0, x1, y1 = box
    return bool(x0 < x1 and y0 < y1 and x1 > 0 and y1 > 0)


def _is_position(position: Any, words: int) -> bool:
    return type(position) is int and 0 <= position < words  # `isinstance` would accept True as 1
