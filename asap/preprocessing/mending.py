"""Damaged files made readable: what a decoder does not need is left out, and what is missing at the end is counted.

The functions take bytes and return bytes. They decode no picture, so a file that they mend passes all guards again.
The pixels of a PNG are decompressed to be counted: the caller checks its size first, with `png_size`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from asap.preprocessing.headers import jpeg_scans

LEAST_SHARE = 0.95
"""The least share of a picture that must be there for it to be analyzed."""
_PNG_HEADER = b"\x89PNG\r\n\x1a\n"
_PNG_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
"""Chunks that change the pixels or their rotation."""
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Channels of each color type of PNG."""
_MOST_CHUNKS = 20_000
"""The most chunks of a PNG or WebP that are looked at: at the usual 8 KiB each, this is 160 MiB."""
_LARGE_CHUNK = 2**20
"""Bytes of text or color profile that Pillow refuses."""
_BLOCK, _STEP = 2**16, 2**20
"""Bytes of compressed pixels that are given to zlib at a time, and of pixels that it gives back."""
_ZEROS = bytes(16)
"""The end of a file whose space was reserved before it was copied, if the copy did not finish."""
_WEBP_METADATA_FLAGS = 0x20 | 0x08 | 0x04  # ICC profile, EXIF, XMP
_WEBP_PICTURE = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")


@dataclass(frozen=True, kw_only=True)
class Mended:
    """A file that a decoder may read, and what a person must know about it."""

    data: bytes
    warnings: list[str] = field(default_factory=list)
    rows: int | None = None
    """Rows that are there, in the order of the file; None if the file does not end early."""
    height: int = 0
    """Rows that the header promises."""


def lacks_end(name: str, data: bytes) -> bool:
    """Return True if zeros fill up a JPEG or PNG that was cut off. Decoders would show them as pixels."""
    if not data.endswith(_ZEROS):
        return False
    if name == "JPEG":
        return not data.rstrip(b"\0").endswith(b"\xff\xd9")
    return name == "PNG" and b"IEND" not in data


def find_missing_end(name: str, data: bytes) -> str | None:
    """Return a warning if a file that was decoded has no end marker, else None."""
    if name == "PNG" and b"IEND" not in data[-64:] and b"IEND" not in data:
        return "the PNG image has no end marker; all of its rows are there"
    if name == "GIF" and data[-1:] != b";" and b";" not in data[-64:]:
        return "the GIF image has no end marker; its first frame is there"
    return None


def mend(name: str, data: bytes) -> Mended | None:
    """Return the file of a format without its damage; None if it cannot be mended."""
    if name == "PNG":
        return _mend_png(data)
    if name == "WEBP":
        return _mend_webp(data)
    if name == "BMP":
        return _mend_bmp(data)
    return None


def has_all_frequencies(data: bytes) -> bool:
    """Return True if the scans of a JPEG, with the last one, hold every coefficient of every component.

    The file of a progressive JPEG begins with a blurred image, and a cut one may hold no more than that.
    """
    found: dict[int, set[int]] = {}
    components: list[int] = []
    for frame, scan in jpeg_scans(data):
        components = list(frame[6::3][: frame[5]]) if len(frame) > 5 else []
        if len(scan) < 4 or len(scan) < 4 + 2 * scan[0]:
            return False
        first, last = scan[1 + 2 * scan[0]], scan[2 + 2 * scan[0]]
        for component in scan[1 : 1 + 2 * scan[0] : 2]:
            found.setdefault(component, set()).update(range(first, min(last, 63) + 1))
    return bool(components) and all(len(found.get(component, ())) == 64 for component in components)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield kind and content of each chunk, and True if its checksum is right. The last one may be cut."""
    position = len(_PNG_HEADER)
    for _ in range(_MOST_CHUNKS):
        if position + 8 > len(data):
            return
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        if not kind.isalpha():
            return
        content = data[position + 8 : position + 8 + length]
        checksum = data[position + 8 + length : position + 12 + length]
        yield kind, content, checksum == zlib.crc32(content, zlib.crc32(kind)).to_bytes(4)
        position += 12 + length


def png_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height that a PNG states; None if it states none."""
    header = next((content for kind, content, _ in _png_chunks(data) if kind == b"IHDR"), b"")
    return struct.unpack(">II", header[:8]) if len(header) >= 8 else None


