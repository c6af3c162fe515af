"""A model and a labelled split -> thresholds that keep a precision at a prevalence, and how they were found.

The pairs are scored by the `Predictor` that a scan runs, so texts of any length, in the same arithmetic. What each
threshold flags, and what counts as right:

- `manipulated`: the pair; right if it is manipulated.
- `review`: the pair, if `manipulated` does not, for people to look at; right likewise. Of what people see, without
  the pairs that are manipulated for sure, at least `review_precision` is right. Counted with those, a band would seem
  precise whose every pair is authentic.
- a type: the pair; right if it has that type. Manipulated pairs of another type are wrong, as authentic ones are.
- `word`: a pair of which some word reaches the threshold; right if a manipulated word does. Words of a pair depend on
  each other, pairs do not, so the pair is what is counted: a bound over words would promise too much.
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

from asap.corpus.picture_cache import read_picture
from asap.corpus.reader import Record
from asap.errors import AnnotationError, ConfigError, CorpusError, InputError, PrecisionNotShown
from asap.evaluation.thresholds import Decision, Floats, OperatingCurve
from asap.finding import Finding, Pair
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
    """A policy and where it is."""

    policy: Policy
    written: Location
    kept: Location | None
    """Where the different policy is that was there before; None if there was none."""
    read: list[str]
    """What reading the corpus found, a sentence each."""


def calibrate(settings: CalibrateSettings, progress: OnPairs = lambda done, total: None) -> Calibrated:
    """Choose thresholds on a split and write them; `progress` is told the pairs scored so far and in all.

    Raises `PrecisionNotShown` where the scores do not support the target, saying what they do; `ConfigError`,
    `CorpusError`, `AnnotationError`, `CheckpointError`, `StorageError`. Then nothing is written.
    """
    _check_target(settings)
    predictor = Predictor.from_folder(settings.model, settings.device, settings.dtype, batch_size=settings.batch_size)
    corpus = read_corpus(settings, settings.corpus, settings.split, predictor.config.label_set)
    scores = score_records(predictor, corpus.records, settings.max_failed_share, progress)
    policy = choose_policy(scores, settings, predictor.policy, _about(predictor, scores, settings))
    return Calibrated(policy, settings.target, replace_policy(settings.target, policy), corpus.report.lines())


def _check_target(settings: CalibrateSettings) -> None:
    """What would stop the writing is found before the scoring."""
    if settings.model == "demo" and settings.out is None:
        raise ConfigError("the model 'demo' ships with asap and is not written to; name a file with --out")
    if settings.target.is_s3:
        check_bucket(settings.target)
    if exists(settings.target):
        read_policy(settings.target)


@dataclass(frozen=True, eq=False)
class SplitScores:
    """What the model says of B annotated pairs, and what is true."""

    score_B: Floats
    types_B4: Floats
    right_word_B: Floats
    """The highest score of a manipulated word; 0 where there is none."""
    wrong_word_B: Floats
    """The highest score of a word that is not manipulated; 0 where there is none."""
    has_type_B4: NDArray[np.bool_]
    has_word_B: NDArray[np.bool_]
    failed: dict[str, int]
    """Pairs that could not be scored, by error code."""
    fingerprint: str
    """Of ids, pictures, texts and labels of all pairs: 16 hex digits of a SHA-256."""

    @property
    def manipulated(self) -> NDArray[np.bool_]:
        """Whether a pair has any type."""
        return np.asarray(self.has_type_B4.any(axis=1))

    def decisions(self) -> dict[str, Decision]:
        """What each threshold is chosen on, by its name."""
        fake_B, wrong_B = self.manipulated, self.wrong_word_B
        words = Decision(
            authentic=wrong_B[~fake_B],
            positive=self.right_word_B[self.has_word_B & fake_B],
            other=wrong_B[fake_B & ~self.has_word_B],
            stray=wrong_B[self.has_word_B & fake_B],
        )
        return {
            "manipulated": Decision(authentic=self.score_B[~fake_B], positive=self.score_B[fake_B]),
            **{name: self._type(number) for number, name in enumerate(TYPES)},
            "word": words,
        }

    def _type(self, number: int) -> Decision:
        values_B, has_it_B = self.types_B4[:, number], self.has_type_B4[:, number]
        others_B = self.manipulated & ~has_it_B
        return Decision(authentic=values_B[~self.manipulated], positive=values_B[has_it_B], other=values_B[others_B])


def score_records(
    predictor: Predictor, records: Sequence[Record], max_failed_share: float, progress: OnPairs
) -> SplitScores:
    """Score annotated pairs, a few batches in memory at a time.

    Raises `CorpusError` if more than `max_failed_share` of them cannot be scored.
    """
    rows: list[tuple[float, ...]] = []
    labels: list[tuple[bool, ...]] = []
    failed: Counter[str] = Counter()
    digest = hashlib.sha256()
    example = ""
    for record, finding in _findings(predictor, records, progress):
        digest.update(_identity(record, finding))
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
            f"{failed.total()} of {len(records)} pairs cannot be scored, more than a share of {max_failed_share}; the "
            f"first is {example}"
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
        yield from zip(some, predictor.predict([_pair(record) for record in some]), strict=True)
        progress(start + len(some), len(records))


def _pair(record: Record) -> Pair:
    """A pair whose picture is not there fails by itself."""
    try:
        return Pair(read_picture(record.image), record.text)
    except InputError:
        return Pair(None, record.text)


def _identity(record: Record, finding: Finding) -> bytes:
    told = [record.id, finding.image_sha256, record.text, record.fake_cls, list(record.fake_text_pos)]
    return json.dumps(told).encode() + b"\n"


def _scores(record: Record, finding: Finding) -> tuple[float, ...]:
    """Score, four types, highest score of a manipulated word, highest of another."""
    words = finding.word_scores or []
    manipulated = set(record.fake_text_pos)
    if beyond := sorted(manipulated - set(range(len(words)))):
        raise AnnotationError(
            f"record {record.id}: fake_text_pos has {beyond[0]}, but the text has words 0 to {len(words) - 1}: "
            f"{record.text!r}"
        )
    right = max((words[place] for place in manipulated), default=0.0)
    wrong = max((score for place, score in enumerate(words) if place not in manipulated), default=0.0)
    types = finding.types or {}
    return (float(finding.score or 0), *(float(types[name] or 0) for name in TYPES), right, wrong)


def choose_policy(scores: SplitScores, settings: CalibrateSettings, former: Policy, about: dict[str, Any]) -> Policy:
    """The thresholds that the scores support, with `about` and what is shown of each as their calibration.

    former: the policy whose thresholds are kept where the settings say so. Raises `PrecisionNotShown`.
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
        place = curve.choose(settings.precision)
        if place is None:
            problems.append(f"{name} ({_shortfall(curve, settings.precision)})")
            continue
        shown[name] = curve.at(place).to_dict()
        if name == "manipulated":
            shown["review"] = _review(curve, place, settings.effective_review_precision)
    if problems:
        raise _refusal(problems, scores, settings)
    value = {name: float(point["value"]) for name, point in shown.items()}
    return Policy(
        manipulated=value["manipulated"],
        review=value["review"],
        types={name: value.get(name, former.types[name]) for name in TYPES},
        word=value.get("word", former.word),
        calibration=about | {"thresholds": shown},
    )


