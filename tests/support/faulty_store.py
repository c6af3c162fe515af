"""An S3 server over HTTP that fails as a test says: a proxy in front of the real one."""

from __future__ import annotations

import http.client
import http.server
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """A request, as a rule sees it."""

    method: str
    path: str
    """/bucket/key, without the query."""
    query: str
    access_key: str
    """The access key that signed the request."""
    count: int
    """How many requests of this method and path came, this one included."""


@dataclass(frozen=True)
class Fault:
    """A way in which a request fails."""

    status: int = 0
    """Status of an error response; 0 for another fault."""
    code: str = "InternalError"
    """The error code of S3 in that response."""
    keep: int | None = None
    """Bytes of the body that are sent before the connection is closed. The headers announce the whole body."""
    reset: bool = False
    """The connection is reset instead of a response."""
    stall: bool = False
    """Nothing is sent until the store is stopped."""


Rule = Callable[[Request], Fault | None]
"""Returns the fault of a request; None lets it pass."""


class FaultyStore:
    """The proxy. `rule` decides about each request; tests may replace it at any time."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.rule: Rule = lambda request: None
        self.requests: list[Request] = []
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {}
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def judge(self, method: str, target: str, authorization: str) -> Fault | None:
        """Note a request and return its fault."""
        parts = urlsplit(target)
        path = unquote(parts.path)
        signed = re.search(r"Credential=([^/]+)/", authorization)
        with self._lock:
            count = self._counts[method, path] = self._counts.get((method, path), 0) + 1
            request = Request(method, path, parts.query, signed[1] if signed else "", count)
            self.requests.append(request)
        return self.rule(request)

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        store = self

        class Handler(ProxyHandler):
            faulty = store

        return Handler


class ProxyHandler(http.server.BaseHTTPRequestHandler):
    """Passes requests on, but for those that the rule of its store lets fail."""

    protocol_version = "HTTP/1.1"
    faulty: FaultyStore

    def _serve(self) -> None:
        body = self._body()
        fault = self.faulty.judge(self.command, self.path, self.headers.get("Authorization", ""))
        if fault is None:
            self._act(body)
        elif fault.status:
            self._refuse(fault.status, fault.code)
        elif fault.keep is not None:
            self._pass_on(body, fault.keep)
        else:
            self.close_connection = True
            if fault.stall:
                self.faulty.ended.wait()
            if fault.reset:  # closing with a linger of zero sends a reset
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    def _act(self, body: bytes) -> None:
        """Do as the request says."""
        self._pass_on(body, None)

    def _refuse(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>made to fail</Message></Error>".encode()
        self._answer(status, [("Content-Type", "application/xml")], text, None)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return body

    def _pass_on(self, body: bytes, keep: int | None) -> None:
        self._answer(*self._ask(body), keep)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return the status, the headers and the body of the real store's response."""
        target = self.faulty.target
        connection = http.client.HTTPConnection(str(target.hostname), target.port)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_A_HOP}
        headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        data = response.read()
        fields = [(name, value) for name, value in response.getheaders() if name.lower() not in _OF_A_HOP]
        length = response.getheader("Content-Length")
        if self.command == "HEAD" and length is not None:
            fields.append(("Content-Length", length))
        connection.close()
        return response.status, fields, data

    def _answer(self, status: int, fields: list[tuple[str, str]], data: bytes, keep: int | None) -> None:
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:keep])
        if keep is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


_OF_A_HOP = {"connection", "content-length", "expect", "host", "server", "date", "transfer-encoding"}


Store = TypeVar("Store", bound=FaultyStore)


@contextmanager
def running(store: Store) -> Iterator[Store]:
    """Serve the requests to a proxy until the block ends."""
    threading.Thread(target=store.server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield store
    finally:
        store.ended.set()
        store.server.shutdown()
        store.server.server_close()


@contextmanager
def faulty_store(target: str) -> Iterator[FaultyStore]:
    """Run a proxy in front of the S3 server at `target`."""
    with running(FaultyStore(target)) as store:
        yield store
