"""The API in this process, around a predictor, without Ray and without a network."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

from asap.finding import Finding
from asap.predictor import Predictor
from asap.preprocessing.images import PreparedImage
from serve.api.callers.keys import Keyring
from serve.api.routes import create_app
from serve.inference.service import Service, card
from serve.jobs.cluster import Cluster
from serve.schemas import ModelCard
from serve.settings import ServeSettings
from tests.support.waiting import HANG_S, wait_until

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


class FixedDetector:
    """A `DetectorBackend` that keeps the texts that it gets, and finds nothing."""

    def __init__(self) -> None:
        self.texts: list[str | None] = []

    async def about(self) -> ModelCard:
        return ModelCard(model_id="m", policy_id="p", image_size=32, thresholds={}, calibrated=False)

    async def detect(self, image: Any, text: str | None) -> Finding:
        self.texts.append(text)
        types: dict[str, float | None] = dict.fromkeys(("face_swap", "face_attribute", "text_swap"), 0.1)
        return Finding(
            verdict="authentic", score=0.1, types=types | {"text_attribute": 0.1}, flagged_types=[], words=[],
            width=64, height=48, image_sha256=image.sha256, model_id="m", policy_id="p",
        )  # fmt: skip


@contextmanager
def api(
    backend: Any,
    keyring: Keyring | None = None,
    *,
    caller: str = "127.0.0.1",
    cluster: Cluster | None = None,
    **settings: Any,
) -> Iterator[TestClient]:
    """Yield a client of the API whose limits in time only notice a hang.

    Args:
        backend: The `DetectorBackend`.
        keyring: The keys of the API; by default there are none.
        caller: The address of the client; by default it is on the server's own machine.
        cluster: Runs jobs.
        settings: Changes of `ServeSettings`.
    """
    changed = ServeSettings(**({"decoders": 1} | dict.fromkeys(_TIMES, HANG_S) | settings))
    app = create_app(changed, Service(changed, backend), keyring or Keyring(), cluster=cluster)
    client = TestClient(app, "http://127.0.0.1", raise_server_exceptions=False, client=(caller, 5000))
    with client:
        yield client


@contextmanager
def served(
    backend: Any, keyring: Keyring | None = None, *, cluster: Cluster | None = None, **settings: Any
) -> Iterator[str]:
    """Serve the API of `api` on a port of this machine, and yield its address."""
    changed = ServeSettings(**({"decoders": 1} | dict.fromkeys(_TIMES, HANG_S) | settings))
    app = create_app(changed, Service(changed, backend), keyring or Keyring(), cluster=cluster)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


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
