"""The stages of a training run: which terms each step trains, for the run and for its plan."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from asap.training.augmentation import Augmentation
from asap.training.step import ALIGNMENT_TERMS, TERMS, WORD_TERMS
from jobs.train.settings import TrainSettings


@dataclass(frozen=True)
class Stage:
    """A part of the run that trains certain terms."""

    first_step: int
    last_step: int
    """Exclusive."""
    weights: dict[str, float]
    """By term, those that are trained."""
    image_locked: bool = False
    """Whether the image encoder rests."""


def word_steps(settings: TrainSettings, steps: int) -> int:
    """The steps at the start of the run that train the words alone."""
    return int(settings.words_until * steps)


def lock_step(settings: TrainSettings, steps: int) -> int:
    """The step from which the image encoder rests, `steps` where it never does; words alone need no picture."""
    return max(word_steps(settings, steps), int(settings.lock_image_from * steps))


def augmentation_at(settings: TrainSettings, step: int, steps: int) -> Augmentation:
    """How pictures are changed at a step: those that a locked encoder has seen, not at all."""
    return "none" if step >= lock_step(settings, steps) else settings.augmentation


def stages(settings: TrainSettings, steps: int) -> list[Stage]:
    """The words alone, then what is labelled, then everything, at some step with a locked image encoder; those that
    have any steps."""
    weights = {name: weight for name, weight in vars(settings.objective.weights).items() if weight}
    words_end, locked_from = word_steps(settings, steps), lock_step(settings, steps)
    labels_end = max(words_end, min(steps, _first_step_from(settings.alignment_from * settings.pairs, settings)))

    def terms_at(step: int) -> set[str]:
        if step < words_end:
            return set(WORD_TERMS)
        return set(TERMS) if step >= labels_end else set(TERMS) - set(ALIGNMENT_TERMS)

    return [
        Stage(
            first, last,
            {name: value for name, value in weights.items() if name in terms_at(first)},
            image_locked=first >= locked_from,
        )
        for first, last in pairwise(sorted({0, words_end, labels_end, locked_from, steps}))
    ]  # fmt: skip


def _first_step_from(pairs: float, settings: TrainSettings) -> int:
    """The first step before which so many pairs were seen."""
    whole = int(pairs // settings.batch_size)
    return whole + (whole * settings.batch_size < pairs)
