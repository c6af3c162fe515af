from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.lost_machines import LostMachines, close_connections
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


def _machine(name: str, address: str, *, is_alive: bool) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerAddress": address, "Alive": is_alive}


def test_only_machines_that_are_lost_from_now_on_count_and_each_counts_once() -> None:
    before = _machine("before", "10.77.0.2", is_alive=False)
    lost = LostMachines([before, _machine("later", "10.77.0.3", is_alive=True)])
    later = _machine("later", "10.77.0.3", is_alive=False)
    assert lost.addresses([before, later], ()) == {"10.77.0.3"}
    assert lost.addresses([before, later], ()) == set()


def test_the_address_of_a_living_or_a_spared_machine_is_not_that_of_a_lost_one() -> None:
    lost = LostMachines([])
    machines = [_machine(name, f"10.77.0.{name}", is_alive=False) for name in "234"]
    renewed = _machine("renewed", "10.77.0.3", is_alive=True)
    assert lost.addresses([*machines, renewed], {"10.77.0.4"}) == {"10.77.0.2"}
