"""What the batcher sends, when, and to whom each result goes; the workers are played."""

import asyncio
from typing import Any

import pytest

from serve.errors import Overloaded
from serve.inference.batcher import Answer, Batcher
from tests.support.played import let_pass, played


class Workers:
    """Batches that were sent; each is answered, with ten times each item, when the test says so."""

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
    """Let what is ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


def ask(batcher: Batcher[int, int], *items: int) -> list[asyncio.Task[int]]:
    return [asyncio.get_running_loop().create_task(batcher.ask(item)) for item in items]


def ask_at_cost(batcher: Batcher[int, int], *costs: int) -> list[asyncio.Task[int]]:
    """Each item is what it costs."""
    return [asyncio.get_running_loop().create_task(batcher.ask(cost, cost)) for cost in costs]


def batcher_for(workers: Workers, **changes: Any) -> Batcher[int, int]:
    return Batcher(workers, **({"size": 4, "wait_s": 0.0, "most_waiting": 100, "clock": lambda: 0.0} | changes))


@played
async def test_what_arrives_together_goes_together_and_each_gets_its_own_result() -> None:
    workers = Workers()
    asked = ask(batcher_for(workers), 1, 2, 3)
    await settled()
    assert workers.sent == [[1, 2, 3]]
    await workers.answer(0)
    assert await asyncio.gather(*asked) == [10, 20, 30]


@played
async def test_a_full_batch_does_not_wait_and_the_first_item_of_another_waits_no_longer_than_it_may() -> None:
    workers = Workers()
    batcher = batcher_for(workers, wait_s=300)
    ask(batcher, 1, 2, 3, 4, 5)
    await settled()
    assert workers.sent == [[1, 2, 3, 4]]
    let_pass(300)
    await settled()
    assert workers.sent == [[1, 2, 3, 4], [5]]


@played
async def test_a_batch_costs_no_more_than_its_size_and_what_costs_more_goes_alone_in_its_turn() -> None:
    workers = Workers()
    asked = ask_at_cost(batcher_for(workers), 1, 2, 1, 1, 3, 2, 100, 1, 1)
    for number in range(5):
        await settled()
        await workers.answer(number)
    assert workers.sent == [[1, 2, 1], [1, 3], [2], [100], [1, 1]]
    assert await asyncio.gather(*asked) == [10, 20, 10, 10, 30, 20, 1000, 10, 10]


@played
async def test_while_a_worker_has_its_next_batch_what_arrives_makes_a_larger_one() -> None:
    workers = Workers()
    batcher = batcher_for(workers)
    ask(batcher, 1)
    await settled()
    ask(batcher, 2)
    await settled()
    asked = ask(batcher, 3, 4, 5)
    await settled()
    assert workers.sent == [[1], [2]]
    await workers.answer(0)
    assert workers.sent == [[1], [2], [3, 4, 5]]
    await workers.answer(1)
    await workers.answer(2)
    assert await asyncio.gather(*asked) == [30, 40, 50]


@played
async def test_every_worker_that_answers_gets_two_batches_until_it_has_answered_nothing_for_long() -> None:
    now = [0.0]
    workers = Workers()
    batcher = batcher_for(workers, size=1, clock=lambda: now[0])
    ask(batcher, *range(20))
    await settled()
    assert len(workers.sent) == 2
    await workers.answer(0, "one")
    assert len(workers.sent) == 3
    await workers.answer(1, "two")
    assert len(workers.sent) == 6  # four on their way
    now[0] = 9.0
    for number in range(2, 6):
        await workers.answer(number, "one")
    assert len(workers.sent) == 10
    now[0] = 10.5  # of "two" nothing was heard since 0
    for number in range(6, 8):
        await workers.answer(number, "one")
    assert len(workers.sent) == 10
    await workers.answer(8, "one")
    assert len(workers.sent) == 11


@played
async def test_what_a_batch_fails_with_reaches_its_items_and_no_other() -> None:
    workers = Workers()
    asked = ask(batcher_for(workers, size=2), 1, 2, 3)
    await settled()
    await workers.fail(0, ValueError("broken"))
    await workers.answer(1)
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert [str(one) for one in told] == ["broken", "broken", "30"]


@played
async def test_more_than_may_wait_is_refused_at_once() -> None:
    workers = Workers()
    batcher = batcher_for(workers, size=1, most_waiting=2)
    asked = ask(batcher, 1, 2, 3, 4)
    await settled()
    with pytest.raises(Overloaded):
        await batcher.ask(5)
    for number in range(4):
        await workers.answer(number)
    assert await asyncio.gather(*asked) == [10, 20, 30, 40]


@played
async def test_nobody_judges_what_nobody_waits_for() -> None:
    workers = Workers()
    batcher = batcher_for(workers, size=2)
    first, second, third, fourth, fifth, sixth = ask(batcher, 1, 2, 3, 4, 5, 6)
    await settled()
    fifth.cancel()  # waits
    first.cancel()  # was sent with the second, which somebody waits for
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


@played
async def test_a_worker_that_hangs_does_not_hold_up_the_others() -> None:
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


@played
async def test_what_costs_more_than_a_batch_may_be_out_for_longer() -> None:
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


@played
async def test_all_workers_are_known_however_long_each_takes_for_what_costs_much() -> None:
    now = [0.0]
    workers = Workers()
    ask_at_cost(batcher_for(workers, clock=lambda: now[0]), *[12] * 8)
    await settled()
    now[0] = 20.0
    await workers.answer(0, "one")
    await workers.answer(1, "two")
    now[0] = 40.0
    await workers.answer(2, "one")
    assert len(workers.sent) == 7, "two ahead for each of them, not for the last that was heard of alone"


@played
async def test_a_worker_that_answers_too_little_is_an_error_for_whom_it_left_out() -> None:
    async def send(items: list[int]) -> Answer[int]:
        return Answer("one", items[1:])

    batcher: Batcher[int, int] = Batcher(send, size=2, wait_s=0.0, most_waiting=10)
    first, second = await asyncio.gather(*ask(batcher, 1, 2), return_exceptions=True)
    assert first == 2
    assert isinstance(second, ValueError)
