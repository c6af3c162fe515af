import io
import json
import tarfile
from pathlib import Path

import pytest

from asap.storage.fetch import ByteRange, FetchSettings, fetch
from jobs.errors import InputNotFound
from jobs.scan.input.files import shards, tars
from jobs.scan.input.manifest import ManifestRow
from jobs.scan.input.sources import find_source
from jobs.scan.input.tables.table import TableOptions
from tests.support.input_files import make_tar, write_files
from tests.support.pictures import draw_jpeg


def _rows(path: Path | str) -> list[ManifestRow]:
    return list(find_source(str(path)).rows())


def _bytes(row: ManifestRow) -> bytes:
    assert row.image_uri
    assert row.image_offset is not None
    assert row.image_length is not None
    return fetch(row.image_uri, 2**20, FetchSettings(), ByteRange(row.image_offset, row.image_length)).data


_FORMATS = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("form", _FORMATS)
def test_members_of_a_tar_are_pairs_by_byte_range(tmp_path: Path, form: int) -> None:
    deep = "folder/" * 16 + "x" * 90  # ustar divides such a name, GNU and pax give it a header of its own
    files = {
        "a/0.jpg": draw_jpeg(0),
        "a/0.txt": b"text 0",
        "a/1.json": b'{"caption": "text 1"}',
        "a/1.png": draw_jpeg(1),
    }
    files |= {
        f"{deep}.jpg": draw_jpeg(2),
        f"{deep}.txt": b"text 2",
        "c.cls": b"1",
        "c.seg.jpg": draw_jpeg(3),
        "c.txt": b"3",
    }
    (tmp_path / "0.tar").write_bytes(make_tar(files, form=form))
    rows = _rows(tmp_path / "0.tar")
    assert [row.custom_id for row in rows] == ["a/0.jpg", "a/1.png", f"{deep}.jpg", "c.seg.jpg"]
    assert [row.text for row in rows] == ["text 0", "text 1", "text 2", "3"]
    assert [_bytes(row) for row in rows] == [draw_jpeg(number) for number in range(4)]
    assert [row.row_id for row in rows] == [0, 1, 2, 3]


def test_several_tars_are_read_in_order_with_their_names_before_the_members(tmp_path: Path) -> None:
    for number in (1, 0):
        tar = make_tar({"a.jpg": draw_jpeg(number), "a.txt": f"text {number}".encode()})
        write_files(
            tmp_path, {f"0000{number}.tar": tar, f"0000{number}.parquet": b"PAR1", f"0000{number}_stats.json": b"{}"}
        )
    source = find_source(str(tmp_path))
    assert source.kind == "shards"
    rows = list(source.rows())
    assert [(row.row_id, row.custom_id, row.text) for row in rows] == [
        (0, "00000.tar/a.jpg", "text 0"),
        (1 << 32, "00001.tar/a.jpg", "text 1"),
    ]
    described = source.describe()
    assert (described["parts"], described["left_out"], described["strays"]) == ({"tar": 2}, {".parquet": 2}, 2)
    assert [row.custom_id for row in _rows(tmp_path / "{00000..00001}.tar")] == ["00000.tar/a.jpg", "00001.tar/a.jpg"]
    before = source.fingerprint()
    (tmp_path / "00001.tar").write_bytes(make_tar({"b.jpg": b"x", "b.txt": b"t"}))
    assert source.fingerprint() != before


def test_texts_far_behind_their_pictures_are_found(tmp_path: Path) -> None:
    pictures = {f"{number}.jpg": b"x" for number in range(300)}
    texts = {f"{number}.txt": f"text {number}".encode() for number in range(300)}
    (tmp_path / "unsorted.tar").write_bytes(make_tar(pictures | texts))
    assert [row.text for row in _rows(tmp_path / "unsorted.tar")] == [f"text {number}" for number in range(300)]


def test_few_samples_wait_for_their_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_MOST_WAITING", 10)
    pictures = {f"{number}.jpg": b"x" for number in range(30)}
    (tmp_path / "unsorted.tar").write_bytes(make_tar(pictures | {"29.txt": b"last", "0.txt": b"first"}))
    rows = _rows(tmp_path / "unsorted.tar")
    assert [(row.custom_id, row.text) for row in rows] == [
        *((f"{n}.jpg", "last" if n == 29 else None) for n in range(30)),
        ("0.txt", None),
    ]
    assert "stands too far behind the other members of its sample '0'" in str(rows[-1].row_error)


