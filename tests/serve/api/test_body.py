"""What passes the gate, and when: the front around an application that only reads its request."""

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
from tests.support.played import PlayedTime


class Callers:
    """A front whose application reads a request, works for a while, and answers 200."""

    def __init__(self, work_s: float = 0.0, **settings: Any) -> None:
        self.figures = Metrics()
        given = {"batch_size": 16, "max_image_bytes": 600, "max_text_chars": 1, "max_batch_bytes": 70_000}
        told = ServeSettings(**(given | settings))  # 70,000: more than the least that a pair's body may have
        self.room = Capacity(
            told, ConcurrencyLimit(2 * told.batch_size, told.max_in_flight, told.wait_s, _now), several_keys=True
        )
        self.in_flight = InFlight()
        self.front = RequestMiddleware(self._app, self.room, self.in_flight, self.figures)
        self.work_s = work_s
        self.read = 0

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["trace"].key_name = scope["key"]
        while (await receive())["more_body"]:
            pass
        self.read += 1
        scope["state"]["trace"].there_at = _now()
        await asyncio.sleep(self.work_s)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    @property
    def limit(self) -> float:
        """Requests that are let in at once."""
        return self.figures.registry.get_sample_value("asap_requests_limit") or 0

    async def ask(
        self, chunks: list[bytes], pause_s: float = 0.0, *, declared: int | None = None, key: str | None = None
    ) -> int:
        """The status of a request whose body comes in chunks, with a pause before each."""
        left, statuses = list(chunks), []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(pause_s)
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        headers = [] if declared is None else [(b"content-length", str(declared).encode())]
        scope = {"type": "http", "path": "/v1/detect", "method": "POST", "headers": headers, "key": key}
        await self.front(scope, receive, send)
        return int(statuses[0])


def _now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture(autouse=True)
def played_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.api.middleware.time", SimpleNamespace(perf_counter=_now))


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    with asyncio.Runner(loop_factory=PlayedTime) as runner:
        return runner.run(work())


def test_callers_who_send_slowly_let_in_no_fewer() -> None:
    callers = Callers(wait_s=0.05)

    async def work() -> list[list[int]]:
        return [await asyncio.gather(*(callers.ask([b"x", b"x"], 0.05) for _ in range(20))) for _ in range(3)]

    assert run(work) == [[200] * 20] * 3
    assert callers.limit == 64


def test_work_that_takes_long_lets_in_fewer() -> None:
    callers = Callers(0.1, wait_s=0.05)

    async def work() -> None:
        for _ in range(4):
            await asyncio.gather(*(callers.ask([b"x"]) for _ in range(16)))

    run(work)
    assert callers.limit < 32


def test_those_who_still_send_take_no_place_of_those_who_are_there() -> None:
    callers = Callers(0.05, batch_size=1)  # two are let in at first

    async def work() -> tuple[list[int], list[int]]:
        slow = [asyncio.create_task(callers.ask([b"x", b"x"], 0.2)) for _ in range(5)]
        await asyncio.sleep(0.05)
        quick = await asyncio.gather(callers.ask([b"x"]), callers.ask([b"x"]), callers.ask([b"x"]))
        return sorted(quick), sorted(await asyncio.gather(*slow))

    quick, slow = run(work)
    assert quick == [200, 200, 429]
    assert 200 in slow
    assert 429 in slow, "all at once, when they are there, are too many"
    assert callers.room.all == Usage()


def test_bodies_that_are_too_much_together_are_refused_by_what_they_declare_or_send() -> None:
    callers = Callers(0.1, max_bytes_in_flight=70_000)

    async def work() -> list[int]:
        first = asyncio.create_task(callers.ask([bytes(60_000)], declared=60_000))
        await asyncio.sleep(0.02)
        declared = await callers.ask([bytes(10)], declared=20_000)
        told_nothing = await callers.ask([bytes(9_000), bytes(9_000)])
        small = await callers.ask([bytes(9_000)])
        return [await first, declared, told_nothing, small, await callers.ask([bytes(60_000)])]

    assert run(work) == [200, 429, 429, 200, 200]
    assert callers.room.all == Usage()


def test_who_declares_much_and_sends_nothing_takes_no_room() -> None:
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
def test_one_key_takes_no_more_than_its_share(settings: dict[str, Any], chunks: list[bytes], pause_s: float) -> None:
    callers = Callers(0.3, **settings)

    async def work() -> tuple[list[int], list[int]]:
        greedy = [asyncio.create_task(callers.ask(chunks, pause_s, key="greedy")) for _ in range(8)]
        await asyncio.sleep(0.1)
        return [await callers.ask(chunks, key="other")], await asyncio.gather(*greedy)

    other, greedy = run(work)
    assert other == [200]
    assert sorted(set(greedy)) == [200, 429]
    assert callers.room.by_key["greedy"] == callers.room.all == Usage()


def test_who_goes_away_while_sending_is_neither_answered_nor_an_error(caplog: pytest.LogCaptureFixture) -> None:
    callers = Callers()

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def read(scope: Any, receive: Any, send: Any) -> None:
        await Request(scope, receive).body()

    async def send(message: dict[str, Any]) -> None:
        raise AssertionError(message)

    front = RequestMiddleware(read, callers.room, InFlight(), callers.figures)
    run(lambda: front({"type": "http", "path": "/v1/detect", "method": "POST", "headers": []}, gone, send))
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert callers.figures.registry.get_sample_value("asap_requests_total", {"route": "other", "status": "499"}) == 1
    assert callers.room.all == Usage()


def test_no_more_send_at_once_than_may_be_in_flight() -> None:
    callers = Callers(max_in_flight=3)

    async def work() -> list[int]:
        return await asyncio.gather(*(callers.ask([b"x", b"x"], 0.05) for _ in range(5)))

    assert sorted(run(work)) == [200, 200, 200, 429, 429]
    assert callers.read == 3


def test_a_server_that_goes_down_says_so_however_busy_it_is() -> None:
    callers = Callers(max_in_flight=1)

    async def work() -> list[int]:
        slow = asyncio.create_task(callers.ask([b"x", b"x"], 0.2))
        await asyncio.sleep(0.05)
        busy = await callers.ask([b"x"])
        callers.in_flight.close()
        return [busy, await callers.ask([b"x"]), await slow]

    assert run(work) == [429, 503, 200]
    assert callers.in_flight.requests == 0
