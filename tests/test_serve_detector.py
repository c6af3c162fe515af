"""A detector in this process, around a small model: whom it makes wait, and for whom it works."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from asap.images import PreparedImage
from serve.detector import Detector, Prepared
from serve.settings import ServeSettings

pytestmark = pytest.mark.usefixtures("one_thread")
PASSES = 40
LONG = "a " * 50 * PASSES
QUICK = "a crowd"


@pytest.fixture
def detector(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Detector:
    replica = SimpleNamespace(replica_id=SimpleNamespace(unique_id="one"))
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: replica)
    return Detector(ServeSettings(model=str(model_folder), device="cpu", batch_size=2))


def pair(text: str) -> Prepared:
    return PreparedImage(pixels=np.full((32, 32, 3), 128, np.uint8), width=32, height=32, sha256=None), text


def play(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def test_each_pair_has_its_finding_however_long_its_text_is(detector: Detector) -> None:
    async def test() -> None:
        texts = [QUICK, LONG, "happy people", ""]
        worker, findings = await detector.detect([pair(text) for text in texts])
        alone = [(await detector.detect([pair(text)])).results[0] for text in texts]
        assert worker == "one"
        assert [finding.error and finding.error.code for finding in findings] == [None, None, None, "text_missing"]
        assert [one.score for one in findings[:3]] == pytest.approx([one.score for one in alone[:3]], abs=1e-5)

    play(test())


def test_a_quick_pair_does_not_wait_for_all_passes_of_a_long_text(detector: Detector) -> None:
    async def test() -> None:
        long = asyncio.create_task(detector.detect([pair(LONG)]))
        await asyncio.sleep(0)  # it is first in the queue
        await detector.detect([pair(QUICK)])
        assert not long.done()
        (finding,) = (await long).results
        assert f"it was analysed in {PASSES} passes" in finding.warnings[0]

    play(test())


def test_what_nobody_waits_for_any_more_takes_no_pass_more(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, passes = threading.Event(), threading.Event(), 0
    fuse = detector._predictor._model.fuse

    def held(*given: Any) -> Any:
        nonlocal passes
        passes += 1
        begun.set()
        go_on.wait()
        return fuse(*given)

    monkeypatch.setattr(detector._predictor._model, "fuse", held)

    async def test() -> None:
        long, waiting, quick = (asyncio.create_task(detector.detect([pair(text)])) for text in (LONG, LONG, QUICK))
        await asyncio.to_thread(begun.wait)
        long.cancel()
        waiting.cancel()
        go_on.set()
        assert len((await quick).results) == 1
        assert (long.cancelled(), waiting.cancelled()) == (True, True)
        assert passes == 2, "the long text's that had begun, and the quick pair's"

    play(test())
