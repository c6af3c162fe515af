import dataclasses
import os
import tempfile
from pathlib import Path

import boto3
import pytest
from ray.train import Checkpoint

from asap.errors import StorageError
from asap.storage.files import read_bytes, write_bytes
from asap.storage.location import Location
from asap.storage.s3 import filesystem, s3_client
from jobs.train.run_folder import folder as run_folder
from jobs.train.run_folder.folder import RunFolder, checkpoint_folder
from tests.support.faulty_store import Fault, FaultyStore
from tests.support.waiting import HANG_S


@pytest.fixture
def mirrored(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run at s3:// and this machine's copy of it."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    return RunFolder.open(f"s3://{bucket}/runs/one")


def keys(folder: RunFolder) -> list[str]:
    assert folder.remote is not None
    listed = boto3.client("s3").list_objects_v2(Bucket=folder.remote.bucket).get("Contents", [])
    return sorted(entry["Key"] for entry in listed)


def test_a_folder_on_a_disk_has_no_remote_location(tmp_path: Path) -> None:
    folder = RunFolder.open(str(tmp_path / "run"))
    assert (folder.path, folder.remote) == (tmp_path / "run", None)
    assert folder.ray_storage() == {"storage_path": str(tmp_path / "run")}
    folder.push("model")
    folder.pull("model")
    folder.refresh()
    assert not folder.path.exists()
    folder.check_writable()
    assert list(folder.path.iterdir()) == []
    assert folder.is_empty()


def test_what_is_pushed_is_pulled_on_another_machine(mirrored: RunFolder, tmp_path: Path) -> None:
    (mirrored.path / "tokenizer").mkdir(parents=True)
    (mirrored.path / "tokenizer" / "tokenizer.json").write_text("{}")
    mirrored.progress.write_text("a line\n")
    mirrored.push("tokenizer", "progress.jsonl", "start")

    assert keys(mirrored) == ["runs/one/progress.jsonl", "runs/one/tokenizer/tokenizer.json"]
    other = RunFolder(tmp_path / "elsewhere", mirrored.remote)
    other.pull("tokenizer", "progress.jsonl", "start")
    assert (other.tokenizer / "tokenizer.json").read_text() == "{}"
    assert other.progress.read_text() == "a line\n"
    assert not other.start.exists()


@pytest.mark.parametrize("key", ["start/../../../escaped", "start//absolute"])
def test_a_key_outside_the_copy_is_not_pulled(mirrored: RunFolder, bucket: str, tmp_path: Path, key: str) -> None:
    mirrored.path.mkdir(parents=True)
    for name in ("start/!first", key):
        boto3.client("s3").put_object(Bucket=bucket, Key=f"runs/one/{name}", Body=b"x")
    before = sorted(tmp_path.rglob("*"))
    for bring in (lambda: mirrored.pull("start"), mirrored.refresh):
        with pytest.raises(StorageError, match=f"its name is no path below one: 's3://.*/runs/one/{key}'"):
            bring()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_writes_nothing_outside_the_copy_that_ray_makes(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "outer" / "scratch"
    scratch.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    location = Location(f"s3://{bucket}/runs/one/checkpoint")
    write_bytes(location / "state.pt", b"state")
    system, path = filesystem(location)
    with checkpoint_folder(Checkpoint(path, system)) as folder:
        assert (folder / "state.pt").read_bytes() == b"state"
    # The client may resolve a key before its request. The store must have the object of that request too.
    for name in ("runs/one/checkpoint/../../escaped", "runs/escaped"):
        boto3.client("s3").put_object(Bucket=bucket, Key=name, Body=b"x")
    with (
        pytest.raises(StorageError, match="its name is no path below one"),
        checkpoint_folder(Checkpoint(path, system)),
    ):
        pytest.fail("the block was entered")
    assert [file.name for file in tmp_path.rglob("escaped")] == []
    (tmp_path / "local").mkdir()
    with checkpoint_folder(Checkpoint.from_directory(tmp_path / "local")) as folder:
        assert folder == tmp_path / "local"


def test_a_refreshed_copy_has_the_files_of_the_prefix_and_keeps_its_pictures(mirrored: RunFolder) -> None:
    for name in ("train.json", "pictures/some.npy", "tensorboard/old"):
        (mirrored.path / name).parent.mkdir(parents=True, exist_ok=True)
        (mirrored.path / name).write_text("of a run that was deleted")
    mirrored.refresh()
    left = [path.name for path in mirrored.path.rglob("*") if path.is_file()]
    assert left == ["some.npy"]


def test_a_model_is_complete_once_its_last_file_is_uploaded(mirrored: RunFolder) -> None:
    mirrored.model.mkdir(parents=True)
    for name in ("README.md", "model.safetensors", "config.json"):
        (mirrored.model / name).write_text(name)
    uploaded: list[str] = []
    real = run_folder._upload
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "_upload", lambda file, target: (uploaded.append(file.name), real(file, target))[1])
        assert not mirrored.has_model()
        mirrored.push("model", last="config.json")
    assert uploaded == ["README.md", "model.safetensors", "config.json"]
    assert mirrored.has_model()
    assert str(mirrored.finished_model) == f"{mirrored}/model"


def test_a_run_folder_that_cannot_be_written_is_named(s3: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"the bucket 'no-such-bucket' does not exist\. Check its name"):
        RunFolder.open("s3://no-such-bucket/run").check_writable()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=f"{tmp_path}/file/run cannot be written: "):
        RunFolder.open(str(tmp_path / "file" / "run")).check_writable()
    (tmp_path / "progress.jsonl").touch()
    with pytest.raises(StorageError, match=r"the bucket of s3://no-such-bucket/run/progress\.jsonl does not exist"):
        RunFolder(tmp_path, Location("s3://no-such-bucket/run")).push("progress.jsonl")


