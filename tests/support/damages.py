"""Small inputs of a scan in every format, and random damages to them."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.pictures import draw_jpeg

ROWS = 6
TEXT = "Die Bürgermeisterin lächelt, „sagt“ sie; № {}"
ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**30, "", " ", "\x00", "\ud800", "a" * 5000, [], {}, [None],
    ["a", "b"], {"bytes": None, "path": None}, {"a": {"b": [1]}}, "http://host/a.jpg", "../../etc/passwd", "NaN",
    "data:image/png;base64,@@@", "s3://", "file://", "\\\\host\\a.jpg",
)  # fmt: skip
"""Values that a field may have by mistake or by malice."""


def records() -> list[dict[str, Any]]:
    """Return a few records whose pictures exist beside the table."""
    return [{"id": f"r{n}", "image": f"{n}.jpg", "text": TEXT.format(n), "year": 2000 + n} for n in range(ROWS)]


def write_pictures(folder: Path) -> None:
    """Write the pictures that `records` name."""
    for number in range(ROWS):
        (folder / f"{number}.jpg").write_bytes(draw_jpeg(number))


def _csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    file = io.StringIO(newline="")
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(file, names, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode(errors="surrogatepass")


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, OverflowError, UnicodeError):  # a column has one type
            columns[name] = pa.array([ascii(value) for value in values])
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def _pictures_in_parquet(rows: list[dict[str, Any]]) -> bytes:
    pictures = [
        row | {"image": {"bytes": draw_jpeg(n), "path": row["image"]} if isinstance(row["image"], str) else None}
        for n, row in enumerate(rows)
    ]
    return _parquet(pictures)


def _tar(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, row in enumerate(rows):
            for suffix, data in (("jpg", draw_jpeg(number)), ("json", json.dumps(row).encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


FORMATS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "a.csv": _csv,
    "a.tsv": lambda rows: _csv(rows, "\t"),
    "a.jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    "array.json": lambda rows: json.dumps(rows).encode(),
    "keyed.json": lambda rows: json.dumps({"info": {}, "data": rows}, indent=1).encode(),
    "columns.json": lambda rows: json.dumps({name: [row.get(name) for row in rows] for name in rows[0]}).encode(),
    "coco.json": lambda rows: json.dumps({
        "images": [{"id": n, "file_name": row.get("image")} for n, row in enumerate(rows)],
        "annotations": [{"id": n, "image_id": n, "caption": row.get("text")} for n, row in enumerate(rows)],
    }).encode(),
    "packed.jsonl.gz": lambda rows: gzip.compress(FORMATS["a.jsonl"](rows), mtime=0),
    "base64.jsonl": lambda rows: FORMATS["a.jsonl"](
        [row | {"image": base64.b64encode(draw_jpeg(n)).decode()} for n, row in enumerate(rows)]
    ),
    "a.parquet": _parquet,
    "pictures.parquet": _pictures_in_parquet,
    "a.tar": _tar,
}  # fmt: skip
"""Writers of inputs by the name of their file."""


def damage(name: str, draw: random.Random) -> bytes:
    """Return an input of the format of `name` with one to three random damages: in its values or in its bytes."""
    rows = records()
    for _ in range(draw.choice((0, 0, 1, 2))):
        row = draw.choice(rows)
        row[draw.choice(list(row))] = draw.choice(ODD_VALUES)
    data = FORMATS[name](rows)
    for _ in range(draw.choice((0, 1, 1, 2))):
        data = draw.choice(_BYTE_DAMAGES)(data, draw)
    return data


def _flip(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 9)):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _drop(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[:start] + data[start + draw.randrange(1, 40) :]


def _insert(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data) + 1)
    what = draw.choice(
        (b"\n", b"\r", b'"', b",", b"\x00", b"{", b"]", b"\xff\xfe", b"\\", draw.randbytes(9), data[:50])
    )
    return data[:start] + what + data[start:]


def _repeat(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[:start] + data[start : start + draw.randrange(1, 400)] + data[start:]


def _encode(data: bytes, draw: random.Random) -> bytes:
    """Write a text in another encoding, or data that is no text as if it were one."""
    text = data.decode("utf-8", "replace")
    return text.encode(draw.choice(("utf-16", "utf-16-le", "cp1252", "latin-1", "utf-8-sig", "shift_jis")), "replace")


_BYTE_DAMAGES = (_flip, _cut, _drop, _insert, _repeat, _encode)
