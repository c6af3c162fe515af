"""A cluster that takes jobs and runs none: a test says what becomes of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from asap.storage.location import Location
from serve.errors import Refused
from serve.jobs.cluster import CheckedScan, SubmissionState
from tests.support.job_folders import write_scan


class FakeCluster:
    """A `Cluster` without Ray. Its jobs are submitted until a test ends or begins them."""

    def __init__(self) -> None:
        self.submitted: dict[str, list[str]] = {}
        """Arguments by the id of the submission, the oldest first."""
        self.states: dict[str, SubmissionState] = {}
        self.checked: list[list[str]] = []
        self.refusal: Refused | None = None
        """The error of each check."""
        self.is_away = False
        """True if no job can be submitted."""
        self.may_check = threading.Event()
        """A check waits until this is set."""
        self.may_check.set()

    def address(self) -> str:
        return "10.0.0.1:6379"

    def check(self, arguments: Sequence[str]) -> CheckedScan:
        self.checked.append(list(arguments))
        self.may_check.wait()
        if self.refusal:
            raise self.refusal
        folder = self._folder(arguments)
        return CheckedScan(folder.uri, _is_finished(folder))

    def submit(self, submission_id: str, arguments: Sequence[str]) -> None:
        if self.is_away:
            raise Refused(503, "cluster_unavailable", "away", retry_after_s=5)
        self.submitted.setdefault(submission_id, list(arguments))
        self.states.setdefault(submission_id, SubmissionState(False))

    def state(self, submission_id: str) -> SubmissionState | None:
        return self.states.get(submission_id)

    def stop(self, submission_id: str) -> None:
        self.states[submission_id] = SubmissionState(True, 130)

    def end(self, exit_code: int, message: str | None = None) -> None:
        """End the last submission, as one that did not come to its folder."""
        self.states[list(self.submitted)[-1]] = SubmissionState(True, exit_code, message)

    def begin(self, rows: Sequence[dict[str, Any]] = (), **entries: Any) -> Location:
        """Write the job folder of the last submission, as its process does, with entries of `job.json`."""
        folder = self._folder(list(self.submitted.values())[-1])
        runs = sum(self._folder(arguments) == folder for arguments in self.submitted.values())
        write_scan(folder, rows, **({"state": "running", "runs": runs} | entries))
        return folder

    @staticmethod
    def _folder(arguments: Sequence[str]) -> Location:
        options = dict(argument.partition("=")[::2] for argument in arguments)
        name = options.get("--job") or arguments[-1].rpartition("/")[2].partition(".")[0]
        return Location.parse(options["--out"]) / name


def _is_finished(folder: Location) -> bool:
    from jobs.scan.output.job_folder import is_finished

    return is_finished(folder)
