"""Calibration: a model and a labeled split in, thresholds that keep a precision at a prevalence out.

The pairs are scored by the `Predictor` that a scan runs: texts of any length, in the same arithmetic. Each threshold
flags pairs, and a flag is right or wrong:

- `manipulated` flags the pair. It is right if the pair is manipulated.
- `review` flags the pair for people to look at, if `manipulated` does not. It is right if the pair is manipulated. At
  least `review_precision` of the pairs that people see is right. Pairs above `manipulated` are left out,
  because they would make a band of authentic pairs seem precise.
- A type flags the pair. It is right if the pair has that type. Manipulated pairs of another type are wrong, as
  authentic pairs are.
- `word` flags a pair if any of its words reaches the threshold. It is right if a manipulated word does. The pair is
  counted, not the word, because words of one pair depend on each other and a bound over words would promise too much.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asap.corpus.reader import Record
from asap.errors import AnnotationError, ConfigError, CorpusError, PrecisionNotShown
from asap.evaluation.own_pairs import read_pair
from asap.evaluation.thresholds import Decision, Floats, OperatingCurve
from asap.finding import Finding
from asap.labels import TYPES, types_of
from asap.policy import Policy
from asap.predictor import Predictor
from asap.storage.files import exists
from asap.storage.location import Location
from asap.storage.s3 import check_bucket
from jobs.corpus import read_corpus
from jobs.policy.files import read_policy, replace_policy
from jobs.policy.settings import CalibrateSettings

OnPairs = Callable[[int, int], None]

_CHUNK_BATCHES = 16
_METHOD = (
    "pairs weighed by importance to the prevalence; the lowest threshold whose precision has a lower bound of at "
    "least the target, with Clopper-Pearson bounds on every rate that hold at all thresholds together"
)


@dataclass(frozen=True)
class Calibrated:
    """A calibrated policy, and where it was written."""

    policy: Policy
    written: Location
    kept: Location | None
    """The copy of the former policy. None if there was no former policy that differs."""
    read: list[str]
    """Findings of reading the corpus, one sentence each."""


def calibrate(settings: CalibrateSettings, progress: OnPairs = lambda done, total: None) -> Calibrated:
    """Choose thresholds on a split and write them as a policy file.

    `progress` receives the number of scored pairs and of all pairs. Raises `PrecisionNotShown` if the scores do not
    support the target, with the precision that they do support; `ConfigError`, `CorpusError`, `AnnotationError`,
    `CheckpointError`, `StorageError`. Nothing is written then.
    """
    _check_target(settings)
    predictor = Predictor.from_folder(settings.model, settings.device, settings.dtype, batch_size=settings.batch_size)
    corpus = read_corpus(settings, settings.corpus, settings.split, predictor.config.label_set)
    scores = score_records(predictor, corpus.records, settings.max_failed_share, progress)
    policy = choose_policy(scores, settings, predictor.policy, _about(predictor, scores, settings))
    return Calibrated(policy, settings.target, replace_policy(settings.target, policy), corpus.report.lines())


def _check_target(settings: CalibrateSettings) -> None:
    """Raise the errors of writing the policy before the scoring, which takes long."""
    if settings.model == "demo" and settings.out is None:
        raise ConfigError("the model 'demo' ships with asap and is not written to. Name a file with --out.")
    if settings.target.is_s3:
        check_bucket(settings.target)
    if exists(settings.target):
        read_policy(settings.target)


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
    failed: dict[str, int]
    """Pairs that could not be scored, by error code."""
    fingerprint: str
    """Fingerprint of ids, pictures, texts and labels of all pairs: 16 hex digits of a SHA-256."""

    @property
    def manipulated(self) -> NDArray[np.bool_]:
        """(B,): True if the pair has any type."""
        return np.asarray(self.has_type_B4.any(axis=1))

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
            other=wrong_B[fake_B & ~self.has_word_B],
            stray=wrong_B[self.has_word_B & fake_B],
        )
        return decisions


def score_records(
    predictor: Predictor, records: Sequence[Record], max_failed_share: float, progress: OnPairs
) -> SplitScores:
    """Score annotated pairs, with a few batches in memory at a time.

    Raises `CorpusError` if too many pairs cannot be scored.

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
    for record, finding in _findings(predictor, records, progress):
        # The fingerprint covers failed pairs too, so it is taken before they are left out.
        fields = [record.id, finding.image_sha256, record.text, record.fake_cls, list(record.fake_text_pos)]
        digest.update(json.dumps(fields).encode() + b"\n")
        if finding.error is not None:
            failed[finding.error.code] += 1
            example = example or f"record {record.id}: {finding.error}"
            continue
        rows.append(_scores(record, finding))
        labels.append(
            (*(name in types_of(record.fake_cls, record.labels) for name in TYPES), bool(record.fake_text_pos))
        )
    if failed.total() > max_failed_share * len(records):
        raise CorpusError(
            f"{failed.total()} of {len(records)} pairs cannot be scored, more than a fraction of {max_failed_share}. "
            f"The first is {example}"
        )
    values, truth = np.array(rows, np.float32), np.array(labels, bool)
    return SplitScores(
        values[:, 0], values[:, 1:5], values[:, 5], values[:, 6], truth[:, :4], truth[:, 4], dict(failed),
        digest.hexdigest()[:16],
    )  # fmt: skip


