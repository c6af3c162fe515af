"""A submitted job: its log through lost connections, its exit code, and its command line."""

import errno
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from ray.job_submission import JobStatus

from asap.submission.entrypoint import new_submission_id, shell_command
from jobs.errors import JobError, JobUnknown
from jobs.submit import run


class Server:
    """A cluster whose answers are given."""

    url = "http://head:8265"

    def __init__(self, *connections: list[str | Exception], **info: Any) -> None:
        self.connections = list(connections)
        self.details = SimpleNamespace(**{"driver_exit_code": None, "message": None} | info)
        self.submitted: list[Any] = []
        self.asked = 0
        self.whole: list[str | Exception] = []
        """The log of the last connection, which the next ones get too."""

    def info(self, submission_id: str) -> Any:
        self.asked += 1
        return SimpleNamespace(**vars(self.details) | ({"status": JobStatus.RUNNING} if self.connections else {}))

    async def log(self, submission_id: str) -> AsyncIterator[str]:
        if self.connections:
            self.whole = self.connections.pop(0)
        for piece in self.whole:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def submit(self, *arguments: Any) -> None:
        self.submitted.append(arguments)

    def stop(self, submission_id: str) -> bool:
        return True


def follow(server: Server) -> tuple[int, str]:
    shown: list[str] = []
    code = run.follow(server, "asap-x", shown.append)  # type: ignore[arg-type]
    return code, "".join(shown)


@pytest.mark.parametrize(
    ("status", "exit_code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0), (JobStatus.FAILED, 1, 1), (JobStatus.FAILED, 2, 2), (JobStatus.FAILED, 3, 3),
        (JobStatus.FAILED, 4, 4), (JobStatus.FAILED, 130, 130), (JobStatus.STOPPED, None, 130),
    ],
)  # fmt: skip
def test_the_exit_code_of_the_command_is_passed_on(status: JobStatus, exit_code: int | None, expected: int) -> None:
    assert follow(Server(["done\n"], status=status, driver_exit_code=exit_code)) == (expected, "done\n")


@pytest.mark.parametrize(
    ("exit_code", "message", "sentence"),
    [
        (
            None,
            "Job supervisor actor died: x\ny",
            "failed on the cluster: Job supervisor actor died: x. Submit the same",
        ),
        (None, None, "failed on the cluster: Ray gave no reason"),
        (-9, None, "was ended by SIGKILL on the cluster"),
        (137, None, "was ended by SIGKILL on the cluster"),
        (127, None, "its interpreter was not found on the cluster. Give --python"),
        (126, None, "its interpreter cannot be run on the cluster"),
    ],
)
def test_an_end_that_is_not_the_commands_own_is_an_error(
    exit_code: int | None, message: str | None, sentence: str
) -> None:
    with pytest.raises(JobError, match=sentence):
        follow(Server(["x"], status=JobStatus.FAILED, driver_exit_code=exit_code, message=message))


def test_a_log_goes_on_where_a_lost_connection_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_PAUSE_S", 0)
    lost = aiohttp.ClientConnectionError("gone")
    server = Server(
        ["one\n", "two\n", RuntimeError("WebSocket connection closed unexpectedly")], [lost], ["one\ntw"],
        ["one\ntwo\nth", "ree\n"], status=JobStatus.SUCCEEDED,
    )  # fmt: skip
    assert follow(server) == (0, "one\ntwo\nthree\n")


def test_lines_that_came_after_the_connection_had_ended_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(Server):
        def info(self, submission_id: str) -> Any:
            return self.details

    server = Ended(["one\n"], ["one\n", "two\n"], status=JobStatus.FAILED, driver_exit_code=3)
    assert follow(server) == (3, "one\ntwo\n")


def test_a_dashboard_that_stays_away_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_LOST_S", -1)
    server = Server(["one\n", OSError("gone")], ["never"], status=JobStatus.SUCCEEDED)
    with pytest.raises(JobError) as caught:
        follow(server)
    assert str(caught.value) == (
        "the dashboard at http://head:8265 was lost: gone. The job may still run: look with `asap submit logs asap-x "
        "--address http://head:8265`."
    )


def test_a_job_that_the_cluster_no_longer_has_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Replaced(Server):
        def info(self, submission_id: str) -> Any:
            if self.asked:
                raise JobUnknown("the cluster has no job asap-x.")
            return super().info(submission_id)

    monkeypatch.setattr(run, "_LOST_S", -1)
    with pytest.raises(JobUnknown, match=r"^the cluster has no job asap-x\.$"):
        follow(Replaced([RuntimeError("404")], status=JobStatus.RUNNING))


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_error_of_the_output_is_not_one_of_the_dashboard(error: OSError) -> None:
    server = Server(["one\n", "two\n"], ["never"], status=JobStatus.SUCCEEDED)

    def show(piece: str) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        run.follow(server, "asap-x", show)  # type: ignore[arg-type]
    assert caught.value is error
    assert server.connections == [["never"]]


def test_a_connection_that_is_silent_after_the_end_of_the_job_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    class Silent(Server):
        async def log(self, submission_id: str) -> AsyncIterator[str]:
            yield "one\n"
            await asyncio.Event().wait()

    monkeypatch.setattr(run, "_LOOK_S", 0.05)
    assert follow(Silent(status=JobStatus.SUCCEEDED)) == (0, "one\n")


def test_a_job_that_does_not_end_in_time_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.stop(Server(status=JobStatus.STOPPED), "asap-x", 0) == "STOPPED"  # type: ignore[arg-type]
    with pytest.raises(JobError, match="asked to stop, and has not ended within 0 s"):
        run.stop(Server(status=JobStatus.RUNNING), "asap-x", 0)  # type: ignore[arg-type]


def test_a_command_is_stopped_as_by_any_signal() -> None:
    server = Server(status=JobStatus.RUNNING)
    run.submit(server, "asap-x", "scan", [])  # type: ignore[arg-type]
    assert server.submitted[0][2] == {"RAY_JOB_STOP_SIGNAL": "SIGTERM", "RAY_JOB_STOP_WAIT_TIME_S": "60"}


def test_the_shell_runs_the_command_with_its_arguments_as_they_were_typed() -> None:
    words = ["s3://b/a b.jsonl", "--set", 'captions={"engine": "x"}', "$HOME `id` 'q'", "", "-P\\n"]
    line = shell_command("scan", words, sys.executable)
    assert line.startswith("exec ")
    echoing = line.replace("-P -m jobs.cli", "-c 'import sys; print(sys.argv[1:])'")
    said = subprocess.run(["sh", "-c", echoing], capture_output=True, text=True, check=True).stdout
    assert said == f"{['scan', *words]}\n"
    assert shlex.quote("/a b/python") in shell_command("scan", [], "/a b/python")


def test_each_submission_has_an_id_of_its_own() -> None:
    ids = {new_submission_id("scan") for _ in range(20)}
    assert len(ids) == 20
    assert all(name.startswith("asap-scan-") for name in ids)
