"""A scan on a pretended GPU, which any machine can run: Ray counts one, and the detector computes on what exists."""

import gc
import json
import sys
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from jobs.scan.settings import ScanSettings
from jobs.scan.stages.detect import Detection
from tests.support.deadly import Deadly
from tests.support.waiting import HANG_S, wait_until


class _Deadly(Deadly):
    """A deadly detector that expects a GPU and takes any device."""

    def __init__(self, detection: Detection, *others: Any) -> None:
        assert detection.device == "cuda"
        super().__init__(replace(detection, device="auto"), *others)


def _scan_with_one_gpu(settings: ScanSettings) -> dict[str, Any]:
    """Run a scan, wait until the GPU is free again, and return the summary."""
    import ray
    from ray import cloudpickle

    from jobs.cluster import ray_running
    from jobs.scan import pipeline
    from jobs.scan.run import scan

    for module in (__name__, Deadly.__module__):
        cloudpickle.register_pickle_by_value(sys.modules[module])
    pipeline.Detector, pipeline.TRIES = _Deadly, 1  # type: ignore[misc]  # in a process of its own
    gc.disable()  # a program with much in memory rarely collects
    with ray_running(num_cpus=2, num_gpus=1, object_store_memory=300 * 2**20):
        summary = scan(settings)
        wait_until(lambda: ray.available_resources().get("GPU") == 1)
    return summary


@pytest.mark.chaos
@pytest.mark.slow
def test_a_detector_that_dies_leaves_the_only_gpu_to_the_next(corpus: Path, model_folder: Path) -> None:
    records = [{"id": number, "image": f"images/{number % 4}.jpg", "text": "A team"} for number in range(12)]
    records[5]["text"] = "this is poison"
    (corpus / "b.jsonl").write_text("\n".join(map(json.dumps, records)))
    settings = ScanSettings(
        input=str(corpus / "b.jsonl"), out=str(corpus / "out"), model=str(model_folder), batch_size=4
    )
    with get_context("spawn").Pool(1) as process:  # the pool ends the process when the time is up
        summary = process.apply_async(_scan_with_one_gpu, (settings,)).get(HANG_S)
    assert (summary["pairs"], summary["errors"]) == (12, 1)