def _review(curve: OperatingCurve, manipulated: int, precision: float) -> dict[str, Any]:
    """The lower end of the band for people, and what is shown of the band; without one, that of `manipulated`."""
    bands = curve.bands(manipulated)
    place = bands.choose(precision)
    if place is None:
        return curve.at(manipulated).to_dict() | {"band": None}
    return curve.at(place).to_dict() | {
        "band": {
            "precision": float(bands.precision_C[place]),
            "precision_lower": float(bands.precision_lower_C[place]),
            "flagged_share": float(bands.flagged_share_C[place]),
        }
    }


def _shortfall(curve: OperatingCurve, precision: float) -> str:
    best = f"at best {_down(curve.best)}"
    needed = curve.authentic_pairs_needed(precision)
    if needed is None:
        return f"{best}, and authentic pairs alone, however many, would not show it"
    return f"{best}; about {needed:,} authentic pairs would show it"


def _down(share: float) -> str:
    """Three digits, never rounded up to what was not shown."""
    return f"{np.floor(share * 1000) / 1000:.3f}" if share >= 0.001 else f"{share:.1e}"


def _refusal(problems: list[str], scores: SplitScores, settings: CalibrateSettings) -> PrecisionNotShown:
    fake = int(scores.manipulated.sum())
    return PrecisionNotShown(
        f"precision {settings.precision} at prevalence {settings.prevalence} cannot be shown with confidence "
        f"{settings.confidence} by {len(scores.score_B) - fake:,} authentic and {fake:,} manipulated pairs for "
        f"{', '.join(problems)}, going by the rates seen here; bring more pairs, state a lower --precision, or --keep "
        "a type's or the words' former threshold"
    )


def _about(predictor: Predictor, scores: SplitScores, settings: CalibrateSettings) -> dict[str, Any]:
    """How it was made."""
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
