"""Tests of the look that a scan takes at its input before it starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asap.storage.s3 import s3_client
from jobs.errors import InputNotFound
from jobs.scan import look as look_module
from jobs.scan.input.sources import find_source
from jobs.scan.look import SAMPLE, Look, look_at, notes_of
from jobs.scan.settings import ScanSettings

Jpeg = Callable[..., bytes]


def _look(folder: Path, records: list[Any], *, seconds: float | None = None, is_quick: bool = False) -> Look:
    path = folder / "pairs.jsonl"
    path.write_text("".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records))
    settings = ScanSettings(input=str(path), out="out")
    return look_at(find_source(str(path)), settings, seconds=seconds, is_quick=is_quick)


@pytest.fixture
def pair(tmp_path: Path, jpeg: Jpeg) -> dict[str, str]:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    return {"image": "a.jpg", "text": "a text"}


def test_rows_are_counted_with_their_problems_and_their_lines(tmp_path: Path, pair: dict[str, str]) -> None:
    records = [
        pair | {"id": "one"}, "{broken", pair | {"id": "one"}, {"image": "a.jpg", "text": " "}, {"text": "alone"},
        "{broken too", pair | {"text": "another"} | {"id": "\ud83d"},
    ]  # fmt: skip
    look = _look(tmp_path, records)
    assert (look.rows, look.is_whole) == (7, True)
    assert (look.without_text, look.without_image) == (1, 1)
    assert (look.repeated_ids, look.repeated_images, look.repeated_pairs) == (1, 3, 1)
    (invalid,) = look.invalid.values()
    assert (invalid.count, invalid.row_ids) == (2, [1, 5])
    assert invalid.to_json()["first"] == [{"line": 2}, {"line": 6}]
    assert [first["id"] for first in look.first] == ["one", None, "one"]
    assert "not JSON" in look.first[1]["error"]


def test_a_sample_is_read_as_the_scan_reads_it(tmp_path: Path, pair: dict[str, str]) -> None:
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    records = [pair, pair | {"image": "b.jpg"}, pair | {"image": "gone.jpg"}, {"image": "a.jpg"}, {"text": "t"}, "{"]
    look = _look(tmp_path, records)
    failures = {code: group.count for code, group in look.failures.items()}
    assert failures == {
        "unsupported_format": 1, "not_found": 1, "text_missing": 1, "image_missing": 1, "row_invalid": 1,
    }  # fmt: skip
    assert (look.sampled, look.failed) == (6, 5)
    assert look.widths
    look.check("pairs.jsonl")  # one pair can be read


@pytest.mark.parametrize(
    ("records", "reasons"),
    [
        ([{"image": "gone.jpg", "text": "t"}] * 3, "3 not_found"),
        ([{"image": "gone.jpg", "text": "t"}, {"text": "t"}], "1 not_found"),
    ],
)
def test_an_input_of_which_every_sampled_pair_would_fail_is_refused(
    tmp_path: Path, records: list[Any], reasons: str
) -> None:
    look = _look(tmp_path, records)
    with pytest.raises(InputNotFound, match=f"all {len(records)} pairs of it would fail.*{reasons}") as error:
        look.check("pairs.jsonl")
    assert "--allow-unreadable" in str(error.value)


def test_the_sample_is_seeded_and_comes_from_all_rows(tmp_path: Path, pair: dict[str, str]) -> None:
    records = [pair | {"image": f"{number}.jpg"} for number in range(1000)]
    first, second = _look(tmp_path, records), _look(tmp_path, records)
    assert first.sampled == SAMPLE
    assert first.failures == second.failures
    assert max(first.failures["not_found"].row_ids) > 2 * SAMPLE
    with pytest.raises(InputNotFound, match=f"all {SAMPLE} sampled pairs"):
        first.check("pairs.jsonl")


def test_a_sample_reads_the_pictures_of_a_table_forward_and_its_first_batch_is_a_sample_too(
    tmp_path: Path, pair: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[int]] = []
    monkeypatch.setattr(look_module, "_try", lambda look, rows, *_, **__: batches.append([row.row_id for row in rows]))
    _look(tmp_path, [pair] * 1000)
    first, rest = batches[0], [row_id for batch in batches[1:] for row_id in batch]
    assert (first, rest) == (sorted(first), sorted(rest))
    assert len({*first, *rest}) == SAMPLE
    assert first[0] < 250
    assert first[-1] > 750


def test_reading_stops_in_time_and_counts_are_lower_bounds(
    tmp_path: Path, pair: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_module, "_CHUNK", 10)
    look = _look(tmp_path, [pair] * 100, seconds=0)
    assert (look.rows, look.is_whole) == (10, False)
    assert _look(tmp_path, [pair] * 100).rows == 100


def test_a_quick_look_ends_with_the_first_pair_that_can_be_read(tmp_path: Path, pair: dict[str, str]) -> None:
    look = _look(tmp_path, [pair] * 100, is_quick=True)
    assert 0 < look.sampled < SAMPLE
    assert not look.is_unreadable


def test_a_look_is_json(tmp_path: Path, pair: dict[str, str]) -> None:
    document = json.loads(json.dumps(_look(tmp_path, [pair, "{"]).to_json(), allow_nan=False))
    assert document["input"]["kind"] == "table"
    assert document["sample"]["failures"]["row_invalid"]["first"] == [{"line": 2}]
    assert document["sample"]["width"]["from"] > 0


def test_archived_objects_are_counted_before_work(bucket: str, jpeg: Jpeg) -> None:
    client = s3_client()
    for name, storage in (("a", "STANDARD"), ("b", "GLACIER"), ("c", "DEEP_ARCHIVE")):
        client.put_object(Bucket=bucket, Key=f"pairs/{name}.jpg", Body=jpeg(1), StorageClass=storage)
        client.put_object(Bucket=bucket, Key=f"pairs/{name}.txt", Body=b"a text")
    source = find_source(f"s3://{bucket}/pairs")
    (note,) = notes_of(source.describe())
    assert note.startswith("2 files are archived in the store")
    look = look_at(source, ScanSettings(input="i", out="out"), seconds=None)
    assert (look.rows, look.failed) == (3, 2)


def test_the_notes_of_an_input_are_those_of_its_tables_too(tmp_path: Path, pair: dict[str, str]) -> None:
    (tmp_path / "a.csv").write_bytes("image,text\na.jpg,Die Bürgermeisterin lächelt über die Größe\n".encode("cp1252"))
    (note,) = notes_of(find_source(str(tmp_path / "a.csv")).describe())
    assert "cp1252 was guessed" in note
