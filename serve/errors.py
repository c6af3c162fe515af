"""Errors that become responses, each with a status and a code.

AsapError
└── Refused                a request that is not served; has a status and a code
    ├── Overloaded         429, more requests wait than the queue may hold
    └── NotReady           503, the model is loading or the server is shutting down
"""

from __future__ import annotations

from typing import Any

from asap.errors import AsapError, InputError


class Refused(AsapError):
    """A request that is not served.

    Args:
        status: The HTTP status.
        code: The error code, for programs.
        message: The message, for people.
        param: The field that the error is about.
        retry_after_s: Seconds after which the request may be sent again.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

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


_STATUSES = {"too_large": 413}
"""Statuses of an `InputError` by its code. Any other code is a pair that cannot be read, 400."""
_FIELDS = {"text_missing": "text", "text_invalid": "text", "text_unreadable": "text"}
"""Fields that an `InputError` is about, by its code. Any other code is about the image."""


def refusal(error: InputError) -> Refused:
    """Return the refusal of a pair that has this error."""
    if error.code == "model_error":
        return Refused(500, error.code, "the model failed on this pair; it may work on others")
    return Refused(_STATUSES.get(error.code, 400), error.code, str(error), param=_FIELDS.get(error.code, "image"))
