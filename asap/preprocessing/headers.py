"""Numbers in the headers of pictures that say how much work a decoder will have.

A decoder of AVIF, HEIC or JPEG 2000 believes the bit stream, and Pillow the container around it. A small file may so
hide a large image. These functions read both, before a decoder runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from asap.errors import DecodeFailed

Size = tuple[int, int]
"""Width and height."""

_MAX_SCANS = 100
"""The most scans that a JPEG may have; progressive encoders write about ten."""
_MAX_LAYERS = 100
_MAX_TILES = 10_000
_MIN_BLOCK = 8
"""The smallest code block of JPEG 2000, as the exponent of its area: 16 x 16. Encoders write 32 x 32 or 64 x 64."""
_MAX_PRECINCTS = 200_000
"""The most precincts of a JPEG 2000: 64 million pixels in precincts of 64 x 64 are half as many."""
_MAX_DEPTH = 10
_MAX_STEPS = 100_000
"""The most boxes and parts of bit streams in an ISO media file, and segments in a JPEG 2000, that are looked at."""
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""A marker with a length, or the end of the image; not a byte of a scan, a restart or a fill byte."""
_START_OF_SCAN = b"\xff\xda"
_HAS_CHILDREN = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0}
"""Boxes that hold boxes, and how many bytes precede the first."""


def check_scans(data: bytes) -> None:
    """Refuse a JPEG with more scans than any encoder writes: each one is decoded over the whole image."""
    # A plain count includes bytes that are not markers, so it is never too low. Most files need no second look.
    if data.count(_START_OF_SCAN) <= _MAX_SCANS:
        return
    for count, _ in enumerate(jpeg_scans(data), start=1):
        if count > _MAX_SCANS:
            raise DecodeFailed(f"the JPEG image has more than {_MAX_SCANS} scans. Re-save the image.")


def jpeg_scans(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the frame header that is in force and the scan header of each scan before the end of the image."""
    position, frame = 2, b""
    while (found := _MARKER.search(data, position)) and (at := found.start()) + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xD9:  # end of image: the rest is not decoded
            return
        # Skip the segment, so that bytes in a comment do not count as scans.
        position = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xDA:
            yield frame, data[at + 4 : position]
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = data[at + 4 : position]


def jpeg2000_sizes(data: bytes) -> list[Size]:
    """Return the size of the image in the bit stream. Refuse one that takes a decoder far more than its pixels."""
    start = data.find(b"\xff\x4f\xff\x51") if data[:2] == b"\xff\x4f" else -1
    if start < 0:
        first = islice(boxes(data, 0, len(data)), _MAX_STEPS)
        start = next((begin for kind, begin, _ in first if kind == b"jp2c"), -1)
    if start < 0 or len(data) < start + 42 or data[start : start + 4] != b"\xff\x4f\xff\x51":
        raise DecodeFailed("the JPEG2000 image is truncated or corrupt: it has no code stream. Re-save the image.")
    numbers = [int.from_bytes(data[start + 8 + 4 * i : start + 12 + 4 * i]) for i in range(8)]
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = numbers
    width, height = max(0, right - left), max(0, bottom - top)
    if not (tile_width and tile_height):
        raise DecodeFailed("the JPEG2000 image is corrupt: its tiles have no pixels. Re-save the image.")
    tiles = -(-max(0, right - tile_left) // tile_width) * -(-max(0, bottom - tile_top) // tile_height)
    if tiles > _MAX_TILES:
        raise DecodeFailed(f"the JPEG2000 image has {tiles} tiles; {_MAX_TILES} are the most. Re-save the image.")
    components = int.from_bytes(data[start + 40 : start + 42])
    for marker, segment in _jpeg2000_segments(data, start + 2):
        if marker == 0x52 and int.from_bytes(segment[2:4]) > _MAX_LAYERS:
            raise DecodeFailed(f"the JPEG2000 image has more than {_MAX_LAYERS} quality layers. Re-save the image.")
        if marker == 0x52:
            _check_coding(segment[:1], segment[5:], width, height)
        elif marker == 0x53:  # the same for one component
            number = 1 if components < 257 else 2
            _check_coding(segment[number : number + 1], segment[number + 1 :], width, height)
    return [(width, height)]


def _check_coding(style: bytes, coding: bytes, width: int, height: int) -> None:
    """Refuse code blocks and precincts that are so small and many that they fill the memory."""
    if len(coding) < 5 or not style:
        raise DecodeFailed("the JPEG2000 image is corrupt: a header ends too early. Re-save the image.")
    levels, block_area, precincts = coding[0], (coding[1] & 15) + (coding[2] & 15) + 4, 0
    if style[0] & 1:
        for resolution, sides in enumerate(coding[5 : 6 + levels]):
            down = max(0, levels - resolution)
            precincts += ((width >> down >> (sides & 15)) + 1) * ((height >> down >> (sides >> 4)) + 1)
    if block_area < _MIN_BLOCK or precincts > _MAX_PRECINCTS:
        raise DecodeFailed("the JPEG2000 image is cut into too many small blocks to be decoded. Re-save the image.")


def _jpeg2000_segments(data: bytes, position: int) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the content of each segment of the main header and of the headers of tiles."""
    next_tile = steps = 0
    while position + 4 <= len(data) and data[position] == 0xFF:
        steps += 1
        if steps > _MAX_STEPS:
            raise DecodeFailed("the JPEG2000 image has too many parts to be decoded. Re-save the image.")
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4])
        if marker == 0x90:  # a part of a tile
            size = int.from_bytes(data[position + 6 : position + 10])
            next_tile = position + size if size else len(data)
        elif marker == 0x93:  # the data of a tile
            if next_tile <= position:
                return
            position = next_tile
            continue
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + max(length, 2)


