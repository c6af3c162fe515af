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

Pairs of one news item depend on each other, and the tests want independent ones. So one pair of each item is drawn
before the scoring (`draw_pairs`); the others are not scored.

Thresholds are chosen on the pairs that the policy judges. `unfamiliar` decides which these are. It moves only where
labels show that it should (`_choose_border`): a calibration on photographs must not make photographs familiar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asap.corpus.reader import Record
from asap.errors import ConfigError, PrecisionNotShown
from asap.evaluation.news_items import item_keys, news_items, one_of_each
from asap.evaluation.pairs_needed import MOST_PAIRS, pairs_needed
from asap.evaluation.thresholds import Decision, OperatingCurve, precision_at_most, score_meaning
from asap.labels import TYPES, types_of
from asap.policy import Policy
from asap.storage.files import check_folder_writable, exists
from asap.storage.location import Location
from asap.storage.s3 import check_bucket
from asap.weights.model_folder import check_folder, model_config
from jobs.corpus import read_corpus
from jobs.policy.files import read_policy, replace_policy
from jobs.policy.scores import OnPairs, ScoredSplit, SplitScores, score_split
from jobs.policy.settings import CalibrateSettings
from jobs.states import job_states

_MIN_PAIRS = 1000
"""Pairs that can move the threshold `unfamiliar`."""
_LOOSER = (0.0, 0.0005, 0.001, 0.002)
"""Values that `unfamiliar` may fall to."""
_TIGHTER = (0.01, 0.02, 0.05)
"""Values that `unfamiliar` may rise to."""
_METHOD = (
    "pairs weighed by importance to the prevalence; the lowest threshold that exact tests of the target show: in a "
    "sequence from starts that an eighth of the positive pairs placed, or at fixed numbers of false flags; the review "
    "band by Clopper-Pearson bounds that hold at all thresholds together"
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
    familiarity: str
    """One sentence about the threshold `unfamiliar`."""


def calibrate(
    settings: CalibrateSettings,
    progress: OnPairs = lambda done, total: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Calibrated:
    """Choose thresholds on a split and write them as a policy file.

    Raises `PrecisionNotShown` if the scores do not support the target, with the precision that they do support;
    `ConfigError`, `CorpusError`, `AnnotationError`, `CheckpointError`, `StorageError`, and on a cluster `JobError`.
    Nothing is written then.

    Args:
        settings: The model, the labeled pairs and the target.
        progress: Receives the number of scored pairs and of all pairs.
        on_note: Receives a sentence about what is waited for on a cluster.
    """
    with job_states(settings, "calibrate", Location.parse(settings.model).name, settings.target) as states:

        def report(done: int, total: int) -> None:
            states.note(done=done, total=total)
            progress(done, total)

        states.change({"state": "validating"})
        _check_target(settings)
        folder = check_folder(settings.model)
        corpus = read_corpus(settings, settings.corpus, settings.split, model_config(folder).label_set)
        from asap.predictor import Predictor  # takes seconds to import, so all that needs no model comes before

        records = draw_pairs(corpus.records)
        if settings.address is None:
            predictor = Predictor.from_folder(folder, settings.device, settings.dtype, batch_size=settings.batch_size)
            states.change({"state": "running"})
            scored = score_split(predictor, records, settings.max_failed_share, report)
        else:
            from jobs.policy.on_cluster import score_on_cluster

            states.change({"state": "running"})
            scored = score_on_cluster(settings, folder, records, report, on_note)
        states.change({"state": "finalizing"})
        about = _about(scored, settings) | {"same_item": len(corpus.records) - len(records)}
        policy = choose_policy(scored.scores, settings, scored.policy, about)
        kept = replace_policy(settings.target, policy)
    outcome = (policy.calibration or {})["familiarity"]["outcome"]
    read = [*corpus.report.lines(), *_of_same_items(about["same_item"])]
    return Calibrated(policy, settings.target, kept, read, outcome)


def draw_pairs(records: Sequence[Record]) -> list[Record]:
    """Return one pair of each news item, in their order; see `asap.evaluation.news_items`.

    The draw follows from the pairs themselves: the same pairs in another order give the same ones.
    """
    items_B = news_items(item_keys([(str(record.image), record.id) for record in records]))
    fake_B = np.array([bool(types_of(record.fake_cls, record.labels)) for record in records], bool)
    lots_B = item_keys([(f"{record.image}\n{record.text}\n{record.fake_cls}", "") for record in records])[:, 0]
    return [records[position] for position in one_of_each(items_B, fake_B, lots_B)]


def _of_same_items(left_out: int) -> list[str]:
    """Say how many pairs were left out for others of their news item; nothing if there were none."""
    if not left_out:
        return []
    return [
        f"{left_out:,} pairs were left out: they share a picture or an id with another pair, so they depend on it. Of "
        "each such news item one pair was used."
    ]


def _check_target(settings: CalibrateSettings) -> None:
    """Raise the errors of writing the policy before the scoring, which takes long."""
    if settings.model == "demo" and settings.out is None:
        raise ConfigError("the model 'demo' ships with asap and is not written to. Name a file with --out.")
    if settings.target.is_s3:
        check_bucket(settings.target)
    elif Path(settings.target.uri).is_dir():
        raise ConfigError(f"--out {settings.target} is a folder. Name the policy file to write.")
    check_folder_writable(settings.target.parent)
    if exists(settings.target):
        read_policy(settings.target)


def choose_policy(scores: SplitScores, settings: CalibrateSettings, former: Policy, about: dict[str, Any]) -> Policy:
    """Choose the thresholds that the scores support. Raises `PrecisionNotShown` if they do not support the target.

    Args:
        scores: The scored split.
        settings: The target, and the thresholds to keep.
        former: The policy whose thresholds are kept if the settings say so.
        about: How the policy is made. It becomes the policy's `calibration`, with the rates of each threshold.
    """
    border = _choose_border(scores, settings, former.unfamiliar)
    judged_B = scores.judged(border.unfamiliar)
    left_out = int((~judged_B).sum())
    familiarity: dict[str, Any] = {"outcome": border.outcome}
    if scores.familiarity_id is not None:
        familiarity |= {"familiarity_id": scores.familiarity_id, "former": former.unfamiliar}
        about = about | {"unfamiliar": left_out}
    apart = [(left_out, "unfamiliar pairs"), (about["same_item"], "pairs of the same news items as others")]
    took_no_part = " and ".join(f"{count:,} {whose}" for count, whose in apart if count)
    shown = _choose_thresholds(scores.where(judged_B), settings, took_no_part, border.manipulated)
    value = {name: float(point["value"]) for name, point in shown.items()}
    return Policy(
        manipulated=value["manipulated"],
        review=value["review"],
        types={name: value.get(name, former.types[name]) for name in TYPES},
        word=value.get("word", former.word),
        unfamiliar=border.unfamiliar,
        calibration=about | {"thresholds": shown, "familiarity": familiarity},
    )


class _Border(NamedTuple):
    """The border between the pairs that are judged and those that are not."""

    unfamiliar: float
    """The threshold of familiarity."""
    outcome: str
    """One sentence about it."""
    manipulated: float = 0.0
    """The threshold `manipulated` must not be below it: from there on, newly admitted pairs have the precision."""


def _choose_border(scores: SplitScores, settings: CalibrateSettings, former: float) -> _Border:
    """Choose the threshold of familiarity below which a pair is not judged.

    It rises where flagged pairs just above it are shown to be wrong. It falls only where the flagged pairs that it
    would admit are shown, on their own, to be right. Otherwise it stays.

    Args:
        scores: The scored split.
        settings: The target.
        former: The threshold of the former policy.
    """
    pairs, target = len(scores.score_B), settings.precision
    if scores.familiarity_id is None:
        missing = "The model has no familiarity file, so it judges every pair. Make one with `asap familiarize`."
        return _Border(former, missing)
    if pairs < _MIN_PAIRS:
        few = f"unfamiliar stays {former:g}: {pairs:,} pairs are too few to move it; {_MIN_PAIRS:,} can."
        return _Border(former, few)

    def between(low: float, high: float) -> Decision:
        return scores.where(scores.judged(low) & ~scores.judged(high)).decisions()["manipulated"]

    return (
        _tighter(scores, settings, former, between)
        or _looser(scores, settings, former, between)
        or _Border(
            former,
            f"unfamiliar stays {former:g}: {int((~scores.judged(former)).sum()):,} of {pairs:,} pairs are below it and "
            f"took no part; the labels do not show that it should move (target precision {target:g}).",
        )
    )


def _tighter(
    scores: SplitScores, settings: CalibrateSettings, former: float, between: Callable[[float, float], Decision]
) -> _Border | None:
    """Return a border above the former one, if flagged pairs between them are shown to be wrong."""
    curve = _curve(scores.where(scores.judged(former)), settings)
    position = None if curve is None else curve.choose(settings.precision)
    if curve is None or position is None:
        return None
    flags_from, confidence = float(curve.thresholds_C[position]), 1 - (1 - settings.confidence) / len(_TIGHTER)
    unfamiliar, most = former, 1.0
    # Bands above the threshold, one after the other. One with too few pairs to show anything joins the next.
    for end in (end for end in _TIGHTER if end > former):
        shown = precision_at_most(between(unfamiliar, end), flags_from, settings.prevalence, confidence)
        if shown < settings.precision:
            unfamiliar, most = end, shown
    if unfamiliar == former:
        return None
    return _Border(
        unfamiliar,
        f"unfamiliar rises from {former:g} to {unfamiliar:g}: of the flagged pairs just above it, at most "
        f"{np.ceil(100 * most):.0f} % are right, and {100 * settings.precision:g} % is the target.",
    )


def _looser(
    scores: SplitScores, settings: CalibrateSettings, former: float, between: Callable[[float, float], Decision]
) -> _Border | None:
    """Return the lowest border below the former one whose newly admitted pairs alone show the target precision."""
    confidence = 1 - (1 - settings.confidence) / len(_LOOSER)
    for unfamiliar in (value for value in _LOOSER if value < former):
        admitted, curve = between(unfamiliar, former), _curve(scores.where(scores.judged(unfamiliar)), settings)
        if curve is None or not len(admitted.authentic) or not len(admitted.positive):
            continue
        alone = OperatingCurve(admitted, settings.prevalence, confidence)
        # One threshold must do for the admitted pairs alone and for all judged pairs together.
        for position in np.flatnonzero(curve.shown(settings.precision)):
            flags_from = float(curve.thresholds_C[position])
            if (least := alone.guaranteed_precision(flags_from, len(curve.thresholds_C))) >= settings.precision:
                return _Border(
                    unfamiliar,
                    f"unfamiliar falls from {former:g} to {unfamiliar:g}: of the flagged pairs that it admits, at "
                    f"least {np.floor(100 * least):.0f} % are right, and {100 * settings.precision:g} % is the target.",
                    flags_from,
                )
    return None


def _curve(scores: SplitScores, settings: CalibrateSettings) -> OperatingCurve | None:
    """Return the curve of `manipulated`; None if the pairs have one class only."""
    decision = scores.decisions()["manipulated"]
    if not len(decision.authentic) or not len(decision.positive):
        return None
    return OperatingCurve(decision, settings.prevalence, settings.confidence)


def _choose_thresholds(
    scores: SplitScores, settings: CalibrateSettings, took_no_part: str, manipulated: float
) -> dict[str, dict[str, Any]]:
    """Return each threshold with its rates, by its name. Raises `PrecisionNotShown`.

    Args:
        scores: The pairs that the policy judges.
        settings: The target, and the thresholds to keep.
        took_no_part: The pairs that are not among them, by number and kind, for the error.
        manipulated: The lowest threshold that `manipulated` may have.
    """
    shown: dict[str, dict[str, Any]] = {}
    problems: list[dict[str, Any]] = []
    for name, decision in scores.decisions().items():
        if name in settings.keep:
            continue
        if not len(decision.authentic) or not len(decision.positive):
            hidden = int(scores.hides_word_B.sum()) if name == "word" else 0
            problems.append(_shortfall(name, decision, settings) | ({"positive_unknown": hidden} if hidden else {}))
            continue
        curve = OperatingCurve(decision, settings.prevalence, settings.confidence)
        position = curve.choose(settings.precision, manipulated if name == "manipulated" else 0.0)
        if position is None:
            problems.append(_shortfall(name, decision, settings, curve))
            continue
        shown[name] = curve.at(position, settings.precision).to_dict()
        if name == "manipulated":  # the review band ends where `manipulated` begins
            shown["review"] = _review(curve, position, settings.effective_review_precision)
            shown["review"]["score_meaning"] = score_meaning(decision, shown["review"]["value"], settings.prevalence)
        shown[name]["score_meaning"] = score_meaning(decision, shown[name]["value"], settings.prevalence)
    # All problems are reported together, so that one more calibration is enough.
    if problems:
        fake = int(scores.manipulated.sum())
        apart = f" ({took_no_part} took no part)" if took_no_part else ""
        hidden = sum(problem.get("positive_unknown", 0) for problem in problems)
        unknown = (
            f" {hidden:,} manipulated texts have no word positions, so they show nothing of `word`." if hidden else ""
        )
        claim = (
            f"precision {settings.precision} at prevalence {settings.prevalence} cannot be shown with confidence "
            f"{settings.confidence} by {len(scores.score_B) - fake:,} authentic and {fake:,} manipulated pairs{apart}"
        )
        # Where every rate stands in the way, more pairs with these scores would show nothing either.
        helps = any(problem["shown"] is None or problem["authentic_needed"] is not None for problem in problems)
        more = "Add pairs, lower" if helps else "More pairs with such scores would not show it. Lower"
        advice = f"{more} --precision, or --keep the former threshold of a type or of the words."
        raise PrecisionNotShown(
            f"{claim} for {', '.join(map(_describe, problems))}, going by the rates seen here. {advice}",
            f"{claim}.{unknown} {advice}",
            problems,
        )
    return shown


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


def _shortfall(
    name: str, decision: Decision, settings: CalibrateSettings, curve: OperatingCurve | None = None
) -> dict[str, Any]:
    """Return what a threshold lacks, as `PrecisionNotShown.shortfalls` has it. Without a curve, a class has no pair."""
    needed = None
    if curve is not None:
        needed = pairs_needed(decision, settings.prevalence, settings.confidence, settings.precision)
    return {
        "threshold": name,
        "target": settings.precision,
        "shown": curve and curve.best,
        "authentic": len(decision.authentic),
        "positive": len(decision.positive),
        "authentic_needed": needed and needed.authentic,
        "positive_needed": needed and needed.positive,
    }


def _describe(shortfall: dict[str, Any]) -> str:
    """Return the name of a threshold, the best precision that is shown, and how many pairs would show the target."""
    name, authentic, positive = (shortfall[key] for key in ("threshold", "authentic", "positive"))
    if shortfall["shown"] is None:
        unknown = ""
        if hidden := shortfall.get("positive_unknown"):
            unknown = f"; {hidden} more have a manipulated text without word positions"
        return f"{name} (there are {authentic} authentic pairs and {positive} that have it{unknown})"
    if shortfall["authentic_needed"] is None:
        needed = f"{MOST_PAIRS:,} such pairs would not show it"
    elif shortfall["positive_needed"] > positive:
        needed = (
            f"about {shortfall['authentic_needed']:,} authentic pairs and {shortfall['positive_needed']:,} that have "
            "it would show it"
        )
    else:
        needed = f"about {shortfall['authentic_needed']:,} authentic pairs would show it"
    return f"{name} (at best {shown_text(shortfall['shown'])}; {needed})"


def shown_text(precision: float) -> str:
    """Return a precision with three digits, never rounded up to one that was not shown."""
    return f"{np.floor(precision * 1000) / 1000:.3f}" if precision >= 0.001 else f"{precision:.1e}"


def _about(scored: ScoredSplit, settings: CalibrateSettings) -> dict[str, Any]:
    """Return how the policy is made, for its `calibration`."""
    scores = scored.scores
    fake = int(scores.manipulated.sum())
    return {
        "target_precision": settings.precision,
        "prevalence": settings.prevalence,
        "confidence": settings.confidence,
        "review_precision": round(settings.effective_review_precision, 6),
        "model_id": scored.model_id,
        "dtype": scored.dtype,
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
