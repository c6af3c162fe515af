"""A picture's bytes and a text in, a finding out: decoded apart, judged by whatever stands behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from asap.errors import InputError
from asap.finding import Finding, Pair
from asap.images import ImageLimits, PreparedImage, prepare_image
from serve.decoding import DecoderPool
from serve.draining import UnderWay
from serve.errors import NotReady
from serve.schemas import ModelCard
from serve.settings import ServeSettings

if TYPE_CHECKING:
    from asap.predictor import Predictor

_READY_WITHIN_S = 2.0


class Judge(Protocol):
    """What judges prepared pairs: a Ray Serve deployment, or in tests a predictor of this process."""

    async def about(self) -> ModelCard:
        """The model that judges, once it can."""

    async def detect(self, image: PreparedImage, text: str | None) -> Finding:
        """The finding of one pair, whose `error` tells what is wrong with it. Raises `Overloaded`."""


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

    def __init__(self, settings: ServeSettings, judge: Judge) -> None:
        self.limits: ImageLimits = settings.limits
        self.decoders = DecoderPool(settings.decoders, settings.limits, settings.decode_timeout_s)
        self.under_way = UnderWay()
        self._judge = judge
        self._card: ModelCard | None = None

    async def about(self) -> ModelCard:
        """The model, known since the judge first answered; `NotReady` until then."""
        if self._card is None:
            await self.check()
        if self._card is None:
            raise AssertionError("check sets the card or raises")
        return self._card

    async def check(self) -> None:
        """Raise `NotReady` unless the judge answers now, and something new may begin."""
        self.under_way.check()
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                self._card = await self._judge.about()
        except TimeoutError:
            raise NotReady("the model is loading, or too busy to answer") from None

    async def judge(self, data: bytes, text: str | None, timings: Timings) -> Finding:
        """Raises `InputError` for a picture that cannot be read; what else is wrong is the finding's `error`."""
        size = (await self.about()).image_size
        with timings.of("decode"):
            image = await self.decoders.prepare(data, size)
        with timings.of("detect"):
            return await self._judge.detect(image, text)

    async def judge_pair(self, pair: Pair) -> Finding:
        """As `Predictor.predict` for one pair: what is wrong with it is the finding's `error`."""
        known = await self.about()
        try:
            if isinstance(pair.image, bytes):
                return await self.judge(pair.image, pair.text, Timings())
            image = await asyncio.to_thread(prepare_image, pair.image, known.image_size, self.limits)
        except InputError as error:
            return Finding(model_id=known.model_id, policy_id=known.policy_id, error=error)
        return await self._judge.detect(image, pair.text)

    def close(self) -> None:
        """Begin nothing new, and end the decoders."""
        self.under_way.close()
        self.decoders.close()
