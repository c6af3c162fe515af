"""The Ray Data pipeline that turns a manifest into results: prepare, caption, explain, detect.

Writers take the rows. A block of a short manifest is one batch from end to end: a task reads and prepares `batch_size`
rows, and each stage takes a block and makes one. A block costs the driver the same CPU time whatever is in it, so the
blocks of a long manifest have several batches, up to a bound in bytes, and the stages take them in batches. Rows of a
block that is lost with its process are run again in blocks of one batch, because few rows are left then.

Every stage asks for a fraction of a CPU, so that all of them fit beside each other on a small machine.

On a cluster, pools without a fixed size follow the machines and the share of the job (`pools.py`).

The pipeline knows nothing of rows that are done: a resumed job gives it a manifest of the missing rows.
"""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, Self

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from asap.errors import StorageError
from asap.storage.location import Location
from jobs.cluster import choose_gpus, machines_alive, wait_for_resources, wait_until_free
from jobs.descriptions.loading import is_small, located
from jobs.descriptions.settings import DescriptionSettings
from jobs.descriptions.vllm_engine import HELPER_CPUS, Placement, add_vllm_stages
from jobs.metrics import PairMetrics
from jobs.scan.pools import claim_of, pools_following
from jobs.scan.settings import ScanSettings
from jobs.scan.stages.describe import DescriptionStage, ask_batch
from jobs.scan.stages.detect import Detection, Detector
from jobs.scan.stages.prepare import Preparation
from jobs.scan.stages.read import PreparedPairs
from jobs.scan.stages.result_rows import RESULTS
from jobs.scan.stages.reuse import Reuse
from jobs.scan.stages.row_shape import RowShape
from jobs.scan.stages.write import Writers
from jobs.stops import in_background

_POLL_S = 0.5
_LAST_WRITE_S = 2.4
"""Seconds for the last rows to be written when a job is stopped: Ray's Jobs API kills a job after three."""
TRIES = 3
"""Tries of a batch whose process dies."""
BLOCK_BYTES = 2**27
"""Bytes of pixels in a block of a long manifest, which is what Ray Data takes for a large block."""
STAGED_BATCHES = 2
"""Batches of a detector with a GPU: one is staged, or becomes results, while the model has the other."""
LOST_BATCHES, LOST_ROWS = 16, 128
"""Batches that may be lost before a job stops, and rows that travel alone."""


@dataclass(frozen=True)
class StageResources:
    """Resources of one stage."""

    cpus: float
    gpus: float = 0
    size: int | None = None
    """Number of tasks or actors at a time. None lets Ray decide, and lets a cluster grow."""
    ahead: int | None = None
    """Batches that wait at an actor; they are lost with its process. None: as many as Ray finds best."""
    at_a_time: int = 1
    """Batches that an actor works on at a time, each in a thread."""

    @property
    def needs(self) -> dict[str, float]:
        """Resources of one task or actor, as Ray names them."""
        return {"CPU": self.cpus, "GPU": self.gpus}


AFTER_VLLM = StageResources(0.1)
"""Resources of the stage that takes what vLLM's stages have written."""


def vllm_pools(settings: DescriptionSettings, resources: StageResources) -> tuple[StageResources, ...]:
    """Return the resources of all stages of vLLM, and of the stage after them."""
    helpers = 2 if settings.kind == "caption" else 1  # pictures, and chat templates
    return (resources, *[StageResources(HELPER_CPUS)] * helpers, AFTER_VLLM)


def vllm_placement(resources: StageResources, prepare: StageResources, batch_size: int) -> Placement:
    """Return the place of vLLM's stages in a pipeline."""
    return Placement(batch_size, resources.cpus, resources.size, prepare.cpus, TRIES, resources.ahead == 1)


@dataclass(frozen=True)
class Writing:
    """The writers of results."""

    rows_per_file: int
    every_s: float
    patience_s: float
    writers: int = 1


