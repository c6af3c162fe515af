"""Who may call: keys known by their hashes, and how much each may ask for.

A line a key, `NAME:SHA256`, in a file or in `ASAP_KEYS` (there parted by commas or white space); `#` begins a comment.
`new_key` makes a key and its line. Keys are long and random, so a plain hash of one tells nothing about it.
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

ENVIRONMENT = "ASAP_KEYS"
_LINE = re.compile(r"([\w.-]{1,64}):([0-9a-f]{64})")


def new_key(name: str) -> tuple[str, str]:
    """A key, to be given to its holder and kept nowhere else, and its line."""
    key = f"asap_{secrets.token_urlsafe(32)}"
    line = f"{name}:{_digest(key)}"
    if not _LINE.fullmatch(line):
        raise ConfigError(f"key name {name!r} is not 1 to 64 letters, digits, '.', '_' and '-'")
    return key, line


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Keyring:
    """The hashes by name; without any, nobody needs a key."""

    hashes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, file: str | None) -> Keyring:
        """From a file, or from the environment. Raises `ConfigError`."""
        if file is None:
            return cls.parse(os.environ.get(ENVIRONMENT, "").replace(",", "\n").split(), ENVIRONMENT)
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"keys file {file} cannot be read: {error}") from error
        keyring = cls.parse([line.partition("#")[0].strip() for line in lines], file)
        if not keyring:
            raise ConfigError(f"keys file {file} holds no key; make one with asap serve --new-key NAME")
        return keyring

    @classmethod
    def parse(cls, lines: list[str], source: str) -> Keyring:
        """From lines, empty ones left out. A wrong line is told by its number: it may be a key itself."""
        hashes: dict[str, str] = {}
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            if not (match := _LINE.fullmatch(line)):
                raise ConfigError(f"key {number} of {source} is not NAME:SHA256; asap serve --new-key NAME makes one")
            if match[1] in hashes:
                raise ConfigError(f"{source} has two keys named {match[1]!r}")
            hashes[match[1]] = match[2]
        return cls(hashes)

    def __bool__(self) -> bool:
        return bool(self.hashes)

    def name_of(self, key: str) -> str | None:
        """Whose key it is. All hashes are compared, each in constant time, so that time tells nothing."""
        digest = _digest(key)
        found = None
        for name, known in self.hashes.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found


class Rates:
    """A bucket of tokens for each key: `burst` at most, refilled at `rate` a second.

    What costs more than a whole bucket takes one that is full, and leaves the debt to be paid before the next.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str, count: int = 1, *, paid: int = 0) -> None:
        """Take tokens, beside those `paid` for the same request, or raise `Refused` (429) that says when there will be
        enough."""
        now = self._clock()
        tokens, since = self._buckets.get(name, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - since) * self._rate)
        needed = max(0, min(count, self._burst - paid))
        enough = tokens >= needed
        self._buckets[name] = (tokens - count if enough else tokens, now)
        if not enough:
            message = f"more than {self._rate:g} pairs a second were sent with this key; a long text counts for several"
            raise Refused(429, "rate_limited", message, retry_after_s=(needed - tokens) / self._rate)
