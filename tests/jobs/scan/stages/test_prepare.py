import base64
import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from asap.preprocessing.images import ImageLimits, prepare_image
from asap.storage import picture_address
from asap.storage.fetch import FetchSettings
from asap.storage.files import delete_file, open_seekable, write_bytes
from asap.storage.location import FileInfo, Location
from jobs.scan.input import sources
from jobs.scan.input.files import listing
from jobs.scan.input.manifest import MANIFEST_SCHEMA, to_table, write_manifest
from jobs.scan.stages import prepare
from jobs.scan.stages.prepare import PREPARED_FIELDS, Preparation, prepare_batch
from jobs.scan.stages.result_rows import CALLER_COLUMNS
from tests.support.faulty_store import Fault, FaultyStore
from tests.support.waiting import HANG_S

PREPARATION = Preparation(image_size=32, limits=ImageLimits(max_bytes=20_000), fetch=FetchSettings(threads=4))


def _batch(*rows: dict[str, object]) -> pa.Table:
    filled = [{"row_id": number, "custom_id": str(number), "warnings": []} | row for number, row in enumerate(rows)]
    return pa.Table.from_pylist(filled, MANIFEST_SCHEMA)


def test_a_picture_becomes_the_square_that_prepare_image_makes(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    data = jpeg(0, (100, 60))
    (tmp_path / "a.jpg").write_bytes(data)
    row = prepare_batch(_batch({"image_uri": str(tmp_path / "a.jpg"), "text": "t"}), PREPARATION).to_pylist()[0]
    expected = prepare_image(data, 32)
    assert np.array_equal(np.frombuffer(row["pixels"], np.uint8).reshape(32, 32, 3), expected.pixels)
    assert (row["width"], row["height"], row["image_sha256"]) == (100, 60, expected.sha256)
    assert (row["error_code"], row["attempt"], row["text"]) == (None, 1, "t")


def test_a_captioner_alone_gets_a_picture_that_is_shrunk_and_no_square(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(0, (100, 60)))
    preparation = dataclasses.replace(PREPARATION, image_size=None, thumbnail_side=50)
    row = prepare_batch(_batch({"image_uri": str(tmp_path / "a.jpg")}), preparation).to_pylist()[0]
    assert row["pixels"] is None
    assert Image.open(BytesIO(row["thumbnail"])).size == (50, 30)
    assert (row["width"], row["height"]) == (100, 60)
    assert len(row["image_sha256"]) == 64


def test_pictures_that_nobody_needs_are_not_read_and_late_texts_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("late")
    preparation = dataclasses.replace(PREPARATION, image_size=None)
    rows = [{"image_uri": str(tmp_path / "gone.jpg"), "text": "t"}, {"image_uri": None}, {"row_error": "broken line"}]
    rows += [{"image_uri": str(tmp_path / "gone.jpg"), "text_uri": str(tmp_path / "a.txt")}]
    table = prepare_batch(_batch(*rows), preparation)
    assert table["error_code"].to_pylist() == [None, None, "row_invalid", None]
    assert table["text"].to_pylist() == ["t", None, None, "late"]
    assert table["image_sha256"].null_count == 4


def test_each_broken_row_has_its_own_code_and_harms_no_other(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    for name, data in {
        "good": jpeg(1), "truncated": jpeg(1)[:300], "empty": b"", "text": b"not a picture", "big": b"x" * 20_001,
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(data)
    names = ["good", "truncated", "empty", "text", "big", "gone", "good"]
    rows: list[dict[str, object]] = [{"image_uri": str(tmp_path / name)} for name in names]
    rows += [{"image_uri": None, "text": "t"}, {"row_error": "broken line"}]
    table = prepare_batch(_batch(*rows), PREPARATION)
    assert table["error_code"].to_pylist() == [
        None, "decode_failed", "empty_file", "unsupported_format", "too_large", "not_found", None,
        "image_missing", "row_invalid",
    ]  # fmt: skip
    assert table["row_id"].to_pylist() == list(range(9))
    assert table["retryable"].to_pylist()[1] is False
    assert all(detail for code, detail in zip(table["error_code"], table["error_detail"], strict=True) if code.as_py())
    assert all((code is None) == (pixels is not None) for code, pixels in zip(
        table["error_code"].to_pylist(), table["pixels"].to_pylist(), strict=True
    ))  # fmt: skip


def test_columns_have_their_types_even_if_all_values_are_null() -> None:
    table = prepare_batch(_batch({"row_error": "x"}), PREPARATION)
    for name, kind in PREPARED_FIELDS:
        assert table.schema.field(name).type == kind
    assert set(CALLER_COLUMNS) <= set(table.column_names)


def test_a_byte_range_of_a_file_is_read_as_a_picture(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    data = jpeg(2)
    (tmp_path / "a.tar").write_bytes(b"x" * 512 + data + b"y" * 100)
    row = {"image_uri": str(tmp_path / "a.tar"), "image_offset": 512, "image_length": len(data)}
    assert prepare_batch(_batch(row), PREPARATION)["image_sha256"].to_pylist() == [prepare_image(data, 32).sha256]


def test_warnings_of_the_manifest_and_the_picture_are_kept(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGBA", (40, 40), (255, 0, 0, 100)).save(tmp_path / "a.png")
    table = prepare_batch(_batch({"image_uri": str(tmp_path / "a.png"), "warnings": ["before"]}), PREPARATION)
    warnings = table["warnings"].to_pylist()[0]
    assert warnings[0] == "before"
    assert "transparency" in warnings[1]


def test_a_small_jpeg_travels_as_it_is_and_any_other_picture_as_a_jpeg_of_its_own(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    plain = jpeg(0, (60, 40))
    picture, turned = Image.open(BytesIO(plain)), Image.Exif()
    turned[0x0112] = 6
    files = {
        "plain": plain,
        "heavy": plain[:2] + b"\xff\xe1\xff\xff" + bytes(0xFFFD) + plain[2:],
        "wide": jpeg(0, (80, 40)),
    }
    for name, options in {"turned": {"exif": turned}, "gray": {}, "png": {}}.items():
        buffer, changed = BytesIO(), picture.convert("L") if name == "gray" else picture
        changed.save(buffer, "PNG" if name == "png" else "JPEG", **options)
        files[name] = buffer.getvalue()
    rows = []
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        rows.append({"image_uri": str(tmp_path / name)})
    limits = ImageLimits(max_bytes=200_000)
    preparation = Preparation(image_size=None, limits=limits, fetch=PREPARATION.fetch, thumbnail_side=64)
    found = dict(zip(files, prepare_batch(_batch(*rows), preparation)["thumbnail"].to_pylist(), strict=True))
    assert [name for name in files if found[name] == files[name]] == ["plain"]
    seen = {name: Image.open(BytesIO(data)) for name, data in found.items()}
    assert {(name, image.format, image.mode) for name, image in seen.items()} == {
        (name, "JPEG", "RGB") for name in files
    }
    assert (seen["turned"].size, seen["wide"].size, seen["heavy"].size) == ((40, 60), (64, 32), (60, 40))
    assert len(found["heavy"]) < 10_000


def test_a_thumbnail_is_made_if_a_captioner_needs_it(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    from io import BytesIO

    from PIL import Image

    (tmp_path / "a.jpg").write_bytes(jpeg(3, (200, 100)))
    (tmp_path / "b.jpg").write_bytes(jpeg(3, (40, 30)))
    rows = _batch({"image_uri": str(tmp_path / "a.jpg")}, {"image_uri": str(tmp_path / "b.jpg")})
    with_thumbnails = Preparation(image_size=32, limits=PREPARATION.limits, fetch=PREPARATION.fetch, thumbnail_side=64)
    table = prepare_batch(rows, with_thumbnails)
    assert [Image.open(BytesIO(data)).size for data in table["thumbnail"].to_pylist()] == [(64, 32), (40, 30)]
    assert prepare_batch(rows, PREPARATION)["thumbnail"].to_pylist() == [None, None]


def test_a_pair_without_a_text_that_is_captioned_later_is_not_fetched(tmp_path: Path) -> None:
    preparation = dataclasses.replace(PREPARATION, leaves_textless=True)
    later = {"image_uri": str(tmp_path / "none.jpg"), "text": None}
    rows = prepare_batch(_batch(later, later | {"text": "A team"}), preparation).to_pylist()
    assert [row["error_code"] for row in rows] == ["text_missing", "not_found"]
    assert (rows[0]["attempt"], rows[0]["error_detail"]) == (None, "the pair has no text, and waits for its caption")


def test_preparing_loads_no_torch() -> None:
    code = "import sys, jobs.scan.stages.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class Counts:
    """The counter of the scan, as far as this stage calls it."""

    def __init__(self) -> None:
        self.slow = 0
        self.count_slow = self

    def remote(self, rows: int) -> None:
        self.slow += rows


@pytest.fixture
def objects(faulty: FaultyStore, bucket: str, jpeg: Callable[..., bytes]) -> pa.Table:
    """Write seven pictures to a store whose pictures 2 and 5 never come, and return their rows."""
    for number in range(7):
        write_bytes(Location(f"s3://{bucket}/{number}.jpg"), jpeg(number))
    faulty.rule = lambda request: Fault(stall=True) if request.path.endswith(("2.jpg", "5.jpg")) else None
    return _batch(*({"image_uri": f"s3://{bucket}/{number}.jpg"} for number in range(7)))


def test_slow_pictures_leave_their_batch_and_their_threads_hold_nobody(objects: pa.Table) -> None:
    counts = Counts()
    hasty = dataclasses.replace(PREPARATION, slow_after_s=5, fetch=FetchSettings(threads=4, read_timeout_s=HANG_S))
    table = prepare_batch(objects, hasty, counts)
    assert table["row_id"].to_pylist() == [0, 1, 3, 4, 6]
    assert table["error_code"].to_pylist() == [None] * 5
    assert table["width"].to_pylist() == [table["width"][0].as_py()] * 5
    assert counts.slow == 2
    hanging = [thread for thread in threading.enumerate() if thread.name == "prepare"]
    assert hanging  # they wait for the store
    assert all(thread.daemon for thread in hanging)


def test_a_batch_of_slow_pictures_alone_is_empty_and_has_its_types(objects: pa.Table) -> None:
    hasty = dataclasses.replace(PREPARATION, slow_after_s=0.5, fetch=FetchSettings(read_timeout_s=HANG_S))
    slow = objects.take([2, 5])
    table = prepare_batch(slow, hasty, counts := Counts())
    assert (table.num_rows, counts.slow) == (0, 2)
    for name, kind in PREPARED_FIELDS:
        assert table.schema.field(name).type == kind


@pytest.mark.slow
def test_a_patient_preparation_waits_and_gives_a_picture_up_only_at_a_bound(
    objects: pa.Table, faulty: FaultyStore
) -> None:
    fetch = FetchSettings(threads=2, attempts=1, read_timeout_s=5)
    hasty = dataclasses.replace(PREPARATION, slow_after_s=0.1, fetch=fetch)
    table = prepare_batch(objects, hasty.patient(7), counts := Counts())
    assert counts.slow == 0
    assert table["row_id"].to_pylist() == list(range(7))
    codes = [None, None, "timeout", None, None, "timeout", None]
    assert table["error_code"].to_pylist() == codes
    assert table["retryable"].to_pylist()[2] is True
    assert hasty.patient(7).fetch.threads == 7
    # A store that sends a byte now and then passes every timeout of its own; the bound of the stage holds.
    endless = dataclasses.replace(hasty.patient(7), fetch=fetch.model_copy(update={"read_timeout_s": HANG_S}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_longest_s", lambda settings: 1.0)
        table = prepare_batch(objects.take([2, 5]), endless)
    assert table["error_code"].to_pylist() == ["timeout", "timeout"]
    assert table["error_detail"].to_pylist() == ["the picture was not read within 1 s"] * 2


def test_a_text_that_the_manifest_could_not_get_is_read_with_the_picture(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "a.txt").write_text("a late\0 text")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfea")
    names = [None, "a.txt", "gone.txt", "latin.txt"]
    rows: list[dict[str, object]] = [
        {"image_uri": str(tmp_path / "a.jpg"), "text": None if name else "given"}
        | ({"text_uri": str(tmp_path / name)} if name else {})
        for name in names
    ]
    table = prepare_batch(_batch(*rows), PREPARATION)
    assert table["text"].to_pylist() == ["given", r"a late\u0000 text", None, None]
    assert table["text_escapes"].to_pylist() == [None, [6], None, None]
    assert table["error_code"].to_pylist() == [None, None, "not_found", "row_invalid"]
    assert "lone surrogates or NULs" in table["warnings"].to_pylist()[1][0]
    # Manifests of earlier versions have no such column.
    old = prepare_batch(_batch(*rows).drop_columns("text_uri"), PREPARATION)
    assert old["text"].to_pylist() == ["given", None, None, None]


def test_objects_that_are_deleted_after_they_were_listed_are_not_found(
    bucket: str, jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Location(f"s3://{bucket}/pairs")
    for name in ("a", "b"):
        write_bytes(folder / f"{name}.jpg", jpeg(1))
        write_bytes(folder / f"{name}.txt", b"a text")
    write_bytes(folder / "c.jpg", jpeg(1))
    list_whole = listing.list_files

    def list_and_delete(where: Location, *, deep: bool) -> Iterator[FileInfo]:
        listed = list(list_whole(where, deep=deep))
        for name in ("a.jpg", "b.txt"):
            delete_file(folder / name)
        return iter(listed)

    source = sources.find_source(folder.uri)
    monkeypatch.setattr(listing, "list_files", list_and_delete)
    write_manifest(source.tables(), Location(f"s3://{bucket}/manifest"))
    with open_seekable(Location(f"s3://{bucket}/manifest/00000.parquet")) as file:
        table = prepare_batch(pq.read_table(file), PREPARATION)
    assert table["custom_id"].to_pylist() == ["a.jpg", "b.jpg", "c.jpg"]
    assert table["error_code"].to_pylist() == ["not_found", "not_found", None]
    assert table["retryable"].to_pylist()[:2] == [False, False]


@pytest.fixture
def table(tmp_path: Path, jpeg: Callable[..., bytes]) -> list[dict[str, object]]:
    """Write six pictures to two row groups of a table, one of them broken and one missing; return their rows."""
    pictures = [{"bytes": jpeg(number), "path": None} for number in range(6)]
    pictures[1]["bytes"], pictures[4]["bytes"] = b"not a picture", None
    pq.write_table(pa.table({"image": pictures}), tmp_path / "a.parquet", row_group_size=3)
    return [
        {
            "image_uri": str(tmp_path / "a.parquet"),
            "image_group": number // 3,
            "image_row": number % 3,
            "image_column": "image.bytes",
        }
        for number in range(6)
    ]


def test_pictures_in_a_table_are_read_by_row_group_and_row(
    table: list[dict[str, object]], jpeg: Callable[..., bytes]
) -> None:
    prepared = prepare_batch(_batch(*table, {"image_uri": None}, *table[:1]), PREPARATION)
    codes = [None, "unsupported_format", None, None, "image_missing", None, "image_missing", None]
    assert prepared["error_code"].to_pylist() == codes
    digests = [prepare_image(jpeg(number), 32).sha256 for number in (0, 2, 3, 5, 0)]
    assert [digest for digest in prepared["image_sha256"].to_pylist() if digest] == digests
    assert prepared["image_group"].to_pylist() == [0, 0, 0, 1, 1, 1, None, 0]
    assert prepared["image_column"].to_pylist()[0] == "image.bytes"


def test_a_table_stays_open_for_the_next_batch_and_a_broken_one_does_not(
    table: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[object] = []
    real = picture_address.ColumnReader

    def count(*arguments: Any) -> Any:
        opened.append(arguments)
        return real(*arguments)

    prepare._idle_readers.clear()
    monkeypatch.setattr(picture_address, "ColumnReader", count)
    for rows in (table[:1], table[1:2], table[2:4], table[4:]):
        prepare_batch(_batch(*rows), PREPARATION)
    assert len(opened) == 1  # the second row group is of the same file
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(b"")
    prepare._idle_readers.clear()
    moved = [row | {"image_group": 0} for row in table]
    assert set(prepare_batch(_batch(*moved), PREPARATION)["error_code"].to_pylist()) == {"storage_error"}
    (tmp_path / "a.parquet").write_bytes(whole)
    assert prepare_batch(_batch(*table[:1]), PREPARATION)["error_code"].to_pylist() == [None]


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_table_that_changed_since_it_was_listed_gives_errors_and_no_other_pictures(
    request: pytest.FixtureRequest, tmp_path: Path, jpeg: Callable[..., bytes], is_remote: bool
) -> None:
    bucket = request.getfixturevalue("bucket") if is_remote else ""
    pictures = {str(number): jpeg(number) for number in range(3)}
    where = f"s3://{bucket}/a.parquet" if is_remote else str(tmp_path / "a.parquet")

    def write(names: str) -> None:
        table = pa.table({"image": [pictures[name] for name in names], "text": [f"text {name}" for name in names]})
        with pa.BufferOutputStream() as sink:
            pq.write_table(table, sink)
        write_bytes(Location(where), sink.getvalue().to_pybytes())

    def prepared(rows: list[Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = prepare_batch(to_table(rows), PREPARATION).to_pylist()
        return found

    write("012")
    rows = list(sources.find_source(where).rows())
    first = prepared(rows)
    assert [row["image_sha256"] for row in first] == [prepare_image(pictures[name], 32).sha256 for name in "012"]
    again = [
        dataclasses.replace(row, image_version=done["image_version"]) for row, done in zip(rows, first, strict=True)
    ]
    assert [row["error_code"] for row in prepared(again)] == [None] * 3  # rows of results name the version too
    write("210")
    for row in prepared(rows):  # the reader of the first batch was kept
        assert (row["error_code"], row["retryable"]) == ("storage_error", False)
        assert "changed since it was listed. Scan it anew as another job." in row["error_detail"]
    old = [dataclasses.replace(row, image_version=None) for row in rows]  # of a manifest of an earlier version
    for now in (old, list(sources.find_source(where).rows())):
        digests = [row["image_sha256"] for row in prepared(now)]
        assert digests == [prepare_image(pictures[name], 32).sha256 for name in "210"]


def test_few_pictures_of_a_table_are_in_memory_at_a_time(
    table: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, most = 0, 0
    lock = threading.Lock()
    read, picture = prepare._read_from_table, prepare._prepare

    def count_read(*arguments: Any) -> Any:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return read(*arguments)

    def count_done(*arguments: Any) -> Any:
        nonlocal held
        time.sleep(0.01)
        done = picture(*arguments)
        with lock:
            held -= 1
        return done

    monkeypatch.setattr(prepare, "_read_from_table", count_read)
    monkeypatch.setattr(prepare, "_prepare", count_done)
    prepare_batch(_batch(*table[:3] * 10), PREPARATION)
    assert 1 < most <= PREPARATION.fetch.decode_threads + prepare._READ_AHEAD


def test_a_stalled_table_holds_neither_the_next_batch_nor_its_rows_for_ever(
    faulty: FaultyStore, bucket: str, table: list[dict[str, object]], tmp_path: Path
) -> None:
    write_bytes(Location(f"s3://{bucket}/a.parquet"), (tmp_path / "a.parquet").read_bytes())
    remote = [row | {"image_uri": f"s3://{bucket}/a.parquet"} for row in table]
    faulty.rule = lambda request: Fault(stall=True) if request.method == "GET" else None
    fetch = FetchSettings(threads=2, attempts=1, read_timeout_s=HANG_S)
    hasty = dataclasses.replace(PREPARATION, slow_after_s=0.1, fetch=fetch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_longest_s", lambda settings: 1.0)
        assert prepare_batch(_batch(*remote), hasty, counts := Counts()).num_rows == 0
    assert counts.slow == 6
    assert prepare_batch(_batch(*table[:1]), hasty)["error_code"].to_pylist() == [None]


def test_a_picture_in_base64_within_a_file_is_read(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    text = base64.b64encode(jpeg(2))
    (tmp_path / "a.jsonl").write_bytes(b'{"image": "' + text + b'", "broken": "####"}')
    row = {"image_uri": str(tmp_path / "a.jsonl"), "image_encoding": "base64"}
    rows = [row | {"image_offset": 11, "image_length": len(text)},
            row | {"image_offset": 26 + len(text), "image_length": 4}]  # fmt: skip
    prepared = prepare_batch(_batch(*rows), PREPARATION)
    assert prepared["image_sha256"].to_pylist() == [prepare_image(jpeg(2), 32).sha256, None]
    assert prepared["error_code"].to_pylist() == [None, "decode_failed"]


def test_rows_of_a_manifest_of_an_earlier_version_are_prepared(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    names = ["image_group", "image_row", "image_column", "image_encoding", "text_uri"]
    old = _batch({"image_uri": str(tmp_path / "a.jpg")}).drop_columns(names)
    prepared = prepare_batch(old, PREPARATION)
    assert (prepared["error_code"].to_pylist(), prepared["image_group"].to_pylist()) == ([None], [None])
