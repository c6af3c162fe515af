"""An S3 server over HTTP that differs from S3 as other stores do: a proxy in front of the real one."""

from __future__ import annotations

import enum
import http.server
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.support.faulty_store import FaultyStore, ProxyHandler, running


class Quirk(enum.Enum):
    """A way in which a store differs."""

    NO_CONDITIONAL_PUT = enum.auto()
    """A PUT with If-None-Match is not implemented: 501."""
    CONDITIONS_IGNORED = enum.auto()
    """A PUT with If-None-Match is done whatever is there."""
    NOT_MODIFIED_FOR_FAILED = enum.auto()
    """A PUT whose condition fails is answered 304, and not 412."""
    NO_CHECKSUMS = enum.auto()
    """Headers and trailers with checksums are refused: 400."""
    DELETES_WANT_MD5 = enum.auto()
    """DeleteObjects without Content-MD5 is refused: 400."""
    DELETES_FAIL_BY_KEY = enum.auto()
    """DeleteObjects deletes nothing, and says so key by key in a 200."""
    COMPLETION_FAILS_ONCE = enum.auto()
    """The first CompleteMultipartUpload of each object is answered 500, and nothing is done."""
    COMPLETION_FAILS_IN_200 = enum.auto()
    """The first CompleteMultipartUpload of each object has an error in the body of a 200."""
    COMPLETION_LOSES_ANSWER = enum.auto()
    """The first CompleteMultipartUpload of each object succeeds and is answered 500."""
    CREATION_LOSES_ANSWER = enum.auto()
    """The first PUT with If-None-Match of each object succeeds and is answered 500."""
    NO_RANGES = enum.auto()
    """A GET with Range is answered 200 with the whole object."""
    NO_COPIES = enum.auto()
    """CopyObject is not implemented: 501."""
    NO_LISTING_V2 = enum.auto()
    """ListObjectsV2 is not implemented: 501."""
    NO_ETAGS = enum.auto()
    """Objects and listings have no ETag."""
    NO_LENGTHS = enum.auto()
    """A GET does not say how long its answer is."""
    NO_SIGNATURES = enum.auto()
    """Signed requests are refused: the keys are not known."""
    REQUESTER_PAYS = enum.auto()
    """Requests without x-amz-request-payer are refused: 403."""
    NO_LISTING = enum.auto()
    """The right s3:ListBucket is missing."""
    NO_READING = enum.auto()
    """The right s3:GetObject is missing."""
    NO_WRITING = enum.auto()
    """The right s3:PutObject is missing."""
    NO_DELETING = enum.auto()
    """The right s3:DeleteObject is missing."""


HARMLESS = frozenset(
    {
        Quirk.NO_CONDITIONAL_PUT, Quirk.NO_CHECKSUMS, Quirk.DELETES_WANT_MD5, Quirk.COMPLETION_FAILS_ONCE,
        Quirk.NO_RANGES, Quirk.NO_COPIES, Quirk.NO_LISTING_V2, Quirk.REQUESTER_PAYS,
    }
)  # fmt: skip
"""Quirks that a store can have at once, and under which everything works."""


