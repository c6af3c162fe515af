"""The stages of a training run: which terms each step trains, for the run and for its plan."""

from __future__ import annotations

from dataclasses import dataclass

from asap.training import ALIGNMENT_TERMS, TERMS, WORD_TERMS
from jobs.settings import TrainSettings


@dataclass(frozen=True)
class Stage:
    """A part of the run that trains certain terms."""

    first_step: int
    last_step: int
    """Exclusive."""
    weights: dict[str, float]
    """By term, those that are trained."""


def word_steps(settings: TrainSettings, steps: int) -> int:
    """The steps at the start of the run that train the words alone."""
    return int(settings.words_until * steps)


def stages(settings: TrainSettings, steps: int) -> list[Stage]:
    """The words alone, then what is labelled, then everything; those that have any steps."""
    weights = {name: weight for name, weight in vars(settings.objective.weights).items() if weight}
    words_end = word_steps(settings, steps)
    labels_end = max(words_end, min(steps, _first_step_from(settings.alignment_from * settings.pairs, settings)))
    ends = [(words_end, set(WORD_TERMS)), (labels_end, set(TERMS) - set(ALIGNMENT_TERMS)), (steps, set(TERMS))]
    planned, first = [], 0
    for last, terms in ends:
        if last > first:
            planned.append(Stage(first, last, {name: value for name, value in weights.items() if name in terms}))
            first = last
    return planned


def _first_step_from(pairs: float, settings: TrainSettings) -> int:
    """The first step before which so many pairs were seen."""
    whole = int(pairs // settings.batch_size)
    return whole + (whole * settings.batch_size < pairs)
