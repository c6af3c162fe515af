"""Objects that are stored compressed and say so (`Content-Encoding: gzip`), as web servers keep them."""

from __future__ import annotations

import zlib

GZIP_MAGIC = b"\x1f\x8b"
_GZIP_NAMES = {"gzip", "x-gzip"}
_GZIP_WINDOW = 31
"""The window bits by which zlib knows that a gzip header comes first."""


def is_gzip(encoding: str) -> bool:
    """Return True if a Content-Encoding says that the stored bytes are compressed."""
    return not _GZIP_NAMES.isdisjoint(part.strip().lower() for part in encoding.split(","))


def decode_bytes(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return the bytes that were compressed, at most one more than `max_bytes` of them.

    Bytes that are not compressed, whatever the encoding says, are returned as they are. Raises `ValueError` for
    compressed bytes that are damaged.
    """
    if not is_gzip(encoding) or not data.startswith(GZIP_MAGIC):
        return data
    decoded = b""
    while data.startswith(GZIP_MAGIC) and len(decoded) <= max_bytes:  # a file may have several members
        member = zlib.decompressobj(_GZIP_WINDOW)
        try:
            decoded += member.decompress(data, max_bytes + 1 - len(decoded))
        except zlib.error as error:
            raise ValueError(f"the bytes are damaged; they were stored with Content-Encoding {encoding}") from error
        if not member.eof and len(decoded) <= max_bytes:
            raise ValueError(f"the bytes end too early; they were stored with Content-Encoding {encoding}")
        data = member.unused_data
    return decoded
