"""Errors that become responses, each with a status and a code.

AsapError
└── Refused                a request that is not served; has a status and a code
    ├── Overloaded         429, more requests wait than the queue may hold
    └── NotReady           503, the model is loading or the server is shutting down
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from asap.errors import AsapError, InputError

ErrorCode = Literal[
    "bad_request", "base64_invalid", "body_late", "cluster_unavailable", "deadline", "decode_failed", "empty_file",
    "image_missing", "in_progress", "input_error", "internal", "invalid_field", "job_exists", "job_in_use",
    "job_not_allowed", "job_not_running", "job_refused", "jobs_not_configured", "json_invalid", "keys_required",
    "method_not_allowed", "model_error", "not_found", "not_ready", "overloaded", "rate_limited", "scope_missing",
    "store_unavailable", "text_invalid", "text_missing", "text_unreadable", "too_large", "too_many_jobs",
    "unauthorized", "unsupported_format", "unsupported_media_type", "uri_invalid", "uri_not_allowed",
    "uri_unreadable",
]  # fmt: skip
"""Every code of an error response."""
MEANINGS: Mapping[ErrorCode, str] = {
    "bad_request": "400: the request is malformed",
    "base64_invalid": "400: the picture is not base64",
    "decode_failed": "400: the picture is damaged",
    "empty_file": "400: the picture has no bytes",
    "image_missing": "400: there is no picture",
    "input_error": "400: the pair cannot be read, for another reason",
    "json_invalid": "400: the body is not JSON",
    "text_invalid": "400: the text has no words, or is not in the encoding that the request names",
    "text_missing": "400: the text is empty",
    "text_unreadable": "400: the model reads too little of the text",
    "unsupported_format": "400: the bytes are not a picture of a supported format",
    "uri_invalid": "400: the address cannot be parsed",
    "uri_unreadable": "400: the picture at the address cannot be fetched",
    "unauthorized": "401: the key is missing, unknown or expired",
    "keys_required": "403: a server without keys answers only its own machine",
    "scope_missing": "403: the key may not be used for this route",
    "uri_not_allowed": "403: pictures are not fetched from the address",
    "jobs_not_configured": "403: the server takes no jobs, or none of this key",
    "job_not_allowed": "403: a job of this key may not read, write or run what the request names",
    "not_found": "404: there is no such route, or no such job that the key may see",
    "method_not_allowed": "405: the route has other methods, which `Allow` lists",
    "in_progress": "409: a request with the same `Idempotency-Key` is in progress; Retry-After says when to try again",
    "job_exists": "409: the folder holds a job with other settings, or another's job",
    "job_in_use": "409: the job is under way",
    "job_not_running": "409: nothing works on the job that could be cancelled",
    "body_late": "408: the body did not arrive within the deadline",
    "too_large": "413: the body, the picture, the text or the batch exceeds a limit, however often it is sent",
    "unsupported_media_type": "415: the body or a field has a type or a compression that is not read",
    "invalid_field": "422: a field is missing, unknown, given twice or wrong",
    "job_refused": "422: the command refuses the job, with its sentence and exit code",
    "too_many_jobs": "429: too many jobs of the key are under way; Retry-After says when to try again",
    "overloaded": "429: the server is busy; Retry-After says when to try again",
    "rate_limited": "429: the key is used too much; Retry-After says when to try again",
    "internal": "500: the server failed",
    "model_error": "500: the model failed on this pair",
    "not_ready": "503: the model is loading, or the server is shutting down; Retry-After says when to try again",
    "cluster_unavailable": "503: the cluster takes and shows no jobs now; Retry-After says when to try again",
    "store_unavailable": "503: a folder of jobs cannot be read or written; Retry-After says when to try again",
    "deadline": "504: not done within the deadline",
}
"""The usual status of each code, and its meaning."""


class Refused(AsapError):
    """A request that is not served.

    Args:
        status: The HTTP status.
        code: The error code, for programs.
        message: The message, for people.
        param: The field that the error is about.
        retry_after_s: Seconds after which the request may be sent again.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        code: ErrorCode,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code: ErrorCode = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by attributes, because the constructors differ. Ray sends errors to the callers of a handle."""
        return _rebuild, (type(self), vars(self))


def _rebuild(kind: type[Refused], fields: dict[str, Any]) -> Refused:
    error = kind.__new__(kind, fields["message"])
    vars(error).update(fields)
    return error


class Overloaded(Refused):
    """More requests wait than the queue may hold. Nothing was computed."""

    def __init__(self) -> None:
        super().__init__(429, "overloaded", "too many requests are waiting. Try again in a second", retry_after_s=1)


class NotReady(Refused):
    """No pair can be processed now: the model is loading, or the server is shutting down."""

    def __init__(self, message: str) -> None:
        super().__init__(503, "not_ready", message, retry_after_s=2)


_CODES: dict[str, ErrorCode] = {code: code for code in get_args(ErrorCode)}
_STATUSES = {"too_large": 413}
"""Statuses of an `InputError` by its code. Any other code is a pair that cannot be read, 400."""
_FIELDS = {"text_missing": "text", "text_invalid": "text", "text_unreadable": "text"}
"""Fields that an `InputError` is about, by its code. Any other code is about the image."""


def refusal(error: InputError) -> Refused:
    """Return the refusal of a pair that has this error."""
    # A detector of a later version, which answers during an update, may know further codes.
    code = _CODES.get(error.code, "input_error")
    if code == "model_error":
        return Refused(500, code, "the model failed on this pair; it may work on others")
    return Refused(_STATUSES.get(code, 400), code, str(error), param=_FIELDS.get(code, "image"))
