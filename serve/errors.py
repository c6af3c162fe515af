"""What the API answers when it does not answer with a finding: one shape, one status each.

AsapError
└── Refused                a request that is not served; has a status and a code
    ├── Overloaded         429, more is waiting than the queue may hold
    └── NotReady           503, the model is loading or the server is going down
"""

from __future__ import annotations

from typing import Any

from asap.errors import AsapError, InputError


class Refused(AsapError):
    """A request that is not served. `param` names the field it is about; `retry_after_s` says when to come back."""

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
        """Ray carries it to whoever called a handle."""
        return _refused_again, (type(self), vars(self))


def _refused_again(kind: type[Refused], told: dict[str, Any]) -> Refused:
    error = kind.__new__(kind, told["message"])
    vars(error).update(told)
    return error


class Overloaded(Refused):
    """More is waiting than the queue may hold; nothing was computed."""

    def __init__(self) -> None:
        super().__init__(429, "overloaded", "too many requests are waiting; try again in a second", retry_after_s=1)


class NotReady(Refused):
    """Nothing can be judged now: the model is loading, or the server is going down."""

    def __init__(self, message: str) -> None:
        super().__init__(503, "not_ready", message, retry_after_s=2)


_STATUSES = {"too_large": 413}
"""Of an `InputError` by its code; every other one is a pair that cannot be read, 400."""
_FIELDS = {"text_missing": "text", "text_invalid": "text"}


def refusal(error: InputError) -> Refused:
    """The answer to a pair that cannot be judged."""
    if error.code == "model_error":
        return Refused(500, error.code, "the model could not judge this pair; another may be fine")
    return Refused(_STATUSES.get(error.code, 400), error.code, str(error), param=_FIELDS.get(error.code, "image"))
