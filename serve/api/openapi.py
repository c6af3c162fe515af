"""The OpenAPI document: FastAPI's own, with what FastAPI does not know: request bodies, and the key of a caller."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from serve.job_schemas import JobRequest
from serve.schemas import EXAMPLE_TEXT, BatchPair, BatchRequest, DetectRequest, ErrorResponse

_SCHEMAS = "#/components/schemas/"
_FORM = "DetectForm"
_SCHEME = "key"
_WITHOUT_KEY = ("/healthz", "/readyz")
_RETRIED = ("409", "429", "503", "504")
"""Statuses of requests that may be sent again later."""
_DETECTION = {
    "id": "6f1c2b9e4d7a4f0f9f0d3c5b8a7e6d21",
    "model_id": "asap-demo@0123456789ab",
    "policy_id": "0123456789ab",
    "verdict": "manipulated",
    "score": 0.97,
    "types": {
        "face_swap": {"score": 0.94, "flagged": True},
        "face_attribute": {"score": 0.03, "flagged": False},
        "text_swap": {"score": 0.02, "flagged": False},
        "text_attribute": {"score": 0.88, "flagged": True},
    },
    "evidence": {
        "box_px": {"x0": 96.0, "y0": 40.0, "x1": 160.0, "y1": 120.0},
        "box": {"x0": 0.375, "y0": 0.15625, "x1": 0.625, "y1": 0.46875},
        "words": [{"index": 1, "start": 2, "end": 9, "word": "smiling", "score": 0.91}],
        "note": "",
        "image": None,
    },
    "input": {
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "width": 256,
        "height": 256,
    },
    "text_read": 1.0,
    "familiarity": 0.41,
    "familiarity_image": 0.52,
    "familiarity_text": 0.37,
    "unfamiliar_parts": [],
    "familiarity_id": "0123456789ab",
    "limits": "asap-demo was made from drawings. Do not use it for photographs.",
    "warnings": [],
    "timings": {"read": 1.2, "decode": 3.4, "detect": 25.6, "total": 30.9},
}
_ERROR = {
    "code": "base64_invalid",
    "message": "the image is not base64. Encode the bytes of the picture in the standard or the URL-safe alphabet.",
    "param": "image",
    "request_id": "6f1c2b9e4d7a4f0f9f0d3c5b8a7e6d21",
}
ERROR_EXAMPLE = {"error": _ERROR}
_JOB_FOLDER = "s3://scans/desk/may"
_JOB = {
    "id": "0f1e2d3c4b5a69788796a5b4", "folder": _JOB_FOLDER, "key": "desk", "created": "2027-02-01T09:00:00Z",
    "state": "submitted", "counts": {}, "phase": None, "phase_counts": {}, "pairs_per_s": None, "left_s": None,
    "runs": 0, "heartbeat": None, "silent": False, "exit_code": None, "error": None, "note": None, "model_id": None,
    "policy_id": None, "settings": {"input": "s3://pictures/may.jsonl", "out": "s3://scans/desk", "job": "may"},
    "files": {
        "results": f"{_JOB_FOLDER}/results", "errors": f"{_JOB_FOLDER}/errors.jsonl",
        "flagged": f"{_JOB_FOLDER}/flagged.jsonl", "unfamiliar": f"{_JOB_FOLDER}/unfamiliar.jsonl",
        "summary": f"{_JOB_FOLDER}/summary.json", "report": f"{_JOB_FOLDER}/report/index.html",
    },
}  # fmt: skip
_RUNNING = {
    "state": "running", "counts": {"done": 1200, "total": 2400, "errors": 3, "flagged": 31, "unfamiliar": 8},
    "pairs_per_s": 20.0, "left_s": 60.0, "runs": 1, "heartbeat": "2027-02-01T09:01:20Z",
    "model_id": "asap-demo@0123456789ab", "policy_id": "0123456789ab",
}  # fmt: skip
_EXAMPLES: dict[str, dict[str, Any]] = {
    "detect": _DETECTION,
    "detect_batch": {
        "items": [
            {
                "id": f"{_DETECTION['id']}-0", "custom_id": "page-1", "status": 200, "error": None,
                "result": _DETECTION | {"id": f"{_DETECTION['id']}-0"},
            },
            {"id": f"{_DETECTION['id']}-1", "custom_id": None, "status": 400, "result": None, "error": _ERROR},
        ]
    },
    "models": {
        "models": [
            {
                "model_id": "asap-demo@0123456789ab", "policy_id": "0123456789ab", "image_size": 96,
                "thresholds": {"manipulated": 0.9, "review": 0.5, "word": 0.5, "unfamiliar": 0.005, "face_swap": 0.5},
                "calibrated": True, "familiarity_id": "0123456789ab", "limits": _DETECTION["limits"],
            }
        ]
    },
    "limits": {
        "image_formats": ["JPEG", "PNG", "WEBP"], "max_image_bytes": 16777216, "max_image_pixels": 64000000,
        "max_text_chars": 20000, "min_text_read": 0.5, "max_body_bytes": 22675157, "max_batch_items": 32,
        "max_batch_bytes": 67108864, "deadline_s": 30.0, "idempotency_s": 600.0, "uri_prefixes": ["s3://pictures/"],
        "max_uri_chars": 2048,
        "jobs": {
            "inputs": ["s3://pictures/"], "outputs": ["s3://scans/desk/"], "models": ["demo"], "max_under_way": 2,
            "max_bytes": 65536,
        },
        "key": {
            "name": "desk", "scopes": ["detect", "jobs"], "expires": "2027-03-01T00:00:00Z", "pairs_per_second": 20.0,
            "burst": 64, "remaining": 63, "reset_s": 0.05,
        },
    },
    "submit_job": _JOB,
    "list_jobs": {"jobs": [_JOB]},
    "show_job": _JOB | _RUNNING,
    "cancel_job": _JOB | _RUNNING,
    "healthz": {"status": "ok"},
    "readyz": {"status": "ok"},
}  # fmt: skip
"""A response of each operation that answers with JSON. The values are invented."""


_STATUSES = {
    400: "The picture or the text cannot be read", 401: "No key, or an unknown or expired one", 403: "Not allowed",
    404: "There is no such job",
    405: "The route has other methods", 408: "The body did not arrive within the deadline",
    409: "The same request is in progress, or the job does not allow it", 413: "Too large, however often it is sent",
    415: "Neither multipart/form-data nor application/json, or compressed", 422: "A field is missing or wrong",
    429: "Too many requests; Retry-After says when to come back", 500: "The server failed",
    503: "Loading, shutting down, or without its cluster or store", 504: "Not done within the deadline",
}  # fmt: skip
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description} for status, description in _STATUSES.items()
}


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
    for model in (DetectRequest, BatchPair, BatchRequest, JobRequest):
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
    for operations in document["paths"].values():
        for operation in operations.values():
            if example := _EXAMPLES.get(operation["operationId"]):
                success_of(operation)["content"]["application/json"]["example"] = example
    for path, operations in document["paths"].items():
        if path not in _WITHOUT_KEY:
            for operation in operations.values():
                operation["security"] = [{_SCHEME: []}] if needs_key else [{_SCHEME: []}, {}]
                for status, response in operation["responses"].items():
                    own = response.get("headers", {})
                    response["headers"] = own | _RATES | (_RETRY_AFTER if status in _RETRIED else {})


def success_of(operation: dict[str, Any]) -> dict[str, Any]:
    """Return the description of the response of an operation that succeeds."""
    responses: dict[str, dict[str, Any]] = operation["responses"]
    return responses[min(responses)]


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"{_SCHEMAS}{model.__name__}"}
