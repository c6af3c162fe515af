"""Settings that cannot work, and settings that identify a run."""

from typing import Any

import pytest

from jobs.train.settings import TrainSettings


@pytest.fixture
def settings() -> TrainSettings:
    return TrainSettings(corpus="corpus", out="out", pairs=24, batch_size=4, words_until=0, alignment_from=0)


def changed(settings: TrainSettings, **changes: Any) -> TrainSettings:
    return settings.model_copy(update=changes)


def test_fewer_workers_compute_more_micro_batches_of_the_same_size(settings: TrainSettings) -> None:
    elastic = TrainSettings(**settings.model_dump() | {"batch_size": 48, "workers": 4, "accumulation": 2})
    assert [elastic.micro_batches(world) for world in (4, 3, 2, 1)] == [2, 4, 4, 8]


def test_only_execution_settings_may_change_between_starts(settings: TrainSettings) -> None:
    others = changed(settings, workers=2, min_workers=1, checkpoint_activations=True, compile="on", export="last")
    assert others.identity() == settings.identity()
    for changes in ({"accumulation": 2}, {"init": ("demo",)}, {"tokenizer": "train"}):
        assert changed(settings, **changes).identity() != settings.identity()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 32, "workers": 4, "min_workers": 2}, "divisible by 3 workers, and a run of 2 to 4 may have 3"),
        ({"batch_size": 4, "workers": 3}, "batch_size 4 is not divisible by 3 workers"),
        ({"batch_size": 4, "workers": 1, "min_workers": 2}, "min_workers 2 is more than workers 1"),
        ({"batch_size": 4, "accumulation": 3}, "4 pairs per worker and step are not divisible into 3 micro batches"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(
    settings: TrainSettings, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(**settings.model_dump() | changes)


def test_alignment_that_joins_before_the_words_end_is_refused(settings: TrainSettings) -> None:
    values = settings.model_dump() | {"words_until": 0.5, "alignment_from": 0.4}
    with pytest.raises(ValueError, match=r"alignment_from 0\.4 is less than words_until 0\.5"):
        TrainSettings(**values)
