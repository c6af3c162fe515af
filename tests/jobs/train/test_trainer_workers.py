"""Two trainers in two processes, which train together over gloo."""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from asap.evaluation.evaluate import evaluate_split, evaluate_split_together
from jobs.errors import TrainingDiverged
from jobs.train.checkpoints import CheckpointSchedule
from jobs.train.data.splits import Split
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings
from jobs.train.trainer import Trainer, model_config
from tests.support.ten_pairs import (
    MODEL,
    changed,
    gradients,
    make_gradients_nan,
    make_run_folder,
    prepare_split,
    run,
    settings_in,
    vocabulary,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run_folder(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def settings(folder: RunFolder) -> TrainSettings:
    return settings_in(folder)


@pytest.fixture(scope="module")
def split(folder: RunFolder, settings: TrainSettings) -> Split:
    return prepare_split(folder, settings)


def wrap(module: nn.Module, find_unused: bool) -> DistributedDataParallel:
    return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=find_unused)


@contextmanager
def joined(rank: int, settings: TrainSettings, left: Path) -> Iterator[Callable[[Path | None], Trainer]]:
    """Join the other of two workers over gloo. Provide a function that makes this worker's trainer, from a checkpoint.

    `left` is the folder in which the workers meet and leave their results.
    """
    torch.set_num_threads(1)
    folder = RunFolder(Path(settings.out))
    split = Split.open(settings, folder, "train", model_config(settings, vocabulary(folder)))
    dist.init_process_group("gloo", init_method=f"file://{left}/rendezvous", rank=rank, world_size=2)

    def begin(checkpoint: Path | None) -> Trainer:
        trainer = Trainer(settings, split, rank=rank, world=2)
        if checkpoint:
            trainer.restore(checkpoint)
        trainer.distribute(wrap)
        return trainer

    try:
        yield begin
    finally:  # if one worker fails, the other must not wait for it
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    """Two processes for workers that train together; each takes seconds to start."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield pool


def run_two_workers(
    processes: Executor, work: Callable[[int, TrainSettings, Path], None], settings: TrainSettings, left: Path
) -> list[dict[str, Any]]:
    """Run `work` on two workers and return the results that they leave, by rank."""
    ends = [processes.submit(work, rank, changed(settings, workers=2), left) for rank in range(2)]
    for end in ends:
        end.result()
    return [torch.load(left / f"{rank}.pt", weights_only=True) for rank in range(2)]  # noqa: TID251  # our own file


def train_together(rank: int, settings: TrainSettings, left: Path) -> None:
    """Leave the gradients of the first step, how often gradients were averaged, and the state at the end."""
    averaged: list[int] = []

    def count(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        averaged.append(bucket.index())
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]  # None is the whole world

    def wrap_and_count(module: nn.Module, find_unused: bool) -> DistributedDataParallel:
        wrapped = wrap(module, find_unused)
        wrapped.register_comm_hook(None, count)
        return wrapped

    with joined(rank, settings, left) as begin:
        trainer = begin(None)
        trainer.distribute(wrap_and_count)
        run(trainer, 1)
        first = {name: value.clone() for name, value in gradients(trainer).items()}
        run(trainer)
        torch.save({"first": first, "averaged": averaged, "module": trainer.module.state_dict()}, left / f"{rank}.pt")


@pytest.mark.parametrize("embedding", ["linear", "conv"])
def test_two_workers_with_micro_batches_average_once_a_step_and_stay_alike(
    processes: Executor, settings: TrainSettings, split: Split, folder: RunFolder, tmp_path: Path, embedding: str
) -> None:
    without_dropout = MODEL | {"dropout": 0.0, "patch_embedding": embedding}
    settings = changed(settings, model=without_dropout, loss_weights={"vlc": 0.0, "mlm": 0.0}, lock_image_from=0.5)
    alone = Trainer(settings, dataclasses.replace(split, config=model_config(settings, vocabulary(folder))))
    run(alone, 1)

    two = run_two_workers(processes, train_together, changed(settings, accumulation=2), tmp_path)

    for worker in two:
        if embedding == "linear":  # the convolutional one normalizes over its micro batch
            torch.testing.assert_close(worker["first"], gradients(alone), atol=1e-5, rtol=0)
        assert worker["averaged"].count(0) == alone.total_steps == 6
    torch.testing.assert_close(two[0]["module"], two[1]["module"], rtol=0, atol=0)


@pytest.mark.slow
def test_two_workers_have_the_same_gradients_with_and_without_compiled_encoders(
    processes: Executor, settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    # MLM draws the words that it hides over the padding too, which compiled encoders have more of.
    without_dropout = changed(settings, model=MODEL | {"dropout": 0.0}, loss_weights={"mlm": 0.0}, accumulation=2)
    runs = {}
    for compile in ("off", "on"):
        (left := tmp_path / compile).mkdir()
        runs[compile] = run_two_workers(processes, train_together, changed(without_dropout, compile=compile), left)
    one, other = runs["on"]
    torch.testing.assert_close(one["module"], other["module"], rtol=0, atol=0)
    # The norm before the aggregate token, which starts near zero, enlarges rounding fifty times.
    for name, expected in runs["off"][0]["first"].items():
        assert (one["first"][name] - expected).norm() <= 1e-5 + 0.01 * expected.norm(), name


def note_searches(rank: int, settings: TrainSettings, left: Path) -> None:
    """Leave, for each step, whether parameters without a gradient were searched for."""
    with joined(rank, settings, left) as begin:
        trainer, searched = begin(None), []
        for _ in trainer.steps():
            searched.append(cast("Any", trainer.step_module).find_unused_parameters)
        torch.save({"searched": searched, "module": trainer.module.state_dict()}, left / f"{rank}.pt")


def test_parameters_without_a_gradient_are_searched_for_only_in_stages_that_may_have_some(
    processes: Executor, settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    # Two steps of words alone, three of everything, three with a locked image encoder.
    stages = changed(settings, pairs=32, words_until=0.25, alignment_from=0.25, lock_image_from=0.625)
    two = run_two_workers(processes, note_searches, stages, tmp_path)
    for worker in two:
        assert worker["searched"] == [True, True, True, False, False, True, False, False]
    torch.testing.assert_close(two[0]["module"], two[1]["module"], rtol=0, atol=0)


def evaluate_together(rank: int, settings: TrainSettings, left: Path) -> None:
    """Leave the report of a split whose batches two workers divided among them."""
    with joined(rank, settings, left) as begin:
        trainer = begin(None)
        pairs = trainer.split.pairs
        reports = [evaluate_split_together(trainer.module.twin.model, pairs, size) for size in (2, 4, 16)]
        torch.save({"reports": reports}, left / f"{rank}.pt")


def test_two_workers_evaluate_a_split_to_the_figures_of_one(
    processes: Executor, settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    model = Trainer(settings, split).module.twin.model
    alone = [evaluate_split(model, split.pairs, size) for size in (2, 4, 16)]
    assert alone[0]["pairs"] == 10
    for worker in run_two_workers(processes, evaluate_together, settings, tmp_path):
        assert worker["reports"] == alone


def note_checkpoints(rank: int, settings: TrainSettings, left: Path) -> None:
    """Leave the steps at which a checkpoint was due, for a first worker that finds time up always and one that never.

    The second worker thinks otherwise in both cases.
    """
    found = {}
    with joined(rank, settings, left):
        for first in (True, False):
            every_s = 1e-9 if (rank == 0) == first else 1e9
            schedule = CheckpointSchedule(changed(settings, checkpoint_every_s=every_s), 40, 40, torch.device("cpu"))
            found[str(first)] = [step for step in range(1, 41) if schedule.is_due(step)]
    torch.save(found, left / f"{rank}.pt")


def test_the_clock_of_the_first_worker_decides_about_checkpoints(
    processes: Executor, settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    for worker in run_two_workers(processes, note_checkpoints, settings, tmp_path):
        assert worker == {"True": [16, 32, 40], "False": [40]}


def stop_and_resume_together(rank: int, settings: TrainSettings, left: Path) -> None:
    """Leave the final state of a run, and that of a run resumed from the checkpoint of the first worker."""
    with joined(rank, settings, left) as begin:
        whole = begin(None)
        run(whole, 2)
        random_states = whole.random_states()
        if rank == 0:
            whole.save(left, random_states)
        run(whole)
        resumed = begin(left)
        run(resumed)
        torch.save({"whole": whole.module.state_dict(), "resumed": resumed.module.state_dict()}, left / f"{rank}.pt")


def test_two_workers_that_were_killed_end_where_uninterrupted_ones_do(
    processes: Executor, settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    two = run_two_workers(processes, stop_and_resume_together, settings, tmp_path)

    assert any(name.endswith("running_var") for name in two[0]["whole"])
    for worker in two:
        torch.testing.assert_close(worker["resumed"], worker["whole"], rtol=0, atol=0)
        torch.testing.assert_close(worker["whole"], two[0]["whole"], rtol=0, atol=0)


def diverge_together(rank: int, settings: TrainSettings, left: Path) -> None:
    """Leave the error of a run in which the gradients of the second worker are NaN."""
    with joined(rank, settings, left) as begin:
        trainer = begin(None)
        if rank == 1:
            make_gradients_nan(trainer)
        with pytest.raises(TrainingDiverged) as caught:
            run(trainer)
        torch.save({"message": str(caught.value)}, left / f"{rank}.pt")


def test_every_worker_stops_if_the_gradients_of_one_are_not_finite_and_names_all_pairs_of_the_step(
    processes: Executor, settings: TrainSettings, split: Split, tmp_path: Path
) -> None:
    numbers, _ = Trainer(settings, split).order.rows_of_step(0)
    ids = [split.pairs.records[number].id for number in numbers]
    for worker in run_two_workers(processes, diverge_together, settings, tmp_path):
        assert worker["message"].startswith("the gradients of step 0 are not finite")
        assert f"its pairs are {', '.join(ids)}. Checkpoints are kept" in worker["message"]
