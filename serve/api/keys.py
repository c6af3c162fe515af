"""API keys: they are stored as hashes, and each has a rate limit.

Each line of the keys file is `NAME:SHA256`, and `#` begins a comment. `ASAP_KEYS` holds the same lines, separated by
commas or white space. `new_key` creates a key and its line. Keys are long and random, so a plain hash reveals nothing
about its key.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from asap.errors import ConfigError
from serve.errors import Refused
from serve.settings import ServeSettings, is_loopback

ENVIRONMENT = "ASAP_KEYS"
_LINE = re.compile(r"([\w.-]{1,64}):([0-9a-f]{64})")


def new_key(name: str) -> tuple[str, str]:
    """Create a key and its line. The key goes to its holder and is stored nowhere else. Raises `ConfigError`."""
    key = f"asap_{secrets.token_urlsafe(32)}"
    line = f"{name}:{_digest(key)}"
    if not _LINE.fullmatch(line):
        raise ConfigError(f"key name {name!r} is invalid. Use 1 to 64 letters, digits, '.', '_' and '-'.")
    return key, line


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Keyring:
    """The hashes of keys by name. If it is empty, callers need no key."""

    hashes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, file: str | None) -> Keyring:
        """Read keys from a file or, without one, from the environment. Raises `ConfigError`."""
        if file is None:
            return cls.parse(os.environ.get(ENVIRONMENT, "").replace(",", "\n").split(), ENVIRONMENT)
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"keys file {file} cannot be read: {reason}. Name a file of keys, or make a key with asap serve "
                "--new-key NAME."
            ) from error
        keyring = cls.parse([line.partition("#")[0].strip() for line in lines], file)
        if not keyring:
            raise ConfigError(f"keys file {file} holds no key. Make one with asap serve --new-key NAME.")
        return keyring

    @classmethod
    def parse(cls, lines: list[str], source: str) -> Keyring:
        """Parse lines, skipping empty ones. Raises `ConfigError` with the number of an invalid line.

        The line itself is not repeated, because it may be a key.
        """
        hashes: dict[str, str] = {}
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            if not (match := _LINE.fullmatch(line)):
                raise ConfigError(
                    f"key {number} of {source} is not NAME:SHA256. Make such a line with asap serve --new-key NAME."
                )
            if match[1] in hashes:
                raise ConfigError(f"{source} has two keys named {match[1]!r}")
            hashes[match[1]] = match[2]
        return cls(hashes)

    def __bool__(self) -> bool:
        return bool(self.hashes)

    def name_of(self, key: str) -> str | None:
        """Return the name of a key, or None for an unknown key.

        All hashes are compared, each in constant time, so that the time taken reveals nothing about them.
        """
        digest = _digest(key)
        found = None
        for name, expected in self.hashes.items():
            if hmac.compare_digest(digest, expected):
                found = name
        return found


def load_keys(settings: ServeSettings) -> Keyring:
    """Return the keys of a server. Raises `ConfigError` if they cannot be read, or if its host needs keys."""
    keyring = Keyring.load(settings.keys_file)
    if not keyring and not is_loopback(settings.host):
        raise ConfigError(
            f"host {settings.host!r} can be reached from other machines, which needs keys. Make a key with "
            "asap serve --new-key NAME, and put its line into --keys FILE or ASAP_KEYS"
        )
    return keyring


class Rates:
    """A token bucket for each key.

    A request that costs more than a full bucket is accepted when the bucket is full, and leaves a debt that must be
    paid before the next request.

    Args:
        rate: Tokens that a bucket gains in a second.
        burst: Tokens that a full bucket holds.
        clock: Returns the time in seconds.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}
        """Tokens by key, and the time at which the bucket held them."""

    def take(self, name: str, count: int = 1, *, paid: int = 0) -> None:
        """Take tokens from a key's bucket. Raises `Refused` (429) with the seconds until there are enough.

        Args:
            name: The name of the key.
            count: Tokens to take.
            paid: Tokens that were taken for the same request before.
        """
        now = self._clock()
        tokens, since = self._buckets.get(name, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - since) * self._rate)
        # No bucket holds more than a burst, so a full one must be enough for a request of any cost.
        needed = max(0, min(count, self._burst - paid))
        is_enough = tokens >= needed
        self._buckets[name] = (tokens - count if is_enough else tokens, now)
        if not is_enough:
            message = f"more than {self._rate:g} pairs a second were sent with this key; a long text counts for several"
            raise Refused(429, "rate_limited", message, retry_after_s=(needed - tokens) / self._rate)
