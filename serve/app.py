"""The application on Ray Serve: an ingress that reads and decodes, and a detector that scales with the load.

On one machine `asap serve` starts it. On a cluster `serve deploy` takes the same `build`, its settings under `args`,
from a file that `asap serve build` writes (`serve.deploy`):

    applications:
      - name: asap
        import_path: serve.app:build
        args: {model: "s3://models/mine", max_replicas: 8, detector_gpus: 1}

Other Ray programs judge pairs through the application's handle:

    handle = ray.serve.run(serve.app.build(ServeSettings()))
    finding = handle.detect.remote(Pair(image_bytes, "A smiling minister opens the bridge")).result()
"""
# Without the future import of annotations: Serve makes `args` of the class that it finds at `build`'s parameter.

import asyncio
import functools
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError

from asap.errors import ConfigError
from asap.finding import Finding, Pair
from asap.preprocessing.images import PreparedImage
from asap.preprocessing.words import estimate_passes
from serve.api.keys import Keyring
from serve.api.metrics import Figures, Told
from serve.api.middleware import LOG
from serve.api.routes import create_app
from serve.deploy import APP, CONTROLLER, LOGGING, http_options
from serve.errors import NotReady, Refused
from serve.inference.batcher import Answer, Batcher
from serve.inference.detector import Detector, Prepared
from serve.inference.service import Service
from serve.schemas import ModelCard
from serve.settings import ServeSettings, is_loopback

_TRIES = 2
_METRICS_INTERVAL_S = 1.0
_BUSY = 1.2
"""Batches in a detector's hands, on average, that call for another: 2 are as many as it gets, 1 keeps it at work."""
_SURGE_PERCENT = 100
"""Of the replicas, that an update may start before it stops as many: a lone one is not stopped before another is up."""
_LOOK_S = 0.2
"""Between two looks at what is still under way."""
_PASSED_ON_S = 1.0
"""After the last answer, until Ray's proxy has sent it, and what had come to the proxy is refused."""
_TOLD_S = 5.0
"""A process of the API that does not tell within so long how much it has under way is busy, and its figures are left
out."""
_SPARE_REQUESTS = 64
"""Beyond `max_in_flight`, so that what is too much is refused by the API, in its one shape, and pages still come."""


class RayJudge:
    """The detector's replicas, by their handle, which gets batches. A batch whose replica died is sent to another,
    once."""

    def __init__(self, detector: Any, settings: ServeSettings) -> None:
        self._detector = detector
        self._size = settings.batch_size
        batcher = functools.partial(
            Batcher[Prepared, Finding | ModelCard],
            self._detect_all,
            size=settings.batch_size,
            wait_s=settings.batch_wait_s,
            most_waiting=settings.max_queued,
        )
        self._quick = batcher()
        self._long = batcher()

    async def about(self) -> ModelCard:
        """As `Judge.about`."""
        return await self._ask(self._detector.about.remote)

    async def detect(self, image: PreparedImage, text: str | None) -> Finding | ModelCard:
        """As `Judge.detect`. Cancelled, the pair is taken from the queue.

        A text of more passes than a batch has waits for others of its kind only, and they for it.
        """
        passes = estimate_passes(text or "")
        batches = self._quick if passes <= self._size else self._long
        return await batches.ask((image, text), passes)

    async def _detect_all(self, pairs: list[Prepared]) -> Answer[Finding | ModelCard]:
        return await self._ask(self._detector.detect.remote, pairs)

    async def _ask(self, method: Callable[..., Any], *arguments: Any) -> Any:
        for attempt in range(1, _TRIES + 1):
            response = method(*arguments)
            try:
                return await response
            except DeploymentUnavailableError:
                raise NotReady("no detector could be started; the server's log says why") from None
            except RayActorError:  # judging changes nothing, so it may be done again
                if attempt == _TRIES:
                    raise NotReady("the detector died while it judged this pair") from None
            except asyncio.CancelledError:
                response.cancel()
                raise
        raise AssertionError("the last attempt returns or raises")


