"""Snappy's block format, decompressed as a stream, which pyarrow does not do."""

from __future__ import annotations

from typing import Protocol

_WINDOW = 2**16
"""Distance that snappy looks back: it compresses blocks of this size, each for itself."""


class ByteStream(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return so many bytes, or fewer at the end."""


class SnappyStream:
    """The plain bytes of a block, made piece by piece. Damaged ones raise `ValueError` or `IndexError`."""

    def __init__(self, source: ByteStream) -> None:
        self._source = source
        self._input, self._at = b"", 0
        self._output, self._read = bytearray(), 0
        self._literal = 0
        """Bytes of a literal that are still in the source."""
        self._refill()
        _, self._at = read_varint(self._input, 0)  # the length of all

    def read(self, size: int, /) -> bytes:
        """Return so many bytes, or fewer at the end."""
        while len(self._output) - self._read < size and self._more():
            pass
        data = bytes(self._output[self._read : self._read + size])
        self._read += len(data)
        if self._read > 16 * _WINDOW:
            del self._output[: self._read - _WINDOW]
            self._read = _WINDOW
        return data

    def _refill(self) -> bool:
        """Read on in the source; return False at its end."""
        block = self._source.read(2**18)
        self._input, self._at = self._input[self._at :] + (block or b""), 0
        return bool(block)

    def _more(self) -> bool:
        """Undo about a window more; return False at the end."""
        output, target = self._output, len(self._output) + _WINDOW
        while len(output) < target:
            if len(self._input) - self._at < 5 and not self._refill() and self._at >= len(self._input):
                if self._literal:
                    raise ValueError("a page ends within a value")
                return False
            data, at = self._input, self._at
            if self._literal:
                piece = data[at : at + self._literal]
                output += piece
                self._at, self._literal = at + len(piece), self._literal - len(piece)
                continue
            tag = data[at]
            kind = tag & 3
            if kind == 0:
                length, at = tag >> 2, at + 1
                if length >= 60:
                    width = length - 59
                    length, at = int.from_bytes(data[at : at + width], "little"), at + width
                self._at, self._literal = at, length + 1
                continue
            if kind == 1:
                length, offset, at = 4 + (tag >> 2 & 7), (tag >> 5) << 8 | data[at + 1], at + 2
            else:
                width = 2 if kind == 2 else 4
                length, offset = 1 + (tag >> 2), int.from_bytes(data[at + 1 : at + 1 + width], "little")
                at += 1 + width
            self._at = at
            start = len(output) - offset
            if offset == 0 or start < 0:
                raise ValueError("its snappy data are damaged")
            if offset >= length:
                output += output[start : start + length]
            else:  # the copy overlaps itself: it repeats
                output += (output[start:] * (length // offset + 1))[:length]
        return True


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number that is stored in as many bytes as it needs, and the position behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
