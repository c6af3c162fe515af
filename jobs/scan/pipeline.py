"""The chain of Ray Data that judges a manifest: read, prepare, caption, detect, write.

A block is a batch from end to end: the manifest is read in blocks of `batch_size` rows, and each stage takes a
block and makes one. Of a manifest so long that there would be too many, blocks are longer, and stages take them in
batches. Every stage asks for a fraction of a CPU, so that all of them fit beside each other on a small machine.

The chain knows nothing of rows that are done: a job that is resumed gives it a manifest of the others. Ray's own
checkpoint would filter behind the reading, and `override_num_blocks` splits what the filter makes too: blocks of 64
rows become 64 blocks of one.
"""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import ray
from ray.data import ActorPoolStrategy, DataContext

from asap.preprocessing.images import ImageLimits
from asap.storage.location import Location
from asap.storage.s3 import filesystem
from jobs.cluster import wait_for_resources
from jobs.scan.input.manifest import ROWS_PER_FILE
from jobs.scan.settings import CaptionSettings, ScanSettings
from jobs.scan.stages.caption import CaptionStage
from jobs.scan.stages.detect import Detection, Detector
from jobs.scan.stages.prepare import Preparation, prepare_batch
from jobs.scan.stages.result_rows import RESULT_SCHEMA

_READ_CPUS = _WRITE_CPUS = 0.1
TRIES = 3
"""Of a batch whose process dies."""
_MOST_BLOCKS = 50_000
"""Of a dataset: Ray keeps something of each in the memory of the driver."""


@dataclass(frozen=True)
class StageResources:
    """What one stage takes of the machines."""

    cpus: float
    gpus: float = 0
    size: int | None = None
    """Tasks or actors at a time; None lets Ray decide, and a cluster grow."""
    ahead: int | None = None
    """Batches that wait at an actor; a process that dies takes them with it. None: as many as Ray finds best."""


@dataclass(frozen=True)
class ScanPipeline:
    """Everything that the stages need to know."""

    preparation: Preparation
    detection: Detection
    captions: CaptionSettings | None
    input: Location
    batch_size: int
    rows_per_file: int
    prepare: StageResources
    caption: StageResources
    detect: StageResources
    lost_batches: int = 16
    """Batches whose process dies again and again. More, and it is not the rows that are at fault: the job stops."""

    def one_row_at_a_time(self) -> ScanPipeline:
        """The same for rows whose batch was lost: each by itself, so that the culprit takes no other with it."""
        caption, detect = (replace(resources, ahead=1) for resources in (self.caption, self.detect))
        return replace(self, batch_size=1, lost_batches=128, caption=caption, detect=detect)


