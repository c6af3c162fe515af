"""Measure what each part of the objective contributes on newsroom: one change a row, paired seeds, tests of the mean.

A cell is one row and one seed. All cells have the same budget, the same small model, the same pairs and the same start:
encoders that were pre-trained on true descriptions of the pictures of another seed, as the published model starts from
ALBEF (`pretraining.py`). Cells of one seed have the same order of pairs, and the same fresh weights unless their model
has other heads, so that rows are compared seed by seed. A finished cell is kept in the JSON file under a key of all
that decides its result, so that the command continues after an interruption, and a cell of other code, another corpus
or another start is never mixed in.

    asap newsroom C/100 --pairs 48000 --seed 100 --splits 46500 1500 0
    asap newsroom C/104 --pairs 22000 --seed 104 --splits 22000 0 0
    asap newsroom C/101 --pairs 3000 --seed 101 --splits 0 0 3000
    python bench/ablation.py prepare --corpora C/100 C/104 C/101
    python bench/ablation.py run --corpora C/100 C/104 C/101 [--rows asap hammer …] [--seeds 0 1 2]
    python bench/ablation.py show [--markdown]
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pretraining
import torch
from contradictions import TextEvidence, text_evidence
from scipy.stats import ttest_rel
from sklearn.metrics import roc_auc_score

from asap.evaluation.evaluate import evaluate_batch
from asap.evaluation.intervals import bootstrap_intervals
from asap.evaluation.metrics import Evaluation, Predictions
from asap.labels import IMAGE_TYPES
from asap.model.asap import Asap
from asap.preprocessing.text import load_tokenizer, train_tokenizer
from asap.storage.files import write_atomically
from asap.training.dataset import TrainingSet
from asap.training.objective import MppLabels, Recipe
from jobs.corpus import read_corpus
from jobs.train.data.splits import Split, prepare_splits
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings
from jobs.train.trainer import Trainer, model_config

SMALL: dict[str, Any] = {
    "width": 128, "heads": 4, "image_layers": 3, "image_mlp_width": 512, "text_mlp_width": 512, "embed_dim": 64,
}  # fmt: skip
"""Changes to the tiny preset, so that a cell takes minutes."""
DECIDES = (
    "asap/model", "asap/training", "asap/evaluation/evaluate.py", "asap/evaluation/metrics.py",
    "jobs/train/data/feed.py", "jobs/train/stages.py", "jobs/train/trainer.py",
)  # fmt: skip
"""The code that decides the result of a cell, beside its settings."""
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """A row of the table: a recipe with one change."""

    recipe: str = "asap"
    weights: Mapping[str, float] = field(default_factory=dict)
    """Changes to the recipe's weights."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Changes to the model."""
    mpp_labels: MppLabels | None = None
    scalars: float | None = None
    """First value of ASAP's learned scalars; None: the model's own."""
    compared_with: str = "asap"
    """The row of which this one changes one part."""


BASELINE, RAY = "asap", "asap-ray"
ROWS: Mapping[str, Row] = {
    "asap": Row(),
    "hammer": Row("hammer"),
    "asap-ray": Row("asap-ray"),
    # One part of `asap-ray` removed.
    "ray - heads apart": Row("asap-ray", model={"type_heads": "joint"}, compared_with=RAY),
    "ray - patch labels": Row("asap-ray", weights={"mpp": 0.01}, mpp_labels="published", compared_with=RAY),
    "ray - box weights": Row("asap-ray", weights={"bbox_l1": 0.1, "giou": 0.1}, compared_with=RAY),
    "ray - cwp": Row("asap-ray", weights={"cwp": 0.0}, compared_with=RAY),
    "ray - mlm": Row("asap-ray", weights={"mlm": 0.0}, compared_with=RAY),
    "ray - mgca": Row("asap-ray", weights={"mgca": 0.0}, compared_with=RAY),
    "ray - scalars": Row("asap-ray", scalars=0.0, compared_with=RAY),
    # One part added to it.
    "ray + mgca after softmax": Row(
        "asap-ray", weights={"mgca": 0.0, "mgca_patches": 0.1, "mgca_words": 0.1}, compared_with=RAY
    ),
    "ray + presence gate": Row(
        "asap-ray", model={"box_gate": "presence"}, weights={"presence": 0.5}, compared_with=RAY
    ),
    "ray + patch consistency": Row("asap-ray", weights={"patch_consistency": 0.1}, compared_with=RAY),
    "ray + word consistency": Row("asap-ray", weights={"word_consistency": 0.1}, compared_with=RAY),
    "ray + hard negative": Row("asap-ray", weights={"hard_negative": 0.1}, compared_with=RAY),
}
"""All rows in their order in the grid. `asap-ray` is the recipe for random weights, as it stands. The others have one
change against the row that they are compared with.
"""

