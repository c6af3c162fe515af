"""The HTTP API: the application and its routes. It calls a `Service` and a `JobDesk`, and knows nothing of Ray."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from asap.errors import InputError
from asap.finding import Finding
from asap.preprocessing.formats import readable_formats
from serve.api.callers.admission import Callers
from serve.api.callers.current_keys import CurrentKeys
from serve.api.callers.keys import Keyring
from serve.api.callers.rates import RATE_HEADERS
from serve.api.capacity import Capacity, ConcurrencyLimit
from serve.api.deadline import deadline, loop_time
from serve.api.job_routes import JobRoutes
from serve.api.metrics import Metrics, exposition
from serve.api.middleware import (
    CrossOrigin,
    RequestMiddleware,
    Trace,
    as_refused,
    error_body,
    error_response,
    trace_of,
)
from serve.api.openapi import ERRORS, body_of, complete
from serve.api.reference import reference_page
from serve.api.remote_images import fetch_remote_image, redacted
from serve.api.replays import HEADER, KEPT_S, IdempotencyKey, Replays
from serve.api.requests import BatchEntry, PairRequest, RequestReader, invalid_field, known_query
from serve.errors import Refused, refusal
from serve.inference.service import Service, Timings
from serve.job_schemas import JobLimits
from serve.jobs.cluster import Cluster, RayCluster
from serve.jobs.desk import JobDesk
from serve.jobs.rules import limits_of, rules_of
from serve.schemas import (
    BatchItem,
    BatchRequest,
    BatchResponse,
    Detection,
    DetectRequest,
    Health,
    ModelList,
    ServerLimits,
    detection,
)
from serve.settings import ServeSettings

_PAGE = Path(__file__).parent.parent / "page"
_MAX_FETCHED = 32
"""Pictures that are being fetched, or were fetched and wait for their detection."""
_LIMITS = (
    "max_image_bytes", "max_image_pixels", "max_text_chars", "min_text_read", "max_body_bytes", "max_batch_items",
    "max_batch_bytes", "deadline_s",
)  # fmt: skip
"""Settings that /v1/limits shows."""
_TRANSIENT = (429, 500, 503, 504)
"""Statuses of a pair that may have another one a second time."""
_Evidence = Annotated[
    Literal["image"] | None,
    Query(description="If it is `image`, the response contains the picture with the box drawn on it."),
]


def create_app(
    settings: ServeSettings,
    service: Service,
    keyring: Keyring,
    metrics: Metrics | None = None,
    cluster: Cluster | None = None,
) -> FastAPI:
    """Return the application around a service. Without keys it answers only this machine.

    Args:
        settings: Limits and addresses.
        service: Detects pairs. It is closed when the application ends.
        keyring: The keys of the callers.
        metrics: Counters of this process; new ones by default.
        cluster: Runs jobs; by default it is the Ray cluster of this process.
    """
    metrics = metrics or Metrics(deadline_s=settings.deadline_s)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="ASAP", version="1", description="Finds manipulated image-text pairs: whether, how, and where.",
        docs_url=None, redoc_url=None, lifespan=lifespan,
        redirect_slashes=False,  # such a redirect would lead to the host that the caller's Host header names
        generate_unique_id_function=lambda route: route.name,  # the names that generated clients give their functions
    )  # fmt: skip
    app.include_router(_open_routes(app, service))
    keys = CurrentKeys(keyring, settings.keys_file, metrics.count_reload)
    callers = Callers(settings, keys)
    app.include_router(DetectionRoutes(settings, service, callers, metrics).router)
    desk = JobDesk(settings.jobs, cluster or RayCluster(settings.jobs.dashboard if settings.jobs else None))
    app.include_router(JobRoutes(settings, desk, callers, metrics).router)
    app.mount("/page", StaticFiles(directory=_PAGE), name="page")
    complete(app.openapi(), needs_key=keys.are_needed)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    concurrency = ConcurrencyLimit(2 * settings.batch_size, settings.max_in_flight, settings.wait_s)
    capacity = Capacity(settings, concurrency, several_keys=lambda: len(keys.keyring.keys) > 1)
    app.add_middleware(
        RequestMiddleware, capacity=capacity, in_flight=service.in_flight, metrics=metrics,
        paths=app.openapi()["paths"],
    )  # fmt: skip
    if settings.cors_origins:  # added last, so outermost
        app.add_middleware(
            CrossOrigin, allow_origins=list(settings.cors_origins), allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", HEADER, "X-Request-ID"],
            expose_headers=["Idempotency-Replayed", *RATE_HEADERS, "Retry-After", "X-Request-ID"],
        )  # fmt: skip
    return app


def _open_routes(app: FastAPI, service: Service) -> APIRouter:
    """Return the routes that need no key: the page, the reference and the probes."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html")

    @router.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(reference_page(app.openapi()))

    @router.get("/healthz", summary="Check that the server is alive")
    async def healthz() -> Health:
        return Health()

    @router.get("/readyz", summary="Check that the server can process a pair now", responses={503: ERRORS[503]})
    async def readyz() -> Health:
        await service.check()
        return Health()

    return router


