"""The server on one machine: start the application, run it until a signal, and finish what is in flight."""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError

from serve.deploy import APP, CONTROLLER, http_options
from serve.errors import Refused
from serve.settings import ANSWER_WITHIN_S, LOGGING, ServeSettings

_LOG = logging.getLogger("asap.server")
_POLL_S = 0.2
"""Seconds between two checks of what is still in flight."""
_ERROR_LINE = re.compile(r"^(?:[\w.]*\.)?\w*(?:Error|Exception|Failed|Missing|Invalid): (.+)$", re.MULTILINE)
"""The line at the end of a traceback."""
_PROXY_SENDS_S = 1.0
"""Seconds after the last response in which Ray's proxy sends it, and the requests that it still holds are refused."""


def run(
    application: serve.Application,
    settings: ServeSettings,
    ready: Callable[[str], None],
    stopping: Callable[[], None],
    on_step: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve on the running Ray until SIGINT or SIGTERM.

    Requests that came before the signal are then answered within `drain_s`, and new ones are refused. A second signal
    raises `KeyboardInterrupt`, and what is in flight is lost with Ray.

    Args:
        application: What `serve.app.build` returns.
        settings: The settings that it was built with.
        ready: Called with the server's address once it answers.
        stopping: Called after the first signal.
        on_step: Called with a sentence when a step of the start begins.
    """
    is_stopped = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)

    def stop(*_: object) -> None:
        is_stopped.set()
        for number in signals:
            signal.signal(number, signal.default_int_handler)

    handle = start(application, settings, on_step)
    for number in signals:  # after the start, because Ray sets handlers of its own
        signal.signal(number, stop)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    ready(f"http://{host}:{settings.port}/")
    is_stopped.wait()
    stopping()
    _drain(handle, settings.drain_s)
    serve.shutdown()


def start(
    application: serve.Application, settings: ServeSettings, on_step: Callable[[str], None] = lambda _: None
) -> Any:
    """Deploy on the running Ray, and return the handle. Raises `Refused` if the detector cannot start."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    on_step("starting Ray Serve")
    serve.start(http_options=http_options(settings), logging_config=LOGGING, controller_options=CONTROLLER)
    detectors = f"{settings.min_replicas} detector{'s' if settings.min_replicas > 1 else ''}"
    on_step(f"starting the API and {detectors}")
    with _api_reported(lambda: on_step(f"the API runs; waiting for {detectors} to load the model {settings.model}")):
        try:
            return serve.run(application, name=APP)
        except RuntimeError as error:
            application = serve.status().applications.get(APP)
            messages = [deployment.message for deployment in application.deployments.values()] if application else []
            reason = _reason("\n".join(messages)) or _reason(str(error))
            raise Refused(503, "not_ready", f"the server did not start: {reason}") from error


@contextmanager
def _api_reported(on_api: Callable[[], None]) -> Iterator[None]:
    """Call a function once the API runs, unless the block ends before."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_S):
            try:
                application = serve.status().applications.get(APP)
            except Exception as error:  # Ray has many classes for a controller that does not answer
                _LOG.debug("the status of the server is unknown: %s", error)
                continue
            # The deployments are listed some time after the application.
            api = application.deployments.get("Api") if application else None
            if api and api.status == "HEALTHY":
                on_api()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _reason(message: str) -> str:
    """Return the error at the end of the last traceback in a message of Ray, or else the message's first line."""
    errors = _ERROR_LINE.findall(message)
    return str(errors[-1]) if errors else message.partition("\n")[0]


def _drain(handle: Any, within_s: float) -> None:
    """Let every process of the API refuse new requests, and wait until the others are answered."""
    last_busy = begin = time.monotonic()
    while (now := time.monotonic()) < begin + within_s:
        if _has_in_flight(handle):
            last_busy = now
        elif now - last_busy >= _PROXY_SENDS_S:
            return
        time.sleep(_POLL_S)


def _has_in_flight(handle: Any) -> bool:
    """Return True if any process of the API has requests in flight. Each process refuses new ones once it is asked."""
    try:
        counts = handle.broadcast("drain").results(timeout_s=ANSWER_WITHIN_S, return_exceptions=True)
    except DeploymentUnavailableError:
        return False
    except TimeoutError:
        return True
    return any(not isinstance(count, RayActorError) and count != 0 for count in counts)
