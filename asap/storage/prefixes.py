"""Addresses below prefixes of S3, for whoever may name some addresses and no others."""

from __future__ import annotations

import re
from collections.abc import Iterable

from asap.storage.location import s3_uri

_PREFIX = re.compile(r"s3://[^/\s]+/(?:[^\0]*/)?")


def prefix_problem(prefix: str) -> str | None:
    """Return the reason why a text cannot be a prefix; None if it can."""
    if not _PREFIX.fullmatch(prefix):
        return "is not s3://BUCKET/ or s3://BUCKET/FOLDER/, with a slash at its end"
    return None if _is_plain(prefix.removesuffix("/")) else "has an empty part, '.' or '..' in its path"


def is_below(uri: str, prefixes: Iterable[str]) -> bool:
    """Return True if an address of S3 lies in or below a folder that one of the prefixes names.

    An address with `.`, `..` or an empty part in its path is below none, because some stores and proxies resolve it to
    another one. Neither is one with a control character.
    """
    address = s3_uri(uri)
    if address is None or not _is_plain(address.removesuffix("/")):
        return False
    return any(f"{address.removesuffix('/')}/".startswith(prefix) for prefix in prefixes)


def _is_plain(address: str) -> bool:
    parts = address.removeprefix("s3://").split("/")
    return address.isprintable() and "\\" not in address and not {"", ".", ".."} & set(parts)
