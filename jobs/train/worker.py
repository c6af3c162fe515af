"""The work of one Ray Train worker, and the failures after which a run is not tried again."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ray.train import UserCallback
from torch import nn

from asap.errors import AsapError, StorageError
from asap.evaluation.evaluate import evaluate_split_together
from asap.model.config import ModelConfig
from asap.preprocessing.text import load_tokenizer
from asap.storage.failures import storage_errors
from jobs.metrics import count_step
from jobs.train.data.feed import Order
from jobs.train.data.splits import Split
from jobs.train.data.stream import open_feed
from jobs.train.export import SCORE
from jobs.train.run_folder.folder import RunFolder, checkpoint_folder
from jobs.train.run_folder.log import HEADLINE, RunLog
from jobs.train.settings import TrainSettings
from jobs.train.trainer import Trainer, model_config, write_state

RETRIES = 3
"""Number of times that a run continues by itself after it lost a worker."""


def run_worker(arguments: dict[str, Any]) -> None:
    """Train on one worker from the last checkpoint, if there is one, to the end of the run.

    `arguments` holds `settings`, as a dictionary, and `cpus`, the threads of the worker.
    """
    import ray.train
    from ray.train.torch import get_device, prepare_model

    settings, cpus = TrainSettings(**arguments["settings"]), arguments["cpus"]
    folder = RunFolder.open(settings.out, settings.outage_s)
    torch.set_num_threads(cpus)
    torch.set_flush_denormal(True)  # computing with denormal numbers takes a hundred times as long
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    # Workers of one machine share its copy of a run folder at s3://, so one at a time downloads and opens it.
    with folder.locked():
        folder.pull("tokenizer", "start", "index")
        config = model_config(settings, len(load_tokenizer(folder.tokenizer)))
        split = Split.open(settings, folder, "train", config)
    device = get_device()
    feed = open_feed(settings, split.pairs, config, Order.of(settings, len(split.pairs), rank, world), cpus, device)
    trainer = Trainer(settings, split, rank=rank, world=world, device=device, feed=feed)
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint_folder(checkpoint) as restored:
            trainer.restore(restored)
    elif folder.start.exists():
        trainer.begin_from(folder.start)
    if world > 1:

        def wrap(module: nn.Module, may_leave_out: bool) -> nn.Module:
            # Buffers need no broadcast: the queues are the same on every worker by construction, and `Trainer` averages
            # running statistics. Sending all buffers at every step would cost more than the step.
            options = {"broadcast_buffers": False, "find_unused_parameters": may_leave_out}
            wrapped: nn.Module = prepare_model(module, parallel_strategy_kwargs=options)
            return wrapped

        trainer.distribute(wrap)
    log = RunLog(folder, trainer) if rank == 0 else None
    with folder.locked():
        validation = open_validation(settings, folder, config)
    reports = CheckpointReports()
    if log:
        log.note_phase(_first_phase(trainer))
    for losses in trainer.steps():
        if log:
            log.record_steps(trainer, losses)
            for terms in losses:
                count_step(folder.location.name, terms, settings.batch_size, trainer.done / trainer.total_steps)
        if trainer.checkpoint_due:
            if log:
                log.note_phase(f"evaluating the checkpoint on {len(validation.pairs):,} validation pairs")
            metrics = validate(trainer, validation)
            if log:
                log.record_validation(trainer, metrics)
            reports.report(trainer, metrics)


def _first_phase(trainer: Trainer) -> str:
    """Describe the wait for the first step of this start."""
    after = f"going on after {trainer.pairs_done:,} of {trainer.pairs_in_all:,} pairs: " if trainer.done else ""
    compiles = ", for which the model is compiled; this may take minutes" if trainer.is_compiled else ""
    return f"{after}waiting for the first step{compiles}"


def open_validation(settings: TrainSettings, folder: RunFolder, config: ModelConfig) -> Split:
    """Open the pairs of the validation split that checkpoints are evaluated on."""
    return Split.open(settings, folder, "val", config, limit=settings.validation_pairs or 0)


def validate(trainer: Trainer, validation: Split) -> dict[str, Any]:
    """Return the validation metrics of the weights that would become the model. Every worker must call this.

    They are computed in float32, as `asap evaluate` and the card do: the best checkpoint is the best by the figures
    that are shown.
    """
    of_training = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # a run with `precision=tf32` computes in less
    try:
        report = evaluate_split_together(trainer.evaluated_model, validation.pairs)
    finally:
        torch.set_float32_matmul_precision(of_training)
    return {name: report[name] for name in HEADLINE}


class CheckpointReports:
    """Reports of checkpoints to Ray Train. A checkpoint is written beside the training, one at a time.

    The state is copied at its step. Ray Train writes it in a thread and counts it once it is complete, so a run that is
    killed meanwhile resumes from the one before. An error in the thread ends the worker as one of a step does. Ray
    Train waits for the last checkpoint before the worker ends.
    """

    def __init__(self) -> None:
        self._is_written = threading.Event()
        self._is_written.set()

    def report(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Report a checkpoint and its metrics. Every worker must call this; only the first one saves.

        The workers hold the same weights; their random states are gathered before the first worker saves.
        """
        import ray.train
        from ray.train import Checkpoint, CheckpointUploadMode

        # A second state in memory would cost as much as the first. After an error in the thread Ray ends this wait.
        self._is_written.wait()
        random_states = trainer.random_states()
        score = metrics["AUC"]
        progress = {"pairs": trainer.pairs_done, "of": trainer.pairs_in_all, SCORE: -1.0 if score is None else score}
        checkpoint = write = None
        if trainer.rank == 0:
            self._is_written.clear()
            write = self._writer(trainer.snapshot(random_states))
            checkpoint = Checkpoint.from_directory(tempfile.gettempdir())  # `write` replaces it
        ray.train.report(
            progress | metrics,
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=write,
            delete_local_checkpoint_after_upload=False,
        )

    def _writer(self, state: dict[str, Any]) -> Callable[[Any, str], Any]:
        """Return a function that writes a state to the storage of the run, and returns its checkpoint there.

        Its arguments are those of Ray Train's `checkpoint_upload_fn`. Ray may call it again after a failure.
        """
        import ray.train

        storage = ray.train.get_context().get_storage()

        def write(_: Any, name: str) -> Any:
            with tempfile.TemporaryDirectory() as folder:
                write_state(state, Path(folder))
                with storage_errors(storage.experiment_fs_path):
                    written = storage.persist_current_checkpoint(ray.train.Checkpoint.from_directory(folder), name)
            self._is_written.set()
            return written

        return write


class FinalFailures(UserCallback):
    """A callback that ends the run after an error of ours: trying the same steps again would have the same end.

    Ray Train counts any exception of a worker as a lost worker and tries again. It calls its callbacks first, and an
    exception of a callback ends the run.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the first final error among the exceptions of the workers, which are keyed by rank."""
        for error in worker_exceptions.values():
            if isinstance(error, AsapError) and not isinstance(error, StorageError):  # a store may come back
                raise error


def final_failure(error: Exception) -> AsapError | None:
    """Return the error with which `FinalFailures` ended the run, given the exception of Ray's trainer."""
    failure = getattr(error, "controller_failure", None)
    return failure if isinstance(failure, AsapError) else None


def last_failure(error: Exception) -> Exception:
    """Return our error among those that the workers of the last attempt raised, given the exception of Ray's trainer.

    Without one, return that exception, whose message has the tracebacks of the workers.
    """
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    return next((failure for failure in failures.values() if isinstance(failure, AsapError)), error)
