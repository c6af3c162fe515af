import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest

from asap.errors import ImageTooLarge
from asap.storage.s3 import s3_client
from serve.api.remote_images import check_allowed, fetch_remote_image, redacted
from serve.errors import Refused
from tests.support.waiting import HANG_S

PREFIXES = ("s3://bucket/public/", "https://img.example/a/")


@pytest.fixture(autouse=True)
def own_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a new S3 client for each test, because the S3 server of the tests does not last. It may be slow too."""
    monkeypatch.setattr("serve.api.remote_images._TIMEOUT_S", HANG_S)
    s3_client.cache_clear()
    yield
    s3_client.cache_clear()


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/private/a.jpg",
        "s3://bucket/public/../private/a.jpg",
        "s3://bucket/public/%2e%2e/private/a.jpg",
        "s3://bucket/public/%252e%252e/private/a.jpg",
        "https://img.example.evil/a/b.jpg",
        "https://img.example@evil/a/b.jpg",
        "https://img.example/a/\\..\\b",
        "https://img.example/a/b\r\nHost: evil",
        "http://img.example/a/b.jpg",
        "file:///etc/passwd",
        "",
    ],
)
def test_an_address_that_is_not_allowed_is_refused(uri: str) -> None:
    with pytest.raises(Refused) as caught:
        check_allowed(uri, PREFIXES)
    assert (caught.value.status, caught.value.param) == (403, "uri")


def test_an_allowed_address_passes_and_an_invalid_one_is_refused() -> None:
    check_allowed("s3://bucket/public/a.jpg", PREFIXES)
    check_allowed("https://img.example/a/b.jpg?X-Amz-Signature=secret", PREFIXES)
    with pytest.raises(Refused, match="cannot be read") as caught:
        check_allowed("https://[broken", PREFIXES)
    assert caught.value.status == 400


@pytest.mark.parametrize("uri", ["https://[broken", "https://me:pass@a\u2100b/", "https://img.example/a/\ud83d"])
def test_an_invalid_address_is_refused_without_repeating_its_secrets(uri: str) -> None:
    with pytest.raises(Refused) as caught:
        check_allowed(uri, (*PREFIXES, "https://"))
    assert (caught.value.status, caught.value.code) == (400, "uri_invalid")
    assert "pass" not in redacted(uri)


def test_signatures_and_credentials_are_redacted() -> None:
    assert redacted("https://me:pass@host/a.jpg?X-Amz-Signature=secret#x") == "https://host/a.jpg?…"
    with pytest.raises(Refused) as caught:
        check_allowed("https://me:pass@host/a.jpg?sig=secret", PREFIXES)
    assert not {"pass", "secret"} & set(str(caught.value).replace("?", " ").replace(":", " ").split())


def test_a_long_address_is_cut_where_it_is_repeated() -> None:
    assert redacted("https://host/" + "a" * 2000) == "https://host/" + "a" * 287 + "…"


def test_an_object_is_fetched_and_one_that_is_missing_or_too_large_is_refused(bucket: str) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key="a/b.jpg", Body=b"12345")
    prefixes = (f"s3://{bucket}/a/",)
    assert fetch_remote_image(f"s3://{bucket}/a/b.jpg", prefixes, 5, HANG_S) == b"12345"
    with pytest.raises(ImageTooLarge):
        fetch_remote_image(f"s3://{bucket}/a/b.jpg", prefixes, 4, HANG_S)
    with pytest.raises(Refused, match="cannot be read") as caught:
        fetch_remote_image(f"s3://{bucket}/a/none.jpg", prefixes, 5, HANG_S)
    assert (caught.value.status, caught.value.code) == (400, "uri_unreadable")


class _Host(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/headers":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(str(self.headers).encode())
            return
        if self.path.startswith("/sent/"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path.encode())
            return
        if self.path == "/garbled":
            self.wfile.write(b"not HTTP\r\n\r\n")
            return
        self.send_response(302 if self.path == "/moved" else 200)
        self.send_header("Location", "/picture")
        self.end_headers()
        if self.path == "/drip":
            with suppress(OSError):  # until the client is gone
                while not self.server.ended.wait(0.01):  # type: ignore[attr-defined]
                    self.wfile.write(b"1")
            return
        self.wfile.write(b"12345")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host() -> Iterator[str]:
    """Serve a host over http, and yield its address. The settings allow only https; the rest is the same."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Host)
    server.ended = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.ended.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def test_a_redirect_is_not_followed(host: str) -> None:
    assert fetch_remote_image(f"{host}/picture", (host,), 5, HANG_S) == b"12345"
    with pytest.raises(ImageTooLarge):
        fetch_remote_image(f"{host}/picture", (host,), 4, HANG_S)
    with pytest.raises(Refused, match="cannot be read: 302"):
        fetch_remote_image(f"{host}/moved", (host,), 5, HANG_S)


@pytest.mark.parametrize("path", ["/sent/a%41%7E", "/sent/a?x=%2E%2E/../q&sig=ab%2Fcd%2B%7E", "/sent/./a"])
def test_an_address_is_sent_as_it_was_checked(host: str, path: str) -> None:
    assert fetch_remote_image(f"{host}{path}", (host,), 10**4, HANG_S).decode() == path


def test_a_host_gets_no_credentials_of_this_machine_and_sends_no_compressed_body(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    headers = fetch_remote_image(f"{host}/headers", (host,), 10**4, HANG_S).decode().lower()
    assert "accept-encoding: identity" in headers
    assert "authorization" not in headers


@pytest.mark.parametrize(("path", "reason"), [("garbled", "ConnectionError"), ("drip", "TimeoutError")])
def test_a_host_that_sends_no_http_or_an_endless_body_is_an_error_of_the_caller(
    host: str, path: str, reason: str
) -> None:
    with pytest.raises(Refused, match=f"cannot be read: {reason}") as caught:
        fetch_remote_image(f"{host}/{path}", (host,), 10**6, 0.2)
    assert (caught.value.status, caught.value.code) == (400, "uri_unreadable")
