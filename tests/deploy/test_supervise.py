"""The supervisor of Ray in the container, with a `ray` that records how it was called."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import HANG_S, wait_until

SUPERVISE = Path(__file__).parents[2] / "deploy/supervise"
FAKE_RAY = """#!/bin/bash
echo "$*|${RAY_OVERRIDE_RESOURCES:-}|$$" >> "$CALLS"
[ "$1" = stop ] && exit
[ "$1" = start ] && exec sleep infinity
"""


class Container:
    """A folder that stands for the container's file system, and the processes in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.calls.touch()
        (folder / "bin").mkdir()
        ray = folder / "bin/ray"
        ray.write_text(FAKE_RAY)
        ray.chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "SUPERVISE_FOLDER": str(folder / "supervised"),
            "SUPERVISE_PAUSE_S": "0.1",
            "CALLS": str(self.calls),
        }
        self.entry_points: list[subprocess.Popen[bytes]] = []

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """Run the entry point, as Docker does, with the command that Ray's launcher appends."""
        process = subprocess.Popen([SUPERVISE, "bash"], env=self.environment | environment)
        self.entry_points.append(process)
        return process

    def record(self, *command: str, **environment: str) -> None:
        subprocess.run([SUPERVISE, *command], env=self.environment | environment, check=True, timeout=HANG_S)

    def starts(self) -> list[tuple[str, str, int]]:
        """Return the arguments, the resources and the process of each `ray start` so far."""
        calls = [line.split("|") for line in self.calls.read_text().splitlines()]
        return [(arguments, given, int(pid)) for arguments, given, pid in calls if arguments.startswith("start")]


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    container = Container(tmp_path)
    yield container
    for process in container.entry_points:
        process.terminate()
        process.wait(HANG_S)


def test_a_recorded_command_is_run_with_the_variables_that_rays_launcher_has_set(container: Container) -> None:
    container.start()
    container.record("ray", "start", "--address=10.0.0.1:6379", RAY_OVERRIDE_RESOURCES='{"CPU": 16, "a b": 1}')
    wait_until(lambda: len(container.starts()) == 1)
    arguments, resources, _ = container.starts()[0]
    assert arguments == "start --address=10.0.0.1:6379"
    assert resources == '{"CPU": 16, "a b": 1}'


def test_ray_is_started_again_whenever_it_ends(container: Container) -> None:
    container.start()
    container.record("ray", "start", "--head")
    for count in (1, 2, 3):
        wait_until(lambda count=count: len(container.starts()) == count)
        os.kill(container.starts()[-1][2], signal.SIGKILL)
    wait_until(lambda: len(container.starts()) == 4)
    assert container.calls.read_text().count("stop --force") == 3  # before each new start


def test_another_command_takes_the_place_of_the_one_that_runs(container: Container) -> None:
    container.start()
    container.record("ray", "start", "--address=10.0.0.1:6379")
    wait_until(lambda: len(container.starts()) == 1)
    container.record("ray", "start", "--address=10.0.0.2:6379")
    wait_until(lambda: len(container.starts()) == 2)
    assert container.starts()[1][0] == "start --address=10.0.0.2:6379"


def test_a_container_that_starts_again_starts_ray_without_the_launcher(container: Container) -> None:
    first = container.start()
    container.record("ray", "start", "--head")
    wait_until(lambda: len(container.starts()) == 1)
    first.kill()
    os.kill(container.starts()[0][2], signal.SIGKILL)
    first.wait(HANG_S)
    container.start()
    wait_until(lambda: len(container.starts()) == 2)


def test_a_container_that_is_stopped_ends_ray(container: Container) -> None:
    process = container.start()
    container.record("ray", "start", "--head")
    wait_until(lambda: len(container.starts()) == 1)
    process.terminate()
    assert process.wait(HANG_S) == 0
    wait_until(lambda: not Path(f"/proc/{container.starts()[0][2]}").exists())


def test_nobody_else_reads_the_record_which_may_hold_secrets(container: Container) -> None:
    container.record("ray", "start", "--head", RAY_REDIS_ADDRESS="redis:6379")
    record = container.folder / "supervised/command"
    assert "redis:6379" in record.read_text()
    assert stat.S_IMODE(record.stat().st_mode) == 0o600


def test_logs_are_shipped_where_the_container_is_told_a_folder(container: Container) -> None:
    shipped = container.folder / "bin/ship-logs"
    shipped.write_text(f'#!/bin/bash\necho "$1" > {container.folder / "shipped"}\n')
    shipped.chmod(0o755)
    container.start(ASAP_LOGS="s3://bucket/logs")
    wait_until((container.folder / "shipped").exists)
    wait_until(lambda: (container.folder / "shipped").read_text() == "s3://bucket/logs\n")


def test_a_container_that_is_stopped_ships_the_last_logs_once_ray_has_ended(container: Container) -> None:
    (container.folder / "bin/ray").write_text(
        '#!/bin/bash\ntrap \'echo "Ray ends" >> "$CALLS"; exit\' TERM\necho "start||$$" >> "$CALLS"\n'
        "sleep infinity & wait\n"
    )
    shipped = container.folder / "bin/ship-logs"
    last = container.folder / "last"
    shipped.write_text(
        f"#!/bin/bash\ntrap 'cp \"$CALLS\" {last}; exit' TERM\ntouch {container.folder}/ships\nsleep infinity & wait\n"
    )
    shipped.chmod(0o755)
    process = container.start(ASAP_LOGS="s3://bucket/logs")
    container.record("ray", "start", "--head")
    wait_until(lambda: bool(container.calls.read_text()) and (container.folder / "ships").exists())
    process.terminate()
    assert process.wait(HANG_S) == 0
    assert last.read_text().endswith("Ray ends\n")


def test_the_shipping_of_logs_is_started_again_whenever_it_ends(container: Container) -> None:
    shipped = container.folder / "bin/ship-logs"
    shipped.write_text(f'#!/bin/bash\necho "$1" >> {container.folder / "shipped"}\nexit 1\n')
    shipped.chmod(0o755)
    container.start(ASAP_LOGS="s3://bucket/logs")
    wait_until((container.folder / "shipped").exists)
    wait_until(lambda: len((container.folder / "shipped").read_text().splitlines()) >= 3)
