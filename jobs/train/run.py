"""The driver of a training run: a corpus in, a model folder out. The same command resumes a run that was killed.

The driver prepares what all workers read: the first weights, the tokenizer, the index of every split, and the pictures
at the model's size if they are cached. Ray Train runs the workers and keeps their best and last checkpoints. The driver
then writes the model folder from one of them. Workers read a run folder on a shared disk directly, and a run folder at
s3:// through a copy on each machine.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Set
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from asap.corpus.folder import full_address
from asap.corpus.reader import Corpus
from asap.errors import AsapError, ConfigError
from asap.model.asap import Asap
from asap.preprocessing.text import load_tokenizer, train_tokenizer
from asap.storage.files import write_bytes
from asap.storage.location import Location
from asap.training.step import TrainingStep
from asap.weights.start import split_source
from jobs.cluster import (
    count_fitting,
    kill_actors,
    machines_alive,
    most_cpus,
    ray_running,
    wait_for_resources,
    wait_until_free,
)
from jobs.metrics import targets_announced
from jobs.packing import Resources
from jobs.reach import PathUse, check_cluster, check_shared, pictures_use
from jobs.sharing import Claim, held_share, shared
from jobs.states import JobStates, job_states
from jobs.stops import in_background
from jobs.train.data.splits import (
    cache_pictures,
    choose_ingest,
    corpus_event,
    data_of,
    prepare_splits,
    read_splits,
    single_class_notes,
)
from jobs.train.defaults import warm_start_defaults
from jobs.train.events import OnEvent
from jobs.train.export import SCORE, ChosenCheckpoint, export_model
from jobs.train.fit import (
    all_gpus,
    choices_of,
    cpu_to_fit,
    device_before_ray,
    fit_to_device,
    kept_choices,
    takes_all_gpus,
)
from jobs.train.gpus import TrainDevice, cpu_here, gpu_called, gpu_here, gpus_of_cluster
from jobs.train.plan import CPUS_BESIDE_A_GPU, Plan, make_plan
from jobs.train.run_folder.folder import CHECKPOINTS, RunFolder
from jobs.train.run_folder.log import follow_progress
from jobs.train.run_folder.record import note_cluster, start_record
from jobs.train.settings import TrainSettings
from jobs.train.start import TRAINED, prepare_start
from jobs.train.trainer import model_config
from jobs.train.watch import RunWatch, wait_until_idle
from jobs.train.worker import RETRIES, FinalFailures, final_failure, last_failure, run_worker

_FITTED = "fitted"
"""The key of `train.json` for the choices that a resumed run keeps; None until they are made."""


def train(settings: TrainSettings, progress: OnEvent = lambda event: None) -> Path | Location:
    """Train, or resume the run in `settings.out`, and return the model folder.

    `progress` gets the events of `jobs.train.events`.

    Raises:
        ConfigError: The folder holds a run with other settings or on other data, or the machines cannot hold the
            workers.
        JobError: Ray did not start, or other jobs hold the machines for too long.
        JobInUse: Another process works on the run.
        JobFailed: The run folder was deleted meanwhile.
        StorageError: The run folder cannot be written, or a store cannot be read.
        TrainingDiverged: The loss or its gradients are not finite, or the loss exploded.
        CheckpointError: A source of the first weights does not fit the model.
        CorpusError, AnnotationError: The corpus cannot be used.
        InputError: A text cannot be used.
    """
    _check_buildable(settings)
    folder = RunFolder.open(_with_absolute_paths(settings).out, settings.outage_s)
    # Before this machine's copy is replaced, which a process that works on the run may share.
    wait_until_idle(folder.location, settings.stale_after_s, lambda line: progress({"note": line}))
    folder.refresh()
    typed = _with_older_defaults(folder, settings)
    settings = _with_kept_choices(folder, _with_absolute_paths(typed), typed.model_fields_set)
    _check_folder(folder, settings, typed.model_fields_set)
    if folder.has_model():
        return folder.finished_model
    with job_states(settings, "train", folder.location.name, folder.location) as states:
        return _train(folder, typed, settings, states, RunWatch(folder, settings, states, progress))


def _train(
    folder: RunFolder, typed: TrainSettings, settings: TrainSettings, states: JobStates, watch: RunWatch
) -> Path | Location:
    """Train from a checked folder to the model folder, which is returned.

    Args:
        folder: The folder of the run.
        typed: The settings as the user gave them.
        settings: The settings with absolute paths.
        states: Receives each state of the run.
        watch: Watches the run, and receives its events.
    """
    progress = watch.report
    states.change({"state": "validating"})
    _check_device(folder, settings, typed.model_fields_set)
    progress({"phase": "reading the corpus"})
    corpora = read_splits(settings, model_config(settings, settings.vocab_size).label_set)
    settings.steps_an_epoch(len(corpora["train"].records))
    data = {split: data_of(corpus) for split, corpus in corpora.items()}
    _check_data(folder, data)
    uses = []
    if settings.address:
        progress({"phase": "asking the machines of the cluster what they can read"})
        uses = _path_uses(folder, settings, corpora)
        check_cluster(settings, uses, _demanded(settings), lambda note: progress({"note": note}))
    # Everything that can be refused has been checked, but for machines that are still to come. From here on the folder
    # belongs to this run.
    _claim(folder, settings, data)
    with watch.stops_recorded(), watch:
        start_record(folder, typed, data, watch.run_id)
        prepare_start(folder, settings, model_config, progress)
        for note in [*typed.default_notes(), *single_class_notes(settings, corpora)]:
            progress({"note": note})
        states.change({"state": "running"})
        at = f"joining the Ray cluster at {settings.address}" if settings.address else "starting Ray on this machine"
        progress({"phase": at})
        with (
            ray_running(settings.address),
            targets_announced(settings.metrics_targets),
            follow_progress(folder, progress),
            shared() if settings.address else nullcontext(),
            watch.stops_recorded(),  # before Ray ends, which takes seconds
        ):
            chosen = _finished_checkpoint(folder, settings)
            # Resources are checked before pictures are decoded, which may take hours.
            if not chosen:
                settings = _with_all_gpus(settings, typed.model_fields_set, progress)
            resources = {} if chosen else _resources_per_worker(settings, progress)
            if resources:
                check_shared(uses)  # machines may have come meanwhile
                _wait_for_room(settings, resources, progress)
                _claim_workers(settings, resources, corpora)
                settings = _fit(folder, settings, typed.model_fields_set, "GPU" in resources, progress)
            _prepare(folder, settings, corpora, progress, trains=chosen is None)
            chosen = chosen or _run_workers(folder, settings, resources, watch)
            progress({"phase": "choosing the checkpoint, and stopping Ray" if resources else "stopping Ray"})
        states.change({"state": "finalizing"})
        return export_model(folder, settings, chosen, progress)


def plan(settings: TrainSettings, progress: OnEvent = lambda event: None) -> Plan:
    """Return the plan of `train` with these settings. It reads the corpus, writes nothing, and needs no Ray.

    `progress` gets the events of the sources and of the corpus, without the findings that need decoded pictures.
    Raises what `train` raises before its first step, except the errors of writing.
    """
    _check_buildable(settings)
    progress({"phase": "reading the corpus"})
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch))
        prepare_start(folder, settings, model_config, progress)
        words = _count_words(folder, settings)
    config = model_config(settings, words)
    corpora = read_splits(settings, config.label_set)
    for note in [*settings.default_notes(), *single_class_notes(settings, corpora)]:
        progress({"note": note})
    ingest = choose_ingest(settings, corpora, config.image_size)
    progress(corpus_event(corpora, ingest))
    records = {split: corpus.records for split, corpus in corpora.items()}
    reports = {split: corpus.report for split, corpus in corpora.items()}
    return make_plan(settings, config, records, ingest, _planned_device(settings), settings.model_fields_set, reports)


def _count_words(folder: RunFolder, settings: TrainSettings) -> int:
    """Return the number of word pieces; the most that there may be if the tokenizer is not trained yet."""
    return len(load_tokenizer(folder.tokenizer)) if folder.tokenizer.exists() else settings.vocab_size


def _planned_device(settings: TrainSettings) -> TrainDevice | None:
    """Return the device that a plan is made for: the kind that is given, or that of this machine, if either is known.

    A plan does not ask a cluster.
    """
    if settings.gpu:
        return gpu_called(settings.gpu)
    if settings.address:
        return None
    gpu = gpu_here() if settings.device != "cpu" else None
    return gpu or (None if settings.device == "cuda" else cpu_here())


def _check_buildable(settings: TrainSettings) -> None:
    """Raise `ConfigError` if a worker could not build the model and the objective."""
    with torch.device("meta"):  # costs neither memory nor time
        student = Asap(model_config(settings, settings.vocab_size))
        TrainingStep(student, weights=settings.objective.weights, queue_size=settings.queue_size, mask_id=0)


def _check_device(folder: RunFolder, settings: TrainSettings, given: Set[str]) -> None:
    """Raise `ConfigError` if the settings and this machine show, without Ray, that no device can hold a worker.

    A run that was trained to its end needs no worker. Any other is fitted again once Ray shows the devices.
    """
    import ray

    metrics = folder.last_metrics()
    if metrics and metrics.get("pairs") == metrics.get("of"):
        return
    gpus = None if settings.address or ray.is_initialized() else torch.cuda.device_count()
    fewest = settings.min_workers or settings.workers
    if settings.device == "cuda" and gpus is not None and gpus < fewest:
        raise ConfigError(
            f"device 'cuda' needs {fewest} GPU{'' if fewest == 1 else 's'}, and torch can use {gpus} on this machine. "
            f"Give {'fewer --workers, ' if gpus else ''}--address of a cluster with GPUs, or --set device=cpu."
        )
    if takes_all_gpus(settings, given):
        if gpus is None:
            return
        settings = settings.model_copy(update={"workers": all_gpus(settings, gpus)})
    if device := device_before_ray(settings, gpus):
        # The vocabulary of a source is not known yet. One word is counted for it, so that nothing is refused that fits.
        is_known = folder.tokenizer.exists() or settings.tokenizer == TRAINED
        is_known = is_known or not (settings.init or settings.tokenizer)
        config = model_config(settings, _count_words(folder, settings) if is_known else 1)
        fit_to_device(settings, config, device, given, _recorded(folder).get(_FITTED))


def _with_absolute_paths(settings: TrainSettings) -> TrainSettings:
    """Return the settings with absolute paths, because Ray Train's workers run in another working folder."""

    def absolute(source: str) -> str:
        kind, path = split_source(source)
        # s3:// stays, and so does the name of a model that is not a path here.
        return f"{kind}{full_address(path)}" if Path(path).exists() else source

    named = {name: getattr(settings, name) for name in ("corpus", "out", "test_corpus", "pictures", "tokenizer")}
    paths: dict[str, Any] = {name: full_address(path) for name, path in named.items() if path and path != TRAINED}
    return settings.model_copy(update=paths | {"init": tuple(absolute(source) for source in settings.init)})


