"""The process that decodes untrusted pictures: it may be killed, or run out of memory, and nothing else is lost.

It reads messages from stdin and answers on stdout: four bytes of length, a JSON header, and so many bytes as the
header's `bytes` says. `serve.inference.decoder_pool` starts it.
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
_BASE_MEMORY = 2 * 2**30
_BYTES_A_PIXEL = 12
_EVIDENCE_SIDE = 1024
"""Pixels: a picture with its evidence is drawn no larger."""


def write_message(stream: BinaryIO, header: dict[str, Any], data: bytes = b"") -> None:
    """A header and its bytes."""
    encoded = json.dumps(header | {"bytes": len(data)}).encode()
    stream.write(struct.pack(">I", len(encoded)) + encoded)
    stream.write(data)
    stream.flush()


def read_message(stream: BinaryIO) -> Message:
    """The next message. Raises `EOFError` where the other side is gone."""
    (length,) = struct.unpack(">I", _exactly(stream, 4))
    header = json.loads(_exactly(stream, length))
    return header, _exactly(stream, header["bytes"])


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def answer(header: dict[str, Any], data: bytes, limits: ImageLimits) -> Message:
    """`prepare`: the square of pixels and what the picture was; `draw`: a JPEG with the box of a finding drawn."""
    try:
        if header["task"] == "draw":
            return {}, _draw(data, header["finding"], limits)
        prepared = prepare_image(data, header["image_size"], limits)
    except InputError as error:
        return {"error": error.code, "detail": str(error)}, b""
    except MemoryError:
        return {"error": DecodeFailed.code, "detail": "the image takes more memory to decode than it may"}, b""
    about = {name: getattr(prepared, name) for name in ("width", "height", "sha256", "warnings")}
    return about, prepared.pixels.tobytes()


def _draw(data: bytes, finding: dict[str, Any], limits: ImageLimits) -> bytes:
    picture = decode_image(data, limits, min_side=_EVIDENCE_SIDE).image
    picture.thumbnail((_EVIDENCE_SIDE, _EVIDENCE_SIDE))
    buffer = io.BytesIO()
    draw_evidence(picture, Finding(**finding)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _limit_memory(limits: ImageLimits) -> None:
    with suppress(ImportError, ValueError, OSError):  # not every system has it
        import resource

        most = _BASE_MEMORY + _BYTES_A_PIXEL * limits.max_pixels + 4 * limits.max_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    """Answer until stdin ends. Arguments: the most bytes and pixels of a picture."""
    limits = ImageLimits(max_bytes=int(sys.argv[1]), max_pixels=int(sys.argv[2]))
    _limit_memory(limits)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a decoder prints is not an answer
    with suppress(EOFError, BrokenPipeError):
        write_message(replies, {})  # ready
        while True:
            write_message(replies, *answer(*read_message(sys.stdin.buffer), limits))
