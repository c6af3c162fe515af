"""A real HTTP server on loopback that speaks the API of OpenAI, and misbehaves as it is asked to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.waiting import HANG_S

Answer = Callable[["Handler", dict[str, Any]], None]
"""Answers a request: the handler writes to the connection; the second argument is the body."""


def completion(text: str | None, **changes: Any) -> dict[str, Any]:
    """Return the document of a good answer, with changes of its one choice."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | changes
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice],
            "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}}  # fmt: skip


def respond(status: int, body: str, kind: str = "application/json", **headers: str) -> Answer:
    """Return an answer that is always the same."""
    return lambda handler, _: handler.send(status, body, kind, **headers)


def write(content: Any) -> Answer:
    """Return a good answer, of a model that wrote this."""
    return respond(200, json.dumps(completion(content)))


def hang(handler: Handler, body: dict[str, Any]) -> None:
    """Send nothing until the server ends."""
    handler.server.seen.release.wait(HANG_S)


def drip(handler: Handler, body: dict[str, Any]) -> None:
    """Send a byte now and then, so that a timeout between two bytes never ends the try."""
    handler.start(200, 1_000_000)
    while not handler.server.seen.release.wait(0.02):
        handler.wfile.write(b" ")


def cut(handler: Handler, body: dict[str, Any]) -> None:
    """Close the connection in the middle of an answer."""
    text = json.dumps(completion("a man"))
    handler.start(200, len(text))
    handler.wfile.write(text[:40].encode())
    handler.close_connection = True


def hang_up(handler: Handler, body: dict[str, Any]) -> None:
    """Close the connection without an answer, as a server that goes down does."""
    handler.close_connection = True


def refuse(handler: Handler, body: dict[str, Any]) -> None:
    """Answer as a model that refuses, in the field of the API for it."""
    message = {"role": "assistant", "content": None, "refusal": "No such pictures."}
    handler.send(200, json.dumps(completion(None, message=message)))


@dataclass
class Seen:
    """The requests that the server has received."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most_at_a_time: int = 0
    release: threading.Event = field(default_factory=threading.Event)
    """Ends the waits of answers that hang."""


class Handler(BaseHTTPRequestHandler):
    """A request and its answer."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.bodies.append(body)
            self.server.seen.keys.append(self.headers.get("Authorization"))
            self.server.active += 1
            self.server.seen.most_at_a_time = max(self.server.seen.most_at_a_time, self.server.active)
        try:
            self.server.answer(self, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.active -= 1

    def send(self, status: int, body: str, kind: str = "application/json", **headers: str) -> None:
        """Send a whole answer."""
        data = body.encode()
        self.start(status, len(data), kind, **headers)
        self.wfile.write(data)

    def start(self, status: int, length: int, kind: str = "application/json", **headers: str) -> None:
        """Send the head of an answer."""
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # the default of five refuses connections that come at the same time

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.seen, self.lock, self.active = answer, Seen(), threading.Lock(), 0


@contextmanager
def endpoint(answer: Answer) -> Iterator[tuple[str, Seen]]:
    """Yield the address of a server, and what it has received."""
    server = _Server(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", server.seen
    finally:
        server.seen.release.set()
        server.shutdown()
        thread.join(HANG_S)
        server.server_close()
