"""The stages of a job of annotations: rows are prepared, captioned, and explained; the last stage hands them over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray.data import Dataset

from asap.storage.location import Location
from jobs.annotate.known import read_known, start_known
from jobs.annotate.requests import preparation_of
from jobs.annotate.rows import ANNOTATIONS
from jobs.annotate.settings import AnnotateSettings
from jobs.annotate.stage import DescribeStage, Order
from jobs.cluster import choose_gpus, machines_alive, wait_for_resources, wait_until_free
from jobs.scan.pipeline import LOST_BATCHES, LOST_ROWS, StageResources, Writing, actor_options, cpus_of_each
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
    def pools(self) -> tuple[StageResources, ...]:
        """Resources of the engines."""
        return self.describe

    def patient(self) -> AnnotatePipeline:
        """Return the pipeline for rows whose pictures were too slow for their batches."""
        return replace(self, preparation=self.preparation.patient(self.batch_size))

    def one_row_at_a_time(self) -> AnnotatePipeline:
        """Return the pipeline for rows of lost batches: each row alone."""
        alone = tuple(replace(resources, ahead=1) for resources in self.describe)
        return replace(self.patient(), batch_size=1, lost_batches=LOST_ROWS, describe=alone)

    def add_stages(self, prepared: Dataset, counter: Any, writers: Sequence[Any], batches: dict[str, Any]) -> Dataset:
        """Add a stage for each engine; see `RowPipeline.add_stages`."""
        for known in self.known.values():
            known.release.remote()
        for order, resources in zip(self.orders, self.describe, strict=True):
            last = (counter, writers) if order.is_last else (None, ())
            arguments = order, self.known.get(order.settings.kind), *last
            options = actor_options(resources)
            prepared = prepared.map_batches_internal(DescribeStage, fn_constructor_args=arguments, **options, **batches)
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
    wait_s = settings.wait_for_machines_s if settings.address else 0
    on_gpu = choose_gpus(settings.device, notify, is_cluster=settings.address is not None)
    if not on_gpu:
        wait_for_resources({"CPU": 1}, 1, wait_s, notify, "Add a machine with CPUs.")
    machines = [machine.get("CPU", 0) for machine in machines_alive()]
    prepare = StageResources(0.25, size=None if on_gpu or settings.address else max(1, int(sum(machines)) // 2))
    describe, threads = size_engines(settings, machines, on_gpu=on_gpu)
    needs = {"CPU": sum(each.cpus for each in describe), "GPU": sum(each.gpus for each in describe)}
    needs = {name: amount for name, amount in needs.items() if amount}
    wait_for_resources(needs, 1, wait_s, notify, "Give --device auto, or an engine that needs less.")
    wait_until_free(needs, 1, settings.wait_for_machines_s, notify, beside={"CPU": prepare.cpus})
    return AnnotatePipeline(
        preparation=preparation_of(settings),
        orders=_orders(settings, input, "cuda" if on_gpu else "cpu", threads, run_id),
        known=_start_known(settings),
        batch_size=settings.batch_size or 64,
        writing=Writing(
            settings.rows_per_file or min(100_000, max(512, rows // 200)),
            settings.write_every_s,
            settings.write_patience_s,
        ),
        prepare=prepare,
        describe=describe,
        on_cluster=settings.address is not None,
    )


def size_engines(
    settings: AnnotateSettings, machines: Sequence[float], *, on_gpu: bool
) -> tuple[tuple[StageResources, ...], int | None]:
    """Return the resources of each engine, and the threads of each model on a CPU.

    `machines` are the CPUs of each machine. On a cluster, as many models run as the machines carry at any time.
    """
    models = sum(engine.engine == "transformers" for engine in settings.engines.values())
    cpus = cpus_of_each(settings.annotators, machines) or max([1, *machines])
    sizes = []
    for engine in settings.engines.values():
        if engine.engine != "transformers":
            sizes.append(StageResources(0.1, size=settings.annotators or 1))
        elif on_gpu:  # two models share each GPU
            sizes.append(StageResources(0.5 / models, 1 / models, settings.annotators))
        else:
            size = settings.annotators or (None if settings.address else 1)
            sizes.append(StageResources(round(0.6 * cpus / models, 3), size=size))
    return tuple(sizes), None if on_gpu else max(1, int(cpus // max(1, models)))


def _orders(
    settings: AnnotateSettings, input: Location, device: str, threads: int | None, run_id: str | None
) -> tuple[Order, ...]:
    """Return the work of each stage."""
    engines = list(settings.engines.values())
    job = settings.job_folder.name
    return tuple(
        Order(engine, input, device, threads, job, run_id, is_last=engine is engines[-1]) for engine in engines
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
