"""A trainer's run on a corpus of ten pairs of noise: real parts without Ray, of milliseconds per step."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from asap.corpus.reader import read_corpus
from asap.preprocessing.text import train_tokenizer
from jobs.train.data.splits import Split, prepare_splits
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings
from jobs.train.trainer import Trainer, model_config

MODEL: dict[str, Any] = {
    "image_size": 32, "width": 48, "heads": 4, "image_layers": 1, "image_mlp_width": 48, "text_layers": 1,
    "fusion_layers": 1, "text_mlp_width": 48, "embed_dim": 8, "dropout": 0.2,
}  # fmt: skip
CLASSES = ("orig", "face_swap", "text_swap", "face_attribute&text_attribute", "orig")
PAIRS = 10


def make_run_folder(parent: Path) -> RunFolder:
    """Make a run folder with a tokenizer, beside a corpus of ten pairs."""
    corpus = parent / "corpus"
    (corpus / "metadata").mkdir(parents=True)
    rows = []
    for number in range(PAIRS):
        noise = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(corpus / f"{number}.png")
        name = CLASSES[number % len(CLASSES)]
        rows.append({
            "id": number, "image": f"{number}.png", "text": f"the {'calm' if number % 2 else 'angry'} man {number}",
            "fake_cls": name, "fake_image_box": [5, 5, 25, 30] if "face" in name else [],
            "fake_text_pos": [1] if "text" in name else [],
        })  # fmt: skip
    (corpus / "metadata/train.json").write_text(json.dumps(rows))
    folder = RunFolder(parent / "out")
    train_tokenizer([row["text"] for row in rows], 200).save_pretrained(folder.tokenizer)
    return folder


def settings_in(folder: RunFolder) -> TrainSettings:
    """Return the settings of a run of six steps."""
    return TrainSettings(
        corpus=str(folder.path.parent / "corpus"), out=str(folder.path), model=MODEL, pairs=24, batch_size=4,
        warmup_pairs=8, alpha_ramp_pairs=12, queue_size=16, momentum=0.9, augmentation="published",
        words_until=0, alignment_from=0,
    )  # fmt: skip


def prepare_split(folder: RunFolder, settings: TrainSettings) -> Split:
    """Prepare and open the training split, as the driver and a worker do."""
    config = model_config(settings, vocabulary(folder))
    prepare_splits(folder, settings, {"train": read_corpus(settings.corpus, "train")}, config, lambda event: None)
    return Split.open(settings, folder, "train", config)


def vocabulary(folder: RunFolder) -> int:
    """Return the number of word pieces of the tokenizer."""
    return len(json.loads((folder.tokenizer / "tokenizer.json").read_text())["model"]["vocab"])


def changed(settings: TrainSettings, **changes: Any) -> TrainSettings:
    """Return the settings with changes."""
    return settings.model_copy(update=changes)


def run(trainer: Trainer, steps: int | None = None) -> list[dict[str, float]]:
    """Take so many steps, or all, and return their loss terms without the time that each took."""
    taken = []
    first = trainer.done
    for losses in trainer.steps():
        taken += [{name: value for name, value in terms.items() if name != "seconds"} for terms in losses]
        if trainer.done - first == steps:
            break
    return taken


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return the gradients of the student after a step."""
    return {name: p.grad for name, p in trainer.module.student.named_parameters() if p.grad is not None}


def make_gradients_nan(trainer: Trainer) -> None:
    """Make the gradients of one weight NaN from now on; the losses stay as they are."""
    trainer.module.student.box_head[0].weight.register_hook(lambda gradient: gradient * math.nan)