def _with_older_defaults(folder: RunFolder, settings: TrainSettings) -> TrainSettings:
    """Return the settings as an older version read them, if the folder holds a run of one.

    In older versions no default followed from `init`, and later ones had another default for the recipe. A run of
    theirs that is continued by the command that began it keeps the values that it has.
    """
    recorded = _recorded(folder)
    if not recorded.get("init"):
        return settings
    names = ("recipe",) if "epochs" in recorded else tuple(warm_start_defaults({}))
    older = {name: recorded[name] for name in names if name in recorded}
    return settings.model_copy(
        update={name: value for name, value in older.items() if name not in settings.model_fields_set}
    )


def _recorded(folder: RunFolder) -> dict[str, Any]:
    """Return what the folder says of its run; empty if it holds none."""
    recorded: dict[str, Any] = (
        json.loads(folder.settings.read_text(encoding="utf-8")) if folder.settings.exists() else {}
    )
    return recorded


def _with_kept_choices(folder: RunFolder, settings: TrainSettings, given: Set[str]) -> TrainSettings:
    """Return the settings with the choices that the run in the folder began with, where the user gave none."""
    recorded = _recorded(folder)
    if recorded.get(_FITTED):
        return settings.model_copy(update=kept_choices(settings, given, recorded[_FITTED]))
    # A run of an older version computes as many micro batches as it did.
    if "accumulation" in recorded and _FITTED not in recorded and "accumulation" not in given:
        return settings.model_copy(update={"accumulation": recorded["accumulation"]})
    return settings


