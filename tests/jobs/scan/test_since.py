"""Rows that are the same in an earlier job are copied from its results."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from asap.errors import ConfigError
from asap.policy import Policy
from asap.storage.files import delete_file, file_info, list_files, write_bytes
from asap.storage.location import Location
from jobs.scan.input.manifest import MANIFEST_SCHEMA, write_tables
from jobs.scan.since import check_earlier_job, copy_rows, read_earlier
from tests.jobs.scan.stages.test_pair_store import SOUND
from tests.support.job_folders import failed, scored, write_results, write_scan
from tests.support.results import read_results

RAW = {name: value for name, value in SOUND.items() if name != "text_warnings"}
IDENTITY = {
    "model_id": "m@1", "familiarity_id": None, "captioner": None, "explainer": None,
    "settings": {"precision": "auto", "min_text_read": 0.5, "max_image_bytes": 9, "captions": None, "input": "/a"},
}  # fmt: skip


def _result(row_id: int, version: str | None, **columns: Any) -> dict[str, Any]:
    own = {"image_uri": f"s3://b/{row_id}.jpg", "image_version": version, "policy_id": "p1", "judged_run": "r1"}
    return scored(row_id, 0.75, "manipulated", "face_swap") | RAW | own | columns


def _pair(row_id: int, number: int, version: str | None, **columns: Any) -> dict[str, Any]:
    own = {"row_id": row_id, "custom_id": f"new-{row_id}", "image_uri": f"s3://b/{number}.jpg", "text": "A team"}
    return own | {"image_version": version, "warnings": []} | columns


def _copy(tmp_path: Path, pairs: list[dict[str, Any]], **options: Any) -> dict[int, dict[str, Any]]:
    """Copy rows for a manifest of these pairs; return those that the job then has, by their ids."""
    folder = Location(str(tmp_path / "job"))
    write_tables([pa.Table.from_pylist(pairs, MANIFEST_SCHEMA)], folder / "manifest")
    settings: dict[str, Any] = {"policy": Policy(), "run_id": "r2", "is_same_policy": True} | options
    before = len(read_results(folder))
    copied = copy_rows(folder, Location(str(tmp_path / "earlier")), **settings)
    rows = read_results(folder)
    assert copied == len(rows) - before
    return {row["row_id"]: row for row in rows}


@pytest.fixture
def earlier(tmp_path: Path) -> Location:
    """Write an earlier job with rows of all kinds."""
    folder = Location(str(tmp_path / "earlier"))
    write_scan(folder, identity=IDENTITY)
    renamed = "custom_id 'a' was used by an earlier row; this one is called 'a#1'"
    gone = {"image_uri": "s3://b/4.jpg", "image_version": "e" * 32, "text": "A team"}
    write_results(folder, "a", [
        _result(0, "a" * 32, metadata="old", warnings=[renamed, "read anew"]), _result(1, "b" * 32), _result(2, None),
        _result(3, "d" * 32, caption_error={"kind": "timeout", "detail": "x", "retryable": True}),
    ])  # fmt: skip
    write_results(folder, "b", [
        failed(4, "timeout", retryable=True) | gone,
        failed(5, "too_large", retryable=False) | gone | {"image_uri": "s3://b/5.jpg"},
        _result(6, "null"), _result(7, "f" * 32, text="Another"),
        _result(8, "a1" * 16, image_offset=512, image_length=9),
    ])  # fmt: skip
    return folder


def test_rows_of_the_same_picture_version_and_text_are_copied_under_their_new_names(
    earlier: Location, tmp_path: Path
) -> None:
    pairs = [
        _pair(10, 0, "a" * 32, metadata="new", warnings=["of the manifest"], given_id="mine"), _pair(11, 1, "c" * 32),
        _pair(13, 3, "d" * 32), _pair(14, 4, "e" * 32), _pair(15, 5, "e" * 32), _pair(16, 6, "null"),
        _pair(17, 7, "f" * 32), _pair(18, 8, "a1" * 16, image_offset=512, image_length=9),
        _pair(19, 8, "a1" * 16, image_offset=513, image_length=9), _pair(20, 0, "a" * 32, row_error="broken"),
        _pair(21, 0, "a" * 32, text=None, text_uri="s3://b/0.txt"), _pair(22, 0, "a" * 32), _pair(23, 99, "a" * 32),
    ]  # fmt: skip
    rows = _copy(tmp_path, pairs)
    assert set(rows) == {10, 15, 18, 22}
    first = rows[10]
    assert (first["custom_id"], first["given_id"], first["metadata"]) == ("new-10", "mine", "new")
    assert first["warnings"] == ["of the manifest", "read anew"]
    assert (first["reused"], first["judged_run"], first["policy_id"], first["image_version"]) == (
        "since",
        "r2",
        "p1",
        "a" * 32,
    )
    assert {name: first[name] for name in RAW} == RAW
    assert (rows[15]["status"], rows[15]["error_code"]) == ("error", "too_large")
    # Again, as after a stop: nothing is copied twice, and a row that was lost is copied.
    assert set(_copy(tmp_path, pairs)) == set(rows)
    [file] = [info.location for info in list_files(Location(str(tmp_path / "job/results")))]
    delete_file(file)
    assert set(_copy(tmp_path, pairs)) == set(rows)


def test_another_policy_is_applied_to_the_copied_scores(earlier: Location, tmp_path: Path) -> None:
    policy = Policy(manipulated=0.9, review=0.7, word=0.9, unfamiliar=0.1)
    rows = _copy(tmp_path, [_pair(10, 0, "a" * 32), _pair(15, 5, "e" * 32)], policy=policy, is_same_policy=False)
    assert (rows[10]["verdict"], rows[10]["flagged_types"]) == ("review", [])
    assert [word["word"] for word in rows[10]["words"]] == ["team"]
    assert {row["policy_id"] for row in rows.values()} == {policy.policy_id}
    assert rows[15]["verdict"] is None


def test_pictures_without_a_listed_version_are_asked_for_it(tmp_path: Path, s3: str, bucket: str) -> None:
    local, remote = tmp_path / "0.jpg", Location(f"s3://{bucket}/1.jpg")
    local.write_bytes(b"first")
    write_bytes(remote, b"first")
    stamps = [info.revision for place in (Location(str(local)), remote) if (info := file_info(place))]
    uris = [str(local), remote.uri, str(tmp_path / "gone.jpg"), "s3://no-such-bucket-there/a.jpg"]
    folder = Location(str(tmp_path / "earlier"))
    write_scan(folder)
    versions = [*stamps, "9-9", "9" * 32]
    write_results(folder, "a", [
        _result(row, versions[row], image_uri=uri) for row, uri in enumerate(uris)
    ])  # fmt: skip
    pairs = [_pair(number, 0, None, image_uri=uri) for number, uri in enumerate(uris)]
    assert set(_copy(tmp_path, pairs)) == {0, 1}
    local.write_bytes(b"other")
    os.utime(local, ns=(1, 1))
    write_bytes(remote, b"other")
    delete_file(next(list_files(Location(str(tmp_path / "job/results")))).location)
    assert _copy(tmp_path, pairs) == {}


def test_pictures_of_a_bucket_that_keeps_versions_are_asked_too(tmp_path: Path, s3: str, bucket: str) -> None:
    import boto3

    client = boto3.client("s3")
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    version = client.put_object(Bucket=bucket, Key="1.jpg", Body=b"first")["VersionId"]
    uri = f"s3://{bucket}/1.jpg"
    folder = Location(str(tmp_path / "earlier"))
    write_scan(folder)
    write_results(folder, "a", [_result(0, version, image_uri=uri)])
    assert read_earlier(folder / "results").has_version_ids
    listed = file_info(Location(uri))
    assert listed is not None
    assert set(_copy(tmp_path, [_pair(5, 0, listed.version, image_uri=uri)])) == {5}


def test_an_earlier_job_that_was_made_otherwise_is_refused(earlier: Location, tmp_path: Path) -> None:
    own = Location(str(tmp_path / "own"))
    assert check_earlier_job(earlier, own, IDENTITY)["kind"] == "scan"
    settings = IDENTITY["settings"]
    assert isinstance(settings, dict)
    other_input = IDENTITY | {"settings": settings | {"input": "/b"}, "policy_id": "p9", "input": "fingerprint"}
    assert check_earlier_job(earlier, own, other_input)
    with pytest.raises(ConfigError, match=r"model_id was 'm@1' and is 'm@2'; min_text_read was 0\.5 and is 0\.25\."):
        check_earlier_job(earlier, own, {"settings": settings | {"min_text_read": 0.25}} | IDENTITY | {
            "model_id": "m@2", "settings": settings | {"min_text_read": 0.25}})  # fmt: skip
    with pytest.raises(ConfigError, match=r"is the folder of this scan"):
        check_earlier_job(earlier, earlier, IDENTITY)
    with pytest.raises(ConfigError, match=r"is not the folder of a scan"):
        check_earlier_job(own, own, IDENTITY)
    delete_file(earlier / "_SUCCESS")
    with pytest.raises(ConfigError, match=r"is not finished"):
        check_earlier_job(earlier, own, IDENTITY)
