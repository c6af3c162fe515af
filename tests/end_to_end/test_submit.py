"""Commands that are submitted to a cluster: logs, exit codes, stops, resumed jobs, and other tokens."""

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.job_cluster import TOKEN, JobCluster, job_cluster
from tests.support.waiting import HANG_S, wait_until

pytestmark = pytest.mark.slow
ROWS = 1200
TEXT = "Angry workers leave the factory"


@pytest.fixture(scope="module")
def cluster() -> Iterator[JobCluster]:
    with job_cluster() as running:
        yield running


def record_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "job.json").read_text()))


def scan_of(folder: Path, model: Path, jpeg: Callable[..., bytes], rows: int, *more: str) -> list[object]:
    """Write an input, and return the command that scans it into the folder `out`."""
    folder.mkdir(exist_ok=True)
    for number in range(20):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    lines = [json.dumps({"id": str(row), "image": f"{row % 20}.jpg", "text": TEXT}) for row in range(rows)]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return ["submit", "scan", folder / "pairs.jsonl", "--out", folder / "out", "--model", model, "--device", "cpu",
            *more]  # fmt: skip


def test_a_submitted_scan_shows_its_log_and_passes_its_exit_code_on(
    cluster: JobCluster, tmp_path: Path, jpeg: Callable[..., bytes], model_folder: Path
) -> None:
    scan = scan_of(tmp_path, model_folder, jpeg, 20, "--max-error-rate", "0")
    done = cluster.asap(*scan)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "submitted asap-scan-" in done.stderr
    assert "20 pairs" in done.stdout
    record = record_of(tmp_path / "out/pairs")
    assert (record["state"], record["settings"]["address"]) == ("completed", "auto")
    assert "completed" in cluster.asap("status", tmp_path / "out/pairs").stdout

    (tmp_path / "3.jpg").write_bytes(b"no picture")
    done = cluster.asap(*scan, "--job", "again")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "more than --max-error-rate allows" in done.stdout
    assert done.stderr.rstrip().endswith("ended with exit code 3")
    done = cluster.asap("submit", "scan", tmp_path / "none.jsonl", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert f"{tmp_path}/none.jsonl is not there" in done.stdout


@pytest.mark.drill
def test_a_stopped_job_is_recorded_and_the_same_command_resumes_it_under_a_new_id(
    cluster: JobCluster, tmp_path: Path, jpeg: Callable[..., bytes], model_folder: Path
) -> None:
    scan = scan_of(tmp_path, model_folder, jpeg, ROWS, "--batch-size", "2")
    folder = tmp_path / "out/pairs"
    started = cluster.asap(*scan, "--no-wait")
    assert started.returncode == 0, started.stderr
    assert "`asap cancel" in started.stderr
    first = started.stdout.strip()

    def has_results() -> bool:
        return len(list((folder / "results").glob("*.parquet"))) > 0

    wait_until(has_results)
    # To stop watching is not to stop the job.
    with cluster.start("submit", "logs", first) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=HANG_S)
    assert watching.returncode == 130
    assert "stopped watching. The job goes on." in said
    assert record_of(folder)["state"] == "running"

    stopped = cluster.asap("submit", "stop", first)
    assert (stopped.returncode, stopped.stdout) == (0, f"{first} is stopped\n"), stopped.stderr
    assert record_of(folder)["state"] == "cancelled"
    followed = cluster.asap("submit", "logs", first)
    assert followed.returncode == 130
    assert followed.stderr == f"{first} was stopped\n"
    assert "had ended: STOPPED" not in followed.stdout

    resumed = cluster.asap(*scan)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert first not in resumed.stderr
    rows = Counter(
        row for path in (folder / "results").glob("*.parquet") for row in pq.read_table(path)["row_id"].to_pylist()
    )
    assert len(rows) == rows.total() == ROWS


@pytest.mark.drill
def test_a_cancelled_job_ends_its_submission_with_the_code_of_a_stop(
    cluster: JobCluster, tmp_path: Path, jpeg: Callable[..., bytes], model_folder: Path
) -> None:
    scan = scan_of(tmp_path, model_folder, jpeg, ROWS, "--batch-size", "2")
    folder = tmp_path / "out/pairs"
    with cluster.start(*scan) as process:
        wait_until(lambda: (folder / "results").is_dir(), process=process)
        cancelled = cluster.asap("cancel", folder, "--wait", "600")
        assert "is cancelled" in cancelled.stdout, cancelled.stderr
        log, _ = process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    assert "asap: stopped." in log


def test_a_cluster_takes_no_other_token_and_says_so(cluster: JobCluster, tmp_path: Path) -> None:
    def logs(**environment: str) -> subprocess.CompletedProcess[str]:
        return cluster.asap("submit", "logs", "asap-none", **environment)

    assert (
        f"the cluster at {cluster.url} does not take the token of RAY_AUTH_TOKEN" in logs(RAY_AUTH_TOKEN="other").stderr
    )
    without = logs(RAY_AUTH_TOKEN="", HOME=str(tmp_path))
    assert (without.returncode, "asks for a token, and there is none" in without.stderr) == (1, True)
    assert f"the cluster at {cluster.url} has no job asap-none" in logs().stderr
    (tmp_path / "token").write_text(TOKEN)
    with_file = logs(RAY_AUTH_TOKEN="", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert "has no job asap-none" in with_file.stderr


def test_an_interpreter_that_the_cluster_does_not_have_is_named(cluster: JobCluster, tmp_path: Path) -> None:
    done = cluster.asap("submit", "scan", tmp_path, "--out", tmp_path, "--python", "/none/python")
    assert done.returncode == 1
    assert "its interpreter was not found on the cluster. Give --python" in done.stderr
