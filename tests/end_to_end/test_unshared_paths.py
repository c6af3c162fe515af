"""Jobs on a cluster of two machines, one of which does not see the files of the other: refused before any work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from asap.newsroom import generate
from tests.support.hidden_folder import can_hide_folders, folder_hidden
from tests.support.pictures import draw_jpeg
from tests.support.uploads import upload_folder
from tests.support.waiting import HANG_S

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_hide_folders(), reason="mount namespaces are not allowed here"),
]
_RUN = """
import json, sys
from asap.errors import AsapError
from jobs.annotate.run import annotate
from jobs.annotate.settings import AnnotateSettings
from jobs.evaluate.run import evaluate
from jobs.evaluate.settings import EvaluateSettings
from jobs.scan.run import scan
from jobs.scan.settings import ScanSettings
from jobs.train.run import train
from jobs.train.settings import TrainSettings

jobs = {
    "scan": (scan, ScanSettings), "annotate": (annotate, AnnotateSettings), "evaluate": (evaluate, EvaluateSettings),
    "train": (train, TrainSettings),
}
outcomes = []
for verb, settings in json.load(sys.stdin):
    run, kind = jobs[verb]
    try:
        run(kind(**settings))
        outcomes.append("done")
    except AsapError as error:
        outcomes.append(f"{type(error).__name__}: {error}")
print(json.dumps(outcomes))
"""
"""Runs jobs one after the other, and prints how each of them ended."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of which one machine sees nothing."""
    return tmp_path_factory.mktemp("mine")


@pytest.fixture(scope="module")
def cluster(s3: str, folder: Path) -> Iterator[Cluster]:
    """A cluster of this machine, whose raylet sees all files, and of one that does not see the folder."""
    memory = 100 * 2**20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": memory})
    with folder_hidden(folder):
        cluster.add_node(num_cpus=1, object_store_memory=memory)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def files(folder: Path, model_folder: Path) -> Path:
    """A model, a corpus, an input of a pair, and captions, in the folder."""
    shutil.copytree(model_folder, folder / "model")
    generate(folder / "corpus", pairs=24, seed=5, workers=1, splits=(0.5, 0.25, 0.25))
    (folder / "a.jpg").write_bytes(draw_jpeg(1))
    (folder / "pairs.jsonl").write_text(json.dumps({"id": "a", "image": "a.jpg", "text": "a man smiles"}) + "\n")
    (folder / "captions.json").write_text(json.dumps({"a": "a man"}))
    return folder


def outcomes(cluster: Cluster, *jobs: tuple[str, dict[str, object]]) -> list[str]:
    orders = [(verb, settings | {"address": cluster.address}) for verb, settings in jobs]
    done = subprocess.run(
        [sys.executable, "-c", _RUN], input=json.dumps(orders), capture_output=True, text=True, check=False,
        timeout=HANG_S, env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_each_verb_refuses_what_a_machine_cannot_use_and_writes_nothing(
    cluster: Cluster, files: Path, tmp_path: Path, bucket: str
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    for name in ("a.jpg", "pairs.jsonl", "captions.json"):
        shutil.copy(files / name, shared)
    corpus = upload_folder(files / "corpus", bucket, "corpus")
    there = {"input": str(shared / "pairs.jsonl"), "out": str(shared / "out")}
    captions = {"engine": "precomputed", "source": str(files / "captions.json")}
    small = {"pairs": 8, "batch_size": 8, "model": {"image_size": 32}}

    found = outcomes(
        cluster,
        ("scan", there | {"out": str(files / "out")}),
        ("scan", there | {"model": str(files / "model")}),
        ("scan", there | {"input": str(files / "pairs.jsonl"), "captions": captions}),
        ("annotate", there | {"captions": captions}),
        ("evaluate", {"model": str(files / "model"), "corpus": corpus, "out": str(shared / "evaluated")}),
        ("evaluate", {"model": "demo", "corpus": str(files / "corpus"), "out": str(shared / "evaluated")}),
        ("train", {"corpus": corpus, "out": str(files / "run")} | small),
        ("train", {"corpus": str(files / "corpus"), "out": f"s3://{bucket}/run"} | small),
        ("scan", there | {"device": "cuda"}),
        ("train", {"corpus": corpus, "out": str(shared / "run"), "cpus_per_worker": 64} | small),
        ("evaluate", {"model": "demo", "corpus": corpus, "out": str(files / "evaluated")}),
    )

    gone = "no such file or directory"
    way_out = "at s3://, or in a folder that all machines share."
    for outcome, paths in zip(
        found[:8],
        (
            [f"OUT {files}/out/pairs cannot be written to"],
            [f"--model {files}/model/model.safetensors cannot be read"],
            [f"--captioner {files}/captions.json cannot be read", f"INPUT {files}/a.jpg cannot be read"],
            [f"--captioner {files}/captions.json cannot be read"],
            [f"--model {files}/model/model.safetensors cannot be read"],
            [f"CORPUS {files}/corpus"],
            [f"OUT {files}/run cannot be written to"],
            [f"CORPUS {files}/corpus"],
        ),
        strict=True,
    ):
        assert outcome.startswith("PathNotShared: "), outcome
        assert outcome.endswith(way_out), outcome
        assert all(path in outcome for path in paths), outcome
        assert "of 2 machines: " in outcome
        assert ("it is another folder there" if "OUT" in outcome else gone) in outcome
    assert found[8].startswith("ConfigError: no machine of the cluster holds 1 worker with 0.5 CPUs, 1 GPU, and ")
    assert found[10].startswith(f"PathNotShared: --out {files}/evaluated cannot be written to on 1 ")
    assert found[9].startswith("ConfigError: no machine of the cluster holds 1 worker with 64 CPUs, and it has no au")
    left = {path.name for path in [*shared.iterdir(), *files.iterdir()]}
    assert left == {"a.jpg", "pairs.jsonl", "captions.json", "model", "corpus", "evaluated"}
    assert not [*(shared / "evaluated").iterdir()]


def test_what_lies_in_a_bucket_or_in_a_shared_folder_is_not_refused(
    cluster: Cluster, files: Path, tmp_path: Path, bucket: str
) -> None:
    shutil.copy(files / "a.jpg", tmp_path)
    shutil.copy(files / "pairs.jsonl", tmp_path)
    settings = {
        "input": str(tmp_path / "pairs.jsonl"), "out": str(tmp_path / "out"), "device": "cpu", "detectors": 2,
        "model": upload_folder(files / "model", bucket, "model"),
    }  # fmt: skip
    assert outcomes(cluster, ("scan", settings)) == ["done"]
    summary = json.loads((tmp_path / "out/pairs/summary.json").read_text())
    assert (summary["pairs"], summary["errors"]) == (1, 0)