@pytest.mark.parametrize("order", [("json", "jpg", "txt"), ("txt", "json", "jpg"), ("jpg", "json", "txt")])
@pytest.mark.parametrize("between", [0, 20])
def test_the_text_of_a_picture_does_not_depend_on_the_order_of_members(
    tmp_path: Path, order: tuple[str, ...], between: int
) -> None:
    data = {"jpg": b"x", "json": b'{"caption": "of json", "url": "u"}', "txt": b"text"}
    files = {}
    for suffix in order:
        files[f"a.{suffix}"] = data[suffix]
        files |= {f"{suffix}{n}.{kind}": data[kind] for n in range(between) for kind in ("jpg", "txt")}
    (tmp_path / "0.tar").write_bytes(make_tar(files))
    rows = [row for row in _rows(tmp_path / "0.tar") if row.custom_id == "a.jpg"]
    assert [(row.text, json.loads(row.metadata or "")) for row in rows] == [("text", json.loads(data["json"]))]


def test_samples_whose_names_come_again_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [make_tar({f"{n}.jpg": b"x", f"{n}.txt": f"{part}{n}".encode()}) for part in "ab" for n in range(6)]
    (tmp_path / "0.tar").write_bytes(b"".join(parts))
    expected = [f"{part}{n}" for part in "ab" for n in range(6)]
    assert [row.text for row in _rows(tmp_path / "0.tar")] == expected
    monkeypatch.setattr(shards, "_WINDOW", 3)
    assert [row.text for row in _rows(tmp_path / "0.tar")] == expected


def test_a_member_behind_the_window_is_an_error_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_WINDOW", 3)
    files = {f"{number}.{suffix}": b"t" for number in range(9) for suffix in ("jpg", "txt")}
    (tmp_path / "0.tar").write_bytes(make_tar(files | {"0.seg.jpg": b"x", "1.caption": b"c"}))
    rows = _rows(tmp_path / "0.tar")
    assert [row.row_id for row in rows] == list(range(11))
    assert all(row.text == "t" for row in rows[:9])
    assert [row.custom_id for row in rows[9:]] == ["0.seg.jpg", "1.caption"]
    assert all("too far behind" in str(row.row_error) for row in rows[9:])


