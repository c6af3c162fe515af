"""What goes to the detectors together, and what is called back; the detectors are played."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from asap.preprocessing.images import PreparedImage
from serve.settings import ServeSettings
from tests.support.played import played

GREY = PreparedImage(pixels=np.full((32, 32, 3), 128, np.uint8), width=32, height=32, sha256=None)
QUICK, LONG = "a crowd", "a " * 10_000


class Detectors:
    """Batches of texts that were sent; none is answered."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.detect = self

    def remote(self, pairs: list[tuple[PreparedImage, str]]) -> asyncio.Future[Any]:
        self.sent.append([text for _, text in pairs])
        return asyncio.get_running_loop().create_future()


@played
async def test_long_texts_go_alone_and_two_ahead_and_hold_up_no_other() -> None:
    from serve.inference.detector_client import DetectorClient

    detectors = Detectors()
    judge = DetectorClient(detectors, ServeSettings(batch_size=2, batch_wait_s=0))
    texts = [LONG, QUICK, LONG, QUICK, LONG, "a " * 51, QUICK]
    asked = [asyncio.create_task(judge.detect(GREY, text)) for text in texts]
    while len(detectors.sent) < 4:
        await asyncio.sleep(0)
    assert sorted(detectors.sent, key=len) == [[LONG], [LONG], ["a " * 51], [QUICK, QUICK]]
    assert not any(one.done() for one in asked)


@pytest.fixture
def held(ray_here: None) -> Iterator[Any]:
    """The handle of a detector on Ray that answers nothing, and tells of what it was asked."""
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


@played
async def test_what_nobody_waits_for_any_more_is_called_back_from_its_detector(held: Any) -> None:
    from serve.inference.detector_client import DetectorClient

    asked = asyncio.create_task(DetectorClient(held, ServeSettings()).detect(GREY, QUICK))
    assert await held.begun.remote()
    asked.cancel()
    assert await held.cancelled.remote()
    assert asked.cancelled()
