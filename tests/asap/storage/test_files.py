import copy
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.errors import StorageError
from asap.storage.files import (
    OutputStream,
    copy_file,
    create_bytes,
    delete_file,
    delete_folder,
    download_file,
    download_folder,
    exists,
    file_info,
    is_empty,
    list_files,
    list_folders,
    open_read,
    open_seekable,
    open_write,
    read_bytes,
    target_of_key,
    write_atomically,
    write_bytes,
)
from asap.storage.location import Location
from asap.storage.s3 import check_bucket, filesystem, s3_client
from tests.support.faulty_store import Fault, FaultyStore, Rule


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
    """An empty folder of either kind."""
    if request.param == "local":
        return Location(str(tmp_path / "folder"))
    return Location(f"s3://{request.getfixturevalue('bucket')}/folder")


def test_a_file_that_was_written_can_be_read_listed_and_deleted(folder: Location) -> None:
    assert is_empty(folder)
    write_bytes(folder / "b.txt", b"two")
    write_bytes(folder / "a/x.txt", b"one")
    with open_write(folder / "c.txt") as file:
        file.write(b"three")
    assert not is_empty(folder)
    assert exists(folder / "b.txt")
    assert not exists(folder / "a")
    assert read_bytes(folder / "c.txt") == b"three"
    assert {info.location.name: info.size for info in list_files(folder)} == {
        "x.txt": 3,
        "b.txt": 3,
        "c.txt": 5,
    }
    delete_file(folder / "b.txt")
    assert not exists(folder / "b.txt")
    delete_folder(folder)
    delete_folder(folder)
    assert is_empty(folder)


def test_a_copy_has_the_same_bytes_and_replaces_the_former_file(folder: Location) -> None:
    write_bytes(folder / "a/source", b"new")
    write_bytes(folder / "b/target", b"former")
    copy_file(folder / "a/source", folder / "b/target")
    copy_file(folder / "a/source", folder / "c/target")
    names = [info.location for info in list_files(folder)]
    assert names == [folder / "a/source", folder / "b/target", folder / "c/target"]
    assert {read_bytes(name) for name in names} == {b"new"}
    with pytest.raises(StorageError):
        copy_file(folder / "none", folder / "b/target")


def test_a_folder_is_downloaded_over_files_of_the_same_names(folder: Location, tmp_path: Path) -> None:
    write_bytes(folder / "a", b"new")
    write_bytes(folder / "b/c..", b"other")
    target = tmp_path / "target"
    write_bytes(Location(str(target / "a")), b"former")
    write_bytes(Location(str(target / "kept")), b"kept")
    assert download_folder(folder, target) == 2
    found = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert found == {"a": b"new", "b/c..": b"other", "kept": b"kept"}
    assert download_folder(folder / "none", target) == 0
    with pytest.raises(StorageError, match="none does not exist"):
        download_file(folder / "none", target / "none")


def test_a_whole_bucket_is_downloaded_like_a_folder(bucket: str, tmp_path: Path) -> None:
    write_bytes(Location(f"s3://{bucket}/a/b"), b"whole")
    assert download_folder(Location(f"s3://{bucket}"), tmp_path / "target") == 1
    assert (tmp_path / "target/a/b").read_bytes() == b"whole"


LEAVING = ["../x", "a/../../x", "a/..", "/x", "a//x", "./x", "a/\0", "", ".", ".."]


@pytest.mark.parametrize("name", LEAVING)
def test_a_name_that_is_no_path_below_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="its name is no path below one") as caught:
        target_of_key(tmp_path, Location("s3://news/models"), name)
    assert repr(f"s3://news/models/{name}") in str(caught.value)


@pytest.mark.parametrize("name", ["x", "a/x", "..x", "a../x", "...", ".hidden", "a\\..\\x", "a b"])
def test_a_name_below_a_folder_is_joined_to_it(name: str, tmp_path: Path) -> None:
    assert str(target_of_key(tmp_path, Location("s3://news"), name)) == f"{tmp_path}/{name}"


@pytest.mark.parametrize("name", ["../escaped", "z/../../escaped", "/escaped", "z//escaped", "z/\0"])
def test_one_key_that_leaves_the_folder_prevents_the_whole_download(name: str, bucket: str, tmp_path: Path) -> None:
    for key in ("!first", name):
        boto3.client("s3").put_object(Bucket=bucket, Key=f"models/{key}", Body=b"x")
    with pytest.raises(StorageError, match="its name is no path below one"):
        download_folder(Location(f"s3://{bucket}/models"), tmp_path / "outer" / "target")
    assert list(tmp_path.iterdir()) == []


def test_a_stamp_changes_with_the_file_and_only_s3_has_versions(folder: Location) -> None:
    write_bytes(folder / "a", b"one")
    before = file_info(folder / "a")
    write_bytes(folder / "a", b"two")
    after = file_info(folder / "a")
    assert before
    assert after
    assert before.stamp != after.stamp
    assert (after.version is not None) == folder.is_s3
    assert file_info(folder / "b") is None


