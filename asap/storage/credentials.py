"""The credentials of S3, which are read again when their file or environment changes.

botocore reads the keys of a file once for each session. A job that runs for days outlives temporary keys, which other
programs renew in the file.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.exceptions import BotoCoreError
from botocore.session import Session

_KEY_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
_KEY_FILES = (("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), ("AWS_CONFIG_FILE", "~/.aws/config"))


def key_sources() -> tuple[object, ...]:
    """Return a value that changes when the environment or a file gets other credentials."""
    stamps: list[object] = [os.environ.get(name) for name in _KEY_VARIABLES]
    for variable, default in _KEY_FILES:
        path = Path(os.environ.get(variable, default)).expanduser()
        try:
            status = path.stat()
        except OSError:
            stamps.append((str(path), None))
        else:
            stamps.append((str(path), status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(stamps)


class _RereadCredentials(Credentials):
    """Credentials that are found again when their environment or their file changes.

    Credentials that botocore renews by itself, such as those of a role, are left to it.
    """

    def __init__(self, found: Credentials, sources: tuple[object, ...]) -> None:
        frozen = found.get_frozen_credentials()
        super().__init__(frozen.access_key, frozen.secret_key, frozen.token, found.method)
        self._lock = threading.Lock()
        self._found = found
        self._sources = sources

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Return the current credentials. botocore calls this for each request that it signs."""
        with self._lock:
            if (sources := key_sources()) != self._sources:
                try:
                    found = Session().get_credentials()
                except BotoCoreError:  # a file that is being written; the next request reads it again
                    found = None
                if found is not None:
                    self._found, self._sources = found, sources
            return self._found.get_frozen_credentials()


class _Finder:
    """The provider of the credentials of a session, as botocore calls it.

    All clients of a process share what it finds, so that a role is assumed, or a program asked, once for all of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: tuple[tuple[object, ...], _RereadCredentials] | None = None

    def load_credentials(self) -> Credentials | None:
        with self._lock:
            sources = key_sources()
            if self._found is None or self._found[0] != sources:
                found = Session().get_credentials()
                self._found = None if found is None else (sources, _RereadCredentials(found, sources))
            return None if self._found is None else self._found[1]


_finder = _Finder()


def reading_session() -> Session:
    """Return a session of botocore whose clients notice renewed credentials."""
    session = Session()
    session.register_component("credential_provider", _finder)
    return session
