"""The dashboard of a cluster: what answers in its place, other versions, tokens, and time limits."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray

from asap.submission.token import Token, find_token
from jobs.errors import JobError
from jobs.submit import job_server
from jobs.submit.job_server import JobServer

VERSION = json.dumps({"version": "4", "ray_version": ray.__version__, "ray_commit": "c", "session_name": "s"})


@contextmanager
def answering(
    status: int, body: str, before_post: Callable[[], object] = lambda: None
) -> Iterator[tuple[str, list[str | None]]]:
    """Run a server that answers everything alike; yield its URL and the tokens that it was sent."""
    tokens: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers.get("Authorization"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            before_post()
            with suppress(ConnectionError):  # the client may have left
                self.do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", tokens
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "token", "sentence"),
    [
        (401, "Unauthorized", None, r"asks for a token, and there is none\. Set RAY_AUTH_TOKEN"),
        (401, "Unauthorized", Token("wrong", "RAY_AUTH_TOKEN"), "does not take the token of RAY_AUTH_TOKEN"),
        (403, "Forbidden", Token("wrong", "RAY_AUTH_TOKEN"), "does not take the token of RAY_AUTH_TOKEN"),
        (
            200,
            json.dumps({"ray_version": "2.9.3"}),
            None,
            rf"runs Ray 2\.9\.3, and this asap has Ray {ray.__version__}",
        ),
        (200, "<html>", None, r"is no Ray dashboard \(status 200\)"),
        (404, "[]", None, r"is no Ray dashboard \(status 404\)"),
        (302, "", None, r"is no Ray dashboard \(status 302\)"),
    ],
)
def test_a_dashboard_that_cannot_be_used_is_named_with_the_reason(
    status: int, body: str, token: Token | None, sentence: str
) -> None:
    with answering(status, body) as (url, _), pytest.raises(JobError, match=sentence):
        JobServer(url, token)


def test_an_address_where_nobody_listens_is_refused() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(JobError, match=rf"no Ray dashboard answers at {url}: Connection refused\. Start the clu"):
            JobServer(url, None)


def test_a_dashboard_that_takes_a_connection_and_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_server, "_ANSWER_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(JobError, match=rf"no Ray dashboard answers at {url}: no answer in time\."):
            JobServer(url, None)


def test_the_given_address_and_token_are_used_whatever_ray_variables_and_proxies_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with answering(200, VERSION) as (url, tokens):
        JobServer(url, Token("mine", "here"))
    assert set(tokens) == {"Bearer mine"}


@pytest.mark.parametrize("token", [Token("mine", "here"), None])
def test_no_password_of_the_home_folder_is_sent_to_a_dashboard(
    token: Token | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    with answering(200, VERSION) as (url, sent):
        server = JobServer(url, token)
        with pytest.raises(JobError):  # the answer is no job
            server.info("asap-x")
        with pytest.raises(TypeError):
            server.submit("true", "asap-x", {})
    assert len(sent) >= 3
    # Without a token of ours, Ray may send one that it found when it was loaded.
    assert not [header for header in sent if header is not None and not header.startswith("Bearer ")]
    assert token is None or set(sent) == {"Bearer mine"}


def test_a_submission_without_an_answer_names_the_job_that_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_server, "_SUBMIT_S", 0.2)
    answered = threading.Event()
    with answering(200, VERSION, before_post=answered.wait) as (url, _):
        server = JobServer(url, None)
        with pytest.raises(JobError) as caught:
            server.submit("true", "asap-x", {})
        answered.set()
    assert str(caught.value) == (
        f"the dashboard at {url} did not answer the submission: no answer in time. Job asap-x may run: look with "
        f"`asap submit logs asap-x --address {url}` before you submit again."
    )


def test_a_request_that_the_cluster_refuses_has_the_last_line_of_its_traceback() -> None:
    with answering(200, VERSION) as (url, _):
        server = JobServer(url, None)
        refused = r"^the cluster at .* refused the request: ValueError: it exists\.$"
        with pytest.raises(JobError, match=refused), server._errors("asap-x"):
            raise RuntimeError("Request failed with status code 400: Traceback\n  x\nValueError: it exists.")
        with pytest.raises(JobError, match=r"has no job asap-x\. Its dashboard lists"), server._errors("asap-x"):
            raise RuntimeError("Request failed with status code 404: Job asap-x does not exist.")


class TestToken:
    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            monkeypatch.setenv(name, "")  # so that it is restored
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))
        return tmp_path

    def test_it_is_taken_from_where_ray_has_it_the_variable_first(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert find_token() is None
        (home / ".ray").mkdir()
        (home / ".ray/auth_token").write_text("of the home\n")
        assert find_token() == ("of the home", str(home / ".ray/auth_token"))
        (home / "other").write_text("of the path")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "other"))
        assert find_token() == ("of the path", str(home / "other"))
        monkeypatch.setenv("RAY_AUTH_TOKEN", "of the variable")
        assert find_token() == ("of the variable", "RAY_AUTH_TOKEN")

    def test_ray_is_told_to_send_it_unless_that_is_barred(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import os

        monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
        assert find_token() is not None
        assert os.environ["RAY_AUTH_MODE"] == "token"
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        assert find_token() is None

    def test_a_named_file_that_is_not_there_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/none/token")
        with pytest.raises(JobError, match=r"the token in /none/token cannot be read: .* Set RAY_AUTH_TOKEN, or"):
            find_token()

    def test_its_value_is_not_shown(self) -> None:
        assert "secret" not in repr(Token("secret", "here"))
