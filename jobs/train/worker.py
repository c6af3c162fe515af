"""Which failures of a training run are tried again: those that another try may not meet."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from ray.train import UserCallback

from asap.errors import AsapError, StorageError
from asap.preprocessing.text import load_tokenizer
from jobs.train.data.feed import Order
from jobs.train.data.splits import Split
from jobs.train.data.stream import open_feed
from jobs.train.export import SCORE
from jobs.train.run_folder.folder import RunFolder, checkpoint_folder
from jobs.train.run_folder.log import RunLog
from jobs.train.settings import TrainSettings
from jobs.train.trainer import Trainer, model_config

RETRIES = 3
"""Times that a run goes on by itself after a worker was lost."""


class FinalFailures(UserCallback):
    """Ends a run where a worker raised on purpose: the same steps from the same checkpoint come to the same end.

    Ray Train counts whatever a worker raises as a lost worker. It tells its callbacks first, and what one of them
    raises it does not try again.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise what is final of what the workers raised, by rank."""
        for error in worker_exceptions.values():
            if isinstance(error, AsapError) and not isinstance(error, StorageError):  # a store may be back
                raise error


def final_failure(error: Exception) -> AsapError | None:
    """What `FinalFailures` ended the run with, of what the trainer raised."""
    failure = getattr(error, "controller_failure", None)
    return failure if isinstance(failure, AsapError) else None


def train_worker(given: dict[str, Any]) -> None:
    """A worker: from the last checkpoint, if there is one, to the end of the run."""
    import ray.train
    from ray.train.torch import get_device, prepare_model

    settings = TrainSettings(**given["settings"])
    folder = RunFolder.open(settings.out)
    torch.set_num_threads(given["cpus"])
    torch.set_flush_denormal(True)  # vanishing gradients are not worth the hundredfold time of denormal numbers
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    with folder.locked():
        folder.pull("tokenizer", "start", "index")
        config = model_config(settings, len(load_tokenizer(folder.tokenizer)))
        split = Split.open(settings, folder, "train", config)
    feed = open_feed(settings, split.pairs, config, Order.of(settings, len(split.pairs), rank, world), given["cpus"])
    fit = Trainer(settings, split, rank=rank, world=world, device=get_device(), feed=feed)
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint_folder(checkpoint) as place:
            fit.restore(place)
    elif folder.start.exists():
        fit.begin_from(folder.start)
    if world > 1:
        # The queues are the same everywhere by construction, and `Trainer` averages running statistics; sending all
        # of it every step would cost more than the step.
        # Not every step uses every parameter: the projections rest until the contrast begins.
        options = {"broadcast_buffers": False, "find_unused_parameters": True}
        fit.distribute(prepare_model(fit.module, parallel_strategy_kwargs=options))
    log = RunLog(settings, folder, config, fit.pairs_done) if rank == 0 else None
    for terms in fit.steps():
        figures = log.see(fit, terms) if log else {}
        if fit.done % fit.steps_a_checkpoint == 0 or fit.done == fit.total_steps:
            _save_and_report(fit, figures)


def _save_and_report(fit: Trainer, figures: dict[str, Any]) -> None:
    """Give Ray Train a checkpoint (from the first worker: the others hold the same) and the figures."""
    import ray.train

    random_states = fit.random_states()
    with tempfile.TemporaryDirectory() as place:
        checkpoint = None
        if fit.rank == 0:
            fit.save(Path(place), random_states)
            checkpoint = ray.train.Checkpoint.from_directory(place)
        score = figures.get("AUC")
        told = {"pairs": fit.pairs_done, "of": fit.pairs_in_all, SCORE: -1.0 if score is None else score}
        ray.train.report(told | figures, checkpoint=checkpoint)
