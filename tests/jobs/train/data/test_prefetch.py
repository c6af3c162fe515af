"""Batches that a thread makes ahead."""

import threading
from dataclasses import dataclass, field

import pytest
import torch

from asap.training.batch import Batch
from jobs.train.data.feed import WHOLE
from jobs.train.data.prefetch import Prefetched
from tests.support.tiny import draw_batch
from tests.support.waiting import HANG_S

STEPS = 8


@dataclass
class Counted:
    """A feed of drawn batches, which notes the steps that it is asked for, and waits until it may make them."""

    fails_at: int = STEPS
    made: list[int] = field(default_factory=list)
    closed: int = 0
    may_make: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(10 * STEPS))
    asked: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def batch(self, step: int, rows: slice = WHOLE) -> Batch:
        self.asked.release()
        assert self.may_make.acquire(timeout=HANG_S)
        self.made.append(step)
        if step == self.fails_at:
            raise OSError(f"step {step} is broken")
        return draw_batch(seed=step).rows(rows)

    def close(self) -> None:
        self.closed += 1


def assert_is_step(batch: Batch, step: int, rows: slice = WHOLE) -> None:
    torch.testing.assert_close(vars(batch), vars(draw_batch(seed=step).rows(rows)), rtol=0, atol=0)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_every_batch_comes_once_and_in_order_and_the_thread_ends_with_the_run() -> None:
    feed = Counted()
    prefetched = Prefetched(feed, STEPS)
    for step in range(STEPS):
        assert_is_step(prefetched.batch(step), step)
    assert feed.made == list(range(STEPS))
    assert feed.closed == 1
    assert threads() == []


def test_two_batches_are_made_while_a_step_runs() -> None:
    feed = Counted(may_make=threading.Semaphore(1))
    prefetched = Prefetched(feed, STEPS)
    assert_is_step(prefetched.batch(0), 0)
    feed.may_make.release(2)
    for _ in range(3):  # the batches of steps 0, 1 and 2 are asked for, without any further request
        assert feed.asked.acquire(timeout=HANG_S)
    feed.may_make.release(STEPS)
    prefetched.close()
    assert feed.made == [0, 1, 2]


def test_an_error_is_raised_at_its_own_step_and_nothing_is_made_after_it() -> None:
    feed = Counted(fails_at=2)
    prefetched = Prefetched(feed, STEPS)
    for step in range(2):
        assert_is_step(prefetched.batch(step), step)
    with pytest.raises(OSError, match="step 2 is broken"):
        prefetched.batch(2)
    assert feed.made == [0, 1, 2]
    assert threads() == []
    feed.fails_at = STEPS
    assert_is_step(prefetched.batch(2), 2)  # a feed that recovers goes on
    prefetched.close()


def test_a_run_that_goes_back_gets_the_batches_from_there() -> None:
    prefetched = Prefetched(Counted(), STEPS)
    for step in (4, 5, 1, 2, 7):
        assert_is_step(prefetched.batch(step), step)
    assert threads() == []  # 7 is the last step
    assert_is_step(prefetched.batch(6), 6)
    prefetched.close()
    assert threads() == []


def test_a_step_can_be_requested_in_parts() -> None:
    prefetched = Prefetched(Counted(), STEPS)
    for step, rows in ((0, slice(0, 1)), (0, slice(1, 4)), (1, WHOLE), (2, slice(0, 2)), (3, WHOLE)):
        assert_is_step(prefetched.batch(step, rows), step, rows)
    prefetched.close()


def test_closing_forgets_what_was_made_and_can_be_repeated() -> None:
    feed = Counted()
    prefetched = Prefetched(feed, STEPS)
    prefetched.batch(0)
    prefetched.close()
    prefetched.close()
    assert threads() == []
    assert feed.closed == 2
