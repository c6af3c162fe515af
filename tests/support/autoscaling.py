"""A cluster whose autoscaler starts and ends machines: Ray's own autoscaler, with its provider of pretended machines.

`ray.cluster_utils.AutoscalingCluster` is not used: it begins and ends with `ray stop`, which ends every Ray of this
machine, also those of other tests.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.support.waiting import wait_until

_HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
_STORE_BYTES = 100 * 2**20


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextmanager
def autoscaling_cluster(types: dict[str, dict[str, Any]], idle_s: float) -> Iterator[str]:
    """Run a head without CPUs whose autoscaler may start machines of these types, and yield its address.

    Args:
        types: `resources` and `max_workers` of each type of machine.
        idle_s: Seconds after which a machine without work is ended.
    """
    port = _free_port()
    address = f"127.0.0.1:{port}"
    folder = Path(tempfile.mkdtemp(prefix="as", dir="/tmp"))  # Ray's sockets need a short path
    nodes = {
        name: {
            "node_config": {}, "min_workers": 0, "max_workers": each["max_workers"],
            "resources": each["resources"] | {"object_store_memory": _STORE_BYTES},
        }
        for name, each in types.items()
    }  # fmt: skip
    commands = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
                "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")  # fmt: skip
    config = {
        "cluster_name": "pretended", "max_workers": 8, "upscaling_speed": 1.0, "idle_timeout_minutes": idle_s / 60,
        "provider": {
            # By its own name, `fake_multinode`, Ray would read a file that its wheel lacks.
            "type": "external", "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address, "head_node_id": _HEAD_ID, "launch_multiple": True,
        },
        "available_node_types": nodes | {
            "ray.head.default": {"node_config": {}, "max_workers": 0, "resources": {"CPU": 0}},
        },
        "head_node_type": "ray.head.default", "auth": {}, "docker": {}, "file_mounts": {},
        **{name: [] for name in commands},
    }  # fmt: skip
    (folder / "cluster.json").write_text(json.dumps(config))
    environment = os.environ | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": _HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
        "RAY_AUTH_MODE": "disabled",  # `ray start` would take the token of a home folder, and the drivers have none
    }  # fmt: skip
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={port}", f"--autoscaling-config={folder / 'cluster.json'}", "--num-cpus=0", "--num-gpus=0",
        f"--object-store-memory={_STORE_BYTES}", f"--temp-dir={folder}", "--include-dashboard=false",
    ]  # fmt: skip
    log = (folder / "start.log").open("w")
    head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: "Ray runtime started" in (folder / "start.log").read_text(), process=head)
        yield address
    finally:
        # The raylets of the pretended machines are children of the autoscaler, and it is one of the head.
        processes = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)