def test_a_json_member_without_a_text_is_metadata_of_a_row_whose_text_is_missing(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(make_tar({"a.jpg": b"x", "a.json": b'{"width": 5}'}))
    (row,) = _rows(tmp_path / "0.tar")
    assert (row.text, row.row_error, row.metadata) == (None, None, '{"width": 5}')
    assert row.warnings == ["a.json has no field of a text; its fields are 'width'"]


def test_members_that_are_no_files_are_errors_of_their_rows(tmp_path: Path) -> None:
    others = []
    for name, kind in (("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE), ("d.jpg", tarfile.CHRTYPE)):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        others.append(member)
    folder = tarfile.TarInfo("folder.jpg")
    folder.type = tarfile.DIRTYPE
    files = {"a.jpg": b"x", "a.txt": b"t", "empty.jpg": b"", "../up.jpg": b"x", "bad\udcff.jpg": b"x", "b.jpg": b"x"}
    (tmp_path / "0.tar").write_bytes(make_tar(files, *others, folder))
    rows = {row.custom_id: row for row in _rows(tmp_path / "0.tar")}
    assert "is a link to '/etc/passwd'" in str(rows["l.jpg"].row_error)
    assert "is a link to '/etc/passwd'" in str(rows["h.jpg"].row_error)
    assert "a device or a pipe" in str(rows["d.jpg"].row_error)
    assert "has 0 bytes" in str(rows["empty.jpg"].row_error)
    assert "not UTF-8" in str(rows["bad\udcff.jpg"].row_error)
    assert {name for name, row in rows.items() if row.row_error is None} == {"a.jpg", "b.jpg", "../up.jpg"}
    assert not (tmp_path.parent / "up.jpg").exists()


@pytest.mark.parametrize("kept", [700, 1100, 1536, 1700, 2100, 2560, 2700])
def test_a_tar_that_is_cut_off_keeps_its_first_pairs_and_says_so(tmp_path: Path, kept: int) -> None:
    files = {f"{number}.{suffix}": 300 * b"x" for number in range(3) for suffix in ("jpg", "txt")}
    (tmp_path / "0.tar").write_bytes(make_tar(files)[: 2048 + kept])
    rows = _rows(tmp_path / "0.tar")
    assert rows[0].row_error is None
    assert "is not complete" in str(rows[-1].row_error)
    assert len({row.row_id for row in rows}) == len(rows)


def test_a_damaged_header_ends_the_tar_with_a_row(tmp_path: Path) -> None:
    files = {f"{number}.{suffix}": b"x" for number in range(3) for suffix in ("jpg", "txt")}
    data = bytearray(make_tar(files))
    data[2048:2060] = b"\xff" * 12
    (tmp_path / "0.tar").write_bytes(data)
    rows = _rows(tmp_path / "0.tar")
    assert [row.row_error is None for row in rows] == [True, False]
    assert "is damaged at byte 2048" in str(rows[1].row_error)


def test_a_header_of_absurd_size_takes_no_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 2**40
    good = make_tar({"a.jpg": b"x", "a.txt": b"t"})[: 4 * tars.BLOCK]
    (tmp_path / "0.tar").write_bytes(good + header.tobuf(tarfile.GNU_FORMAT))
    rows = _rows(tmp_path / "0.tar")
    assert "a name or attribute has 1099511627776 bytes" in str(rows[1].row_error)
    huge = tarfile.TarInfo("b.jpg")
    huge.size = 2**80
    (tmp_path / "0.tar").write_bytes(good + huge.tobuf(tarfile.GNU_FORMAT))
    assert "is not complete" in str(_rows(tmp_path / "0.tar")[1].row_error)


def test_joined_tars_are_read_to_their_end(tmp_path: Path) -> None:
    parts = [make_tar({f"{number}.jpg": b"x", f"{number}.txt": b"t"}) for number in range(2)]
    (tmp_path / "0.tar").write_bytes(b"".join(parts))
    assert [row.custom_id for row in _rows(tmp_path / "0.tar")] == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x1f\x8b\x08 packed", r"is compressed \(gzip\).* Unpack it"),
        (b"<html>" + 600 * b"x", "is no tar"),
        (make_tar({"a.txt": b"t"}), "holds no picture"),
        (make_tar({"a.jpg": b"x", "b.jpg": b"x"}), "none of its first 2 pictures has a member of the same name"),
    ],
)
def test_a_tar_that_would_give_no_pair_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "0.tar").write_bytes(data)
    with pytest.raises(InputNotFound, match=reason):
        find_source(str(tmp_path / "0.tar"))


def test_a_later_tar_that_is_none_becomes_one_row(tmp_path: Path) -> None:
    write_files(tmp_path, {"0.tar": make_tar({"a.jpg": b"x", "a.txt": b"t"}), "1.tar": b"<html>", "2.tar": b""})
    rows = _rows(tmp_path)
    assert [row.row_id for row in rows] == [0, 1 << 32]
    assert "1.tar" in str(rows[1].row_error)


def test_a_tar_without_texts_is_read_if_captions_are_made(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(make_tar({"a.jpg": b"x", "b.jpg": b"x"}))
    source = find_source(str(tmp_path / "0.tar"), options=TableOptions(texts=False))
    assert [row.custom_id for row in source.rows()] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("window", [2**10, 2**23])
def test_tars_are_read_from_s3_in_windows(bucket: str, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(tars, "_S3_WINDOW", window)
    files = {
        f"{number}.{suffix}": data
        for number in range(20)
        for suffix, data in (("jpg", draw_jpeg(number)), ("txt", b"t"))
    }
    tar = make_tar(files)
    write_files(f"s3://{bucket}/shards", {"0.tar": tar, "1.tar": tar[: len(tar) // 2]})
    rows = _rows(f"s3://{bucket}/shards")
    first = [row for row in rows if row.row_id < 1 << 32]
    assert [_bytes(row) for row in first] == [draw_jpeg(number) for number in range(20)]
    assert first[0].image_version
    assert "is not complete" in str(rows[-1].row_error)


def test_the_members_are_those_that_tarfile_finds(tmp_path: Path) -> None:
    data = make_tar(
        {f"{number:03}/{'n' * number}.jpg": bytes(number + 1) for number in range(1, 250)} | {"0.txt": b"t"}
    )
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar if member.name.endswith(".jpg")]
    (tmp_path / "0.tar").write_bytes(data)
    rows = find_source(str(tmp_path / "0.tar"), options=TableOptions(texts=False)).rows()
    assert [(row.custom_id, row.image_offset, row.image_length) for row in rows] == expected
