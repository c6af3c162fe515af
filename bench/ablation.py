"""What each part of the objective brings on newsroom, at equal budgets: every recipe, several seeds, mean and spread.

A cell is one recipe and one seed: the same small model, the same pairs, the same order for a seed. Where the published
model starts from pre-trained encoders, every cell starts from the same text side, which learned words from texts alone;
all else starts from random weights. A finished cell is kept in the JSON file, so that the command goes on where it was
stopped.

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
"""Changes to the tiny preset: a cell has to fit minutes."""
FIGURES = (
    "AUC", "ACC", "mAP", "CF1", "IoU_mean", "IoU50", "IoU50_gated", "IoU50_boxed", "token_F1",
)  # fmt: skip
TEXT_SIDE = ("text_encoder.", "fusion_encoder.", "token_head.")
MODELS = ("student", "twin")
"""The weights after the last step, as published, and their running average."""


@dataclass(frozen=True)
class Grid:
    """What the cells share. `work` keeps tokenizer, decoded pictures and the start."""

    corpus: Path
    """Cells train on its training split."""
    unseen: Path
    """And are judged on the test split of this one."""
    work: Path
    pairs: int
    word_pairs: int

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.work)

    def settings(self, recipe: str, seed: int, **changes: Any) -> TrainSettings:
        """A run of the grid. LMA's terms are there from the first step, but where the recipe is to add them last."""
        late = {} if recipe == "asap-ray" else {"alignment_from": 0.0}
        given: dict[str, Any] = {
            "corpus": str(self.corpus), "test_corpus": str(self.unseen), "out": str(self.work), "ingest": "cache",
            "recipe": recipe, "seed": seed, "model": SMALL, "pairs": self.pairs, "words_until": 0.0,
            "warmup_pairs": 1_600, "alpha_ramp_pairs": self.pairs // 3,
        }  # fmt: skip
        return TrainSettings(**(given | late | changes))

    def prepare(self) -> None:
        """Tokenizer, pictures and the start, once."""
        settings = self.settings("asap", 0)
        corpora = read_splits(settings, "dgm4")
        if not self.folder.tokenizer.exists():
            texts = [text for record in corpora["train"].records for text in (record.text, record.caption)]
            train_tokenizer(texts, settings.vocab_size).save_pretrained(self.folder.tokenizer)
        config = model_config(settings, len(load_tokenizer(self.folder.tokenizer)))
        prepare_splits(self.folder, settings, corpora, config, lambda event: None)
        self.start()

    def split(self, recipe: str, name: str, limit: int = 0) -> Split:
        """Pairs for a model of this recipe; `limit` keeps the first so many."""
        config = model_config(self.settings(recipe, 0), len(load_tokenizer(self.folder.tokenizer)))
        return replace(_opened(self, name, limit), config=config)

    def start(self) -> Path:
        """The text side of a model that read texts alone, in the place of BERT."""
        path = self.work / f"start_{self.word_pairs}.safetensors"
        if not path.exists():
            # Two shares of the run, of which the first is words alone and the second is not run.
            settings = self.settings(
                "asap", 0, pairs=2 * self.word_pairs, words_until=0.5, alignment_from=0.5, warmup_pairs=6_400
            )
            fit = Trainer(settings, self.split("asap", "train"))
            for _ in fit.steps():
                if fit.pairs_done >= self.word_pairs:
                    break
            weights = fit.module.twin.model.state_dict()
            save_file({name: value for name, value in weights.items() if name.startswith(TEXT_SIDE)}, path)
        return path

    def cell(self, recipe: str, seed: int) -> dict[str, Any]:
        """Train and judge one cell."""
        settings = self.settings(recipe, seed)
        fit = Trainer(settings, self.split(recipe, "train", self.pairs))
        start = load_file(self.start())
        for model in (fit.module.student, fit.module.twin.model):
            left = model.load_state_dict(start, strict=False)
            if left.unexpected_keys or any(name.startswith(TEXT_SIDE) for name in left.missing_keys):
                raise SystemExit(f"the start does not fit: {left}")
        before = time.process_time()
        last = {}
        for terms in fit.steps():
            last = terms
        cpu_s = time.process_time() - before
        test = self.split(recipe, "test")
        models = {"student": fit.module.student, "twin": fit.module.twin.model}
        reports = {name: evaluate_split(model, test.pairs, elsewhere=True) for name, model in models.items()}
        kept = {
            name: {key: report[key] for key in (*FIGURES, "AP", "AP_elsewhere")} for name, report in reports.items()
        }
        return {"recipe": recipe, "seed": seed, "pairs": self.pairs, "word_pairs": self.word_pairs,
                "train_cpu_s": cpu_s, "last_losses": last} | kept  # fmt: skip


@cache
def _opened(grid: Grid, name: str, limit: int) -> Split:
    """Cells of one process share it: the pairs are the same for every recipe."""
    settings = grid.settings("asap", 0)
    config = model_config(settings, len(load_tokenizer(grid.folder.tokenizer)))
    return Split.open(settings, grid.folder, name, config, limit)


def _cell(grid: Grid, recipe: str, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    return grid.cell(recipe, seed)


def run(grid: Grid, recipes: list[str], seeds: list[int], file: Path, processes: int) -> list[dict[str, Any]]:
    """Every cell that the file does not hold yet; the file is written after each. All recipes of a seed, then more."""
    cells = json.loads(file.read_text()) if file.exists() else []
    done = {(cell["recipe"], cell["seed"], cell["pairs"], cell["word_pairs"]) for cell in cells}
    wanted = [(recipe, seed) for seed in seeds for recipe in recipes]
    left = [cell for cell in wanted if (*cell, grid.pairs, grid.word_pairs) not in done]
    grid.prepare()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_cell, grid, *cell) for cell in left]):
            cells.append(future.result())
            cells.sort(key=lambda cell: (list(RECIPES).index(cell["recipe"]), cell["seed"]))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(cells, indent=1) + "\n")
            show(cells)
    return cells


def table(cells: list[dict[str, Any]]) -> list[list[str]]:
    """A row for each recipe and model: mean and standard deviation over the seeds."""
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
    """The cells so far."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(*COLUMNS)
    for row in table(cells):
        shown.add_row(*row)
    Console(width=190).print(shown)


def markdown(cells: list[dict[str, Any]]) -> str:
    """The same for a page."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *table(cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("unseen", type=Path)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=12_000, help="of one cell")
    parser.add_argument("--word-pairs", type=int, default=64_000, help="texts that the start reads")
    parser.add_argument("--work", type=Path, default=Path("out/ablation"))
    parser.add_argument("--json", type=Path, default=Path("docs/ablation.json"))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="cells at a time")
    parser.add_argument("--markdown", action="store_true", help="print the table of what is there, and run nothing")
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown(json.loads(arguments.json.read_text())))
        return
    places = (path.resolve() for path in (arguments.corpus, arguments.unseen, arguments.work))
    grid = Grid(*places, arguments.pairs, arguments.word_pairs)
    run(grid, arguments.recipes, arguments.seeds, arguments.json, arguments.processes)


if __name__ == "__main__":
    main()
