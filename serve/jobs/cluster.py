"""The cluster of the server, as its jobs use it: the command checks a scan, and Ray's Jobs API takes it.

Nothing that a caller sent is read by a shell: the command line is the same for all jobs, and the arguments are a list
in an environment variable (`jobs/cli/requested.py`).
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import requests

from asap.errors import JobError
from asap.submission.connection import failure_reason, request_limits
from asap.submission.entrypoint import ARGUMENTS, REQUESTED_COMMAND, STOP_ENVIRONMENT
from asap.submission.token import read_token
from serve.errors import Refused

_LOG = logging.getLogger("asap.server")
_CHECKS = 2
"""Checks that one process of the API runs at once. Each is a process of its own."""
_CHECK_S = 120.0
"""Seconds after which a check is ended, long after the request that waited for it. It may download a model."""
_ANSWER_S = 20.0
_SUBMIT_S = 120.0
"""Seconds that a submission may take. For the first one the cluster starts its job manager."""
_MESSAGE = re.compile(r"^asap: (.+)$", re.MULTILINE)
"""The sentence with which a command ends that failed."""
_LONGEST_MESSAGE = 2000


class CheckedScan(NamedTuple):
    """A scan that would start."""

    folder: str
    """Address of the job folder."""
    is_finished: bool
    """True if there is nothing left to do."""


class SubmissionState(NamedTuple):
    """A submitted command."""

    has_ended: bool
    exit_code: int | None = None
    """The exit code of a command that has ended, if it had one; 130 if it was stopped."""
    message: str | None = None
    """The sentence with which it ended."""


class Cluster(Protocol):
    """A cluster, as jobs need it. Each method waits for an answer, so it is called in a thread."""

    def address(self) -> str:
        """Return the address at which a job joins."""

    def check(self, arguments: Sequence[str]) -> CheckedScan:
        """Check a scan as it does itself. Raises `Refused` (422) with its sentence."""

    def submit(self, submission_id: str, arguments: Sequence[str]) -> None:
        """Submit a command, unless it was submitted under this id before. Raises `Refused` (503)."""

    def state(self, submission_id: str) -> SubmissionState | None:
        """Return the state of a submission; None if the cluster does not know it. Raises `Refused` (503)."""

    def stop(self, submission_id: str) -> None:
        """Stop a submitted command in an orderly way. Raises `Refused` (503)."""


class RayCluster:
    """The cluster that this process belongs to.

    Args:
        dashboard: Address of its dashboard, which has the Jobs API. None: the one that the cluster names.
    """

    def __init__(self, dashboard: str | None = None) -> None:
        self._dashboard = dashboard
        self._checks = threading.BoundedSemaphore(_CHECKS)

    def address(self) -> str:
        """Return the address at which a job joins."""
        import ray

        return str(ray.get_runtime_context().gcs_address)

    def check(self, arguments: Sequence[str]) -> CheckedScan:
        """Check a scan in a process of its own, by the code of the command."""
        command = [sys.executable, "-P", "-m", "jobs.cli.requested", "check"]
        sent = json.dumps(list(arguments))
        # A request that waits keeps a thread from all others, so it does not wait.
        if not self._checks.acquire(blocking=False):
            message = f"{_CHECKS} jobs are being checked, which is the limit. Send the request again."
            raise Refused(429, "overloaded", message, retry_after_s=5)
        try:
            with tempfile.TemporaryDirectory() as folder:
                # The command is the same for each request.
                done = subprocess.run(  # noqa: S603
                    command, input=sent, capture_output=True, text=True, timeout=_CHECK_S, cwd=folder, check=False
                )
        except subprocess.TimeoutExpired:
            raise Refused(504, "deadline", f"the check of the job took more than {_CHECK_S:g} s") from None
        finally:
            self._checks.release()
        try:
            found = json.loads(done.stdout.strip().rpartition("\n")[2])
        except ValueError:
            _LOG.error("the check of a job ended with exit code %d: %s", done.returncode, done.stderr[-4000:])
            raise Refused(500, "internal", "the server failed on this request") from None
        if "error" in found:
            reason = without_paths(found["error"])
            message = f"asap scan refuses the job with exit code {found['exit_code']}: {reason}"
            raise Refused(422, "job_refused", message)
        return CheckedScan(found["folder"], found["state"] == "finished")

    def submit(self, submission_id: str, arguments: Sequence[str]) -> None:
        """Submit a command, unless it was submitted under this id before."""
        variables = STOP_ENVIRONMENT | {ARGUMENTS: json.dumps(list(arguments))}
        job = {"entrypoint": REQUESTED_COMMAND, "submission_id": submission_id, "runtime_env": {"env_vars": variables}}
        answer = self._ask("POST", "/api/jobs/", json=job)
        if answer.ok or "already exists" in answer.text:
            return
        raise self._unexpected(answer)

    def state(self, submission_id: str) -> SubmissionState | None:
        """Return the state of a submission; None if the cluster does not know it."""
        answer = self._ask("GET", f"/api/jobs/{submission_id}")
        if answer.status_code == requests.codes.not_found:
            return None
        details = self._json(answer)
        status = details.get("status")
        if status in ("PENDING", "RUNNING"):
            return SubmissionState(False)
        if status == "STOPPED":
            return SubmissionState(True, 130)
        if status == "SUCCEEDED":
            return SubmissionState(True, 0)
        code = details.get("driver_exit_code")
        return SubmissionState(True, code, self._last_sentence(submission_id))

    def stop(self, submission_id: str) -> None:
        """Stop a submitted command in an orderly way."""
        answer = self._ask("POST", f"/api/jobs/{submission_id}/stop")
        if not answer.ok and answer.status_code != requests.codes.not_found:
            raise self._unexpected(answer)

    def _last_sentence(self, submission_id: str) -> str | None:
        log = self._json(self._ask("GET", f"/api/jobs/{submission_id}/logs")).get("logs") or ""
        sentences = _MESSAGE.findall(str(log)[-(2**16) :])
        return without_paths(sentences[-1])[:_LONGEST_MESSAGE] if sentences else None

    def _ask(self, method: str, path: str, **sent: Any) -> requests.Response:
        try:
            url = self._url()
            token = read_token()
            headers = {"Authorization": f"Bearer {token.value}"} if token else {}
            limits = request_limits(url, _SUBMIT_S if method == "POST" else _ANSWER_S)
            return requests.request(method, f"{url}{path}", headers=headers, **limits, **sent)  # noqa: S113 - in the limits
        except requests.RequestException as error:
            _LOG.error("the dashboard of the cluster does not answer: %s", failure_reason(error))
            raise _unavailable() from error
        except JobError as error:
            _LOG.error("the jobs of the cluster cannot be asked for: %s", error)
            raise _unavailable() from error

    def _json(self, answer: requests.Response) -> dict[str, Any]:
        try:
            content = answer.json() if answer.ok else None
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise self._unexpected(answer)
        return content

    def _unexpected(self, answer: requests.Response) -> Refused:
        # The answer may be a traceback. Its last line says what the problem is, and only the log gets it.
        lines = answer.text.strip().splitlines() or [""]
        _LOG.error("the dashboard of the cluster answered %d: %s", answer.status_code, lines[-1][:_LONGEST_MESSAGE])
        return _unavailable()

    def _url(self) -> str:
        """Return the address of the dashboard. Raises `JobError` if the cluster has none."""
        if self._dashboard is not None:
            return self._dashboard.rstrip("/")
        from ray._private.ray_constants import DASHBOARD_ADDRESS, KV_NAMESPACE_DASHBOARD

        # The stubs of this module lack the class.
        client = importlib.import_module("ray._raylet").GcsClient(address=self.address())
        found = client.internal_kv_get(DASHBOARD_ADDRESS.encode(), namespace=KV_NAMESPACE_DASHBOARD, timeout=_ANSWER_S)
        if not found:
            raise JobError("the cluster runs no dashboard. Start it with one, or name one in jobs.dashboard.")
        url = found.decode()
        return url if "://" in url else f"http://{url}"


_LOCAL_PATH = re.compile(r"(?<![\w:/.~-])~?/(?:[^\s'\",;:()]+)")
"""A path of a machine, which is not part of an address such as s3://bucket/key or of a route such as a/b."""


def without_paths(sentence: str) -> str:
    """Return a sentence without paths of the machines, which are nobody's business outside."""
    return _LOCAL_PATH.sub("(a path of the server)", sentence)


def _unavailable() -> Refused:
    message = "the cluster takes and shows no jobs now. Send the request again."
    return Refused(503, "cluster_unavailable", message, retry_after_s=5)
