"""What passes the gate, and when: the front around an application that only reads its request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from serve.front import Figures, Front
from serve.settings import ServeSettings


class Callers:
    """A front whose application reads a request, works for a while, and answers 200."""

    def __init__(self, work_s: float = 0.0, **settings: Any) -> None:
        self.figures = Figures()
        given = {"batch_size": 16, "max_image_bytes": 600, "max_text_chars": 1, "max_batch_bytes": 70_000}
        told = ServeSettings(**(given | settings))  # 70,000: more than the least that a pair's body may have
        self.front = Front(self._app, told, self.figures)
        self.work_s = work_s
        self.read = 0

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        self.read += 1
        await asyncio.sleep(self.work_s)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    @property
    def limit(self) -> float:
        """Requests that are let in at once."""
        return self.figures.registry.get_sample_value("asap_requests_limit") or 0

    async def ask(self, chunks: list[bytes], pause_s: float = 0.0, *, declared: int | None = None) -> int:
        """The status of a request whose body comes in chunks, with a pause before each."""
        left, statuses = list(chunks), []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(pause_s)
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        headers = [] if declared is None else [(b"content-length", str(declared).encode())]
        await self.front({"type": "http", "path": "/v1/detect", "method": "POST", "headers": headers}, receive, send)
        return int(statuses[0])


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(work())


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
    assert callers.front._load.working == callers.front._load.requests == 0


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
    assert callers.front._load.bytes == 0


def test_no_more_send_at_once_than_may_be_in_flight() -> None:
    callers = Callers(max_in_flight=3)

    async def work() -> list[int]:
        return await asyncio.gather(*(callers.ask([b"x", b"x"], 0.05) for _ in range(5)))

    assert sorted(run(work)) == [200, 200, 200, 429, 429]
    assert callers.read == 3
