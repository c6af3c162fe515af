from typing import Any

import pytest
import torch

from jobs.train.checkpoints import CheckpointSchedule
from jobs.train.settings import TrainSettings

CPU = torch.device("cpu")


def due(steps: int, **settings: Any) -> list[int]:
    """Return the steps of a run after which a checkpoint is due."""
    schedule = CheckpointSchedule(TrainSettings(corpus="c", out="o", **settings), steps, 7, CPU)
    return [step for step in range(1, steps + 1) if schedule.is_due(step)]


def test_a_checkpoint_is_due_after_so_many_pairs_and_at_the_end() -> None:
    assert due(10, batch_size=32, checkpoint_pairs=128) == [4, 8, 10]
    assert due(3, batch_size=32, checkpoint_pairs=1) == [1, 2, 3]


def test_pairs_that_were_set_take_the_place_of_the_clock() -> None:
    assert due(10, batch_size=32, checkpoint_pairs=128, checkpoint_every_s=1e-9) == [4, 8, 10]


def test_a_checkpoint_is_due_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10_000, 100))  # a step takes a hundred seconds
    monkeypatch.setattr("jobs.train.checkpoints.time.monotonic", lambda: next(now))
    first, *_, last = due(30)
    assert 5 <= first <= 9
    assert last == 30


def test_a_run_has_twenty_regular_checkpoints_unless_it_is_short() -> None:
    assert len(due(4375, batch_size=32)) == 20  # the default run
    assert due(300, batch_size=32) == [200, 300]
    assert due(8, batch_size=8) == [8]


def test_a_checkpoint_may_be_due_after_each_epoch() -> None:
    assert due(20, batch_size=8, checkpoint_pairs="epoch", checkpoint_every_s=1e-9) == [7, 14, 20]
