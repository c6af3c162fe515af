"""The process that decodes untrusted pictures. It may be killed or run out of memory, and nothing else is lost.

It reads messages from stdin and answers on stdout. A message is four bytes with the length of its header, the header
in JSON, and as many bytes of data as the header's `bytes` says. `serve.inference.decoder_pool` starts the process.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
from contextlib import suppress
from typing import Any, BinaryIO

from asap.errors import DecodeFailed, InputError
from asap.finding import Finding
from asap.preprocessing.images import ImageLimits, decode_image, prepare_image
from asap.render import draw_evidence

Message = tuple[dict[str, Any], bytes]
"""A header and its data."""
_BASE_MEMORY = 2 * 2**30
"""Bytes of address space for Python and its libraries."""
_BYTES_PER_PIXEL = 12
_EVIDENCE_SIDE = 1024
"""Largest side, in pixels, of a picture with evidence drawn on it."""


def write_message(stream: BinaryIO, header: dict[str, Any], data: bytes = b"") -> None:
    """Write a message and flush the stream."""
    encoded = json.dumps(header | {"bytes": len(data)}).encode()
    stream.write(struct.pack(">I", len(encoded)) + encoded)
    stream.write(data)
    stream.flush()


def read_message(stream: BinaryIO) -> Message:
    """Read the next message. Raises `EOFError` if the other process is gone."""
    (length,) = struct.unpack(">I", _read_exactly(stream, 4))
    header = json.loads(_read_exactly(stream, length))
    return header, _read_exactly(stream, header["bytes"])


def _read_exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def answer(header: dict[str, Any], data: bytes, limits: ImageLimits) -> Message:
    """Do the task of a message and return the answer, which is an error if the picture cannot be read.

    Args:
        header: The `task`: `prepare` returns the picture's pixels at model size, and facts about the picture; `draw`
            returns a JPEG with the evidence of the header's `finding`.
        data: The encoded picture.
        limits: Limits of the picture.
    """
    try:
        if header["task"] == "draw":
            return {}, _draw(data, header["finding"], limits)
        prepared = prepare_image(data, header["image_size"], limits)
    except InputError as error:
        return {"error": error.code, "detail": str(error)}, b""
    except MemoryError:
        return {"error": DecodeFailed.code, "detail": "the image needs more memory to decode than is allowed"}, b""
    about = {name: getattr(prepared, name) for name in ("width", "height", "sha256", "warnings")}
    return about, prepared.pixels.tobytes()


def _draw(data: bytes, finding: dict[str, Any], limits: ImageLimits) -> bytes:
    picture = decode_image(data, limits, min_side=_EVIDENCE_SIDE).image
    picture.thumbnail((_EVIDENCE_SIDE, _EVIDENCE_SIDE))
    buffer = io.BytesIO()
    draw_evidence(picture, Finding(**finding)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _limit_memory(limits: ImageLimits) -> None:
    with suppress(ImportError, ValueError, OSError):  # not every system has such limits
        import resource

        most = _BASE_MEMORY + _BYTES_PER_PIXEL * limits.max_pixels + 4 * limits.max_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    """Answer messages until stdin ends. Command line: the limits of a picture, in bytes and in pixels."""
    limits = ImageLimits(max_bytes=int(sys.argv[1]), max_pixels=int(sys.argv[2]))
    _limit_memory(limits)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # stdout becomes stderr: text that a decoder prints is not an answer
    with suppress(EOFError, BrokenPipeError):
        write_message(replies, {})  # ready
        while True:
            write_message(replies, *answer(*read_message(sys.stdin.buffer), limits))
