"""A training run of a small model on a corpus of a hundred pairs: real parts that cost little time."""

from pathlib import Path
from typing import Any

import pytest

from asap.newsroom import generate
from jobs.train.settings import TrainSettings

MODEL = {
    "image_size": 32, "width": 48, "heads": 4, "image_layers": 1, "image_mlp_width": 48, "text_layers": 1,
    "fusion_layers": 1, "text_mlp_width": 48, "embed_dim": 8,
}  # fmt: skip


def draw_corpus(folders: pytest.TempPathFactory) -> Path:
    """Draw a corpus of sixty training, twenty validation and twenty test pairs."""
    folder = folders.mktemp("drawn") / "corpus"
    generate(folder, pairs=100, seed=3, workers=1, splits=(0.6, 0.2, 0.2))
    return folder


def settings_for(corpus: Path | str, out: Path | str, **changes: Any) -> TrainSettings:
    """Return the settings of a run of eight steps."""
    few: dict[str, Any] = {
        "corpus": str(corpus), "out": str(out), "name": "small", "model": MODEL, "vocab_size": 300, "pairs": 64,
        "batch_size": 8, "warmup_pairs": 16, "words_until": 0.125, "alignment_from": 0.25, "alpha_ramp_pairs": 16,
        "queue_size": 32, "checkpoint_pairs": 32, "validation_pairs": 15, "cpus_per_worker": 1,
    }  # fmt: skip
    return TrainSettings(**(few | changes))
