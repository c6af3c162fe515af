"""The detector: a model that judges batches, those at hand by turns."""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from ray import serve

from asap.finding import Finding
from asap.preprocessing.images import PreparedImage
from serve.api.remote_images import local_model
from serve.inference.batcher import Answer
from serve.inference.service import card
from serve.schemas import EXAMPLE_TEXT, ModelCard
from serve.settings import ServeSettings

if TYPE_CHECKING:
    from asap.predictor import Predictor

_LOG = logging.getLogger("ray.serve")
Prepared = tuple[PreparedImage, str | None]


class Detector:
    """Loads the model and warms it up; only then does the replica count as ready."""

    def __init__(self, settings: ServeSettings) -> None:
        import torch

        from asap.predictor import Predictor

        torch.set_num_threads(max(1, int(settings.detector_cpus)))
        self._device_errors = (torch.AcceleratorError,)
        self._predictor = Predictor.from_folder(
            local_model(settings.model), settings.device, settings.precision, batch_size=settings.batch_size
        )
        # One pass at a time, and in a thread: the replica still answers health checks and takes in the next batch.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge")
        self._name = serve.get_replica_context().replica_id.unique_id
        warm_up(self._predictor, settings.batch_size)

    async def about(self) -> ModelCard:
        """The model."""
        return card(self._predictor)

    async def detect(self, pairs: list[Prepared]) -> Answer[Finding | ModelCard]:
        """The findings of pairs that are judged together; none of them harms another.

        A picture that was prepared for a model of another size, before an update, gets this one's card.
        """
        side = self._predictor.image_size
        fits = [image.pixels.shape[0] == side for image, _ in pairs]
        found = iter(await self._detect([pair for pair, fit in zip(pairs, fits, strict=True) if fit]))
        return Answer(self._name, [next(found) if fit else card(self._predictor) for fit in fits])

    async def _detect(self, pairs: list[Prepared]) -> list[Finding]:
        """For every pass of the model they queue anew: a long text does not hold up the batches behind it, and once
        nobody waits for it, it takes no pass more."""
        steps = self._predictor.predict_in_steps([image for image, _ in pairs], [text for _, text in pairs])
        run = asyncio.get_running_loop().run_in_executor
        try:
            while (found := await run(self._thread, next, steps)) is None:
                pass
        except self._device_errors:
            # It computes nothing more in this process: end it, so that Serve starts another and the pairs are sent on.
            _LOG.exception("the accelerator is broken in this process")
            os._exit(1)
        return found


def warm_up(predictor: Predictor, batch_size: int) -> None:
    """Judge one grey pair, and a batch of them, so that no caller pays for what is set up at first use."""
    side = predictor.image_size
    grey = PreparedImage(pixels=np.full((side, side, 3), 128, np.uint8), width=side, height=side, sha256=None)
    for count in (1, batch_size):
        finding = predictor.predict_prepared([grey] * count, [EXAMPLE_TEXT] * count)[0]
        if finding.error is not None:
            raise finding.error
