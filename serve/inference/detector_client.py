"""The detector replicas as the API calls them: batches through Ray Serve's handle, resent once if a replica dies."""

from __future__ import annotations

import asyncio
import contextvars
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
    """A `DetectorBackend` that sends batches to the detector's replicas.

    A batch whose replica died is sent to another, once.
    """

    def __init__(self, detector: Any, settings: ServeSettings) -> None:
        self._detector = detector
        self._size = settings.batch_size
        # A call that is made in the context of a request is cancelled by Ray when the request's caller hangs up, and a
        # batch holds the pairs of other callers too. So calls are made in a context without a request, and cancelled
        # here when nobody waits for them any more.
        self._context = contextvars.copy_context()
        batcher = functools.partial(
            Batcher[Prepared, Finding | ModelCard],
            self._detect_batch,
            size=settings.batch_size,
            wait_s=settings.batch_wait_s,
            most_waiting=settings.max_queued,
        )
        # Texts longer than a batch have a queue of their own. They wait only for each other, and no other pair waits
        # for them.
        self._batches = batcher()
        self._long_texts = batcher()

    async def about(self) -> ModelCard:
        """Return the card of the model, as `DetectorBackend.about` does."""
        return await self._call(self._detector.about.remote)

    async def detect(self, image: PreparedImage, text: str | None) -> Finding | ModelCard:
        """Return the finding of one pair, as `DetectorBackend.detect` does. If cancelled, the pair leaves the queue."""
        passes = estimate_passes(text or "")
        batcher = self._batches if passes <= self._size else self._long_texts
        return await batcher.ask((image, text), passes)

    async def _detect_batch(self, pairs: list[Prepared]) -> Answer[Finding | ModelCard]:
        return await self._call(self._detector.detect.remote, pairs)

    async def _call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        for attempt in range(1, _TRIES + 1):
            response = self._context.copy().run(method, *arguments)
            try:
                return await response
            except DeploymentUnavailableError:
                raise NotReady("no detector could be started; the server's log says why") from None
            except RayActorError:  # detection changes nothing, so it may be repeated
                if attempt == _TRIES:
                    raise NotReady("the detector died while it processed this pair") from None
            except asyncio.CancelledError:
                response.cancel()
                raise
        raise AssertionError("the last attempt returns or raises")
