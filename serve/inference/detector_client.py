"""The detector replicas as the API calls them: batches by the handle of Ray Serve, sent once more if a replica dies."""

from __future__ import annotations

# Without the future import of annotations: Serve makes `args` of the class that it finds at `build`'s parameter.
import asyncio
import functools
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError

from asap.finding import Finding
from asap.preprocessing.images import PreparedImage
from asap.preprocessing.words import estimate_passes
from serve.errors import NotReady
from serve.inference.batcher import Answer, Batcher
from serve.inference.detector import Prepared
from serve.schemas import ModelCard
from serve.settings import ServeSettings

_TRIES = 2


class DetectorClient:
    """The detector's replicas, by their handle, which gets batches. A batch whose replica died is sent to another,
    once."""

    def __init__(self, detector: Any, settings: ServeSettings) -> None:
        self._detector = detector
        self._size = settings.batch_size
        batcher = functools.partial(
            Batcher[Prepared, Finding | ModelCard],
            self._detect_all,
            size=settings.batch_size,
            wait_s=settings.batch_wait_s,
            most_waiting=settings.max_queued,
        )
        self._quick = batcher()
        self._long = batcher()

    async def about(self) -> ModelCard:
        """As `Judge.about`."""
        return await self._ask(self._detector.about.remote)

    async def detect(self, image: PreparedImage, text: str | None) -> Finding | ModelCard:
        """As `Judge.detect`. Cancelled, the pair is taken from the queue.

        A text of more passes than a batch has waits for others of its kind only, and they for it.
        """
        passes = estimate_passes(text or "")
        batches = self._quick if passes <= self._size else self._long
        return await batches.ask((image, text), passes)

    async def _detect_all(self, pairs: list[Prepared]) -> Answer[Finding | ModelCard]:
        return await self._ask(self._detector.detect.remote, pairs)

    async def _ask(self, method: Callable[..., Any], *arguments: Any) -> Any:
        for attempt in range(1, _TRIES + 1):
            response = method(*arguments)
            try:
                return await response
            except DeploymentUnavailableError:
                raise NotReady("no detector could be started; the server's log says why") from None
            except RayActorError:  # judging changes nothing, so it may be done again
                if attempt == _TRIES:
                    raise NotReady("the detector died while it judged this pair") from None
            except asyncio.CancelledError:
                response.cancel()
                raise
        raise AssertionError("the last attempt returns or raises")
