import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.storage.files import write_bytes
from asap.storage.location import Location
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import ManifestRow
from jobs.scan.input.sources import find_source
from tests.support.input_files import write_files


def _jsonl(*names: str, **fields: object) -> bytes:
    return b"".join(
        json.dumps({"image": f"{name}.jpg", "text": f"text {name}"} | fields).encode() + b"\n" for name in names
    )


def _rows(path: Path | str) -> list[ManifestRow]:
    return list(find_source(str(path)).rows())


def _texts(path: Path | str) -> list[str | None]:
    return [row.text for row in _rows(path)]


def test_parts_of_a_folder_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "part-00001.jsonl": _jsonl("c", source="wire"),
            "part-00000.jsonl": _jsonl("a", "b"),
            "part-00002.jsonl": b"",
            "_SUCCESS": b"",
            ".part-00000.jsonl.crc": b"crc",
            "README.md": b"# data",
            "._part-00000.jsonl": b"\0\5\x16\7",
        },
    )
    source = find_source(str(tmp_path))
    rows = list(source.rows())
    assert [(row.row_id, row.text) for row in rows] == [(0, "text a"), (1, "text b"), (1 << 32, "text c")]
    assert rows[0].image_uri == str(tmp_path / "a.jpg")
    assert source.kind == "jsonl"
    described = source.describe()
    assert (described["parts"], described["strays"], described["left_out"]) == ({"jsonl": 3}, 4, {})
    assert described["notes"] == ["All 3 tables are read: part-00000.jsonl, part-00001.jsonl, part-00002.jsonl."]


def test_a_folder_of_parquet_parts_may_have_an_extra_column(tmp_path: Path) -> None:
    for name, extra in (("train-00000-of-00002", {}), ("train-00001-of-00002", {"source": ["wire"]})):
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": ["a.jpg"], "text": [name]} | extra), tmp_path / f"data/{name}.parquet")
    write_files(tmp_path, {"dataset_infos.json": b"{}", ".gitattributes": b"x"})
    assert _texts(tmp_path) == ["train-00000-of-00002", "train-00001-of-00002"]
    assert _rows(tmp_path)[1].metadata == '{"source": "wire"}'


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("part-*.jsonl", "ab"),
        ("part-{0..1}.jsonl", "ab"),
        ("part-{1,2}.jsonl", "b"),
        ("part-[!0].jsonl", "b"),
        ("**/*.jsonl", "cabd"),
        ("*/*.jsonl", "c"),
        ("part-?.jsonl", "ab"),
    ],
)
def test_a_pattern_names_the_parts(tmp_path: Path, pattern: str, names: str) -> None:
    files = {"deep/c.jsonl": "c", "part-0.jsonl": "a", "part-1.jsonl": "b", "qart-0.jsonl": "d"}
    write_files(tmp_path, {name: _jsonl(text) for name, text in files.items()})
    assert _texts(tmp_path / pattern) == [f"text {name}" for name in names]


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    write_files(tmp_path, {"a[1]/part-0.jsonl": _jsonl("a"), "a1/part-0.jsonl": _jsonl("b")})
    assert _texts(tmp_path / "a[1]") == ["text a"]
    assert _texts(tmp_path / "a[1]/*.jsonl") == ["text b"]


def test_tables_of_different_kinds_are_refused_by_name(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jsonl": _jsonl("a"), "b.csv": b"image,text\nb.jpg,t\n", "vocabulary.json": b'{"a": 1}'})
    with pytest.raises(
        InputNotFound, match=r"different kinds \(jsonl: a.jsonl; csv: b.csv\).*Give the file, or a pattern"
    ):
        find_source(str(tmp_path))
    (tmp_path / "b.csv").unlink()
    assert _texts(tmp_path) == ["text a"]


def test_a_broken_part_is_refused_or_becomes_one_row_that_names_it(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["a.jpg"], "text": ["t"]}), tmp_path / "whole.parquet")
    parquet = (tmp_path / "whole.parquet").read_bytes()
    write_files(tmp_path / "tables", {f"part-{number:02}.parquet": parquet for number in range(20)})
    (tmp_path / "tables/part-14.parquet").write_bytes(parquet[:-30])
    rows = _rows(tmp_path / "tables")
    assert [row.row_id >> 32 for row in rows] == list(range(20))
    assert [row.row_id >> 32 for row in rows if row.row_error] == [14]
    assert "the part part-14.parquet cannot be read" in str(rows[14].row_error)
    (tmp_path / "tables/part-19.parquet").write_bytes(b"broken")
    with pytest.raises(InputNotFound, match=r"part-19.parquet.*; 3 tables beside it can be read. Repair or remove it"):
        find_source(str(tmp_path / "tables"))


def test_a_folder_of_empty_parts_holds_no_record(tmp_path: Path) -> None:
    write_files(tmp_path, {"part-0.jsonl": b"", "part-1.jsonl": b"\n"})
    with pytest.raises(InputNotFound, match=r"holds 2 tables \(jsonl\) without a record"):
        find_source(str(tmp_path))


