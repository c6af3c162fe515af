"""Jobs on a cluster of machines with disks of their own, which lose a worker or the head: nothing is lost with them."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
import yaml
from safetensors.torch import load

from asap.finding import Pair
from asap.predictor import Predictor
from asap.storage.files import exists, read_bytes
from asap.storage.location import Location
from serve.api.callers.keys import new_key
from tests.support.machines import (
    HOME,
    REDIS_NAMESPACE,
    Machine,
    Machines,
    can_make_machines,
    cluster,
)
from tests.support.many_pairs import repeat_pairs
from tests.support.results import read_results
from tests.support.small_run import draw_corpus, settings_for
from tests.support.uploads import upload_folder
from tests.support.waiting import HANG_S, wait_until

pytestmark = [
    pytest.mark.drill,
    pytest.mark.skipif(not can_make_machines(), reason="network, mount and process namespaces are not allowed here"),
]
ROWS = 2000
PICTURES = 20
TEXT = "Angry workers leave the factory"
DASHBOARD = "http://127.0.0.1:8265"
TRAIN = (
    "import sys; from jobs.train.settings import TrainSettings; from jobs.train.run import train; "
    "train(TrainSettings.model_validate_json(sys.argv[1]))"
)


class ScanInput:
    """A model and pairs in a bucket; one in 21 pairs has no picture."""

    def __init__(self, bucket: str, folder: Path, model: Path, jpeg: Callable[..., bytes]) -> None:
        client = boto3.client("s3")
        self.out = Location(f"s3://{bucket}/out/pairs")
        self.bucket = bucket
        for number in range(PICTURES):
            (folder / f"{number}.jpg").write_bytes(jpeg(number))
            client.upload_file(str(folder / f"{number}.jpg"), bucket, f"in/{number}.jpg")
        rows = [{"id": str(row), "image": f"{row % (PICTURES + 1)}.jpg", "text": TEXT} for row in range(ROWS)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        client.put_object(Bucket=bucket, Key="in/pairs.jsonl", Body=lines.encode())
        self.model = upload_folder(model, bucket, "model")
        pairs = [Pair(folder / f"{number}.jpg", TEXT) for number in range(PICTURES)]
        self.scores = [finding.score for finding in Predictor.from_folder(model, "cpu").predict(pairs)]

    @property
    def command(self) -> list[object]:
        """The scan, without `asap`, in small batches and small files."""
        return ["scan", f"s3://{self.bucket}/in/pairs.jsonl", "--out", self.out.parent.uri, "--model", self.model,
                "--device", "cpu", "--batch-size", "10", "--set", "write_every_s=1"]  # fmt: skip

    @property
    def has_results(self) -> bool:
        """True once rows are written."""
        return bool(read_results(self.out))

    def check(self) -> dict[str, Any]:
        """Check that the job is complete, with each row once and as it is without a fault; return its record."""
        assert exists(self.out / "_SUCCESS")
        rows = read_results(self.out)
        assert Counter(row["row_id"] for row in rows) == Counter(range(ROWS))
        for row in rows:
            picture = row["row_id"] % (PICTURES + 1)
            if picture == PICTURES:
                assert row["error_code"] == "not_found"
            else:
                assert row["score"] == pytest.approx(self.scores[picture], abs=1e-5)
        record: dict[str, Any] = json.loads(read_bytes(self.out / "job.json"))
        assert record["state"] == "completed"
        return record


@pytest.fixture
def pairs(bucket: str, tmp_path: Path, model_folder: Path, jpeg: Callable[..., bytes]) -> ScanInput:
    return ScanInput(bucket, tmp_path, model_folder, jpeg)


def submitted(machines: Machines, *words: object) -> subprocess.Popen[str]:
    """Submit a command of asap on the head, as through a tunnel to it."""
    return machines.head.start(["asap", "submit", *words, "--address", DASHBOARD])


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end of a command, which must succeed, and return its output."""
    output, _ = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, output
    return output


def runs(machine: Machine, name: str) -> bool:
    """Return True if a process of Ray with this name runs on the machine."""
    return bool(machine.run(["pgrep", "-f", f"^ray::.*{name}"], check=False))


