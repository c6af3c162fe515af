import gzip
import io
import json
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.errors import FetchFailed, StorageError
from asap.storage.fetch import FetchSettings
from asap.storage.files import write_bytes
from asap.storage.location import Location
from jobs.errors import InputNotFound
from jobs.scan.input.addresses import image_uri
from jobs.scan.input.files.sidecars import read_late_text
from jobs.scan.input.manifest import ManifestRow, RowError
from jobs.scan.input.sources import find_source
from jobs.scan.input.tables.columns import Columns, TableOptions
from jobs.scan.input.tables.rows import Base, RowMaker
from jobs.scan.look import look_at
from jobs.scan.settings import ScanSettings
from tests.support.faulty_store import Fault, FaultyStore

_GOOD = {"image": "good.jpg", "text": "t"}
"""A record that can be scanned. A table without one is refused."""


def _rows(path: Path | str, limit: int | None = None) -> list[ManifestRow]:
    return list(find_source(str(path), limit).rows())


def _write_jsonl(folder: Path, *records: object) -> Path:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_manifest_becomes_rows_with_absolute_images(corpus: Path) -> None:
    rows = _rows(corpus / "a.jsonl")
    assert [row.row_id for row in rows] == [0, 1, 2, 3]
    assert rows[1].custom_id == "pair-1"
    assert rows[1].image_uri == str(corpus / "images/1.jpg")
    assert rows[1].text
    assert rows[1].row_error is None


def test_jsonl_csv_and_parquet_give_the_same_rows(corpus: Path) -> None:
    records = [json.loads(line) for line in (corpus / "a.jsonl").read_text().splitlines()]
    table = pa.Table.from_pylist(records)
    pq.write_table(table, corpus / "a.parquet")
    lines = ["custom_id,image,text", *(f'{r["custom_id"]},{r["image"]},"{r["text"]}"' for r in records)]
    (corpus / "a.csv").write_text("\n".join(lines))
    expected = [(row.custom_id, row.image_uri, row.text) for row in _rows(corpus / "a.jsonl")]
    for name in ("a.parquet", "a.csv"):
        assert [(row.custom_id, row.image_uri, row.text) for row in _rows(corpus / name)] == expected


def test_a_limit_takes_the_first_rows(corpus: Path) -> None:
    assert [row.row_id for row in _rows(corpus / "a.jsonl", 2)] == [0, 1]
    assert len(list(find_source(str(corpus / "images"), 3, TableOptions(texts=False)).rows())) == 3


def _dgm4(folder: Path, image: str) -> Path:
    path = folder / "metadata/test.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"id": 7, "image": image, "text": "a b", "fake_cls": "face_swap", "fake_image_box": [1, 2, 3, 4]}
    path.write_text(json.dumps([record]))
    return path


@pytest.mark.parametrize(
    ("path", "name"), [("DGM4/x.jpg", "x.jpg"), ("DGM4/x.jpg", "DGM4/x.jpg"), ("DGM4/metadata/x.jpg", "x.jpg")]
)
def test_dgm4_paths_start_at_the_root_or_the_folder_around_it_or_the_manifest(
    tmp_path: Path, path: str, name: str
) -> None:
    manifest = _dgm4(tmp_path / "DGM4", name)
    (tmp_path / path).write_bytes(b"x")
    row = _rows(manifest)[0]
    assert row.image_uri == str(tmp_path / path)
    assert row.custom_id == "7"
    assert json.loads(row.metadata or "") == {"fake_cls": "face_swap", "fake_image_box": [1, 2, 3, 4]}


def test_dgm4_paths_start_at_the_root_if_no_picture_is_found(tmp_path: Path) -> None:
    assert _rows(_dgm4(tmp_path / "DGM4", "x.jpg"))[0].image_uri == str(tmp_path / "DGM4/x.jpg")


