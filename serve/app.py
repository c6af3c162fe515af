"""The application on Ray Serve: an API that reads and decodes, and a detector that scales with the load.

On one machine `asap serve` starts it. On a cluster `serve deploy` uses the same `build`, with the settings under `args`
in a file that `asap serve build` writes (`serve.deploy`):

    applications:
      - name: asap
        import_path: serve.app:build
        args: {model: "s3://models/mine", max_replicas: 8, detector_gpus: 1}

Other Ray programs detect pairs through the application's handle:

    handle = ray.serve.run(serve.app.build(ServeSettings()))
    finding = handle.detect.remote(Pair(image_bytes, "A smiling minister opens the bridge")).result()
"""

# No future import of annotations here: Serve builds `args` from the class that it finds at the parameter of `build`.
import functools
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError

from asap.finding import Finding, Pair
from asap.weights.model_folder import folder_version, is_remote
from serve.api.audit import start_logs
from serve.api.callers.keys import Keyring, load_keys
from serve.api.metrics import Metrics, MetricsByReplica
from serve.api.routes import create_app
from serve.inference.detector import Detector
from serve.inference.detector_client import DetectorClient
from serve.inference.service import Service
from serve.settings import ANSWER_WITHIN_S, LOGGING, ServeSettings

_METRICS_INTERVAL_S = 1.0
_TARGET_BATCHES = 1.2
"""Batches in flight for each detector, on average, above which another is started.

A detector has two at most, and one keeps it busy.
"""
_SURGE_PERCENT = 100
"""Share of the replicas that an update may start before it stops as many.

At 100 the only replica is not stopped before another one is ready.
"""
_SPARE_REQUESTS = 64
"""Requests beyond `max_in_flight` that Ray passes to the API.

So the API itself refuses excess requests, with its own error format, and the page still loads.
"""


@serve.ingress()
class Api:
    """The ingress deployment: the HTTP application of `serve.api.routes`, and `detect` for other Ray programs."""

    def __init__(self, settings: ServeSettings, keyring: Keyring, detector: Any) -> None:
        self._settings = settings
        self._keyring = keyring
        replica = serve.get_replica_context()
        own_handle = serve.get_deployment_handle(replica.deployment, replica.app_name)
        collect = functools.partial(_collect_metrics, own_handle) if settings.api_replicas > 1 else None
        self._metrics = Metrics(replica.replica_id.unique_id, collect, settings.deadline_s)
        start_logs(settings.audit_file, self._metrics.audit_lost.inc)
        self._service = Service(settings, DetectorClient(detector, settings))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the ASGI application. Ray Serve calls this in the replica."""
        return create_app(self._settings, self._service, self._keyring, self._metrics)

    async def metrics(self) -> MetricsByReplica:
        """Return the metrics of this process."""
        return self._metrics.own()

    async def detect(self, pair: Pair) -> Finding:
        """Return the finding of one pair, as `asap.predictor.Predictor.predict` does.

        A path in the pair names a file on this replica's machine.
        """
        with self._service.in_flight.track():
            return await self._service.detect_pair(pair)

    async def drain(self) -> int:
        """Accept no new requests from now on, and return how many are still in flight."""
        self._service.in_flight.close()
        return self._service.in_flight.requests


async def _collect_metrics(handle: Any) -> MetricsByReplica:
    """Return the metrics of all processes of the API, except those that do not answer."""
    try:
        answers = await handle.broadcast("metrics").results_async(timeout_s=ANSWER_WITHIN_S, return_exceptions=True)
    except (TimeoutError, DeploymentUnavailableError):
        return {}
    return {replica: metrics for answer in answers if isinstance(answer, dict) for replica, metrics in answer.items()}


def _off_idle_head() -> dict[str, Any]:
    """Return the options that keep replicas of 0 CPUs off a head without CPUs, which Ray would place there too."""
    if not ray.is_initialized():  # nothing is deployed from here
        return {}
    heads = [node for node in ray.nodes() if node["Alive"] and "node:__internal_head__" in node["Resources"]]
    if not heads or heads[0]["Resources"].get("CPU"):
        return {}
    return {"label_selector": {"ray.io/node-id": f"!{heads[0]['NodeID']}"}}


def _deployed_version(model: str) -> str | None:
    """Return the version of a model; None for a folder that this machine lacks, although the detectors' may have it."""
    if model != "demo" and not is_remote(model) and not Path(model).exists():
        return None
    return folder_version(model)


def build(settings: ServeSettings) -> serve.Application:
    """Return the application: the API bound to the detector.

    The detectors serve the model that is there now, and a replica that finds another one later does not start. Raises
    `ConfigError` if keys are needed and missing, and `CheckpointError` if the model cannot be read.
    """
    keyring = load_keys(settings)
    detector = serve.deployment(
        name="Detector",
        ray_actor_options={"num_cpus": settings.detector_cpus, "num_gpus": settings.detector_gpus},
        # Each process of the API sends at most two batches and two long texts; more only while a detector dies.
        max_ongoing_requests=8 * settings.api_replicas,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": _TARGET_BATCHES,
            "upscale_delay_s": settings.upscale_delay_s,
            "downscale_delay_s": settings.downscale_delay_s,
            # Ray deprecates the interval in favor of environment variables that it does not read yet. Its default of
            # 10 s would hide a step in load for longer than `upscale_delay_s`, and the interval must be shorter than
            # the look-back period.
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
        ray_actor_options={"num_cpus": 0} | _off_idle_head(),
        max_ongoing_requests=settings.max_in_flight + _SPARE_REQUESTS,
        max_queued_requests=_SPARE_REQUESTS,
        backpressure_config={"status_code": 503, "retry_after_s": 2},
        max_surge_percent=_SURGE_PERCENT,
        logging_config=LOGGING,
        graceful_shutdown_timeout_s=settings.drain_s,
    )(Api)
    return api.bind(settings, keyring, detector.bind(settings, _deployed_version(settings.model)))