class RowPipeline(Protocol):
    """A pipeline over the rows of a manifest, whose last stage hands its rows to the writers."""

    @property
    def shape(self) -> RowShape:
        """The shape of the rows that it writes."""

    @property
    def preparation(self) -> Preparation:
        """How rows of the manifest are prepared, which is the first stage."""

    @property
    def batch_size(self) -> int:
        """Rows that travel together."""

    @property
    def block_bytes(self) -> int | None:
        """Bytes of pixels in a block of a long manifest. None: a block is one batch, however many there are."""

    @property
    def writing(self) -> Writing:
        """The writers."""

    @property
    def prepare(self) -> StageResources:
        """Resources of the first stage."""

    @property
    def pools(self) -> tuple[StageResources, ...]:
        """Resources of the other stages, which are pools of actors."""

    @property
    def on_cluster(self) -> bool:
        """True if machines may come and go, and other jobs may share them."""

    @property
    def lost_batches(self) -> int:
        """Batches that may be lost because their process dies each time, before the job stops."""

    def patient(self) -> Self:
        """Return the pipeline for rows whose pictures were too slow for their batches: it waits for each of them."""

    def one_row_at_a_time(self) -> Self:
        """Return the pipeline for rows of lost batches: each row alone, so that the culprit takes no other with it."""

    def without_an_engine(self) -> tuple[Self, ...]:
        """Return pipelines for rows that end their process alone too, in the order to try them.

        Each leaves out one engine of descriptions, which may be what ends the process. A row that it finishes lacks
        that description only.
        """

    def add_stages(self, prepared: Dataset, counter: Any, writers: Sequence[Any], batches: dict[str, Any]) -> Dataset:
        """Return the dataset with the stages after the first. The rows of its last stage are the sizes of batches.

        Args:
            prepared: The dataset of prepared rows.
            counter: The actor that counts finished rows.
            writers: The actors that take rows over.
            batches: The options of Ray Data that decide how rows are batched.
        """


@dataclass(frozen=True)
class Describer:
    """The stage of an engine that captions pictures or explains texts."""

    settings: DescriptionSettings
    resources: StageResources
    threads: int | None = None
    """Threads of a model on a CPU. None: torch decides."""
    content: str | None = None
    """Fingerprint of the engine's files, which must be the same on every machine. None: not compared."""
    is_left_out: bool = False
    """True for rows that ended the process of this engine: their descriptions are errors."""

    @property
    def has_stages(self) -> bool:
        """True if stages of vLLM describe, before this stage gets the rows."""
        return self.settings.engine == "vllm" and not self.is_left_out

    @property
    def pools(self) -> tuple[StageResources, ...]:
        """Resources of this stage, and of those of vLLM before it."""
        return vllm_pools(self.settings, self.resources) if self.has_stages else (self.resources,)


