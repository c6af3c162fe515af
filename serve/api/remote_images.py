"""Pictures that a request names by an address: which addresses are allowed, and how they are fetched."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Sequence
from urllib.parse import unquote, urlsplit, urlunsplit

import requests
import urllib3.exceptions
from requests.utils import get_environ_proxies

from asap.errors import ImageTooLarge, StorageError
from asap.storage.s3 import s3_client
from serve.errors import Refused

_TIMEOUT_S = 10
"""Seconds to connect, and seconds that each read may take."""
_S3_ATTEMPTS = 3
_CHUNK_BYTES = 2**16
_SHOWN_CHARS = 300
"""Characters that are repeated of an address, in the log and in messages."""
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
"""Characters that clients and servers read in different ways: control characters, spaces and backslashes."""


def redacted(uri: str) -> str:
    """Return an address without the parts that may be secret: credentials, and the query, which holds signatures.

    The end of a long one is left out.
    """
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "an address that cannot be read"
    host = parts.netloc.rpartition("@")[2]
    shown = urlunsplit((parts.scheme, host, parts.path, "…" if parts.query else "", ""))
    return shown if len(shown) <= _SHOWN_CHARS else f"{shown[:_SHOWN_CHARS]}…"


def check_allowed(uri: str, prefixes: Sequence[str]) -> None:
    """Raise `Refused` (403) unless the address begins with one of the prefixes and does not climb out of it."""
    try:
        uri.encode()
        parts = urlsplit(uri)
    except ValueError:
        raise Refused(400, "uri_invalid", "the address cannot be read", param="uri") from None
    # Unquoted twice: a store may decode `%252e%252e` once more than a proxy before it does.
    climbs = ".." in unquote(unquote(parts.path)).replace("\\", "/").split("/")
    if climbs or _FORBIDDEN.search(uri) or not any(uri.startswith(prefix) for prefix in prefixes):
        message = f"pictures are not fetched from {redacted(uri)}. Send the picture itself."
        raise Refused(403, "uri_not_allowed", message, param="uri")


def fetch_remote_image(uri: str, prefixes: Sequence[str], max_bytes: int, within_s: float) -> bytes:
    """Return the bytes at an allowed address. Redirects are not followed.

    Args:
        uri: An s3:// or https:// address.
        prefixes: Addresses that are allowed, by how they begin.
        max_bytes: Limit of the picture. No more than one byte beyond it is read.
        within_s: Seconds until the last byte must have arrived.

    Raises:
        Refused: The address is not allowed (403) or cannot be read (400).
        ImageTooLarge: The picture is larger than the limit.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    check_allowed(uri, prefixes)
    read = _read_object if uri.startswith("s3://") else _read_page
    try:
        data = read(uri, max_bytes + 1, time.monotonic() + within_s)
    except (OSError, ValueError, urllib3.exceptions.HTTPError, BotoCoreError, ClientError, StorageError) as error:
        # The text of the error may contain the whole address, secrets included, so only its kind is repeated.
        response = error.response if isinstance(error, requests.HTTPError) else None
        reason = type(error).__name__ if response is None else response.status_code
        raise Refused(400, "uri_unreadable", f"{redacted(uri)} cannot be read: {reason}", param="uri") from None
    if len(data) > max_bytes:
        raise ImageTooLarge(f"the image has more than {max_bytes} bytes, which is the limit. Shrink it.")
    return data


def _read_page(uri: str, most: int, end: float) -> bytes:
    trusted = ssl.get_default_verify_paths()
    with requests.Session() as session:
        session.trust_env = False  # or a .netrc of this machine would be sent to the host
        # The limit counts bytes, which decompression would multiply.
        request = session.prepare_request(requests.Request("GET", uri, headers={"Accept-Encoding": "identity"}))
        request.url = uri  # as it was checked and signed: `prepare_request` decodes `%41` and drops `/.`
        with session.send(
            request,
            stream=True,
            allow_redirects=False,
            timeout=_TIMEOUT_S,
            proxies=get_environ_proxies(uri),
            # The certificates of this machine: it may trust hosts that the bundle of requests does not know.
            verify=trusted.cafile or trusted.capath or True,
        ) as response:
            if response.status_code >= 300:  # redirects are among them
                raise requests.HTTPError(response=response)
            return _read_first(most, lambda count: response.raw.read1(count, decode_content=False), end)


def _read_object(uri: str, most: int, end: float) -> bytes:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    client = s3_client(attempts=_S3_ATTEMPTS, connect_timeout_s=5, read_timeout_s=_TIMEOUT_S)
    with client.get_object(Bucket=bucket, Key=key)["Body"] as body:
        return _read_first(most, body.read, end)


def _read_first(most: int, read: Callable[[int], bytes], end: float) -> bytes:
    """Read at most `most` bytes, until the time `end`."""
    data = bytearray()
    while len(data) < most and (chunk := read(min(_CHUNK_BYTES, most - len(data)))):
        data += chunk
        # A host that sends a byte now and then keeps within the timeout of each read for ever.
        if time.monotonic() > end:
            raise TimeoutError
    return bytes(data)
