"""Request bodies: a form or JSON is read, parsed and checked, and becomes a `PairRequest`."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from asap.preprocessing.words import estimate_passes
from serve.api.forms import max_bytes_of, read_form
from serve.errors import Refused
from serve.job_schemas import JobRequest
from serve.schemas import MAX_CUSTOM_ID, BatchPair, BatchRequest, DetectRequest
from serve.settings import ServeSettings

_Model = TypeVar("_Model", bound=BaseModel)
_EXTRA_COMMAS = 64
"""Commas allowed in the JSON of a pair, beyond one for each character of its text."""
_DATA_URL = "data:"
_URL_SAFE_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_WHITE_SPACE = b" \t\r\n"
_SHOWN_CHARS = 40
"""Characters that are repeated of a name from a request."""


@dataclass(frozen=True)
class PairRequest:
    """A pair as it was sent, with the picture's bytes or its address."""

    data: bytes | None
    uri: str | None
    text: str
    passes: int
    """Estimated passes of the model that the text takes."""

    def fingerprint(self) -> bytes:
        """Return a hash of the pair, however it was sent."""
        digest = hashlib.sha256(json.dumps([self.uri, self.text]).encode())
        digest.update(self.data or b"")
        return digest.digest()


@dataclass(frozen=True)
class BatchEntry:
    """A pair of a batch or, if it is malformed, its error; and the name that its caller gave it."""

    custom_id: str | None
    pair: PairRequest | Refused


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
            # A text is decoded in the event loop, so one that is too long is refused before.
            most = {
                "image": self._settings.max_image_bytes,
                "text": max_bytes_of(self._settings.max_text_chars),
            }
            form = await read_form(request, ("image", "text"), most)
            return self._checked(form.data("image"), None, form.text("text"))
        message = f"the body is {kind or 'of no type'}. Send multipart/form-data or application/json."
        raise Refused(415, "unsupported_media_type", message)

    async def read_batch(self, request: Request) -> list[BatchEntry]:
        """Read a batch of pairs from JSON; a malformed pair is replaced by its error. Raises `Refused`."""
        if _content_type(request) != "application/json":
            raise Refused(415, "unsupported_media_type", "send application/json")
        return await asyncio.to_thread(self._parse_batch, await request.body())

    async def read_job(self, request: Request) -> JobRequest:
        """Read a request for a job from JSON. Raises `Refused`."""
        if _content_type(request) != "application/json":
            raise Refused(415, "unsupported_media_type", "send application/json")
        return _validated(JobRequest, self._parse_json(await request.body(), 1))

    def _parse_pair(self, body: bytes) -> PairRequest:
        return self._pair_of(_validated(DetectRequest, self._parse_json(body, 1)))

    def _parse_batch(self, body: bytes) -> list[BatchEntry]:
        most = self._settings.max_batch_items
        items = _validated(BatchRequest, self._parse_json(body, most)).items
        if len(items) > most:
            raise Refused(413, "too_large", f"the batch has {len(items)} pairs, the limit is {most}", param="items")
        entries: list[BatchEntry] = []
        seen: set[str | None] = set()
        for item in items:
            custom_id = _custom_id_of(item)
            try:
                pair = _validated(BatchPair, item)
                if custom_id in seen:
                    message = "custom_id: another pair of the batch has the same"
                    raise Refused(422, "invalid_field", message, param="custom_id")
                entries.append(BatchEntry(custom_id, self._pair_of(pair)))
            except Refused as error:
                entries.append(BatchEntry(custom_id, error))
            if custom_id is not None:
                seen.add(custom_id)
        return entries

    def _parse_json(self, body: bytes, pairs: int) -> Any:
        # Many small values take fifty times as much memory as their JSON, so they are counted before parsing.
        most = pairs * (self._settings.max_text_chars + _EXTRA_COMMAS)
        if body.count(b",") > most:
            raise Refused(413, "too_large", f"the body has more than {most} commas, which is the limit")
        try:
            return json.loads(body, object_pairs_hook=_JsonObject)
        except json.JSONDecodeError as error:
            reason = f"{error.msg} in line {error.lineno}, column {error.colno}"
        except UnicodeDecodeError:
            reason = "it is not in UTF-8"
        except RecursionError:
            reason = "it is nested too deeply"
        except ValueError:  # Python's limit of digits
            reason = "a number has too many digits"
        raise Refused(400, "json_invalid", f"the body cannot be read as JSON: {reason}")

    def _pair_of(self, request: DetectRequest) -> PairRequest:
        data = None if request.image is None else _decode_base64(request.image)
        return self._checked(data, request.uri, request.text)

    def _checked(self, data: bytes | None, uri: str | None, text: str) -> PairRequest:
        if len(text) > (most := self._settings.max_text_chars):
            message = f"the text has {len(text)} characters, the limit is {most}"
            raise Refused(413, "too_large", message, param="text")
        if _has_lone_surrogate(text):
            message = "the text is not valid Unicode: it contains a lone surrogate"
            raise Refused(400, "text_invalid", message, param="text")
        return PairRequest(data, uri, text, estimate_passes(text))


