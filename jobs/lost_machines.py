"""The connections of this process to machines that Ray has given up.

Ray knows within half a minute that a machine is gone. Yet it waits for a task that it has sent there until the
connection fails. A machine whose processes end closes its connections. One whose power or network fails cannot, and
then the connection fails by a timeout of five minutes and more. So the connections are closed from this end.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_DESCRIPTORS = Path("/proc/self/fd")


class LostMachines:
    """The machines that Ray gives up from now on.

    Ray lists those that it gave up earlier too, while their addresses may long be those of others, such as a store.

    Args:
        machines: The machines as `ray.nodes` describes them now.
    """

    def __init__(self, machines: Sequence[Mapping[str, Any]]) -> None:
        self._done = {machine["NodeID"] for machine in machines if not machine["Alive"]}

    def addresses(self, machines: Sequence[Mapping[str, Any]], spared: Collection[str]) -> set[str]:
        """Return the addresses of the machines that were lost since the last call, once for each machine.

        Args:
            machines: The machines as `ray.nodes` describes them now.
            spared: Addresses that are never returned.
        """
        lost = [machine for machine in machines if not machine["Alive"] and machine["NodeID"] not in self._done]
        self._done |= {machine["NodeID"] for machine in lost}
        # A machine that has started anew may have the address of the lost one.
        alive = {machine["NodeManagerAddress"] for machine in machines if machine["Alive"]}
        return {machine["NodeManagerAddress"] for machine in lost} - alive - set(spared)


def close_connections(addresses: Collection[str]) -> int:
    """Close the TCP connections of this process to these IP addresses, and return their number.

    Whoever waits for an answer there gets an error at once. On a system without /proc nothing is done.
    """
    closed = 0
    for entry in _DESCRIPTORS.iterdir() if _DESCRIPTORS.is_dir() else ():
        with suppress(OSError):  # not connected, or closed in the meantime
            if str(entry.readlink()).startswith("socket:") and _close(int(entry.name), addresses):
                closed += 1
    return closed


def _close(descriptor: int, addresses: Collection[str]) -> bool:
    # The copy shares the connection: its end ends the connection for the owner, who keeps the descriptor.
    copied = os.dup(descriptor)
    try:
        copy = socket.socket(fileno=copied)
    except OSError:
        os.close(copied)
        raise
    with copy:
        peer = copy.getpeername() if copy.family in (socket.AF_INET, socket.AF_INET6) else ("",)
        is_meant = peer[0].removeprefix("::ffff:") in addresses
        if is_meant:
            copy.shutdown(socket.SHUT_RDWR)
        return is_meant
