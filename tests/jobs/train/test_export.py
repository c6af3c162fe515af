from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import Checkpoint

from jobs.train.export import SCORE, ChosenCheckpoint
from jobs.train.trainer import STATE_FILE


def checkpoint(folder: Path, value: float) -> Checkpoint:
    folder.mkdir()
    torch.save({"module": {"twin.module.weight": torch.tensor(value), "student.weight": torch.tensor(-1.0)}},
               folder / STATE_FILE)  # fmt: skip
    return Checkpoint.from_directory(folder)


def metrics(pairs: int, score: float) -> dict[str, Any]:
    return {"pairs": pairs, SCORE: score}


def test_the_best_checkpoint_by_validation_or_the_last_is_chosen(tmp_path: Path) -> None:
    good, last = checkpoint(tmp_path / "good", 1.0), checkpoint(tmp_path / "last", 2.0)
    kept = [(last, metrics(640, 0.7)), (good, metrics(320, 0.9))]

    best = ChosenCheckpoint.of(kept, last, "best")
    assert (best.weights, best.pairs, best.score) == ({"weight": torch.tensor(1.0)}, 320, 0.9)
    assert str(best) == "the best checkpoint after 320 pairs (validation AUC 0.900)"
    assert str(ChosenCheckpoint.of(kept, last, "last")) == "the last checkpoint after 640 pairs (validation AUC 0.700)"


def test_the_later_of_two_equally_good_checkpoints_is_chosen(tmp_path: Path) -> None:
    one, two = checkpoint(tmp_path / "one", 1.0), checkpoint(tmp_path / "two", 2.0)
    kept = [(two, metrics(640, 0.9)), (one, metrics(320, 0.9))]
    assert ChosenCheckpoint.of(kept, two, "best").pairs == 640


@pytest.mark.parametrize("rule", ["best", "last"])
def test_an_undefined_auc_is_not_shown(tmp_path: Path, rule: Any) -> None:
    last = checkpoint(tmp_path / "last", 1.0)
    chosen = ChosenCheckpoint.of([(last, metrics(64, -1.0))], last, rule)
    assert chosen.score is None
    assert str(chosen) == f"the {rule} checkpoint after 64 pairs"


def test_a_run_without_metrics_exports_its_last_checkpoint(tmp_path: Path) -> None:
    last = checkpoint(tmp_path / "last", 1.0)
    assert str(ChosenCheckpoint.of([], last, "best")) == "the best checkpoint"