def _check_folder(folder: RunFolder, settings: TrainSettings, given: Set[str]) -> None:
    """Raise `ConfigError` if the folder holds something else, or a run with other settings."""
    if not folder.settings.exists():
        if not folder.is_empty():
            raise ConfigError(f"{folder} holds something that is not a training run. Choose another folder.")
        return
    recorded = _recorded(folder)
    # A run may be older than a setting. It ran then as the default of that setting has it.
    found = TrainSettings(corpus="", out="").identity() | recorded
    # A choice follows the number of workers, and a run that never began has none yet.
    if "accumulation" not in given or recorded.get(_FITTED, True) is None:
        found["accumulation"] = settings.accumulation
    differences = [
        f"{name} {found.get(name)!r} (now {value!r})"
        for name, value in settings.identity().items()
        if found.get(name) != value
    ]
    if differences:
        raise ConfigError(f"{folder} holds a run with other settings: {', '.join(differences)}. Choose another folder.")


def _check_data(folder: RunFolder, data: dict[str, dict[str, Any]]) -> None:
    """Raise `ConfigError` if the corpus has changed since the run began."""
    found = _recorded(folder).get("data")
    differences = [f"{name} {found[name]} (now {now})" for name, now in data.items() if found and found[name] != now]
    if differences:
        raise ConfigError(
            f"{folder} holds a run on other data: {', '.join(differences)}. Choose another folder, or restore the data."
        )


