"""The stages of a job of annotations: rows are prepared, captioned, and explained; the last stage hands them over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ray.data import Dataset

from asap.storage.location import Location
from jobs.annotate.known import read_known, start_known
from jobs.annotate.requests import preparation_of
from jobs.annotate.rows import ANNOTATIONS
from jobs.annotate.settings import AnnotateSettings
from jobs.annotate.stage import DescribeStage, Order, ask_batch
from jobs.cluster import choose_gpus, machines_alive, wait_for_resources, wait_until_free
from jobs.descriptions.loading import is_small, located
from jobs.descriptions.vllm_engine import add_vllm_stages
from jobs.scan.pipeline import (
    AFTER_VLLM,
    LOST_BATCHES,
    LOST_ROWS,
    VLLM_ADVICE,
    StageResources,
    Writing,
    actor_options,
    cpus_of_each,
    vllm_placement,
    vllm_pools,
    wait_for_engines,
)
from jobs.scan.stages.prepare import Preparation
from jobs.scan.stages.row_shape import RowShape


@dataclass(frozen=True)
class AnnotatePipeline:
    """The pipeline of a job of annotations (`jobs.scan.pipeline.RowPipeline`)."""

    preparation: Preparation
    orders: tuple[Order, ...]
    """The work of each engine, in the order of the stages."""
    known: Mapping[str, Any]
    """The actors that know what is described, by kind; none for an engine that looks descriptions up."""
    batch_size: int
    writing: Writing
    prepare: StageResources
    describe: tuple[StageResources, ...]
    lost_batches: int = LOST_BATCHES
    shape: RowShape = ANNOTATIONS
    on_cluster: bool = False

    @property
    def block_bytes(self) -> None:
        """None: a block costs the driver little beside an engine, and a long block would wait for one actor."""

    @property
    def pools(self) -> tuple[StageResources, ...]:
        """Resources of the engines, and of all stages of vLLM."""
        stages = zip(self.orders, self.describe, strict=True)
        pools = [vllm_pools(order.settings, one) if order.has_stages else (one,) for order, one in stages]
        return tuple(pool for each in pools for pool in each)

    def patient(self) -> AnnotatePipeline:
        """Return the pipeline for rows whose pictures were too slow for their batches."""
        return replace(self, preparation=self.preparation.patient(self.batch_size))

    def one_row_at_a_time(self) -> AnnotatePipeline:
        """Return the pipeline for rows of lost batches: each row alone."""
        alone = tuple(replace(resources, ahead=1) for resources in self.describe)
        return replace(self.patient(), batch_size=1, lost_batches=LOST_ROWS, describe=alone)

    def without_an_engine(self) -> tuple[AnnotatePipeline, ...]:
        """Return a pipeline without each model of two engines, the later first; see `RowPipeline.without_an_engine`.

        A row that ends the process of the first engine never reaches the second, so what that has described is kept.
        """
        if len(self.orders) == 1:
            return ()
        return tuple(
            replace(self, orders=tuple(replace(order, is_left_out=order is suspect) for order in self.orders))
            for suspect in reversed(self.orders)
            if not suspect.is_lookup
        )

    def add_stages(self, prepared: Dataset, counter: Any, writers: Sequence[Any], batches: dict[str, Any]) -> Dataset:
        """Add a stage for each engine; see `RowPipeline.add_stages`."""
        for known in self.known.values():
            known.release.remote()
        for order, resources in zip(self.orders, self.describe, strict=True):
            last = (counter, writers) if order.is_last else (None, ())
            known = self.known.get(order.settings.kind)
            options, whole_blocks = actor_options(resources), batches
            if order.has_stages:
                placement = vllm_placement(resources, self.prepare, self.batch_size)
                asks = partial(ask_batch, order=order, known=known)
                prepared = add_vllm_stages(prepared, asks, order.settings, placement, order.content)
                # Ray may have joined batches on the way, so the stages that follow divide them again.
                options, whole_blocks = actor_options(AFTER_VLLM), batches | {"batch_size": None}
                batches = batches | {"batch_size": self.batch_size}
            arguments = order, known, *last
            prepared = prepared.map_batches_internal(
                DescribeStage, fn_constructor_args=arguments, **options, **whole_blocks
            )
        return prepared


def size_annotation(
    settings: AnnotateSettings,
    input: Location,
    rows: int,
    notify: Callable[[str], None] = lambda note: None,
    run_id: str | None = None,
) -> AnnotatePipeline:
    """Return a pipeline for the Ray that runs.

    Raises `ConfigError` if the machines cannot hold the engines, and do not grow in time; `JobError` if they can, but
    other jobs hold them for too long.

    Args:
        settings: Settings of the job.
        input: The input, from which paths in a file of descriptions may start.
        rows: Rows of the manifest.
        notify: Receives a sentence before a wait for the cluster.
        run_id: Id of the run, which the rows name.
    """
    room = find_room(settings, notify)
    batch_size = settings.batch_size or 64
    at_a_time = {kind: engine.batches_at_a_time(batch_size) for kind, engine in settings.engines.items()}
    return AnnotatePipeline(
        preparation=preparation_of(settings),
        orders=_orders(settings, input, room, run_id),
        known=_start_known(settings),
        batch_size=batch_size,
        writing=Writing(
            settings.rows_per_file or min(100_000, max(512, rows // 200)),
            settings.write_every_s,
            settings.write_patience_s,
        ),
        prepare=room.prepare,
        describe=tuple(replace(room.engines[kind], at_a_time=at_a_time[kind]) for kind in settings.engines),
        # A process that dies takes all its batches with it.
        lost_batches=LOST_BATCHES * max(at_a_time.values()),
        on_cluster=settings.address is not None,
    )


@dataclass(frozen=True)
class Room:
    """The place of a job on its machines."""

    prepare: StageResources
    engines: dict[str, StageResources]
    """Resources of the engines, by what they write."""
    device: str
    """Device of the models, `cuda` or `cpu`."""
    threads: int | None
    """Threads of a model on CPUs: all models of a machine together have as many as it has CPUs."""


def find_room(settings: AnnotateSettings, notify: Callable[[str], None]) -> Room:
    """Divide the machines of the Ray that runs among the stages, and wait until they are free.

    The arguments and errors are those of `size_annotation`.
    """
    wait_s = settings.wait_for_machines_s if settings.address else 0
    wait = partial(wait_for_resources, waits_for_people=settings.waits_for_people)
    on_gpu = settings.needs_gpu or choose_gpus(settings.device, notify, is_cluster=settings.address is not None)
    if not on_gpu:
        # The head of a cluster may have no CPUs, until an autoscaler adds machines.
        wait({"CPU": 1}, 1, wait_s, notify, "Add a machine with CPUs.")
    machines = [machine.get("CPU", 0) for machine in machines_alive()]
    prepare = StageResources(0.25, size=None if on_gpu or settings.address else max(1, int(sum(machines)) // 2))
    engines, threads = size_engines(settings, machines, on_gpu=on_gpu, small=_all_small(settings))
    _wait_for_engines(settings, engines, prepare, wait_s, notify)
    return Room(prepare, dict(zip(settings.engines, engines, strict=True)), "cuda" if on_gpu else "cpu", threads)


def _wait_for_engines(
    settings: AnnotateSettings,
    engines: Sequence[StageResources],
    prepare: StageResources,
    wait_s: float,
    notify: Callable[[str], None],
) -> None:
    """Wait until one process of each engine fits into the machines, and other jobs leave it room.

    A process of vLLM has whole GPUs of its own, on any machine. The others run beside each other on one machine.
    """
    wait = partial(wait_for_resources, waits_for_people=settings.waits_for_people)
    whole = [each.needs for each in engines if each.gpus >= 1 and settings.needs_gpu]
    rest = [each for each in engines if each.gpus < 1 or not settings.needs_gpu]
    needs = {"CPU": sum(each.cpus for each in rest), "GPU": sum(each.gpus for each in rest)}
    needs = {name: amount for name, amount in needs.items() if amount}
    if needs:
        advice = "Give --device auto, or an engine that needs less."
        if settings.annotator_cpus:
            advice = "Lower --set annotator_cpus=N."
            if settings.address is None:  # the task that prepares the rows has no other machine
                wait(needs | {"CPU": needs["CPU"] + prepare.cpus}, 1, 0, notify, advice)
        wait(needs, 1, wait_s, notify, advice)
    wait_for_engines(whole, wait, wait_s, notify)
    first, *others = ([needs] if needs else []) + whole
    if others and settings.address is None:  # nobody adds a machine on which the rest would fit
        kinds = dict.fromkeys(kind for bundle in (first, *others) for kind in bundle)
        total = {kind: sum(bundle.get(kind, 0) for bundle in (first, *others)) for kind in kinds}
        wait(total, 1, 0, notify, VLLM_ADVICE)
    wait_until_free(first, 1, settings.wait_for_machines_s, notify, beside={"CPU": prepare.cpus}, others=others)


def size_engines(
    settings: AnnotateSettings, machines: Sequence[float], *, on_gpu: bool, small: bool = False
) -> tuple[tuple[StageResources, ...], int | None]:
    """Return the resources of each engine, and the threads of each model on a CPU.

    On CPUs, a machine runs one large model with a thread for each CPU, or a small one for each CPU with a thread each.
    On a cluster, as many models run as the machines carry at any time.

    Args:
        settings: Settings of the job.
        machines: The CPUs of each machine.
        on_gpu: True if the models run on GPUs.
        small: True if no model is large (`is_small`).
    """
    models = sum(engine.engine == "transformers" for engine in settings.engines.values())
    whole = max([1, *machines])  # CPUs of the largest machine
    given = settings.annotator_cpus
    many = small and given is None
    cpus = cpus_of_each(settings.annotators, machines) or (min(models, whole) if many else whole)
    sizes = []
    for engine in settings.engines.values():
        if engine.gpus:
            sizes.append(StageResources(given or 1, engine.gpus, settings.annotators))
        elif engine.engine != "transformers":
            sizes.append(StageResources(given or 0.1, size=settings.annotators or 1))
        elif on_gpu:  # two models divide what one would have
            sizes.append(StageResources(given or 0.5 / models, settings.annotator_gpus / models, settings.annotators))
        else:
            size = settings.annotators or (None if settings.address else max(1, int(whole // cpus)))
            sizes.append(StageResources(given or round(0.6 * cpus / models, 3), size=size))
    return tuple(sizes), None if on_gpu else max(1, int(given or cpus // max(1, models)))


def _all_small(settings: AnnotateSettings) -> bool:
    """Return True if no model of the job is large."""
    return all(is_small(engine) for engine in settings.engines.values() if engine.engine == "transformers")


def _orders(settings: AnnotateSettings, input: Location, room: Room, run_id: str | None) -> tuple[Order, ...]:
    """Return the work of each stage."""
    engines, job = list(settings.engines.values()), settings.job_folder.name
    return tuple(
        Order(located(engine), input, room.device, room.threads, job, run_id, is_last=engine is engines[-1])
        for engine in engines
    )


def _start_known(settings: AnnotateSettings) -> dict[str, Any]:
    """Start an actor for each engine that writes, with the descriptions that earlier runs of the job wrote."""
    known = {}
    for kind, engine in settings.engines.items():
        order = Order(engine, Location.parse(settings.input))
        if not order.is_lookup:
            rows = settings.job_folder / ANNOTATIONS.folder
            known[kind] = start_known(read_known(rows, kind, with_text=order.prompt_has_text))
    return known