def test_metadata_is_passed_through_unchanged(corpus: Path) -> None:
    rows = _rows(
        _write_jsonl(
            corpus,
            {"image": "a.jpg", "text": "t", "metadata": '{"a":  1}', "other": 1},
            {"image": "a.jpg", "text": "t", "metadata": {"é": [1]}},
            {"image": "a.jpg", "text": "t", "source": "wire"},
            {"image": "a.jpg", "text": "t"},
        )
    )
    assert [row.metadata for row in rows] == ['{"a":  1}', '{"é": [1]}', '{"source": "wire"}', None]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"image": 12, "text": "t"}, "image is 12, of type int"),
        ({"image": "a.jpg", "text": 12}, "text is 12, of type int"),
        ({"image": "a.jpg", "text": "t", "id": True}, "custom_id is True"),
        ({"image": "a\0.jpg", "text": "t"}, "has a NUL or a lone surrogate"),
        ({"image": "a\ud800.jpg", "text": "t"}, "has a NUL or a lone surrogate"),
        ({"picture": "a.jpg"}, "neither image nor text; its fields are ['picture']"),
        ({"image": "http://host/a.jpg", "text": "t"}, "is an address"),
        ({"image": "data:image/png;base64,AA", "text": "t"}, "is an address"),
        ({"image": "a.tar", "text": "t", "image_offset": 5}, "not two whole numbers"),
        ({"image": "a.tar", "text": "t", "image_offset": -5, "image_length": 2}, "not bytes of a file"),
        ({"image": "a.tar", "text": "t", "image_offset": float("inf"), "image_length": 2}, "not two whole numbers"),
        ({"image": "a.tar", "text": "t", "image_offset": 2**63, "image_length": 2}, "not bytes of a file"),
        (["a list"], "not an object"),
    ],
)
def test_a_record_that_cannot_be_understood_keeps_its_row(corpus: Path, record: object, reason: str) -> None:
    rows = _rows(_write_jsonl(corpus, {"image": "a.jpg", "text": "t"}, record, {"image": "a.jpg", "text": "t"}))
    assert [row.row_error is None for row in rows] == [True, False, True]
    assert reason in str(rows[1].row_error)


def test_metadata_nested_too_deep_are_an_error_of_their_row() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    maker = RowMaker(Columns(image=("image",), text=("text",), metadata="metadata"), Base(Location("/data")))
    row = maker.row(0, {"image": "a.jpg", "text": "t", "metadata": nested})
    assert "nested too deep" in str(row.row_error)


def test_a_row_error_keeps_the_callers_name(corpus: Path) -> None:
    assert _rows(_write_jsonl(corpus, {"id": "mine", "image": 1}, _GOOD))[0].custom_id == "mine"


def test_blank_and_missing_texts_and_images_are_null(corpus: Path) -> None:
    rows = _rows(
        _write_jsonl(corpus, {"image": "a.jpg", "text": " \n"}, {"text": "t"}, {"image": None, "text": "t"}, _GOOD)
    )
    assert rows[0].text is None
    assert [row.image_uri for row in rows[1:3]] == [None, None]
    assert all(row.row_error is None for row in rows)


def test_an_empty_field_gives_way_to_its_alternative_name(corpus: Path) -> None:
    record = {"image_uri": None, "image": "a.jpg", "custom_id": "", "id": "z", "text": "t"}
    named, without = _rows(_write_jsonl(corpus, record, {"image": "", "text": "t"}))
    assert (named.custom_id, named.image_uri) == ("z", str(corpus / "a.jpg"))
    assert (without.image_uri, without.row_error) == (None, None)


def test_a_byte_range_of_a_larger_file_is_kept(corpus: Path) -> None:
    row = _rows(_write_jsonl(corpus, {"image": "a.tar", "text": "t", "image_offset": 512, "image_length": 99}))[0]
    assert (row.image_offset, row.image_length) == (512, 99)


