"""The stages of a training run: the loss terms that each step trains, for the run and for its plan."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from asap.model.config import ModelConfig
from asap.training.augmentation import Augmentation
from asap.training.step import ALIGNMENT_TERMS, TERMS, WORD_TERMS, descriptions_read
from jobs.train.settings import TrainSettings


@dataclass(frozen=True)
class Stage:
    """A range of steps that trains the same terms."""

    first_step: int
    last_step: int
    """Exclusive."""
    weights: dict[str, float]
    """Loss weights of the trained terms, by name."""
    image_locked: bool = False
    """True if the image encoder is locked."""


def plan_stages(settings: TrainSettings, steps: int) -> list[Stage]:
    """Return the stages of a run of so many steps, without those that have no steps.

    First the words alone are trained, then all terms of the labels, then all terms. The image encoder may be locked
    from any step after the words; this starts a stage too.
    """
    weights = {name: weight for name, weight in vars(settings.objective.weights).items() if weight}
    words_end, locked_from = word_steps(settings, steps), lock_step(settings, steps)
    # Alignment joins at the first step that follows at least `alignment_pairs` pairs, so the step is rounded up.
    alignment_pairs = settings.alignment_from * settings.total_pairs(steps)
    whole = int(alignment_pairs // settings.batch_size)
    aligned_from = whole + (whole * settings.batch_size < alignment_pairs)
    labels_end = max(words_end, min(steps, aligned_from))

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


def word_steps(settings: TrainSettings, steps: int) -> int:
    """Return the number of steps at the start of the run that train the words alone."""
    return int(settings.words_until * steps)


def lock_step(settings: TrainSettings, steps: int) -> int:
    """Return the step from which the image encoder is locked, or `steps` if it never is.

    It is never before the end of the stage that trains the words alone, because that stage reads no pictures.
    """
    return max(word_steps(settings, steps), int(settings.lock_image_from * steps))


def augmentation_at(settings: TrainSettings, step: int, steps: int) -> Augmentation:
    """Return the augmentation of pictures at a step; none once the image encoder is locked."""
    return "none" if step >= lock_step(settings, steps) else settings.augmentation


def descriptions_at(settings: TrainSettings, config: ModelConfig, step: int, steps: int) -> tuple[str, ...]:
    """Return the descriptions of its pairs that a step reads; see `asap.training.step.descriptions_read`."""
    stage = next(stage for stage in plan_stages(settings, steps) if step < stage.last_step)
    return descriptions_read(config, stage.weights)
