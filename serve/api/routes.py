"""The API: what may be asked, who may ask it, and what is answered. It knows no Ray, only a `Service`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import json
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from asap.errors import InputError
from asap.finding import Finding
from asap.preprocessing.words import estimate_passes
from serve.api.callers import check_is_local
from serve.api.capacity import Capacity, ConcurrencyLimit
from serve.api.keys import Keyring, Rates
from serve.api.metrics import Metrics, exposition
from serve.api.middleware import RequestMiddleware, Trace, as_refused, error_body, error_response
from serve.api.reference import reference_page
from serve.api.remote_images import fetch, redacted
from serve.errors import Refused, refusal
from serve.inference.service import Service, Timings
from serve.schemas import (
    EXAMPLE_TEXT,
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

_Model = TypeVar("_Model", bound=BaseModel)
_PAGE = Path(__file__).parent.parent / "page"
_FETCHES = 32
"""Pictures that are fetched, or were and are not judged yet: what a small request names may be large."""
_MORE_VALUES = 64
"""In the JSON of a pair, beyond one for each character of its text."""
_KNOWN_CODES = {404: "not_found", 405: "method_not_allowed", 400: "bad_request"}
_UNREADABLE_TEXT = "the text is not Unicode: it holds a lone surrogate"
_STATUSES = {
    400: "The picture or the text cannot be read", 401: "No key, or an unknown one", 403: "Not allowed",
    413: "Too large", 415: "Neither multipart/form-data nor application/json", 422: "A field is missing or wrong",
    429: "Too many requests; Retry-After says when to come back", 500: "The server failed",
    503: "Loading, or going down", 504: "Not done within the deadline",
}  # fmt: skip
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": what} for status, what in _STATUSES.items()
}
Evidence = Annotated[
    Literal["image"] | None, Query(description="With image, the answer has the picture with the box drawn.")
]


def _request_body(model: type[BaseModel], *, form: bool) -> dict[str, Any]:
    """The OpenAPI of a body that is read by hand, so that its size is known before anything is kept."""
    content: dict[str, Any] = {"application/json": {"schema": model.model_json_schema()}}
    if form:
        content["multipart/form-data"] = {
            "schema": {
                "type": "object",
                "required": ["image", "text"],
                "properties": {
                    "image": {"type": "string", "format": "binary", "description": "The encoded picture."},
                    "text": {"type": "string", "description": "The text that goes with it."},
                },
            },
            "example": {"image": "@photo.jpg", "text": EXAMPLE_TEXT},
        }
    return {"requestBody": {"required": True, "content": content}}


@dataclass(frozen=True)
class PairRequest:
    """A pair as it was sent."""

    data: bytes | None
    uri: str | None
    text: str
    passes: int
    """Of the model, about."""


def create_app(settings: ServeSettings, service: Service, keyring: Keyring, figures: Metrics | None = None) -> FastAPI:
    """The application around a service, which counts in `figures`. Without keys, it answers this machine only."""
    figures = figures or Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="ASAP", version="1", description="Finds manipulated image-text pairs: whether, how, and where.",
        docs_url=None, redoc_url=None, lifespan=lifespan,
    )  # fmt: skip
    app.include_router(_open_routes(app, service))
    app.include_router(DetectionRoutes(settings, service, keyring, figures).router)
    app.mount("/page", StaticFiles(directory=_PAGE), name="page")
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    admission = ConcurrencyLimit(2 * settings.batch_size, settings.max_in_flight, settings.wait_s)
    room = Capacity(settings, admission, several_keys=len(keyring.hashes) > 1)
    app.add_middleware(RequestMiddleware, room=room, in_flight=service.in_flight, figures=figures)
    if settings.cors_origins:  # around all the rest: a page must be able to read refusals too
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origins), allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"], expose_headers=["Retry-After", "X-Request-ID"],
        )  # fmt: skip
    return app


def _open_routes(app: FastAPI, service: Service) -> APIRouter:
    """What needs no key: the page, the reference, and whether the server lives."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html")

    @router.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(reference_page(app.openapi()))

    @router.get("/healthz", summary="Whether the server is alive")
    async def healthz() -> Health:
        return Health()

    @router.get("/readyz", summary="Whether it can judge a pair now", responses={503: _ERRORS[503]})
    async def readyz() -> Health:
        await service.check()
        return Health()

    return router


