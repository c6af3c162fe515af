"""API keys: they are stored as hashes, with what each may be used for and until when.

Each line of the keys file is `NAME:SHA256`, with attributes behind it if the key has any:
`NAME:SHA256;scope=detect+metrics;expires=2027-03-01`. `#` begins a comment. `ASAP_KEYS` holds the same lines, separated
by commas or white space. `new_key` creates a key and its line. Keys are long and random, so a plain hash reveals
nothing about its key.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from asap.errors import ConfigError
from serve.settings import ServeSettings, is_loopback

ENVIRONMENT = "ASAP_KEYS"
Scope = Literal["detect", "metrics", "jobs", "all-jobs"]
"""A use of a key: to send pairs, to read /metrics, to submit jobs and see one's own, or to see and cancel the jobs of
others too. Any valid key reads /v1/models and /v1/limits."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
WITHOUT_ATTRIBUTE: tuple[Scope, ...] = ("detect", "metrics")
"""Scopes of a line that names none, as the first lines did. A job costs much more than a pair, so it must be named."""
_LISTED = f"{', '.join(SCOPES[:-1])} or {SCOPES[-1]}"
_LINE = re.compile(r"(?P<name>[\w.-]{1,64}):(?P<sha256>[0-9a-f]{64})(?P<attributes>(?:;[^;]*)*)", re.ASCII)
_HINT = "Make such a line with asap serve --new-key NAME."


@dataclass(frozen=True)
class Key:
    """A key: its name, its hash, what it may be used for, and the time from which it is refused."""

    name: str
    sha256: str
    scopes: tuple[Scope, ...] = WITHOUT_ATTRIBUTE
    expires: datetime | None = None

    def has_expired(self, now: datetime) -> bool:
        """Return True from the moment at which the key expires."""
        return self.expires is not None and now >= self.expires


def new_key(
    name: str, scopes: Sequence[str] = WITHOUT_ATTRIBUTE, expires: str | None = None, now: datetime | None = None
) -> tuple[str, str]:
    """Create a key and its line. The key goes to its holder and is stored nowhere else. Raises `ConfigError`.

    Args:
        name: The name of the key, which the log and the metrics have.
        scopes: What it may be used for.
        expires: The date or the time from which it is refused, in ISO 8601; UTC if it names no zone.
        now: The time now, by default the real one.
    """
    if unknown := [scope for scope in scopes if scope not in SCOPES]:
        raise ConfigError(f"scope {unknown[0]!r} is unknown. Use {_LISTED}.")
    key = f"asap_{secrets.token_urlsafe(32)}"
    attributes = f";scope={'+'.join(dict.fromkeys(scopes))}"
    if expires is not None:
        end = _parse_time(expires)
        if end is None:
            raise ConfigError(f"expiry {expires!r} is not a date or a time. Write it like 2027-03-01T12:00Z.")
        if end <= (now or datetime.now(UTC)):
            raise ConfigError(f"expiry {expires!r} is in the past. Choose a later one.")
        attributes += f";expires={end:%Y-%m-%dT%H:%M:%SZ}"
    line = f"{name}:{_digest(key)}{attributes}"
    if not _LINE.fullmatch(line):
        raise ConfigError(f"key name {name!r} is invalid. Use 1 to 64 letters, digits, '.', '_' and '-'.")
    return key, line


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _parse_time(written: str) -> datetime | None:
    """Return a date or a time as a time in UTC, or None if it is neither."""
    try:
        time = datetime.fromisoformat(written)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):  # the second: a time that is after the year 9999, or before the year 1, in UTC
        return None


@dataclass(frozen=True)
class Keyring:
    """Keys by their names. If it is empty, callers need no key."""

    keys: Mapping[str, Key] = field(default_factory=dict)

    @classmethod
    def load(cls, file: str | None) -> Keyring:
        """Read keys from a file or, without one, from the environment. Raises `ConfigError` if the file has no key."""
        if file is None:
            return cls.parse(os.environ.get(ENVIRONMENT, "").replace(",", "\n").split(), ENVIRONMENT)
        keyring = cls.read(file)
        if not keyring:
            raise ConfigError(f"keys file {file} holds no key. Make one with asap serve --new-key NAME.")
        return keyring

    @classmethod
    def read(cls, file: str) -> Keyring:
        """Read keys from a file, which may have none. Raises `ConfigError` if it cannot be read."""
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"keys file {file} cannot be read: {reason}. Name a file of keys, or make a key with asap serve "
                "--new-key NAME."
            ) from error
        return cls.parse([line.partition("#")[0].strip() for line in lines], file)

    @classmethod
    def parse(cls, lines: list[str], source: str) -> Keyring:
        """Parse lines, skipping empty ones. Raises `ConfigError` with the number of an invalid line.

        The line itself is not repeated, because it may be a key.
        """
        keys: dict[str, Key] = {}
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            if not (match := _LINE.fullmatch(line)):
                raise ConfigError(f"key {number} of {source} is not NAME:SHA256. {_HINT}")
            if match["name"] in keys:
                raise ConfigError(f"{source} has two keys named {match['name']!r}")
            scopes, expires = _parse_attributes(match["attributes"], f"key {number} of {source}")
            keys[match["name"]] = Key(match["name"], match["sha256"], scopes, expires)
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self.keys)

    def find(self, key: str) -> Key | None:
        """Return what is known of a key, or None for an unknown key.

        All hashes are compared, each in constant time, so that the time taken reveals nothing about them.
        """
        digest = _digest(key)
        found = None
        for known in self.keys.values():
            if hmac.compare_digest(digest, known.sha256):
                found = known
        return found


def _parse_attributes(written: str, line: str) -> tuple[tuple[Scope, ...], datetime | None]:
    """Return scopes and expiry of a key from the attributes of its line. Raises `ConfigError`.

    Args:
        written: The attributes, each behind a semicolon.
        line: The words that name the line in a message.
    """
    scopes, expires = WITHOUT_ATTRIBUTE, None
    seen: set[str] = set()
    for attribute in written.split(";")[1:]:
        name, _, value = attribute.partition("=")
        if name not in ("scope", "expires"):
            raise ConfigError(f"{line} has an attribute that is neither scope nor expires. {_HINT}")
        if name in seen:
            raise ConfigError(f"{line} has the attribute {name} twice. {_HINT}")
        seen.add(name)
        if name == "scope":
            named = value.split("+")
            if not set(named) <= set(SCOPES):
                raise ConfigError(f"{line} has an unknown scope. Use {_LISTED}, or several with + between.")
            scopes = tuple(scope for scope in SCOPES if scope in named)
        elif (expires := _parse_time(value)) is None:
            raise ConfigError(f"{line} expires at what is not a date or a time. Write it as 2027-03-01.")
    return scopes, expires


def load_keys(settings: ServeSettings) -> Keyring:
    """Return the keys of a server. Raises `ConfigError` if they cannot be read, or if its host needs keys."""
    keyring = Keyring.load(settings.keys_file)
    if not keyring and not is_loopback(settings.host):
        raise ConfigError(
            f"host {settings.host!r} can be reached from other machines, which needs keys. Make a key with "
            "asap serve --new-key NAME, and put its line into --keys FILE or ASAP_KEYS"
        )
    return keyring