def test_a_folder_pairs_pictures_with_texts_of_the_same_name(tmp_path: Path) -> None:
    for name in ("b.jpg", "b.txt", "a.1.png", "a.1.txt", "c.JPEG", "d.txt", "sub/b.webp", "sub/b.txt", "notes.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"text of {name}\n")
    rows = _rows(tmp_path)
    assert [(row.custom_id, row.text) for row in rows] == [
        ("a.1.png", "text of a.1.txt"),
        ("b.jpg", "text of b.txt"),
        ("c.JPEG", None),
        ("sub/b.webp", "text of sub/b.txt"),
    ]
    assert rows[0].image_uri == str(tmp_path / "a.1.png")
    assert [row.row_id for row in rows] == [0, 1, 2, 3]


def test_an_unreadable_text_file_is_an_error_of_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfea")
    (tmp_path / "b.jpg").write_bytes(b"x")
    (tmp_path / "b.txt").write_bytes(b"x" * (2**20 + 1))
    (tmp_path / "c.jpg").write_bytes(b"x")
    (tmp_path / "c.txt").write_bytes(b"a text")
    first, second, _ = _rows(tmp_path)
    assert "is not utf-16-le" in str(first.row_error)
    assert "1048577 bytes" in str(second.row_error)


def test_a_picture_whose_name_is_not_utf8_is_an_error_of_its_row(tmp_path: Path) -> None:
    for name in (b"a.jpg", b"b\xff.jpg"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"x")
    good, bad = find_source(str(tmp_path), options=TableOptions(texts=False)).rows()
    assert (good.custom_id, good.row_error) == ("a.jpg", None)
    assert str(bad.row_error).startswith("the path of the picture is not UTF-8: b'/")
    assert r"b\xff.jpg'. Rename it" in str(bad.row_error)


def test_a_table_of_pictures_without_texts_is_read_if_they_are_captioned(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,image\n1,a.jpg\n")
    with pytest.raises(InputNotFound, match="needs a column 'text'"):
        find_source(str(tmp_path / "a.csv"))
    (row,) = find_source(str(tmp_path / "a.csv"), options=TableOptions(texts=False)).rows()
    assert (row.custom_id, row.text, row.row_error) == ("1", None, None)


def test_a_damaged_compressed_input_is_named(tmp_path: Path) -> None:
    line = json.dumps({"image": "a.jpg", "text": "t"}).encode() + b"\n"
    whole = gzip.compress(b"".join(line.replace(b"a.jpg", b"%d.jpg" % number) for number in range(50_000)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match=r"a\.jsonl\.gz"):
        find_source(str(tmp_path / "a.jsonl.gz")).fingerprint()


def test_rows_of_an_s3_prefix_have_the_versions_of_their_pictures(bucket: str) -> None:
    folder = Location(f"s3://{bucket}/news")
    for name in ("a.jpg", "a.txt", "b.jpg"):
        write_bytes(folder / name, b"text")
    rows = _rows(folder.uri)
    assert [(row.custom_id, row.text) for row in rows] == [("a.jpg", "text"), ("b.jpg", None)]
    assert rows[0].image_uri == f"s3://{bucket}/news/a.jpg"
    assert rows[0].image_version


def test_a_manifest_in_s3_may_name_objects_but_no_local_files(bucket: str) -> None:
    records = [
        {"image": "images/a.jpg", "text": "t"},
        {"image": f"s3://{bucket}/other/b.jpg", "text": "t"},
        {"image": "/etc/passwd", "text": "t"},
        {"image": "file:///etc/passwd", "text": "t"},
        {"image": "../../../etc/passwd", "text": "t"},
    ]
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    write_bytes(Location(f"s3://{bucket}/news/a.jsonl"), data)
    rows = _rows(f"s3://{bucket}/news/a.jsonl")
    assert [row.image_uri for row in rows[:2]] == [f"s3://{bucket}/news/images/a.jpg", f"s3://{bucket}/other/b.jpg"]
    assert [row.image_uri for row in rows[2:]] == [None, None, None]
    assert all("local file" in str(row.row_error) for row in rows[2:4])
    assert "leaves the bucket" in str(rows[4].row_error)


def test_a_local_manifest_may_name_any_path_and_odd_file_names() -> None:
    base = Location("/data/news")
    assert image_uri("../a b?#%20.jpg", base) == "/data/a b?#%20.jpg"
    assert image_uri("/x/./y.jpg", base) == "/x/y.jpg"
    assert image_uri("file:///x/y.jpg", base) == "/x/y.jpg"
    assert image_uri("12:30.jpg", base) == "/data/news/12:30.jpg"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere", "is not there, or holds nothing"),
        ("nowhere.jsonl", "is not there, or holds nothing"),
        ("empty", "is not there, or holds nothing"),
        ("texts", "holds no table, picture or tar, but 1 .txt"),
        ("empty.jsonl", "holds no record"),
        ("empty.csv", "is empty; it needs a column 'image' or 'image_uri', and a column 'text'"),
        ("file.txt", "is a file of another kind"),
        ("broken.json", "is neither an array nor lines of JSON objects: the line is not JSON"),
    ],
)
def test_an_input_with_nothing_to_scan_is_reported_with_the_reason(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("x")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "broken.json").write_text("{not json")
    with pytest.raises(InputNotFound, match=f"{name} {reason}"):
        find_source(str(tmp_path / name))


@pytest.mark.parametrize("name", ["BUCKET/nothing/here", "BUCKET/a.jsonl", "unknown-bucket-1234/a.jsonl"])
def test_a_missing_s3_input_is_reported(bucket: str, name: str) -> None:
    with pytest.raises((InputNotFound, StorageError), match=r"not there|does not exist"):
        find_source("s3://" + name.replace("BUCKET", bucket))


def test_a_fingerprint_changes_only_with_the_input(corpus: Path) -> None:
    def prints() -> tuple[str, str]:
        return find_source(str(corpus / "a.jsonl")).fingerprint(), find_source(str(corpus / "images")).fingerprint()

    (corpus / "images/0.txt").write_text("a text")
    before = prints()
    assert prints() == before
    (corpus / "a.jsonl").write_text((corpus / "a.jsonl").read_text() + "\n")
    (corpus / "images/9.jpg").write_bytes(b"x")
    assert prints()[0] != before[0]
    assert prints()[1] != before[1]
    assert find_source(str(corpus / "images"), 4).fingerprint() == before[1]


def test_the_fingerprint_of_an_object_is_its_version(bucket: str) -> None:
    location = Location(f"s3://{bucket}/a.jsonl")
    write_bytes(location, b'{"image": "a", "text": "t"}\n')
    before = find_source(location.uri).fingerprint()
    write_bytes(location, b'{"image": "b", "text": "t"}\n')
    assert find_source(location.uri).fingerprint() != before


def test_a_text_that_the_store_does_not_deliver_is_left_to_the_scan(
    faulty: FaultyStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asap.storage.failures._FIRST_BACKOFF_S", 0.001)
    folder = Location(f"s3://{bucket}/pairs")
    for name in ("a", "b", "c"):
        write_bytes(folder / f"{name}.jpg", b"x")
        write_bytes(folder / f"{name}.txt", f"text {name}".encode())
    # The text of a breaks off at first, that of b always.
    faulty.rule = lambda request: (
        Fault(keep=2)
        if request.method == "GET" and (request.path.endswith("b.txt") or (request.path.endswith("a.txt")
        and request.count < 3))
        else None
    )  # fmt: skip
    rows = _rows(folder.uri)
    assert [(row.text, row.text_uri) for row in rows] == [("text a", None), (None, f"{folder}/b.txt"), ("text c", None)]
    assert all(row.row_error is None for row in rows)
    settings = FetchSettings(attempts=2)
    with pytest.raises(FetchFailed, match="the text file cannot be read") as caught:
        read_late_text(f"{folder}/b.txt", settings)
    assert (caught.value.code, caught.value.retryable) == ("storage_error", True)
    faulty.rule = lambda request: None
    assert read_late_text(f"{folder}/b.txt", settings) == "text b"


def test_a_text_that_comes_late_is_checked_like_any_other(tmp_path: Path) -> None:
    settings = FetchSettings()
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfea")
    (tmp_path / "long.txt").write_bytes(b"x" * (2**20 + 1))
    (tmp_path / "blank.txt").write_bytes(b" \n")
    with pytest.raises(RowError, match="is not utf-16-le"):
        read_late_text(str(tmp_path / "latin.txt"), settings)
    with pytest.raises(RowError, match="more than 1048576 bytes"):
        read_late_text(str(tmp_path / "long.txt"), settings)
    with pytest.raises(FetchFailed, match="the text file cannot be read"):
        read_late_text(str(tmp_path / "none.txt"), settings)
    assert read_late_text(str(tmp_path / "blank.txt"), settings) is None
    # Alone, a plain text with tabs is what it looks like; among others it may be UTF-16.
    (tmp_path / "tabs.txt").write_bytes(b"A\tB\tC\t")
    assert read_late_text(str(tmp_path / "tabs.txt"), settings) == "A\tB\tC\t"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_the_store_is_asked_once_whether_and_what_a_file_is(faulty: FaultyStore, bucket: str, name: str) -> None:
    """Each look into a file is one GET more. Parquet is read at any offset, for which its size must be known first."""
    table = pa.table({"id": ["1"], "image": ["a.jpg"], "text": ["words"]})
    folder = Location(f"s3://{bucket}")
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    records = table.to_pylist()
    data = {
        "a.jsonl": b"".join(json.dumps(record).encode() + b"\n" for record in records),
        "a.json": json.dumps(records).encode(),
        "a.csv": b"id,image,text\n1,a.jpg,words\n",
        "a.parquet": buffer.getvalue(),
    }
    write_bytes(folder / name, data[name])
    write_bytes(folder / "a.jpg", b"x")
    faulty.requests.clear()
    look = look_at(find_source(f"{folder}/{name}"), ScanSettings(input=f"{folder}/{name}", out="out"), seconds=None)
    assert look.rows == 1
    asked = Counter((request.method, request.path.rpartition("/")[2]) for request in faulty.requests)
    opened = asked["GET", name]
    assert 0 < opened < 8
    assert asked["HEAD", name] == (1 + opened if name == "a.parquet" else 1)
    assert asked["HEAD", "a.jpg"] == 1


@pytest.mark.parametrize("scheme", ["https", "xyz"])
def test_the_signature_of_an_address_is_not_repeated(scheme: str) -> None:
    with pytest.raises((InputNotFound, StorageError)) as error:
        find_source(f"{scheme}://host/a.csv?X-Amz-Signature=s3cret")
    assert "s3cret" not in str(error.value)