def test_a_stream_decompresses_by_name(folder: Location) -> None:
    write_bytes(folder / "a.jsonl.gz", pa.compress(b"line\n" * 3, codec="gzip", asbytes=True))
    with open_read(folder / "a.jsonl.gz") as file:
        assert file.readline() == b"line\n"
        assert len(file.readlines()) == 2


def test_a_table_can_be_written_and_read_at_any_offset(folder: Location) -> None:
    system, path = filesystem(folder)
    system.create_dir(path, recursive=True)
    pq.write_table(pa.table({"a": [1, 2]}), f"{path}/t.parquet", filesystem=system)
    with open_seekable(folder / "t.parquet") as file:
        assert pq.read_table(file)["a"].to_pylist() == [1, 2]


def test_a_listing_keeps_names_with_a_common_prefix_together(folder: Location) -> None:
    for name in ("a.jpg", "a-b.jpg", "a.txt", "a/c.jpg", "b.txt"):
        write_bytes(folder / name, b"x")
    names = [info.location.uri.removeprefix(f"{folder.uri}/") for info in list_files(folder)]
    assert abs(names.index("a.jpg") - names.index("a.txt")) == 1
    assert sorted(names) == ["a-b.jpg", "a.jpg", "a.txt", "a/c.jpg", "b.txt"]


def test_folders_are_listed_without_what_is_below_them(folder: Location) -> None:
    assert list_folders(folder) == []
    for name in ("b/deep/1", "a/1", "file", "a/2", "ab/1"):
        write_bytes(folder / name, b"x")
    assert list_folders(folder) == [folder / "a", folder / "ab", folder / "b"]
    assert list_folders(folder / "b") == [folder / "b" / "deep"]


