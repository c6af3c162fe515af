"""The keys of a server as their file has them now: a line that is added or removed counts without a restart."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from asap.errors import ConfigError
from serve.api.callers.keys import Keyring

LOG = logging.getLogger("asap.keys")
_CHECK_S = 1.0
"""Seconds after which a request looks again whether the file has changed."""


class CurrentKeys:
    """The keys that count now.

    A server that once had keys never becomes one without: if its file has none left, every caller is refused. A file
    that cannot be read or has a wrong line changes nothing until it is mended, and the log says so.

    Args:
        keyring: The keys with which the server starts.
        file: The file that they come from; None if they come from the environment, and never change.
        on_reload: Called after each attempt to read the file anew, with True if it could be read.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        keyring: Keyring,
        file: str | None,
        on_reload: Callable[[bool], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.keyring = keyring
        self.are_needed = bool(keyring)
        """True if callers need a key."""
        self._file = Path(file) if file and keyring else None
        self._on_reload = on_reload
        self._clock = clock
        self._version: object = None
        # A process that starts later gets the keys of the day on which the server was deployed. So it reads the file
        # before the first request, which may have a key that was removed since.
        if self._file is not None:
            self._version = _version_of(self._file)
            self._read(self._file)
        self._next_check = clock() + _CHECK_S

    async def refresh(self) -> None:
        """Read the file anew if it has changed and was not looked at in the last second."""
        if self._file is None or self._clock() < self._next_check:
            return
        self._next_check = self._clock() + _CHECK_S
        version = await asyncio.to_thread(_version_of, self._file)
        if version == self._version:
            return
        await asyncio.to_thread(self._read, self._file)
        self._version = version

    def _read(self, file: Path) -> None:
        try:
            self.keyring = Keyring.read(str(file))
        except ConfigError as error:
            LOG.error("The keys from before are still in use: %s", error)
            self._on_reload(False)
        else:
            self._on_reload(True)


def _version_of(file: Path) -> object:
    """Return something that changes when a file is written or replaced."""
    try:
        state = file.stat()
    except OSError as error:
        return error.errno
    return state.st_ino, state.st_size, state.st_mtime_ns
