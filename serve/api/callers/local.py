"""Callers of a server without keys: programs of its own machine, its own page, and the pages of `cors_origins`.

The address of a connection alone does not show who calls. A proxy on this machine connects from it for callers
elsewhere, and a browser does so for any web page that it shows. A page may also point a name of its own at this
machine (DNS rebinding).
"""

from __future__ import annotations

import re

from starlette.requests import Request

from serve.errors import Refused
from serve.settings import is_loopback

_ADDED_BY_PROXIES = re.compile(
    r"""
      forward                                   # Forwarded, X-Forwarded-*, X-Original-Forwarded-For
    | ^(?:via|cdn-loop)$
    | (?:^|-|client|socket)ip(?:v[46])?$        # X-Real-IP, True-Client-IP, CF-Connecting-IPv6, X-Azure-ClientIP
    | -addr(?:ess)?$                            # X-Remote-Addr, X-Envoy-External-Address, CloudFront-Viewer-Address
    | ^(?:cf|cloudfront|fastly|fly|tailscale)-
    | ^x-(?:amz-cf|appengine|arr|azure|envoy|original|vercel)-
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""Names of headers that proxies add about a caller. There is no standard list, so the usual forms are matched."""
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(?::\d+)?", re.IGNORECASE | re.ASCII)
_OTHER_SITES = ("cross-site", "same-site")
"""Values of `Sec-Fetch-Site` for a page of another site. Another port of this machine is `same-site`."""


def check_is_local(request: Request, cors_origins: tuple[str, ...]) -> None:
    """Raise `Refused` (403) for a request of another machine, of a proxy, or of another site's page.

    Only the headers are examined, so the body of such a request is never read.
    """
    client = request.client.host if request.client else ""
    # Ray starts uvicorn with `proxy_headers`: for a local connection the address is the one that X-Forwarded-For gives.
    # It proves nothing by itself. uvicorn keeps the header, which is refused next.
    if not is_loopback(client):
        raise _refused("this request comes from another machine")
    for name in request.headers:
        if _ADDED_BY_PROXIES.search(name):  # its value proves nothing: a caller behind the proxy may have chosen it
            raise _refused(f"this request was forwarded, it has the header {name}")
    host = _host(request)
    if host is None:
        raise _refused("the Host header of this request names another machine, or none")

    own_origin = f"{request.scope['scheme']}://{host}"
    origins = request.headers.getlist("origin")
    is_foreign = any(origin != own_origin and origin not in cors_origins for origin in origins)
    # A browser sends no Origin with a plain GET, such as that of a picture on a page.
    if is_foreign or (not origins and request.headers.get("sec-fetch-site") in _OTHER_SITES):
        raise _refused("this request comes from another site's page, which cors_origins does not name")


def _host(request: Request) -> str | None:
    """Return the request's host and port as a browser writes them, or None if there is not one local name.

    The header is read here because Starlette replaces a malformed one by the server's own name.
    """
    hosts = request.headers.getlist("host")
    match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    return match[0].lower() if match and is_loopback(match[1].lower()) else None


def _refused(reason: str) -> Refused:
    return Refused(403, "keys_required", f"without keys this server answers only its own machine: {reason}")