def test_links_to_folders_are_followed_and_each_folder_is_listed_once(tmp_path: Path) -> None:
    for name in ("data/inner/a.jpg", "beside/b.jpg", "beside/deep/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "data/linked").symlink_to(tmp_path / "beside")
    (tmp_path / "data/linked-again").symlink_to(tmp_path / "beside")
    (tmp_path / "data/a-link").symlink_to(tmp_path / "data/inner")
    (tmp_path / "data/inner/above").symlink_to(tmp_path)
    (tmp_path / "beside/deep/loop").symlink_to(tmp_path / "beside")
    listed = [info.location.uri.removeprefix(f"{tmp_path}/") for info in list_files(Location(str(tmp_path / "data")))]
    assert listed == ["data/inner/a.jpg", "data/linked/b.jpg", "data/linked/deep/c.jpg"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = Location(str(tmp_path / "a"))
    write_bytes(location, b"old")

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StorageError, match="No space left"):
        write_bytes(location, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_an_atomic_write_is_seen_when_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "folder/a.txt"
    with write_atomically(path) as draft:
        draft.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def _fail_within_write_atomically(path: Path) -> None:
    with write_atomically(path) as draft:
        draft.write_bytes(b"new")
        raise RuntimeError("stopped")


def _fail_within_open_write(path: Path) -> None:
    with open_write(Location(str(path))) as file:
        file.write(b"new")
        raise RuntimeError("stopped")


@pytest.mark.parametrize("fail", [_fail_within_write_atomically, _fail_within_open_write])
def test_an_error_in_the_block_leaves_the_former_file_and_no_other(
    tmp_path: Path, fail: Callable[[Path], None]
) -> None:
    (tmp_path / "a").write_bytes(b"former")
    with pytest.raises(RuntimeError, match="stopped"):
        fail(tmp_path / "a")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"former"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_of_a_written_file_follows_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    former = os.umask(umask)
    try:
        write_bytes(Location(str(tmp_path / "a")), b"x")
        create_bytes(Location(str(tmp_path / "b")), b"x")
        with open_write(Location(str(tmp_path / "c"))) as file:
            file.write(b"x")
    finally:
        os.umask(former)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}


def test_a_folder_with_more_objects_than_are_deleted_at_once_is_deleted(bucket: str) -> None:
    location = Location(f"s3://{bucket}/many")
    for number in range(70):
        write_bytes(location / str(number), b"x")
    delete_folder(location)
    assert is_empty(location)


@pytest.mark.parametrize("address", ["/nowhere/at/all", "s3://BUCKET/none"])
def test_reading_a_missing_file_raises_an_error_of_one_sentence(address: str, bucket: str) -> None:
    location = Location(address.replace("BUCKET", bucket))
    with pytest.raises(StorageError, match="does not exist"):
        read_bytes(location)


def test_an_unknown_bucket_is_named_in_the_error(s3: str) -> None:
    with pytest.raises(StorageError, match="the bucket 'no-such-bucket-here' does not exist"):
        check_bucket(Location("s3://no-such-bucket-here/a"))
    with pytest.raises(StorageError, match="bucket of s3://no-such-bucket-here/a does not exist"):
        list(list_files(Location("s3://no-such-bucket-here/a")))


def test_missing_credentials_raise_an_error_with_a_remedy(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    s3_client.cache_clear()
    try:
        with pytest.raises(StorageError, match=r"no AWS credentials for s3://some-bucket.*AWS_PROFILE"):
            check_bucket(Location("s3://some-bucket/a"))
    finally:
        s3_client.cache_clear()
        boto3.setup_default_session()


def test_an_unknown_profile_raises_the_error_of_missing_credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    s3_client.cache_clear()
    try:
        with pytest.raises(StorageError, match=r"no AWS credentials.*nobody"):
            read_bytes(Location("s3://some-bucket/a"))
    finally:
        s3_client.cache_clear()
        boto3.DEFAULT_SESSION = None


@pytest.mark.parametrize("has_links", [True, False])
def test_only_the_first_creation_of_a_file_writes_it_and_leaves_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr("os.link", refuse)
    location = Location(str(tmp_path / "folder/a.json"))
    assert create_bytes(location, b"first")
    assert not create_bytes(location, b"second")
    assert read_bytes(location) == b"first"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a.json"]


def test_creating_a_file_on_a_full_disk_raises_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.link", fail)
    with pytest.raises(StorageError, match="No space left on device"):
        create_bytes(Location(str(tmp_path / "a.json")), b"x")
    assert list(tmp_path.iterdir()) == []


def _break_first(times: int, fault: Fault) -> Rule:
    """Return a rule that breaks so many first GET requests of each object."""
    return lambda request: fault if request.method == "GET" and request.count <= times else None


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait little between tries."""
    monkeypatch.setattr("asap.storage.failures._FIRST_BACKOFF_S", 0.001)


def test_a_small_object_whose_body_breaks_off_is_read_again(faulty: FaultyStore, bucket: str, hasty: None) -> None:
    location = Location(f"s3://{bucket}/a.json")
    write_bytes(location, b"0123456789")
    faulty.rule = _break_first(3, Fault(keep=4))
    assert read_bytes(location) == b"0123456789"
    assert sum(request.method == "GET" for request in faulty.requests) == 4


def test_a_small_object_whose_connection_is_reset_is_read_again(faulty: FaultyStore, bucket: str) -> None:
    location = Location(f"s3://{bucket}/a.json")
    write_bytes(location, b"0123456789")
    faulty.rule = _break_first(1, Fault(reset=True))
    assert read_bytes(location) == b"0123456789"


def test_a_small_object_that_never_arrives_whole_is_an_error_that_may_pass(
    faulty: FaultyStore, bucket: str, hasty: None
) -> None:
    location = Location(f"s3://{bucket}/a.json")
    write_bytes(location, b"0123456789")
    faulty.rule = _break_first(99, Fault(keep=4))
    with pytest.raises(StorageError, match=r"a\.json cannot be used: .*(4 bytes read|Incomplete)") as caught:
        read_bytes(location)
    assert caught.value.retryable
    assert sum(request.method == "GET" for request in faulty.requests) == 6


@pytest.mark.parametrize("size", [10, 5_000_000])
@pytest.mark.parametrize("fault", [Fault(keep=5), Fault(reset=True), Fault(status=503, code="SlowDown")])
def test_streams_and_tables_survive_bodies_that_break_in_the_middle(
    faulty: FaultyStore, bucket: str, tmp_path: Path, fault: Fault, size: int
) -> None:
    folder = Location(f"s3://{bucket}/large")
    data = os.urandom(size)
    write_bytes(folder / "stream", data)
    system, path = filesystem(folder)
    pq.write_table(pa.table({"a": [data]}), f"{path}/table.parquet", filesystem=system)
    faulty.rule = lambda request: fault if request.method == "GET" and request.count % 3 == 1 else None
    with open_read(folder / "stream") as file:
        assert file.read() == data
    with open_seekable(folder / "table.parquet") as file:
        assert pq.read_table(file)["a"].to_pylist() == [data]
    download_file(folder / "stream", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_of_several_files_that_are_written_at_once_the_error_names_the_one_that_failed(tmp_path: Path) -> None:
    first, second = Location(str(tmp_path / "first")), Location(str(tmp_path / "second"))
    with (
        pytest.raises(StorageError, match=f"^{first} cannot be written: the disk is full.*Free space there"),
        Path("/dev/full").open("wb", buffering=0) as full,
        open_write(second),
    ):
        OutputStream(first, full).write(b"x")
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_was_sent_to_another_process_tries_as_often(faulty: FaultyStore, bucket: str) -> None:
    location = Location(f"s3://{bucket}/a")
    data = os.urandom(10_000)  # more than the response of an error, which must fit into the buffer of the read
    write_bytes(location, data)
    system, path = filesystem(location, attempts=5)
    sent = copy.copy(copy.copy(system))  # by the method that pickling uses
    faulty.rule = _break_first(4, Fault(status=500))  # pyarrow's own would try three times
    with sent.open_input_file(path) as file:
        assert file.read() == data
