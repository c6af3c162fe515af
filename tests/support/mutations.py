"""Broken images by seed: flipped bits, cut ends, moved parts, extreme numbers in headers.

    python -m tests.support.mutations [--count 10000] [--seed 0]

This command sends that many images to the API in this process and prints the responses by format.
"""

from __future__ import annotations

import argparse
import io
import random
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from PIL import Image

from tests.support.pictures import draw_jpeg

FORMATS: dict[str, list[dict[str, Any]]] = {
    "JPEG": [{}, {"progressive": True, "subsampling": 0}],
    "PNG": [{}, {"mode": "P"}, {"mode": "I;16"}, {"mode": "RGBA"}],
    "WEBP": [{}, {"lossless": True}],
    "GIF": [{"mode": "P"}, {"mode": "P", "frames": 3}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"compression": "tiff_adobe_deflate"}],
    "BMP": [{}, {"mode": "P"}, {"mode": "1"}],
}
EXTREMES = (b"\0", b"\xff", b"\0\0", b"\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4), b"\xff" * 4)
BROKE = "broke its decoder"
"""A part of the error message for an image that crashed its decoder process."""


def pictures() -> dict[str, list[bytes]]:
    """Return intact images by format, several of each, because encoders write different structures."""
    return {kind: [_encoded(kind, **options) for options in variants] for kind, variants in FORMATS.items()}


def _encoded(kind: str, mode: str = "RGB", frames: int = 1, **options: Any) -> bytes:
    drawn = [Image.open(io.BytesIO(draw_jpeg(seed))) for seed in range(frames)]
    images = [picture.convert("L").convert(mode) if mode == "I;16" else picture.convert(mode) for picture in drawn]
    buffer = io.BytesIO()
    more: dict[str, Any] = {"save_all": True, "append_images": images[1:]} if frames > 1 else {}
    images[0].save(buffer, kind, **more, **options)
    return buffer.getvalue()


def mutated(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` broken images, each with the format it had."""
    rng, intact = random.Random(seed), pictures()
    kinds = list(intact)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        data = rng.choice(intact[kind])
        for _ in range(rng.choice((1, 1, 2, 4))):
            data = rng.choice(MUTATIONS)(rng, data, rng.choice(intact[rng.choice(kinds)]))
        yield kind, _sealed(data) if kind == "PNG" and rng.random() < 0.7 else data


def _sealed(png: bytes) -> bytes:
    """Correct the checksum of each chunk, so that a decoder reads the chunk's content."""
    sealed, at = bytearray(png), 8
    while at + 12 <= len(sealed):
        end = at + 8 + int.from_bytes(sealed[at : at + 4])
        if end + 4 > len(sealed):
            break
        sealed[end : end + 4] = zlib.crc32(sealed[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(sealed)


def _flip(rng: random.Random, data: bytes, other: bytes) -> bytes:
    broken = bytearray(data)
    for _ in range(rng.choice((1, 3, 30))):
        if broken:
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
    return bytes(broken)


def _cut(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Insert a part of another image, or replace a part with it."""
    at, part = rng.randrange(len(data) + 1), _part(rng, other)
    return data[:at] + part + data[at + rng.choice((0, len(part))) :]


def _repeat(rng: random.Random, data: bytes, other: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + _part(rng, data) * rng.choice((1, 50)) + data[at:]


def _drop(rng: random.Random, data: bytes, other: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.randrange(64) :]


def _exaggerate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Write an extreme number into the first bytes, where headers hold sizes."""
    at, number = rng.randrange(min(len(data), 200) + 1), rng.choice(EXTREMES)
    return data[:at] + number + data[at + len(number) :]


def _part(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[at : at + rng.choice((4, 64, 1024))]


MUTATIONS = (_flip, _cut, _splice, _repeat, _drop, _exaggerate)


def main() -> None:
    """Send broken images to the API and print the responses, as the module's docstring describes."""
    from asap.predictor import Predictor
    from tests.support.serving import TEXT, LocalDetector, api

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    responses: Counter[tuple[str, int, str]] = Counter()
    slowest, broken = 0.0, 0
    with api(LocalDetector(Predictor.from_folder("demo", "cpu"))) as client:
        client.post(
            "/v1/detect", files={"image": draw_jpeg(1)}, data={"text": TEXT}
        )  # the first request waits until everything is started
        for kind, data in mutated(arguments.count, arguments.seed):
            start = time.perf_counter()
            response = client.post("/v1/detect", files={"image": data}, data={"text": TEXT})
            slowest = max(slowest, time.perf_counter() - start)
            code = "" if response.status_code == 200 else response.json()["error"]["code"]
            responses[kind, response.status_code, code] += 1
            broken += BROKE in response.text
    for key, count in sorted(responses.items()):
        print(*key, count)  # noqa: T201
    print(f"slowest {slowest:.2f} s; decoder crashes: {broken}")  # noqa: T201


if __name__ == "__main__":
    main()
