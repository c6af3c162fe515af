"""The OpenAPI document: FastAPI's own, with what FastAPI does not know: request bodies, and the key of a caller."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from serve.schemas import EXAMPLE_TEXT, BatchPair, BatchRequest, DetectRequest

_SCHEMAS = "#/components/schemas/"
_FORM = "DetectForm"
_SCHEME = "key"
_WITHOUT_KEY = ("/healthz", "/readyz")
_RETRIED = ("409", "429", "503", "504")
"""Statuses of requests that may be sent again later."""


def _header(description: str, kind: str = "integer") -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}}


_RATES = {
    "RateLimit-Limit": _header("Pairs that the key may send at once after a pause. Only with a key."),
    "RateLimit-Remaining": _header("Pairs that the key may send at once now. Only with a key."),
    "RateLimit-Reset": _header("Seconds until it may send `RateLimit-Limit` pairs at once. Only with a key."),
    "RateLimit-Policy": _header("Pairs, and the seconds in which it may send them, as `64;w=4`.", "string"),
}
_RETRY_AFTER = {"Retry-After": _header("Seconds after which the request may be sent again.")}


def body_of(model: type[BaseModel], *, form: bool) -> dict[str, Any]:
    """Return the description of a body that `RequestReader` reads: JSON of this model or, if `form`, a form.

    Each schema has a name, and none has alternatives within it: a generated client then has one class for each body.
    """
    content = {"application/json": {"schema": _ref(model)}}
    if form:
        content["multipart/form-data"] = {"schema": {"$ref": f"{_SCHEMAS}{_FORM}"}}
    return {"requestBody": {"required": True, "content": content}}


def complete(document: dict[str, Any], *, needs_key: bool) -> None:
    """Add the schemas of `body_of` and the security scheme to FastAPI's document.

    Args:
        document: The document, which is changed.
        needs_key: True if the server has keys. Otherwise a key is optional: the server answers its own machine.
    """
    components = document["components"]
    for model in (DetectRequest, BatchPair, BatchRequest):
        components["schemas"][model.__name__] = model.model_json_schema()
    # Each item is validated on its own, so that a malformed one does not affect the others.
    components["schemas"][BatchRequest.__name__]["properties"]["items"]["items"] = _ref(BatchPair)
    components["schemas"][_FORM] = {
        "title": _FORM,
        "description": "One pair as a form: the picture as a file, and its text.",
        "type": "object",
        "required": ["image", "text"],
        "additionalProperties": False,
        "properties": {
            "image": {"type": "string", "format": "binary", "description": "The encoded picture (JPEG, PNG, WebP, …)."},
            "text": {
                "type": "string",
                "description": "The text that goes with the picture, as a field or as a file. In UTF-8, or in the "
                "encoding that the part, the field `_charset_` or the form names.",
            },
        },
        "examples": [{"image": "@photo.jpg", "text": EXAMPLE_TEXT}],
    }
    components["schemas"] = dict(sorted(components["schemas"].items()))
    components["securitySchemes"] = {
        _SCHEME: {
            "type": "http",
            "scheme": "bearer",
            "description": "The key that the server's operator made with `asap serve --new-key NAME`.",
        }
    }
    for path, operations in document["paths"].items():
        if path not in _WITHOUT_KEY:
            for operation in operations.values():
                operation["security"] = [{_SCHEME: []}] if needs_key else [{_SCHEME: []}, {}]
                for status, response in operation["responses"].items():
                    response["headers"] = _RATES | (_RETRY_AFTER if status in _RETRIED else {})


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"{_SCHEMAS}{model.__name__}"}
