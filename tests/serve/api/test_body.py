"""Admission of requests: the middleware around an application that only reads its request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from serve.api.capacity import Capacity, ConcurrencyLimit, Usage
from serve.api.metrics import Metrics
from serve.api.middleware import RequestMiddleware
from serve.inference.in_flight import InFlight
from serve.settings import ServeSettings
from tests.support.event_loop import SimulatedTimeLoop


class Callers:
    """Callers of the middleware around an application that reads a request, works for a while, and answers 200."""

    def __init__(self, work_s: float = 0.0, **settings: Any) -> None:
        self.metrics = Metrics()
        least = {"batch_size": 16, "max_image_bytes": 600, "max_text_chars": 1, "max_batch_bytes": 70_000}
        changed = ServeSettings(**(least | settings))  # 70,000 is just above the limit of a pair's body
        concurrency = ConcurrencyLimit(2 * changed.batch_size, changed.max_in_flight, changed.wait_s, _now)
        self.capacity = Capacity(changed, concurrency, several_keys=lambda: self.has_several_keys)
        self.has_several_keys = True
        self.in_flight = InFlight()
        self.middleware = RequestMiddleware(self._app, self.capacity, self.in_flight, self.metrics)
        self.work_s = work_s
        self.read = 0

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["trace"].key_name = scope["key"]
        while (await receive())["more_body"]:
            pass
        self.read += 1
        scope["state"]["trace"].received_at = _now()
        await asyncio.sleep(self.work_s)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    @property
    def limit(self) -> float:
        """Requests that are admitted at once."""
        return self.metrics.registry.get_sample_value("asap_requests_limit") or 0

    async def ask(
        self, chunks: list[bytes], pause_s: float = 0.0, *, declared: int | None = None, key: str | None = None
    ) -> int:
        """Return the status of a request whose body arrives in chunks, with a pause before each."""
        left, statuses = list(chunks), []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(pause_s)
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        headers = [] if declared is None else [(b"content-length", str(declared).encode())]
        scope = {"type": "http", "path": "/v1/detect", "method": "POST", "headers": headers, "key": key}
        await self.middleware(scope, receive, send)
        return int(statuses[0])


def _now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture(autouse=True)
def simulated_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.api.middleware.time", SimpleNamespace(perf_counter=_now))


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    with asyncio.Runner(loop_factory=SimulatedTimeLoop) as runner:
        return runner.run(work())


def test_slow_senders_do_not_lower_the_limit() -> None:
    callers = Callers(wait_s=0.05)

    async def work() -> list[list[int]]:
        return [await asyncio.gather(*(callers.ask([b"x", b"x"], 0.05) for _ in range(20))) for _ in range(3)]

    assert run(work) == [[200] * 20] * 3
    assert callers.limit == 64


@pytest.mark.parametrize("several", [(False, True), (True, False)], ids=["more", "fewer"])
def test_keys_that_come_or_go_while_a_body_arrives_leave_no_usage_behind(several: tuple[bool, bool]) -> None:
    callers = Callers()

    async def work() -> int:
        callers.has_several_keys = several[0]
        sending = asyncio.create_task(callers.ask([b"x" * 10] * 2, 0.2, key="desk"))
        await asyncio.sleep(0.3)
        callers.has_several_keys = several[1]
        return await sending

    assert run(work) == 200
    assert callers.capacity.all == callers.capacity.by_key["desk"] == Usage()


def test_slow_work_lowers_the_limit() -> None:
    callers = Callers(0.1, wait_s=0.05)

    async def work() -> None:
        for _ in range(4):
            await asyncio.gather(*(callers.ask([b"x"]) for _ in range(16)))

    run(work)
    assert callers.limit < 32


def test_requests_that_are_still_sent_do_not_displace_complete_ones() -> None:
    callers = Callers(0.05, batch_size=1)  # two are admitted at first

    async def work() -> tuple[list[int], list[int]]:
        slow = [asyncio.create_task(callers.ask([b"x", b"x"], 0.2)) for _ in range(5)]
        await asyncio.sleep(0.05)
        quick = await asyncio.gather(callers.ask([b"x"]), callers.ask([b"x"]), callers.ask([b"x"]))
        return sorted(quick), sorted(await asyncio.gather(*slow))

    quick, slow = run(work)
    assert quick == [200, 200, 429]
    assert 200 in slow
    assert 429 in slow, "they are too many when they all become complete at once"
    assert callers.capacity.all == Usage()


def test_bodies_too_large_together_are_refused_by_their_declared_or_sent_size() -> None:
    callers = Callers(0.1, max_bytes_in_flight=70_000)

    async def work() -> list[int]:
        first = asyncio.create_task(callers.ask([bytes(60_000)], declared=60_000))
        await asyncio.sleep(0.02)
        declared = await callers.ask([bytes(10)], declared=20_000)
        undeclared = await callers.ask([bytes(9_000), bytes(9_000)])
        small = await callers.ask([bytes(9_000)])
        return [await first, declared, undeclared, small, await callers.ask([bytes(60_000)])]

    assert run(work) == [200, 429, 429, 200, 200]
    assert callers.capacity.all == Usage()


def test_a_body_that_is_too_large_for_ever_is_refused_as_such_even_while_the_server_is_full() -> None:
    callers = Callers(max_in_flight=1, max_bytes_in_flight=70_000)

    async def work() -> list[int]:
        first = asyncio.create_task(callers.ask([b"x", b"x"], 0.2))
        await asyncio.sleep(0.05)
        too_large = await callers.ask([b"x"], declared=100_000)
        busy = await callers.ask([b"x"], declared=60_000)
        return [too_large, busy, await first, await callers.ask([b"x"], declared=100_000, key="desk")]

    assert run(work) == [413, 429, 200, 413]
    assert callers.read == 1
    assert callers.capacity.all == Usage()


def test_a_caller_who_declares_much_and_sends_nothing_takes_no_capacity() -> None:
    callers = Callers(max_bytes_in_flight=70_000)

    async def work() -> list[int]:
        stalled = [asyncio.create_task(callers.ask([b"x"], 0.5, declared=60_000)) for _ in range(5)]
        await asyncio.sleep(0.05)
        return [await callers.ask([bytes(60_000)]), *await asyncio.gather(*stalled)]

    assert run(work) == [200] * 6


@pytest.mark.parametrize(
    ("settings", "chunks", "pause_s"),
    [
        ({"max_in_flight": 8}, [b"x", b"x"], 0.3),
        ({"max_bytes_in_flight": 140_000}, [bytes(18_000), b"x"], 0.3),
        ({"max_in_flight": 64, "batch_size": 4}, [b"x"], 0.0),
    ],
)
def test_one_key_gets_no_more_than_its_share(settings: dict[str, Any], chunks: list[bytes], pause_s: float) -> None:
    callers = Callers(0.3, **settings)

    async def work() -> tuple[list[int], list[int]]:
        greedy = [asyncio.create_task(callers.ask(chunks, pause_s, key="greedy")) for _ in range(8)]
        await asyncio.sleep(0.1)
        return [await callers.ask(chunks, key="other")], await asyncio.gather(*greedy)

    other, greedy = run(work)
    assert other == [200]
    assert sorted(set(greedy)) == [200, 429]
    assert callers.capacity.by_key["greedy"] == callers.capacity.all == Usage()


def test_a_caller_who_disconnects_while_sending_gets_no_response_and_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    callers = Callers()

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def read(scope: Any, receive: Any, send: Any) -> None:
        await Request(scope, receive).body()

    async def send(message: dict[str, Any]) -> None:
        raise AssertionError(message)

    middleware = RequestMiddleware(read, callers.capacity, InFlight(), callers.metrics)
    run(lambda: middleware({"type": "http", "path": "/v1/detect", "method": "POST", "headers": []}, gone, send))
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert callers.metrics.registry.get_sample_value("asap_requests_total", {"route": "other", "status": "499"}) == 1
    assert callers.capacity.all == Usage()


def test_no_more_requests_are_sent_at_once_than_may_be_in_flight() -> None:
    callers = Callers(max_in_flight=3)

    async def work() -> list[int]:
        return await asyncio.gather(*(callers.ask([b"x", b"x"], 0.05) for _ in range(5)))

    assert sorted(run(work)) == [200, 200, 200, 429, 429]
    assert callers.read == 3


def test_a_server_that_shuts_down_says_so_even_if_it_is_full() -> None:
    callers = Callers(max_in_flight=1)

    async def work() -> list[int]:
        slow = asyncio.create_task(callers.ask([b"x", b"x"], 0.2))
        await asyncio.sleep(0.05)
        busy = await callers.ask([b"x"])
        callers.in_flight.close()
        return [busy, await callers.ask([b"x"]), await slow]

    assert run(work) == [429, 503, 200]
    assert callers.in_flight.requests == 0