class DetectionRoutes:
    """The routes that judge pairs, or tell of it: they need a key where there are keys."""

    def __init__(self, settings: ServeSettings, service: Service, keyring: Keyring, figures: Metrics) -> None:
        self._settings = settings
        self._service = service
        self._keyring = keyring
        self._rates = Rates(settings.key_rate, settings.key_burst)
        self._figures = figures
        # Threads of their own: a store that is slow holds up those who name it, and nobody's JSON.
        self._fetching = ThreadPoolExecutor(_FETCHES, thread_name_prefix="fetch")
        self._fetched = asyncio.Semaphore(_FETCHES)
        self.router = APIRouter(dependencies=[Depends(self._identify)], responses=_ERRORS)
        post, get = self.router.post, self.router.get
        one, many = _request_body(DetectRequest, form=True), _request_body(BatchRequest, form=False)
        post("/v1/detect", summary="Judge one pair", openapi_extra=one)(self.detect)
        post("/v1/detect/batch", summary="Judge several pairs", openapi_extra=many)(self.detect_batch)
        get("/v1/models", summary="The models that answer here")(self.models)
        get("/metrics", summary="Figures for Prometheus", response_class=Response)(self.metrics)

    async def _identify(self, request: Request) -> None:
        """Let the holder of a key pass; where there are no keys, this machine's own programs and pages."""
        if not self._keyring:
            check_is_local(request, self._settings.cors_origins)
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        name = self._keyring.name_of(key.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            raise Refused(401, "unauthorized", "send a known key as 'Authorization: Bearer KEY'")
        _trace(request).key_name = name

    def _charge(self, request: Request, passes: int, *, paid: int = 0) -> None:
        if passes and (name := _trace(request).key_name) is not None:
            self._rates.take(name, passes, paid=paid)

    async def detect(self, request: Request, evidence: Evidence = None) -> Detection:
        """Send a picture and its text as a form or as JSON; the verdict, the types and the evidence come back."""
        self._charge(request, 1)
        timings = Timings()
        async with self._deadline(_now()):
            with timings.of("read"):
                asked = await self._read(request)
            self._charge(request, asked.passes - 1, paid=1)
            return await self._detect(asked, _trace(request), timings, draw=evidence is not None)

    async def detect_batch(self, request: Request, evidence: Evidence = None) -> BatchResponse:
        """Each pair has the status that it would have had alone; one that is wrong, or late, harms no other."""
        start = _now()
        self._charge(request, 1)  # the rest once it is known: to read and to parse costs too
        if _content_type(request) != "application/json":
            raise Refused(415, "unsupported_media_type", "send application/json")
        async with self._deadline(start):
            items = await asyncio.to_thread(self._parsed_batch, await request.body())
        self._charge(request, sum(1 if isinstance(item, Refused) else item.passes for item in items) - 1, paid=1)
        trace, draw = _trace(request), evidence is not None
        judged = (self._detect_item(item, trace, start, draw=draw) for item in items)
        return BatchResponse(items=await asyncio.gather(*judged))

    def _parsed_batch(self, body: bytes) -> list[PairRequest | Refused]:
        most = self._settings.max_batch_items
        items = _validated(BatchRequest, self._json(body, most)).items
        if len(items) > most:
            raise Refused(413, "too_large", f"the batch has {len(items)} pairs, the limit is {most}", param="items")
        return [self._asked_or_refused(item) for item in items]

    def _json(self, body: bytes, pairs: int) -> Any:
        """Many small values take fifty times the memory that they take here, so they are counted first."""
        most = pairs * (self._settings.max_text_chars + _MORE_VALUES)
        if body.count(b",") > most:
            raise Refused(413, "too_large", f"the body has more than {most} commas, which is the limit here")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, "json_invalid", f"the body is not JSON: {type(error).__name__}") from error

    @asynccontextmanager
    async def _deadline(self, start: float) -> AsyncIterator[None]:
        """Cancel what is not done in time; what the block awaits is cancelled with it."""
        seconds = self._settings.deadline_s
        try:
            async with asyncio.timeout_at(start + seconds):
                yield
        except TimeoutError:
            raise Refused(504, "deadline", f"not done within {seconds:g} s", retry_after_s=1) from None

    def _asked_or_refused(self, item: Any) -> PairRequest | Refused:
        try:
            return self._unpacked(_validated(DetectRequest, item))
        except Refused as error:
            return error

    async def _detect_item(self, item: PairRequest | Refused, trace: Trace, start: float, *, draw: bool) -> BatchItem:
        try:
            if isinstance(item, Refused):
                raise item
            async with self._deadline(start):
                return BatchItem(status=200, result=await self._detect(item, trace, Timings(), draw=draw))
        except Exception as error:
            refused = refusal(error) if isinstance(error, InputError) else as_refused(error, trace.id)
        return BatchItem(status=refused.status, error=error_body(refused, trace.id))

    async def models(self) -> ModelList:
        """One, with its thresholds."""
        return ModelList(models=[await self._service.about()])

    async def metrics(self) -> Response:
        """Of every process of the API; the label `replica` tells them apart."""
        return Response(exposition(await self._figures.everyones()), media_type=CONTENT_TYPE_LATEST)

    async def _read(self, request: Request) -> PairRequest:
        kind = _content_type(request)
        if kind == "application/json":
            # base64 of many megabytes takes a while: not in the event loop.
            return await asyncio.to_thread(self._parsed, await request.body())
        if kind == "multipart/form-data":
            return await self._read_form(request)
        message = f"the body is {kind or 'of no type'}; send multipart/form-data or application/json"
        raise Refused(415, "unsupported_media_type", message)

    def _parsed(self, body: bytes) -> PairRequest:
        return self._unpacked(_validated(DetectRequest, self._json(body, 1)))

    async def _read_form(self, request: Request) -> PairRequest:
        most = self._settings.max_body_bytes  # of a field too: what is too long for a text is told below
        try:
            async with request.form(max_files=1, max_fields=4, max_part_size=most) as form:
                image, text = form.get("image"), form.get("text")
                if not isinstance(image, UploadFile):
                    raise Refused(422, "invalid_field", "image: send the picture as a file", param="image")
                if not isinstance(text, str):
                    raise Refused(422, "invalid_field", "text: send the text as a field of the form", param="text")
                return self._asked(await image.read(), None, text)
        except UnicodeError:
            raise Refused(400, "bad_request", "the form's charset is not known, or not what it says") from None

    def _unpacked(self, asked: DetectRequest) -> PairRequest:
        data = None
        if asked.image is not None:
            try:
                data = base64.b64decode(asked.image.partition(",")[2] or asked.image, validate=True)
            except (binascii.Error, ValueError) as error:
                raise Refused(400, "base64_invalid", f"image is not base64: {error}", param="image") from error
        return self._asked(data, asked.uri, asked.text)

    def _asked(self, data: bytes | None, uri: str | None, text: str) -> PairRequest:
        if len(text) > (most := self._settings.max_text_chars):
            message = f"the text has {len(text)} characters, the limit is {most}"
            raise Refused(413, "too_large", message, param="text")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise Refused(400, "text_invalid", _UNREADABLE_TEXT, param="text")
        return PairRequest(data, uri, text, estimate_passes(text))

    async def _detect(self, asked: PairRequest, trace: Trace, timings: Timings, *, draw: bool) -> Detection:
        told: dict[str, Any] = {"uri": redacted(asked.uri)} if asked.uri else {}
        trace.pairs.append(told)
        try:
            with timings.of("total"):
                finding, image = await self._find(asked, trace, timings, draw)
        except (InputError, Refused) as error:
            told["error"] = error.code
            raise
        except asyncio.CancelledError:
            told["error"] = "cancelled"
            raise
        answer = detection(trace.id, finding, timings, image)
        told |= {"sha256": finding.image_sha256, "verdict": finding.verdict, "timings": answer.timings}
        return answer

    async def _find(self, asked: PairRequest, trace: Trace, timings: Timings, draw: bool) -> tuple[Finding, str | None]:
        if asked.data is not None:
            return await self._find_in(asked, asked.data, trace, timings, draw)
        async with self._fetched:
            told = self._settings
            given = (asked.uri or "", told.uri_prefixes, told.max_image_bytes, told.deadline_s)
            with timings.of("fetch"):
                data = await asyncio.get_running_loop().run_in_executor(self._fetching, fetch, *given)
            return await self._find_in(asked, data, trace, timings, draw)

    async def _find_in(
        self, asked: PairRequest, data: bytes, trace: Trace, timings: Timings, draw: bool
    ) -> tuple[Finding, str | None]:
        if asked.passes <= self._settings.batch_size:  # what is longer says nothing of how busy the server is
            trace.there_at = time.perf_counter()
        finding = await self._service.detect(data, asked.text, timings)
        if finding.error is not None:
            raise finding.error
        if not draw:
            return finding, None
        with timings.of("draw"):
            jpeg = await self._service.decoders.draw(data, finding)
        return finding, f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _now() -> float:
    return asyncio.get_running_loop().time()


def _trace(request: Request) -> Trace:
    trace: Trace = request.state.trace
    return trace


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _validated(kind: type[_Model], value: Any) -> _Model:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _wrong_field(error.errors()) from None


def _wrong_field(errors: Any, within: int = 0) -> Refused:
    """422 by the first field that is wrong, so many levels within; the value is not repeated."""
    name = ".".join(str(part) for part in errors[0]["loc"][within:]) or None
    message = errors[0]["msg"].removeprefix("Value error, ")
    return Refused(422, "invalid_field", f"{name}: {message}" if name else message, param=name)


async def _answer(told: Any, request: Request, error: Exception) -> Response:
    return error_response(told(error), _trace(request).id)


def _http_refusal(error: HTTPException) -> Refused:
    return Refused(error.status_code, _KNOWN_CODES.get(error.status_code, "refused"), str(error.detail))


_HANDLERS: dict[Any, Any] = {
    Refused: functools.partial(_answer, lambda error: error),
    InputError: functools.partial(_answer, refusal),
    HTTPException: functools.partial(_answer, _http_refusal),
    RequestValidationError: functools.partial(_answer, lambda error: _wrong_field(error.errors(), within=1)),
}
