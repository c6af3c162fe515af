"""Measure the contribution of each part of the objective on newsroom: every recipe, several seeds, mean and spread.

A cell is one recipe and one seed. All cells have the same budget, the same small model and the same pairs; cells of one
seed have the same order. The published model starts from pre-trained encoders. Here every cell starts from the same
text side, which was trained on texts alone; all other weights are random. A finished cell is kept in the JSON file, so
that the command continues after an interruption.

    asap newsroom corpus --pairs 48000 --seed 100 --splits 46500 1500 0
    asap newsroom unseen --pairs 3000 --seed 101 --splits 0 0 3000
    python bench/ablation.py corpus unseen [--recipes hammer asap …] [--seeds 0 1 2] [--pairs 12000]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from asap.evaluation.evaluate import evaluate_split
from asap.preprocessing.text import load_tokenizer, train_tokenizer
from asap.training.objective import RECIPES
from jobs.train.data.splits import Split, prepare_splits, read_splits
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings
from jobs.train.trainer import Trainer, model_config

SMALL: dict[str, Any] = {
    "width": 128, "heads": 4, "image_layers": 3, "image_mlp_width": 512, "text_mlp_width": 512, "embed_dim": 64,
}  # fmt: skip
"""Changes to the tiny preset, so that a cell takes minutes."""
FIGURES = (
    "AUC", "ACC", "mAP", "CF1", "IoU_mean", "IoU50", "IoU50_gated", "IoU50_boxed", "token_F1",
)  # fmt: skip
TEXT_SIDE = ("text_encoder.", "fusion_encoder.", "token_head.")
MODELS = ("student", "twin")
"""The weights after the last step, as published, and their running average."""


@dataclass(frozen=True)
class Grid:
    """The settings that all cells share."""

    corpus: Path
    """The corpus whose training split the cells train on."""
    unseen: Path
    """The corpus whose test split the cells are evaluated on."""
    work: Path
    """The folder of tokenizer, decoded pictures and start."""
    pairs: int
    word_pairs: int

    @property
    def folder(self) -> RunFolder:
        """The work folder, with the files of a training run."""
        return RunFolder(self.work)

    def settings(self, recipe: str, seed: int, **changes: Any) -> TrainSettings:
        """Return the settings of a cell. LMA is used from the first step, except in `asap-ray`, which adds it last."""
        late = {} if recipe == "asap-ray" else {"alignment_from": 0.0}
        common: dict[str, Any] = {
            "corpus": str(self.corpus), "test_corpus": str(self.unseen), "out": str(self.work), "ingest": "cache",
            "recipe": recipe, "seed": seed, "model": SMALL, "pairs": self.pairs, "words_until": 0.0,
            "warmup_pairs": 1_600, "alpha_ramp_pairs": self.pairs // 3,
        }  # fmt: skip
        return TrainSettings(**(common | late | changes))

    def prepare(self) -> None:
        """Make tokenizer, pictures and start, unless they exist already."""
        settings = self.settings("asap", 0)
        corpora = read_splits(settings, "dgm4")
        if not self.folder.tokenizer.exists():
            texts = [text for record in corpora["train"].records for text in (record.text, record.caption)]
            train_tokenizer(texts, settings.vocab_size).save_pretrained(self.folder.tokenizer)
        config = model_config(settings, len(load_tokenizer(self.folder.tokenizer)))
        prepare_splits(self.folder, settings, corpora, config, lambda event: None)
        self.start()

    def split(self, recipe: str, name: str, limit: int = 0) -> Split:
        """Return the pairs for a model of this recipe, the first `limit` of them if it is not 0."""
        config = model_config(self.settings(recipe, 0), len(load_tokenizer(self.folder.tokenizer)))
        return replace(_open_split(self, name, limit), config=config)

    def start(self) -> Path:
        """Train a text side on texts alone, which replaces BERT, and return its file."""
        path = self.work / f"start_{self.word_pairs}.safetensors"
        if not path.exists():
            # The first half of this run trains on words alone. The second half is never run.
            settings = self.settings(
                "asap", 0, pairs=2 * self.word_pairs, words_until=0.5, alignment_from=0.5, warmup_pairs=6_400
            )
            trainer = Trainer(settings, self.split("asap", "train"))
            for _ in trainer.steps():
                if trainer.pairs_done >= self.word_pairs:
                    break
            weights = trainer.module.twin.model.state_dict()
            save_file({name: value for name, value in weights.items() if name.startswith(TEXT_SIDE)}, path)
        return path

    def cell(self, recipe: str, seed: int) -> dict[str, Any]:
        """Train and evaluate one cell."""
        settings = self.settings(recipe, seed)
        trainer = Trainer(settings, self.split(recipe, "train", self.pairs))
        start = load_file(self.start())
        for model in (trainer.module.student, trainer.module.twin.model):
            left = model.load_state_dict(start, strict=False)
            if left.unexpected_keys or any(name.startswith(TEXT_SIDE) for name in left.missing_keys):
                raise SystemExit(f"the start does not trainer the model: {left}")
        before = time.process_time()
        last = {}
        for losses in trainer.steps():
            last = losses[-1] if losses else last
        cpu_s = time.process_time() - before
        test = self.split(recipe, "test")
        models = {"student": trainer.module.student, "twin": trainer.module.twin.model}
        reports = {name: evaluate_split(model, test.pairs, elsewhere=True) for name, model in models.items()}
        kept = {
            name: {key: report[key] for key in (*FIGURES, "AP", "AP_elsewhere")} for name, report in reports.items()
        }
        return {"recipe": recipe, "seed": seed, "pairs": self.pairs, "word_pairs": self.word_pairs,
                "train_cpu_s": cpu_s, "last_losses": last} | kept  # fmt: skip


@cache
def _open_split(grid: Grid, name: str, limit: int) -> Split:
    """Open a split once for all cells of this process; the pairs are the same for every recipe."""
    settings = grid.settings("asap", 0)
    config = model_config(settings, len(load_tokenizer(grid.folder.tokenizer)))
    return Split.open(settings, grid.folder, name, config, limit)


def _run_cell(grid: Grid, recipe: str, seed: int) -> dict[str, Any]:
    """Run one cell on one thread, in a process of the pool."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    return grid.cell(recipe, seed)


