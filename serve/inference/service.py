"""The service behind the API: it decodes a picture in a process of its own, then calls the detector."""

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
"""Seconds within which the detector must say which model it has."""
_MAX_PREPARATIONS = 5
"""Times that a picture is prepared at most. While one model replaces another of another input size, both answer."""

_IDENTITY = ("model_id", "policy_id", "familiarity_id", "limits")
"""Fields that a finding and the card of its model share."""


class DetectorBackend(Protocol):
    """A detector of prepared pairs: a Ray Serve deployment or, in tests, a predictor in this process."""

    async def about(self) -> ModelCard:
        """Return the card of the model, once it is ready."""

    async def detect(self, image: PreparedImage, text: str | None) -> Finding | ModelCard:
        """Return the finding of one pair; its `error` says what is wrong with the pair. Raises `Overloaded`.

        If the picture was prepared for a model of another size, the card of the current model is returned instead.
        """


def card(predictor: Predictor) -> ModelCard:
    """Return the card of a predictor's model."""
    policy = predictor.policy
    thresholds = {name: getattr(policy, name) for name in ("manipulated", "review", "word", "unfamiliar")}
    return ModelCard(
        model_id=predictor.model_id,
        policy_id=policy.policy_id,
        image_size=predictor.image_size,
        thresholds=thresholds | policy.types,
        calibrated=policy.calibration is not None,
        familiarity_id=predictor.familiarity_id,
        limits=predictor.limits,
    )


class Timings(dict[str, float]):
    """Milliseconds by the step that took them."""

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Time a block, also one that raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self[name] = (time.perf_counter() - start) * 1000


class Service:
    """The decoders, the detector, and the requests in flight."""

    def __init__(self, settings: ServeSettings, backend: DetectorBackend) -> None:
        self.limits: ImageLimits = settings.limits
        self.decoders = DecoderPool(settings.decoders, settings.limits, settings.decode_timeout_s)
        self.in_flight = InFlight()
        self._backend = backend
        self._card: ModelCard | None = None

    async def about(self) -> ModelCard:
        """Return the card of the model as the detector last gave it. Raises `NotReady` until it has given one."""
        return self._card or await self._ask_card()

    async def check(self) -> None:
        """Raise `NotReady` unless the detector answers now and new requests may begin."""
        self.in_flight.check()
        await self._ask_card()

    async def _ask_card(self) -> ModelCard:
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                self._card = await self._backend.about()
        except TimeoutError:
            raise NotReady("the model is loading, or too busy to answer") from None
        return self._card

    async def detect(self, data: bytes, text: str | None, timings: Timings) -> Finding:
        """Return the finding of an encoded picture and its text.

        Raises `InputError` if the picture cannot be read. Any other problem of the pair is the finding's `error`.
        """
        return await self._detect_prepared(lambda size: self.decoders.prepare(data, size), text, timings)

    async def detect_pair(self, pair: Pair) -> Finding:
        """Return the finding of a pair, as `Predictor.predict` does: any problem of the pair is its `error`."""
        try:
            if isinstance(image := pair.image, bytes):
                return await self.detect(image, pair.text, Timings())
            return await self._detect_prepared(
                lambda size: asyncio.to_thread(prepare_image, image, size, self.limits), pair.text, Timings()
            )
        except InputError as error:
            model = await self.about()
            return Finding(
                model_id=model.model_id, policy_id=model.policy_id, familiarity_id=model.familiarity_id,
                limits=model.limits, error=error,
            )  # fmt: skip

    async def _detect_prepared(
        self, prepare: Callable[[int], Awaitable[PreparedImage]], text: str | None, timings: Timings
    ) -> Finding:
        for _ in range(_MAX_PREPARATIONS):
            model = await self.about()
            with timings.of("decode"):
                image = await prepare(model.image_size)
            with timings.of("detect"):
                found = await self._backend.detect(image, text)
            if isinstance(found, ModelCard):  # the model was replaced: prepare the picture in the new size
                self._card = found
                continue
            if any(getattr(found, name) != getattr(model, name) for name in _IDENTITY):
                self._card = None  # another model answers now, so its card is requested again
            return found
        raise NotReady("the model is being replaced")

    def close(self) -> None:
        """Let no new request begin, and end the decoders."""
        self.in_flight.close()
        self.decoders.close()
