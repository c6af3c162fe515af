"""The other ways in which one name of a file is written: %XX, plus signs for spaces, composed and decomposed letters.

Names pass through web addresses, archives and systems that write them anew. Each form that is returned stands for the
same name as the one that was given, so that no other file is taken for it.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Iterator
from urllib.parse import quote, unquote

from asap.storage.location import Location

_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_SAFE = "/!$&'()*+,;=:@~"
"""Characters that an address may have in a path as they are."""


def other_forms(uri: str) -> list[str]:
    """Return the other forms of a path or s3:// address, within its bucket. Most names have none."""
    location = Location(uri)
    if location.version_id or (location.is_s3 and not location.key):
        return []
    head, path = (f"s3://{location.bucket}/", location.key) if location.is_s3 else ("", uri)
    forms = dict.fromkeys(
        unicodedata.normalize(kind, spelling) if kind else spelling
        for spelling in _spellings(path)
        for kind in (None, "NFC", "NFD")
    )
    forms.pop(path, None)
    return [head + form for form in forms]


def _spellings(path: str) -> Iterator[str]:
    yield path
    for plain in (path, path.replace("+", " ")):
        yield plain
        if (decoded := _decoded(plain)) is not None:
            yield decoded
    yield path.replace(" ", "+")
    if not _ESCAPE.search(path):
        yield quote(path, safe=_SAFE, errors="surrogatepass")
    yield path.replace("\\", "/")  # a relative path of Windows
    tidy = posixpath.normpath(path)  # file systems and browsers pass over empty parts and dots
    if not tidy.startswith(".."):
        yield tidy


def _decoded(path: str) -> str | None:
    """Return a path without %XX. None if that is no UTF-8, or if it hides a slash or NUL, which mean another file."""
    try:
        decoded = unquote(path, errors="strict")
    except UnicodeDecodeError:
        return None
    return decoded if decoded.count("/") == path.count("/") and "\0" not in decoded else None
