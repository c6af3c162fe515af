"""Each verb that can be submitted, as far as tests/end_to_end/test_submit.py does not have it, on a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from asap.newsroom import generate
from asap.storage.location import Location
from asap.weights.model_folder import load_folder
from tests.support.job_cluster import JobCluster, job_cluster
from tests.support.results import read_results
from tests.support.small_run import draw_corpus, settings_for
from tests.support.waiting import HANG_S, wait_until

pytestmark = pytest.mark.drill


@pytest.fixture(scope="module")
def cluster() -> Iterator[JobCluster]:
    with job_cluster() as running:
        yield running


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_corpus(tmp_path_factory)


def finished(cluster: JobCluster, *words: object) -> str:
    """Submit a command, which must succeed, and return its log."""
    done = cluster.asap("submit", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_submitted_annotation_writes_its_captions(cluster: JobCluster, corpus: Path, tmp_path: Path) -> None:
    finished(cluster, "annotate", corpus, "--out", tmp_path / "out", "--caption-engine", "transformers",
             "--captioner", "demo", "--device", "cpu", "--limit", "20")  # fmt: skip
    record = json.loads((tmp_path / "out/job.json").read_text())
    assert (record["state"], record["settings"]["address"]) == ("completed", "auto")
    captions = json.loads((tmp_path / "out/captions.json").read_text())
    assert len(captions) == 20
    # The same command finds the job done.
    log = finished(cluster, "annotate", corpus, "--out", tmp_path / "out", "--caption-engine", "transformers",
                   "--captioner", "demo", "--device", "cpu", "--limit", "20")  # fmt: skip
    assert "the job is finished" in log


def test_a_submitted_training_run_makes_a_model(cluster: JobCluster, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = settings_for(corpus, out)
    changes = [f"{name}={json.dumps(value)}" for name, value in settings.model_dump(exclude_unset=True).items()
               if name not in ("corpus", "out")]  # fmt: skip
    finished(cluster, "train", corpus, "--out", out, *(word for change in changes for word in ("--set", change)))
    assert load_folder(out / "model").model_id.startswith("small@")
    assert json.loads(cluster.asap("status", out, "--json").stdout)["state"] == "completed"


def test_a_submitted_calibration_writes_a_policy(cluster: JobCluster, tmp_path: Path) -> None:
    generate(tmp_path / "labeled", pairs=400, seed=11, workers=1, splits=(0.05, 0.9, 0.05))
    kept = ("face_swap", "face_attribute", "text_swap", "text_attribute", "word")
    log = finished(
        cluster, "calibrate", "demo", tmp_path / "labeled", "--out", tmp_path / "policy.json", "--device", "cpu",
        "--precision", "0.6", "--prevalence", "0.4", *(word for name in kept for word in ("--keep", name)),
    )  # fmt: skip
    policy = json.loads((tmp_path / "policy.json").read_text())
    assert policy["calibration"]["pairs"] > 300
    assert str(tmp_path / "policy.json") in log
    # It is refused in seconds where the cluster has no GPU and nothing adds machines.
    refused = cluster.asap("submit", "calibrate", "demo", tmp_path / "labeled", "--out", tmp_path / "other.json",
                           "--device", "cuda", "--precision", "0.6", "--prevalence", "0.4")  # fmt: skip
    assert refused.returncode == 1
    assert "1 worker with 1 GPU" in refused.stdout


def test_a_cancelled_job_is_resumed_from_its_record(cluster: JobCluster, corpus: Path, tmp_path: Path) -> None:
    scan = ["scan", corpus / "metadata/train.json", "--out", tmp_path, "--job", "one", "--device", "cpu",
            "--batch-size", "1", "--set", "write_every_s=0.1", "--allow-unfamiliar"]  # fmt: skip
    folder = tmp_path / "one"
    with cluster.start("submit", *scan) as process:
        wait_until(lambda: len(list((folder / "results").glob("*.parquet"))) > 0, process=process)
        cancelled = cluster.asap("cancel", folder, "--wait", str(HANG_S))
        assert "is cancelled" in cancelled.stdout, cancelled.stderr
        process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    before = len(read_results(Location(str(folder))))
    finished(cluster, "resume", folder)
    record = json.loads((folder / "job.json").read_text())
    assert (record["state"], record["runs"]) == ("completed", 2)
    rows = [row["row_id"] for row in read_results(Location(str(folder)))]
    assert len(set(rows)) == len(rows) == record["manifest"]["rows"] > before
