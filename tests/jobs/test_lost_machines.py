from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from jobs.lost_machines import close_connections
from tests.support.waiting import HANG_S

Connection = tuple[socket.socket, socket.socket]
"""The end that connected, and the end that accepted."""


def connect(family: socket.AddressFamily, host: str, to: str) -> Connection:
    """Connect to a server on this machine that listens at `host`."""
    with socket.socket(family) as server:
        server.settimeout(HANG_S)
        server.bind((host, 0))
        server.listen()
        client = socket.create_connection((to, server.getsockname()[1]), timeout=HANG_S)
        return client, server.accept()[0]


@pytest.fixture
def lost() -> Iterator[Connection]:
    yield from _closed_at_the_end(connect(socket.AF_INET, "127.0.0.2", "127.0.0.2"))


@pytest.fixture
def alive() -> Iterator[Connection]:
    yield from _closed_at_the_end(connect(socket.AF_INET, "127.0.0.3", "127.0.0.3"))


def _closed_at_the_end(connection: Connection) -> Iterator[Connection]:
    yield connection
    for end in connection:
        end.close()


def test_connections_to_lost_machines_end_for_both_sides(lost: Connection) -> None:
    assert close_connections({"127.0.0.2"}) == 1
    assert [end.recv(1) for end in lost] == [b"", b""]


def test_other_connections_stay(alive: Connection, lost: Connection) -> None:
    assert close_connections({"127.0.0.2", "10.77.0.3"}) == 1
    client, server = alive
    client.sendall(b"x")
    assert server.recv(1) == b"x"


def test_the_end_that_accepted_is_closed_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.bind(("127.0.0.4", 0))
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            assert close_connections({"127.0.0.4"}) == 1
            assert client.recv(1) == b""


def test_nothing_is_closed_without_connections(lost: Connection) -> None:
    assert close_connections({"10.77.0.3"}) == 0
    assert close_connections(set()) == 0
    lost[0].sendall(b"x")
    assert lost[1].recv(1) == b"x"