FIGURES = (
    "AUC", "ACC", "mAP", "AP swap", "swap − elsewhere", "AP attribute", "attribute − elsewhere", "AUC contradicting",
    "AUC picture only", "CF1", "IoU50", "IoU50 gated", "IoU50 boxed", "token F1",
)  # fmt: skip
"""The columns. `elsewhere` is the AP of the same texts beside another picture. The two AUC are those of manipulated
texts that contradict themselves, and of those that only the picture disproves, against texts that are not manipulated.
"""

INTERVALS = {
    "AUC": "AUC", "ACC": "ACC", "mAP": "mAP", "CF1": "CF1", "IoU50": "IoU50", "IoU50 gated": "IoU50_gated",
    "IoU50 boxed": "IoU50_boxed", "token F1": "token_F1",
}  # fmt: skip
"""The figures whose interval a cell keeps, with their names in an evaluation: 95 %, by a bootstrap over news items."""


class CellSettings(TrainSettings):
    """The settings of a cell: those of a run, and a change that no setting of a run makes."""

    mpp_labels: MppLabels | None = None

    @property
    def objective(self) -> Recipe:
        """The recipe with the changes of this cell."""
        recipe = super().objective
        return replace(recipe, mpp_labels=self.mpp_labels or recipe.mpp_labels)


