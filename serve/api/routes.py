"""The HTTP API: the application and its routes. It calls a `Service` and knows nothing of Ray."""

from __future__ import annotations

import asyncio
import base64
import functools
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
from serve.api.callers import check_is_local
from serve.api.capacity import Capacity, ConcurrencyLimit
from serve.api.keys import Keyring, Rates
from serve.api.metrics import Metrics, exposition
from serve.api.middleware import CrossOrigin, RequestMiddleware, Trace, as_refused, error_body, error_response
from serve.api.openapi import body_of, complete
from serve.api.reference import reference_page
from serve.api.remote_images import fetch_remote_image, redacted
from serve.api.requests import PairRequest, RequestReader, invalid_field, known_query
from serve.errors import Refused, refusal
from serve.inference.service import Service, Timings
from serve.schemas import (
    BatchItem,
    BatchRequest,
    BatchResponse,
    Detection,
    DetectRequest,
    ErrorResponse,
    Health,
    ModelList,
    detection,
)
from serve.settings import ServeSettings

_PAGE = Path(__file__).parent.parent / "page"
_MAX_FETCHED = 32
"""Pictures that are being fetched, or were fetched and wait for their detection."""
_STATUSES = {
    400: "The picture or the text cannot be read", 401: "No key, or an unknown one", 403: "Not allowed",
    405: "The route has other methods", 408: "The body did not arrive within the deadline",
    413: "Too large, however often it is sent",
    415: "Neither multipart/form-data nor application/json, or compressed", 422: "A field is missing or wrong",
    429: "Too many requests; Retry-After says when to come back", 500: "The server failed",
    503: "Loading, or shutting down", 504: "Not done within the deadline",
}  # fmt: skip
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description} for status, description in _STATUSES.items()
}
_Evidence = Annotated[
    Literal["image"] | None,
    Query(description="If it is `image`, the response contains the picture with the box drawn on it."),
]


