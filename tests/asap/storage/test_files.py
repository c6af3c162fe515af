import errno
import os
import stat
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.errors import StorageError
from asap.storage import files as storage
from asap.storage import s3 as s3_module
from asap.storage.location import Location


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Location.parse("a/b.json").uri == str(tmp_path / "a/b.json")
    assert Location.parse("file:///a/b").uri == "/a/b"


def test_an_s3_address_has_a_bucket_and_a_key() -> None:
    location = Location.parse("s3://news/2024/a.jpg")
    assert (location.bucket, location.key, location.name) == ("news", "2024/a.jpg", "a.jpg")
    assert location.parent == Location("s3://news/2024")
    assert Location.parse("s3://news/").key == ""
    assert Location("s3://news").parent == Location("s3://news")
    assert str(Location("s3://news") / "a") == "s3://news/a"


@pytest.mark.parametrize("text", ["http://host/a.jpg", "gs://bucket/a", "s3://", "s3:///key"])
def test_other_schemes_and_missing_buckets_are_refused(text: str) -> None:
    with pytest.raises(StorageError, match=r"scheme|names no bucket"):
        Location.parse(text)


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty place of either kind."""
    if request.param == "local":
        return Location(str(tmp_path / "place"))
    return Location(f"s3://{request.getfixturevalue('bucket')}/place")


def test_what_is_written_can_be_read_listed_and_deleted(folder: Location) -> None:
    assert storage.is_empty(folder)
    storage.write_bytes(folder / "b.txt", b"two")
    storage.write_bytes(folder / "a/x.txt", b"one")
    with storage.open_write(folder / "c.txt") as file:
        file.write(b"three")
    assert not storage.is_empty(folder)
    assert storage.exists(folder / "b.txt")
    assert not storage.exists(folder / "a")
    assert storage.read_bytes(folder / "c.txt") == b"three"
    assert {info.location.name: info.size for info in storage.list_files(folder)} == {
        "x.txt": 3,
        "b.txt": 3,
        "c.txt": 5,
    }
    storage.delete_file(folder / "b.txt")
    assert not storage.exists(folder / "b.txt")
    storage.delete_folder(folder)
    storage.delete_folder(folder)
    assert storage.is_empty(folder)


def test_a_copy_has_the_same_bytes_and_takes_the_place_of_what_was_there(folder: Location) -> None:
    storage.write_bytes(folder / "a/source", b"new")
    storage.write_bytes(folder / "b/target", b"former")
    storage.copy_file(folder / "a/source", folder / "b/target")
    storage.copy_file(folder / "a/source", folder / "c/target")
    names = [info.location for info in storage.list_files(folder)]
    assert names == [folder / "a/source", folder / "b/target", folder / "c/target"]
    assert {storage.read_bytes(name) for name in names} == {b"new"}
    with pytest.raises(StorageError):
        storage.copy_file(folder / "none", folder / "b/target")


def test_a_folder_is_downloaded_over_files_of_the_same_names(folder: Location, tmp_path: Path) -> None:
    storage.write_bytes(folder / "a", b"new")
    storage.write_bytes(folder / "b/c..", b"other")
    target = tmp_path / "target"
    storage.write_bytes(Location(str(target / "a")), b"former")
    storage.write_bytes(Location(str(target / "kept")), b"kept")
    assert storage.download_folder(folder, target) == 2
    found = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert found == {"a": b"new", "b/c..": b"other", "kept": b"kept"}
    assert storage.download_folder(folder / "none", target) == 0
    with pytest.raises(StorageError, match="none does not exist"):
        storage.download_file(folder / "none", target / "none")


def test_a_bucket_is_downloaded_as_a_folder_is(bucket: str, tmp_path: Path) -> None:
    storage.write_bytes(Location(f"s3://{bucket}/a/b"), b"whole")
    assert storage.download_folder(Location(f"s3://{bucket}"), tmp_path / "target") == 1
    assert (tmp_path / "target/a/b").read_bytes() == b"whole"


LEAVING = ["../x", "a/../../x", "a/..", "/x", "a//x", "./x", "a/\0", "", ".", ".."]


@pytest.mark.parametrize("name", LEAVING)
def test_a_name_that_is_no_path_below_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="its name is no path below one") as caught:
        storage.target_of_key(tmp_path, Location("s3://news/models"), name)
    assert repr(f"s3://news/models/{name}") in str(caught.value)


@pytest.mark.parametrize("name", ["x", "a/x", "..x", "a../x", "...", ".hidden", "a\\..\\x", "a b"])
def test_a_name_below_a_folder_is_joined_to_it(name: str, tmp_path: Path) -> None:
    assert str(storage.target_of_key(tmp_path, Location("s3://news"), name)) == f"{tmp_path}/{name}"


@pytest.mark.parametrize("name", ["../escaped", "z/../../escaped", "/escaped", "z//escaped", "z/\0"])
def test_one_key_that_leaves_the_folder_keeps_all_of_it_from_being_downloaded(
    name: str, bucket: str, tmp_path: Path
) -> None:
    for key in ("!first", name):
        boto3.client("s3").put_object(Bucket=bucket, Key=f"models/{key}", Body=b"x")
    with pytest.raises(StorageError, match="its name is no path below one"):
        storage.download_folder(Location(f"s3://{bucket}/models"), tmp_path / "outer" / "target")
    assert list(tmp_path.iterdir()) == []


def test_a_stamp_changes_with_the_file_and_only_s3_has_versions(folder: Location) -> None:
    storage.write_bytes(folder / "a", b"one")
    before = storage.file_info(folder / "a")
    storage.write_bytes(folder / "a", b"two")
    after = storage.file_info(folder / "a")
    assert before
    assert after
    assert before.stamp != after.stamp
    assert (after.version is not None) == folder.is_s3
    assert storage.file_info(folder / "b") is None


def test_a_stream_decompresses_by_name(folder: Location) -> None:
    storage.write_bytes(folder / "a.jsonl.gz", pa.compress(b"line\n" * 3, codec="gzip", asbytes=True))
    with storage.open_read(folder / "a.jsonl.gz") as file:
        assert file.readline() == b"line\n"
        assert len(file.readlines()) == 2


def test_a_table_can_be_written_and_read_at_any_offset(folder: Location) -> None:
    system, path = s3_module.filesystem(folder)
    system.create_dir(path, recursive=True)
    pq.write_table(pa.table({"a": [1, 2]}), f"{path}/t.parquet", filesystem=system)
    with storage.open_seekable(folder / "t.parquet") as file:
        assert pq.read_table(file)["a"].to_pylist() == [1, 2]


def test_a_listing_keeps_names_with_a_common_beginning_together(folder: Location) -> None:
    for name in ("a.jpg", "a-b.jpg", "a.txt", "a/c.jpg", "b.txt"):
        storage.write_bytes(folder / name, b"x")
    names = [info.location.uri.removeprefix(f"{folder.uri}/") for info in storage.list_files(folder)]
    assert abs(names.index("a.jpg") - names.index("a.txt")) == 1
    assert sorted(names) == ["a-b.jpg", "a.jpg", "a.txt", "a/c.jpg", "b.txt"]


def test_links_to_folders_are_followed_and_each_folder_is_listed_once(tmp_path: Path) -> None:
    for name in ("data/inner/a.jpg", "beside/b.jpg", "beside/deep/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "data/linked").symlink_to(tmp_path / "beside")
    (tmp_path / "data/linked-again").symlink_to(tmp_path / "beside")
    (tmp_path / "data/a-link").symlink_to(tmp_path / "data/inner")
    (tmp_path / "data/inner/above").symlink_to(tmp_path)
    (tmp_path / "beside/deep/loop").symlink_to(tmp_path / "beside")
    listed = [
        info.location.uri.removeprefix(f"{tmp_path}/") for info in storage.list_files(Location(str(tmp_path / "data")))
    ]
    assert listed == ["data/inner/a.jpg", "data/linked/b.jpg", "data/linked/deep/c.jpg"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Location(str(tmp_path / "a"))
    storage.write_bytes(place, b"old")

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StorageError, match="No space left"):
        storage.write_bytes(place, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_written_file_can_be_read_by_others(tmp_path: Path) -> None:
    storage.write_bytes(Location(str(tmp_path / "a")), b"x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) & 0o444 == 0o444


def test_more_objects_than_one_request_takes_are_deleted(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_DELETE_AT_ONCE", 3)
    place = Location(f"s3://{bucket}/many")
    for number in range(7):
        storage.write_bytes(place / str(number), b"x")
    storage.delete_folder(place)
    assert storage.is_empty(place)


@pytest.mark.parametrize("place", ["/nowhere/at/all", "s3://BUCKET/none"])
def test_reading_what_is_not_there_is_told_in_a_sentence(place: str, bucket: str) -> None:
    location = Location(place.replace("BUCKET", bucket))
    with pytest.raises(StorageError, match="does not exist"):
        storage.read_bytes(location)


def test_an_unknown_bucket_is_told_by_its_name(s3: str) -> None:
    with pytest.raises(StorageError, match="the bucket 'no-such-bucket-here' does not exist"):
        s3_module.check_bucket(Location("s3://no-such-bucket-here/a"))
    with pytest.raises(StorageError, match="bucket of s3://no-such-bucket-here/a does not exist"):
        list(storage.list_files(Location("s3://no-such-bucket-here/a")))


def test_missing_credentials_are_told_with_what_to_do(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    s3_module.s3_client.cache_clear()
    try:
        with pytest.raises(StorageError, match=r"no AWS credentials for s3://some-bucket.*AWS_PROFILE"):
            s3_module.check_bucket(Location("s3://some-bucket/a"))
    finally:
        s3_module.s3_client.cache_clear()
        boto3.setup_default_session()


def test_an_unknown_profile_is_a_matter_of_credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    s3_module.s3_client.cache_clear()
    try:
        with pytest.raises(StorageError, match=r"no AWS credentials.*nobody"):
            storage.read_bytes(Location("s3://some-bucket/a"))
    finally:
        s3_module.s3_client.cache_clear()
        boto3.DEFAULT_SESSION = None


@pytest.mark.parametrize(
    ("endpoint", "override"),
    [
        ("https://s3.amazonaws.com", None),
        ("https://s3.eu-west-1.amazonaws.com", None),
        ("https://s3.cn-north-1.amazonaws.com.cn", None),
        ("https://s3-fips.us-east-1.amazonaws.com", "s3-fips.us-east-1.amazonaws.com"),
        ("https://bucket.vpce-1a.s3.us-east-1.vpce.amazonaws.com", "bucket.vpce-1a.s3.us-east-1.vpce.amazonaws.com"),
        ("http://127.0.0.1:9000", "127.0.0.1:9000"),
    ],
)
def test_tables_go_to_the_endpoint_that_objects_go_to(endpoint: str, override: str | None) -> None:
    assert s3_module._endpoint_options(endpoint).get("endpoint_override") == override


@pytest.mark.parametrize("has_links", [True, False])
def test_of_several_that_create_a_file_one_does_and_it_is_seen_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr("os.link", refuse)
    place = Location(str(tmp_path / "folder/a.json"))
    assert storage.create_bytes(place, b"first")
    assert not storage.create_bytes(place, b"second")
    assert storage.read_bytes(place) == b"first"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a.json"]


def test_a_folder_that_cannot_be_written_is_told_when_a_file_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.link", fail)
    with pytest.raises(StorageError, match="No space left on device"):
        storage.create_bytes(Location(str(tmp_path / "a.json")), b"x")
    assert list(tmp_path.iterdir()) == []
