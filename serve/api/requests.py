"""Request bodies: a form or JSON is read, parsed and checked, and becomes a `PairRequest`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile

from asap.preprocessing.words import estimate_passes
from serve.errors import Refused
from serve.schemas import EXAMPLE_TEXT, BatchRequest, DetectRequest
from serve.settings import ServeSettings

_Model = TypeVar("_Model", bound=BaseModel)
_EXTRA_COMMAS = 64
"""Commas allowed in the JSON of a pair, beyond one for each character of its text."""


@dataclass(frozen=True)
class PairRequest:
    """A pair as it was sent, with the picture's bytes or its address."""

    data: bytes | None
    uri: str | None
    text: str
    passes: int
    """Estimated passes of the model that the text takes."""


class RequestReader:
    """Reads request bodies within the limits of the settings.

    Bodies are read by hand, not by FastAPI, so that a size is checked before anything is kept.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings

    async def read_pair(self, request: Request) -> PairRequest:
        """Read one pair from a form or from JSON. Raises `Refused`."""
        kind = _content_type(request)
        if kind == "application/json":
            # Decoding many megabytes of base64 takes a while, so it is done outside the event loop.
            return await asyncio.to_thread(self._parse_pair, await request.body())
        if kind == "multipart/form-data":
            return await self._read_form(request)
        message = f"the body is {kind or 'of no type'}. Send multipart/form-data or application/json."
        raise Refused(415, "unsupported_media_type", message)

    async def read_batch(self, request: Request) -> list[PairRequest | Refused]:
        """Read a batch of pairs from JSON; a malformed pair is replaced by its error. Raises `Refused`."""
        if _content_type(request) != "application/json":
            raise Refused(415, "unsupported_media_type", "send application/json")
        return await asyncio.to_thread(self._parse_batch, await request.body())

    def _parse_pair(self, body: bytes) -> PairRequest:
        return self._pair_of(_validated(DetectRequest, self._parse_json(body, 1)))

    def _parse_batch(self, body: bytes) -> list[PairRequest | Refused]:
        most = self._settings.max_batch_items
        items = _validated(BatchRequest, self._parse_json(body, most)).items
        if len(items) > most:
            raise Refused(413, "too_large", f"the batch has {len(items)} pairs, the limit is {most}", param="items")
        pairs: list[PairRequest | Refused] = []
        for item in items:
            try:
                pairs.append(self._pair_of(_validated(DetectRequest, item)))
            except Refused as error:
                pairs.append(error)
        return pairs

    def _parse_json(self, body: bytes, pairs: int) -> Any:
        # Many small values take fifty times as much memory as their JSON, so they are counted before parsing.
        most = pairs * (self._settings.max_text_chars + _EXTRA_COMMAS)
        if body.count(b",") > most:
            raise Refused(413, "too_large", f"the body has more than {most} commas, which is the limit")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, "json_invalid", f"the body is not JSON: {type(error).__name__}") from error

    async def _read_form(self, request: Request) -> PairRequest:
        # A field may be as large as the body: a text that is too long gets its own error in `_checked`.
        most = self._settings.max_body_bytes
        try:
            async with request.form(max_files=1, max_fields=4, max_part_size=most) as form:
                image, text = form.get("image"), form.get("text")
                if not isinstance(image, UploadFile):
                    raise Refused(422, "invalid_field", "image: send the picture as a file", param="image")
                if not isinstance(text, str):
                    raise Refused(422, "invalid_field", "text: send the text as a field of the form", param="text")
                return self._checked(await image.read(), None, text)
        except UnicodeError:
            message = "the charset of the form is unknown, or the form is not encoded in it"
            raise Refused(400, "bad_request", message) from None

    def _pair_of(self, request: DetectRequest) -> PairRequest:
        data = None
        if request.image is not None:
            try:  # a data: URL has a comma before its base64
                data = base64.b64decode(request.image.partition(",")[2] or request.image, validate=True)
            except (binascii.Error, ValueError) as error:
                raise Refused(400, "base64_invalid", f"image is not base64: {error}", param="image") from error
        return self._checked(data, request.uri, request.text)

    def _checked(self, data: bytes | None, uri: str | None, text: str) -> PairRequest:
        if len(text) > (most := self._settings.max_text_chars):
            message = f"the text has {len(text)} characters, the limit is {most}"
            raise Refused(413, "too_large", message, param="text")
        if any("\ud800" <= character <= "\udfff" for character in text):
            message = "the text is not valid Unicode: it contains a lone surrogate"
            raise Refused(400, "text_invalid", message, param="text")
        return PairRequest(data, uri, text, estimate_passes(text))


def openapi_of_body(model: type[BaseModel], *, form: bool) -> dict[str, Any]:
    """Return the OpenAPI description of a body that `RequestReader` reads, which FastAPI does not know."""
    content: dict[str, Any] = {"application/json": {"schema": model.model_json_schema()}}
    if form:
        content["multipart/form-data"] = {
            "schema": {
                "type": "object",
                "required": ["image", "text"],
                "properties": {
                    "image": {"type": "string", "format": "binary", "description": "The encoded picture."},
                    "text": {"type": "string", "description": "The text that goes with the picture."},
                },
            },
            "example": {"image": "@photo.jpg", "text": EXAMPLE_TEXT},
        }
    return {"requestBody": {"required": True, "content": content}}


def invalid_field(errors: Any, skip: int = 0) -> Refused:
    """Return a 422 that names the first invalid field, without repeating its value.

    Args:
        errors: Pydantic's list of errors.
        skip: Leading parts of the field's location that are left out of its name.
    """
    name = ".".join(str(part) for part in errors[0]["loc"][skip:]) or None
    message = errors[0]["msg"].removeprefix("Value error, ")
    return Refused(422, "invalid_field", f"{name}: {message}" if name else message, param=name)


def _validated(model: type[_Model], value: Any) -> _Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid_field(error.errors()) from None


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
