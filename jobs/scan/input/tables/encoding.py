"""Encodings of text files: found from the first bytes, and read as UTF-8 from there on."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, cast
from unicodedata import category

from asap.storage.files import open_read
from asap.storage.location import Location
from jobs.errors import InputNotFound

_HEAD_BYTES = 2**22
_GUESS_BYTES = 2**15
_CHUNK = 2**18
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NO_TEXT = {"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape", "mbcs", "oem"}
"""Codecs of Python that are no encodings of files."""
_NOT_ASCII = re.compile(rb"[\x80-\xff]+")
_LATIN_BYTES = frozenset(
    [*range(0xC0, 0x100), 0x80, 0x85, *range(0x91, 0x98), 0x8A, 0x8C, 0x8E, 0x9A, 0x9C, 0x9E, 0x9F]
)
_LATIN_BYTES |= frozenset([0xA0, 0xA3, 0xA5, 0xA7, 0xAA, 0xAB, 0xB0, 0xB3, 0xB9, 0xBA, 0xBB, 0xBF])
"""Bytes that are letters, quotes and dashes in the encodings of the Latin script."""
_IN_A_WORD = re.compile(rb"[A-Za-z][\x80-\xff]|[\x80-\xff][A-Za-z]")
_CONTROLS = re.compile(rb"[\x80-\x9f]")
"""Bytes that are no letters in encodings of ISO 8859."""
_PIECES = re.compile(rb"[^\n]{1,400}")
_LATIN = ("cp1252", "cp1250", "cp1254", "cp1257", "iso8859_2")
"""Encodings of the Latin script, the most frequent first."""
_OTHERS = (
    "cp1252 cp1250 cp1251 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 iso8859_2 iso8859_7 koi8_r koi8_u cp932 euc_jp "
    "gb18030 big5 cp949 johab tis_620 mac_roman mac_cyrillic cp437 cp850 cp852 cp866"
)
_FREQUENT = {
    "gb18030": rb"[\xb0-\xd7][\xa1-\xfe]",
    "big5": rb"[\xa4-\xc6][\x40-\x7e\xa1-\xfe]",
    "cp949": rb"[\xb0-\xc8][\xa1-\xfe]",
    "cp932": rb"[\x82-\x83\x88-\x98][\x40-\x7e\x80-\xfc]|\x81[\x40-\x7e]",
}
"""Frequent characters, which have two bytes: kana, Hangul, and the first level of Chinese characters.