@dataclass(frozen=True)
class ScanPipeline:
    """The pipeline of a scan (`RowPipeline`): everything that its stages need to know."""

    preparation: Preparation
    detection: Detection
    describers: tuple[Describer, ...]
    """The captioner and the explainer, or those of them that there are."""
    input: Location
    batch_size: int
    writing: Writing
    prepare: StageResources
    detect: StageResources
    lost_batches: int = LOST_BATCHES
    """Batches that may be lost because their process dies each time. With more, the rows are not the cause: the job
    stops."""
    block_bytes: int | None = BLOCK_BYTES
    shape: RowShape = RESULTS
    on_cluster: bool = False
    reuse: Reuse | None = None
    """Where detectors find pairs that were judged before. None: every pair is judged."""

    @property
    def pools(self) -> tuple[StageResources, ...]:
        """Resources of the captioners and explainers, if there are any, and of the detectors."""
        return (*(pool for describer in self.describers for pool in describer.pools), self.detect)

    def patient(self) -> ScanPipeline:
        """Return the pipeline for rows whose pictures were too slow for their batches: it waits for each of them."""
        return replace(self, preparation=self.preparation.patient(self.batch_size))

    def one_row_at_a_time(self) -> ScanPipeline:
        """Return the pipeline for rows of lost batches: each row alone, so that the culprit takes no other with it."""
        describers = tuple(replace(each, resources=replace(each.resources, ahead=1)) for each in self.describers)
        detect = replace(self.detect, ahead=1, at_a_time=1)
        alone = replace(self.patient(), batch_size=1, block_bytes=None, lost_batches=LOST_ROWS)
        return replace(alone, describers=describers, detect=detect)

    def without_an_engine(self) -> tuple[ScanPipeline, ...]:
        """Return a pipeline without each engine, the later first; see `RowPipeline.without_an_engine`."""
        return tuple(
            replace(self, describers=tuple(replace(each, is_left_out=each is suspect) for each in self.describers))
            for suspect in reversed(self.describers)
        )

    def add_stages(self, prepared: Dataset, counter: Any, writers: Sequence[Any], batches: dict[str, Any]) -> Dataset:
        """Add the captioner and the explainer, if there are any, and the detectors; see `RowPipeline.add_stages`."""
        device, job = self.detection.device, self.detection.job
        for each in self.describers:
            options, whole_blocks = actor_options(each.resources), batches
            if each.has_stages:
                placement = vllm_placement(each.resources, self.prepare, self.batch_size)
                asks = partial(ask_batch, settings=each.settings)
                prepared = add_vllm_stages(prepared, asks, each.settings, placement, each.content)
                # Ray may have joined batches on the way, so the stages that follow divide them again.
                options, whole_blocks = actor_options(AFTER_VLLM), batches | {"batch_size": None}
                batches = batches | {"batch_size": self.batch_size}
            engine = each.settings, self.input, device, job, each.threads, each.is_left_out, each.content
            prepared = prepared.map_batches_internal(
                DescriptionStage, fn_constructor_args=engine, **options, **whole_blocks
            )
        detector = self.detection, counter, writers, self.reuse
        return prepared.map_batches_internal(
            Detector, fn_constructor_args=detector, **actor_options(self.detect), **batches
        )


