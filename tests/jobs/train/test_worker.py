"""Tests of the work of a training worker: its validation, and the errors that end a run."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import ControllerError, WorkerGroupError

from asap.corpus.reader import read_corpus
from asap.errors import AsapError, CorpusError, StorageError
from asap.model.asap import Asap
from asap.training.dataset import TrainingSet
from jobs.errors import TrainingDiverged
from jobs.train.data.splits import prepare_splits
from jobs.train.run_folder.log import HEADLINE
from jobs.train.trainer import STATE_FILE, Trainer, write_state
from jobs.train.worker import FinalFailures, final_failure, last_failure, open_validation, validate
from tests.support.ten_pairs import PAIRS, changed, make_run_folder, prepare_split, settings_in


@pytest.mark.parametrize("error", [TrainingDiverged("the loss of step 3 is not finite"), CorpusError("a.jpg is gone")])
def test_an_error_of_ours_ends_the_run(error: AsapError) -> None:
    with pytest.raises(type(error), match=str(error)):
        FinalFailures().after_exception(None, {0: RuntimeError("connection reset"), 1: error})


@pytest.mark.parametrize("error", [RuntimeError("killed"), StorageError("s3://a cannot be used: timed out")])
def test_a_run_continues_after_a_lost_worker_or_store(error: Exception) -> None:
    FinalFailures().after_exception(None, {0: error})


def test_the_error_that_ended_the_run_is_found_in_the_exception_of_rays_trainer() -> None:
    diverged = TrainingDiverged("the loss of step 3 is not finite")
    assert final_failure(ControllerError(diverged)) is diverged
    assert final_failure(ControllerError(RuntimeError("out of memory"))) is None
    assert final_failure(WorkerGroupError("rank 0 died", {0: RuntimeError("killed")})) is None


def test_the_error_of_a_store_after_all_attempts_is_found_among_those_of_the_workers() -> None:
    full = StorageError("/run/state.pt cannot be written: the disk is full. Free space there.")
    assert last_failure(WorkerGroupError("a long traceback", {0: RuntimeError("killed"), 1: full})) is full
    killed = WorkerGroupError("a long traceback", {0: RuntimeError("killed")})
    assert last_failure(killed) is killed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_checkpoint_on_a_full_disk_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"state\.pt cannot be written: the disk is full \(.*\)\. Free space"):
        write_state({"done": 1, "weights": torch.zeros(100_000)}, tmp_path)


@pytest.fixture
def in_tf32() -> Iterator[None]:
    """The precision of a worker with `precision=tf32` and a GPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("changes", "pairs"),
    [
        ({"weights": "student", "validation_pairs": None}, PAIRS),
        ({"weights": "average", "validation_pairs": 4}, 4),
    ],
)
def test_a_checkpoint_is_evaluated_in_float32_with_the_set_weights_on_the_set_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_tf32: None, changes: dict[str, Any], pairs: int
) -> None:
    folder = make_run_folder(tmp_path)
    settings = changed(settings_in(folder), **changes)
    split = prepare_split(folder, settings)
    metadata = tmp_path / "corpus/metadata"
    shutil.copy(metadata / "train.json", metadata / "val.json")
    prepare_splits(folder, settings, {"val": read_corpus(settings.corpus, "val")}, split.config, lambda event: None)
    trainer = Trainer(settings, split)
    evaluated: list[tuple[Asap, int]] = []

    def evaluate(model: Asap, some: TrainingSet) -> dict[str, Any]:
        evaluated.append((model, len(some)))
        assert torch.get_float32_matmul_precision() == "highest"
        return dict.fromkeys(HEADLINE, 0.5)

    monkeypatch.setattr("jobs.train.worker.evaluate_split_together", evaluate)
    assert validate(trainer, open_validation(settings, folder, split.config)) == dict.fromkeys(HEADLINE, 0.5)
    assert torch.get_float32_matmul_precision() == "high"
    expected = trainer.module.student if changes["weights"] == "student" else trainer.module.twin.model
    assert [(model is expected, count) for model, count in evaluated] == [(True, pairs)]
