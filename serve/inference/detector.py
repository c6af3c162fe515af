"""The detector replica: it loads the model and detects batches, which take turns pass by pass."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from ray import serve

from asap.errors import CheckpointError
from asap.finding import Finding
from asap.preprocessing.images import PreparedImage
from serve.inference.batcher import Answer
from serve.inference.service import card
from serve.schemas import EXAMPLE_TEXT, ModelCard
from serve.settings import ServeSettings

if TYPE_CHECKING:
    from asap.predictor import Predictor

_LOG = logging.getLogger("ray.serve")
Prepared = tuple[PreparedImage, str | None]
"""A prepared picture and its text."""


class Detector:
    """The Ray Serve deployment of the model. A replica is ready once the model is loaded and warmed up."""

    def __init__(self, settings: ServeSettings, version: str | None = None) -> None:
        """Load the model. Raises `CheckpointError` if it is not the one that was deployed.

        Args:
            settings: The settings of the server.
            version: The version of the model (`folder_version`) that was deployed. None: not compared.
        """
        import torch

        from asap.predictor import Predictor

        torch.set_num_threads(max(1, int(settings.detector_cpus)))
        self._device_errors = (torch.AcceleratorError,)
        self._predictor = Predictor.from_folder(
            settings.model,
            settings.device,
            settings.precision,
            batch_size=settings.batch_size,
            min_text_read=settings.min_text_read,
        )
        _check_version(settings.model, version, self._predictor)
        # One thread runs one pass at a time. The event loop still answers health checks and accepts the next batch.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="detect")
        self._name = serve.get_replica_context().replica_id.unique_id
        warm_up(self._predictor, settings.batch_size)

    async def about(self) -> ModelCard:
        """Return the card of the model."""
        return card(self._predictor)

    async def detect(self, pairs: list[Prepared]) -> Answer[Finding | ModelCard]:
        """Return the findings of a batch of pairs. A pair that fails does not affect the others.

        A picture that was prepared for a model of another size, before an update, gets the card of this model instead.
        """
        side = self._predictor.image_size
        fits = [image.pixels.shape[0] == side for image, _ in pairs]
        found = iter(await self._detect([pair for pair, fit in zip(pairs, fits, strict=True) if fit]))
        return Answer(self._name, [next(found) if fit else card(self._predictor) for fit in fits])

    async def _detect(self, pairs: list[Prepared]) -> list[Finding]:
        """Run the model. Each forward pass is queued separately, so a long text does not block other batches.

        If nobody waits any more, no further pass is run.
        """
        steps = self._predictor.predict_in_steps([image for image, _ in pairs], [text for _, text in pairs])
        run = asyncio.get_running_loop().run_in_executor
        try:
            while (found := await run(self._thread, next, steps)) is None:
                pass
        except self._device_errors:
            # The device works no more in this process. When it ends, Serve starts another, and the pairs are resent.
            _LOG.exception("the accelerator is broken in this process")
            os._exit(1)
        return found


def _check_version(model: str, version: str | None, predictor: Predictor) -> None:
    """Raise `CheckpointError` if the model was replaced since it was deployed: replicas would contradict each other."""
    from asap.weights.model_folder import folder_version

    # After the model is loaded, so that files that were replaced meanwhile are found too.
    if version is not None and (found := folder_version(model, predictor.model_id)) != version:
        raise CheckpointError(
            f"model {model} has changed since it was deployed, or differs on the machine {socket.gethostname()}: the "
            f"fingerprint of its files is {found}, and was {version}. Put the deployed model back, or deploy the new "
            "one from a folder of its own."
        )


def warm_up(predictor: Predictor, batch_size: int) -> None:
    """Detect one gray pair and a batch of them, so that no caller waits for what is set up at first use."""
    side = predictor.image_size
    gray = PreparedImage(pixels=np.full((side, side, 3), 128, np.uint8), width=side, height=side, sha256=None)
    for count in (1, batch_size):
        finding = predictor.predict_prepared([gray] * count, [EXAMPLE_TEXT] * count)[0]
        if finding.error is not None:
            raise finding.error