def boxes(data: bytes | memoryview, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each box of an ISO media file, and where its content begins and ends."""
    while start + 8 <= end:
        length, kind, content = int.from_bytes(data[start : start + 4]), bytes(data[start + 4 : start + 8]), start + 8
        if length == 1:
            length, content = int.from_bytes(data[start + 8 : start + 16]), start + 16
        elif length == 0:
            length = end - start
        if start + length < content:
            return
        yield kind, content, min(start + length, end)
        start += length


def iso_media_sizes(data: bytes) -> list[Size]:
    """Return every size that an AVIF or HEIC file gives to an image, in its boxes and in its bit streams."""
    walk = _IsoMedia(data)
    with suppress(IndexError):  # a header that ends too early: the decoder will refuse it
        walk.collect(0, len(data), 0, 0)
    return walk.sizes


class _IsoMedia:
    """A walk through the boxes of an ISO media file that collects the sizes of its images."""

    def __init__(self, data: bytes) -> None:
        self.sizes: list[Size] = []
        self._data = memoryview(data)
        self._steps = 0

    def collect(self, start: int, end: int, depth: int, idat: int) -> None:
        found = []
        for box in boxes(self._data, start, end):
            self._count_step()
            found.append(box)
        idat = next((begin for kind, begin, _ in found if kind == b"idat"), idat)
        for kind, begin, stop in found:
            content = self._data[begin:stop]
            if kind in _HAS_CHILDREN and depth < _MAX_DEPTH:
                self.collect(begin + _HAS_CHILDREN[kind], stop, depth + 1, idat)
            elif kind == b"iinf":
                self.collect(begin + (8 if content[0] else 6), stop, depth + 1, idat)
            elif kind == b"infe":
                _check_name(content[{2: 8, 3: 10}.get(content[0], 4) :])
            elif kind == b"colr":
                _check_name(content[:4])
            elif kind == b"ispe":
                self.sizes.append((int.from_bytes(content[4:8]), int.from_bytes(content[8:12])))
            elif kind == b"av1C":
                self._collect_av1(content[4:])
            elif kind == b"hvcC":
                self.sizes.extend(_hevc_sizes(content.tobytes()))
            elif kind == b"iloc":
                for offset, length in _locations(content, idat):
                    self._collect_av1(self._data[offset : offset + length if length else None])
            elif kind == b"stsd":
                for _, entry, entry_end in boxes(self._data, begin + 8, stop):
                    size = self._data[entry + 24 : entry + 28]
                    self.sizes.append((int.from_bytes(size[:2]), int.from_bytes(size[2:])))
                    self.collect(entry + 78, entry_end, depth + 1, idat)
            elif kind in (b"stco", b"co64"):  # the first picture of a sequence
                self._collect_av1(self._data[int.from_bytes(content[8 : 12 if kind == b"stco" else 16]) :])

    def _count_step(self) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise DecodeFailed("the image has too many parts to be decoded. Re-save the image.")

    def _collect_av1(self, stream: memoryview) -> None:
        """Collect the size in each sequence header of an AV1 stream. Bytes that are no such stream give none."""
        position = 0
        while position < len(stream):
            self._count_step()
            header = stream[position]
            if header & 0x81:  # reserved bits
                return
            position += 2 if header & 4 else 1
            length = len(stream) - position
            if header & 2:
                length, shift = 0, 0
                while position < len(stream) and shift < 56:
                    byte = stream[position]
                    length |= (byte & 127) << shift
                    position, shift = position + 1, shift + 7
                    if byte < 128:
                        break
            if header >> 3 & 15 == 1:
                with suppress(IndexError):
                    self.sizes.append(_av1_size(_Bits(stream[position : position + min(length, 512)])))
            position += length


def _check_name(name: memoryview) -> None:
    """Refuse a name that is no UTF-8. pi-heif 1.4 reads beyond a null pointer there, and ends the process."""
    try:
        str(name, "utf-8")
    except UnicodeDecodeError:
        raise DecodeFailed("the image is corrupt: the name of a part is damaged. Re-save the image.") from None


def _locations(iloc: memoryview, idat: int) -> Iterator[Size]:
    """Yield offset and length of every piece of data that an `iloc` box gives to an item."""
    version = iloc[0]
    offset_size, length_size, base_size = iloc[4] >> 4, iloc[4] & 15, iloc[5] >> 4
    index_size = iloc[5] & 15 if version else 0
    position = 6

    def number(size: int) -> int:
        nonlocal position
        position += size
        if position > len(iloc):
            raise IndexError
        return int.from_bytes(iloc[position - size : position])

    for _ in range(number(4 if version == 2 else 2)):
        number(4 if version == 2 else 2)
        inside = bool(version) and number(2) & 15 == 1  # the data are in the `idat` box
        number(2)
        base = number(base_size) + (idat if inside else 0)
        for _ in range(number(2)):
            number(index_size)
            yield base + number(offset_size), number(length_size)


class _Bits:
    """A reader of numbers that are some bits long."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._value = int.from_bytes(data)
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError
        return (self._value >> self._left) & ((1 << count) - 1)

    def read_golomb(self) -> int:
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)


