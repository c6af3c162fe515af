"""Jobs over HTTP on a real server: a scan on its own Ray, seen by the command line, cancelled, refused and repeated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest

from serve.api.callers.keys import new_key
from serve.client import Client, ServerError
from serve.job_schemas import Job
from tests.support.serving import free_port
from tests.support.waiting import HANG_S, wait_until

pytestmark = pytest.mark.slow
TEXT = "Angry workers leave the factory"
ROWS = 30
OUTSIDE = 7
"""The row whose picture lies where the key may not read."""


class Server(NamedTuple):
    """A running server, a client with a key, its bucket and the model of its jobs."""

    client: Client
    bucket: str
    model: str
    log: Path


@pytest.fixture(scope="module")
def server(
    s3: str, tmp_path_factory: pytest.TempPathFactory, jpeg: Callable[..., bytes], model_folder: Path
) -> Iterator[Server]:
    folder, bucket = tmp_path_factory.mktemp("server"), f"jobs{os.getpid()}"
    store = boto3.client("s3")
    store.create_bucket(Bucket=bucket)
    for number in range(10):
        store.put_object(Bucket=bucket, Key=f"in/{number}.jpg", Body=jpeg(number))
    store.put_object(Bucket=bucket, Key="private/0.jpg", Body=jpeg(0))
    for name, rows in (("pairs", ROWS), ("many", 1500)):
        lines = [{"id": str(row), "image": f"{row % 10}.jpg", "text": TEXT} for row in range(rows)]
        lines[OUTSIDE]["image"] = f"s3://{bucket}/private/0.jpg"
        store.put_object(Bucket=bucket, Key=f"in/{name}.jsonl", Body="\n".join(map(json.dumps, lines)).encode())
    key, line = new_key("desk", ("jobs",))
    (folder / "keys").write_text(line)
    rules = {"inputs": [f"s3://{bucket}/in/"], "outputs": [f"s3://{bucket}/out/"], "models": [str(model_folder)]}
    jobs = {"records": f"s3://{bucket}/records", "keys": {"desk": rules}}
    port = free_port()
    command = [
        sys.executable, "-m", "jobs.cli", "serve", "--model", str(model_folder), "--port", str(port),
        "--keys", str(folder / "keys"), "--set", f"jobs={json.dumps(jobs)}", "--set", "detector_cpus=0.5",
        "--set", "max_replicas=1", "--set", "decoders=1", "--set", f"deadline_s={HANG_S}", "--set", f"drain_s={HANG_S}",
    ]  # fmt: skip
    log = folder / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("serving"), log.read_text()
            threading.Thread(target=process.stdout.read, daemon=True).start()
            with Client(f"http://127.0.0.1:{port}", key, timeout_s=HANG_S) as client:
                yield Server(client, bucket, str(model_folder), log)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(HANG_S)
            process.kill()


def _submit(server: Server, pairs: str, **options: Any) -> Job:
    return server.client.submit_job(
        input=f"s3://{server.bucket}/in/{pairs}.jsonl", out=f"s3://{server.bucket}/out", model=server.model,
        device="cpu", **options,
    )  # fmt: skip


def _asap(*words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words, "--json"], capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_job_is_followed_to_its_end_and_the_command_line_sees_the_same(server: Server) -> None:
    sent = {"name": "the-first", "max_error_rate": 0.01, "batch_size": 8}
    job = _submit(server, "pairs", **sent)
    assert (job.key, job.folder) == ("desk", f"s3://{server.bucket}/out/pairs")
    assert _submit(server, "pairs", **sent).id == job.id  # the same request, sent again
    seen: list[str] = []
    done = server.client.watch_job(job.id, lambda now: seen.append(now.state))
    assert (done.state, done.exit_code, done.runs) == ("completed", 3, 1), (done, server.log.read_text())
    assert (done.counts["done"], done.counts["total"], done.counts["errors"]) == (ROWS, ROWS, 1)
    assert seen[-1] == "completed"

    rows = list(server.client.job_results(job.id, limit=7, columns="custom_id,verdict,status"))
    assert sorted(int(row["custom_id"]) for row in rows) == list(range(ROWS))
    (failed,) = server.client.job_errors(job.id)
    assert (failed["custom_id"], failed["error_code"], failed["retryable"]) == (str(OUTSIDE), "access_denied", False)

    status = _asap("status", done.folder)
    for name in ("folder", "state", "counts", "runs"):
        assert status[name] == getattr(done, name)
    (listed,) = [one for one in _asap("list", f"s3://{server.bucket}/out")["jobs"] if one["folder"] == done.folder]
    assert listed["state"] == "completed"
    assert [one.id for one in server.client.jobs() if one.folder == done.folder] == [job.id]
    again = _submit(server, "pairs", name="no-new-start", max_error_rate=0.01, batch_size=8)
    assert (again.state, again.runs) == ("completed", 1)


def test_what_the_command_refuses_is_refused_with_its_sentence(server: Server) -> None:
    with pytest.raises(ServerError, match=r"asap scan refuses the job with exit code 1: .*/in/none.jsonl is not there"):
        _submit(server, "none")
    with pytest.raises(ServerError, match="nowhere") as caught:
        _submit(server, "pairs", job="columns", image_column="nowhere")
    assert (caught.value.status, caught.value.code) == (422, "job_refused")
    assert "columns" not in {job.folder.rpartition("/")[2] for job in server.client.jobs()}


@pytest.mark.drill
def test_a_job_that_is_cancelled_ends_as_by_the_command_and_goes_on(server: Server) -> None:
    job = _submit(server, "many", batch_size=2)

    def has_rows() -> bool:
        now = server.client.job(job.id)
        assert not now.has_ended, now
        return now.counts.get("done", 0) > 0

    wait_until(has_rows)
    server.client.cancel_job(job.id)
    done = server.client.watch_job(job.id)
    assert (done.state, done.exit_code) == ("cancelled", 130)
    assert _asap("status", done.folder)["state"] == "cancelled"
    assert 0 < done.counts["done"] < 1500
    resumed = _submit(server, "many", batch_size=2)
    assert (resumed.id, resumed.state) == (job.id, "submitted")
    server.client.cancel_job(job.id)
    assert server.client.watch_job(job.id).state == "cancelled"