@dataclass(frozen=True)
class Grid:
    """The settings that all cells share."""

    others: Path
    """The corpus whose training split the start is pre-trained on."""
    corpus: Path
    """The corpus whose training split the cells train on."""
    unseen: Path
    """The corpus whose test split the cells are evaluated on."""
    work: Path
    """The folder of tokenizer, decoded pictures and start."""
    pairs: int
    learning_rate: float
    image_learning_rate: float
    pretraining_pairs: int

    @property
    def folder(self) -> RunFolder:
        """The work folder of the cells, with the files of a training run."""
        return RunFolder(self.work / "cells")

    @property
    def start(self) -> Path:
        """The file of the pre-trained weights."""
        return self.work / f"start_{self.pretraining_pairs}.safetensors"

    def settings(self, row: Row, seed: int) -> CellSettings:
        """Return the settings of a cell: everything is trained from the first step, as from published weights."""
        return CellSettings(
            corpus=str(self.corpus), test_corpus=str(self.unseen), out=str(self.folder.path), ingest="cache",
            recipe=row.recipe, seed=seed, model=SMALL | dict(row.model), loss_weights=dict(row.weights),
            mpp_labels=row.mpp_labels, pairs=self.pairs, words_until=0.0, alignment_from=0.0,
            learning_rate=self.learning_rate, image_learning_rate=self.image_learning_rate,
            warmup_pairs=self.pairs // 10, alpha_ramp_pairs=self.pairs // 3,
        )  # fmt: skip

    def prepare(self) -> None:
        """Make start and pictures, unless they exist already, and evaluate the start."""
        early, settings = RunFolder(self.work / "pretraining"), self.settings(ROWS[BASELINE], 0)
        if not self.start.exists():
            self._pretrain(early, settings.model_copy(update={"corpus": str(self.others)}))
        # The vocabulary belongs to the pre-trained weights, as BERT's does to ALBEF.
        if not self.folder.tokenizer.exists():
            shutil.copytree(early.tokenizer, self.folder.tokenizer)
        if not self.folder.corpus.exists():
            corpora = {
                "train": read_corpus(settings, settings.corpus, "train", "dgm4"),
                "test": read_corpus(settings, str(self.unseen), "test", "dgm4"),
            }
            config = model_config(settings, len(load_tokenizer(self.folder.tokenizer)))
            prepare_splits(self.folder, settings, corpora, config, lambda event: None)

    def _pretrain(self, folder: RunFolder, settings: TrainSettings) -> None:
        corpora = {name: read_corpus(settings, settings.corpus, name, "dgm4") for name in ("train", "val")}
        if not folder.tokenizer.exists():
            texts = [text for record in corpora["train"].records for text in (record.text, record.caption)]
            train_tokenizer(texts, settings.vocab_size).save_pretrained(folder.tokenizer)
        config = model_config(settings, len(load_tokenizer(folder.tokenizer)))
        if not folder.corpus.exists():  # written last
            prepare_splits(folder, settings, corpora, config, lambda event: None)
        pairs = Split.open(settings, folder, "train", config).pairs
        for terms in pretraining.pretrain(pairs, config, self.start, self.pretraining_pairs):
            if terms["step"] % 20 == 0:
                pretraining.report(terms)
        figures = pretraining.evaluate(Split.open(settings, folder, "val", config).pairs, config, self.start)
        self.start.with_suffix(".json").write_text(json.dumps(figures) + "\n")
        pretraining.report(figures)

    def split(self, row: Row, name: str, limit: int = 0) -> Split:
        """Return the pairs for a model of this row, the first `limit` of them if it is not 0."""
        config = model_config(self.settings(row, 0), len(load_tokenizer(self.folder.tokenizer)))
        return replace(_open_split(self, name, limit), config=config)

    def key(self, name: str, seed: int) -> dict[str, Any]:
        """Return all that decides the result of a cell."""
        row = ROWS[name]
        change = json.loads(json.dumps(vars(row) | {"weights": dict(row.weights), "model": dict(row.model)}))
        del change["compared_with"]  # it decides what is printed, not what is computed
        return {
            "row": name, "seed": seed, "change": change, "pairs": self.pairs, "learning_rate": self.learning_rate,
            "image_learning_rate": self.image_learning_rate,
            # The settings that all cells share: those of a row differ by its change, and those of a seed by the seed.
            "settings": settings_hash(self.settings(ROWS[BASELINE], 0)),
            "start": file_hash(self.start), "code": code_hash(), "corpora": corpus_versions(self),
        }  # fmt: skip

    def cell(self, name: str, seed: int) -> dict[str, Any]:
        """Train and evaluate one cell."""
        key, row = self.key(name, seed), ROWS[name]
        trainer = Trainer(self.settings(row, seed), self.split(row, "train"))
        trainer.begin_from(self.start)
        if row.scalars is not None:
            for model in (trainer.module.student, trainer.module.twin.model):
                for name, parameter in model.named_parameters():
                    if name in ("real_fake_scale", "type_scale"):  # a model with a head for each side has one scalar
                        parameter.data.fill_(row.scalars)
        before = time.process_time()
        losses = [{"step": trainer.done} | terms for read in trainer.steps() for terms in read]
        train_cpu_s = time.process_time() - before
        test = self.split(row, "test")
        figures, intervals = evaluate(trainer.module.student, test.pairs, _evidence(self.unseen, "test"))
        kept = losses[:: max(1, len(losses) // 20)] + losses[-1:]
        return {"key": key, "figures": figures, "intervals": intervals, "train_cpu_s": train_cpu_s,
                "eval_cpu_s": time.process_time() - before - train_cpu_s, "losses": kept}  # fmt: skip


def evaluate(
    model: Asap, pairs: TrainingSet, evidence: Mapping[int, TextEvidence]
) -> tuple[dict[str, float | None], dict[str, list[float]]]:
    """Return the figures of a model on the pairs of a split, and the intervals of those that `INTERVALS` names."""
    model.eval()
    evaluation = Evaluation()
    for start in range(0, len(pairs), 64):
        evaluate_batch(evaluation, model, pairs, range(start, min(start + 64, len(pairs))), elsewhere=True)
    report, predictions = evaluation.compute(), evaluation.predictions()
    majority = float(predictions.manipulated.mean())
    alone = report["AP_elsewhere"]
    swap, attribute = report["AP"][2], report["AP"][3]
    groups = [evidence[int(record.id)] for record in pairs.records]
    resampled = bootstrap_intervals(predictions)["figures"]
    figures = {
        "AUC": report["AUC"], "ACC": report["ACC"], "mAP": report["mAP"], "AP swap": swap, "AP attribute": attribute,
        "swap − elsewhere": swap - alone[0], "attribute − elsewhere": attribute - alone[1],
        "AUC contradicting": _text_auc(predictions, groups, "contradicts itself"),
        "AUC picture only": _text_auc(predictions, groups, "only the picture disproves it"),
        "CF1": report["CF1"], "IoU50": report["IoU50"], "IoU50 gated": report["IoU50_gated"],
        "IoU50 boxed": report["IoU50_boxed"], "token F1": report["token_F1"], "majority": majority,
        "flagged": float((predictions.margin > 0).mean()), "AP face_swap": report["AP"][0],
        "AP face_attribute": report["AP"][1], "pairs contradicting": groups.count("contradicts itself"),
        "pairs picture only": groups.count("only the picture disproves it"),
    }  # fmt: skip
    return figures, {figure: resampled[name] for figure, name in INTERVALS.items() if resampled[name]}


def _text_auc(predictions: Predictions, groups: Sequence[TextEvidence], group: TextEvidence) -> float:
    """Return the AUC of the higher text type's logit: manipulated texts of a group against all true texts."""
    members = np.array([mine in (group, "true") for mine in groups])
    false = np.array([mine == group for mine in groups])
    score = predictions.multilabel[:, len(IMAGE_TYPES) :].max(axis=1)
    return float(roc_auc_score(false[members], score[members]))


@cache
def _open_split(grid: Grid, name: str, limit: int) -> Split:
    """Open a split once for all cells of this process; the pairs are the same for every row."""
    settings = grid.settings(ROWS[BASELINE], 0)
    config = model_config(settings, len(load_tokenizer(grid.folder.tokenizer)))
    return Split.open(settings, grid.folder, name, config, limit)


@cache
def _evidence(corpus: Path, split: str) -> Mapping[int, TextEvidence]:
    return text_evidence(corpus, split)


@cache
def file_hash(file: Path) -> str:
    """Return a short hash of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def settings_hash(settings: CellSettings) -> str:
    """Return a short hash of the settings that decide a result, defaults included; folders do not change it."""
    deciding = {key: value for key, value in settings.identity().items() if key not in ("corpus", "test_corpus")}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]


@cache
def code_hash() -> str:
    """Return a short hash of the code that decides a result; comments, docstrings and layout do not change it."""
    seen = hashlib.sha256()
    places = [ROOT / place for place in DECIDES]
    files = [place for place in places if place.is_file()] + [file for place in places for file in place.rglob("*.py")]
    for file in sorted(files):
        tree = ast.parse(file.read_text("utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [one for one in body if not _is_docstring(one)]  # type: ignore[attr-defined]
        seen.update(f"{file.relative_to(ROOT)}\n{ast.dump(tree)}\n".encode())
    return seen.hexdigest()[:12]


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@cache
def corpus_versions(grid: Grid) -> tuple[str, ...]:
    """Return version, seed and size of the corpora of training and evaluation."""
    found = []
    for corpus, split in ((grid.corpus, "train"), (grid.unseen, "test")):
        about = json.loads((corpus / "newsroom.json").read_text())
        found.append(f"{about['corpus_version']} seed {about['seed']}: {about['splits'][split]} pairs of {split}")
    return tuple(found)


def _run_cell(grid: Grid, name: str, seed: int) -> dict[str, Any]:
    """Run one cell on one thread, in a process of the pool."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    return grid.cell(name, seed)


def run(grid: Grid, rows: list[str], seeds: list[int], file: Path, processes: int) -> None:
    """Run every cell that the file does not hold yet, seed by seed; write the file after each cell."""
    cells = read_cells(file)
    known = [cell["key"] for cell in cells]
    wanted = [(name, seed) for seed in seeds for name in rows]
    left = [cell for cell in wanted if json.loads(json.dumps(grid.key(*cell))) not in known]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_run_cell, grid, *cell) for cell in left]):
            if future.exception():
                pool.shutdown(cancel_futures=True)  # else the error is shown after all other cells
            cells.append(json.loads(json.dumps(future.result())))
            file.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(file) as draft:
                draft.write_text(json.dumps(cells, indent=1) + "\n")
            print(_line(cells[-1]), flush=True)


