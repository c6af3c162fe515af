import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest

from asap.errors import CheckpointError, ImageTooLarge
from serve.api import remote_images as remote
from serve.api.remote_images import check_allowed, fetch, local_model, redacted
from serve.errors import Refused
from tests.support.waiting import HANG_S

PREFIXES = ("s3://bucket/public/", "https://img.example/a/")


@pytest.fixture(autouse=True)
def own_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The client is kept by the process; the S3 server of tests is not, and may be slow."""
    monkeypatch.setattr(remote, "_TIMEOUT_S", HANG_S)
    remote._s3.cache_clear()
    yield
    remote._s3.cache_clear()


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
def test_an_address_outside_the_allowed_ones_is_refused(uri: str) -> None:
    with pytest.raises(Refused) as caught:
        check_allowed(uri, PREFIXES)
    assert (caught.value.status, caught.value.param) == (403, "uri")


def test_an_allowed_address_passes_and_one_that_is_none_is_told() -> None:
    check_allowed("s3://bucket/public/a.jpg", PREFIXES)
    check_allowed("https://img.example/a/b.jpg?X-Amz-Signature=secret", PREFIXES)
    with pytest.raises(Refused, match="cannot be read") as caught:
        check_allowed("https://[broken", PREFIXES)
    assert caught.value.status == 400


@pytest.mark.parametrize("uri", ["https://[broken", "https://me:pass@a\u2100b/", "https://img.example/a/\ud83d"])
def test_an_address_that_is_none_is_told_without_what_may_be_secret(uri: str) -> None:
    with pytest.raises(Refused) as caught:
        check_allowed(uri, (*PREFIXES, "https://"))
    assert (caught.value.status, caught.value.code) == (400, "uri_invalid")
    assert "pass" not in redacted(uri)


def test_signatures_and_credentials_are_not_told() -> None:
    assert redacted("https://me:pass@host/a.jpg?X-Amz-Signature=secret#x") == "https://host/a.jpg?…"
    with pytest.raises(Refused) as caught:
        check_allowed("https://me:pass@host/a.jpg?sig=secret", PREFIXES)
    assert not {"pass", "secret"} & set(str(caught.value).replace("?", " ").replace(":", " ").split())


def test_an_object_is_fetched_and_one_that_is_missing_or_too_large_is_refused(bucket: str) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key="a/b.jpg", Body=b"12345")
    prefixes = (f"s3://{bucket}/a/",)
    assert fetch(f"s3://{bucket}/a/b.jpg", prefixes, 5, HANG_S) == b"12345"
    with pytest.raises(ImageTooLarge):
        fetch(f"s3://{bucket}/a/b.jpg", prefixes, 4, HANG_S)
    with pytest.raises(Refused, match="cannot be read") as caught:
        fetch(f"s3://{bucket}/a/none.jpg", prefixes, 5, HANG_S)
    assert (caught.value.status, caught.value.code) == (400, "uri_unreadable")


class _Elsewhere(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/garbled":
            self.wfile.write(b"not HTTP\r\n\r\n")
            return
        self.send_response(302 if self.path == "/moved" else 200)
        self.send_header("Location", "/picture")
        self.end_headers()
        if self.path == "/drip":
            with suppress(OSError):  # until the other side is gone
                while not self.server.ended.wait(0.01):  # type: ignore[attr-defined]
                    self.wfile.write(b"1")
            return
        self.wfile.write(b"12345")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The address of a host; the settings allow https alone, what follows is the same."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere)
    server.ended = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.ended.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def test_a_redirect_is_not_followed(elsewhere: str) -> None:
    assert fetch(f"{elsewhere}/picture", (elsewhere,), 5, HANG_S) == b"12345"
    with pytest.raises(ImageTooLarge):
        fetch(f"{elsewhere}/picture", (elsewhere,), 4, HANG_S)
    with pytest.raises(Refused, match="cannot be read: 302"):
        fetch(f"{elsewhere}/moved", (elsewhere,), 5, HANG_S)


@pytest.mark.parametrize(("path", "told"), [("garbled", "BadStatusLine"), ("drip", "TimeoutError")])
def test_a_host_that_answers_nonsense_or_without_an_end_is_the_callers_matter(
    elsewhere: str, path: str, told: str
) -> None:
    with pytest.raises(Refused, match=f"cannot be read: {told}") as caught:
        fetch(f"{elsewhere}/{path}", (elsewhere,), 10**6, 0.2)
    assert (caught.value.status, caught.value.code) == (400, "uri_unreadable")


def test_a_model_folder_is_copied_from_s3(bucket: str, model_folder: Path) -> None:
    client = boto3.client("s3")
    for file in model_folder.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), bucket, f"models/small/{file.relative_to(model_folder)}")
    copied = Path(local_model(f"s3://{bucket}/models/small"))
    assert json.loads((copied / "config.json").read_text()) == json.loads((model_folder / "config.json").read_text())
    assert (copied / "tokenizer/tokenizer.json").exists()
    assert local_model("demo") == "demo"
    with pytest.raises(CheckpointError, match="is empty or does not exist"):
        local_model(f"s3://{bucket}/models/none")
    with pytest.raises(CheckpointError, match="cannot be read"):
        local_model("s3://no-such-bucket-for-me/models")


@pytest.mark.parametrize("key", ["../../escaped", "a/../../../escaped", "/absolute", "a//b", "a/\0"])
def test_a_model_folder_with_a_key_that_leaves_it_is_not_copied_at_all(
    key: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "outer" / "scratch"
    scratch.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    for name in ("!first", key):
        boto3.client("s3").put_object(Bucket=bucket, Key=f"models/small/{name}", Body=b"x")
    with pytest.raises(CheckpointError, match="name is no path below a folder") as caught:
        local_model(f"s3://{bucket}/models/small")
    assert repr(key) in str(caught.value)
    assert list((tmp_path / "outer").rglob("*")) == [scratch]
