"""The detector: a model behind a queue, which judges what arrives together as one batch."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
from ray import serve

from asap.finding import Finding
from asap.images import PreparedImage
from serve.remote import local_model
from serve.schemas import EXAMPLE_TEXT, ModelCard
from serve.service import card
from serve.settings import ServeSettings

if TYPE_CHECKING:
    from asap.predictor import Predictor

Prepared = tuple[PreparedImage, str | None]


class Detector:
    """Loads the model and warms it up; only then does the replica count as ready."""

    def __init__(self, settings: ServeSettings) -> None:
        import torch

        from asap.predictor import Predictor

        torch.set_num_threads(max(1, int(settings.detector_cpus)))
        self._device_errors = (torch.AcceleratorError,)
        self._broken = False
        self._predictor = Predictor.from_folder(
            local_model(settings.model), settings.device, settings.precision, batch_size=settings.batch_size
        )
        self._judge.set_max_batch_size(settings.batch_size)
        self._judge.set_batch_wait_timeout_s(settings.batch_wait_s)
        warm_up(self._predictor, settings.batch_size)

    async def about(self) -> ModelCard:
        """The model."""
        return card(self._predictor)

    async def detect(self, image: PreparedImage, text: str | None) -> Finding:
        """The finding of one pair; it may be judged with others, and none of them harms another."""
        return await self._judge((image, text))

    @serve.batch
    async def _judge(self, pairs: list[Prepared]) -> list[Finding]:
        images, texts = zip(*pairs, strict=True)
        try:
            # In a thread, so that the replica still answers health checks and takes in the next batch.
            return await asyncio.to_thread(self._predictor.predict_prepared, images, texts)
        except self._device_errors:
            self._broken = True
            raise

    def check_health(self) -> None:
        """Asked by Serve, which puts another replica in the place of one that raises."""
        if self._broken:
            raise RuntimeError("the accelerator computes nothing more in this process")


def warm_up(predictor: Predictor, batch_size: int) -> None:
    """Judge one grey pair, and a batch of them, so that no caller pays for what is set up at first use."""
    side = predictor.image_size
    grey = PreparedImage(pixels=np.full((side, side, 3), 128, np.uint8), width=side, height=side, sha256=None)
    for count in (1, batch_size):
        finding = predictor.predict_prepared([grey] * count, [EXAMPLE_TEXT] * count)[0]
        if finding.error is not None:
            raise finding.error
