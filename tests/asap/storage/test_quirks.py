"""Stores that differ from S3, each in one way, through our storage functions."""

import gzip
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.errors import FetchFailed, ImageTooLarge, StorageError
from asap.storage.fetch import ByteRange, FetchSettings, fetch
from asap.storage.files import (
    copy_file,
    create_bytes,
    delete_file,
    delete_folder,
    download_file,
    exists,
    file_info,
    is_empty,
    list_files,
    list_folders,
    open_read,
    open_seekable,
    open_write,
    read_bytes,
    write_bytes,
)
from asap.storage.location import Location
from asap.storage.s3 import check_bucket, check_writable, filesystem, s3_client
from tests.support.quirky_store import HARMLESS, Quirk, QuirkyStore

SETTINGS = FetchSettings(attempts=2)
LARGE = 20_000_000
"""Bytes of an object that is uploaded and read in parts."""


def _everything_works(folder: Location, tmp_path: Path) -> None:
    """Go through all storage functions."""
    data = os.urandom(LARGE)
    assert is_empty(folder)
    check_writable(folder)
    assert create_bytes(folder / "job.json", b"first")
    assert not create_bytes(folder / "job.json", b"second")
    assert read_bytes(folder / "job.json") == b"first"
    write_bytes(folder / "a/small", b"small")
    with open_write(folder / "a/large") as stream:
        for start in range(0, LARGE, 1_000_000):
            stream.write(data[start : start + 1_000_000])
    system, path = filesystem(folder)
    pq.write_table(pa.table({"x": [data]}), f"{path}/t.parquet", filesystem=system)
    copy_file(folder / "a/small", folder / "b/copy")
    names = {info.location.uri.removeprefix(f"{folder}/"): info.size for info in list_files(folder)}
    assert names.keys() == {"job.json", "a/small", "a/large", "t.parquet", "b/copy"}
    assert names["a/large"] == LARGE
    assert list_folders(folder) == [folder / "a", folder / "b"]
    assert fetch(f"{folder}/b/copy", 10, SETTINGS).data == b"small"
    assert fetch(f"{folder}/a/large", 5, SETTINGS, ByteRange(3, 5)).data == data[3:8]
    with open_read(folder / "a/large") as file:
        assert file.read() == data
    with open_seekable(folder / "t.parquet") as file:
        assert pq.read_table(file)["x"].to_pylist() == [data]
    download_file(folder / "a/large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    delete_file(folder / "job.json")
    assert not exists(folder / "job.json")
    delete_folder(folder)
    assert is_empty(folder)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait little between tries."""
    monkeypatch.setattr("asap.storage.failures._FIRST_BACKOFF_S", 0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "quirk",
    [
        Quirk.NO_CONDITIONAL_PUT, Quirk.CONDITIONS_IGNORED, Quirk.NOT_MODIFIED_FOR_FAILED, Quirk.NO_CHECKSUMS,
        Quirk.DELETES_WANT_MD5, Quirk.DELETES_FAIL_BY_KEY, Quirk.COMPLETION_FAILS_ONCE, Quirk.COMPLETION_FAILS_IN_200,
        Quirk.COMPLETION_LOSES_ANSWER, Quirk.CREATION_LOSES_ANSWER, Quirk.NO_RANGES,
        Quirk.NO_ETAGS, Quirk.NO_LENGTHS, Quirk.NO_COPIES, Quirk.NO_LISTING_V2,
    ],
)  # fmt: skip
def test_everything_works_in_a_store_with_a_quirk(
    quirk: Quirk, quirky: QuirkyStore, bucket: str, tmp_path: Path, hasty: None
) -> None:
    quirky.quirks = frozenset({quirk})
    _everything_works(Location(f"s3://{bucket}/folder"), tmp_path)


def test_everything_works_in_a_store_with_all_quirks_that_go_together(
    quirky: QuirkyStore, bucket: str, tmp_path: Path, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    quirky.quirks = HARMLESS
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    s3_client.cache_clear()
    _everything_works(Location(f"s3://{bucket}/folder"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["a//b", "/lead", "a+b", "a%20b", "a b", "a?b#c", "é", "e\u0301", "./x", "x/../y"])
def test_keys_of_any_kind_are_used_as_they_are(prefix: str, quirky: QuirkyStore, bucket: str, tmp_path: Path) -> None:
    folder = Location(f"s3://{bucket}/{prefix}")
    write_bytes(folder / "a.txt", b"one")
    with open_write(folder / "b//c") as stream:
        stream.write(b"two")
    system, path = filesystem(folder)
    pq.write_table(pa.table({"x": [1]}), f"{path}/t.parquet", filesystem=system)
    copy_file(folder / "a.txt", folder / "copy")
    keys = [entry["Key"] for entry in boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"]]
    assert sorted(keys) == sorted(f"{prefix}/{name}" for name in ("a.txt", "b//c", "copy", "t.parquet"))
    assert [info.location.key for info in list_files(folder)] == keys
    assert fetch(f"{folder}/a.txt", 10, SETTINGS).data == b"one"
    assert fetch(f"{folder}/b//c", 10, SETTINGS).data == b"two"
    with open_seekable(folder / "t.parquet") as file:
        assert pq.read_table(file)["x"].to_pylist() == [1]
    delete_folder(folder)
    assert is_empty(Location(f"s3://{bucket}"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "quirks",
    [set(), {Quirk.NO_CONDITIONAL_PUT}, {Quirk.CONDITIONS_IGNORED}, {Quirk.CREATION_LOSES_ANSWER}],
)
def test_one_of_many_processes_creates_a_file(
    quirks: set[Quirk], quirky: QuirkyStore, bucket: str, hasty: None
) -> None:
    quirky.quirks = frozenset(quirks)
    for round_ in range(5):
        location = Location(f"s3://{bucket}/jobs/{round_}/job.json")
        start = threading.Barrier(4)

        def create(number: int, location: Location = location, start: threading.Barrier = start) -> bool:
            start.wait()
            return create_bytes(location, str(number).encode())

        with ThreadPoolExecutor(4) as pool:
            created = list(pool.map(create, range(4)))
        assert sum(created) <= 1
        if exists(location):  # all may have stood back for each other
            assert created[int(read_bytes(location))]
        assert exists(location) == any(created)
        assert {info.location for info in list_files(Location(f"s3://{bucket}/jobs/{round_}"))} <= {location}
    left = {info.location.name for info in list_files(Location(f"s3://{bucket}"))}
    assert left == {"job.json"}


def test_a_deletion_that_fails_for_one_key_is_an_error(quirky: QuirkyStore, bucket: str) -> None:
    folder = Location(f"s3://{bucket}/job")
    write_bytes(folder / "a", b"x")
    write_bytes(folder / "b", b"x")
    quirky.quirks = frozenset({Quirk.NO_DELETING})
    with pytest.raises(StorageError, match=rf"{folder} was denied.*the right s3:DeleteObject"):
        delete_folder(folder)


def test_a_stream_that_fails_leaves_the_former_object(quirky: QuirkyStore, bucket: str) -> None:
    location = Location(f"s3://{bucket}/a")
    write_bytes(location, b"former")

    def fail() -> None:
        with open_write(location) as stream:
            stream.write(os.urandom(LARGE))
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert read_bytes(location) == b"former"
    assert "Uploads" not in boto3.client("s3").list_multipart_uploads(Bucket=bucket)


def test_an_object_that_is_replaced_while_it_is_read_is_an_error(bucket: str) -> None:
    location = Location(f"s3://{bucket}/a")
    write_bytes(location, os.urandom(5_000_000))
    with open_seekable(location) as file:
        write_bytes(location, os.urandom(5_000_000))
        with pytest.raises(StorageError, match="was replaced while it was read"):
            file.read(10)


@pytest.mark.parametrize(
    ("quirk", "action", "right"),
    [
        (Quirk.NO_LISTING, check_writable, "s3:ListBucket"),
        (Quirk.NO_LISTING, check_bucket, "s3:ListBucket"),
        (Quirk.NO_WRITING, check_writable, "s3:PutObject"),
        (Quirk.NO_DELETING, check_writable, "s3:DeleteObject"),
        (Quirk.NO_READING, read_bytes, "s3:GetObject"),
        (Quirk.REQUESTER_PAYS, check_bucket, "AWS_REQUEST_PAYER=requester"),
        (Quirk.NO_SIGNATURES, check_bucket, "AWS_PROFILE"),
    ],
)
def test_a_missing_right_is_named_with_the_bucket(
    quirk: Quirk, action: Callable[[Location], object], right: str, quirky: QuirkyStore, bucket: str
) -> None:
    folder = Location(f"s3://{bucket}/out/job")
    quirky.quirks = frozenset({quirk})
    with pytest.raises(StorageError, match=rf"access to {folder} was denied: .*{right}") as caught:
        action(folder)
    assert not caught.value.retryable


def test_a_folder_that_can_be_written_is_left_as_it_was(bucket: str) -> None:
    check_writable(Location(f"s3://{bucket}/out/job"))
    check_writable(Location(f"s3://{bucket}/job"))
    check_writable(Location(f"s3://{bucket}"))
    assert is_empty(Location(f"s3://{bucket}"))


@pytest.mark.parametrize("key", ["out//job", "/job", "out/./job", "out/../job"])
def test_a_folder_for_results_whose_name_other_tools_change_is_refused(key: str, bucket: str) -> None:
    with pytest.raises(StorageError, match=rf"empty part or a dot.* Write s3://{bucket}/(out/)?job\."):
        check_writable(Location(f"s3://{bucket}/{key}"))


def test_a_row_that_is_denied_says_which_right_is_missing(quirky: QuirkyStore, bucket: str) -> None:
    quirky.quirks = frozenset({Quirk.NO_READING})
    with pytest.raises(FetchFailed, match=r"s3:GetObject.*s3:ListBucket.*AWS_REQUEST_PAYER") as caught:
        fetch(f"s3://{bucket}/a", 10, SETTINGS)
    assert (caught.value.code, caught.value.retryable) == ("access_denied", False)


def test_an_object_of_unknown_length_is_read_up_to_the_limit(quirky: QuirkyStore, bucket: str) -> None:
    location = Location(f"s3://{bucket}/a")
    write_bytes(location, b"0123456789")
    quirky.quirks = frozenset({Quirk.NO_LENGTHS})
    assert fetch(location.uri, 10, SETTINGS).data == b"0123456789"
    with pytest.raises(ImageTooLarge, match="the limit is 9"):
        fetch(location.uri, 9, SETTINGS)


def test_a_public_bucket_is_read_without_credentials(
    quirky: QuirkyStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = Location(f"s3://{bucket}/a")
    boto3.client("s3").put_bucket_acl(Bucket=bucket, ACL="public-read")
    boto3.client("s3").put_object(Bucket=bucket, Key="a", Body=b"one", ACL="public-read")
    quirky.quirks = frozenset({Quirk.NO_SIGNATURES})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    s3_client.cache_clear()
    check_bucket(location.parent)
    assert fetch(location.uri, 10, SETTINGS).data == b"one"
    system, path = filesystem(location)
    assert system.open_input_file(path).read() == b"one"


def test_a_bucket_that_charges_its_readers_is_read(
    quirky: QuirkyStore, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quirky.quirks = frozenset({Quirk.REQUESTER_PAYS})
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    s3_client.cache_clear()
    _everything_works(Location(f"s3://{bucket}/folder"), tmp_path)


def test_an_archived_object_is_known_from_the_listing_and_says_how_to_restore_it(bucket: str) -> None:
    client = boto3.client("s3")
    for name, storage in (("a", "STANDARD"), ("b", "GLACIER"), ("c", "DEEP_ARCHIVE"), ("d", "GLACIER_IR")):
        client.put_object(Bucket=bucket, Key=name, Body=b"x", StorageClass=storage)
    folder = Location(f"s3://{bucket}")
    found = {info.location.name: info.is_archived for info in list_files(folder)}
    assert found == {"a": False, "b": True, "c": True, "d": False}
    info = file_info(folder / "b")
    assert info
    assert info.is_archived
    with pytest.raises(FetchFailed, match=r"The object is archived\. Restore it") as caught:
        fetch(f"{folder}/b", 10, SETTINGS)
    assert (caught.value.code, caught.value.retryable) == ("storage_error", False)
    with pytest.raises(StorageError, match=r"The object is archived\. Restore it"):
        read_bytes(folder / "b")


def test_a_version_is_read_and_listed_files_are_the_latest(bucket: str, tmp_path: Path) -> None:
    client = boto3.client("s3")
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    first = client.put_object(Bucket=bucket, Key="a.jpg", Body=b"first")["VersionId"]
    client.put_object(Bucket=bucket, Key="a.jpg", Body=b"second")
    location = Location.parse(f"s3://{bucket}/a.jpg?versionId={first}")
    assert (location.key, location.name, location.version_id) == ("a.jpg", "a.jpg", first)
    assert fetch(location.uri, 10, SETTINGS).data == b"first"
    assert read_bytes(location) == b"first"
    with open_read(location) as file:
        assert file.read() == b"first"
    download_file(location, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"first"
    assert fetch(f"s3://{bucket}/a.jpg", 10, SETTINGS).data == b"second"
    with pytest.raises(FetchFailed):
        fetch(f"s3://{bucket}/a.jpg?versionId=none", 10, SETTINGS)


@pytest.fixture
def encoded(bucket: str) -> Callable[[str, bytes], Location]:
    """Return a function that stores bytes with `Content-Encoding: gzip`, and returns their location."""

    def store(name: str, data: bytes) -> Location:
        boto3.client("s3").put_object(Bucket=bucket, Key=name, Body=data, ContentEncoding="gzip")
        return Location(f"s3://{bucket}/{name}")

    return store


def test_objects_with_content_encoding_are_decompressed(encoded: Callable[[str, bytes], Location]) -> None:
    data = b'{"a": 1}\n' * 1000
    lines = encoded("a.jsonl", gzip.compress(data[:900]) + gzip.compress(data[900:]))
    assert fetch(lines.uri, len(data), SETTINGS).data == data
    assert read_bytes(lines) == data
    with open_read(lines) as file:
        assert file.read() == data
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [os.urandom(5_000_000)]}), sink)
    with open_seekable(encoded("t.parquet", gzip.compress(sink.getvalue().to_pybytes(), 1))) as file:
        assert pq.read_table(file).num_rows == 1


@pytest.mark.parametrize("times", [1, 2])
def test_a_name_that_ends_in_gz_and_an_encoding_may_mean_one_compression_or_two(
    times: int, encoded: Callable[[str, bytes], Location]
) -> None:
    data = b"line\n"
    for _ in range(times):
        data = gzip.compress(data)
    with open_read(encoded("a.jsonl.gz", data)) as file:
        assert file.read() == b"line\n"


def test_an_encoding_that_is_not_true_changes_nothing(encoded: Callable[[str, bytes], Location]) -> None:
    location = encoded("a.jpg", b"\xff\xd8 as it is")
    assert fetch(location.uri, 100, SETTINGS).data == b"\xff\xd8 as it is"
    assert read_bytes(location) == b"\xff\xd8 as it is"
    with open_read(location) as file:
        assert file.read() == b"\xff\xd8 as it is"


def test_a_small_object_that_decompresses_to_a_large_one_is_too_large(
    encoded: Callable[[str, bytes], Location], monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = encoded("a.jpg", gzip.compress(bytes(50_000_000)))
    with pytest.raises(ImageTooLarge, match="more than 1000000 bytes, the limit, when it is decompressed"):
        fetch(bomb.uri, 1_000_000, SETTINGS)
    monkeypatch.setattr("asap.storage.files._MOST_DECODED_SMALL", 1_000_000)
    monkeypatch.setattr("asap.storage.files._MOST_DECODED_BYTES", 1_000_000)
    for read in (read_bytes, open_seekable):
        with pytest.raises(StorageError, match=r"Content-Encoding gzip and has more than 1000000 bytes\. Store it"):
            read(bomb)


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: data[:20] + b"\0" * 30 + data[50:]])
def test_damaged_compressed_bytes_are_an_error(
    damage: Callable[[bytes], bytes], encoded: Callable[[str, bytes], Location]
) -> None:
    location = encoded("a.jpg", damage(gzip.compress(os.urandom(1000))))
    with pytest.raises(FetchFailed, match="stored with Content-Encoding gzip") as caught:
        fetch(location.uri, 10_000, SETTINGS)
    assert (caught.value.code, caught.value.retryable) == ("storage_error", False)
    with pytest.raises(StorageError, match="stored with Content-Encoding gzip"):
        read_bytes(location)


@pytest.mark.parametrize(
    "bucket_name",
    [
        "arn:aws:s3:us-east-1:123456789012:accesspoint/photos",
        "arn:aws:s3:us-east-1:123456789012:accesspoint:photos",
        "arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap",
        "arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-01ac5d28a6a232904/accesspoint/photos",
        "photos-abcdefgh-s3alias",
    ],
)
def test_an_access_point_is_a_bucket(bucket_name: str) -> None:
    location = Location.parse(f"s3://{bucket_name}/2024/a.jpg")
    assert (location.bucket, location.key, location.name) == (bucket_name, "2024/a.jpg", "a.jpg")
    assert location.parent == Location(f"s3://{bucket_name}/2024")
    assert location.parent.parent == Location(f"s3://{bucket_name}")
    assert Location(f"s3://{bucket_name}").key == ""


def test_an_access_point_is_asked_at_its_own_host(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    s3_client.cache_clear()
    location = Location("s3://arn:aws:s3:us-east-1:123456789012:accesspoint/photos/a.jpg")
    try:
        url = s3_client().generate_presigned_url("get_object", Params={"Bucket": location.bucket, "Key": location.key})
    finally:
        s3_client.cache_clear()
    assert re.match(r"https://photos-123456789012\.s3-accesspoint\.us-east-1\.amazonaws\.com/a\.jpg\?", url)
