"""The API in this process, around a predictor, without Ray and without a network."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi.testclient import TestClient
from PIL import Image

from asap.finding import Finding
from asap.predictor import Predictor
from asap.preprocessing.images import PreparedImage
from serve.api.keys import Keyring
from serve.api.routes import create_app
from serve.inference.service import Service, card
from serve.schemas import ModelCard
from serve.settings import ServeSettings
from tests.support.waiting import HANG_S

TEXT = "A smiling minister opens the bridge"
_TIMES = ("deadline_s", "decode_timeout_s", "drain_s")


class LocalDetector:
    """A `DetectorBackend` that runs a predictor in this process, and counts its pairs."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.detected = 0

    async def about(self) -> ModelCard:
        return card(self._predictor)

    async def detect(self, image: PreparedImage, text: str | None) -> Finding:
        self.detected += 1
        return self._predictor.predict_prepared([image], [text])[0]


@contextmanager
def api(
    backend: Any, keyring: Keyring | None = None, *, caller: str = "127.0.0.1", **settings: Any
) -> Iterator[TestClient]:
    """Yield a client of the API whose limits in time only notice a hang.

    Args:
        backend: The `DetectorBackend`.
        keyring: The keys of the API; by default there are none.
        caller: The address of the client; by default it is on the server's own machine.
        settings: Changes of `ServeSettings`.
    """
    changed = ServeSettings(**({"decoders": 1} | dict.fromkeys(_TIMES, HANG_S) | settings))
    app = create_app(changed, Service(changed, backend), keyring or Keyring())
    client = TestClient(app, "http://127.0.0.1", raise_server_exceptions=False, client=(caller, 5000))
    with client:
        yield client


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def encoded(size: tuple[int, int] = (64, 48), kind: str = "PNG", color: tuple[int, int, int] = (90, 120, 150)) -> bytes:
    """Return an encoded picture of one color."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()