@dataclass(frozen=True)
class _Seen:
    """The parts of a request that quirks look at."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    """Names are in lower case."""
    body: bytes
    is_first: bool
    """True for the first request of this method, path and kind."""

    @property
    def is_object(self) -> bool:
        return self.path.count("/") > 1 and not self.path.endswith("/")

    @property
    def completes(self) -> bool:
        return self.method == "POST" and "uploadId=" in self.query

    @property
    def deletes_many(self) -> bool:
        return self.method == "POST" and re.search(r"(^|&)delete(=|&|$)", self.query) is not None


_Answer = tuple[int, str]
"""Status and error code of a response."""


def _refusal(quirks: frozenset[Quirk], seen: _Seen) -> _Answer | None:
    """Return the answer to a request that is not passed on."""
    names = " ".join(seen.headers)
    is_conditional = seen.method == "PUT" and "if-none-match" in seen.headers
    lists = seen.method in ("GET", "HEAD") and not seen.is_object
    for quirk, applies, answer in (
        (Quirk.NO_COPIES, "x-amz-copy-source" in seen.headers, (501, "NotImplemented")),
        (Quirk.NO_LISTING_V2, "list-type=2" in seen.query, (501, "NotImplemented")),
        (Quirk.NO_CONDITIONAL_PUT, is_conditional, (501, "NotImplemented")),
        (
            Quirk.NO_CHECKSUMS,
            "checksum" in names
            or "x-amz-trailer" in names
            or "aws-chunked" in seen.headers.get("content-encoding", ""),
            (400, "InvalidArgument"),
        ),
        (
            Quirk.DELETES_WANT_MD5,
            seen.deletes_many and "content-md5" not in seen.headers,
            (400, "MissingContentMD5"),
        ),
        (Quirk.COMPLETION_FAILS_ONCE, seen.completes and seen.is_first, (500, "InternalError")),
        (Quirk.COMPLETION_FAILS_IN_200, seen.completes and seen.is_first, (200, "InternalError")),
        (Quirk.NO_SIGNATURES, "authorization" in seen.headers, (403, "InvalidAccessKeyId")),
        (Quirk.REQUESTER_PAYS, seen.headers.get("x-amz-request-payer") != "requester", (403, "AccessDenied")),
        (Quirk.NO_LISTING, lists, (403, "AccessDenied")),
        (Quirk.NO_READING, seen.method in ("GET", "HEAD") and seen.is_object, (403, "AccessDenied")),
        (Quirk.NO_WRITING, seen.method in ("PUT", "POST"), (403, "AccessDenied")),
        (Quirk.NO_DELETING, seen.method == "DELETE", (403, "AccessDenied")),
    ):
        if quirk in quirks and applies:
            return answer
    return None


class QuirkyStore(FaultyStore):
    """The proxy. Tests may replace its `quirks` at any time."""

    def __init__(self, target: str, quirks: frozenset[Quirk]) -> None:
        super().__init__(target)
        self.quirks = quirks
        self._seen: set[tuple[str, str, bool]] = set()

    def look(self, method: str, target: str, headers: dict[str, str], body: bytes) -> _Seen:
        """Return the parts of a request that quirks look at."""
        parts = urlsplit(target)
        kind = (method, parts.path, "if-none-match" in headers)
        with self._lock:
            is_first = kind not in self._seen
            self._seen.add(kind)
        return _Seen(method, parts.path, parts.query, headers, body, is_first)

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        store = self

        class Handler(_QuirkyHandler):
            faulty = store

        return Handler


class _QuirkyHandler(ProxyHandler):
    faulty: QuirkyStore

    def _act(self, body: bytes) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        quirks = self.faulty.quirks
        seen = self.faulty.look(self.command, self.path, headers, body)
        if (answer := _refusal(quirks, seen)) is not None:
            return self._refuse(*answer)
        if seen.deletes_many and Quirk.DELETES_FAIL_BY_KEY in quirks:
            keys = re.findall(rb"<Key>(.*?)</Key>", body)
            errors = b"".join(b"<Error><Key>%s</Key><Code>InternalError</Code></Error>" % key for key in keys)
            return self._answer(200, [], b"<DeleteResult>%s</DeleteResult>" % errors, None)
        if Quirk.NO_RANGES in quirks and seen.method == "GET":
            del self.headers["Range"]
        if Quirk.CONDITIONS_IGNORED in quirks:
            del self.headers["If-None-Match"]
        is_creation = seen.method == "PUT" and "if-none-match" in headers
        loses = (Quirk.COMPLETION_LOSES_ANSWER in quirks and seen.completes) or (
            Quirk.CREATION_LOSES_ANSWER in quirks and is_creation
        )
        status, fields, data = self._ask(body)
        if loses and seen.is_first:
            return self._refuse(500, "InternalError")
        if status == 412 and Quirk.NOT_MODIFIED_FOR_FAILED in quirks:
            return self._answer(304, [], b"", None)
        if Quirk.NO_ETAGS in quirks and seen.method in ("GET", "HEAD"):
            fields = [(name, value) for name, value in fields if name.lower() != "etag"]
            data = data if seen.is_object else re.sub(rb"<ETag>.*?</ETag>", b"", data)
        if Quirk.NO_LENGTHS in quirks and seen.method == "GET" and seen.is_object:
            return self._answer_in_chunks(status, fields, data)
        return self._answer(status, fields, data, None)

    def _answer_in_chunks(self, status: int, fields: list[tuple[str, str]], data: bytes) -> None:
        self.send_response(status)
        for name, value in [*fields, ("Transfer-Encoding", "chunked")]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if data else b"")
        self.wfile.write(b"0\r\n\r\n")


@contextmanager
def quirky_store(target: str, *quirks: Quirk) -> Iterator[QuirkyStore]:
    """Run a proxy with quirks in front of the S3 server at `target`."""
    with running(QuirkyStore(target, frozenset(quirks))) as store:
        yield store
