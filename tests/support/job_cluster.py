"""A Ray with a dashboard and a token, in a process of its own: a cluster of one machine to submit jobs to."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.waiting import HANG_S

TOKEN = "token-of-the-tests"
_RUN = """
import sys, ray, ray._private.utils
from jobs.cluster import ray_running

with ray_running(num_cpus=3, include_dashboard=True, dashboard_port=0, object_store_memory=300 * 2**20):
    node = ray._private.worker._global_node
    # As `ray start --head` does. A job joins the cluster of this file, or any of this machine if there is no file.
    ray._private.utils.write_ray_address(node.gcs_address, node.temp_dir)
    print(ray._private.worker.get_dashboard_url(), flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True)
class JobCluster:
    """The cluster."""

    url: str
    """Address of its dashboard."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a machine that has the token, and no Ray variables beside it."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return clean | {"RAY_AUTH_TOKEN": TOKEN, "RAY_API_SERVER_ADDRESS": self.url}

    def asap(self, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of asap to its end."""
        return subprocess.run(
            [sys.executable, "-m", "jobs.cli", *map(str, words)],
            env=self.environment | environment, capture_output=True, text=True, timeout=HANG_S,
        )  # fmt: skip

    def start(self, *words: object) -> subprocess.Popen[str]:
        """Start a command of asap."""
        command = [sys.executable, "-m", "jobs.cli", *map(str, words)]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


@contextmanager
def job_cluster() -> Iterator[JobCluster]:
    """Run the cluster for the duration of the block."""
    command = [sys.executable, "-c", _RUN]
    with (
        # A folder of its own, since another Ray of this machine has another last cluster. Its path must be short.
        tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder,
        subprocess.Popen(
            command, env=JobCluster("").environment | {"RAY_AUTH_MODE": "token", "RAY_TMPDIR": folder},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as process,
    ):  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        try:
            assert url, "the cluster did not start"
            yield JobCluster(f"http://{url}")
        finally:
            process.stdin.close()
            process.wait(HANG_S)
