"""Batches that the client sends to detectors, and calls that it cancels. The detectors are fakes."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from asap.preprocessing.images import PreparedImage
from serve.settings import ServeSettings
from tests.support.event_loop import in_event_loop

GREY = PreparedImage(pixels=np.full((32, 32, 3), 128, np.uint8), width=32, height=32, sha256=None)
QUICK, LONG = "a crowd", "a " * 10_000


class Detectors:
    """A handle that records the texts of each batch and answers none."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.detect = self

    def remote(self, pairs: list[tuple[PreparedImage, str]]) -> asyncio.Future[Any]:
        self.sent.append([text for _, text in pairs])
        return asyncio.get_running_loop().create_future()


@in_event_loop
async def test_long_texts_are_sent_alone_and_two_at_once_and_delay_no_other_pair() -> None:
    from serve.inference.detector_client import DetectorClient

    detectors = Detectors()
    client = DetectorClient(detectors, ServeSettings(batch_size=2, batch_wait_s=0))
    texts = [LONG, QUICK, LONG, QUICK, LONG, "a " * 51, QUICK]
    tasks = [asyncio.create_task(client.detect(GREY, text)) for text in texts]
    while len(detectors.sent) < 4:
        await asyncio.sleep(0)
    assert sorted(detectors.sent, key=len) == [[LONG], [LONG], ["a " * 51], [QUICK, QUICK]]
    assert not any(task.done() for task in tasks)


@pytest.fixture
def held(ray_here: None) -> Iterator[Any]:
    """The handle of a detector on Ray that answers nothing, and reports when a call begins and is cancelled."""
    from ray import serve

    class Held:
        def __init__(self) -> None:
            self._begun, self._cancelled = asyncio.Event(), asyncio.Event()

        async def detect(self, pairs: list[Any]) -> None:
            self._begun.set()
            try:
                await asyncio.Future()
            except asyncio.CancelledError:
                self._cancelled.set()
                raise

        async def begun(self) -> bool:
            return await self._begun.wait()

        async def cancelled(self) -> bool:
            return await self._cancelled.wait()

    serve.start(proxy_location="Disabled")
    yield serve.run(serve.deployment(Held, ray_actor_options={"num_cpus": 0}).bind(), name="held", route_prefix=None)
    serve.shutdown()


@in_event_loop
async def test_a_cancelled_pair_is_cancelled_in_its_detector(held: Any) -> None:
    from serve.inference.detector_client import DetectorClient

    task = asyncio.create_task(DetectorClient(held, ServeSettings()).detect(GREY, QUICK))
    assert await held.begun.remote()
    task.cancel()
    assert await held.cancelled.remote()
    assert task.cancelled()


CALLER: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="nobody")


@in_event_loop
async def test_no_call_belongs_to_the_request_that_it_is_made_for() -> None:
    """Ray cancels the calls of a request whose caller hangs up: a batch would be lost for all others in it."""
    from serve.inference.detector_client import DetectorClient

    callers: list[str] = []

    class Recording(Detectors):
        def __init__(self) -> None:
            super().__init__()
            self.about = self

        def remote(self, *arguments: Any) -> asyncio.Future[Any]:
            callers.append(CALLER.get())
            return asyncio.get_running_loop().create_future()

    client = DetectorClient(Recording(), ServeSettings(batch_size=1, batch_wait_s=0))

    async def request() -> None:
        CALLER.set("a request")
        await asyncio.gather(client.detect(GREY, QUICK), client.about())

    task = asyncio.create_task(request())
    while len(callers) < 2:
        await asyncio.sleep(0)
    assert callers == ["nobody", "nobody"]
    task.cancel()