def read_cells(file: Path) -> list[dict[str, Any]]:
    """Return the cells of a file; none if it does not exist."""
    cells: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    return cells


def _line(cell: dict[str, Any]) -> str:
    key = cell["key"]
    ms = 1000 * cell["train_cpu_s"] / key["pairs"]
    figures = " ".join(f"{name} {cell['figures'][name]:.3f}" for name in FIGURES)
    return f"{key['row']} seed {key['seed']}: {figures} ({ms:.0f} ms a pair, {cell['train_cpu_s']:.0f} s)"


def groups_of(cells: list[dict[str, Any]], *, across_code: bool = False) -> dict[str, list[dict[str, Any]]]:
    """Group cells that may be compared: those that differ in row and seed alone. The latest group is last.

    With `across_code`, seeds of other code join: rows are compared seed by seed, so each difference is still within one
    code. Of a seed, only the cells of the latest code count.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    latest = {cell["key"]["seed"]: cell["key"]["code"] for cell in cells}
    for cell in cells:
        key = cell["key"]
        if across_code and key["code"] != latest[key["seed"]]:
            continue
        shared = {name: value for name, value in key.items() if name not in ("row", "seed", "change")}
        if across_code:
            del shared["code"]
        name = json.dumps(shared, sort_keys=True)
        groups[name] = [*groups.pop(name, []), cell]
    return groups


@dataclass(frozen=True)
class Comparison:
    """The difference of a row from the baseline in one figure, over the seeds that both have."""

    seeds: int
    mean: float
    sd: float
    t_p: float
    """The p-value of a paired t test, two-sided; NaN below two seeds."""
    flip_p: float
    """The p-value of all sign flips of the differences; with n seeds it is at least 2 / 2^n."""


def compare(row: Mapping[int, float], baseline: Mapping[int, float]) -> Comparison:
    """Compare two rows over the seeds that both have."""
    seeds = sorted(row.keys() & baseline.keys())
    differences = np.array([row[seed] - baseline[seed] for seed in seeds])
    if len(seeds) < 2:
        mean = float(differences.mean()) if seeds else math.nan
        return Comparison(len(seeds), mean, math.nan, math.nan, math.nan)
    own, theirs = ([figures[seed] for seed in seeds] for figures in (row, baseline))
    flips = np.array([np.mean(signs * differences) for signs in product((-1, 1), repeat=len(seeds))])
    # A tolerance, since sums of the same differences in another order differ in the last bit.
    flip_p = float(np.mean(np.abs(flips) >= abs(differences.mean()) - 1e-12))
    return Comparison(
        len(seeds), float(differences.mean()), float(differences.std(ddof=1)), float(ttest_rel(own, theirs).pvalue),
        flip_p,
    )  # fmt: skip


def figures_of(cells: list[dict[str, Any]], name: str, figure: str) -> dict[int, float]:
    """Return a figure of a row by seed."""
    return {cell["key"]["seed"]: cell["figures"][figure] for cell in cells if cell["key"]["row"] == name}


def table(cells: list[dict[str, Any]]) -> list[list[str]]:
    """Return a line for each row: mean ± standard deviation, and difference from the baseline with its p-values."""
    lines = []
    for name in [name for name in ROWS if any(cell["key"]["row"] == name for cell in cells)]:
        own = [cell for cell in cells if cell["key"]["row"] == name]
        columns = []
        for figure in FIGURES:
            text = _spread(list(figures_of(cells, name, figure).values()))
            baseline = ROWS[name].compared_with
            found = compare(figures_of(cells, name, figure), figures_of(cells, baseline, figure))
            if name != baseline and found.seeds:
                text += f" ({found.mean:+.3f}"
                text += f", p {found.t_p:.3f} / {found.flip_p:.3f})" if found.seeds > 1 else ")"
            columns.append(text)
        cost = _spread([1000 * cell["train_cpu_s"] / cell["key"]["pairs"] for cell in own], 0)
        lines.append([name, str(len(own)), *columns, cost])
    return lines


def _half_widths(cells: list[dict[str, Any]]) -> str:
    """Say how far the draw of the evaluation's pairs alone moves a figure of one cell."""
    found = [cell["intervals"] for cell in cells if "intervals" in cell]
    means = {
        figure: statistics.mean((own[figure][1] - own[figure][0]) / 2 for own in found if figure in own)
        for figure in INTERVALS
        if any(figure in own for own in found)
    }
    return ", ".join(f"{figure} {mean:.3f}" for figure, mean in means.items()) or "not kept"


