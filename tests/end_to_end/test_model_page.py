"""docs/model.md: every command of the page works, in the page's own words, on a small corpus and a CPU."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from asap.finding import Pair
from asap.newsroom import generate
from asap.predictor import Predictor
from asap.preprocessing.text import train_tokenizer
from tests.support.commands import shell_commands
from tests.support.published import albef_state, golden_state, write_published
from tests.support.waiting import HANG_S

PAGE = Path(__file__).parents[2] / "docs" / "model.md"
PIECES = 512
"""Pieces of the tokenizer, as the golden HAMMER has."""
SMALL_MODEL = {
    "image_size": 64, "width": 48, "image_mlp_width": 96, "text_mlp_width": 96, "max_positions": 64, "max_tokens": 64,
    "embed_dim": 16,
}  # fmt: skip
"""The sizes of `albef_state`."""
SMALL_RUN = (
    f"--set {shlex.quote(f'model={json.dumps(SMALL_MODEL)}')} --pairs 64 --set batch_size=16 --set queue_size=64 "
    "--set checkpoint_pairs=64 --set validation_pairs=16"
)
KEEP_TYPES = "--keep face_swap --keep face_attribute --keep text_swap --keep text_attribute --keep word"


@dataclass(frozen=True)
class Step:
    """A command of the page, and what this test adds to it."""

    command: str
    says: tuple[str, ...]
    """Facts that the output states."""
    adds: str = ""
    """Options for a small corpus and a CPU."""
    because: str = ""


TRAIN = "train DGM4 --out run --init ALBEF_4M.pth --set tokenizer=bert-base-uncased --set preset=published"
STEPS = (
    # Training comes first, because an import below takes one of its checkpoints.
    Step(
        f"{TRAIN} --plan",
        ("ALBEF_4M.pth", "hours", "the settings are those of the published training, but for"),
        SMALL_RUN,
        "50 epochs of the base size are GPU days",
    ),
    Step(TRAIN, ("model: ", "run/model", "its familiarity file"), SMALL_RUN, "50 epochs of the base size are GPU days"),
    Step("evaluate run/model DGM4 --out evaluation", ("AUC", "evaluation/index.html")),
    Step(
        "import checkpoint_best.pth --tokenizer bert-base-uncased --out hammer",
        ("HAMMER, as published, epoch 49", "The model has no familiarity file", "0.5 for all"),
    ),
    Step(
        "import checkpoint_best.pth --tokenizer tokenizers/bert --out hammer-offline",
        ("HAMMER, as published, epoch 49",),
    ),
    Step(
        "import run/ray_train/checkpoint_2026-11-30_04-12-00.482913 --out early",
        ("ASAP, from the run run, after 4 steps, of its last step",),
    ),
    Step("model hammer", ("Nobody has recorded", "calibrated no", "The model has no familiarity file", "0.5 for all")),
    Step("familiarize hammer DGM4", ("1,010 pairs of train, 1,010 held-out pairs of val",)),
    Step(
        "calibrate hammer LABELED --precision 0.95 --prevalence 0.01",
        ("policy", "hammer/policy.json"),
        f"--precision 0.7 --prevalence 0.5 {KEEP_TYPES}",
        "so few pairs prove no precision at a prevalence of 0.01, and their labels follow the score alone",
    ),
    Step(
        "scan pairs.csv --out scans --model hammer",
        ("32/32 pairs", "scans/pairs/report/index.html", "Nobody has recorded what hammer was made from"),
    ),
)


def test_every_command_of_the_page_is_run_here() -> None:
    assert sorted(shell_commands(PAGE.read_text())) == sorted(step.command for step in STEPS)


@pytest.mark.slow
def test_every_command_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_files()
    for step in STEPS:
        prepare(step.command)
        run(step)


def run(step: Step) -> None:
    """Run a command with what this test adds to it. It must succeed, and state the facts."""
    words = shlex.split(f"{step.command} {step.adds}")
    done = subprocess.run(
        [sys.executable, "-c", "from jobs.cli.app import main; main()", *words], env=os.environ | {"COLUMNS": "200"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=HANG_S, check=False,
    )  # fmt: skip
    text = " ".join(done.stdout.split())
    shown = f"asap {shlex.join(words)}\n{done.stdout}"
    assert done.returncode == 0, shown
    assert [fact for fact in step.says if fact not in text] == [], shown


def write_files() -> None:
    """Write small files under the names of the page to the working folder."""
    generate(Path("DGM4"), pairs=252, seed=1, workers=2, splits=(110 / 252, 110 / 252, 32 / 252))
    for split in ("train", "val"):
        repeat_rows(Path("DGM4/metadata") / f"{split}.json", 1010)  # familiarity needs a thousand of each
    generate(Path("LABELED"), pairs=240, seed=2, workers=2, splits=(0, 1, 0))
    tokenizer = train_tokenizer((row["text"] for row in rows_of(Path("DGM4/metadata/train.json"))), PIECES, 64)
    assert len(tokenizer) == PIECES
    tokenizer.save_pretrained("bert-base-uncased")
    tokenizer.save_pretrained("tokenizers/bert")
    write_published(Path("checkpoint_best.pth"), golden_state("hammer_small_0"))
    torch.save({"model": albef_state({30522: PIECES, 512: 64})}, "ALBEF_4M.pth")
    with Path("pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "text"))
        writer.writerows((f"DGM4/{row['image']}", row["text"]) for row in rows_of(Path("DGM4/metadata/test.json")))


def prepare(command: str) -> None:
    """Bring what a command reads to the place that the page names."""
    name, first, *_ = shlex.split(command)
    if name == "import" and "ray_train" in first:
        shutil.copytree(sorted(Path("run/ray_train").glob("checkpoint_2*"))[-1], first)
    elif name == "calibrate":
        label_by_score(Path("LABELED"), "hammer")


def label_by_score(corpus: Path, model: str) -> None:
    """Call the half of a corpus manipulated to which a model gives the higher scores: a model that knows its task."""
    file = corpus / "metadata" / "val.json"
    rows = rows_of(file)
    pairs = [Pair(corpus / row["image"], row["text"]) for row in rows]
    scores = [finding.score or 0.0 for finding in Predictor.from_folder(model).predict(pairs)]
    middle = sorted(scores)[len(scores) // 2]
    truth: dict[str, Any] = {"fake_image_box": [], "fake_text_pos": []}
    labels = [truth | {"fake_cls": "face_attribute" if score >= middle else "orig"} for score in scores]
    file.write_text(json.dumps([row | label for row, label in zip(rows, labels, strict=True)]))


def rows_of(file: Path) -> list[dict[str, Any]]:
    return list(json.loads(file.read_text()))


def repeat_rows(file: Path, count: int) -> None:
    """Repeat the rows of a metadata file under other ids: fewer pictures to draw, to cache and to change."""
    rows = rows_of(file)
    repeated = [row | {"id": 10_000 * times + row["id"]} for times in range(count // len(rows) + 1) for row in rows]
    file.write_text(json.dumps(repeated[:count]))
