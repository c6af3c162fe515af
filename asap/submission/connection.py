"""Requests to the dashboard of a cluster: within a time limit, and with no password but the token that was found.

The library `requests` would put a password of ~/.netrc in the token's place, also at an address that it is redirected
to. Here it reads none and follows no redirection.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import requests

_CONNECT_S = 5.0


def request_limits(url: str, answer_s: float) -> dict[str, Any]:
    """Return the arguments of `requests` that limit the time, and the places that a request and its token go to."""
    host = urlsplit(url).hostname or ""
    is_here = host in ("localhost", "::1") or host.startswith("127.")
    # An `auth` of any kind keeps `requests` from reading ~/.netrc. This one leaves the headers as they are.
    limits = {"timeout": (_CONNECT_S, answer_s), "auth": lambda request: request, "allow_redirects": False}
    return limits | ({"proxies": {"no_proxy": host}} if is_here else {})


def failure_reason(error: requests.RequestException) -> str:
    """Return why a request failed, in words. The messages of `requests` hold objects and addresses of memory."""
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        reason = cause.args[0] if cause.args else None
        cause = getattr(reason, "reason", None) or (reason if isinstance(reason, BaseException) else cause.__context__)
    return type(error).__name__
