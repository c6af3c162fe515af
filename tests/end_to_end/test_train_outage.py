"""A training run whose store is away for a minute while a checkpoint is written."""

import json
import os
import subprocess
import sys
import threading

import pytest

from asap.storage.files import read_bytes
from asap.storage.location import Location
from tests.support.faulty_store import Fault, FaultyStore, Request
from tests.support.small_run import draw_corpus, settings_for
from tests.support.waiting import HANG_S

TRAIN = """
import json, sys
from jobs.cluster import ray_running
from jobs.train.run import train
from jobs.train.settings import TrainSettings
with ray_running(num_cpus=2, object_store_memory=300 * 2**20):
    print(train(TrainSettings(**json.loads(sys.argv[1])), lambda event: print(event, file=sys.stderr)))
"""
OUTAGE_S = 60


@pytest.mark.drill
def test_a_store_that_is_away_for_a_minute_during_a_checkpoint_costs_the_run_nothing(
    faulty: FaultyStore, bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    away, over = threading.Event(), threading.Event()

    def fail_for_a_minute(request: Request) -> Fault | None:
        if request.method in ("PUT", "POST") and "/checkpoint_" in request.path and not away.is_set():
            away.set()
            threading.Timer(OUTAGE_S, over.set).start()
        return Fault(status=503, code="ServiceUnavailable") if away.is_set() and not over.is_set() else None

    faulty.rule = fail_for_a_minute
    settings = settings_for(draw_corpus(tmp_path_factory), f"s3://{bucket}/run")
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, settings.model_dump_json()], env=os.environ, capture_output=True, text=True,
        timeout=HANG_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert over.is_set()
    folder = Location(f"s3://{bucket}/run")
    assert json.loads(read_bytes(folder / "model/config.json"))
    # No step was taken twice: no worker was lost.
    lines = [json.loads(line) for line in read_bytes(folder / "progress.jsonl").splitlines()]
    validated = [line["pairs"] for line in lines if "validation" in line]
    assert validated == sorted(set(validated))
    assert validated[-1] == settings.pairs