def run(grid: Grid, recipes: list[str], seeds: list[int], file: Path, processes: int) -> list[dict[str, Any]]:
    """Run every cell that the file does not hold yet, seed by seed; write the file after each cell."""
    cells = json.loads(file.read_text()) if file.exists() else []
    done = {(cell["recipe"], cell["seed"], cell["pairs"], cell["word_pairs"]) for cell in cells}
    wanted = [(recipe, seed) for seed in seeds for recipe in recipes]
    left = [cell for cell in wanted if (*cell, grid.pairs, grid.word_pairs) not in done]
    grid.prepare()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_run_cell, grid, *cell) for cell in left]):
            cells.append(future.result())
            cells.sort(key=lambda cell: (list(RECIPES).index(cell["recipe"]), cell["seed"]))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(cells, indent=1) + "\n")
            show(cells)
    return cells


def table(cells: list[dict[str, Any]]) -> list[list[str]]:
    """Return a row for each recipe and model: mean and standard deviation over the seeds."""
    rows = []
    for recipe in dict.fromkeys(cell["recipe"] for cell in cells):
        some = [cell for cell in cells if cell["recipe"] == recipe]
        for model in MODELS:
            figures = [_spread([cell[model][name] for cell in some]) for name in FIGURES]
            cost = _spread([1000 * cell["train_cpu_s"] / cell["pairs"] for cell in some], 0)
            rows.append([recipe, model, str(len(some)), *figures, cost])
    return rows


def _spread(values: list[float], digits: int = 3) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


COLUMNS = ("recipe", "weights", "seeds", *FIGURES, "training, CPU ms a pair")


def show(cells: list[dict[str, Any]]) -> None:
    """Print a table of the cells so far."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(*COLUMNS)
    for row in table(cells):
        shown.add_row(*row)
    Console(width=190).print(shown)


def markdown(cells: list[dict[str, Any]]) -> str:
    """Return the table in Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *table(cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Run the grid, or print the table of the cells so far."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("unseen", type=Path)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=12_000, help="Pairs that a cell trains on.")
    parser.add_argument("--word-pairs", type=int, default=64_000, help="Texts that the start is trained on.")
    parser.add_argument("--work", type=Path, default=Path("out/ablation"))
    parser.add_argument("--json", type=Path, default=Path("docs/ablation.json"))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="Cells that run at a time.")
    parser.add_argument("--markdown", action="store_true", help="Print the table of the cells so far and run nothing.")
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown(json.loads(arguments.json.read_text())))
        return
    paths = (path.resolve() for path in (arguments.corpus, arguments.unseen, arguments.work))
    grid = Grid(*paths, arguments.pairs, arguments.word_pairs)
    run(grid, arguments.recipes, arguments.seeds, arguments.json, arguments.processes)


if __name__ == "__main__":
    main()