def create_app(settings: ServeSettings, service: Service, keyring: Keyring, metrics: Metrics | None = None) -> FastAPI:
    """Return the application around a service. Without keys it answers only this machine.

    Args:
        settings: Limits and addresses.
        service: Detects pairs. It is closed when the application ends.
        keyring: The keys of the callers.
        metrics: Counters of this process; new ones by default.
    """
    metrics = metrics or Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="ASAP", version="1", description="Finds manipulated image-text pairs: whether, how, and where.",
        docs_url=None, redoc_url=None, lifespan=lifespan,
        redirect_slashes=False,  # such a redirect would lead to the host that the caller's Host header names
    )  # fmt: skip
    app.include_router(_open_routes(app, service))
    app.include_router(DetectionRoutes(settings, service, keyring, metrics).router)
    app.mount("/page", StaticFiles(directory=_PAGE), name="page")
    complete(app.openapi(), needs_key=bool(keyring))
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    concurrency = ConcurrencyLimit(2 * settings.batch_size, settings.max_in_flight, settings.wait_s)
    capacity = Capacity(settings, concurrency, several_keys=len(keyring.hashes) > 1)
    app.add_middleware(RequestMiddleware, capacity=capacity, in_flight=service.in_flight, metrics=metrics)
    if settings.cors_origins:  # added last, so outermost
        app.add_middleware(
            CrossOrigin, allow_origins=list(settings.cors_origins), allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["Retry-After", "X-Request-ID"],
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

    @router.get("/readyz", summary="Check that the server can process a pair now", responses={503: _ERRORS[503]})
    async def readyz() -> Health:
        await service.check()
        return Health()

    return router


class DetectionRoutes:
    """The routes that detect pairs or show data. They need a key if the server has keys."""

    def __init__(self, settings: ServeSettings, service: Service, keyring: Keyring, metrics: Metrics) -> None:
        self._settings = settings
        self._service = service
        self._keyring = keyring
        self._reader = RequestReader(settings)
        self._rates = Rates(settings.key_rate, settings.key_burst)
        self._metrics = metrics
        # Fetching has its own threads: a slow store delays the callers who name it, not the parsing of JSON.
        self._fetch_threads = ThreadPoolExecutor(_MAX_FETCHED, thread_name_prefix="fetch")
        self._fetch_slots = asyncio.Semaphore(_MAX_FETCHED)
        self.router = APIRouter(dependencies=[Depends(self._identify)], responses=_ERRORS)
        post, get = self.router.post, self.router.get
        one, many = body_of(DetectRequest, form=True), body_of(BatchRequest, form=False)
        evidence, nothing = [Depends(known_query("evidence"))], [Depends(known_query())]
        post("/v1/detect", summary="Detect manipulation in one pair", openapi_extra=one, dependencies=evidence)(
            self.detect
        )
        post(
            "/v1/detect/batch", summary="Detect manipulation in several pairs", openapi_extra=many,
            dependencies=evidence,
        )(self.detect_batch)  # fmt: skip
        get("/v1/models", summary="List the models that answer here", dependencies=nothing)(self.models)
        get("/metrics", summary="Metrics for Prometheus", response_class=Response)(self.metrics)

    async def _identify(self, request: Request) -> None:
        """Admit the holder of a key or, if there are no keys, this machine's own programs and pages."""
        if not self._keyring:
            check_is_local(request, self._settings.cors_origins)
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        name = self._keyring.name_of(key.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            message = "the key is missing or unknown. Send a known key as 'Authorization: Bearer KEY'."
            raise Refused(401, "unauthorized", message)
        _trace(request).key_name = name

    async def detect(self, request: Request, evidence: _Evidence = None) -> Detection:
        """Send a picture and its text as a form or as JSON. The response has the verdict, types and evidence."""
        self._charge(request, 1)  # the first pass is charged before reading, the others once they are counted
        timings = Timings()
        async with self._deadline(_now(), _trace(request)):
            with timings.of("read"):
                pair = await self._reader.read_pair(request)
            self._charge(request, pair.passes - 1, paid=1)
            return await self._detect(pair, _trace(request), timings, draw=evidence is not None)

    async def detect_batch(self, request: Request, evidence: _Evidence = None) -> BatchResponse:
        """Send several pairs. Each gets the status that it would have alone; one that fails does not affect others."""
        start = _now()
        self._charge(request, 1)  # reading and parsing cost something too, even if no pair turns out to be valid
        async with self._deadline(start, _trace(request)):
            items = await self._reader.read_batch(request)
        self._charge(request, sum(1 if isinstance(item, Refused) else item.passes for item in items) - 1, paid=1)
        trace, draw = _trace(request), evidence is not None
        results = (self._detect_item(item, trace, start, draw=draw) for item in items)
        return BatchResponse(items=await asyncio.gather(*results))

    async def models(self) -> ModelList:
        """List the one model that answers here, with its thresholds."""
        return ModelList(models=[await self._service.about()])

    async def metrics(self) -> Response:
        """Return the metrics of every process of the API. The label `replica` names the process."""
        return Response(exposition(await self._metrics.of_all_replicas()), media_type=CONTENT_TYPE_LATEST)

    def _charge(self, request: Request, passes: int, *, paid: int = 0) -> None:
        if passes and (name := _trace(request).key_name) is not None:
            self._rates.take(name, passes, paid=paid)

    @asynccontextmanager
    async def _deadline(self, start: float, trace: Trace) -> AsyncIterator[None]:
        """Cancel the block, and everything it awaits, once the deadline has passed."""
        seconds = self._settings.deadline_s
        try:
            async with asyncio.timeout_at(start + seconds):
                yield
        except TimeoutError:
            if not trace.is_received():  # the sender was slow, not the server
                message = f"the body did not arrive within {seconds:g} s. Send a smaller one, or on a faster line."
                raise Refused(408, "body_late", message, headers={"Connection": "close"}) from None
            raise Refused(504, "deadline", f"not done within {seconds:g} s", retry_after_s=1) from None

    async def _detect_item(self, item: PairRequest | Refused, trace: Trace, start: float, *, draw: bool) -> BatchItem:
        try:
            if isinstance(item, Refused):
                raise item
            async with self._deadline(start, trace):
                return BatchItem(status=200, result=await self._detect(item, trace, Timings(), draw=draw))
        except Exception as error:
            refused = refusal(error) if isinstance(error, InputError) else as_refused(error, trace.id)
        return BatchItem(status=refused.status, error=error_body(refused, trace.id))

    async def _detect(self, pair: PairRequest, trace: Trace, timings: Timings, *, draw: bool) -> Detection:
        """Detect one pair and record it in the request's log line, whatever the outcome is."""
        entry: dict[str, Any] = {"uri": redacted(pair.uri)} if pair.uri else {}
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
        response = detection(trace.id, finding, timings, image)
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


def _now() -> float:
    return asyncio.get_running_loop().time()


def _trace(request: Request) -> Trace:
    trace: Trace = request.state.trace
    return trace


async def _respond(to_refused: Any, request: Request, error: Exception) -> Response:
    return error_response(to_refused(error), _trace(request).id)


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
