"""The index of a split, which the driver writes and the workers read."""

from pathlib import Path

import numpy as np

from asap.corpus.picture_cache import PictureSizes
from asap.corpus.reader import Record
from jobs.train.data.split_index import about_index, read_index, write_index

TEXT = {"text": "a \u201cman\u201d waits", "caption": "a coat", "explanation": "he stands"}
RECORDS = [
    Record("1", Path("/corpus/a.png"), **TEXT, fake_cls="face_swap", fake_image_box=(1.5, 2.0, 9.25, 1e3),
           fake_text_pos=(0, 2)),
    Record("2", "s3://bucket/b.png", **TEXT, fake_cls="origin", fake_image_box=(), fake_text_pos=(), label_set="dgm4+"),
    Record("1", Path("/corpus/a.png"), **TEXT, fake_cls="orig", fake_image_box=(), fake_text_pos=()),
    Record("2", Path("/corpus/a.png"), **TEXT, fake_cls="text_swap", fake_image_box=(), fake_text_pos=None),
]  # fmt: skip
PICTURES = PictureSizes(
    np.array([[80, 60], [0, 0]], np.int32), {RECORDS[0].image: 0, RECORDS[1].image: 1}, 32, {RECORDS[1].image: "cut"}
)


def test_records_and_sizes_come_back_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "index/train.parquet"
    assert about_index(file) is None
    write_index(file, RECORDS, PICTURES, {"pairs": 3, "image_size": 32})
    found = read_index(file)
    assert found.records == RECORDS
    assert found.about == about_index(file) == {"pairs": 3, "image_size": 32}
    assert found.pictures.sizes.tolist() == [[80, 60], [0, 0]]
    assert (found.pictures.index, found.pictures.broken) == (PICTURES.index, PICTURES.broken)
    assert found.pictures.image_size == 32
    assert [path.name for path in file.parent.iterdir()] == ["train.parquet"]
