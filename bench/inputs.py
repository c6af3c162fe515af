"""Measure how fast inputs of each kind become a manifest, beside a bare reader of the same bytes.

A bare reader is pyarrow for CSV, JSON lines and Parquet, Python's json for an array, and for folders and tars the
standard library: it lists the members with their sizes and reads the texts. The rounds alternate between both. A row is
counted when it is in the manifest; the look before, which finds out what the input is, is bounded and stands apart. The
pictures are a few bytes each: nothing here decodes one.

    python bench/inputs.py [--rows 100000] [--files 20000] [--rounds 3] [--kinds csv jsonl ...] [--json PATH]
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import statistics
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from costs import costs

TEXT = "Farm vet Lara Melton looks fearful carrying a bucket after the farm harvest in fearful spirits"
PICTURE = b"\xff\xd8\xff" + bytes(2000)


class Kind(NamedTuple):
    """A kind of input: how it is made, and how a bare reader reads it."""

    write: Callable[[Path, int], Path]
    """Writes an input of so many rows into a folder, and returns the address of it."""
    read: Callable[[Path], int]
    """Reads the input without this project, and returns the number of rows."""


def records(rows: int) -> list[dict[str, Any]]:
    """Return rows as a data set has them: a name, a picture, a text and two fields that only pass through."""
    return [
        {"id": str(number), "image": f"images/{number % 500}.jpg", "text": f"{TEXT} {number}", "source": "bbc",
         "fake_cls": "orig"}
        for number in range(rows)
    ]  # fmt: skip


def write_csv(folder: Path, rows: int) -> Path:
    """Write a CSV file."""
    path = folder / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records(1)[0]))
        writer.writeheader()
        writer.writerows(records(rows))
    return path


def write_jsonl(folder: Path, rows: int) -> Path:
    """Write a file of JSON lines."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(rows)))
    return path


def write_json(folder: Path, rows: int) -> Path:
    """Write a JSON array."""
    path = folder / "rows.json"
    path.write_text(json.dumps(records(rows)))
    return path


def write_parquet(folder: Path, rows: int) -> Path:
    """Write a Parquet file."""
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(records(rows)), path)
    return path


def write_pictures_in_parquet(folder: Path, rows: int) -> Path:
    """Write a Parquet file as HuggingFace does: the bytes of each picture in a struct."""
    path = folder / "inline.parquet"
    pictures = [record | {"image": {"bytes": PICTURE, "path": record["image"]}} for record in records(rows)]
    pq.write_table(pa.Table.from_pylist(pictures), path, row_group_size=1000)
    return path


def write_folder(folder: Path, files: int) -> Path:
    """Write pictures with a text file beside each."""
    pairs = folder / "pairs"
    pairs.mkdir()
    for number in range(files):
        (pairs / f"{number:06d}.jpg").write_bytes(PICTURE)
        (pairs / f"{number:06d}.txt").write_text(f"{TEXT} {number}")
    return pairs


def write_tar(folder: Path, files: int) -> Path:
    """Write a tar of pictures and texts, as WebDataset has them."""
    path = folder / "00000.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(files):
            for suffix, data in (("jpg", PICTURE), ("txt", f"{TEXT} {number}".encode())):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def read_folder(pairs: Path) -> int:
    """List a folder with the sizes of its files, and read its texts."""
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(pairs)}
    texts = [(pairs / name).read_text() for name in sorted(sizes) if name.endswith(".txt")]
    return len(texts)


def read_tar(path: Path) -> int:
    """List a tar, and read its texts."""
    texts = 0
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith(".txt") and (file := tar.extractfile(member)) is not None:
                file.read()
                texts += 1
    return texts


KINDS = {
    "csv": Kind(write_csv, lambda path: pa.csv.read_csv(path).num_rows),
    "jsonl": Kind(write_jsonl, lambda path: pa.json.read_json(path).num_rows),
    "json": Kind(write_json, lambda path: len(json.loads(path.read_text()))),
    "parquet": Kind(write_parquet, lambda path: pq.read_table(path).num_rows),
    "pictures in parquet": Kind(
        write_pictures_in_parquet, lambda path: pq.read_table(path, columns=["id", "image.path", "text"]).num_rows
    ),
    "folder": Kind(write_folder, read_folder),
    "tar": Kind(write_tar, read_tar),
}
"""Inputs of files take `--files` rows, the others `--rows`."""


def measure(kind: Kind, path: Path, rows: int, out: Path) -> dict[str, float]:
    """Return the rows per second of wall and CPU time of one round, of this project and of a bare reader."""
    from asap.storage.location import Location
    from jobs.scan.input.manifest import write_manifest
    from jobs.scan.input.sources import find_source

    with costs() as bare:
        read = kind.read(path)
    with costs() as look:
        source = find_source(str(path))
    with costs() as ours:
        written = write_manifest(source.tables(), Location(str(out)))
    if (read, written) != (rows, rows):
        raise SystemExit(f"{path} has {rows} rows, of which {written} were written and {read} read.")
    return {
        "ours": rows / ours.wall_s, "ours_cpu": rows / ours.cpu_s,
        "bare": rows / bare.wall_s, "bare_cpu": rows / max(bare.cpu_s, 1e-3), "share": bare.wall_s / ours.wall_s,
        "look_s": look.wall_s,
    }  # fmt: skip


def show(figures: dict[str, list[dict[str, float]]]) -> None:
    """Print the figures as a table: the median of the rounds, and the lowest and highest."""
    from rich.console import Console
    from rich.table import Table

    table = Table("input", "rows/s", "rows per CPU s", "bare reader, rows/s", "share of the bare reader", "look, s")
    for name, rounds in figures.items():
        cells = []
        for key in ("ours", "ours_cpu", "bare", "share", "look_s"):
            values = [row[key] for row in rounds]
            form = "{:.2f}" if key in ("share", "look_s") else "{:,.0f}"
            middle, low, high = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
            cells.append(f"{middle} ({low} to {high})")
        table.add_row(name, *cells)
    Console(width=170).print(table)


def main() -> None:
    """Write the inputs, run the rounds, print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--json", type=Path, help="File for the figures.")
    options = parser.parse_args()
    figures: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for kind in options.kinds:
            folder = Path(name) / kind.replace(" ", "-")
            folder.mkdir()
            rows = options.files if kind in ("folder", "tar", "pictures in parquet") else options.rows
            path = KINDS[kind].write(folder, rows)
            figures[kind] = [
                measure(KINDS[kind], path, rows, folder / f"manifest-{number}") for number in range(options.rounds)
            ]
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