def _demanded(settings: TrainSettings) -> list[tuple[Resources, int]]:
    """Return the resources of a worker as far as the settings demand them, and the fewest workers; none if they do not.

    What they leave open follows from the machines.
    """
    cpus = {"CPU": float(settings.cpus_per_worker)} if settings.cpus_per_worker else {}
    needs = cpus | ({"GPU": 1.0} if settings.device == "cuda" else {})
    return [(needs, settings.min_workers or settings.workers)] if needs else []


def _path_uses(folder: RunFolder, settings: TrainSettings, corpora: dict[str, Corpus]) -> list[PathUse]:
    """Return the paths that the workers use. They read pictures only if the run folder has none for them."""
    uses = [PathUse("OUT", str(folder.location), writes=True)]
    image_size = model_config(settings, settings.vocab_size).image_size
    if folder.remote is None and choose_ingest(settings, corpora, image_size) == "cache":
        return uses
    return [*uses, *pictures_use("CORPUS", (record.image for record in corpora["train"].records))]


def _claim(folder: RunFolder, settings: TrainSettings, data: dict[str, dict[str, Any]]) -> None:
    """Write the settings and the data of this run to the folder. Raises `StorageError` if it cannot be written."""
    folder.check_writable()
    folder.path.mkdir(parents=True, exist_ok=True)
    recorded = _recorded(folder)
    # A run of an older version made no choices: those of its settings count.
    fitted = recorded.get(_FITTED, choices_of(settings)) if recorded else None
    _write_claim(folder, settings.identity() | {"data": data, _FITTED: fitted})


def _write_claim(folder: RunFolder, claim: dict[str, Any]) -> None:
    write_bytes(Location(str(folder.settings)), (json.dumps(claim, indent=2) + "\n").encode())
    folder.push(folder.settings.name)


def _prepare(
    folder: RunFolder, settings: TrainSettings, corpora: dict[str, Corpus], progress: OnEvent, *, trains: bool
) -> None:
    """Write the tokenizer, the indexes and, if the run `trains`, the pictures, once for all workers.

    Every record is checked, because a bad one must not end a long run. What an earlier start has prepared is taken from
    the run folder.
    """
    if not folder.tokenizer.exists():
        progress({"phase": "training a tokenizer on the texts"})
        records = corpora["train"].records
        texts = [text for record in records for text in (record.text, record.caption, record.explanation)]
        draft = folder.path / "tokenizer.draft"
        train_tokenizer(texts, settings.vocab_size).save_pretrained(draft)
        draft.rename(folder.tokenizer)
    folder.push("tokenizer", "start")
    folder.pull("index")
    config = model_config(settings, len(load_tokenizer(folder.tokenizer)))
    prepare_splits(folder, settings, corpora, config, progress)
    folder.push("index", folder.corpus.name)
    if trains:
        cache_pictures(folder, config, progress)