def size_pipeline(
    settings: ScanSettings, model: str, image_size: int, rows: int, tell: Callable[[str], None] = lambda note: None
) -> ScanPipeline:
    """A chain for the Ray that runs. Raises `ConfigError` where it has no GPU and brings none, and one was asked for.

    `tell` gets a sentence where a cluster is waited for.
    """
    machines = ray.cluster_resources()
    on_gpu = settings.device.startswith("cuda") or (settings.device == "auto" and machines.get("GPU", 0) > 0)
    resources = _gpu_resources(settings) if on_gpu else _cpu_resources(settings, int(machines.get("CPU", 1)))
    if on_gpu:
        _await_gpus(settings, resources.detect, tell)
    limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
    device, batch_size = "cuda" if on_gpu else "cpu", settings.batch_size or (256 if on_gpu else 64)
    captions = settings.captions
    thumbnail_side = captions.max_side if captions and captions.engine == "transformers" else None
    return ScanPipeline(
        preparation=Preparation(image_size, limits, settings.fetch, thumbnail_side),
        detection=Detection(model, device, settings.precision, resources.threads, batch_size),
        captions=captions,
        input=Location.parse(settings.input),
        batch_size=batch_size,
        rows_per_file=settings.rows_per_file or min(100_000, max(512, rows // 200)),
        prepare=resources.prepare,
        caption=resources.caption,
        detect=resources.detect,
    )


def _await_gpus(settings: ScanSettings, detect: StageResources, tell: Callable[[str], None]) -> None:
    """Where detectors are to have GPUs: `cluster.wait_for_resources` for all that were asked for, or for the first."""
    detectors = settings.detectors or 1
    wait_s = settings.wait_for_machines_s if settings.address else 0
    way_out = "give fewer --detectors" if detectors > 1 else "--device auto takes what there is"
    wait_for_resources({"CPU": detect.cpus, "GPU": detect.gpus}, detectors, wait_s, tell, way_out)


class _Resources(NamedTuple):
    prepare: StageResources
    caption: StageResources
    detect: StageResources
    threads: int | None
    """Of a detector on a CPU."""


def _gpu_resources(settings: ScanSettings) -> _Resources:
    """A detector a GPU, which it shares with a captioner that needs one; the CPUs prepare."""
    captions = settings.captions is not None and settings.captions.engine == "transformers"
    detect = StageResources(0.5, 0.5 if captions else 1, settings.detectors)
    return _Resources(StageResources(0.25), StageResources(0.1, 0.5 if captions else 0, 1), detect, None)


def _cpu_resources(settings: ScanSettings, cpus: int) -> _Resources:
    """Detectors whose threads together are as many as the CPUs. On one machine, half as many tasks prepare."""
    detectors = settings.detectors or max(1, cpus // 2)
    prepare = StageResources(0.25, size=None if settings.address else max(1, cpus // 2))
    detect = StageResources(0.4 * cpus / detectors, size=detectors)
    return _Resources(prepare, StageResources(0.1, size=1), detect, max(1, cpus // detectors))


def run_pipeline(pipeline: ScanPipeline, manifest: Location, rows: int, results: Location, counter: Any) -> None:
    """Judge every row of `manifest`, which has `rows` of them, and add what comes out to `results`.

    Rows are left out of the results if their process died each time; the caller finds them and runs them
    `one_row_at_a_time`.
    """
    blocks = _blocks(rows, pipeline.batch_size)
    batches = {"batch_size": None if blocks <= _MOST_BLOCKS else pipeline.batch_size,
               "batch_format": "pyarrow", "zero_copy_batch": True}  # fmt: skip
    with _context(pipeline.lost_batches):
        pairs = _read(manifest, min(blocks, _MOST_BLOCKS))
        prepared = pairs.map_batches(
            prepare_batch, fn_kwargs={"preparation": pipeline.preparation}, **_tasks(pipeline.prepare), **batches
        )
        # Without the check of `map_batches`, which refuses whole blocks as batches where a GPU works on them.
        if pipeline.captions:
            captioner = pipeline.captions, pipeline.input, pipeline.detection.device
            prepared = prepared.map_batches_internal(
                CaptionStage, fn_constructor_args=captioner, **_actors(pipeline.caption), **batches
            )
        judged = prepared.map_batches_internal(
            Detector, fn_constructor_args=(pipeline.detection, counter), **_actors(pipeline.detect), **batches
        )
        _write(judged, results, pipeline.rows_per_file)


def _blocks(rows: int, batch_size: int) -> int:
    """Of so many rows at most; Ray makes as many of each file, however long it is."""
    files = math.ceil(rows / ROWS_PER_FILE)
    return files * math.ceil(min(rows, ROWS_PER_FILE) / batch_size)


def _tasks(resources: StageResources) -> dict[str, Any]:
    return {"num_cpus": resources.cpus, "concurrency": resources.size, "max_retries": TRIES - 1}


def _actors(resources: StageResources) -> dict[str, Any]:
    bounds = {"size": resources.size} if resources.size else {"min_size": 1}
    pool = ActorPoolStrategy(**bounds, max_tasks_in_flight_per_actor=resources.ahead)
    options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus or None, "compute": pool}
    return options | {"max_restarts": -1, "max_task_retries": TRIES - 1}


def _read(manifest: Location, blocks: int) -> ray.data.Dataset:
    system, path = filesystem(manifest)
    return ray.data.read_parquet(
        path,
        filesystem=system,
        override_num_blocks=max(1, blocks),
        num_cpus=_READ_CPUS,
    )


def _write(judged: ray.data.Dataset, results: Location, rows_per_file: int) -> None:
    system, path = filesystem(results)
    judged.write_parquet(
        path,
        filesystem=system,
        schema=RESULT_SCHEMA,
        min_rows_per_file=rows_per_file,
        ray_remote_args={"num_cpus": _WRITE_CPUS},
    )


@contextmanager
def _context(lost_batches: int) -> Iterator[None]:
    """Ray Data's settings for this chain, and then as they were."""
    context = DataContext.get_current()
    former = context.max_errored_blocks
    context.max_errored_blocks = lost_batches
    try:
        with warnings.catch_warnings():
            # Bounds on tries have no named parameter yet; pyproject.toml keeps to the Ray that takes them this way.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            yield
    finally:
        context.max_errored_blocks = former
        # Of a chain that lost a process, Ray Data leaves the actors in a cycle of references, and they keep their GPUs.
        gc.collect()
