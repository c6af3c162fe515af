"""The commands of docs/cluster.md for work and for the API, word by word, on machines made of namespaces.

Only what this test has in other places is replaced in them: buckets, files, GPUs, and the size of the training run.
What needs AWS or Docker is not here: tests/deploy/test_aws.py has the launcher, tests/deploy/test_image.py the image.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from asap.storage.files import exists, read_bytes
from asap.storage.location import Location
from tests.deploy.test_operations import commands
from tests.end_to_end.test_machines import running_applications
from tests.support.machines import HOME, Machines, can_make_machines, cluster
from tests.support.small_run import draw_corpus, settings_for
from tests.support.uploads import upload_folder
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.drill,
    pytest.mark.skipif(not can_make_machines(), reason="network, mount and process namespaces are not allowed here"),
]
PAIRS = 40


class Page:
    """The commands of the page, as they are typed on the head of a cluster."""

    def __init__(self, machines: Machines, bucket: str) -> None:
        self._machines = machines
        self.replaced = {
            "s3://our-results": f"s3://{bucket}",
            "s3://our-pictures/pairs.jsonl": f"s3://{bucket}/in/pairs.jsonl",
            "--device cuda": "--device cpu",
            "device=cuda": "device=cpu",
            "detector_gpus=1": "detector_cpus=0.5",
            "max_replicas=8": "max_replicas=1",
            "--workers 4": "--workers 1",
            "/home/ray/.ray": f"{HOME}/.ray",
            "photo.jpg": f"{HOME}/photo.jpg",
            "serve.yaml": f"{HOME}/serve.yaml",
            "flagged.csv": f"{HOME}/flagged.csv",
        }

    def run(self, start: str, *more: str, **environment: str) -> str:
        """Run the first command of the page that begins so, with further arguments, and return its output."""
        command = next(each for each in commands() if each.startswith(start)).partition("   #")[0]
        for there, here in self.replaced.items():
            command = command.replace(there, here)
        words = " ".join([command, *map(shlex.quote, more)])
        return self._machines.head.run(["bash", "-c", words], **environment)


def test_the_page_leads_from_a_model_in_a_bucket_to_a_scan_a_training_run_and_the_api(
    bucket: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    model_folder: Path,
    jpeg: Callable[..., bytes],
) -> None:
    client = boto3.client("s3")
    client.put_object(Bucket=bucket, Key="in/0.jpg", Body=jpeg(0))
    lines = "".join(json.dumps({"id": str(n), "image": "0.jpg", "text": "a man smiles"}) + "\n" for n in range(PAIRS))
    client.put_object(Bucket=bucket, Key="in/pairs.jsonl", Body=lines.encode())
    upload_folder(model_folder, bucket, "models/mine")
    corpus = draw_corpus(tmp_path_factory)
    upload_folder(corpus, bucket, "corpora/ours")
    scans = f"s3://{bucket}/scans"

    with cluster(workers=2, cpus=2) as machines:
        page = Page(machines, bucket)
        page.run("asap submit scan", "--allow-unfamiliar")
        assert exists(Location(f"{scans}/pairs/_SUCCESS"))
        # These need no cluster, only the bucket.
        assert "completed" in page.run("asap watch")
        assert "pairs" in page.run("asap list")
        assert "completed" in page.run("asap cancel")
        page.run("asap results")
        assert machines.head.run(["head", "-c", "9", f"{HOME}/flagged.csv"]) == "custom_id"

        small = settings_for("c", "o").model_dump(exclude_unset=True, exclude={"corpus", "out"})
        page.run("asap submit train", *(word for name, value in small.items()
                                        for word in ("--set", f"{name}={json.dumps(value)}")))  # fmt: skip
        assert read_bytes(Location(f"s3://{bucket}/runs/first/model/config.json"))

        key, line = (each.rpartition(" ")[2] for each in page.run("asap serve --new-key").splitlines())
        for machine in (machines.head, *machines.workers):
            machine.write(f"{HOME}/.ray/keys", line.encode())
        machines.head.write(f"{HOME}/photo.jpg", jpeg(0))
        page.run("asap serve build", *(word for each in ("detector_cpus=0.5", "decoders=1", "api_replicas=1")
                                       for word in ("--set", each)))  # fmt: skip
        page.run("serve deploy")
        wait_until(lambda: "asap" in running_applications(machines), every_s=1)
        page.replaced["asap_…"] = key
        answer = page.run("ASAP_KEY=")
        assert "manipulated" in answer or "authentic" in answer or "unfamiliar" in answer, answer
