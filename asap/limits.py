"""The limits of a model: what it was made from, and what it must not be used for, in plain words.

They are `limits.json` of the model folder. Every place that shows a verdict shows them too, as two or three sentences.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Self

from asap.errors import CheckpointError
from asap.labels import label_set

NO_FAMILIARITY = (
    "The model has no familiarity file, so it judges every pair, also those that look like nothing that it was made "
    "from. Make one with `asap familiarize`."
)
"""The sentence about a model that cannot tell which pairs it has seen nothing like."""
_FIELDS = "made_from, languages, label_set, prevalence, not_for"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a model, as the person who trained it states them."""

    made_from: str
    """The pictures or pairs of the training, as they read after "was made from": `drawn pictures`."""
    languages: tuple[str, ...] = ()
    """Languages of the texts, such as `English`; empty if nobody has said."""
    label_set: str = "dgm4"
    """Name of the label set, which decides what counts as a manipulation; see `asap.labels`."""
    prevalence: float | None = None
    """Share of manipulated pairs in the training, 0 to 1; None if it is unknown."""
    not_for: str = "any other kind of picture or text"
    """Uses that are ruled out, as they read after "Do not use it for"."""

    def sentences(self, model: str) -> str:
        """Return the limits as a person reads them, about the model with this name."""
        texts = f"texts in {' and '.join(self.languages)} and " if self.languages else ""
        origin = f"{model} was made from {self.made_from}, with {texts}manipulations as in "
        origin += f"{label_set(self.label_set).title}."
        if self.prevalence is not None:
            share = f"{100 * self.prevalence:.0f} %"
            origin += f" In its training, {share} of the pairs were manipulated; "
            origin += "where fewer are, more of the flagged pairs are wrong."
        return f"{origin} Do not use it for {self.not_for}."

    def to_json(self) -> str:
        """Return the content of `limits.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, content: bytes, source: object) -> Self:
        """Parse the output of `to_json`. Raises `CheckpointError`, with the source, if it is none."""
        try:
            fields: Any = json.loads(content.decode())
            languages = fields.get("languages", [])
            if not isinstance(languages, list):
                raise ValueError(f"languages {languages!r} is not a list")
            limits = cls(**fields | {"languages": tuple(languages)})
            limits._check()
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{source} cannot be used: {error}. It has the fields {_FIELDS}.") from error
        return limits

    def _check(self) -> None:
        """Raise `ValueError` for a field of another type or range."""
        texts = [("made_from", self.made_from), ("not_for", self.not_for), ("label_set", self.label_set)]
        for name, text in [*texts, *(("language", language) for language in self.languages)]:
            if not isinstance(text, str):
                raise ValueError(f"{name} {text!r} is not a text")
            if not text.strip():
                raise ValueError(f"{name} must not be blank")
        label_set(self.label_set)
        share = self.prevalence
        if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1):
            raise ValueError(f"prevalence {share!r} is not between 0 and 1")


def limits_sentences(limits: Limits | None, model_id: str) -> str:
    """Return what is known about the limits of a model, as a person reads it."""
    name = model_id.partition("@")[0]
    if limits is None:
        return (
            f"Nobody has recorded what {name} was made from. Check its verdicts on labeled pairs of yours before use."
        )
    return limits.sentences(name)
