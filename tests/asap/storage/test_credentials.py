"""Credentials that expire and are renewed while a process runs."""

import copy
import pickle
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from asap.errors import FetchFailed, StorageError
from asap.storage.credentials import reading_session
from asap.storage.fetch import FetchSettings, fetch
from asap.storage.files import open_write, read_bytes, write_bytes
from asap.storage.location import Location
from asap.storage.s3 import filesystem, s3_client
from tests.support.faulty_store import Fault, FaultyStore, Request, Rule
from tests.support.waiting import HANG_S

SETTINGS = FetchSettings(attempts=2, connect_timeout_s=HANG_S, read_timeout_s=HANG_S)


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the process read its keys from a file, which is returned. The file has the key `first`."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    path = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    _renew(path, "first")
    return path


def _renew(path: Path, key: str) -> None:
    draft = path.with_suffix(".new")
    draft.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")
    draft.replace(path)


def _only(key: str) -> Rule:
    """Return a rule that takes requests with one key only."""

    def rule(request: Request) -> Fault | None:
        return None if request.access_key == key else Fault(status=400, code="ExpiredToken")

    return rule


@pytest.fixture
def store(keys: Path, faulty: FaultyStore) -> FaultyStore:
    """A store that takes the keys of the file."""
    return faulty


def test_renewed_keys_of_a_file_are_used_by_clients_and_streams_that_exist(
    store: FaultyStore, keys: Path, bucket: str
) -> None:
    folder = Location(f"s3://{bucket}")
    store.rule = _only("first")
    write_bytes(folder / "a", b"one")
    with open_write(folder / "b") as stream:
        stream.write(b"two")
    store.rule = _only("second")
    with pytest.raises(StorageError):
        read_bytes(folder / "a")
    _renew(keys, "second")
    assert read_bytes(folder / "a") == b"one"
    assert fetch(f"{folder}/b", 10, SETTINGS).data == b"two"
    with open_write(folder / "c") as stream:
        stream.write(b"three")
    assert read_bytes(folder / "c") == b"three"


def test_a_fetch_waits_for_keys_that_are_renewed_late(store: FaultyStore, keys: Path, bucket: str) -> None:
    location = Location(f"s3://{bucket}/a")
    write_bytes(location, b"one")
    store.rule = _only("second")
    with pytest.raises(FetchFailed) as caught:
        fetch(location.uri, 10, SETTINGS)
    assert (caught.value.code, caught.value.retryable) == ("access_denied", True)
    threading.Timer(0.2, _renew, (keys, "second")).start()
    patient = SETTINGS.model_copy(update={"attempts": 100})
    assert fetch(location.uri, 10, patient).data == b"one"


def test_a_file_that_is_half_written_does_not_replace_the_keys(keys: Path) -> None:
    credentials = reading_session().get_credentials()
    keys.write_text("[default\naws_acc")
    assert credentials.get_frozen_credentials().access_key == "first"
    keys.write_text("")
    assert credentials.get_frozen_credentials().access_key == "first"
    _renew(keys, "second")
    assert credentials.get_frozen_credentials().access_key == "second"


def test_keys_of_the_environment_are_read_again(monkeypatch: pytest.MonkeyPatch, keys: Path) -> None:
    credentials = reading_session().get_credentials()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "third")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert credentials.get_frozen_credentials().access_key == "third"


def _profile(keys: Path, *lines: str) -> None:
    """Write the config file of AWS tools, with a profile of these lines."""
    keys.with_name("config").write_text("\n".join(["[profile worker]", *lines, ""]))


def test_keys_of_a_process_are_used_by_clients_and_tables_and_renewed(
    store: FaultyStore, keys: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keys.with_name("key")
    key.write_text("first")
    script = keys.with_name("script")
    expiry = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()  # so near that they are renewed for each request
    script.write_text(
        "#!/bin/sh\n"
        f'echo "{{\\"Version\\": 1, \\"AccessKeyId\\": \\"$(cat {key})\\", \\"SecretAccessKey\\": \\"s\\", '
        f'\\"SessionToken\\": \\"t\\", \\"Expiration\\": \\"{expiry}\\"}}"\n'
    )
    script.chmod(0o700)
    _profile(keys, f"credential_process = {script}")
    monkeypatch.setenv("AWS_PROFILE", "worker")
    s3_client.cache_clear()
    store.rule = _only("first")
    location = Location(f"s3://{bucket}/a")
    write_bytes(location, b"one")
    system, path = filesystem(location)
    assert system.open_input_file(path).read() == b"one"
    key.write_text("second")
    store.rule = _only("second")
    assert read_bytes(location) == b"one"
    assert copy.copy(system).open_input_file(path).read() == b"one"


def test_an_assumed_role_is_one_identity_for_clients_and_tables(
    store: FaultyStore, keys: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _profile(keys, "role_arn = arn:aws:iam::123456789012:role/scanner", "source_profile = default")
    monkeypatch.setenv("AWS_PROFILE", "worker")
    s3_client.cache_clear()
    location = Location(f"s3://{bucket}/a")
    write_bytes(location, b"one")
    system, path = filesystem(location)
    assert system.open_input_file(path).read() == b"one"
    assert fetch(location.uri, 10, SETTINGS).data == b"one"
    identities = {request.access_key for request in store.requests if request.path.startswith(f"/{bucket}")}
    assert len(identities) == 1
    assert identities.pop().startswith("ASIA")


def test_no_secret_travels_with_a_file_system(
    store: FaultyStore, keys: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _renew(keys, "travelling-key")
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    location = Location(f"s3://{bucket}/a")
    write_bytes(location, b"one")
    system, path = filesystem(location)
    sent = pickle.dumps(system)
    assert b"travelling-key" not in sent
    assert b"secret" not in sent
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_REQUEST_PAYER")
    s3_client.cache_clear()
    received = copy.copy(system)  # by the method that pickling uses
    assert received.open_input_file(path).read() == b"one"  # from the store that the first process used
    assert received.handler.settings.payer == "requester"


def test_without_keys_a_client_says_so(keys: Path, s3: str) -> None:
    keys.unlink()
    s3_client.cache_clear()
    try:
        with pytest.raises(StorageError, match="no AWS credentials for s3://some-bucket/a"):
            read_bytes(Location("s3://some-bucket/a"))
    finally:
        s3_client.cache_clear()
