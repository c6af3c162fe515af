"""A picture's bytes and a text in, a finding out: decoded apart, judged by whatever stands behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from asap.errors import InputError
from asap.finding import Finding, Pair
from asap.preprocessing.images import ImageLimits, PreparedImage, prepare_image
from serve.errors import NotReady
from serve.inference.decoder_pool import DecoderPool
from serve.inference.in_flight import InFlight
from serve.schemas import ModelCard
from serve.settings import ServeSettings

if TYPE_CHECKING:
    from asap.predictor import Predictor

_READY_WITHIN_S = 2.0
_MODELS = 5
"""That a picture is prepared for at most: while one is replaced by another of another size, both answer."""


class DetectorBackend(Protocol):
    """What judges prepared pairs: a Ray Serve deployment, or in tests a predictor of this process."""

    async def about(self) -> ModelCard:
        """The model that judges, once it can."""

    async def detect(self, image: PreparedImage, text: str | None) -> Finding | ModelCard:
        """The finding of one pair, whose `error` tells what is wrong with it; or what model there is by now, where the
        picture was prepared for one of another size. Raises `Overloaded`."""


def card(predictor: Predictor) -> ModelCard:
    """What a predictor is."""
    policy = predictor.policy
    thresholds = {"manipulated": policy.manipulated, "review": policy.review, "word": policy.word} | policy.types
    return ModelCard(
        model_id=predictor.model_id,
        policy_id=policy.policy_id,
        image_size=predictor.image_size,
        thresholds=thresholds,
        calibrated=policy.calibration is not None,
    )


class Timings(dict[str, float]):
    """Milliseconds by what they were spent on."""

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Time a block; what raises has its time too."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self[name] = (time.perf_counter() - start) * 1000


class Service:
    """Decoders and a judge, and what is under way."""

    def __init__(self, settings: ServeSettings, backend: DetectorBackend) -> None:
        self.limits: ImageLimits = settings.limits
        self.decoders = DecoderPool(settings.decoders, settings.limits, settings.decode_timeout_s)
        self.in_flight = InFlight()
        self._backend = backend
        self._card: ModelCard | None = None

    async def about(self) -> ModelCard:
        """The model, known since the judge last told; `NotReady` until then."""
        return self._card or await self._ask()

    async def check(self) -> None:
        """Raise `NotReady` unless the judge answers now, and something new may begin."""
        self.in_flight.check()
        await self._ask()

    async def _ask(self) -> ModelCard:
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                self._card = await self._backend.about()
        except TimeoutError:
            raise NotReady("the model is loading, or too busy to answer") from None
        return self._card

    async def detect(self, data: bytes, text: str | None, timings: Timings) -> Finding:
        """Raises `InputError` for a picture that cannot be read; what else is wrong is the finding's `error`."""
        return await self._detect_prepared(lambda size: self.decoders.prepare(data, size), text, timings)

    async def detect_pair(self, pair: Pair) -> Finding:
        """As `Predictor.predict` for one pair: what is wrong with it is the finding's `error`."""
        try:
            if isinstance(image := pair.image, bytes):
                return await self.detect(image, pair.text, Timings())
            return await self._detect_prepared(
                lambda size: asyncio.to_thread(prepare_image, image, size, self.limits), pair.text, Timings()
            )
        except InputError as error:
            known = await self.about()
            return Finding(model_id=known.model_id, policy_id=known.policy_id, error=error)

    async def _detect_prepared(
        self, prepare: Callable[[int], Awaitable[PreparedImage]], text: str | None, timings: Timings
    ) -> Finding:
        for _ in range(_MODELS):
            known = await self.about()
            with timings.of("decode"):
                image = await prepare(known.image_size)
            with timings.of("detect"):
                found = await self._backend.detect(image, text)
            if isinstance(found, ModelCard):
                self._card = found
                continue
            if (found.model_id, found.policy_id) != (known.model_id, known.policy_id):
                self._card = None  # another answers since: to be asked again
            return found
        raise NotReady("the model is being replaced")

    def close(self) -> None:
        """Begin nothing new, and end the decoders."""
        self.in_flight.close()
        self.decoders.close()
