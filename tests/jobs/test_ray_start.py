"""The start of Ray: its folder, its address, a raylet that dies, and what a failed start leaves behind."""

import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray.exceptions

from jobs import ray_start
from jobs.errors import JobError

RAYLETS_DIE = """
import os, signal, sys, threading, time
from jobs.errors import JobError
from jobs import ray_start
from jobs.ray_start import session_processes, start_ray

deaths, killed = int(sys.argv[1]), set()
ray_start._TRIES, ray_start._RETRY_WITHIN_S = 2, 600.0

def kill_raylets():
    while len(killed) < deaths:
        for process, command in session_processes().items():
            if "/raylet/raylet " in command and process not in killed:
                killed.add(process)
                os.kill(process, signal.SIGKILL)
        time.sleep(0.005)

threading.Thread(target=kill_raylets, daemon=True).start()
try:
    start_ray(None, {"num_cpus": 1, "object_store_memory": 100 * 2**20})
except JobError as error:
    print("error", error)
    print("left", len(session_processes()))
else:
    import ray
    print("servers", sum("/gcs_server " in command for command in session_processes().values()))
    print("folder", ray._private.worker._global_node.temp_dir)
    ray.shutdown()
print("deaths", len(killed))
"""


def in_a_process(script: str, *arguments: object, **environment: str) -> dict[str, str]:
    """Run a script in a process of its own, and return its lines by their first word."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    ended = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return dict(line.split(" ", 1) for line in ended.stdout.splitlines())


@pytest.fixture
def long_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / ("long" * 20)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    return folder


@pytest.mark.drill
def test_a_start_is_tried_again_in_a_short_folder_and_nothing_of_the_first_try_is_left(long_folder: Path) -> None:
    said = in_a_process(RAYLETS_DIE, 1)
    assert "error" not in said, said
    assert said.pop("folder").endswith(f"/ray-{os.getuid()}")
    assert said == {"servers": "1", "deaths": "1"}


@pytest.mark.slow
def test_raylets_that_die_end_the_start_at_once_with_the_logs_and_without_processes() -> None:
    with tempfile.TemporaryDirectory(prefix="r") as folder:
        said = in_a_process(RAYLETS_DIE, 1000, RAY_TMPDIR=folder)
        assert (said["left"], said["deaths"]) == ("0", "2")
        found = re.fullmatch(r"Ray did not start: its raylet ended.* Ray's logs are in (\S+)\.", said["error"])
        assert found
        assert Path(found[1]).is_dir()


def test_a_folder_that_ray_cannot_use_is_named_with_its_problem(
    long_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: "x" * 60)  # the short folder is too long as well
    with pytest.raises(JobError, match=r"its path has \d+ bytes, and Ray's sockets need .* Set RAY_TMPDIR to a folder"):
        ray_start._usable_folder()


def test_a_folder_that_cannot_be_made_has_the_systems_reason() -> None:
    assert ray_start._folder_problem(Path("/proc/none")) == "it cannot be written to (No such file or directory)"


def test_the_longest_folder_holds_rays_longest_socket(tmp_path: Path) -> None:
    session = f"session_2026-01-01_00-00-00_000000_{os.getpid()}"
    longest = "x" * ray_start._most_folder_bytes()
    assert len(f"{longest}/{session}/sockets/plasma_store") == 107


def test_an_address_where_nobody_listens_is_refused_within_seconds() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(JobError, match=rf"no Ray cluster answers at {address}: .*refused.* correct --address"):
            ray_start.start_ray(address, {})


def test_a_cluster_that_this_machine_is_no_part_of_is_refused_with_the_way_to_submit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    with socket.socket() as cluster:
        cluster.bind(("127.0.0.1", 0))
        cluster.listen()
        address = f"127.0.0.1:{cluster.getsockname()[1]}"
        outside = r"this machine is not one of its cluster, .* asap submit --address http://127\.0\.0\.1:8265\."
        with pytest.raises(JobError, match=outside):
            ray_start.start_ray(address, {})


def test_a_token_that_the_cluster_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        # As Ray does; tests/end_to_end/test_submit.py has a cluster that asks for a token.
        raise ConnectionError("Failed to connect to Ray cluster") from ray.exceptions.AuthenticationError("InvalidAuth")

    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: {"127.0.0.1:1"})
    monkeypatch.setattr("ray.init", refuse)
    with socket.socket() as cluster:
        cluster.bind(("127.0.0.1", 0))
        cluster.listen()
        with pytest.raises(JobError, match=r"its token is missing or is not the cluster's\. Set RAY_AUTH_MODE=token"):
            ray_start.start_ray(f"127.0.0.1:{cluster.getsockname()[1]}", {})


def test_an_address_that_is_none_is_refused() -> None:
    said = in_a_process(
        "from jobs.errors import JobError\nfrom jobs.ray_start import start_ray\n"
        "try:\n    start_ray('nonsense', {})\nexcept JobError as error:\n    print('error', error)"
    )
    assert said["error"].startswith("no Ray cluster answers at nonsense: Invalid address format")


def test_the_last_words_of_a_raylet_are_its_last_error(tmp_path: Path) -> None:
    lines = [
        "[2026-11-29 14:00:00,000 C 7 7] (raylet) main.cc:12: first error",
        "[2026-11-29 14:00:00,000 E 7 7] (raylet) main.cc:12: The port file did not come.",
        "[2026-11-29 14:00:00,000 I 7 7] (raylet) main.cc:13: bye",
    ]
    (tmp_path / "raylet.out").write_text("\n".join(lines))
    assert ray_start._last_words(tmp_path) == "The port file did not come"
    assert ray_start._last_words(tmp_path / "none") == ""
