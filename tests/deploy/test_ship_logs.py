"""The logs of a machine's Ray, copied to S3."""

from __future__ import annotations

import importlib.util
import signal
import socket
from pathlib import Path
from types import ModuleType

import pytest

from asap.storage.files import list_files, read_bytes
from asap.storage.location import Location

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ship_logs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ship_logs", ROOT / "deploy/ship_logs.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ray(tmp_path: Path) -> Path:
    """Write the folder of a Ray with one session, as Ray lays it out, and return it."""
    logs = tmp_path / "ray/session_2026/logs"
    (logs / "events").mkdir(parents=True)
    (logs / "raylet.out").write_text("a raylet\n")
    (logs / "events/event.log").write_text("an event\n")
    (tmp_path / "ray/session_2026/sockets").mkdir()
    (tmp_path / "ray/session_2026/sockets/not-a-log").write_text("no log")
    (tmp_path / "ray/session_latest").symlink_to("session_2026")
    return tmp_path / "ray"


def test_logs_are_copied_once_under_the_name_of_their_session(ship_logs: ModuleType, ray: Path, bucket: str) -> None:
    target = Location.parse(f"s3://{bucket}/logs/ip-10-0-0-1")
    assert ship_logs.ship(ray, target, {}) == (2, [])
    names = sorted(str(info.location) for info in list_files(target))
    assert names == [f"{target}/session_2026/events/event.log", f"{target}/session_2026/raylet.out"]
    assert read_bytes(target / "session_2026/raylet.out") == b"a raylet\n"


def test_only_what_has_changed_is_copied_again(ship_logs: ModuleType, ray: Path, bucket: str) -> None:
    target = Location.parse(f"s3://{bucket}/logs")
    shipped: dict[Path, tuple[int, int]] = {}
    ship_logs.ship(ray, target, shipped)
    assert ship_logs.ship(ray, target, shipped) == (0, [])
    with (ray / "session_2026/logs/raylet.out").open("a") as file:
        file.write("its end\n")
    assert ship_logs.ship(ray, target, shipped) == (1, [])
    assert read_bytes(target / "session_2026/raylet.out") == b"a raylet\nits end\n"


def test_links_are_not_followed(ship_logs: ModuleType, ray: Path, bucket: str) -> None:
    (ray / "secret").write_text("a token")
    (ray / "session_2026/logs/link.log").symlink_to(ray / "secret")
    target = Location.parse(f"s3://{bucket}/logs")
    ship_logs.ship(ray, target, {})
    assert not [info for info in list_files(target) if "link" in str(info.location)]


def test_a_bucket_that_is_missing_is_named_and_nothing_counts_as_copied(
    ship_logs: ModuleType, ray: Path, s3: str
) -> None:
    shipped: dict[Path, tuple[int, int]] = {}
    copied, failures = ship_logs.ship(ray, Location.parse("s3://nobodys-bucket/logs"), shipped)
    assert copied == 0
    assert all("nobodys-bucket" in failure for failure in failures)
    assert len(failures) == 2
    assert shipped == {}


def test_a_file_that_always_fails_does_not_keep_the_others_from_being_copied(
    ship_logs: ModuleType, ray: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ray / "session_2026/logs/a.log"
    first.write_text("x")
    target = Location.parse(f"s3://{bucket}/logs")
    client = ship_logs.s3_client()

    class Refusing:
        def upload_file(self, path: str, *where: str) -> None:
            if path == str(first):
                raise PermissionError("not this one")
            client.upload_file(path, *where)

    monkeypatch.setattr(ship_logs, "s3_client", Refusing)
    copied, failures = ship_logs.ship(ray, target, {})
    assert copied == 2
    assert [failure.partition(" was not copied: ")[0] for failure in failures] == [str(first)]


def test_a_signal_makes_a_last_copy(
    ship_logs: ModuleType, ray: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boot_id").write_text("boot")
    monkeypatch.setattr(ship_logs, "BOOT", tmp_path / "boot_id")
    monkeypatch.setattr(ship_logs, "RAY", ray)
    monkeypatch.setattr("sys.argv", ["ship-logs", f"s3://{bucket}/logs"])
    log, ship, rounds = ray / "session_2026/logs/raylet.out", ship_logs.ship, []

    def ship_and_stop(*arguments: object) -> object:
        done = ship(*arguments)
        rounds.append(done)
        if len(rounds) == 1:
            log.write_text("a raylet\nits last words\n")
            signal.raise_signal(signal.SIGTERM)
        return done

    monkeypatch.setattr(ship_logs, "ship", ship_and_stop)
    former = signal.getsignal(signal.SIGTERM)
    try:
        ship_logs.main()
    finally:
        signal.signal(signal.SIGTERM, former)
    assert rounds == [(2, []), (1, [])]
    folder = ship_logs.folder_of_machine(Location.parse(f"s3://{bucket}/logs"))
    assert read_bytes(folder / "session_2026/raylet.out") == b"a raylet\nits last words\n"


def test_a_later_machine_of_the_same_name_has_another_folder(
    ship_logs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs, folders = Location.parse("s3://bucket/logs"), []
    for boot in ("first", "second"):
        (tmp_path / "boot_id").write_text(f"{boot}\n")
        monkeypatch.setattr(ship_logs, "BOOT", tmp_path / "boot_id")
        folders.append(ship_logs.folder_of_machine(logs).uri)
    assert folders == [f"s3://bucket/logs/{socket.gethostname()}-{boot}" for boot in ("first", "second")]