def _findings(predictor: Predictor, records: Sequence[Record], progress: OnPairs) -> Iterator[tuple[Record, Finding]]:
    chunk = _CHUNK_BATCHES * predictor.batch_size
    for start in range(0, len(records), chunk):
        some = records[start : start + chunk]
        yield from zip(some, predictor.predict([read_pair(record) for record in some]), strict=True)
        progress(start + len(some), len(records))


def _scores(record: Record, finding: Finding) -> tuple[float, ...]:
    """Return score, four types, highest score of a manipulated word, and highest score of another word."""
    words = finding.word_scores or []
    manipulated = set(record.fake_text_pos)
    if beyond := sorted(manipulated - set(range(len(words)))):
        raise AnnotationError(
            f"record {record.id}: fake_text_pos has {beyond[0]}, but the text has words 0 to {len(words) - 1}: "
            f"{record.text!r}"
        )
    right = max((words[position] for position in manipulated), default=0.0)
    wrong = max((score for position, score in enumerate(words) if position not in manipulated), default=0.0)
    types = finding.types or {}
    return (float(finding.score or 0), *(float(types[name] or 0) for name in TYPES), right, wrong)


def choose_policy(scores: SplitScores, settings: CalibrateSettings, former: Policy, about: dict[str, Any]) -> Policy:
    """Choose the thresholds that the scores support. Raises `PrecisionNotShown` if they do not support the target.

    Args:
        scores: The scored split.
        settings: The target, and the thresholds to keep.
        former: The policy whose thresholds are kept if the settings say so.
        about: How the policy is made. It becomes the policy's `calibration`, with the rates of each threshold.
    """
    shown: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for name, decision in scores.decisions().items():
        if name in settings.keep:
            continue
        if not len(decision.authentic) or not len(decision.positive):
            problems.append(f"{name} (there are {len(decision.authentic)} authentic pairs and "
                            f"{len(decision.positive)} that have it)")  # fmt: skip
            continue
        curve = OperatingCurve(decision, settings.prevalence, settings.confidence)
        position = curve.choose(settings.precision)
        if position is None:
            problems.append(f"{name} ({_shortfall(curve, settings.precision)})")
            continue
        shown[name] = curve.at(position).to_dict()
        if name == "manipulated":  # the review band ends where `manipulated` begins
            shown["review"] = _review(curve, position, settings.effective_review_precision)
    # All problems are reported together, so that one more calibration is enough.
    if problems:
        fake = int(scores.manipulated.sum())
        raise PrecisionNotShown(
            f"precision {settings.precision} at prevalence {settings.prevalence} cannot be shown with confidence "
            f"{settings.confidence} by {len(scores.score_B) - fake:,} authentic and {fake:,} manipulated pairs for "
            f"{', '.join(problems)}, going by the rates seen here. Add pairs, lower --precision, or --keep the former "
            "threshold of a type or of the words."
        )
    value = {name: float(point["value"]) for name, point in shown.items()}
    return Policy(
        manipulated=value["manipulated"],
        review=value["review"],
        types={name: value.get(name, former.types[name]) for name in TYPES},
        word=value.get("word", former.word),
        calibration=about | {"thresholds": shown},
    )


def _review(curve: OperatingCurve, manipulated: int, precision: float) -> dict[str, Any]:
    """Return the lower end of the review band and the rates of the band; without a band, those of `manipulated`."""
    bands = curve.bands(manipulated)
    position = bands.choose(precision)
    if position is None:
        return curve.at(manipulated).to_dict() | {"band": None}
    return curve.at(position).to_dict() | {
        "band": {
            "precision": float(bands.precision_C[position]),
            "precision_lower": float(bands.precision_lower_C[position]),
            "flagged_share": float(bands.flagged_share_C[position]),
        }
    }


def _shortfall(curve: OperatingCurve, precision: float) -> str:
    """Describe the best precision that is shown, and how many authentic pairs would show the target."""
    # Three digits, never rounded up to a precision that was not shown.
    best = f"{np.floor(curve.best * 1000) / 1000:.3f}" if curve.best >= 0.001 else f"{curve.best:.1e}"
    needed = curve.authentic_pairs_needed(precision)
    if needed is None:
        return f"at best {best}, and authentic pairs alone, however many, would not show it"
    return f"at best {best}; about {needed:,} authentic pairs would show it"


def _about(predictor: Predictor, scores: SplitScores, settings: CalibrateSettings) -> dict[str, Any]:
    """Return how the policy is made, for its `calibration`."""
    fake = int(scores.manipulated.sum())
    return {
        "target_precision": settings.precision,
        "prevalence": settings.prevalence,
        "confidence": settings.confidence,
        "review_precision": round(settings.effective_review_precision, 6),
        "model_id": predictor.model_id,
        "dtype": str(predictor.dtype).removeprefix("torch."),
        "corpus": Location.parse(settings.corpus).name,
        "split": settings.split,
        "corpus_fingerprint": scores.fingerprint,
        "pairs": len(scores.score_B),
        "authentic": len(scores.score_B) - fake,
        "manipulated": fake,
        "failed": scores.failed,
        "kept": list(settings.keep),
        "method": _METHOD,
    }
