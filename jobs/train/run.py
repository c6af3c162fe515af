"""Ray Train: a corpus in, a model folder out; a killed run goes on with the same command.

The driver prepares what all workers read (start, tokenizer, the index of every split, and pictures at the model's size
where they are cached), Ray Train runs the workers and keeps their best and last checkpoints, and the driver writes the
model folder from one of them. Workers read the run folder directly where it lies on a disk that they share, and through
a copy on each machine where it is at s3://.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from asap.corpus.folder import full_address
from asap.corpus.reader import Corpus
from asap.errors import AsapError, ConfigError
from asap.model.asap import Asap
from asap.preprocessing.text import load_tokenizer, train_tokenizer
from asap.storage.location import Location
from asap.training.step import TrainingStep
from asap.weights.start import split_source
from jobs.cluster import count_fitting, machines_alive, most_cpus, ray_running, wait_for_resources
from jobs.train.data.splits import choose_ingest, corpus_event, data_of, prepare_splits, read_splits
from jobs.train.export import SCORE, ChosenCheckpoint, export_model
from jobs.train.plan import Plan, make_plan
from jobs.train.run_folder.folder import RunFolder
from jobs.train.run_folder.log import OnEvent, follow_progress
from jobs.train.run_folder.record import note_cluster, start_record
from jobs.train.settings import TrainSettings
from jobs.train.start import TRAINED, prepare_start
from jobs.train.trainer import model_config
from jobs.train.worker import train_worker

_NAME = "ray_train"
"""Of what Ray Train keeps in the run folder."""


def train(settings: TrainSettings, progress: OnEvent = lambda event: None) -> Path | Location:
    """Train, or go on with the run that `settings.out` holds, and return the model folder.

    `progress` gets `{"stage": name, "done": n, "total": m}` and `{"corpus": lines of its report, "ingest": way}` while
    preparing, `{"start": source, "report": text}` for each warm start, `{"note": sentence}` where the machines are not
    what was asked for, then every line of `progress.jsonl`.
    Raises `ConfigError` where the folder holds a run of other settings or on other data, `StorageError` where nothing
    can be written to it, `TrainingDiverged` where the loss stops making sense, `CheckpointError` for a start that does
    not fit, `CorpusError`, `AnnotationError`, `InputError` for a text that cannot be used.
    """
    _check(settings)
    typed, settings = settings, _with_absolute_paths(settings)
    folder = RunFolder.open(settings.out)
    folder.refresh()
    _check_folder(folder, settings)
    if folder.has_model():
        return folder.finished_model
    corpora = read_splits(settings, model_config(settings, settings.vocab_size).label_set)
    data = {split: data_of(corpus) for split, corpus in corpora.items()}
    _check_data(folder, data)
    _claim(folder, settings, data)
    start_record(folder, typed, data)
    prepare_start(folder, settings, model_config, progress)
    with ray_running(settings.address), follow_progress(folder, progress):
        best = _ended(folder, settings)
        each = {} if best else _resources_of_a_worker(settings, progress)  # not after hours of decoding
        _prepare(folder, settings, corpora, progress)
        folder.push("tokenizer", "start", "index", folder.corpus.name)
        best = best or _fit(folder, settings, each)
    return export_model(folder, settings, best)


def plan(settings: TrainSettings, progress: OnEvent = lambda event: None) -> Plan:
    """What `train` would do with these settings. Reads corpus and starts, writes nothing, and needs no Ray.

    `progress` gets `{"start": source, "report": text}` for each warm start, and `{"corpus": lines, "ingest": way}` as
    from `train`, less what only decoding the pictures tells. Raises what `train` raises before its first step, but for
    what only writing can find out.
    """
    _check(settings)
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch))
        prepare_start(folder, settings, model_config, progress)
        words = len(load_tokenizer(folder.tokenizer)) if folder.tokenizer.exists() else settings.vocab_size
    config = model_config(settings, words)
    corpora = read_splits(settings, config.label_set)
    progress(corpus_event(corpora, choose_ingest(settings, corpora, config.image_size)))
    return make_plan(settings, config, {split: corpus.records for split, corpus in corpora.items()})


def _with_absolute_paths(settings: TrainSettings) -> TrainSettings:
    """Ray Train's workers work in a folder of their own."""
    named = {name: getattr(settings, name) for name in ("corpus", "out", "test_corpus", "pictures", "tokenizer")}
    paths: dict[str, Any] = {name: full_address(path) for name, path in named.items() if path and path != TRAINED}
    return settings.model_copy(update=paths | {"init": tuple(_absolute(source) for source in settings.init)})


def _absolute(source: str) -> str:
    """A start's path from the root; s3:// stays, and so does a name that is no path here."""
    kind, path = split_source(source)
    return f"{kind}{full_address(path)}" if Path(path).exists() else source


def _check(settings: TrainSettings) -> None:
    """Build what a worker will build, without memory or time: what cannot work is found now."""
    with torch.device("meta"):
        student = Asap(model_config(settings, settings.vocab_size))
        TrainingStep(student, weights=settings.objective.weights, queue_size=settings.queue_size, mask_id=0)