def test_a_scan_goes_on_when_a_worker_is_lost_and_uses_one_that_joins_late(pairs: ScanInput) -> None:
    with cluster(workers=2) as machines:
        scan = submitted(machines, *pairs.command)
        wait_until(lambda: pairs.has_results, process=scan, every_s=0.5)
        machines.worker(0).cut_off()  # Ray itself would wait minutes for the tasks there
        late = machines.join()
        wait_until(lambda: runs(late, "Detector"), process=scan, every_s=0.5)
        finish(scan)
        assert pairs.check()["runs"] == 1


def test_paths_on_the_disk_of_the_head_are_refused_before_any_work(pairs: ScanInput) -> None:
    with cluster(workers=1) as machines:
        machines.head.write(f"{HOME}/in/0.jpg", b"no picture")
        machines.head.write(f"{HOME}/in/pairs.jsonl", b'{"image": "0.jpg", "text": "a man smiles"}\n')
        refused = submitted(machines, "scan", f"{HOME}/in/pairs.jsonl", "--out", f"{HOME}/out", "--allow-unreadable")
        output, _ = refused.communicate(timeout=HANG_S)
        assert refused.returncode == 1, output
        assert f"OUT {HOME}/out/pairs cannot be written to on 1 (worker-0 ({machines.worker(0).address}))" in output
        assert f"INPUT {HOME}/in/0.jpg cannot be read on 1 (worker-0" in output
        assert "Put them at s3://, or in a folder that all machines share." in output
        assert machines.head.run(["ls", HOME]).split() == ["in", "supervise.log"]


def test_a_head_that_is_lost_comes_back_and_the_same_command_finishes_the_scan(pairs: ScanInput) -> None:
    with cluster(workers=2) as machines:
        scan = submitted(machines, *pairs.command)
        wait_until(lambda: pairs.has_results, process=scan, every_s=0.5)
        # Only Ray ends: its supervisor starts it again, and those of the workers have them join the new head.
        machines.head.kill_ray()
        output, _ = scan.communicate(timeout=HANG_S)
        assert scan.returncode != 0, output
        machines.wait_for(["head", "worker-0", "worker-1"])
        assert "supervise: Ray ended with exit code" in machines.head.log()
        assert not exists(pairs.out / "_SUCCESS")

        before = len(read_results(pairs.out))
        scan = submitted(machines, *pairs.command)
        wait_until(lambda: len(read_results(pairs.out)) > before, process=scan, every_s=0.5)
        machines.head.restart()  # the whole machine: the command that watched it is gone with it
        scan.communicate(timeout=HANG_S)
        machines.wait_for(["head", "worker-0", "worker-1"])
        finish(submitted(machines, *pairs.command))
        assert pairs.check()["runs"] == 3


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed here")
def test_with_redis_a_scan_whose_driver_is_on_a_worker_outlives_the_head(pairs: ScanInput) -> None:
    with cluster(workers=3, redis=True) as machines:
        scan = machines.worker(2).start(["asap", *pairs.command, "--address", "auto"])
        wait_until(lambda: pairs.has_results, process=scan, every_s=0.5)
        machines.head.restart()
        finish(scan)
        assert pairs.check()["runs"] == 1
        machines.wait_for(["head", "worker-0", "worker-1", "worker-2"])
        keys = machines.redis_keys()
        assert keys
        assert all(key.startswith(f"RAY{REDIS_NAMESPACE}@") for key in keys)


CALLER = """
import json, os, sys, time
import requests
url, calls = sys.argv[1], int(sys.argv[2])
image = sys.stdin.buffer.read()
for call in range(calls):
    started = time.monotonic()
    try:
        answer = requests.post(
            f"{url}/v1/detect", files={"image": image}, data={"text": "Angry workers leave"}, timeout=60,
            headers={"Authorization": f"Bearer {os.environ['ASAP_KEY']}"},
        )
        told = answer.status_code, answer.text[:200]
    except requests.RequestException as error:
        told = 0, str(error)[:200]
    print(json.dumps([*told, time.monotonic() - started]), flush=True)
    time.sleep(0.2)
"""
"""Calls the API again and again, and prints the status, the answer and the seconds of each call."""


