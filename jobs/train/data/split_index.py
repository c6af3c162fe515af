"""The index of a split: its records and the sizes of their pictures, written by the driver for all workers.

The corpus is listed, read and joined once. Every worker of a run, and every later start of it, then sees the same
pairs in the same order, whatever has happened to the corpus since.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from asap.corpus.folder import ImageAddress
from asap.corpus.picture_cache import PictureInfo, PictureSizes, picture_address
from asap.corpus.reader import Record
from asap.storage.files import write_atomically

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("text", pa.string()),
        ("fake_cls", pa.string()),
        ("fake_image_box", pa.list_(pa.float64())),
        ("fake_text_pos", pa.list_(pa.int32())),
        ("caption", pa.string()),
        ("explanation", pa.string()),
        ("label_set", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("broken", pa.string()),
    ]
)
_ABOUT = b"about"


@dataclass(frozen=True)
class SplitIndex:
    """The contents of an index file."""

    records: list[Record]
    pictures: PictureSizes
    about: dict[str, Any]
    """Description of the data that the index was made from."""


def write_index(file: Path, records: Sequence[Record], pictures: PictureInfo, about: dict[str, Any]) -> None:
    """Write the index of a split.

    Args:
        file: The Parquet file to write.
        records: The records of the split.
        pictures: The sizes of their pictures, and which pictures are broken.
        about: Description of the data, with its `image_size`; `read_index` and `about_index` return it.
    """
    rows = []
    for record in records:
        width, height = pictures.sizes[pictures.index[record.image]].tolist()
        picture = {"image": str(record.image), "width": width, "height": height}
        rows.append(asdict(record) | picture | {"broken": pictures.broken.get(record.image)})
    table = pa.Table.from_pylist(rows, _SCHEMA).replace_schema_metadata({_ABOUT: json.dumps(about)})
    with write_atomically(file) as draft:
        pq.write_table(table, draft)


def about_index(file: Path) -> dict[str, Any] | None:
    """Return the description of the data that an index was made from, or None if there is no index."""
    return _about(pq.read_schema(file)) if file.exists() else None


def read_index(file: Path) -> SplitIndex:
    """Read the records of a split and the sizes of their pictures."""
    table = pq.read_table(file)
    sizes: dict[ImageAddress, tuple[int, int]] = {}
    broken: dict[ImageAddress, str] = {}
    records = []
    for row in table.to_pylist():
        width, height, problem = row.pop("width"), row.pop("height"), row.pop("broken")
        address = picture_address(row["image"])
        sizes[address] = width, height
        if problem is not None:
            broken[address] = problem
        # Parquet returns lists, but a record is hashable and holds tuples.
        box, positions = tuple(row.pop("fake_image_box")), row.pop("fake_text_pos")
        fake_text_pos = None if positions is None else tuple(positions)
        records.append(Record(**row | {"image": address}, fake_image_box=box, fake_text_pos=fake_text_pos))
    index = {address: number for number, address in enumerate(sizes)}
    about = _about(table.schema)
    size_array = np.array(list(sizes.values()), np.int32)
    return SplitIndex(records, PictureSizes(size_array, index, about["image_size"], broken), about)


def _about(schema: pa.Schema) -> dict[str, Any]:
    return dict(json.loads(schema.metadata[_ABOUT]))
