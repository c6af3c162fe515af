"""A captioner that only the workers of a cluster have: neither the driver nor the head could run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from jobs.annotate.settings import AnnotateSettings
from tests.support.tiny_captioners import WORDS, save_encoder_decoder
from tests.support.waiting import HANG_S

CODE = (
    "import sys; from jobs.annotate.settings import AnnotateSettings; from jobs.annotate.run import annotate; "
    "annotate(AnnotateSettings.model_validate_json(sys.argv[1]), lambda progress: print(progress.stage, flush=True))"
)
CAPTIONER = "/proc/self/cwd/captioner"
"""An absolute path that each process finds in the folder where it runs: machines that do not share a disk."""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of one head without CPUs, and a machine in whose folder the captioner is."""
    save_encoder_decoder(tmp_path / "worker/captioner")
    head = {"num_cpus": 0, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    monkeypatch.chdir(tmp_path / "worker")
    cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)
    monkeypatch.chdir(tmp_path)
    yield cluster
    cluster.shutdown()


def _annotate(cluster: Cluster, folder: Path, captioner: str, out: str) -> subprocess.CompletedProcess[str]:
    settings = AnnotateSettings(
        input=str(folder / "pairs.jsonl"), out=str(folder / out), address=cluster.address, device="cpu",
        captions={"engine": "transformers", "source": captioner, "max_new_tokens": 4},  # type: ignore[arg-type]
    )  # fmt: skip
    command = [sys.executable, "-c", CODE, settings.model_dump_json()]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False
    )


@pytest.mark.slow
def test_a_captioner_is_tried_and_used_where_it_is(
    cluster: Cluster, tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"id": "0", "image": "0.jpg", "text": "t"}))
    assert not (tmp_path / "captioner").exists()
    done = _annotate(cluster, tmp_path, CAPTIONER, "out")
    assert done.returncode == 0, done.stderr
    assert f"the captioner {CAPTIONER} describes a gray picture on " in done.stdout
    caption = pq.read_table(tmp_path / "out/annotations")["caption"][0].as_py()
    assert set(caption.split()) <= set(WORDS)
    record = json.loads((tmp_path / "out/job.json").read_text())["engines"]["caption"]
    assert record["fingerprint"] == CAPTIONER
    assert set(record["wrote"].split()) <= set(WORDS)

    gone = _annotate(cluster, tmp_path, f"{CAPTIONER}-gone", "nothing")
    assert gone.returncode != 0
    assert f"the captioner {CAPTIONER}-gone is not a model folder: it has no config.json. This is so on" in gone.stderr
    assert not (tmp_path / "nothing").exists()
