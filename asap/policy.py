"""From probabilities to a verdict: thresholds that are data, so that a new policy needs no new scan."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from asap.errors import ConfigError
from asap.finding import Verdict, Word
from asap.labels import IMAGE_TYPES, TYPES
from asap.preprocessing.words import split_words

_WAY_OUT = "asap calibrate writes one, and so does every model folder hold one"


def _halves() -> dict[str, float]:
    return dict.fromkeys(TYPES, 0.5)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Thresholds on probabilities: `score >= manipulated` is manipulated, `score >= review` goes to a person."""

    manipulated: float = 0.5
    review: float = 0.5
    """Equal to `manipulated` means that there is no review band."""
    types: dict[str, float] = field(default_factory=_halves)
    word: float = 0.5
    calibration: dict[str, Any] | None = None
    """How, on what, and for which precision and prevalence the thresholds were chosen; None if they were not."""

    def __post_init__(self) -> None:
        if not isinstance(self.types, dict) or set(self.types) != set(TYPES):
            raise ConfigError(f"policy types {self.types!r} are not thresholds of the four known ones, {list(TYPES)}")
        named = {"manipulated": self.manipulated, "review": self.review, "word": self.word}
        for name, threshold in (named | {f"types.{name}": value for name, value in self.types.items()}).items():
            if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
                raise ConfigError(f"policy threshold {name} {threshold!r} is not a probability in [0, 1]")
        if self.review > self.manipulated:
            raise ConfigError(f"policy threshold review {self.review} is above manipulated {self.manipulated}")
        if self.calibration is not None and not isinstance(self.calibration, dict):
            raise ConfigError(f"policy calibration {self.calibration!r} is neither null nor an object that says how")

    @cached_property
    def policy_id(self) -> str:
        """First 12 hex of a SHA-256 over the thresholds; how they were found does not change it."""
        thresholds = {name: float(getattr(self, name)) for name in ("manipulated", "review", "word")}
        named = {"types": {name: float(value) for name, value in self.types.items()}, **thresholds}
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]

    def verdict(self, score: float) -> Verdict:
        """The verdict for a probability of manipulated."""
        if score >= self.manipulated:
            return "manipulated"
        return "review" if score >= self.review else "authentic"

    def flagged_types(self, types: Mapping[str, float | None]) -> list[str]:
        """The types whose probability reaches their threshold, in the published order; one that is None does not."""
        return [name for name in TYPES if (value := types[name]) is not None and value >= self.types[name]]

    @staticmethod
    def flags_a_face(flagged_types: list[str]) -> bool:
        """Whether a box belongs in the finding: some image type is flagged."""
        return any(name in IMAGE_TYPES for name in flagged_types)

    def save(self, path: Path) -> None:
        """Write the policy as JSON."""
        path.write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """The contents of a `policy.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a `policy.json`; what is wrong in it is a `ConfigError` that names the file."""
        try:
            return cls.from_json(path.read_bytes(), path)
        except OSError as error:
            raise ConfigError(f"policy file {path} cannot be used: {error}") from error

    @classmethod
    def from_json(cls, content: bytes, source: object) -> Self:
        """The inverse of `to_json`; what is wrong is a `ConfigError` that names the source."""
        try:
            told = json.loads(content.decode())
        except ValueError as error:
            raise ConfigError(f"policy file {source} cannot be used: it is not JSON, {error}; {_WAY_OUT}") from error
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(told, dict) or not told.keys() <= set(known):
            found = f"the unknown fields {sorted(told.keys() - set(known))}" if isinstance(told, dict) else "no fields"
            raise ConfigError(f"policy file {source} cannot be used: it has {found}, known are {known}; {_WAY_OUT}")
        try:
            return cls(**told)
        except ConfigError as error:
            raise ConfigError(f"policy file {source} cannot be used: {error}") from error


def flagged_words(text: str, scores: Sequence[float], threshold: float) -> list[Word]:
    """The words of a text whose score reaches the threshold."""
    return [
        Word(index=span.index, start=span.start, end=span.end, word=span.word, score=score)
        for span, score in zip(split_words(text), scores, strict=True)
        if score >= threshold
    ]


def apply_policy(
    policy: Policy,
    *,
    score: float,
    types: Mapping[str, float | None],
    raw_box: Any,
    text: str,
    word_scores: Sequence[float] | None,
) -> dict[str, Any]:
    """What thresholds make of a pair's raw scores: `verdict`, `flagged_types`, `box_px` and `words` of a `Finding`.

    A type that is None is not flagged; without word scores there are no words. raw_box: in whatever form, comes back
    as `box_px` where an image type is flagged.
    """
    flagged = policy.flagged_types(types)
    return {
        "verdict": policy.verdict(score),
        "flagged_types": flagged,
        "box_px": raw_box if policy.flags_a_face(flagged) else None,
        "words": None if word_scores is None else flagged_words(text, word_scores, policy.word),
    }