def _finished_checkpoint(folder: RunFolder, settings: TrainSettings) -> ChosenCheckpoint | None:
    """Return the chosen checkpoint of a run that was trained to its end, which needs no more workers; else None."""
    from ray.train import Result

    storage = folder.ray_storage()
    try:
        result = Result.from_path(f"{storage['storage_path']}/{CHECKPOINTS}", storage.get("storage_filesystem"))
    except RuntimeError:  # Ray Train raises it for a run without a checkpoint
        return None
    metrics = result.metrics or {}
    if result.checkpoint is None or metrics.get("pairs") != metrics.get("of", -1):
        return None
    return ChosenCheckpoint.of(result.best_checkpoints or [], result.checkpoint, settings.export, settings.weights)


def _resources_per_worker(settings: TrainSettings, progress: OnEvent) -> dict[str, int]:
    """Return the CPUs and the GPU, if any, of each worker, after waiting for a cluster to bring machines.

    Raises `ConfigError` if the machines cannot hold the workers.
    """

    def report(note: str) -> None:
        progress({"note": note})

    fewest = settings.min_workers or settings.workers
    cpus_needed = settings.cpus_per_worker or 1
    # Decide between GPUs and CPUs. `auto` takes GPUs only if there are enough now; it does not wait for any.
    gpus = count_fitting(machines_alive(), {"CPU": cpus_needed, "GPU": 1})
    on_gpus = settings.device == "cuda" or (settings.device == "auto" and gpus >= fewest)
    if settings.device == "auto" and not on_gpus and (settings.address or gpus):
        waits = "; --set device=cuda waits for more" if settings.address else ""
        report(f"training on CPUs: {fewest} GPUs are needed and {gpus} are available{waits}")
    gpu = {"GPU": 1} if on_gpus else {}
    # A Ray of this machine gets no more machines, so only a cluster is waited for.
    machines = wait_for_resources(
        {"CPU": cpus_needed} | gpu,
        fewest,
        settings.wait_for_machines_s if settings.address else 0,
        report,
        f"Give fewer --workers{', --set device=cpu' if on_gpus else ''} or a lower --set cpus_per_worker=N.",
        waits_for_people=settings.waits_for_people,
    )
    if settings.cpus_per_worker:
        return {"CPU": settings.cpus_per_worker} | gpu
    # On CPUs, each worker gets the most that all workers can have; or, in an elastic run, the fewest workers.
    most = most_cpus(machines, settings.workers, gpu) or most_cpus(machines, fewest, gpu) or 1
    # A worker with a GPU computes little on CPUs. The others are for the tasks that decode its pictures.
    return {"CPU": min(most, CPUS_BESIDE_A_GPU) if on_gpus else most} | gpu


def _wait_for_room(settings: TrainSettings, resources: dict[str, int], progress: OnEvent) -> None:
    """Wait until other jobs leave room for the workers. Raises `JobError` if they hold the machines for too long."""
    # Ray Train itself would wait for ever.
    wait_until_free(
        resources,
        settings.min_workers or settings.workers,
        settings.wait_for_machines_s,
        lambda note: progress({"note": note}),
        "Or give fewer --workers or a lower --set cpus_per_worker=N.",
    )


def _claim_workers(settings: TrainSettings, resources: dict[str, int], corpora: dict[str, Corpus]) -> None:
    """Keep jobs that grow with a cluster off the resources of the workers, from the preparation to the last step.

    They stay claimed while the workers start again. Without a cluster, do nothing.
    """
    if share := held_share():
        image_size = model_config(settings, settings.vocab_size).image_size
        streams = choose_ingest(settings, corpora, image_size) == "stream"
        cpus = sum(machine.get("CPU", 0.0) for machine in machines_alive())
        share.replace(workers_claim(settings, resources, cpus, streams=streams))


