"""The scores of labeled pairs, on which a calibration chooses thresholds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from asap.corpus.reader import Record
from asap.errors import AnnotationError, CorpusError, ScoreNotFinite
from asap.evaluation.thresholds import Decision, Floats
from asap.finding import Finding
from asap.labels import TYPES, has_a_fake_text, types_of
from asap.policy import Policy

if TYPE_CHECKING:
    from asap.predictor import Predictor

OnPairs = Callable[[int, int], None]

_CHUNK_BATCHES = 16


@dataclass(frozen=True, eq=False)
class SplitScores:
    """The scores of B annotated pairs, and the truth about them."""

    score_B: Floats
    types_B4: Floats
    right_word_B: Floats
    """Highest score of a manipulated word; 0 if the pair has none."""
    wrong_word_B: Floats
    """Highest score of a word that is not manipulated; 0 if the pair has none."""
    has_type_B4: NDArray[np.bool_]
    has_word_B: NDArray[np.bool_]
    hides_word_B: NDArray[np.bool_]
    """True if the text is manipulated and the corpus does not say which words are. The threshold `word` is chosen
    without such pairs."""
    familiarity_B: Floats
    """Familiarity of the pairs; NaN if the model has no familiarity file."""
    failed: dict[str, int]
    """Pairs that could not be scored, by error code."""
    fingerprint: str
    """Fingerprint of ids, pictures, texts and labels of all pairs: 16 hex digits of a SHA-256."""
    familiarity_id: str | None = None
    """Id of the familiarity file; None if the model has none."""

    @property
    def manipulated(self) -> NDArray[np.bool_]:
        """(B,): True if the pair has any type."""
        return np.asarray(self.has_type_B4.any(axis=1))

    def judged(self, unfamiliar: float) -> NDArray[np.bool_]:
        """(B,): True if a policy with this threshold judges the pair, as `Policy.verdict` has it."""
        return np.asarray(~(self.familiarity_B < unfamiliar))

    def where(self, chosen_B: NDArray[np.bool_]) -> SplitScores:
        """Return the scores of some of the pairs."""
        return dataclasses.replace(
            self,
            score_B=self.score_B[chosen_B],
            types_B4=self.types_B4[chosen_B],
            right_word_B=self.right_word_B[chosen_B],
            wrong_word_B=self.wrong_word_B[chosen_B],
            has_type_B4=self.has_type_B4[chosen_B],
            has_word_B=self.has_word_B[chosen_B],
            hides_word_B=self.hides_word_B[chosen_B],
            familiarity_B=self.familiarity_B[chosen_B],
        )

    def decisions(self) -> dict[str, Decision]:
        """Return the scores on which each threshold is chosen, by its name in the policy."""
        fake_B = self.manipulated
        decisions = {"manipulated": Decision(authentic=self.score_B[~fake_B], positive=self.score_B[fake_B])}
        for number, name in enumerate(TYPES):
            values_B, has_it_B = self.types_B4[:, number], self.has_type_B4[:, number]
            decisions[name] = Decision(
                authentic=values_B[~fake_B], positive=values_B[has_it_B], other=values_B[fake_B & ~has_it_B]
            )
        # A pair with manipulated words can be flagged by a wrong word too, which is its stray score.
        wrong_B = self.wrong_word_B
        decisions["word"] = Decision(
            authentic=wrong_B[~fake_B],
            positive=self.right_word_B[self.has_word_B & fake_B],
            other=wrong_B[fake_B & ~self.has_word_B & ~self.hides_word_B],
            stray=wrong_B[self.has_word_B & fake_B],
        )
        return decisions


def score_records(
    predictor: Predictor, records: Sequence[Record], max_failed_share: float, progress: OnPairs
) -> SplitScores:
    """Score annotated pairs, with a few batches in memory at a time.

    Raises `CorpusError` if too many pairs cannot be scored, `ScoreNotFinite` if the model returns NaN for one.

    Args:
        predictor: The model, in the arithmetic of the scans to come.
        records: The annotated pairs.
        max_failed_share: Largest fraction of pairs that may fail. They are left out and counted.
        progress: Receives the number of scored pairs and of all pairs.
    """
    rows: list[tuple[float, ...]] = []
    labels: list[tuple[bool, ...]] = []
    failed: Counter[str] = Counter()
    digest = hashlib.sha256()
    example = ""
    familiarity_id: str | None = None
    for record, finding in _findings(predictor, records, progress):
        # The fingerprint covers failed pairs too, so it is taken before they are left out.
        fields = [record.id, finding.image_sha256, record.text, record.fake_cls, list(record.fake_text_pos or ())]
        digest.update(json.dumps(fields).encode() + b"\n")
        if isinstance(finding.error, ScoreNotFinite):  # a defect of the weights, not of the pair
            raise ScoreNotFinite(f"record {record.id}: {finding.error}. Check the weights of the model.")
        if finding.error is not None:
            failed[finding.error.code] += 1
            example = example or f"record {record.id}: {finding.error}"
            continue
        familiarity_id = finding.familiarity_id
        rows.append(_scores(record, finding))
        has_word = bool(record.fake_text_pos)
        hides_word = has_a_fake_text(record.fake_cls, record.labels) and not has_word
        types = types_of(record.fake_cls, record.labels)
        labels.append((*(name in types for name in TYPES), has_word, hides_word))
    if failed.total() > max_failed_share * len(records):
        raise CorpusError(
            f"{failed.total()} of {len(records)} pairs cannot be scored, more than a fraction of {max_failed_share}. "
            f"The first is {example}"
        )
    values, truth = np.array(rows, np.float32), np.array(labels, bool)
    return SplitScores(
        values[:, 0], values[:, 1:5], values[:, 5], values[:, 6], truth[:, :4], truth[:, 4], truth[:, 5],
        values[:, 7], dict(failed), digest.hexdigest()[:16], familiarity_id,
    )  # fmt: skip


def _findings(predictor: Predictor, records: Sequence[Record], progress: OnPairs) -> Iterator[tuple[Record, Finding]]:
    from asap.evaluation.own_pairs import read_pair

    chunk = _CHUNK_BATCHES * predictor.batch_size
    for start in range(0, len(records), chunk):
        some = records[start : start + chunk]
        yield from zip(some, predictor.predict([read_pair(record) for record in some]), strict=True)
        progress(start + len(some), len(records))


def _scores(record: Record, finding: Finding) -> tuple[float, ...]:
    """Return score, four types, highest score of a manipulated word and of another word, and familiarity.

    Raises `ScoreNotFinite` if one of them is missing or is not a number: no threshold would ever flag it.
    """
    words = finding.word_scores or []
    manipulated = set(record.fake_text_pos or ())
    if beyond := sorted(manipulated - set(range(len(words)))):
        raise AnnotationError(
            f"record {record.id}: fake_text_pos has {beyond[0]}, but the text has words 0 to {len(words) - 1}: "
            f"{record.text!r}"
        )
    right = max((words[position] for position in manipulated), default=0.0)
    wrong = max((score for position, score in enumerate(words) if position not in manipulated), default=0.0)
    types = finding.types or {}
    familiarity = float("nan") if finding.familiarity is None else finding.familiarity
    values = {"score": finding.score, **{name: types.get(name) for name in TYPES}}
    values |= {f"score of word {position}": score for position, score in enumerate(words)}
    for name, value in values.items():
        if value is None or not np.isfinite(value):
            raise ScoreNotFinite(
                f"record {record.id}: the {name} is {value}, not a number. Check the weights of the model."
            )
    return (float(values["score"] or 0), *(float(values[name] or 0) for name in TYPES), right, wrong, familiarity)


@dataclass(frozen=True)
class ScoredSplit:
    """The scores of a split, and the model that gave them."""

    scores: SplitScores
    policy: Policy
    """The policy of the model folder."""
    model_id: str
    dtype: str
    """Arithmetic of the encoders."""


def score_split(
    predictor: Predictor, records: Sequence[Record], max_failed_share: float, progress: OnPairs
) -> ScoredSplit:
    """Score annotated pairs, as `score_records` does, and name the model."""
    scores = score_records(predictor, records, max_failed_share, progress)
    dtype = str(predictor.dtype).removeprefix("torch.")
    return ScoredSplit(scores, predictor.policy, predictor.model_id, dtype)
