import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from asap.errors import FetchFailed, ImageTooLarge
from asap.storage.fetch import ByteRange, FetchSettings, fetch
from asap.storage.files import file_info, write_bytes
from asap.storage.location import Location
from asap.storage.s3 import s3_client
from tests.support.waiting import HANG_S

SETTINGS = FetchSettings(attempts=2, connect_timeout_s=HANG_S, read_timeout_s=HANG_S)
IMPATIENT = SETTINGS.model_copy(update={"read_timeout_s": 1})


def test_a_local_file_is_read_whole_or_in_part(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    found = fetch(str(tmp_path / "a"), 10, SETTINGS)
    assert (found.data, found.version, found.attempt) == (b"0123456789", None, 1)
    assert fetch(str(tmp_path / "a"), 10, SETTINGS, ByteRange(2, 3)).data == b"234"


def test_an_object_is_read_whole_or_in_part_and_has_a_version(bucket: str) -> None:
    location = Location(f"s3://{bucket}/a b+c%20é.jpg")
    write_bytes(location, b"0123456789")
    info = file_info(location)
    found = fetch(location.uri, 10, SETTINGS)
    assert found.data == b"0123456789"
    assert info
    assert found.version == info.version
    assert fetch(location.uri, 3, SETTINGS, ByteRange(2, 3)).data == b"234"


@pytest.mark.parametrize("store", ["local", "s3"])
def test_a_file_above_the_limit_is_not_read(store: str, tmp_path: Path, bucket: str) -> None:
    location = Location(str(tmp_path / "a")) if store == "local" else Location(f"s3://{bucket}/a")
    write_bytes(location, b"x" * 11)
    with pytest.raises(ImageTooLarge, match="11 bytes, the limit is 10"):
        fetch(location.uri, 10, SETTINGS)


def _failure(uri: str, settings: FetchSettings = SETTINGS) -> tuple[str, bool, int]:
    with pytest.raises(FetchFailed) as caught:
        fetch(uri, 100, settings)
    assert caught.value.detail
    return caught.value.code, caught.value.retryable, caught.value.attempt


def test_a_missing_file_or_object_is_not_found(tmp_path: Path, bucket: str) -> None:
    for uri in (str(tmp_path / "a"), f"s3://{bucket}/a", "s3://no-such-bucket-at-all/a"):
        assert _failure(uri) == ("not_found", False, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_denied(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "a").chmod(0)
    assert _failure(str(tmp_path / "a")) == ("access_denied", False, 1)


def test_a_file_that_is_not_regular_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for uri in (str(tmp_path / "pipe"), "/dev/zero", str(tmp_path)):
        assert _failure(uri) == ("not_found", False, 1)


def test_a_name_that_no_file_can_have_fails_its_own_row_only() -> None:
    assert _failure("/data/a\0b")[0] == "storage_error"
    assert _failure("/" + "x" * 5000)[0] == "storage_error"


def test_a_disk_that_recovers_is_read_at_the_second_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def read(path: Path, max_bytes: int, byte_range: ByteRange | None) -> bytes:
        tries.append(path)
        if len(tries) == 1:
            raise OSError(5, "Input/output error")
        return b"data"

    monkeypatch.setattr("asap.storage.fetch._read_file", read)
    found = fetch("/a", 10, SETTINGS)
    assert (found.data, found.attempt) == (b"data", 2)


class _Broken(http.server.BaseHTTPRequestHandler):
    """An S3 server that fails as the key says, as many times as `fails` says."""

    fails: ClassVar[dict[str, int]] = {}
    ended: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1].partition("?")[0]
        left = self.fails.get(name, 0)
        self.fails[name] = left - 1
        if left <= 0:
            self._answer(200, b"good")
        elif name.startswith("short"):
            self._answer(200, b"go", length=4)
        elif name.startswith("slow"):
            self.ended.wait()
        else:
            code = {"throttled": (503, "SlowDown"), "denied": (403, "AccessDenied"), "internal": (500, "InternalError")}
            status, text = code[name.partition("-")[0]]
            self._answer(status, f"<Error><Code>{text}</Code><Message>m</Message></Error>".encode())

    def _answer(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(body)))
        self.send_header("ETag", '"e"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def broken_s3(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    _Broken.ended.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    s3_client.cache_clear()
    yield
    _Broken.ended.set()
    server.shutdown()
    s3_client.cache_clear()


def test_a_range_beyond_the_end_of_a_file_is_not_an_empty_picture(tmp_path: Path, bucket: str) -> None:
    (tmp_path / "a.tar").write_bytes(b"x" * 600)
    write_bytes(Location(f"s3://{bucket}/a.tar"), b"x" * 600)
    for uri in (str(tmp_path / "a.tar"), f"s3://{bucket}/a.tar"):
        assert fetch(uri, 100, SETTINGS, ByteRange(599, 10)).data == b"x"
        with pytest.raises(
            FetchFailed, match=r"10 bytes from 600 begins beyond the end of .*a\.tar, which has \w+"
        ) as caught:
            fetch(uri, 100, SETTINGS, ByteRange(600, 10))
        assert (caught.value.code, caught.value.retryable) == ("not_found", False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("throttled-1", ("throttled", True, 2)),
        ("internal-1", ("storage_error", True, 2)),
        ("denied-1", ("access_denied", False, 1)),
        ("slow-1", ("timeout", True, 2)),
        ("short-1", ("storage_error", True, 2)),
    ],
)
def test_a_store_that_keeps_failing_gives_the_code_of_its_failure(
    broken_s3: None, name: str, expected: tuple[str, bool, int]
) -> None:
    _Broken.fails[name] = 99
    settings = IMPATIENT if name.startswith("slow") else SETTINGS
    assert _failure(f"s3://some-bucket/{name}", settings) == expected


@pytest.mark.parametrize("name", ["throttled-2", "internal-2", "short-2"])
def test_a_store_that_recovers_is_read_and_the_tries_are_counted(broken_s3: None, name: str) -> None:
    _Broken.fails[name] = 1
    found = fetch(f"s3://some-bucket/{name}", 10, SETTINGS)
    assert (found.data, found.attempt) == (b"good", 2)


def test_a_store_that_cannot_be_reached_is_a_storage_error(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3_client.cache_clear()
    try:
        assert _failure("s3://some-bucket/a") == ("storage_error", True, 2)
    finally:
        s3_client.cache_clear()
