"""Members of tar files, found by their headers. Nothing is extracted, and a picture's bytes are not read.

Python's `tarfile` keeps all members, and reads extension headers of any size; this reader's memory is bounded.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from asap.errors import FetchFailed, StorageError
from asap.storage.failures import storage_errors
from asap.storage.fetch import ByteRange, FetchSettings, fetch
from asap.storage.location import FileInfo

BLOCK = tarfile.BLOCKSIZE
_NO_BLOCK = bytes(BLOCK)
_LOCAL_WINDOW = 2**13
_S3_WINDOW = 2**23
"""Bytes of one request. A shorter distance between two headers is read through, a longer one is skipped."""
_READ_AHEAD = 2
"""Windows that are requested before they are needed."""
_MAX_EXTENSION = 2**20
"""Bytes of an extension header. A long name or a few attributes take some hundred."""
_MAX_NAME = 4096
_MOST_ZEROS = 2**11
"""Blocks of zeros after which nothing more is looked for. Tars that were joined have some between them."""
_FOREIGN = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip"}
_FETCH = FetchSettings(attempts=6)

ReadAt = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Member:
    """A file in a tar."""

    name: str
    offset: int
    """Bytes before its content."""
    size: int
    problem: str | None = None
    """Why its content cannot be read."""


class BrokenTar(Exception):
    """The reason why no more members of a tar can be read."""


@contextmanager
def open_tar(tar: FileInfo) -> Iterator[ReadAt]:
    """Open a function that reads a tar at an offset. It is made for offsets that grow. Raises `StorageError`."""
    if not tar.location.is_s3:
        with storage_errors(tar.location), _open_local(tar) as read:
            yield read
        return
    with ThreadPoolExecutor(_READ_AHEAD) as requests:
        yield _Windows(tar, requests).read


@contextmanager
def _open_local(tar: FileInfo) -> Iterator[ReadAt]:
    file = os.open(Path(tar.location.uri), os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):  # reading a pipe or a device could take for ever
            raise StorageError(f"{tar.location} is not a regular file")
        window, start = b"", 0

        def read(offset: int, length: int) -> bytes:
            nonlocal window, start
            if not start <= offset <= offset + length <= start + len(window):
                window, start = os.pread(file, max(length, _LOCAL_WINDOW), offset), offset
            return window[offset - start : offset - start + length]

        yield read
    finally:
        os.close(file)


class _Windows:
    """Windows of an object, requested ahead while the reader goes through it."""

    def __init__(self, tar: FileInfo, requests: ThreadPoolExecutor) -> None:
        self._tar = tar
        self._requests = requests
        self._waiting: dict[int, Future[bytes]] = {}
        self._number = -1
        self._window = b""

    def read(self, offset: int, length: int) -> bytes:
        pieces = []
        while length > 0 and offset < self._tar.size:
            number, start = divmod(offset, _S3_WINDOW)
            piece = self._of(number)[start : start + length]
            if not piece:
                break
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return b"".join(pieces)

    def _of(self, number: int) -> bytes:
        if number == self._number:
            return self._window
        # Members that are longer than a window are jumped over, and then nothing is read ahead.
        ahead = _READ_AHEAD if number == self._number + 1 else 0
        last = (self._tar.size - 1) // _S3_WINDOW
        wanted = range(number, min(number + ahead, last) + 1)
        self._waiting = {key: future for key, future in self._waiting.items() if key in wanted}
        for key in wanted:
            if key not in self._waiting:
                self._waiting[key] = self._requests.submit(self._request, key)
        try:
            self._window = self._waiting.pop(number).result()
        except FetchFailed as error:
            failure = StorageError(f"{self._tar.location} cannot be read: {error.detail}")
            failure.retryable = error.retryable
            raise failure from error
        self._number = number
        return self._window

    def _request(self, number: int) -> bytes:
        start = number * _S3_WINDOW
        window = ByteRange(start, min(_S3_WINDOW, self._tar.size - start))
        return fetch(self._tar.location.uri, _S3_WINDOW, _FETCH, window).data


def check_tar(tar: FileInfo, read: ReadAt) -> None:
    """Raise `BrokenTar` for a file that is no tar, such as a compressed one."""
    head = read(0, BLOCK)
    if packing := next((name for start, name in _FOREIGN.items() if head.startswith(start)), None):
        raise BrokenTar(
            f"{tar.location} is compressed ({packing}), so its members cannot be read one by one. Unpack it to a .tar"
        )
    try:
        if head != _NO_BLOCK:
            tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise BrokenTar(f"{tar.location} is no tar: {error}") from error


def read_members(tar: FileInfo, read: ReadAt) -> Iterator[Member]:
    """Yield the members of a tar, less its folders. Raises `BrokenTar` after the last one that can be read."""
    offset, zeros = 0, 0
    long_name: str | None = None
    attributes: dict[str, str] = {}
    while offset < tar.size:
        block = read(offset, BLOCK)
        if block == _NO_BLOCK:
            offset, zeros = offset + BLOCK, zeros + 1
            if zeros > _MOST_ZEROS:
                return
            continue
        try:
            header = _parse_header(block)
        except tarfile.HeaderError as error:
            if zeros:  # anything may follow the end
                return
            if len(block) < BLOCK:
                raise BrokenTar(f"the tar ends within a header, at byte {offset}: it is not complete") from error
            raise BrokenTar(f"the tar is damaged at byte {offset} ({error}); no member after it is read") from error
        zeros = 0
        content = offset + BLOCK
        if header.size < 0:
            raise BrokenTar(f"the tar is damaged at byte {offset}: a size is {header.size}")
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *_PAX):
            end = content + _padded(header.size)
            if header.size > _MAX_EXTENSION or end > tar.size:
                raise BrokenTar(f"the tar is damaged at byte {offset}: a name or attribute has {header.size} bytes")
            extension = read(content, header.size)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                long_name = extension.partition(b"\0")[0].decode("utf-8", "surrogateescape")
            elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                attributes = _parse_attributes(extension)
            offset = end
            continue
        if header.type == tarfile.GNUTYPE_SPARSE:
            content = _after_sparse_map(block, content, read)
        name = attributes.get("path") or long_name or header.name
        size = _to_size(attributes.get("size"), header.size)
        # As everywhere, only files have content, and so have types that are not known.
        has_content = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
        end = content + (_padded(size) if has_content else 0)
        if not header.isdir():
            problem = _problem(header, attributes, name, size)
            if has_content and content + size > tar.size:
                problem = f"the tar ends within this member, at byte {tar.size}: it is not complete"
            yield Member(name, content, size, problem)
        offset, long_name, attributes = end, None, {}
    if not zeros and tar.size:
        raise BrokenTar(f"the tar ends at byte {tar.size} without the mark of its end: it is not complete")


def _parse_header(block: bytes) -> tarfile.TarInfo:
    """Return the header of a member. Plain files of today's formats take a fifth of the time of all others."""
    size, checksum = block[124:135].rstrip(b" \0"), block[148:156].strip(b" \0")
    if block[156:157] == b"0" and block[257:262] == b"ustar" and size.isdigit() and checksum.isdigit():
        with suppress(ValueError):  # a digit that is not octal
            # The checksum counts its own field as blanks.
            if int(checksum, 8) == sum(block) - sum(block[148:156]) + 8 * 32:
                prefix, name = (part.partition(b"\0")[0] for part in (block[345:500], block[:100]))
                header = tarfile.TarInfo((prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape"))
                header.size = int(size, 8)
                return header
    return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")


_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _to_size(text: str | None, otherwise: int) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 19 else otherwise


def _parse_attributes(data: bytes) -> dict[str, str]:
    """Return the records of an extended header, each `LENGTH NAME=VALUE` and a line end. Broken ones end it."""
    found = {}
    at = 0
    while at < len(data):
        length, _, _ = data[at : at + 20].partition(b" ")
        if not length.isdigit() or int(length) <= len(length) + 1:
            break
        name, _, value = data[at + len(length) + 1 : at + int(length) - 1].partition(b"=")
        found[name.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at += int(length)
    return found


def _after_sparse_map(block: bytes, content: int, read: ReadAt) -> int:
    """Return where the content of a sparse file starts: its map may take several blocks."""
    goes_on = block[482] != 0
    while goes_on:
        more = read(content, BLOCK)
        content += BLOCK
        goes_on = len(more) == BLOCK and more[504] != 0
    return content


def _problem(header: tarfile.TarInfo, attributes: dict[str, str], name: str, size: int) -> str | None:
    """Return why the content of a member cannot be read; None if it can."""
    if header.islnk() or header.issym():
        return f"the member is a link to {header.linkname!r:.200}. Pack the file itself (tar --dereference)."
    if header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in attributes):
        return "the member is a sparse file, which is not read. Pack it without --sparse."
    if not header.isreg():
        return "the member is a device or a pipe, and no file"
    if len(name) > _MAX_NAME:
        return f"the name of the member has {len(name)} characters; the limit is {_MAX_NAME}"
    return None if size else "the member has 0 bytes"
