"""Batches that the batcher sends, their times, and the results of each item. The workers are fakes."""

import asyncio
from typing import Any

import pytest

from serve.errors import Overloaded
from serve.inference.batcher import Answer, Batcher
from tests.support.event_loop import advance_clock, in_event_loop


class Workers:
    """Workers that record each batch, and answer it with ten times each item when the test calls `answer`."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.dropped: list[list[int]] = []
        self._gates: list[asyncio.Future[str]] = []

    async def __call__(self, items: list[int]) -> Answer[int]:
        gate: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.sent.append(items)
        self._gates.append(gate)
        try:
            return Answer(await gate, [10 * item for item in items])
        except asyncio.CancelledError:
            self.dropped.append(items)
            raise

    async def answer(self, number: int, worker: str = "one") -> None:
        self._gates[number].set_result(worker)
        await settled()

    async def fail(self, number: int, error: Exception) -> None:
        self._gates[number].set_exception(error)
        await settled()


async def settled() -> None:
    """Run everything that is ready."""
    for _ in range(10):
        await asyncio.sleep(0)


def ask(batcher: Batcher[int, int], *items: int) -> list[asyncio.Task[int]]:
    return [asyncio.get_running_loop().create_task(batcher.ask(item)) for item in items]


def ask_at_cost(batcher: Batcher[int, int], *costs: int) -> list[asyncio.Task[int]]:
    """Ask for items whose value is their cost."""
    return [asyncio.get_running_loop().create_task(batcher.ask(cost, cost)) for cost in costs]


def batcher_for(workers: Workers, **changes: Any) -> Batcher[int, int]:
    return Batcher(workers, **({"size": 4, "wait_s": 0.0, "most_waiting": 100, "clock": lambda: 0.0} | changes))


@in_event_loop
async def test_items_that_arrive_together_share_a_batch_and_each_gets_its_own_result() -> None:
    workers = Workers()
    tasks = ask(batcher_for(workers), 1, 2, 3)
    await settled()
    assert workers.sent == [[1, 2, 3]]
    await workers.answer(0)
    assert await asyncio.gather(*tasks) == [10, 20, 30]


@in_event_loop
async def test_a_full_batch_is_sent_at_once_and_another_after_its_first_item_has_waited_long_enough() -> None:
    workers = Workers()
    batcher = batcher_for(workers, wait_s=300)
    ask(batcher, 1, 2, 3, 4, 5)
    await settled()
    assert workers.sent == [[1, 2, 3, 4]]
    advance_clock(300)
    await settled()
    assert workers.sent == [[1, 2, 3, 4], [5]]


@in_event_loop
async def test_a_batch_costs_at_most_its_size_and_a_costlier_item_goes_alone_in_its_turn() -> None:
    workers = Workers()
    tasks = ask_at_cost(batcher_for(workers), 1, 2, 1, 1, 3, 2, 100, 1, 1)
    for number in range(5):
        await settled()
        await workers.answer(number)
    assert workers.sent == [[1, 2, 1], [1, 3], [2], [100], [1, 1]]
    assert await asyncio.gather(*tasks) == [10, 20, 10, 10, 30, 20, 1000, 10, 10]


@in_event_loop
async def test_items_that_arrive_while_a_worker_has_two_batches_form_a_larger_one() -> None:
    workers = Workers()
    batcher = batcher_for(workers)
    ask(batcher, 1)
    await settled()
    ask(batcher, 2)
    await settled()
    tasks = ask(batcher, 3, 4, 5)
    await settled()
    assert workers.sent == [[1], [2]]
    await workers.answer(0)
    assert workers.sent == [[1], [2], [3, 4, 5]]
    await workers.answer(1)
    await workers.answer(2)
    assert await asyncio.gather(*tasks) == [30, 40, 50]


@in_event_loop
async def test_every_worker_that_answers_gets_two_batches_until_it_has_been_silent_for_long() -> None:
    now = [0.0]
    workers = Workers()
    batcher = batcher_for(workers, size=1, clock=lambda: now[0])
    ask(batcher, *range(20))
    await settled()
    assert len(workers.sent) == 2
    await workers.answer(0, "one")
    assert len(workers.sent) == 3
    await workers.answer(1, "two")
    assert len(workers.sent) == 6  # four are out
    now[0] = 9.0
    for number in range(2, 6):
        await workers.answer(number, "one")
    assert len(workers.sent) == 10
    now[0] = 10.5  # "two" has been silent since 0
    for number in range(6, 8):
        await workers.answer(number, "one")
    assert len(workers.sent) == 10
    await workers.answer(8, "one")
    assert len(workers.sent) == 11


@in_event_loop
async def test_the_error_of_a_batch_reaches_its_items_and_no_others() -> None:
    workers = Workers()
    tasks = ask(batcher_for(workers, size=2), 1, 2, 3)
    await settled()
    await workers.fail(0, ValueError("broken"))
    await workers.answer(1)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(result) for result in results] == ["broken", "broken", "30"]


@in_event_loop
async def test_an_item_beyond_those_that_may_wait_is_refused_at_once() -> None:
    workers = Workers()
    batcher = batcher_for(workers, size=1, most_waiting=2)
    tasks = ask(batcher, 1, 2, 3, 4)
    await settled()
    with pytest.raises(Overloaded):
        await batcher.ask(5)
    for number in range(4):
        await workers.answer(number)
    assert await asyncio.gather(*tasks) == [10, 20, 30, 40]


@in_event_loop
async def test_no_worker_computes_a_result_that_nobody_waits_for() -> None:
    workers = Workers()
    batcher = batcher_for(workers, size=2)
    first, second, third, fourth, fifth, sixth = ask(batcher, 1, 2, 3, 4, 5, 6)
    await settled()
    fifth.cancel()  # still waits
    first.cancel()  # was sent with the second, whose result is still wanted
    await settled()
    assert workers.dropped == []
    third.cancel()
    fourth.cancel()
    await settled()
    assert workers.dropped == [[3, 4]]
    assert workers.sent == [[1, 2], [3, 4], [6]]
    await workers.answer(0)
    await workers.answer(2)
    assert (await second, await sixth) == (20, 60)


@in_event_loop
async def test_a_worker_that_hangs_does_not_block_the_others() -> None:
    now = [0.0]
    workers = Workers()
    batcher = batcher_for(workers, size=1, clock=lambda: now[0])
    ask(batcher, 1, 2, 3)
    await settled()
    now[0] = 10.5
    (fourth,) = ask(batcher, 4)
    await settled()
    assert workers.sent == [[1], [2], [3], [4]]
    await workers.answer(3, "two")
    assert await fourth == 40


@in_event_loop
async def test_an_item_that_costs_more_than_a_batch_may_be_out_for_longer() -> None:
    now = [0.0]
    workers = Workers()
    batcher = batcher_for(workers, clock=lambda: now[0])
    ask_at_cost(batcher, 12, 12)
    await settled()
    now[0] = 29.5
    ask_at_cost(batcher, 12)
    await settled()
    assert workers.sent == [[12], [12]]
    now[0] = 30.5
    ask_at_cost(batcher, 12)
    await settled()
    assert workers.sent == [[12]] * 4


@in_event_loop
async def test_workers_count_as_alive_while_they_work_on_costly_items() -> None:
    now = [0.0]
    workers = Workers()
    ask_at_cost(batcher_for(workers, clock=lambda: now[0]), *[12] * 8)
    await settled()
    now[0] = 20.0
    await workers.answer(0, "one")
    await workers.answer(1, "two")
    now[0] = 40.0
    await workers.answer(2, "one")
    assert len(workers.sent) == 7, "two batches for each of them, not only for the one that answered last"


@in_event_loop
async def test_an_item_without_a_result_in_the_answer_gets_an_error() -> None:
    async def send(items: list[int]) -> Answer[int]:
        return Answer("one", items[1:])

    batcher: Batcher[int, int] = Batcher(send, size=2, wait_s=0.0, most_waiting=10)
    first, second = await asyncio.gather(*ask(batcher, 1, 2), return_exceptions=True)
    assert first == 2
    assert isinstance(second, ValueError)
