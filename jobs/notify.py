"""Notifications that a job has ended or stalled: a JSON document for a command, or for an address.

They are delivered by threads, each within a bound, so that the work never waits for them. The end of a command waits
for its last notifications until that bound. A notification that is not delivered is a warning, never an error.

The path of an address may be a secret (webhooks have them there), so messages name only its host.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from asap.errors import ConfigError

TOKEN_VARIABLE = "ASAP_NOTIFY_TOKEN"  # noqa: S105  # a name, not a token
"""Environment variable whose value is sent to addresses as `Authorization: Bearer VALUE`."""
_LOG = logging.getLogger("asap.notify")
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.2, 10.0
_GRACE_S = 0.5
"""Seconds that a thread may take beyond its bound, to end a command and to say why it failed."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class _NotDelivered(Exception):
    """The reason why a notification was not delivered. `may_succeed` is True if another try may deliver it."""

    def __init__(self, reason: str, *, may_succeed: bool = False) -> None:
        super().__init__(reason)
        self.may_succeed = may_succeed


def check_target(target: str) -> None:
    """Raise `ValueError` unless this is an http(s):// address or a command that this machine has.

    The message names neither the path of an address nor the arguments of a command.
    """
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", target)
    if scheme and not _is_address(target):
        raise ValueError(f"notify holds an address of the kind {scheme[1]}://. Use https://, http:// or a command.")
    if scheme:
        try:
            parts = urlsplit(target)
            is_complete = bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_complete = False
        if not is_complete:
            raise ValueError("notify holds an address without a valid host or port. Write https://HOST/PATH.")
        if parts.username or parts.password:
            raise ValueError(
                f"notify {label(target)!r} holds a password. Put a token into the environment as {TOKEN_VARIABLE}."
            )
        return
    try:
        words = shlex.split(target)
    except ValueError as error:
        raise ValueError(f"notify holds a command that cannot be split into words: {error}. Quote it.") from error
    if not words or shutil.which(words[0]) is None:
        raise ValueError(
            f"notify {words[0] if words else ''!r} is neither an http(s):// address nor a command of this machine. "
            "Check the name and PATH."
        )


def label(target: str) -> str:
    """Return the name of a target for messages: scheme and host of an address, or the first word of a command."""
    if not _is_address(target):
        return shlex.split(target)[0]
    parts = urlsplit(target)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}/"


def _is_address(target: str) -> bool:
    return target.lower().startswith(("http://", "https://"))


class Notifier:
    """Sends documents to commands and addresses.

    Args:
        targets: Commands and addresses, as `check_target` accepts them.
        for_s: Seconds in which a document is delivered, all tries together. A command is ended after them.

    Raises `ConfigError` for a token that cannot be sent, or would be sent unencrypted to another machine.
    """

    def __init__(self, targets: Sequence[str], for_s: float) -> None:
        self._targets, self._for_s = tuple(targets), for_s
        self._token = os.environ.get(TOKEN_VARIABLE, "").strip()
        self._threads: list[tuple[threading.Thread, float, str]] = []
        if not (self._token.isascii() and self._token.isprintable()):
            raise ConfigError(f"{TOKEN_VARIABLE} holds characters that a header cannot carry. Set it to one token.")
        for target in self._targets if self._token else ():
            parts = urlsplit(target)
            if parts.scheme.lower() == "http" and parts.hostname not in _LOOPBACK:
                raise ConfigError(
                    f"{TOKEN_VARIABLE} would be sent unencrypted to {label(target)}. Use an https:// address, or unset "
                    "the variable."
                )

    def send(self, document: Mapping[str, Any]) -> None:
        """Begin to deliver a document to every target, and return at once."""
        body = json.dumps(document, default=str).encode()
        deadline = time.monotonic() + self._for_s
        for target in self._targets:
            # A daemon: an address whose name is never resolved must not keep the process from ending.
            thread = threading.Thread(target=self._deliver, args=(target, body, deadline), name="notify", daemon=True)
            thread.start()
            self._threads.append((thread, deadline, target))

    def wait(self) -> None:
        """Return once everything is delivered or given up, at most `for_s` and a moment after the last `send`."""
        for thread, deadline, target in self._threads:
            thread.join(max(0.0, deadline + _GRACE_S - time.monotonic()))
            if thread.is_alive():
                _LOG.warning("asap: no answer to the notification of %s within %g s", label(target), self._for_s)
        self._threads.clear()

    def _deliver(self, target: str, body: bytes, deadline: float) -> None:
        try:
            if _is_address(target):
                _try_until(deadline, lambda left_s: _post(target, body, self._token, left_s))
            else:
                _run(target, body, max(0.1, deadline - time.monotonic()))
        except _NotDelivered as error:
            _LOG.warning("asap: the notification of %s failed: %s", label(target), error)


def _try_until(deadline: float, attempt: Callable[[float], None]) -> None:
    """Call `attempt` with the seconds that are left until it succeeds. Raise its last error at the deadline."""
    backoff_s = _FIRST_BACKOFF_S
    while True:
        try:
            attempt(max(0.1, deadline - time.monotonic()))
            return
        except _NotDelivered as error:
            wait_s = random.uniform(backoff_s / 2, backoff_s)
            if not error.may_succeed or time.monotonic() + wait_s >= deadline:
                raise
        time.sleep(wait_s)
        backoff_s = min(_LONGEST_BACKOFF_S, 2 * backoff_s)


def _post(address: str, body: bytes, token: str, timeout_s: float) -> None:
    """Send the body to the address once. A redirect is not followed: it may lead to another host."""
    import requests

    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        # Given for every request, because requests would otherwise take a password from the user's .netrc file.
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    headers = {"Content-Type": "application/json", "User-Agent": "asap"}
    try:
        # The body of the response is not read, so its length does not matter.
        with requests.post(
            address, body, headers=headers, auth=authorize, timeout=timeout_s, allow_redirects=False, stream=True
        ) as response:
            status = response.status_code
    except requests.RequestException as error:
        # The error's message holds the whole address, so only its kind is repeated.
        may_succeed = isinstance(error, requests.ConnectionError | requests.Timeout)
        raise _NotDelivered(type(error).__name__, may_succeed=may_succeed) from error
    if status >= 300:
        redirected = ", a redirect, which is not followed" if status < 400 else ""
        raise _NotDelivered(f"status {status}{redirected}", may_succeed=status >= 500 or status in (408, 429))


def _run(command: str, body: bytes, limit_s: float) -> None:
    """Run a command with the body on its standard input, without a shell. It is ended after `limit_s` seconds."""
    try:
        # In a session of its own: a Ctrl-C that stops the job must not stop the command that tells of it.
        process = subprocess.Popen(  # noqa: S603  # the operator's own command
            shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise _NotDelivered(error.strerror or type(error).__name__) from error
    try:
        _, errors = process.communicate(body, limit_s)
    except subprocess.TimeoutExpired as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise _NotDelivered(f"it ran longer than {limit_s:.2g} s and was ended") from error
    if process.returncode:
        first = errors.decode("utf-8", "replace").strip().partition("\n")[0]
        raise _NotDelivered(f"exit code {process.returncode}{f': {first}' if first else ''}")
