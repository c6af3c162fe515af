"""The ports that a head and a worker listen at are those of the table "Who listens where" in docs/operations.md."""

from __future__ import annotations

import re

import pytest

from tests.deploy.test_operations import documented_ports
from tests.support.machines import Machine, can_make_machines, cluster
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.drill,
    pytest.mark.skipif(not can_make_machines(), reason="network, mount and process namespaces are not allowed here"),
]
_LISTENS = "0A"
"""State of a socket in /proc/net/tcp."""
_LATER = {"22", "8000"}
"""sshd, which these machines do not have, and the API, which is not deployed."""


def listening_ports(machine: Machine) -> tuple[set[int], set[int]]:
    """Return the ports that others can reach, and those on the loopback address. A machine has a network of its own."""
    sockets = machine.run(["cat", "/proc/net/tcp", "/proc/net/tcp6"])
    open_ports, loopback = set(), set()
    for address, port in re.findall(rf"^ *\d+: ([0-9A-F]+):([0-9A-F]{{4}}) [0-9A-F]+:0000 {_LISTENS} ", sockets, re.M):
        # The last four bytes of an IPv4 address, also of one that is mapped into IPv6; else ::1.
        is_loopback = address.endswith("0100007F") or address == "0" * 24 + "01000000"
        (loopback if is_loopback else open_ports).add(int(port, 16))
    return open_ports, loopback


def test_a_head_and_a_worker_listen_where_the_table_says_and_nowhere_else(s3: str) -> None:
    documented = documented_ports()
    ranges = [re.split("-", port) for port in documented if "-" in port]
    with cluster(workers=1) as machines:
        for machine, kind in ((machines.head, "head"), (machines.worker(0), "workers")):
            of_kind = {port: on for port, on in documented.items() if kind in on}
            single = {int(port) for port in of_kind.keys() - _LATER if "-" not in port}
            local = {int(port) for port, on in of_kind.items() if "127.0.0.1 only" in on}
            # Agents open their ports some time after the machine is known.
            wait_until(lambda machine=machine, expected=single - local: expected <= listening_ports(machine)[0])
            found, loopback = listening_ports(machine)
            in_ranges = {port for port in found for first, last in ranges if int(first) <= port <= int(last)}
            assert found - in_ranges == single - local, kind
            assert local <= loopback
