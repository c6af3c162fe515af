"""The policy: thresholds that turn probabilities into a verdict. They are data, so a new policy needs no new scan."""

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

UNFAMILIAR = 0.005
"""The familiarity, a share of the model's own pairs, below which nothing is judged by default."""
_HOW_TO_GET_ONE = "Create one with `asap calibrate`, or copy policy.json from a model folder."


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Thresholds on probabilities: `score >= manipulated` is manipulated, `score >= review` goes to a person."""

    manipulated: float = 0.5
    review: float = 0.5
    """If it equals `manipulated`, there is no review band."""
    types: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TYPES, 0.5))
    word: float = 0.5
    unfamiliar: float = UNFAMILIAR
    """A pair whose familiarity is below it has the verdict `unfamiliar`; 0 judges every pair."""
    calibration: dict[str, Any] | None = None
    """Method, data, precision and prevalence that the thresholds were chosen with; None if they were not chosen."""

    def __post_init__(self) -> None:
        if not isinstance(self.types, dict) or set(self.types) != set(TYPES):
            raise ConfigError(f"policy types {self.types!r} are not thresholds of the four known ones, {list(TYPES)}")
        thresholds = {name: getattr(self, name) for name in ("manipulated", "review", "word", "unfamiliar")}
        for name, threshold in (thresholds | {f"types.{name}": value for name, value in self.types.items()}).items():
            # Stated as what a threshold is, so that NaN is refused too.
            if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
                raise ConfigError(f"policy threshold {name} {threshold!r} is not a probability in [0, 1]")
        if self.review > self.manipulated:
            raise ConfigError(f"policy threshold review {self.review} is above manipulated {self.manipulated}")
        if self.calibration is not None and not isinstance(self.calibration, dict):
            raise ConfigError(
                f"policy calibration {self.calibration!r} is neither null nor an object that describes the calibration"
            )

    @cached_property
    def policy_id(self) -> str:
        """The first 12 hex digits of a SHA-256 over the thresholds, without `calibration`.

        The default of `unfamiliar` is left out, so that a policy from before it keeps its id.
        """
        # As floats, so that 1 and 1.0 have one id.
        thresholds = {name: float(getattr(self, name)) for name in ("manipulated", "review", "word")}
        if self.unfamiliar != UNFAMILIAR:
            thresholds["unfamiliar"] = float(self.unfamiliar)
        named = {"types": {name: float(value) for name, value in self.types.items()}, **thresholds}
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]

    def verdict(self, score: float, familiarity: float | None = None) -> Verdict:
        """Return the verdict for a probability that the pair is manipulated.

        `unfamiliar` outranks every other verdict. A pair whose familiarity is unknown (None) is judged by its score.
        """
        if familiarity is not None and familiarity < self.unfamiliar:
            return "unfamiliar"
        if score >= self.manipulated:
            return "manipulated"
        return "review" if score >= self.review else "authentic"

    def unfamiliar_parts(self, familiarity: float | None, image: float | None, text: float | None) -> tuple[str, ...]:
        """Return the parts, `image` and `text`, that make a pair unfamiliar; none if the pair is familiar.

        Args:
            familiarity: familiarity of the pair, which alone decides whether it is unfamiliar.
            image: familiarity of the picture.
            text: familiarity of the text; None if a caption replaced a missing text.
        """
        if familiarity is None or familiarity >= self.unfamiliar:
            return ()
        # The familiarity of a pair is never below both of its parts', so at least one of them is below the threshold.
        parts = {"image": image, "text": text}
        return tuple(name for name, value in parts.items() if value is not None and value < self.unfamiliar)

    def flagged_types(self, types: Mapping[str, float | None]) -> list[str]:
        """Return the types whose probability reaches its threshold, in the published order; None never does."""
        return [name for name in TYPES if (value := types[name]) is not None and value >= self.types[name]]

    @staticmethod
    def flags_a_face(flagged_types: list[str]) -> bool:
        """Return True if an image type is flagged, so that the finding has a box."""
        return any(name in IMAGE_TYPES for name in flagged_types)

    def save(self, path: str | Path) -> None:
        """Write the policy as JSON."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """Return the contents of a `policy.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a `policy.json`. Raises `ConfigError`, with the path, if it cannot be read or is not a policy."""
        try:
            return cls.from_json(Path(path).read_bytes(), path)
        except OSError as error:
            raise ConfigError(f"policy file {path} cannot be used: {error}") from error

    @classmethod
    def from_json(cls, content: bytes, source: object) -> Self:
        """Parse the output of `to_json`. Raises `ConfigError`, with the source, if it is not a policy."""
        try:
            fields = json.loads(content.decode())
        except ValueError as error:
            raise ConfigError(
                f"policy file {source} cannot be used: it is not JSON, {error}. {_HOW_TO_GET_ONE}"
            ) from error
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(fields, dict) or not fields.keys() <= set(known):
            unknown = sorted(fields.keys() - set(known)) if isinstance(fields, dict) else None
            found = "no fields" if unknown is None else f"the unknown fields {unknown}"
            raise ConfigError(
                f"policy file {source} cannot be used: it has {found}, known are {known}. {_HOW_TO_GET_ONE}"
            )
        try:
            return cls(**fields)
        except ConfigError as error:
            raise ConfigError(f"policy file {source} cannot be used: {error}") from error


def flagged_words(text: str, scores: Sequence[float], threshold: float) -> list[Word]:
    """Return the words of a text whose score reaches the threshold."""
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
    familiarity: float | None = None,
) -> dict[str, Any]:
    """Return `verdict`, `flagged_types`, `box_px` and `words` of a `Finding` for a pair's raw scores.

    Args:
        policy: the thresholds.
        score: probability that the pair is manipulated.
        types: probability of each type; a type that is None is not flagged.
        raw_box: the predicted box in any form; it is returned as `box_px` if an image type is flagged.
        text: the text that the word scores belong to.
        word_scores: one score for each word of the text; if None, `words` is None.
        familiarity: familiarity of the pair; None if the model has no familiarity file.
    """
    verdict = policy.verdict(score, familiarity)
    if verdict == "unfamiliar":  # what the model says of such a pair is no evidence
        return {"verdict": verdict, "flagged_types": [], "box_px": None, "words": None if word_scores is None else []}
    flagged = policy.flagged_types(types)
    return {
        "verdict": verdict,
        "flagged_types": flagged,
        "box_px": raw_box if policy.flags_a_face(flagged) else None,
        "words": None if word_scores is None else flagged_words(text, word_scores, policy.word),
    }