class DetectionRoutes:
    """The routes that detect pairs or show data. They need a key if the server has keys."""

    def __init__(self, settings: ServeSettings, service: Service, callers: Callers, metrics: Metrics) -> None:
        self._settings = settings
        self._service = service
        self._callers = callers
        self._reader = RequestReader(settings)
        self._replays = Replays()
        self._metrics = metrics
        # Fetching has its own threads: a slow store delays the callers who name it, not the parsing of JSON.
        self._fetch_threads = ThreadPoolExecutor(_MAX_FETCHED, thread_name_prefix="fetch")
        self._fetch_slots = asyncio.Semaphore(_MAX_FETCHED)
        self.router = APIRouter(responses=ERRORS)
        post, get = self.router.post, self.router.get
        one, many = body_of(DetectRequest, form=True), body_of(BatchRequest, form=False)
        sender, reader = Depends(callers.admit("detect")), Depends(callers.admit("metrics"))
        anybody, evidence, nothing = (
            Depends(callers.admit()), Depends(known_query("evidence")), Depends(known_query())
        )  # fmt: skip
        post(
            "/v1/detect", summary="Detect manipulation in one pair", openapi_extra=one, response_model=Detection,
            dependencies=[sender, evidence],
        )(self.detect)  # fmt: skip
        post(
            "/v1/detect/batch", summary="Detect manipulation in several pairs", openapi_extra=many,
            response_model=BatchResponse, dependencies=[sender, evidence],
        )(self.detect_batch)  # fmt: skip
        get("/v1/models", summary="List the models that answer here", dependencies=[anybody, nothing])(self.models)
        get("/v1/limits", summary="Show what a request may be", dependencies=[anybody, nothing])(self.limits)
        get("/metrics", summary="Metrics for Prometheus", response_class=Response, dependencies=[reader])(self.metrics)

    async def detect(
        self, request: Request, evidence: _Evidence = None, idempotency_key: IdempotencyKey = None
    ) -> Response | Detection:
        """Send a picture and its text as a form or as JSON. The response has the verdict, types and evidence."""
        trace, timings = trace_of(request), Timings()
        self._callers.charge(trace, 1)  # the first pass is charged before reading, the others once they are counted
        async with deadline(self._settings.deadline_s, loop_time(), trace):
            with timings.of("read"):
                pair = await self._reader.read_pair(request)

            async def detect() -> tuple[Detection, bool]:
                self._callers.charge(trace, pair.passes - 1, paid=1)
                return await self._detect(pair, trace, trace.id, timings, draw=evidence is not None), True

            return await self._replays.once(request, idempotency_key, pair.fingerprint, detect)

    async def detect_batch(
        self, request: Request, evidence: _Evidence = None, idempotency_key: IdempotencyKey = None
    ) -> Response | BatchResponse:
        """Send several pairs. Each gets the status that it would have alone; one that fails does not affect others."""
        trace, start = trace_of(request), loop_time()
        self._callers.charge(trace, 1)  # reading and parsing cost something too, even if no pair turns out to be valid
        async with deadline(self._settings.deadline_s, start, trace):
            entries = await self._reader.read_batch(request)
        body = await request.body()

        async def detect() -> tuple[BatchResponse, bool]:
            passes = (1 if isinstance(entry.pair, Refused) else entry.pair.passes for entry in entries)
            self._callers.charge(trace, sum(passes) - 1, paid=1)
            results = (
                self._detect_item(entry, trace, f"{trace.id}-{position}", start, draw=evidence is not None)
                for position, entry in enumerate(entries)
            )
            items = await asyncio.gather(*results)
            return BatchResponse(items=items), not any(item.status in _TRANSIENT for item in items)

        return await self._replays.once(request, idempotency_key, lambda: hashlib.sha256(body).digest(), detect)

    async def models(self) -> ModelList:
        """List the one model that answers here, with its thresholds."""
        return ModelList(models=[await self._service.about()])

    async def limits(self, request: Request) -> ServerLimits:
        """Show the limits of requests, the formats of pictures, and what the caller's key may send."""
        settings = self._settings
        return ServerLimits(
            image_formats=readable_formats(),
            **{limit: getattr(settings, limit) for limit in _LIMITS},
            idempotency_s=KEPT_S,
            uri_prefixes=list(settings.uri_prefixes),
            jobs=self._job_limits(trace_of(request)),
            key=self._callers.key_state(trace_of(request)),
        )

    def _job_limits(self, trace: Trace) -> JobLimits | None:
        """Return what a caller may name in a job; None if it may submit none."""
        if not self._callers.may(trace, "jobs"):
            return None
        try:
            return limits_of(rules_of(self._settings.jobs, trace.key_name))
        except Refused:
            return None

    async def metrics(self) -> Response:
        """Return the metrics of every process of the API. The label `replica` names the process."""
        return Response(exposition(await self._metrics.of_all_replicas()), media_type=CONTENT_TYPE_LATEST)

    async def _detect_item(self, entry: BatchEntry, trace: Trace, id_: str, start: float, *, draw: bool) -> BatchItem:
        try:
            if isinstance(entry.pair, Refused):
                raise entry.pair
            async with deadline(self._settings.deadline_s, start, trace):
                result = await self._detect(entry.pair, trace, id_, Timings(), draw=draw)
                return BatchItem(id=id_, custom_id=entry.custom_id, status=200, result=result)
        except Exception as error:
            refused = refusal(error) if isinstance(error, InputError) else as_refused(error, trace.id)
        body = error_body(refused, trace.id)
        return BatchItem(id=id_, custom_id=entry.custom_id, status=refused.status, error=body)

    async def _detect(self, pair: PairRequest, trace: Trace, id_: str, timings: Timings, *, draw: bool) -> Detection:
        """Detect one pair and record it in the request's log line, whatever the outcome is."""
        entry: dict[str, Any] = ({"id": id_} if id_ != trace.id else {}) | (
            {"uri": redacted(pair.uri)} if pair.uri else {}
        )
        trace.pairs.append(entry)
        try:
            with timings.of("total"):
                finding, image = await self._find(pair, trace, timings, draw)
        except (InputError, Refused) as error:
            entry["error"] = error.code
            raise
        except asyncio.CancelledError:
            entry["error"] = "cancelled"
            raise
        response = detection(id_, finding, timings, image)
        entry |= {"sha256": finding.image_sha256, "verdict": finding.verdict, "timings": response.timings}
        return response

    async def _find(self, pair: PairRequest, trace: Trace, timings: Timings, draw: bool) -> tuple[Finding, str | None]:
        """Return the finding of a pair and, if `draw`, the picture with its evidence as a data: URL."""
        # A fetched picture keeps its slot until its detection is done: a small request may name a large picture, and
        # the bytes in flight count request bodies only.
        slot: AbstractAsyncContextManager[None] = nullcontext() if pair.data is not None else self._fetch_slots
        async with slot:
            data = pair.data if pair.data is not None else await self._fetch(pair.uri or "", timings)
            # The time of a text longer than a batch says nothing about how busy the server is.
            if pair.passes <= self._settings.batch_size:
                trace.received_at = time.perf_counter()
            finding = await self._service.detect(data, pair.text, timings)
            if finding.error is not None:
                raise finding.error
            if not draw:
                return finding, None
            with timings.of("draw"):
                jpeg = await self._service.decoders.draw(data, finding)
            return finding, f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"

    async def _fetch(self, uri: str, timings: Timings) -> bytes:
        settings = self._settings
        limits = (settings.uri_prefixes, settings.max_image_bytes, settings.deadline_s)
        with timings.of("fetch"):
            run = asyncio.get_running_loop().run_in_executor
            return await run(self._fetch_threads, fetch_remote_image, uri, *limits)


async def _respond(to_refused: Any, request: Request, error: Exception) -> Response:
    return error_response(to_refused(error), trace_of(request).id)


def _refused_by_framework(error: HTTPException) -> Refused:
    """Return the refusal of a request that no route answers."""
    if error.status_code == 404:
        return Refused(404, "not_found", "there is no such route. /docs lists the routes; none ends with a slash.")
    if error.status_code == 405:
        methods = (error.headers or {}).get("Allow", "")
        if "GET" in methods and "HEAD" not in methods:
            methods = methods.replace("GET", "GET, HEAD")  # the middleware answers HEAD as it answers GET
        message = f"this route has other methods. Use {methods}."
        return Refused(405, "method_not_allowed", message, headers={"Allow": methods})
    return Refused(error.status_code, "bad_request", str(error.detail), headers=error.headers)


_HANDLERS: dict[Any, Any] = {
    Refused: functools.partial(_respond, lambda error: error),
    InputError: functools.partial(_respond, refusal),
    HTTPException: functools.partial(_respond, _refused_by_framework),
    RequestValidationError: functools.partial(_respond, lambda error: invalid_field(error.errors(), skip=1)),
}
"""Handlers by the exception that a route raises; each answers with the error envelope."""
