"""Forms: the parts of a multipart body, and the encoding of their text.

The form is parsed here, not by Starlette. Starlette decodes a text that is not in UTF-8 by Latin-1 without a word,
ignores the encoding of a single part, and does not say which part is unknown or given twice.
"""

from __future__ import annotations

import encodings
import encodings.aliases
import pkgutil
import re
from collections.abc import Collection, Mapping
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
_MAX_NAME = 40
"""Characters of the name of an encoding, and of a name from a request that is repeated in a message."""
_NAME = re.compile(rf"[a-z0-9][a-z0-9._:+ -]{{0,{_MAX_NAME - 1}}}")
"""Names that an encoding may have. Python alone skips other characters, and would guess."""
_HEADERS = (b"content-disposition", b"content-type", b"content-transfer-encoding")
"""Headers of a part that are read."""
_PLAIN = ("", "7bit", "8bit", "binary")
"""Values of Content-Transfer-Encoding that leave the bytes as they are."""
_ENCODINGS = re.compile(
    r"""
      utf_8 | utf_16(_[bl]e)? | utf_32(_[bl]e)? | ascii | latin_1 | iso8859_\d+ | cp\d{3,4} | koi8_[rtu] | mac_\w+
    | tis_620 | big5 | big5hkscs | gb2312 | gbk | gb18030 | hz | euc_\w+ | shift_jis\w* | iso2022_\w+ | johab
    """,
    re.VERBOSE,
)
"""Encodings that texts are decoded from, by the modules that Python has for them.

Python knows others that are no encodings of texts in the web, and some of them take quadratic time.
"""
_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*(?:"(?:[^"\\]|\\.)*(?:"|$)|[^;]*)', re.DOTALL)
"""A parameter of a header, such as `; name="image"`. A value without its second quote reaches to the end, or the search
would begin anew within it, many times."""
_AS_BROWSERS_DECODE = {"latin_1": "cp1252", "utf_8": "utf_8_sig"}
"""Browsers send Windows-1252 as ISO-8859-1. A mark at the beginning of a text in UTF-8 is no part of the text."""
_BYTES_OF_CHARACTER, _BYTES_OF_START = 9, 4
"""Bytes that one character of a text may take, and those before the first.

UTF-8, UTF-16, UTF-32 and GB 18030 take at most 4 bytes, and a mark of at most 4 before the first. EUC-KR spells rare
syllables in 8. ISO-2022 and HZ switch between sets of characters: at most 4 bytes to switch to a set, 2 for the
character, and 3 to switch back. Only a text with switches that do nothing takes more, which no encoder writes.
"""


def _known_encodings() -> dict[str, str]:
    """Return the module of each accepted encoding, by each of its names.

    Names from requests are looked up here. `codecs.lookup` would keep every unknown name until the process ends.
    """
    modules = {module.name for module in pkgutil.iter_modules(encodings.__path__)}
    names = {name: name for name in modules} | encodings.aliases.aliases
    accepted = {name: module for name, module in names.items() if module in modules and _ENCODINGS.fullmatch(module)}
    return {name.replace(".", "_"): module for name, module in accepted.items()}


_KNOWN = _known_encodings()


@dataclass
class Part:
    """A part of a form: the encoding that its Content-Type names, or an empty text, and its content."""

    charset: str
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
        declared = part.charset or self._charset or "utf-8"
        encoding = _encoding_of(declared)
        if encoding is None:
            message = f"the {name} is in an unknown encoding: {declared[:_MAX_NAME]!r}. Send it in UTF-8."
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


def max_bytes_of(characters: int) -> int:
    """Return the bytes that a text of so many characters takes at most, in any encoding."""
    return _BYTES_OF_START + _BYTES_OF_CHARACTER * characters


async def read_form(request: Request, names: Collection[str], max_bytes: Mapping[str, int]) -> Form:
    """Read a form of multipart/form-data. Raises `Refused`.

    Args:
        request: The request.
        names: The names that fields may have.
        max_bytes: The limits of some fields. A field is refused as soon as more of its bytes have come.
    """
    options = _options_of(request.headers["content-type"])
    if not options.get(b"boundary"):
        raise Refused(400, "bad_request", "the Content-Type of the form has no boundary")
    reader = _Reader((*names, _CHARSET_FIELD), {**max_bytes, _CHARSET_FIELD: _MAX_NAME})
    try:
        parser = MultipartParser(options[b"boundary"], reader.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
    except FormParserError:
        raise Refused(400, "bad_request", "the form is not valid multipart/form-data") from None
    if not reader.is_complete:
        raise Refused(400, "bad_request", "the form is cut off: it does not end with its boundary")
    named = reader.parts.pop(_CHARSET_FIELD, None)
    charset = named.data.decode("latin-1").strip() if named else ""
    return Form(reader.parts, charset or options.get(b"charset", b"").decode("latin-1"))


class _Reader:
    """Collects the parts of a form while its parser finds them."""

    def __init__(self, names: Collection[str], max_bytes: Mapping[str, int]) -> None:
        self._names = names
        self._max_bytes = max_bytes
        self._name = ""
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
        name = self._header.lower()
        if name in _HEADERS and name in self._headers:
            raise Refused(400, "bad_request", f"a part of the form has two headers {name.decode()}. Send one.")
        self._headers[name] = self._value
        self._header, self._value = b"", b""

    def _headers_finished(self) -> None:
        """Begin a part. It is refused by its name alone, before its content is read."""
        options = _options_of(self._headers.get(b"content-disposition", b"").decode("latin-1"))
        if b"name" not in options:
            raise Refused(400, "bad_request", "a part of the form has no name")
        name = options[b"name"].decode("utf-8", "replace")
        if name not in self._names:
            shown = name[:_MAX_NAME]
            raise Refused(422, "invalid_field", f"{shown}: the form may not have this field", param=shown)
        if name in self.parts:
            raise Refused(422, "invalid_field", f"{name}: the field is given twice", param=name)
        transfer = self._headers.get(b"content-transfer-encoding", b"").decode("latin-1").strip().lower()
        if transfer not in _PLAIN:
            message = f"the field {name} is encoded as {transfer[:_MAX_NAME]!r}. Send its bytes as they are."
            raise Refused(415, "unsupported_media_type", message, param=name)
        content_type = self._headers.get(b"content-type", b"").decode("latin-1")
        self.parts[name] = Part(_options_of(content_type).get(b"charset", b"").decode("latin-1"))
        self._name, self._data = name, self.parts[name].data

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        most = self._max_bytes.get(self._name)
        if most is not None and len(self._data) + end - start > most:
            message = f"the {self._name} has more than {most} bytes, which is the limit"
            raise Refused(413, "too_large", message, param=self._name)
        self._data += memoryview(data)[start:end]

    def _end(self) -> None:
        self.is_complete = True


def _options_of(header: str) -> dict[bytes, bytes]:
    """Return the parameters of a header. Raises `Refused` (400) if one is given twice: each program keeps another."""
    seen: set[str] = set()
    for name in map(str.lower, _PARAMETER.findall(header)):
        if name in seen:
            message = f"a header of the form has two parameters {name[:_MAX_NAME]}. Send one."
            raise Refused(400, "bad_request", message)
        seen.add(name)
    _, options = parse_options_header(header)
    return options


def _encoding_of(declared: str) -> str | None:
    """Return Python's name of the encoding that a request names, or None if it is not accepted."""
    if not _NAME.fullmatch(name := declared[: _MAX_NAME + 1].lower()):
        return None
    return _KNOWN.get(encodings.normalize_encoding(name).replace(".", "_"))
