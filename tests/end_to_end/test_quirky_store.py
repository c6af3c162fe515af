"""A scan and a training run whose store differs from S3 in every way that works."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import boto3
import pytest

from asap.storage.files import list_files, read_bytes
from asap.storage.location import Location
from asap.storage.s3 import s3_client
from tests.support.quirky_store import HARMLESS, QuirkyStore
from tests.support.results import read_results
from tests.support.small_run import draw_corpus, settings_for
from tests.support.waiting import HANG_S

JOB = """
import importlib, json, sys
from jobs.cluster import ray_running
module, work, settings = sys.argv[1].split(":")
with ray_running(num_cpus=2, object_store_memory=300 * 2**20):
    print(getattr(importlib.import_module(module + ".run"), work)(
        getattr(importlib.import_module(module + ".settings"), settings)(**json.loads(sys.argv[2]))
    ))
"""


@pytest.fixture
def store(quirky: QuirkyStore, monkeypatch: pytest.MonkeyPatch) -> QuirkyStore:
    """A store with all quirks that a store can have at once. Its readers pay."""
    quirky.quirks = HARMLESS
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    s3_client.cache_clear()
    return quirky


def _run(job: str, settings: str) -> None:
    """Run a job in a process of its own, whose Ray and workers have the environment of this one."""
    done = subprocess.run(
        [sys.executable, "-c", JOB, job, settings], env=os.environ, capture_output=True, text=True, timeout=HANG_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_scan_through_all_quirks_judges_every_pair(
    store: QuirkyStore, bucket: str, corpus: Path, model_folder: Path, s3: str
) -> None:
    client = boto3.client("s3", endpoint_url=s3)
    for path in (corpus / "images").iterdir():
        client.upload_file(str(path), bucket, f"in//images/{path.name}")
    client.put_object(Bucket=bucket, Key="in//a.jsonl", Body=(corpus / "a.jsonl").read_bytes())
    settings = {
        "input": f"s3://{bucket}/in//a.jsonl", "out": f"s3://{bucket}/out", "model": str(model_folder),
        "device": "cpu", "batch_size": 2, "rows_per_file": 2,
    }  # fmt: skip
    _run("jobs.scan:scan:ScanSettings", json.dumps(settings))
    folder = Location(f"s3://{bucket}/out/a")
    rows = read_results(folder)
    assert Counter(row["row_id"] for row in rows) == Counter(range(4))
    assert [row["error_code"] for row in rows] == [None] * 4
    assert json.loads(read_bytes(folder / "job.json"))["state"] == "completed"
    names = {info.location.uri.removeprefix(f"{folder}/").partition("/")[0] for info in list_files(folder)}
    assert not {"_remaining", "_sample"} & names
    assert not any(".claim-" in name for name in names)


@pytest.mark.slow
def test_a_training_run_through_all_quirks_ends_with_a_model(
    store: QuirkyStore, bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = settings_for(draw_corpus(tmp_path_factory), f"s3://{bucket}/runs/one", pairs=32)
    _run("jobs.train:train:TrainSettings", settings.model_dump_json())
    folder = Location(f"s3://{bucket}/runs/one")
    assert json.loads(read_bytes(folder / "model/config.json"))
    assert any("/checkpoint_" in info.location.key for info in list_files(folder))