def deploy_api(machines: Machines, model: str) -> str:
    """Deploy the API with two detectors and two processes of the API, wait until it answers, and return its key."""
    key, line = new_key("desk")
    for machine in (machines.head, *machines.workers):
        machine.write(f"{HOME}/.ray/keys", line.encode())
    changes = {"api_replicas": 2, "min_replicas": 2, "max_replicas": 2, "detector_cpus": 0.5, "decoders": 1}
    sets = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    machines.asap("serve", "build", "--model", model, "--keys", f"{HOME}/.ray/keys", *sets, "--out", "serve.yaml")
    machines.head.run(["serve", "deploy", "serve.yaml"])
    wait_until(lambda: "asap" in running_applications(machines), every_s=1)
    return key


def running_applications(machines: Machines) -> list[str]:
    """Return the applications of Ray Serve that run."""
    status = yaml.safe_load(machines.head.run(["serve", "status"], check=False)) or {}
    return [name for name, each in status.get("applications", {}).items() if each["status"] == "RUNNING"]


def call_api(machines: Machines, at: Machine, key: str, image: bytes, calls: int) -> subprocess.Popen[str]:
    """Have the head call the API at a machine, and return the process that prints the answers."""
    machines.head.write(f"{HOME}/image.jpg", image)
    call = f"exec {sys.executable} -c {shlex.quote(CALLER)} http://{at.address}:8000 {calls} < {HOME}/image.jpg"
    return machines.head.start(["bash", "-c", call], ASAP_KEY=key)


def test_the_api_goes_on_answering_when_a_worker_is_lost(
    bucket: str, model_folder: Path, jpeg: Callable[..., bytes]
) -> None:
    model = upload_folder(model_folder, bucket, "model")
    with cluster(workers=2) as machines:
        key = deploy_api(machines, model)
        calls = call_api(machines, machines.worker(1), key, jpeg(0), 150)
        assert calls.stdout is not None
        before = [json.loads(calls.stdout.readline()) for _ in range(20)]
        machines.worker(0).kill()
        after = [json.loads(line) for line in calls.stdout]
        assert {status for status, *_ in before} == {200}
        assert {status for status, *_ in after[-50:]} == {200}


def test_a_training_whose_worker_is_lost_ends_with_the_weights_of_one_that_nothing_disturbs(
    bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    corpus = upload_folder(draw_corpus(tmp_path_factory), bucket, "corpus")
    undisturbed, disturbed = (Location(f"s3://{bucket}/{name}") for name in ("undisturbed", "disturbed"))

    def start(out: Location) -> subprocess.Popen[str]:
        settings = settings_for(
            corpus, out.uri, pairs=1600, checkpoint_pairs=200, validation_pairs=1, workers=2, address="auto"
        )
        return machines.head.start([sys.executable, "-c", TRAIN, settings.model_dump_json()])

    with cluster(workers=3) as machines:
        finish(start(undisturbed))
        training = start(disturbed)
        snapshot = disturbed / "ray_train" / "checkpoint_manager_snapshot.json"
        wait_until(lambda: exists(snapshot), process=training, every_s=0.5)
        busy = [machine for machine in machines.workers if runs(machine, "RayTrainWorker")]
        assert len(busy) == 2
        busy[0].kill()
        finish(training)
    expected, found = (load(read_bytes(out / "model" / "model.safetensors")) for out in (undisturbed, disturbed))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=f"{name} differs")


def test_an_evaluation_whose_worker_is_lost_has_the_numbers_of_one_that_nothing_disturbs(
    bucket: str, tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> None:
    corpus = upload_folder(repeat_pairs(draw_corpus(tmp_path_factory), test=3000), bucket, "corpus")
    model = upload_folder(model_folder, bucket, "model")

    def start(name: str) -> subprocess.Popen[str]:
        out = f"s3://{bucket}/{name}"
        return submitted(
            machines, "evaluate", model, corpus, "--out", out, "--device", "cpu", "--set", "shard_pairs=50"
        )

    with cluster(workers=2) as machines:
        finish(start("undisturbed"))
        evaluation = start("disturbed")
        lost = machines.worker(0)
        wait_until(lambda: runs(lost, "evaluate_shard"), process=evaluation, every_s=0.5)
        lost.kill()
        finish(evaluation)
    expected, found = (
        json.loads(read_bytes(Location(f"s3://{bucket}/{name}/metrics.json"))) for name in ("undisturbed", "disturbed")
    )
    for report in (expected, found):
        del report["about"]
    assert found == expected