def size_pipeline(
    settings: ScanSettings,
    model: str,
    image_size: int,
    rows: int,
    notify: Callable[[str], None] = lambda note: None,
    run_id: str | None = None,
    *,
    with_captions: bool = True,
) -> ScanPipeline:
    """Return a pipeline for the Ray that runs.

    Raises `ConfigError` if the machines cannot hold the detectors, and do not grow in time; `JobError` if they can, but
    other jobs hold them for too long.

    Args:
        settings: Settings of the scan.
        model: The model's absolute folder, or `demo`.
        image_size: Side of the model's square images, in pixels.
        rows: Rows of the manifest.
        notify: Receives a sentence before a wait for the cluster.
        run_id: Id of the run, which the rows name.
        with_captions: False for pairs that are captioned and explained later, if the settings have an engine at all.
    """
    engines = {kind: located(engine) for kind, engine in settings.describers.items()} if with_captions else {}
    resources, device = find_room(settings, engines, notify)
    batch_size = settings.batch_size_on(device)
    at_a_time = {kind: engine.batches_at_a_time(batch_size) for kind, engine in engines.items()}
    captions = engines.get("caption")
    thumbnail_side = captions.max_side if captions and captions.sees_pictures else None
    job = settings.job_folder.name
    return ScanPipeline(
        preparation=Preparation(
            image_size,
            settings.image_limits,
            settings.fetch,
            thumbnail_side,
            settings.slow_picture_s,
            PairMetrics("scan", job),
            leaves_textless=settings.captions is not None and settings.captions_late and not with_captions,
        ),
        detection=Detection(
            model, device, settings.precision, resources.threads, batch_size, settings.min_text_read, job, run_id
        ),
        describers=tuple(
            Describer(
                engine,
                replace(resources.describe[kind], at_a_time=at_a_time[kind]),
                resources.describe_threads if engine.engine == "transformers" else None,
            )
            for kind, engine in engines.items()
        ),
        input=Location.parse(settings.input),
        batch_size=batch_size,
        # Beside a captioner the driver's time is nothing, and a long block would wait for one actor.
        block_bytes=None if engines else BLOCK_BYTES,
        writing=Writing(
            settings.rows_per_file or min(100_000, max(512, rows // 200)),
            settings.write_every_s,
            settings.write_patience_s,
            writers=max(1, int(sum(machine.get("GPU", 0) for machine in machines_alive())) // 8),
        ),
        prepare=resources.prepare,
        # A process that dies takes all its batches with it.
        lost_batches=LOST_BATCHES * max([resources.detect.at_a_time, *at_a_time.values()]),
        detect=resources.detect,
        on_cluster=settings.address is not None,
    )


class Room(NamedTuple):
    """The place of a scan on its machines."""

    shares: Shares
    device: str
    """Device of the models, `cuda` or `cpu`."""


def find_room(
    settings: ScanSettings, engines: Mapping[str, DescriptionSettings], notify: Callable[[str], None]
) -> Room:
    """Divide the machines of the Ray that runs among the stages, and wait until they are free.

    The arguments and errors are those of `size_pipeline`; `engines` are those of this pipeline, by what they write.
    """
    wait_s = settings.wait_for_machines_s if settings.address else 0
    on_gpu = settings.needs_gpu or choose_gpus(settings.device, notify, is_cluster=settings.address is not None)
    if not on_gpu:
        # The head of a cluster may have no CPUs, until an autoscaler adds machines.
        advice = "Add a machine with CPUs."
        wait_for_resources({"CPU": 1}, 1, wait_s, notify, advice, waits_for_people=settings.waits_for_people)
    machines = [machine.get("CPU", 0) for machine in machines_alive()]
    models = [engine for engine in engines.values() if engine.engine == "transformers"]
    small = bool(models) and all(is_small(engine) for engine in models)
    shares = size_stages(settings, engines, machines, on_gpu=on_gpu, small=small)
    _wait_for_stages(settings, shares, on_gpu, wait_s, notify)
    return Room(shares, "cuda" if on_gpu else "cpu")


def _wait_for_stages(
    settings: ScanSettings, resources: Shares, on_gpu: bool, wait_s: float, notify: Callable[[str], None]
) -> None:
    """Wait until the stages fit into the machines, and other jobs leave them. Ray would wait for ever, in silence."""
    # The first detector is enough to start, unless more GPUs are requested.
    detectors = (settings.detectors or 1) if on_gpu else 1
    needs = {"CPU": resources.detect.cpus} | ({"GPU": resources.detect.gpus} if on_gpu else {})
    if detectors > 1:
        advice = "Give fewer --detectors."
    else:
        advice = (
            "Use --device auto to run on what exists." if on_gpu else "Give more --detectors, which need less each."
        )
    # One task of each other stage runs beside the detectors. A process of vLLM has whole GPUs, on any machine.
    whole = [each.needs for each in resources.describe.values() if each.gpus >= 1]
    others = [each for each in resources.describe.values() if each.gpus < 1]
    beside = {"CPU": resources.prepare.cpus + sum(each.cpus for each in others)}
    if gpus := sum(each.gpus for each in others):
        beside["GPU"] = gpus
    wait = partial(wait_for_resources, waits_for_people=settings.waits_for_people)
    wait_for_engines(whole, wait, wait_s, notify)
    wait(needs, detectors, wait_s, notify, advice)
    if settings.captioner_cpus and resources.describe:
        advice = "Lower --set captioner_cpus=N."
        wait(beside, 1, wait_s, notify, advice)
    advice = VLLM_ADVICE if whole else advice
    if settings.address is None:  # nobody adds a machine on which the rest would fit
        bundles = [*[needs] * detectors, beside, *whole]
        kinds = dict.fromkeys(kind for bundle in bundles for kind in bundle)
        both = {kind: round(sum(bundle.get(kind, 0) for bundle in bundles), 4) for kind in kinds}
        wait(both, 1, 0, notify, advice)
    wait_until_free(needs, detectors, settings.wait_for_machines_s, notify, beside=beside, others=whole)


VLLM_ADVICE = (
    "Each process of the engine vllm has whole GPUs of its own, of one machine. Add GPUs, give it fewer (vllm.gpus), "
    "or use another engine."
)


def wait_for_engines(
    whole: Sequence[dict[str, float]], wait: Callable[..., Any], wait_s: float, notify: Callable[[str], None]
) -> None:
    """Wait until the machines can hold the processes of vLLM together, by `wait`, which is `wait_for_resources`."""
    for needs in whole:
        same = sum(each == needs for each in whole)
        wait(needs, same, wait_s, notify, VLLM_ADVICE)


class Shares(NamedTuple):
    """The resources of the stages."""

    prepare: StageResources
    describe: dict[str, StageResources]
    """Resources of the captioner and the explainer, by what they write."""
    detect: StageResources
    threads: int | None = None
    """Threads of a detector on a CPU."""
    describe_threads: int | None = None
    """Threads of a captioner or an explainer with a model on a CPU."""


def size_stages(
    settings: ScanSettings,
    engines: Mapping[str, DescriptionSettings],
    machines: Sequence[float],
    *,
    on_gpu: bool,
    small: bool = False,
) -> Shares:
    """Divide the machines among the stages.

    On a cluster, the stages are sized for one machine, and as many of each run as the machines carry at any time. On
    one machine, their numbers are fixed.

    Args:
        settings: Settings of the scan.
        engines: The captioner and the explainer of this pipeline, by what they write.
        machines: The CPUs of each machine.
        on_gpu: True if the models run on GPUs.
        small: True if the models of captioner and explainer are small (`is_small`).
    """
    # Endpoints and files need neither a GPU nor cores: their actors wait for others.
    models = [kind for kind, engine in engines.items() if engine.engine == "transformers"]
    waiting = StageResources(settings.captioner_cpus or 0.1, size=settings.captioners or 1)
    if on_gpu:
        # One detector a GPU, which it shares with the models that caption and explain. The CPUs prepare.
        gpus = settings.captioner_gpus if models else 0
        gpu = round(1 - gpus, 4) if gpus else 1
        detect = StageResources(0.5, gpu, settings.detectors, at_a_time=STAGED_BATCHES)
        model = StageResources(waiting.cpus, gpus / max(1, len(models)), settings.captioners)
        describe = {kind: model if kind in models else waiting for kind in engines}
        describe |= {
            kind: StageResources(settings.captioner_cpus or 1, engine.gpus, settings.captioners)
            for kind, engine in engines.items()
            if engine.gpus
        }
        return Shares(StageResources(0.25), describe, detect)
    grows = settings.address is not None
    cpus = max(1, int(max(machines, default=1)))  # of the largest machine
    # On one machine, tasks on half of the CPUs prepare.
    prepare = StageResources(0.25, size=None if grows else max(1, cpus // 2))
    # A model that describes takes whatever threads it gets. One large model, or small ones with a thread each, have
    # half of them, which leaves a quarter for the detectors and a quarter for decoding. Without one, the detectors
    # together have one thread per CPU.
    detectors, parts = max(1, cpus // (4 if models else 2)), 4 if models else 1
    a_detector = cpus_of_each(settings.detectors, machines) or cpus / detectors
    threads = max(1, int(a_detector / parts))
    detect = StageResources(0.375 * a_detector, size=settings.detectors or (None if grows else detectors))
    if not models:
        return Shares(prepare, dict.fromkeys(engines, waiting), detect, threads)
    many = small and settings.captioner_cpus is None
    a_captioner = cpus_of_each(settings.captioners, machines) or (min(2, cpus) if many else cpus)
    captioners = settings.captioners or (None if grows else max(1, int(cpus // a_captioner)))
    # Two models share what one would have.
    model = StageResources(settings.captioner_cpus or 0.3 * a_captioner / len(models), size=captioners)
    # An actor that waits beside a model takes less, so that all stages fit on a machine with one CPU.
    beside = replace(waiting, cpus=settings.captioner_cpus or 0.05)
    describe = {kind: model if kind in models else beside for kind in engines}
    describe_threads = max(1, int(settings.captioner_cpus or a_captioner / 2 / len(models)))
    return Shares(prepare, describe, detect, threads, describe_threads)


def cpus_of_each(workers: int | None, machines: Sequence[float]) -> float | None:
    """Return the equal part of so many workers of all CPUs, at most the largest machine. None: no number is given."""
    return None if workers is None else min(max(1, sum(machines)) / workers, max([1, *machines]))


def run_pipeline(
    pipeline: RowPipeline,
    manifest: Location,
    results: Location,
    counter: Any,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Run every row of `manifest` through the stages, and add the result rows to `results`.

    A row is left out of the results if its process died each time, or if its picture was slow. The caller finds such
    rows and runs them `one_row_at_a_time`, or through the `patient` pipeline.

    Args:
        pipeline: The pipeline.
        manifest: Folder of parquet files of `MANIFEST_SCHEMA`.
        results: Folder that the results files are added to.
        counter: The actor that counts finished rows, of `stages.progress.start_counter`.
        check: Called twice a second; what it raises stops the work.
    """
    writing = pipeline.writing
    writers = Writers(results, writing.rows_per_file, writing.every_s, writing.writers)
    try:
        with data_context(pipeline.lost_batches), _pools_of(pipeline):
            dataset = _build(pipeline, manifest, writers, counter)
            with in_background(partial(_execute, dataset)) as execution:
                while not execution.wait(_POLL_S):
                    check()
                    if failure := writers.failure(writing.patience_s):
                        raise StorageError(failure)
        writers.finish(writing.patience_s)
    except BaseException:
        # A stop comes here too. What was judged is written, unless that would hold up the stop.
        with suppress(StorageError, ray.exceptions.RayError):
            writers.close(_LAST_WRITE_S)
        raise
    finally:
        writers.stop()


def _execute(dataset: Dataset, is_stopped: threading.Event) -> None:
    """Execute a dataset whose rows go to the writers, until its end or a stop."""
    for _ in dataset.iter_internal_ref_bundles():
        if is_stopped.is_set():
            return  # the end of the iterator ends the execution


def _build(pipeline: RowPipeline, manifest: Location, writers: Writers, counter: Any) -> Dataset:
    """Return the stages of a pipeline as a dataset, whose rows are the sizes of the batches."""
    source = PreparedPairs(manifest, pipeline.batch_size, pipeline.preparation, counter, pipeline.block_bytes)
    tasks = {"num_cpus": pipeline.prepare.cpus, "ray_remote_args": {"max_retries": TRIES - 1}}
    prepared = ray.data.read_datasource(
        source, concurrency=pipeline.prepare.size, override_num_blocks=len(source.tasks), **tasks
    )
    # A task of several batches makes longer blocks.
    batches = {"batch_size": None if source.is_one_batch_a_task else pipeline.batch_size,
               "batch_format": "pyarrow", "zero_copy_batch": True}  # fmt: skip
    # `map_batches` would refuse whole blocks as batches if a GPU works on them; `map_batches_internal` does not.
    return pipeline.add_stages(prepared, counter, writers.handles, batches)


def actor_options(resources: StageResources) -> dict[str, Any]:
    """Return the options of a stage of actors: its pool, its resources, and restarts without a bound."""
    bounds = {"size": resources.size} if resources.size else {"min_size": 1}
    pool = ActorPoolStrategy(
        **bounds,
        max_tasks_in_flight_per_actor=resources.ahead,
        max_concurrent_calls_per_actor=resources.at_a_time,
        enable_true_multi_threading=resources.at_a_time > 1,
    )
    options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus or None, "compute": pool}
    return options | {"max_restarts": -1, "max_task_retries": TRIES - 1}


def _pools_of(pipeline: RowPipeline) -> AbstractContextManager[None]:
    """Make the pools of a pipeline follow a cluster. On one machine that nobody shares, they stay as they are."""
    if not pipeline.on_cluster:
        return nullcontext()
    return pools_following(claim_of(pipeline.prepare, pipeline.pools), pipeline.prepare.cpus)


@contextmanager
def data_context(lost_batches: int) -> Iterator[None]:
    """Apply Ray Data's settings for this pipeline, and restore the former ones afterwards."""
    context = DataContext.get_current()
    former = context.max_errored_blocks
    context.max_errored_blocks = lost_batches
    try:
        with warnings.catch_warnings():
            # Bounds on tries have no named parameter yet; pyproject.toml pins the Ray that takes them this way.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            yield
    finally:
        context.max_errored_blocks = former
        # After a process died, Ray Data leaves the actors in a cycle of references, and they keep their GPUs.
        gc.collect()
