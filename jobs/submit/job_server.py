"""The Jobs API of a cluster, with errors that come within seconds and say what to do.

Ray's client waits for an answer without end, lets RAY_ADDRESS replace the address that it is given, and sends a token
only in token mode. Here each request has a time limit, and address and token are those that were found
(`asap.submission.connection`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
import requests
from ray.job_submission import JobSubmissionClient

from asap.submission.connection import failure_reason, request_limits
from asap.submission.token import HOW_TO_GIVE, Token
from jobs.errors import JobError, JobUnknown

_ANSWER_S = 20.0
_SUBMIT_S = 180.0
"""Seconds that the first submission may take, for which the cluster starts its job manager."""
_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


class JobServer:
    """The Jobs API behind the dashboard of a cluster."""

    def __init__(self, url: str, token: Token | None) -> None:
        """Check that a dashboard of this version of Ray answers and takes the token. Raises `JobError` if not."""
        self.url = url
        headers = {"Authorization": f"Bearer {token.value}"} if token else {}
        _check_dashboard(url, headers, token)
        with _environment_without(_OVERRIDES), self._errors():
            self._client = _Client(url, headers=headers)
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it says how each log ended

    def submit(self, entrypoint: str, submission_id: str, environment: Mapping[str, str]) -> None:
        """Submit a shell command, which runs on the head, under an id that no job of the cluster has.

        Args:
            entrypoint: The command.
            submission_id: The id.
            environment: Variables of the job.

        Raises:
            JobError: The cluster refused the command, or did not say that it took it.
        """
        with self._errors():
            try:
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=submission_id,
                    runtime_env={"env_vars": dict(environment)},
                )
            except requests.ConnectTimeout:
                raise  # nothing was sent
            except requests.RequestException as error:
                raise JobError(
                    f"the dashboard at {self.url} did not answer the submission: {failure_reason(error)}. Job "
                    f"{submission_id} may run: look with {logs_command(self.url, submission_id)} before you submit "
                    "again."
                ) from error

    def info(self, submission_id: str) -> Any:
        """Return Ray's details of a job: `status`, `driver_exit_code`, `message` and more."""
        with self._errors(submission_id):
            return self._client.get_job_info(submission_id)

    def stop(self, submission_id: str) -> bool:
        """Ask a job to stop; return False if it had ended."""
        with self._errors(submission_id):
            return bool(self._client.stop_job(submission_id))

    def log(self, submission_id: str) -> AsyncIterator[str]:
        """Yield pieces of a job's log from its beginning, until the job has ended or the connection is lost."""
        return self._client.tail_job_logs(submission_id)

    @contextmanager
    def _errors(self, submission_id: str = "") -> Iterator[None]:
        """Turn what Ray's client raises into a `JobError`."""
        try:
            yield
        except requests.RequestException as error:
            raise JobError(
                f"the dashboard at {self.url} does not answer: {failure_reason(error)}. Try again."
            ) from error
        except (RuntimeError, ValueError, ConnectionError, ray.exceptions.AuthenticationError) as error:
            if submission_id and "does not exist" in str(error):
                raise JobUnknown(
                    f"the cluster at {self.url} has no job {submission_id}. Its dashboard lists those that it has."
                ) from error
            # The server answers an error of its own with a traceback, whose last line says what it is.
            lines = str(error).strip().rstrip(".").splitlines() or [type(error).__name__]
            raise JobError(f"the cluster at {self.url} refused the request: {lines[-1].strip()}.") from error


def logs_command(url: str, submission_id: str) -> str:
    """Return the command that shows the log of a job, in backquotes."""
    return f"`asap submit logs {submission_id} --address {url}`"


class _Client(JobSubmissionClient):  # type: ignore[misc, unused-ignore]
    """Ray's client with the arguments of `request_limits`, which it passes on to `requests`."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        limits = request_limits(self._address, _SUBMIT_S if method == "POST" else _ANSWER_S)
        return super()._do_request(method, endpoint, **(limits | options))


def _check_dashboard(url: str, headers: Mapping[str, str], token: Token | None) -> None:
    try:
        # The limits have a timeout.
        answer = requests.get(f"{url}/api/version", headers=headers, **request_limits(url, _ANSWER_S))  # noqa: S113
    except requests.RequestException as error:
        raise JobError(
            f"no Ray dashboard answers at {url}: {failure_reason(error)}. Start the cluster, open the tunnel to it "
            "(`ray dashboard cluster.yaml`), or correct --address."
        ) from error
    if token and answer.status_code in (requests.codes.unauthorized, requests.codes.forbidden):
        raise JobError(f"the cluster at {url} does not take the token of {token.source}. {HOW_TO_GIVE}")
    if answer.status_code == requests.codes.unauthorized:
        raise JobError(f"the cluster at {url} asks for a token, and there is none. {HOW_TO_GIVE}")
    try:
        version = str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise JobError(
            f"what answers at {url} is no Ray dashboard (status {answer.status_code}). Correct --address."
        ) from error
    if version != ray.__version__:
        raise JobError(
            f"the cluster at {url} runs Ray {version}, and this asap has Ray {ray.__version__}. Install the same asap "
            "on both, from the same lock file."
        )


@contextmanager
def _environment_without(names: tuple[str, ...]) -> Iterator[None]:
    removed = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(removed)
