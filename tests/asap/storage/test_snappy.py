"""Tests of snappy's block format, read as a stream."""

from __future__ import annotations

import io
import random

import pyarrow as pa
import pytest

from asap.storage.snappy import SnappyStream

TEXTS = {
    "empty": b"",
    "random": random.Random(0).randbytes(300_000),
    "one byte repeated": b"a" * 300_000,
    "words": b" ".join(random.Random(1).choices([b"picture", b"of", b"a", b"face"], k=100_000)),
    "literals of every length": b"".join(random.Random(2).randbytes(size) for size in (*range(70), 255, 257, 70_000)),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_block_gives_the_bytes_that_were_compressed_whatever_is_read_at_a_time(name: str) -> None:
    data = TEXTS[name]
    compressed = pa.compress(data, "snappy", asbytes=True)
    for sizes in ([2**22], [1, 70_000], [4, 1000, 65_536]):
        stream = SnappyStream(io.BytesIO(compressed))
        pieces, draw = [], random.Random(3)
        while piece := stream.read(draw.choice(sizes)):
            pieces.append(piece)
        assert b"".join(pieces) == data


def test_a_block_that_is_cut_or_points_before_its_beginning_is_an_error() -> None:
    compressed = pa.compress(TEXTS["random"], "snappy", asbytes=True)
    with pytest.raises(ValueError, match="ends within a value"):
        SnappyStream(io.BytesIO(compressed[:-1000])).read(2**22)
    copy_from_nowhere = bytes([8, 0b00_000_001, 9])
    with pytest.raises(ValueError, match="snappy data are damaged"):
        SnappyStream(io.BytesIO(copy_from_nowhere)).read(8)
