"""The work of one Ray Train worker, and the failures after which a run is not tried again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from ray.train import UserCallback

from asap.errors import AsapError, StorageError
from asap.preprocessing.text import load_tokenizer
from jobs.metrics import count_step
from jobs.train.data.feed import Order
from jobs.train.data.splits import Split
from jobs.train.data.stream import open_feed
from jobs.train.export import SCORE
from jobs.train.run_folder.folder import RunFolder, checkpoint_folder
from jobs.train.run_folder.log import RunLog
from jobs.train.settings import TrainSettings
from jobs.train.trainer import Trainer, model_config

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
        # Buffers need no broadcast: the queues are the same on every worker by construction, and `Trainer` averages
        # running statistics. Sending all buffers at every step would cost more than the step.
        # Not every step uses every parameter: the contrastive projections get no gradient until the contrast begins.
        options = {"broadcast_buffers": False, "find_unused_parameters": True}
        trainer.distribute(prepare_model(trainer.module, parallel_strategy_kwargs=options))
    log = RunLog(settings, folder, config, trainer.pairs_done) if rank == 0 else None
    for terms in trainer.steps():
        metrics = log.record_step(trainer, terms) if log else {}
        if log:
            count_step(folder.location.name, terms, settings.batch_size, trainer.done / trainer.total_steps)
        if trainer.done % trainer.steps_a_checkpoint == 0 or trainer.done == trainer.total_steps:
            _save_and_report(trainer, metrics)


def _save_and_report(trainer: Trainer, metrics: dict[str, Any]) -> None:
    """Report a checkpoint and the metrics to Ray Train. Every worker must call this; only the first one saves.

    The workers hold the same weights; their random states are gathered before the first worker saves.
    """
    import ray.train

    random_states = trainer.random_states()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if trainer.rank == 0:
            trainer.save(Path(folder), random_states)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        score = metrics.get("AUC")
        progress = {"pairs": trainer.pairs_done, "of": trainer.pairs_in_all, SCORE: -1.0 if score is None else score}
        ray.train.report(progress | metrics, checkpoint=checkpoint)


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