def _av1_size(bits: _Bits) -> Size:
    bits.read(4)
    if bits.read(1):  # the header of a still picture
        bits.read(5)
    else:
        delay_bits = 0
        if bits.read(1):  # timing
            bits.read(64)
            if bits.read(1):
                bits.read_golomb()
            if bits.read(1):  # the decoder model
                delay_bits = bits.read(5) + 1
                bits.read(42)
        display_delay = bits.read(1)
        for _ in range(bits.read(5) + 1):
            bits.read(12)
            if bits.read(5) > 7:
                bits.read(1)
            if delay_bits and bits.read(1):
                bits.read(2 * delay_bits + 1)
            if display_delay and bits.read(1):
                bits.read(4)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return bits.read(width_bits) + 1, bits.read(height_bits) + 1


def _hevc_sizes(record: bytes) -> Iterator[Size]:
    """Yield the size in each sequence parameter set of an HEVC configuration record."""
    position = 23
    for _ in range(record[22]):
        kind, count = record[position] & 63, int.from_bytes(record[position + 1 : position + 3])
        position += 3
        for _ in range(count):
            length = int.from_bytes(record[position : position + 2])
            if position + 2 > len(record):
                return
            if kind == 33:
                with suppress(IndexError):
                    yield _hevc_size(_Bits(record[position + 2 : position + 2 + length].replace(b"\0\0\3", b"\0\0")))
            position += 2 + length


def _hevc_size(bits: _Bits) -> Size:
    bits.read(20)
    layers = bits.read(3)
    bits.read(1 + 96)
    flags = [bits.read(2) for _ in range(8 if layers else 0)]
    for flag in flags[:layers]:
        bits.read(88 * (flag >> 1) + 8 * (flag & 1))
    bits.read_golomb()
    if bits.read_golomb() == 3:
        bits.read(1)
    return bits.read_golomb(), bits.read_golomb()
