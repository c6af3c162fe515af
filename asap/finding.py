"""The input and the output of a prediction: plain data, no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from asap.labels import FLAGGED

if TYPE_CHECKING:
    from PIL import Image

    from asap.errors import InputError

Verdict = Literal["manipulated", "review", "authentic", "unfamiliar"]
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the original image after EXIF rotation."""
NO_EVIDENCE = "No type, word or box supports this verdict."
"""The sentence that stands beside a verdict that `lacks_evidence`."""
NOT_JUDGED = "unfamiliar, not judged"
"""The verdict `unfamiliar` as a headline."""


def score_text(score: float, digits: int = 2) -> str:
    """Return a probability as a person reads it: rounded, but below 1 never rounded up to 1."""
    text = f"{score:.{digits}f}"
    return f">{1 - 10**-digits:.{digits}f}" if score < 1 and float(text) >= 1 else text


def lacks_evidence(
    verdict: str | None,
    flagged_types: Sequence[str] | None,
    words: Sequence[object] | None,
    box: Sequence[float] | None,
) -> bool:
    """Return True if a pair is flagged by its score alone, without any flagged type, word or box."""
    return verdict in FLAGGED and not flagged_types and not words and box is None


def box_fields(box: Box | None) -> dict[str, float] | None:
    """Return a box as it is in results, in JSON and in the API: `x0`, `y0`, `x1` and `y1`."""
    return None if box is None else dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))


def unfamiliar_reason(parts: Sequence[str]) -> str:
    """Return why an unfamiliar pair was not judged, as a sentence about its parts, `image` and `text`."""
    strange = " and ".join({"image": "picture", "text": "text"}[part] for part in parts) or "pair"
    return f"Not judged: the model has seen nothing like this {strange}."


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
    """Probability that the word is manipulated: the maximum over its tokens, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result for one pair. If `error` is set, verdict, score, types and evidence are None or empty."""

    verdict: Verdict | None = None
    score: float | None = None
    """Probability that the pair is manipulated, from the binary head, in [0, 1]."""
    types: dict[str, float | None] | None = None
    """Probability of each of `asap.labels.TYPES`. A text type is None if a caption replaced a missing text."""
    flagged_types: list[str] = field(default_factory=list)
    box_px: Box | None = None
    """The manipulated face; None unless an image type is flagged."""
    raw_box_px: Box | None = None
    """The box that the model predicts, whichever types are flagged."""
    words: list[Word] | None = field(default_factory=list)
    """The flagged words; None if a caption replaced a missing text."""
    word_scores: list[float] | None = field(default_factory=list)
    """A score for every whitespace-separated word of the text; None if a caption replaced a missing text."""
    text_read: float | None = None
    """Share of the text's characters that the vocabulary of the model reads, in [0, 1]; None without a text."""
    familiarity: float | None = None
    """Share of the model's own held-out pairs that are at least as strange, in (0, 1], from the stranger of picture and
    text. None if the model has no familiarity file."""
    familiarity_image: float | None = None
    """The same share for the picture alone."""
    familiarity_text: float | None = None
    """The same share for the text alone; None if a caption replaced a missing text."""
    agreement_image_text: float | None = None
    """Cosine of the contrastive features of picture and text, in [-1, 1]: evidence, not a verdict. None without a text.
    """
    agreement_image_caption: float | None = None
    """The same of picture and caption; None without a caption."""
    agreement_text_caption: float | None = None
    """The same of text and caption; None without one of them."""
    unfamiliar_parts: tuple[str, ...] = ()
    """The parts, `image` and `text`, that are too strange to judge the pair; empty unless it is unfamiliar."""
    width: int | None = None
    """Width of the original image after EXIF rotation, in pixels."""
    height: int | None = None
    """Height of the original image after EXIF rotation, in pixels."""
    image_sha256: str | None = None
    """Hex digest of the encoded bytes; None for a PIL image, which has none."""
    model_id: str
    policy_id: str
    familiarity_id: str | None = None
    """The id of the model's familiarity file; None if it has none."""
    limits: str = ""
    """The limits of the model as a person reads them: its origin, and the uses that are ruled out."""
    warnings: list[str] = field(default_factory=list)
    error: InputError | None = None

    @property
    def note(self) -> str:
        """A sentence to show beside the verdict: why the pair was not judged, or that no evidence supports the verdict.

        It is empty for all other findings.
        """
        if self.verdict == "unfamiliar":
            return unfamiliar_reason(self.unfamiliar_parts)
        return NO_EVIDENCE if lacks_evidence(self.verdict, self.flagged_types, self.words, self.box_px) else ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields, in the shapes of result rows; an error becomes `error_code` and `error_detail`."""
        # The fields one by one: `dataclasses.asdict` would copy the error, which is not a field of the JSON.
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "error"}
        if self.words is not None:
            fields["words"] = [dataclasses.asdict(word) for word in self.words]
        fields |= {"box_px": box_fields(self.box_px), "raw_box_px": box_fields(self.raw_box_px)}
        fields["error_code"] = self.error.code if self.error else None
        fields["error_detail"] = str(self.error) if self.error else None
        return fields
