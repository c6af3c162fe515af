"""The API in this process, around the model that ships: no Ray, no network."""

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


class LocalDetector:
    """A predictor, as the service asks for one."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.judged = 0

    async def about(self) -> ModelCard:
        return card(self._predictor)

    async def detect(self, image: PreparedImage, text: str | None) -> Finding:
        self.judged += 1
        return self._predictor.predict_prepared([image], [text])[0]


@contextmanager
def api(
    judge: Any, keyring: Keyring | None = None, *, caller: str = "127.0.0.1", **settings: Any
) -> Iterator[TestClient]:
    """A client of the API, by default on the server's own machine, which may be slow."""
    told = ServeSettings(**({"decoders": 1, "deadline_s": HANG_S, "decode_timeout_s": HANG_S} | settings))
    app = create_app(told, Service(told, judge), keyring or Keyring())
    client = TestClient(app, "http://127.0.0.1", raise_server_exceptions=False, client=(caller, 5000))
    with client:
        yield client


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def encoded(size: tuple[int, int] = (64, 48), kind: str = "PNG") -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (90, 120, 150)).save(buffer, kind)
    return buffer.getvalue()