def workers_claim(settings: TrainSettings, resources: Resources, cpus: float, *, streams: bool) -> Claim:
    """Return the claim of a run: its workers, and, if their pictures are decoded on the way, the tasks that do it.

    Args:
        settings: The settings of the run.
        resources: The resources of each worker.
        cpus: The CPUs of all machines together.
        streams: True if tasks beside the workers decode the pictures of each step.
    """
    fewest = settings.min_workers or settings.workers
    workers = [resources] * fewest
    most = {kind: settings.workers * amount for kind, amount in resources.items()}
    if streams:
        # A task has a CPU. If the workers hold all CPUs, its tasks ask for none.
        workers += [{"CPU": 1}] * int(min(fewest, max(0.0, cpus - fewest * resources["CPU"])))
        most["CPU"] += settings.workers * (settings.decode_tasks or math.inf)
    return Claim.of_workers(workers, most, is_at_work=True)


def _with_all_gpus(settings: TrainSettings, given: Set[str], progress: OnEvent) -> TrainSettings:
    """Return the settings with a worker on every GPU that is there, if the run takes all of them."""
    gpus = count_fitting(machines_alive(), {"CPU": 1, "GPU": 1})
    if not takes_all_gpus(settings, given) or gpus < 2:
        return settings
    workers = all_gpus(settings, gpus)
    progress({"note": f"workers: one on each of {workers} of {gpus} GPUs"})
    return settings.model_copy(update={"workers": workers})


def _fit(
    folder: RunFolder, settings: TrainSettings, given: Set[str], on_gpus: bool, progress: OnEvent
) -> TrainSettings:
    """Fit the run to the devices of its workers, and record the choices for later starts."""
    recorded = _recorded(folder)
    device = gpus_of_cluster() if on_gpus else cpu_to_fit(settings)
    if device is not None:
        config = model_config(settings, _count_words(folder, settings))
        fit = fit_to_device(settings, config, device, given, recorded.get(_FITTED))
        for note in fit.notes:
            progress({"note": note})
        settings = settings.model_copy(update=fit.chosen)
    _write_claim(folder, recorded | {"accumulation": settings.accumulation, _FITTED: choices_of(settings)})
    return settings


def _run_workers(
    folder: RunFolder, settings: TrainSettings, resources: dict[str, int], watch: RunWatch
) -> ChosenCheckpoint:
    """Train to the end with these resources per worker, and return the checkpoint that becomes the model."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    note_cluster(folder, ray.cluster_resources())
    amounts = ", ".join(f"{amount} {kind}{'' if amount == 1 else 's'}" for kind, amount in resources.items())
    who = "1 worker" if settings.workers == 1 else f"{settings.workers} workers"
    watch.report({"phase": f"starting {who} with {amounts}{'' if settings.workers == 1 else ' each'}"})
    fewest = settings.min_workers or settings.workers
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"settings": settings.model_dump(), "cpus": resources["CPU"]},
        scaling_config=ScalingConfig(
            num_workers=settings.workers if fewest == settings.workers else (fewest, settings.workers),
            elastic_resize_monitor_interval_s=settings.regrow_every_s,
            use_gpu="GPU" in resources,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=CHECKPOINTS,
            **folder.ray_storage(),
            failure_config=FailureConfig(max_failures=RETRIES),
            callbacks=[FinalFailures()],
            # Ray Train keeps the best checkpoint and always the last one too.
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=SCORE),
        ),
    )
    try:
        # In the main thread, Ray Train would handle SIGINT itself, and end the process by its own code. A stop ends the
        # controller, and with it the call: a thread that uses Ray after its shutdown ends the process without a word.
        with in_background(lambda _: trainer.fit(), lambda: kill_actors("TrainController")) as fitting:
            try:
                watch.await_end(fitting)
            except KeyboardInterrupt:
                watch.report({"phase": "stopping the workers"})
                raise
            result = fitting.result
    except TrainingFailedError as error:
        if final := final_failure(error):
            raise final from None
        raise AsapError(f"training failed; {RETRIES} attempts to resume failed too: {last_failure(error)}") from error
    if result.checkpoint is None:
        raise AsapError(f"the run in {folder} ended without a checkpoint. See {folder}/{CHECKPOINTS} for the reason.")
    return ChosenCheckpoint.of(result.best_checkpoints, result.checkpoint, settings.export, settings.weights)
