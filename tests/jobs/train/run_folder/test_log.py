"""The log of the first worker: which weights are evaluated at a checkpoint, and on how many pairs."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from asap.corpus.reader import read_corpus
from asap.model.asap import Asap
from asap.training.dataset import TrainingSet
from jobs.train.data.splits import prepare_splits
from jobs.train.run_folder import log as log_module
from jobs.train.run_folder.log import HEADLINE, RunLog
from jobs.train.trainer import Trainer
from tests.support.ten_pairs import PAIRS, changed, make_run_folder, prepare_split, run, settings_in

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("changes", "pairs"),
    [
        ({"weights": "student", "validation_pairs": None}, PAIRS),
        ({"weights": "average", "validation_pairs": 4}, 4),
    ],
)
def test_a_checkpoint_is_evaluated_with_the_set_weights_on_the_set_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], pairs: int
) -> None:
    folder = make_run_folder(tmp_path)
    settings = changed(settings_in(folder), checkpoint_pairs=None, **changes)
    split = prepare_split(folder, settings)
    metadata = tmp_path / "corpus/metadata"
    shutil.copy(metadata / "train.json", metadata / "val.json")
    prepare_splits(folder, settings, {"val": read_corpus(settings.corpus, "val")}, split.config, lambda event: None)
    trainer = Trainer(settings, split)
    evaluated: list[tuple[Asap, int]] = []

    def evaluate(model: Asap, some: TrainingSet) -> dict[str, Any]:
        evaluated.append((model, len(some)))
        return dict.fromkeys(HEADLINE, 0.5)

    monkeypatch.setattr(log_module, "evaluate_split", evaluate)
    log = RunLog(settings, folder, split.config)
    for _ in range(6):
        (terms,) = run(trainer, 1)
        log.record_step(trainer, terms | {"seconds": 0.1})
    expected = trainer.module.student if changes["weights"] == "student" else trainer.module.twin.model
    assert [model is expected for model, _ in evaluated] == [True] * 3  # at the end of each epoch of two steps
    assert {count for _, count in evaluated} == {pairs}
