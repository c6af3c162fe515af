"""The index of a split: its records and what is known of their pictures, as the driver leaves it for all workers.

So a corpus is listed, read and joined once, and every worker of a run, and every later go at it, sees the same pairs
in the same order, whatever has happened to the corpus since.
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
    """What a file holds."""

    records: list[Record]
    pictures: PictureSizes
    about: dict[str, Any]
    """What it was made of."""


def write_index(file: Path, records: Sequence[Record], pictures: PictureInfo, about: dict[str, Any]) -> None:
    """Write the index of a split; `about`, with the `image_size`, says what it was made of."""
    rows = []
    for record in records:
        width, height = pictures.sizes[pictures.index[record.image]].tolist()
        known = {"image": str(record.image), "width": width, "height": height}
        rows.append(asdict(record) | known | {"broken": pictures.broken.get(record.image)})
    table = pa.Table.from_pylist(rows, _SCHEMA).replace_schema_metadata({_ABOUT: json.dumps(about)})
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.rename(file)


def about_index(file: Path) -> dict[str, Any] | None:
    """What an index was made of; None where there is none."""
    return _about(pq.read_schema(file)) if file.exists() else None


def _about(schema: pa.Schema) -> dict[str, Any]:
    return dict(json.loads(schema.metadata[_ABOUT]))


def read_index(file: Path) -> SplitIndex:
    """The records of a split and the sizes of their pictures."""
    table = pq.read_table(file)
    sizes: dict[ImageAddress, tuple[int, int]] = {}
    broken: dict[ImageAddress, str] = {}
    records = []
    for row in table.to_pylist():
        width, height, problem = row.pop("width"), row.pop("height"), row.pop("broken")
        place = picture_address(row["image"])
        sizes[place] = width, height
        if problem is not None:
            broken[place] = problem
        box, positions = tuple(row.pop("fake_image_box")), tuple(row.pop("fake_text_pos"))
        records.append(Record(**row | {"image": place}, fake_image_box=box, fake_text_pos=positions))
    index = {place: number for number, place in enumerate(sizes)}
    about = _about(table.schema)
    measured = np.array(list(sizes.values()), np.int32)
    return SplitIndex(records, PictureSizes(measured, index, about["image_size"], broken), about)