def test_the_probe_for_writing_leaves_no_file(mirrored: RunFolder) -> None:
    mirrored.check_writable()
    assert keys(mirrored) == []
    assert mirrored.is_empty()


def test_ray_writes_its_checkpoints_to_the_same_place(mirrored: RunFolder, bucket: str) -> None:
    storage = mirrored.ray_storage()
    assert storage["storage_path"] == f"{bucket}/runs/one"
    assert storage["storage_filesystem"].type_name == "py::s3"


def test_a_link_that_another_user_may_have_put_there_is_not_used_for_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"asap-runs-{os.getuid()}").symlink_to(tmp_path / "theirs")
    with pytest.raises(StorageError, match=r"is no folder\. Remove it, or set TMPDIR"):
        RunFolder.open("s3://bucket/run")


def test_an_upload_outlasts_a_store_that_is_away_for_a_while(
    faulty: FaultyStore, mirrored: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "s3_client", lambda: s3_client(attempts=1))
    monkeypatch.setattr("asap.storage.failures._FIRST_BACKOFF_S", 0.001)
    mirrored.path.mkdir(parents=True)
    mirrored.progress.write_text("a line\n")
    faulty.rule = lambda request: (
        Fault(status=503, code="SlowDown") if request.method == "PUT" and request.count < 6 else None
    )
    with pytest.raises(StorageError, match="SlowDown"):
        mirrored.push("progress.jsonl")
    dataclasses.replace(mirrored, outage_s=HANG_S).push("progress.jsonl")
    assert keys(mirrored) == ["runs/one/progress.jsonl"]
    assert sum(request.method == "PUT" for request in faulty.requests) == 6


def test_an_upload_that_is_denied_is_not_tried_again(faulty: FaultyStore, mirrored: RunFolder) -> None:
    mirrored.path.mkdir(parents=True)
    mirrored.progress.write_text("a line\n")
    faulty.rule = lambda request: Fault(status=403, code="AccessDenied")
    with pytest.raises(StorageError, match=r"access to s3://.*/progress\.jsonl was denied"):
        dataclasses.replace(mirrored, outage_s=HANG_S).push("progress.jsonl")
    assert len(faulty.requests) == 1


@pytest.mark.drill
def test_checkpoints_of_a_run_that_waits_for_stores_outlast_an_outage(faulty: FaultyStore, mirrored: RunFolder) -> None:
    storage = dataclasses.replace(mirrored, outage_s=120).ray_storage()
    faulty.rule = lambda request: Fault(status=500) if request.method != "GET" and request.count < 8 else None
    with storage["storage_filesystem"].open_output_stream(f"{storage['storage_path']}/state.pt") as stream:
        stream.write(b"state")
    assert mirrored.remote
    assert read_bytes(mirrored.remote / "state.pt") == b"state"