def test_the_fingerprint_covers_every_part(tmp_path: Path) -> None:
    write_files(tmp_path, {"part-0.jsonl": _jsonl("a"), "part-1.jsonl": _jsonl("b")})
    before = find_source(str(tmp_path)).fingerprint()
    assert find_source(str(tmp_path)).fingerprint() == before
    (tmp_path / "part-1.jsonl").write_bytes(_jsonl("b", "c"))
    assert find_source(str(tmp_path)).fingerprint() != before


def test_a_table_that_names_the_pictures_of_its_folder_is_meant(tmp_path: Path) -> None:
    write_files(tmp_path, {"pairs.jsonl": _jsonl("a"), "a.jpg": b"x", "b.jpg": b"x", "b.txt": b"text b"})
    source = find_source(str(tmp_path))
    assert [row.text for row in source.rows()] == ["text a"]
    assert source.describe()["left_out"] == {".txt": 1}
    assert source.describe()["notes"] == [
        "Pictures are read as the tables name them, and not all that lie in the folder."
    ]


def test_a_table_of_other_pictures_beside_pictures_with_texts_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {"pairs.jsonl": _jsonl("z"), "b.jpg": b"x", "b.txt": b"text b"})
    with pytest.raises(
        InputNotFound, match=r"either may be meant. Give .*pairs.jsonl, or a pattern such as '.*/\*.jpg'"
    ):
        find_source(str(tmp_path))
    assert _texts(tmp_path / "*.jpg") == ["text b"]
    assert _texts(tmp_path / "pairs.jsonl") == ["text z"]


def test_a_table_that_is_none_of_pairs_is_left_out_beside_pictures(tmp_path: Path) -> None:
    write_files(tmp_path, {"settings.json": b'{"size": 1}', "b.jpg": b"x", "b.txt": b"text b"})
    source = find_source(str(tmp_path))
    assert [row.text for row in source.rows()] == ["text b"]
    assert source.describe()["left_out"] == {".json": 1}


def test_the_splits_of_dgm4_are_read_together(tmp_path: Path) -> None:
    records = {name: [{"id": 1, "image": f"DGM4/origin/{name}.jpg", "text": name}] for name in ("test", "train", "val")}
    write_files(
        tmp_path / "DGM4", {f"metadata/{name}.json": json.dumps(found).encode() for name, found in records.items()}
    )
    write_files(tmp_path / "DGM4", {f"origin/{name}.jpg": b"x" for name in records})
    assert _texts(tmp_path / "DGM4") == ["test", "train", "val"]
    assert _rows(tmp_path / "DGM4")[0].image_uri == str(tmp_path / "DGM4/origin/test.jpg")


def test_parts_and_patterns_are_read_from_s3(bucket: str) -> None:
    folder = Location(f"s3://{bucket}/tables")
    for name, text in (("part-1.jsonl", "b"), ("part-0.jsonl", "a"), ("deep/part-2.jsonl", "c")):
        write_bytes(folder / name, _jsonl(text))
    write_bytes(folder / "_SUCCESS", b"")
    assert _texts(folder.uri) == ["text c", "text a", "text b"]
    assert _texts(f"{folder}/*.jsonl") == ["text a", "text b"]
    assert _texts(f"s3://{bucket}/t*/**/part-{{1..2}}.jsonl") == ["text c", "text b"]
    assert _rows(f"{folder}/*.jsonl")[1].row_id == 1 << 32
    before = find_source(folder.uri).fingerprint()
    write_bytes(folder / "part-1.jsonl", _jsonl("b", "d"))
    assert find_source(folder.uri).fingerprint() != before


def test_annotations_of_another_kind_beside_captions_are_left_out_and_named(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg"}]
    captions = {"images": images, "annotations": [{"id": 5, "image_id": 1, "caption": "text a"}]}
    boxes = {"images": images, "annotations": [{"id": 5, "image_id": 1, "bbox": [1, 2, 3, 4]}]}
    for name, content in (("captions_train", captions), ("captions_val", captions), ("instances_train", boxes)):
        write_files(tmp_path, {f"annotations/{name}.json": json.dumps(content).encode(), "images/a.jpg": b"x"})
    source = find_source(str(tmp_path))
    assert [row.text for row in source.rows()] == ["text a", "text a"]
    assert {row.image_uri for row in source.rows()} == {str(tmp_path / "images/a.jpg")}
    assert source.describe()["notes"][0].startswith("All 2 tables are read, of the splits train, val: ")
    assert source.describe()["notes"][-1].startswith("Not read as tables of pairs: annotations/instances_train.json (")


def test_a_broken_table_of_a_split_is_not_left_out(tmp_path: Path) -> None:
    write_files(tmp_path, {"train.jsonl": _jsonl("a"), "test.jsonl": b"broken"})
    with pytest.raises(InputNotFound, match=r"test.jsonl"):
        find_source(str(tmp_path))


def test_pictures_that_no_table_names_are_left_out_and_archives_beside_them_are_named(tmp_path: Path) -> None:
    write_files(tmp_path, {"pairs.jsonl": _jsonl("gone"), "other.jpg": b"x", "images.zip": b"PK"})
    described = find_source(str(tmp_path)).describe()
    assert described["left_out"] == {".jpg": 1, ".zip": 1}
    assert described["notes"][-1] == (
        "images.zip is not read. Unpack it (unzip) and give the folder, if its pictures are meant."
    )
