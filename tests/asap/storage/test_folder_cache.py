"""Copies of folders of a bucket: one download for each version, whole or not at all, within bounds."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from asap.errors import StorageError
from asap.storage import folder_cache
from asap.storage.folder_cache import cached_folder, private_folder, wanted_files
from asap.storage.location import Location
from tests.support.uploads import upload_folder
from tests.support.waiting import HANG_S


@pytest.fixture(autouse=True)
def cache(scratch: Path) -> Path:
    """Use a cache of this test, and return its folder."""
    return scratch / f"asap-models-{os.getuid()}"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "weights.bin").write_bytes(b"pickled")
    (folder / "tokenizer" / "words.json").write_bytes(b"x" * 3_000_000)
    return folder


def is_json(name: str) -> bool:
    return name.endswith(".json")


def copy_of(address: str, is_wanted: Callable[[str], bool] = is_json) -> Path:
    source = Location(address)
    return cached_folder(source, wanted_files(source, is_wanted))


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def release(copy: Path) -> None:
    """Release a copy as the end of this process would."""
    folder_cache._HELD.pop(copy).close()


def test_a_folder_is_downloaded_once_and_without_the_files_that_are_not_wanted(
    model: Path, bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = upload_folder(model, bucket, "models/a")
    copy = copy_of(address)
    assert names(copy) == {"config.json", "tokenizer/words.json"}
    assert (copy / "tokenizer/words.json").read_bytes() == (model / "tokenizer/words.json").read_bytes()
    assert copy.parent == cache
    assert cache.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(folder_cache, "_download", lambda *_: pytest.fail("it was downloaded again"))
    assert copy_of(address) == copy


def test_another_version_is_another_copy(model: Path, bucket: str) -> None:
    address = upload_folder(model, bucket, "models/a")
    former = copy_of(address)
    (model / "config.json").write_text('{"name": "b"}')
    upload_folder(model, bucket, "models/a")
    now = copy_of(address)
    assert now != former
    assert [(copy / "config.json").read_text() for copy in (former, now)] == ["{}", '{"name": "b"}']


def test_processes_that_need_the_same_folder_share_one_download(model: Path, bucket: str, tmp_path: Path) -> None:
    address = upload_folder(model, bucket, "models/a")
    code = (
        "import os, sys; from asap.storage import folder_cache as cache; from asap.storage.location import Location\n"
        "download, source = cache._download, Location(sys.argv[1])\n"
        "def counted(*arguments):\n"
        "    open(sys.argv[2], 'a').write('once\\n'); download(*arguments)\n"
        "cache._download = counted\n"
        "files = cache.wanted_files(source, lambda name: name.endswith('.json'))\n"
        "print(cache.cached_folder(source, files))\n"
    )
    log = tmp_path / "downloads"
    command = [sys.executable, "-c", code, address, str(log)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    copies = {process.communicate(timeout=HANG_S)[0].strip() for process in processes}
    assert copies == {str(copy_of(address))}
    assert log.read_text() == "once\n"


def test_a_copy_that_was_cut_is_made_anew_and_what_a_killed_process_left_is_deleted(
    model: Path, bucket: str, cache: Path
) -> None:
    address = upload_folder(model, bucket, "models/a")
    copy = copy_of(address)
    (copy / "tokenizer/words.json").write_bytes(b"x")
    (cache / f"{copy.name}.draft" / "tokenizer").mkdir(parents=True)
    assert copy_of(address) == copy
    assert (copy / "tokenizer/words.json").stat().st_size == 3_000_000
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [copy.name]


def test_a_file_that_was_replaced_since_the_listing_is_refused_and_nothing_is_left(
    model: Path, bucket: str, cache: Path
) -> None:
    source = Location(upload_folder(model, bucket, "models/a"))
    files = wanted_files(source, is_json)
    boto3.client("s3").put_object(Bucket=bucket, Key="models/a/tokenizer/words.json", Body=b"others")
    with pytest.raises(StorageError, match=r"words\.json was replaced while it was read"):
        cached_folder(source, files)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_copies_that_no_process_uses_go_when_there_are_many_and_the_others_stay(model: Path, bucket: str) -> None:
    copies = [copy_of(upload_folder(model, bucket, f"models/{number}")) for number in range(5)]
    for number, copy in enumerate(copies):
        os.utime(copy, (number, number))
    for copy in copies[1:]:
        release(copy)
    copy_of(upload_folder(model, bucket, "models/last"))
    assert [copy.exists() for copy in copies] == [True, False, True, True, True]


def test_a_full_disk_is_refused_with_a_way_out_after_unused_copies_have_gone(
    model: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = copy_of(upload_folder(model, bucket, "models/former"))
    release(former)
    usage = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"has 0\.003 GB, and the disk of .* has 0\.001 GB left\. Set TMPDIR to"):
        copy_of(upload_folder(model, bucket, "models/a"))
    assert not former.exists()


def test_copies_that_others_delete_or_rename_meanwhile_are_passed_over(
    model: Path, bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir(mode=0o700)
    monkeypatch.setattr(Path, "iterdir", lambda _: iter([cache / "gone"]))
    monkeypatch.setattr(Path, "is_dir", lambda _: True)
    folder_cache._make_room(cache, Location(f"s3://{bucket}/models/a"), 1)


def test_a_disk_without_locks_is_an_error_of_storage(model: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match=r"asap-models-\d+/\w+ cannot be used: .*No locks available"):
        copy_of(upload_folder(model, bucket, "models/a"))


def test_a_copy_that_cannot_be_made_is_an_error_of_storage(
    model: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    address = upload_folder(model, bucket, "models/a")
    for module, name in ((folder_cache.tempfile, "mkdtemp"), (Path, "rename")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, refuse)
            with pytest.raises(StorageError, match="the disk is full"):
                copy_of(address)


class TestPrivateFolder:
    """Whoever comes first may put something else in the place of the folder."""

    def test_a_link_is_refused_also_one_to_a_folder_of_ones_own(self, cache: Path, tmp_path: Path) -> None:
        cache.symlink_to(tmp_path)
        with pytest.raises(StorageError, match=rf"^{cache} is no folder\. Remove it, or set TMPDIR"):
            private_folder("asap-models")

    def test_a_file_is_refused(self, cache: Path) -> None:
        cache.touch()
        with pytest.raises(StorageError, match=rf"^{cache} is no folder\."):
            private_folder("asap-models")

    def test_a_folder_of_another_user_is_refused(self, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        others = os.getuid() + 1
        (scratch / f"asap-models-{others}").mkdir(mode=0o700)
        monkeypatch.setattr(os, "getuid", lambda: others)
        with pytest.raises(StorageError, match=r"asap-models-\d+ belongs to another user\."):
            private_folder("asap-models")

    @pytest.mark.parametrize("mode", [0o770, 0o701, 0o720])
    def test_a_folder_that_others_can_enter_is_refused(self, mode: int, cache: Path) -> None:
        cache.mkdir()
        cache.chmod(mode)
        with pytest.raises(StorageError, match=rf"^{cache} is open to other users \(mode {mode:o}\)\."):
            private_folder("asap-models")

    def test_a_missing_folder_for_temporary_files_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folder_cache.tempfile, "tempdir", "/none/there")
        with pytest.raises(StorageError, match=r"^/none/there/asap-models-\d+ does not exist"):
            private_folder("asap-models")

        def refuse() -> str:
            raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

        monkeypatch.setattr(folder_cache.tempfile, "gettempdir", refuse)
        with pytest.raises(StorageError, match=r"^the folder for temporary files does not exist"):
            private_folder("asap-models")


def test_a_folder_of_many_models_is_refused(model: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_cache, "_MOST_FILES", 2)
    with pytest.raises(StorageError, match=r"holds more than 2 files, so it is no folder of one model\. Name"):
        copy_of(upload_folder(model, bucket, "models/a"))


@pytest.mark.parametrize("key", ["../../escaped.json", "a/../../../escaped.json", "/absolute.json", "a//b.json"])
def test_a_folder_with_a_key_that_leaves_it_is_not_copied_at_all(key: str, bucket: str, tmp_path: Path) -> None:
    client = boto3.client("s3")
    for name in ("config.json", key):
        client.put_object(Bucket=bucket, Key=f"models/a/{name}", Body=b"{}")
    with pytest.raises(StorageError, match="is no path below one"):
        copy_of(f"s3://{bucket}/models/a")
    assert not names(tmp_path)