class _JsonObject(dict[str, Any]):
    """An object of JSON that remembers a key which it has twice. `json` alone keeps the last value without a word."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.doubled = _first_doubled(name for name, _ in pairs)


def _first_doubled(names: Iterable[str]) -> str | None:
    """Return the first name that occurs a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _check_not_doubled(name: str | None) -> None:
    if name is not None:
        shown = name[:_SHOWN_CHARS]
        raise Refused(422, "invalid_field", f"{shown}: the field is given twice", param=shown)


def _custom_id_of(item: Any) -> str | None:
    """Return the name that a caller gave a pair, also one that is malformed; None if the name itself is."""
    name = item.get("custom_id") if isinstance(item, dict) else None
    is_valid = isinstance(name, str) and 0 < len(name) <= MAX_CUSTOM_ID and not _has_lone_surrogate(name)
    return name if is_valid else None


def _has_lone_surrogate(text: str) -> bool:
    """Return True if a text has half of a surrogate pair, which JSON can write and UTF-8 cannot."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _decode_base64(encoded: str) -> bytes:
    """Decode base64 of the standard or the URL-safe alphabet, with or without padding, line breaks and data: URL."""
    if encoded[: len(_DATA_URL)].lower() == _DATA_URL:
        kind, comma, encoded = encoded.partition(",")
        if not comma or not kind.lower().endswith(";base64"):
            raise Refused(400, "base64_invalid", "the data: URL of the image is not in base64", param="image")
    try:
        plain = encoded.encode("ascii").translate(_URL_SAFE_TO_STANDARD, _WHITE_SPACE)
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except ValueError:
        message = "the image is not base64. Encode the bytes of the picture in the standard or the URL-safe alphabet."
        raise Refused(400, "base64_invalid", message, param="image") from None


def known_query(*names: str, repeated: Collection[str] = ()) -> Callable[[Request], Awaitable[None]]:
    """Return a dependency that refuses a query with another field, or with a field given twice (422).

    Args:
        names: The fields that a query may have.
        repeated: Those that may be given several times.
    """

    async def check(request: Request) -> None:
        sent = [name for name, _ in request.query_params.multi_items()]
        if unknown := [name[:_SHOWN_CHARS] for name in sent if name not in names]:
            message = f"{unknown[0]}: the query may not have this field"
            raise Refused(422, "invalid_field", message, param=unknown[0])
        _check_not_doubled(_first_doubled(name for name in sent if name not in repeated))

    return check


def invalid_field(errors: Any, skip: int = 0) -> Refused:
    """Return a 422 that names the first invalid field, without repeating its value or the whole of a long name.

    Args:
        errors: Pydantic's list of errors.
        skip: Leading parts of the field's location that are left out of its name.
    """
    name = ".".join(str(part)[:_SHOWN_CHARS] for part in errors[0]["loc"][skip:]) or None
    message = errors[0]["msg"].removeprefix("Value error, ")
    return Refused(422, "invalid_field", f"{name}: {message}" if name else message, param=name)


def _validated(model: type[_Model], value: Any) -> _Model:
    if isinstance(value, _JsonObject):
        _check_not_doubled(value.doubled)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid_field(error.errors()) from None


def _content_type(request: Request) -> str:
    """Return the media type of the body. Raises `Refused` (415) for a body that is compressed."""
    coding = ", ".join(request.headers.getlist("content-encoding")).strip().lower()
    if coding not in ("", "identity"):
        message = f"the body is compressed ({coding[:_SHOWN_CHARS]}). Send it as it is."
        raise Refused(415, "unsupported_media_type", message, headers={"Accept-Encoding": "identity"})
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