def _mend_png(data: bytes) -> Mended | None:
    """Keep the chunks that change pixels; count the rows if the last one is cut."""
    if data.endswith(_ZEROS):
        data = data.rstrip(b"\0")
    kept, left_out, frames, header = [_PNG_HEADER], [], 1, b""
    for kind, content, sound in _png_chunks(data):
        if kind == b"IDAT" or (kind in _PNG_NEEDED and sound):
            kept.append(_png_chunk(kind, content))
        elif kind[:1].isupper():
            return None  # a critical chunk that is damaged or unknown: the pixels would be wrong
        if kind[:1].islower() and (not sound or len(content) > _LARGE_CHUNK or kind in (b"zTXt", b"iTXt", b"iCCP")):
            left_out.append(kind.decode())
        if kind == b"acTL" and len(content) >= 4:
            frames = int.from_bytes(content[:4])
        if kind == b"IHDR":
            if header:
                return None  # the size that was checked is that of the first
            header = content
    if len(header) != 13 or header[9] not in _PNG_CHANNELS:
        return None
    notes = []
    if left_out:
        names = ", ".join(dict.fromkeys(left_out))
        notes.append(f"the PNG image has data beside its pixels that are damaged or too large; left out: {names}")
    if frames > 1:
        notes.append("the image has several frames; only the first was analyzed")
    mended = b"".join(kept)
    try:
        rows = _count_png_rows(mended, header)
    except zlib.error:
        return None  # damaged, and not only cut off: rows before the error may be wrong too
    return Mended(data=mended, warnings=notes, rows=rows, height=int.from_bytes(header[4:8]))


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content), kind) + content + zlib.crc32(content, zlib.crc32(kind)).to_bytes(4)


def _count_png_rows(data: bytes, header: bytes) -> int | None:
    """Return how many rows can be decompressed; None if it is all of them, and the end is there too.

    Raises `zlib.error` if the data are damaged.
    """
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _PNG_CHANNELS[color]
    whole = height * (1 + -(-width * bits // 8))
    if interlaced:
        starts = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))  # x, y, steps
        early = 0
        for left, top, across, down in starts:
            columns, lines = -(-max(0, width - left) // across), -(-max(0, height - top) // down)
            early += lines * (1 + -(-columns * bits // 8)) if columns else 0
        whole = early + height // 2 * (1 + -(-width * bits // 8))
    count, finished = _count_decompressed(data, whole)
    if finished and count >= whole:
        return None
    if interlaced:  # the last pass holds every second row
        return max(0, min(height, 2 * ((count - early) // (1 + -(-width * bits // 8)))))
    return min(height, count // (1 + -(-width * bits // 8)))


def _count_decompressed(data: bytes, most: int) -> tuple[int, bool]:
    """Return how many bytes the pixels of a PNG decompress to, up to `most`, and True if the stream has its end."""
    unpack, count = zlib.decompressobj(), 0
    for kind, content, _ in _png_chunks(data):
        # What is left of a block is copied in each step, so blocks are small.
        for start in range(0, len(content) if kind == b"IDAT" else 0, _BLOCK):
            rest = content[start : start + _BLOCK]
            while rest and count <= most and not unpack.eof:
                added = len(unpack.decompress(rest, _STEP))
                if not added and len(unpack.unconsumed_tail) >= len(rest):
                    return count, False  # no progress
                count, rest = count + added, unpack.unconsumed_tail
    return count, unpack.eof


def _mend_webp(data: bytes) -> Mended | None:
    """Keep the chunks of the picture, and make the sizes and flags agree with them."""
    kept, has_picture, position = [], False, 12
    for _ in range(_MOST_CHUNKS):
        if position + 8 > len(data):
            break
        kind, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        content = data[position + 8 : position + 8 + length]
        if kind in _WEBP_PICTURE:
            if len(content) < length:
                return None
            if kind == b"VP8X" and content:
                content = bytes([content[0] & ~_WEBP_METADATA_FLAGS]) + content[1:]
            kept.append(kind + struct.pack("<I", length) + content + bytes(length % 2))
            has_picture |= kind in (b"VP8 ", b"VP8L", b"ANMF")
        position += 8 + length + length % 2
    if not has_picture:
        return None
    body = b"WEBP" + b"".join(kept)
    note = "the WebP image has wrong sizes or damaged metadata; its color profile, EXIF and XMP were left out"
    return Mended(data=b"RIFF" + struct.pack("<I", len(body)) + body, warnings=[note])


def _mend_bmp(data: bytes) -> Mended | None:
    """Fill up a BMP of 24 or 32 bits that is cut off; correct a wrong offset of its pixels."""
    if len(data) < 54:
        return None
    offset, header = struct.unpack("<II", data[10:18])
    if header < 40:
        return None
    width, height, _, bits, compression = struct.unpack("<iiHHI", data[18:34])
    if bits not in (24, 32) or compression or width < 1 or not height or height < -(2**31) + 1:
        return None
    row = (width * bits + 31) // 32 * 4
    notes = []
    if not 14 + header <= offset <= len(data) - 1:
        offset = 14 + header
        data = data[:10] + struct.pack("<I", offset) + data[14:]
        notes.append("the BMP image has a wrong offset of its pixels in its header; it was corrected")
    missing = row * abs(height) - (len(data) - offset)
    if missing <= 0:
        return Mended(data=data, warnings=notes) if notes else None
    rows = (len(data) - offset) // row
    filled = b"" if rows < LEAST_SHARE * abs(height) else bytes([128]) * (row * (abs(height) - rows))
    return Mended(data=data[: offset + rows * row] + filled, warnings=notes, rows=rows, height=abs(height))
