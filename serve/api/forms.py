"""Forms: the parts of a multipart body, and the encoding of their text.

The form is parsed here, not by Starlette. Starlette decodes a text that is not in UTF-8 by Latin-1 without a word,
ignores the encoding of a single part, and does not say which part is unknown or given twice.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from serve.errors import Refused

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_CHARSET_FIELD = "_charset_"
"""A hidden field in which browsers send the encoding of the form's fields."""
_PLAIN = ("", "7bit", "8bit", "binary")
"""Values of Content-Transfer-Encoding that leave the bytes as they are."""
_ENCODINGS = re.compile(
    r"""
      utf-8 | utf-16(-[bl]e)? | utf-32(-[bl]e)? | ascii | iso8859-\d+ | cp\d{3,4} | koi8-[rtu] | mac-\w+ | tis-620
    | big5 | big5hkscs | gb2312 | gbk | gb18030 | hz | euc_\w+ | shift_jis\w* | iso2022_\w+ | johab
    """,
    re.VERBOSE,
)
"""Names of encodings, as Python writes them, that texts are decoded from.

Python knows others that are no encodings of texts in the web, and some of them take quadratic time.
"""
_AS_BROWSERS_DECODE = {"iso8859-1": "cp1252", "utf-8": "utf-8-sig"}
"""Browsers send Windows-1252 as ISO-8859-1. A mark at the beginning of a text in UTF-8 is no part of the text."""


@dataclass
class Part:
    """A part of a form: its Content-Type, or an empty text, and its content."""

    content_type: str
    data: bytearray = field(default_factory=bytearray)


class Form:
    """The parts of a form by their names, and the encoding that the form as a whole has."""

    def __init__(self, parts: dict[str, Part], charset: str) -> None:
        self._parts = parts
        self._charset = charset

    def data(self, name: str) -> bytes:
        """Return the content of a field, which may be sent as a file or not. Raises `Refused` if it is missing."""
        return bytes(self._part(name).data)

    def text(self, name: str) -> str:
        """Return the content of a field as text. Raises `Refused` if it is missing or is not in its encoding."""
        part = self._part(name)
        declared = _charset_of(part.content_type) or self._charset or "utf-8"
        try:
            encoding = codecs.lookup(declared).name
        except (LookupError, ValueError):  # ValueError: a name with a NUL
            encoding = ""
        if not _ENCODINGS.fullmatch(encoding):
            message = f"the {name} is in an unknown encoding: {declared[:40]!r}. Send it in UTF-8."
            raise Refused(400, "text_invalid", message, param=name)
        try:
            return part.data.decode(_AS_BROWSERS_DECODE.get(encoding, encoding))
        except UnicodeError:
            message = f"the {name} is not in the encoding {declared}. Send it in UTF-8, or name its encoding."
            raise Refused(400, "text_invalid", message, param=name) from None

    def _part(self, name: str) -> Part:
        if name not in self._parts:
            raise Refused(422, "invalid_field", f"{name}: the form has no such field", param=name)
        return self._parts[name]


async def read_form(request: Request, names: Collection[str]) -> Form:
    """Read a form of multipart/form-data whose fields may have these names. Raises `Refused`."""
    _, options = parse_options_header(request.headers["content-type"])
    if not options.get(b"boundary"):
        raise Refused(400, "bad_request", "the Content-Type of the form has no boundary")
    reader = _Reader((*names, _CHARSET_FIELD))
    try:
        parser = MultipartParser(options[b"boundary"], reader.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
    except FormParserError:
        raise Refused(400, "bad_request", "the form is not valid multipart/form-data") from None
    if not reader.is_complete:
        raise Refused(400, "bad_request", "the form is cut off: it does not end with its boundary")
    named = reader.parts.pop(_CHARSET_FIELD, None)
    charset = named.data[:40].decode("latin-1").strip() if named else ""
    return Form(reader.parts, charset or options.get(b"charset", b"").decode("latin-1"))


class _Reader:
    """Collects the parts of a form while its parser finds them."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._header, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._data = bytearray()
        self.parts: dict[str, Part] = {}
        self.is_complete = False

    def callbacks(self) -> MultipartCallbacks:
        """Return the methods that the parser calls."""
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _headers_finished(self) -> None:
        """Begin a part. It is refused by its name alone, before its content is read."""
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        if b"name" not in options:
            raise Refused(400, "bad_request", "a part of the form has no name")
        name = options[b"name"].decode("utf-8", "replace")
        if name not in self._names:
            shown = name[:40]
            raise Refused(422, "invalid_field", f"{shown}: the form may not have this field", param=shown)
        if name in self.parts:
            raise Refused(422, "invalid_field", f"{name}: the field is given twice", param=name)
        transfer = self._headers.get(b"content-transfer-encoding", b"").decode("latin-1").strip().lower()
        if transfer not in _PLAIN:
            message = f"the field {name} is encoded as {transfer[:40]!r}. Send its bytes as they are."
            raise Refused(415, "unsupported_media_type", message, param=name)
        self.parts[name] = Part(self._headers.get(b"content-type", b"").decode("latin-1"))
        self._data = self.parts[name].data

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]

    def _end(self) -> None:
        self.is_complete = True


def _charset_of(content_type: str) -> str:
    _, options = parse_options_header(content_type)
    return options.get(b"charset", b"").decode("latin-1")