def _check_folder(folder: RunFolder, settings: TrainSettings) -> None:
    """Refuse a folder of something else, or of another run."""
    if not folder.settings.exists():
        if not folder.is_empty():
            raise ConfigError(f"{folder} holds something that is not a training run; choose another folder")
        return
    # A setting that the run's own version did not have yet was what it is by default.
    defaults = TrainSettings(corpus="", out="").identity()
    found = defaults | json.loads(folder.settings.read_text(encoding="utf-8"))
    differs = [
        f"{name} {found.get(name)!r} (now {value!r})"
        for name, value in settings.identity().items()
        if found.get(name) != value
    ]
    if differs:
        raise ConfigError(f"{folder} holds a run of other settings: {', '.join(differs)}; choose another folder")


def _check_data(folder: RunFolder, data: dict[str, dict[str, Any]]) -> None:
    """Refuse to go on with a run whose corpus has changed since."""
    found = json.loads(folder.settings.read_text(encoding="utf-8")).get("data") if folder.settings.exists() else None
    if differs := [f"{name} {found[name]} (now {now})" for name, now in data.items() if found and found[name] != now]:
        raise ConfigError(
            f"{folder} holds a run on other data: {', '.join(differs)}; choose another folder, or bring the data back"
        )


def _claim(folder: RunFolder, settings: TrainSettings, data: dict[str, dict[str, Any]]) -> None:
    """Make the folder this run's. Raises `StorageError` where nothing can be written to it."""
    folder.check_writable()
    folder.path.mkdir(parents=True, exist_ok=True)
    claim = settings.identity() | {"data": data}
    folder.settings.write_text(json.dumps(claim, indent=2) + "\n", encoding="utf-8")
    folder.push(folder.settings.name)


def _prepare(folder: RunFolder, settings: TrainSettings, corpora: dict[str, Corpus], progress: OnEvent) -> None:
    """Tokenizer, pictures and index, once for all workers. Every record is tried: a bad one must not end a long run."""
    if not folder.tokenizer.exists():
        records = corpora["train"].records
        texts = [text for record in records for text in (record.text, record.caption, record.explanation)]
        draft = folder.path / "tokenizer.draft"
        train_tokenizer(texts, settings.vocab_size).save_pretrained(draft)
        draft.rename(folder.tokenizer)
    config = model_config(settings, len(load_tokenizer(folder.tokenizer)))
    prepare_splits(folder, settings, corpora, config, progress)


def _ended(folder: RunFolder, settings: TrainSettings) -> ChosenCheckpoint | None:
    """Of a run that was trained to its end, the checkpoint that becomes the model: for it no worker need start."""
    from ray.train import Result

    storage = folder.ray_storage()
    try:
        result = Result.from_path(f"{storage['storage_path']}/{_NAME}", storage.get("storage_filesystem"))
    except RuntimeError:  # Ray Train's word for a run without a checkpoint
        return None
    told = result.metrics or {}
    if result.checkpoint is None or told.get("pairs") != told.get("of", -1):
        return None
    return ChosenCheckpoint.of(result.best_checkpoints or [], result.checkpoint, settings.export)


def _fit(folder: RunFolder, settings: TrainSettings, each: dict[str, int]) -> ChosenCheckpoint:
    """Run the workers to the end, with these resources each; the checkpoint that becomes the model."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from jobs.train.worker import RETRIES, FinalFailures, final_failure

    note_cluster(folder, ray.cluster_resources())
    fewest = settings.min_workers or settings.workers
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"settings": settings.model_dump(), "cpus": each["CPU"]},
        scaling_config=ScalingConfig(
            num_workers=settings.workers if fewest == settings.workers else (fewest, settings.workers),
            elastic_resize_monitor_interval_s=settings.regrow_every_s,
            use_gpu="GPU" in each,
            resources_per_worker=each,
        ),
        run_config=RunConfig(
            name=_NAME,
            **folder.ray_storage(),
            failure_config=FailureConfig(max_failures=RETRIES),
            callbacks=[FinalFailures()],
            # The best, and beside it always the last.
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=SCORE),
        ),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        if final := final_failure(error):
            raise final from None
        raise AsapError(f"training failed after {RETRIES} attempts to go on: {error}") from error
    if result.checkpoint is None:
        raise AsapError(f"the run in {folder} ended without a checkpoint; {folder}/{_NAME} says why")
    return ChosenCheckpoint.of(result.best_checkpoints, result.checkpoint, settings.export)


def _resources_of_a_worker(settings: TrainSettings, progress: OnEvent) -> dict[str, int]:
    """CPUs, and a GPU or none, for each worker of the Ray that runs, which has them or was given time to bring them.

    Raises `ConfigError` where it cannot hold the workers.
    """

    def tell(note: str) -> None:
        progress({"note": note})

    fewest = settings.min_workers or settings.workers
    gpus = count_fitting(machines_alive(), {"CPU": settings.cpus_per_worker or 1, "GPU": 1})
    on_gpus = settings.device == "cuda" or (settings.device == "auto" and gpus >= fewest)
    if settings.device == "auto" and not on_gpus and (settings.address or gpus):
        waits = "; --set device=cuda waits for more" if settings.address else ""
        tell(f"training on CPUs: of {fewest} GPUs that it takes {gpus} are there{waits}")
    needs = {"GPU": 1} if on_gpus else {}
    machines = wait_for_resources(
        {"CPU": settings.cpus_per_worker or 1} | needs,
        fewest,
        settings.wait_for_machines_s if settings.address else 0,
        tell,
        f"give fewer --workers{', --set device=cpu' if on_gpus else ''} or a lower --set cpus_per_worker=N",
    )
    cpus = settings.cpus_per_worker or most_cpus(machines, settings.workers, needs)
    return {"CPU": cpus or most_cpus(machines, fewest, needs) or 1} | needs
