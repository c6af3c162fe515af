"""Notifications, with real processes and a real HTTP server."""

import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from asap.errors import ConfigError
from jobs.notify import TOKEN_VARIABLE, Notifier
from jobs.settings import WatchSettings
from tests.support.waiting import HANG_S, wait_until

DOCUMENT = {"job": "news", "state": "completed", "counts": {"done": 4}}
LONG_S = 60.0
"""Seconds for a delivery that succeeds long before."""


@dataclass
class Receiver:
    """An HTTP server that answers with the statuses in turn, and with the last one from then on."""

    statuses: list[int]
    location: str = ""
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    address: str = ""


@contextmanager
def serving(receiver: Receiver) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.requests.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            number = min(len(receiver.requests), len(receiver.statuses)) - 1
            self.send_response(receiver.statuses[number])
            self.send_header("Location", receiver.location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.address = f"http://127.0.0.1:{server.server_port}/services/secret-path"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield receiver
        server.shutdown()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with serving(Receiver([200])) as served:
        yield served


def _notify(*targets: str, for_s: float = LONG_S) -> float:
    """Deliver the document; return the seconds that it took."""
    notifier, started = Notifier(targets, for_s), time.monotonic()
    notifier.send(DOCUMENT)
    notifier.wait()
    return time.monotonic() - started


def _python(code: str, *arguments: object) -> str:
    return shlex.join([sys.executable, "-c", code, *map(str, arguments)])


def test_an_address_gets_the_document_as_json(receiver: Receiver) -> None:
    _notify(receiver.address)
    [(headers, body)] = receiver.requests
    assert json.loads(body) == DOCUMENT
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers


def test_the_token_of_the_environment_is_sent_as_a_bearer(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "s3cret")
    _notify(receiver.address)
    assert receiver.requests[0][0]["Authorization"] == "Bearer s3cret"


def test_a_password_of_the_netrc_file_is_not_sent(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    _notify(receiver.address)
    assert "Authorization" not in receiver.requests[0][0]


def test_a_failing_server_is_tried_again_until_it_answers(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.statuses = [503, 429, 204]
    _notify(receiver.address)
    assert len(receiver.requests) == 3
    assert not caplog.records


def test_a_refusal_is_a_warning_that_names_the_host_alone(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.statuses = [404]
    _notify(receiver.address)
    assert len(receiver.requests) == 1
    assert "127.0.0.1" in caplog.text
    assert "status 404" in caplog.text
    assert "secret-path" not in caplog.text


def test_a_redirect_is_not_followed(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    with serving(Receiver([200])) as other:
        receiver.statuses, receiver.location = [307], other.address
        _notify(receiver.address)
        assert not other.requests
    assert "status 307, a redirect, which is not followed" in caplog.text


def test_a_server_that_is_down_holds_nothing_up_beyond_the_bound(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/secret-path"
        assert _notify(address, for_s=1) < HANG_S
    assert "ConnectionError" in caplog.text
    assert "secret-path" not in caplog.text


def test_a_server_that_never_answers_holds_nothing_up_beyond_the_bound(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert _notify(f"http://127.0.0.1:{silent.getsockname()[1]}/", for_s=0.5) < HANG_S
    assert "127.0.0.1" in caplog.text


def test_a_command_gets_the_document_without_a_shell(tmp_path: Path) -> None:
    file = tmp_path / "$(touch shell)"
    _notify(_python("import sys; open(sys.argv[1], 'w').write(sys.stdin.read())", file))
    assert json.loads(file.read_text()) == DOCUMENT


def test_a_command_that_fails_is_a_warning_with_its_first_line(caplog: pytest.LogCaptureFixture) -> None:
    _notify(_python("raise SystemExit('the mail server is down')", "secret-argument"))
    assert "exit code 1: the mail server is down" in caplog.text
    assert "secret-argument" not in caplog.text


def test_a_command_that_has_gone_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _notify(str(tmp_path / "gone"))
    assert "No such file or directory" in caplog.text


def test_a_command_that_takes_too_long_is_ended_with_its_children(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '9999'], stdout=open(sys.argv[1], 'w')).wait()"
    notifier = Notifier([_python(code, fifo)], for_s=5)
    notifier.send(DOCUMENT)
    with fifo.open() as pipe:  # both ends are open once the child runs, and it ends with the last process that writes
        assert pipe.read() == ""
    notifier.wait()
    assert "it ran longer than 5 s and was ended" in caplog.text


def test_sending_does_not_wait(tmp_path: Path) -> None:
    go, done = tmp_path / "go", tmp_path / "done"
    code = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\n"
    notifier = Notifier([_python(code + "pathlib.Path(sys.argv[2]).touch()", go, done)], LONG_S)
    notifier.send(DOCUMENT)
    assert not done.exists()
    go.touch()
    wait_until(done.exists)
    notifier.wait()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no-such-command --flag secret", "notify 'no-such-command' is neither an"),
        ("", "notify '' is neither an"),
        ("mail 'secret", "cannot be split into words"),
        ("ftp://host/secret", "an address of the kind ftp://"),
        ("https:///secret", "without a valid host or port"),
        ("https://host:port/secret", "without a valid host or port"),
        ("https://me:secret@host/", "holds a password. Put a token into the environment as ASAP_NOTIFY_TOKEN"),
    ],
)
def test_targets_that_cannot_work_are_refused_without_their_secrets(target: str, message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        WatchSettings(notify=(target,))
    assert message in raised.value.errors()[0]["msg"]
    assert "secret" not in raised.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    ("token", "message"),
    [("s3cret", "would be sent unencrypted to http://hooks.example/"), ("s3\ncret", "a header cannot carry")],
)
def test_tokens_that_must_not_be_sent_are_refused(token: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(ConfigError, match=message) as raised:
        Notifier(["http://hooks.example/path"], 1)
    assert "s3" not in str(raised.value)