Short texts in EUC-JP are not guessed, since their characters are those of others too.
"""
_EAST_ASIAN = frozenset([*_FREQUENT, "euc_jp", "johab"])
_FEW_BYTES = 24
"""Bytes of a text that is too short for statistics of letters."""
_BETTER = 0.1
"""Coherence by which another Latin encoding must be better than cp1252."""
_LATIN_SHARE = 0.8


@dataclass(frozen=True)
class Encoding:
    """An encoding of a text file, and its line ends."""

    name: str
    """Name that Python knows, such as utf-8."""
    mark: bytes = b""
    """The byte order mark at the beginning."""
    guessed: bool = False
    """True if it was guessed from the letters of the text."""
    returns: bool = False
    """True if lines end with a carriage return alone, as on old Macs."""

    @property
    def notes(self) -> list[str]:
        """Sentences for a person about how the file is read."""
        if not self.guessed:
            return []
        return [f"the encoding is not UTF-8; {self.name} was guessed from the letters. Say --encoding if it is another"]


_PLAIN = Encoding("utf-8", b"", guessed=False, returns=False)
"""The encoding of a text of ASCII with the line ends of Unix."""
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
"""Bytes that texts of UTF-8 hardly have. In UTF-16, they are half of most scripts."""
_PAGES = re.compile(rb"[\x00-\x09\x0b\x0c\x0e-\x1f]")
"""First bytes of characters of UTF-16 whose bytes are all ASCII: Latin, Cyrillic, Hindi and others."""
_FEWEST_PAGES = 0.25
_UTF_16 = ("utf-16-le", "utf-16-be")
_PAUSES = re.compile(r"[ \n\u3000-\u3002\uff0c]")
"""Spaces and punctuation that nearly every text has, whatever its script."""
_LETTERS_A_PAUSE = 60
_BAD_CATEGORIES = {"Cn", "Co", "Cs"}
"""Categories of Unicode that no character of a text has: unassigned, private, surrogate."""
_MOST_AGREE = 0.6
"""Share of the texts of a folder that make sense in an encoding, so that it is the one of the folder."""
_MOST_TOGETHER = 256
"""Texts from which the encoding of a folder is guessed."""


def find_encoding(location: Location, given: str | None = None) -> Encoding:
    """Return the encoding of a text file, which may be compressed.

    Raises `InputNotFound` for a given name that is no encoding, and `StorageError` for a file that cannot be read.
    """
    with open_read(location) as file:
        head = file.read(_HEAD_BYTES)
    return encoding_of(head, given, complete=len(head) < _HEAD_BYTES)


def encoding_of(head: bytes, given: str | None = None, *, complete: bool = True) -> Encoding:
    """Return the encoding of a text, from its first bytes. Raises `InputNotFound`.

    Args:
        head: The first bytes.
        given: The name of the encoding; None if it is not known.
        complete: True if these are all bytes.
    """
    if given is None and head.isascii() and b"\0" not in head and b"\r" not in head:
        return _PLAIN  # the texts of a large folder are mostly so
    mark, name = next(((mark, name) for mark, name in _BOMS if head.startswith(mark)), (b"", ""))
    guessed = False
    if given is not None:
        named = _check_name(given)
        # "utf-16" says that a mark decides; a mark of another encoding than the given one is left to the decoder.
        if named in ("utf-16", "utf-32"):
            name = name if name.startswith(named) else f"{named}-le"
        elif named != name:
            mark, name = b"", named
    elif not name:
        name, guessed = _guess(head, complete)
    text = head.decode(name, "replace")
    returns = text.count("\r") - text.count("\r\n") > text.count("\n")
    return Encoding(name, mark, guessed, returns)


def is_plain(data: bytes) -> bool:
    """Return True for a text that says its encoding by a mark, or that is UTF-8 without control characters."""
    if data.startswith(tuple(mark for mark, _ in _BOMS)):
        return True
    return _CONTROL.search(data) is None and (data.isascii() or _is_utf8(data))


def guess_together(texts: Sequence[bytes]) -> str | None:
    """Return the one encoding of some short texts that are not plain; None if it cannot be guessed.

    A few words are too little for a guess, and those of all texts of a folder are mostly enough.
    """
    texts = texts[:_MOST_TOGETHER]
    for name in _UTF_16:
        if _are_utf_16(texts, name):
            return name
    pieces = [text for text in texts if not _is_utf8(text) and not _is_damaged_utf8(text)]
    if not pieces:
        return None
    data = b"\n".join(pieces)[:_GUESS_BYTES]
    found = _guess_letters(data)
    if found in _EAST_ASIAN:  # those of few bytes are better known by their frequent characters
        found = _guess_few(data) or found
    return "cp874" if found == "tis-620" else found  # it has the quotes and dashes too


def _are_utf_16(texts: Sequence[bytes], name: str) -> bool:
    """Return True if most of some texts have characters that exist in an encoding of UTF-16, and pauses now and then.

    The bytes of a text in another encoding make characters too, but no pauses, since they have no NUL.
    """
    decoded = []
    for data in texts:
        if data.isascii() and len(_PAGES.findall(data)) < _FEWEST_PAGES * len(data):
            continue  # a stray NUL among letters
        with suppress(UnicodeDecodeError):
            text = data.decode(name)
            if not any(category(letter) in _BAD_CATEGORIES or letter < "\t" for letter in text):
                decoded.append(text)
    together = "".join(decoded)
    pauses = len(_PAUSES.findall(together))
    # Single words have no pause; their letters are then of one part of Unicode.
    has_words = pauses * _LETTERS_A_PAUSE >= len(together) if pauses else len({ord(one) >> 8 for one in together}) == 1
    return len(decoded) > _MOST_AGREE * len(texts) and len(together) > 1 and has_words


def encoding_of_text(data: bytes, given: str | None, guess: str | None) -> Encoding:
    """Return the encoding of one text of a folder. Raises `InputNotFound` for a given name that is no encoding.

    Args:
        data: The whole text.
        given: The name of the encoding that a person gave.
        guess: The encoding of the folder's texts that are not plain, as `guess_together` returns it.
    """
    if given is not None:
        return encoding_of(data, given)
    # Short texts of some scripts are ASCII with tabs, if they are taken for UTF-8.
    if guess in _UTF_16 and b"\t" in data and _are_utf_16([data], guess):
        return Encoding(guess, guessed=True)
    if is_plain(data):
        return encoding_of(data) if data.startswith(tuple(mark for mark, _ in _BOMS)) else _PLAIN
    is_other = not _is_utf8(data) and not _is_damaged_utf8(data)
    if guess and (is_other or (guess in _UTF_16 and _CONTROL.search(data))):
        return Encoding(guess, guessed=True)
    return _PLAIN


def _is_damaged_utf8(data: bytes) -> bool:
    """Return True if most characters beyond ASCII are UTF-8: the others are damage, and of no other encoding."""
    runs = _NOT_ASCII.findall(data)
    return 2 * sum(not _is_utf8(run) for run in runs) <= len(runs)


def _check_name(given: str) -> str:
    try:
        codec = codecs.lookup(given.strip())
    except (LookupError, ValueError):
        codec = None
    if codec is None or not codec._is_text_encoding or codec.name in _NO_TEXT:
        raise InputNotFound(
            f"the encoding {given!r:.60} is unknown. Give a name that Python knows, such as utf-8, cp1252, utf-16, "
            "shift_jis or gb18030."
        )
    return "utf-8" if codec.name == "utf-8-sig" else codec.name


def _guess(head: bytes, complete: bool) -> tuple[str, bool]:
    """Return the encoding of the first bytes of a file without a mark, and True if it was guessed from the letters."""
    if head.isascii() and b"\0" not in head:
        return "utf-8", False
    # UTF-16 without a mark: in most scripts every second byte of white space and punctuation is a NUL.
    sample = head[:_GUESS_BYTES]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if max(even, odd) > len(sample) // 8 and min(even, odd) * 8 < max(even, odd):
        return ("utf-16-le" if odd > even else "utf-16-be"), True
    if _is_utf8(head):
        return "utf-8", False
    runs = _NOT_ASCII.findall(head)
    if not complete and len(runs) > 1:
        runs.pop()  # it may end within a character
    # A few broken characters among many are damage of their records.
    if 2 * sum(not _is_utf8(run) for run in runs) <= len(runs):
        return "utf-8", False
    pieces = [piece for piece in _PIECES.findall(head) if not piece.isascii() and not _is_utf8(piece)]
    name = _guess_letters(b"\n".join(pieces)[:_GUESS_BYTES])
    return (name or "utf-8"), name is not None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _guess_letters(data: bytes) -> str | None:
    """Return the encoding that makes the most likely text of these bytes; None if none makes a text."""
    from charset_normalizer import from_bytes

    runs = _NOT_ASCII.findall(data)
    single = sum(len(run) <= 2 and all(byte in _LATIN_BYTES for byte in run) for run in runs)
    if single < _LATIN_SHARE * len(runs):
        best = from_bytes(data, cp_isolation=_OTHERS.split(), threshold=0.4, enable_fallback=False).best()
        if best and best.encoding in _EAST_ASIAN and sum(map(len, runs)) < _FEW_BYTES:
            return _guess_few(data)
        return codecs.lookup(best.encoding).name if best else None
    # Single letters among ASCII: a Latin script. Between its encodings the frequency of letters decides.
    if not _IN_A_WORD.search(data):
        return None
    names = [name for name in _LATIN if name.startswith("cp") or not _CONTROLS.search(data)]
    matches = from_bytes(data, cp_isolation=names, threshold=0.9, enable_fallback=False)
    coherence = {name: match.coherence for match in matches for name in [match.encoding, *match.could_be_from_charset]}
    best_name = max(names, key=lambda name: coherence.get(name, 0.0))  # the first of equals
    if coherence.get(best_name, 0.0) < coherence.get("cp1252", 0.0) + _BETTER:
        best_name = "cp1252"
    return codecs.lookup(best_name).name


def _guess_few(data: bytes) -> str | None:
    """Return the encoding of East Asia under which all characters of a short text are frequent; None without just one.

    Almost any few bytes are characters of each of these encodings, and a word of Russian or Greek is too.
    """
    fitting = [
        name for name, frequent in _FREQUENT.items() if re.fullmatch(rb"(?:[\x00-\x7f]++|%s)++" % frequent, data)
    ]
    return codecs.lookup(fitting[0]).name if len(fitting) == 1 else None


def open_text(location: Location, encoding: Encoding) -> BinaryIO:
    r"""Open a text file as UTF-8 without a byte order mark, with lines that end in \n.

    Bytes that cannot be decoded become bytes that are not UTF-8, so that the record around them is found later.
    """
    file = open_read(location)
    file.read(len(encoding.mark))
    if encoding.name == "utf-8" and not encoding.returns:
        return file
    return cast("BinaryIO", io.BufferedReader(_Transcoded(file, encoding), _CHUNK))


def _keep_undecoded(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    bad = error.object[error.start : error.end] or b"\xff"
    return "".join(chr(0xDC80 | byte) for byte in bad), max(error.end, error.start + 1)


codecs.register_error("asap-keep-undecoded", _keep_undecoded)


class _Transcoded(io.RawIOBase):
    """A stream of another encoding, as UTF-8."""

    def __init__(self, file: BinaryIO, encoding: Encoding) -> None:
        decoder: Any = codecs.getincrementaldecoder(encoding.name)("asap-keep-undecoded")
        self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True) if encoding.returns else decoder
        self._file = file
        self._waiting = b""
        self._ended = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Close the file too."""
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer and return the number of its bytes; 0 at the end."""
        while not self._waiting and not self._ended:
            data = self._file.read(_CHUNK)
            self._ended = not data
            text = self._decoder.decode(data, self._ended)
            try:
                self._waiting = text.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError:  # some codecs make other lone surrogates
                self._waiting = text.encode("utf-8", "replace")
        part = self._waiting[: len(buffer)]
        buffer[: len(part)] = part
        self._waiting = self._waiting[len(part) :]
        return len(part)
