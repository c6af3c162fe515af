"""What goes into a prediction and what comes out: plain data, no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL import Image

    from asap.errors import InputError

Verdict = Literal["manipulated", "review", "authentic"]
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the original image after EXIF rotation."""


@dataclass(frozen=True)
class Pair:
    """An image and the text that goes with it."""

    image: bytes | str | Path | Image.Image | None
    """Encoded bytes, a path, or a decoded PIL image."""
    text: str | None


@dataclass(frozen=True)
class Word:
    """A word of the original text. `start` and `end` are offsets in Unicode code points, end exclusive."""

    index: int
    """Position among the whitespace-separated words of the text."""
    start: int
    end: int
    word: str
    score: float
    """Probability that the word is manipulated: the highest of its tokens', in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the model says of one pair. On an error, verdict, score, types and evidence are None or empty."""

    verdict: Verdict | None = None
    score: float | None = None
    """Probability of manipulated, from the binary head, in [0, 1]."""
    types: dict[str, float | None] | None = None
    """Probability of each of `asap.labels.TYPES`; None for the text's where a caption stood in for it."""
    flagged_types: list[str] = field(default_factory=list)
    box_px: Box | None = None
    """The manipulated face; None unless an image type is flagged."""
    raw_box_px: Box | None = None
    """The box that the model predicts whatever the types say."""
    words: list[Word] | None = field(default_factory=list)
    """The flagged words; None where the text was a caption standing in for a missing one."""
    word_scores: list[float] | None = field(default_factory=list)
    """A score for every whitespace-separated word of the text."""
    width: int | None = None
    """Of the original image after EXIF rotation, in pixels; so is `height`."""
    height: int | None = None
    image_sha256: str | None = None
    """Hex digest of the encoded bytes; None for a PIL image, which has none."""
    model_id: str
    policy_id: str
    warnings: list[str] = field(default_factory=list)
    error: InputError | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields; an error becomes `error_code` and `error_detail`."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "error"}
        if self.words is not None:
            fields["words"] = [dataclasses.asdict(word) for word in self.words]
        fields["error_code"] = self.error.code if self.error else None
        fields["error_detail"] = str(self.error) if self.error else None
        return fields
