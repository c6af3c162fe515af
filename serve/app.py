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
import functools
import logging
import sys
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError

from asap.errors import ConfigError
from asap.finding import Finding, Pair
from serve.api.keys import Keyring
from serve.api.metrics import Metrics, MetricsByReplica
from serve.api.middleware import LOG
from serve.api.routes import create_app
from serve.deploy import LOGGING
from serve.inference.detector import Detector
from serve.inference.detector_client import DetectorClient
from serve.inference.service import Service
from serve.run import ANSWER_WITHIN_S
from serve.settings import ServeSettings, is_loopback

_METRICS_INTERVAL_S = 1.0
_BUSY = 1.2
"""Batches in a detector's hands, on average, that call for another: 2 are as many as it gets, 1 keeps it at work."""
_SURGE_PERCENT = 100
"""Of the replicas, that an update may start before it stops as many: a lone one is not stopped before another is up."""
_SPARE_REQUESTS = 64
"""Beyond `max_in_flight`, so that what is too much is refused by the API, in its one shape, and pages still come."""


@serve.ingress()
class Api:
    """The ingress: HTTP by the application of `serve.api.routes`, and `detect` for other Ray programs."""

    def __init__(self, settings: ServeSettings, keyring: Keyring, detector: Any) -> None:
        _log_requests()
        self._settings = settings
        self._keyring = keyring
        self._service = Service(settings, DetectorClient(detector, settings))
        here = serve.get_replica_context()
        ask = functools.partial(_told, serve.get_deployment_handle(here.deployment, here.app_name))
        self._figures = Metrics(here.replica_id.unique_id, ask if settings.api_replicas > 1 else None)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve, in the replica."""
        return create_app(self._settings, self._service, self._keyring, self._figures)

    async def figures(self) -> MetricsByReplica:
        """What /metrics tells of this process."""
        return self._figures.own()

    async def detect(self, pair: Pair) -> Finding:
        """As `asap.predictor.Predictor.predict` for one pair; a path is one of this replica's machine."""
        with self._service.in_flight.one():
            return await self._service.detect_pair(pair)

    async def drain(self) -> int:
        """Begin nothing new from now on. How many requests are still under way."""
        self._service.in_flight.close()
        return self._service.in_flight.requests


async def _told(handle: Any) -> MetricsByReplica:
    """The figures of all processes of the API; without those that do not answer."""
    try:
        answers = await handle.broadcast("figures").results_async(timeout_s=ANSWER_WITHIN_S, return_exceptions=True)
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