def _spread(values: list[float], digits: int = 3) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


COLUMNS = ("row", "seeds", *FIGURES, "training, CPU ms a pair")


def show(cells: list[dict[str, Any]], *, current: str, as_markdown: bool, across_code: bool) -> None:
    """Print a table for each group of comparable cells; groups of other code are named as stale."""
    for name, group in groups_of(cells, across_code=across_code).items():
        shared = json.loads(name)
        stale = "STALE, of other code: " if {cell["key"]["code"] for cell in group} - {current} else ""
        majority = group[0]["figures"]["majority"]
        print(f"{stale}{shared}\nmajority class (ACC of a model that learned nothing): {majority:.3f}")
        lines = [COLUMNS, ["---"] * len(COLUMNS), *table(group)]
        if not as_markdown:
            lines = [[cell[:34] for cell in line] for line in lines]
        print("\n".join(f"| {' | '.join(line)} |" for line in lines))
        print(f"half of the 95 % interval of one cell, mean: {_half_widths(group)}\n")


def main() -> None:
    """Prepare the start, run the grid, or print the tables of the cells so far."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("verb", choices=("prepare", "run", "show"))
    parser.add_argument(
        "--corpora",
        nargs=3,
        type=Path,
        metavar=("OTHERS", "CORPUS", "UNSEEN"),
        default=[Path("100"), Path("104"), Path("101")],
        help="Corpora of pre-training, of the cells' training, and of the evaluation.",
    )
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(8)))
    parser.add_argument("--pairs", type=int, default=16_000, help="Pairs that a cell trains on.")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--image-learning-rate", type=float, default=1e-3)
    parser.add_argument("--pretraining-pairs", type=int, default=48_000)
    parser.add_argument("--work", type=Path, default=Path("out/ablation"), help="Folder of these corpora's pictures.")
    parser.add_argument("--json", type=Path, default=Path("out/ablation/cells.json"))
    parser.add_argument("--processes", type=int, default=1, help="Cells that run at a time, one core each.")
    parser.add_argument("--across-code", action="store_true", help="Show seeds of different code in one table.")
    parser.add_argument("--markdown", action="store_true", help="Print whole cells, for a document.")
    arguments = parser.parse_args()
    if arguments.verb == "show":
        cells = read_cells(arguments.json)
        show(cells, current=code_hash(), as_markdown=arguments.markdown, across_code=arguments.across_code)
        return
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    paths = [path.resolve() for path in (*arguments.corpora, arguments.work)]
    grid = Grid(
        *paths, pairs=arguments.pairs, learning_rate=arguments.learning_rate,
        image_learning_rate=arguments.image_learning_rate, pretraining_pairs=arguments.pretraining_pairs,
    )  # fmt: skip
    grid.prepare()
    if arguments.verb == "run":
        run(grid, arguments.rows, arguments.seeds, arguments.json, arguments.processes)


if __name__ == "__main__":
    main()
