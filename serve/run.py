"""The server on one machine: start the application, run until a signal, finish what is in flight."""

from __future__ import annotations

# Without the future import of annotations: Serve makes `args` of the class that it finds at `build`'s parameter.
import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError

from serve.deploy import APP, CONTROLLER, LOGGING, http_options
from serve.errors import Refused
from serve.settings import ServeSettings

_LOOK_S = 0.2
"""Between two looks at what is still under way."""


_PASSED_ON_S = 1.0
"""After the last answer, until Ray's proxy has sent it, and what had come to the proxy is refused."""


ANSWER_WITHIN_S = 5.0
"""A process of the API that does not tell within so long how much it has under way is busy, and its figures are left
out."""


def run(
    application: serve.Application, settings: ServeSettings, ready: Callable[[str], None], stopping: Callable[[], None]
) -> None:
    """Serve on the running Ray until the process is told to stop; `ready` gets the address once it answers.

    What came before is answered then, within `drain_s`, and what is new is refused; `stopping` is called as that
    begins. Told once more, it raises `KeyboardInterrupt`, and what is under way is lost with Ray.
    """
    told = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)

    def stop(*_: object) -> None:
        told.set()
        for number in signals:
            signal.signal(number, signal.default_int_handler)

    handle = start(application, settings)
    for number in signals:  # Ray has set handlers of its own
        signal.signal(number, stop)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    ready(f"http://{host}:{settings.port}/")
    told.wait()
    stopping()
    _drain(handle, settings.drain_s)
    serve.shutdown()


def _drain(handle: Any, within_s: float) -> None:
    """Have every process of the API refuse what is new, and wait until what came before is answered."""
    busy = start = time.monotonic()
    while (now := time.monotonic()) < start + within_s:
        if _has_in_flight(handle):
            busy = now
        elif now - busy >= _PASSED_ON_S:
            return
        time.sleep(_LOOK_S)


def _has_in_flight(handle: Any) -> bool:
    """Whether any process of the API has requests under way; each begins nothing new once it is asked."""
    try:
        counts = handle.broadcast("drain").results(timeout_s=ANSWER_WITHIN_S, return_exceptions=True)
    except DeploymentUnavailableError:
        return False
    except TimeoutError:
        return True
    return any(not isinstance(count, RayActorError) and count != 0 for count in counts)


def start(application: serve.Application, settings: ServeSettings) -> Any:
    """Deploy on the running Ray, and return the handle. Raises `Refused` where the detector cannot start."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options=http_options(settings), logging_config=LOGGING, controller_options=CONTROLLER)
    try:
        return serve.run(application, name=APP)
    except RuntimeError as error:
        raise Refused(503, "not_ready", f"the server did not start: {error}") from error