@serve.ingress()
class Api:
    """The ingress: HTTP by the application of `serve.api.routes`, and `detect` for other Ray programs."""

    def __init__(self, settings: ServeSettings, keyring: Keyring, detector: Any) -> None:
        _log_requests()
        self._settings = settings
        self._keyring = keyring
        self._service = Service(settings, RayJudge(detector, settings))
        here = serve.get_replica_context()
        ask = functools.partial(_told, serve.get_deployment_handle(here.deployment, here.app_name))
        self._figures = Figures(here.replica_id.unique_id, ask if settings.api_replicas > 1 else None)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve, in the replica."""
        return create_app(self._settings, self._service, self._keyring, self._figures)

    async def figures(self) -> Told:
        """What /metrics tells of this process."""
        return self._figures.own()

    async def detect(self, pair: Pair) -> Finding:
        """As `asap.predictor.Predictor.predict` for one pair; a path is one of this replica's machine."""
        with self._service.under_way.one():
            return await self._service.judge_pair(pair)

    async def drain(self) -> int:
        """Begin nothing new from now on. How many requests are still under way."""
        self._service.under_way.close()
        return self._service.under_way.requests


async def _told(handle: Any) -> Told:
    """The figures of all processes of the API; without those that do not answer."""
    try:
        answers = await handle.broadcast("figures").results_async(timeout_s=_TOLD_S, return_exceptions=True)
    except (TimeoutError, DeploymentUnavailableError):
        return {}
    return {replica: figures for answer in answers if isinstance(answer, dict) for replica, figures in answer.items()}


def _log_requests() -> None:
    """A line for each request on this process's stderr, where Ray collects it."""
    if not LOG.handlers:
        LOG.addHandler(logging.StreamHandler(sys.stderr))
    LOG.setLevel(logging.INFO)


def build(settings: ServeSettings) -> serve.Application:
    """The application: ingress and detector, bound. Raises `ConfigError` where keys are needed and there are none."""
    keyring = Keyring.load(settings.keys_file)
    if not keyring and not is_loopback(settings.host):
        raise ConfigError(
            f"host {settings.host!r} is reached from other machines, which needs keys: make one with asap serve "
            "--new-key NAME, and give its line in --keys FILE or ASAP_KEYS"
        )
    detector = serve.deployment(
        name="Detector",
        ray_actor_options={"num_cpus": settings.detector_cpus, "num_gpus": settings.detector_gpus},
        # Of each process of the API it gets two batches and two long texts at most; more only while a detector dies.
        max_ongoing_requests=8 * settings.api_replicas,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": _BUSY,
            "upscale_delay_s": settings.upscale_delay_s,
            "downscale_delay_s": settings.downscale_delay_s,
            # Ray marks the interval as deprecated, for variables that it names but does not read yet; its own 10 s
            # would hide a step in load for longer than `upscale_delay_s`, and must be less than what is looked back.
            "metrics_interval_s": _METRICS_INTERVAL_S,
            "look_back_period_s": max(2 * _METRICS_INTERVAL_S, settings.upscale_delay_s),
        },
        max_surge_percent=_SURGE_PERCENT,
        graceful_shutdown_timeout_s=settings.drain_s,
        logging_config=LOGGING,
        health_check_period_s=5,
        health_check_timeout_s=30,
    )(Detector)
    api = serve.deployment(
        name="Api",
        num_replicas=settings.api_replicas,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=settings.max_in_flight + _SPARE_REQUESTS,
        max_queued_requests=_SPARE_REQUESTS,
        backpressure_config={"status_code": 503, "retry_after_s": 2},
        max_surge_percent=_SURGE_PERCENT,
        logging_config=LOGGING,
        graceful_shutdown_timeout_s=settings.drain_s,
    )(Api)
    return api.bind(settings, keyring, detector.bind(settings))


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
        if _under_way(handle):
            busy = now
        elif now - busy >= _PASSED_ON_S:
            return
        time.sleep(_LOOK_S)


def _under_way(handle: Any) -> bool:
    """Whether any process of the API has requests under way; each begins nothing new once it is asked."""
    try:
        counts = handle.broadcast("drain").results(timeout_s=_TOLD_S, return_exceptions=True)
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
