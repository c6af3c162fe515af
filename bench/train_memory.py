"""Compare the memory of a training step as it is counted on shapes with the memory of a real step.

On a CPU the tensors that autograd keeps of a real forward pass are added up, with the kernels of a CPU, for each
precision and with activation checkpointing. On a GPU whole steps are taken with the optimizer, and the peak that torch
allocated is compared with what a run is fitted to.

`--gpus` shows what the published run is fitted to on GPUs by name, and its estimated hours on DGM4.

    python bench/train_memory.py [--size base] [--pairs 1] [--json PATH]
    python bench/train_memory.py --device cuda --pairs 32
    python bench/train_memory.py --gpus [--recipe asap] [--train-pairs 181248]
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch

from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.model.execution import checkpoint_activations
from asap.training.memory import kept_bytes, longest_batch, step_memory
from asap.training.objective import recipe_called
from asap.training.optimizer import adamw
from asap.training.step import TrainingStep
from jobs.train.fit import fit_to_device
from jobs.train.gpus import GPU_MEMORY_GB, gpu_called
from jobs.train.settings import TrainSettings
from jobs.train.speed import flops_of_pair, gpu_speeds
from jobs.train.trainer import model_config

MIB = 2**20
WORDS = 30_522
"""Word pieces of BERT's tokenizer."""


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each precision and each way of checkpointing: bytes that were counted, and real ones."""
    recipe = recipe_called(options.recipe)
    config = ModelConfig.preset(options.size, **dict(recipe.model))
    rows = []
    for bfloat16, checkpointed in itertools.product((False, True), (False, True)):
        memory = step_memory(
            config,
            recipe.weights,
            recipe.defects,
            options.queue,
            bfloat16=bfloat16,
            fused_attention=options.device == "cuda",
        )
        step = TrainingStep(
            Asap(config), weights=recipe.weights, defects=recipe.defects, queue_size=options.queue, mask_id=0
        ).train()
        if checkpointed:
            checkpoint_activations(step.student)
        if options.device == "cuda":
            counted = memory.needed(options.pairs, checkpointed=checkpointed, workers=1)
            real = peak_on_gpu(step.cuda(), options.pairs, bfloat16=bfloat16)
        else:
            activations = memory.checkpointed if checkpointed else memory.plain
            counted = activations.constant + options.pairs * activations.per_pair
            real = kept_on_cpu(step, options.pairs, bfloat16=bfloat16)
        row = {"bfloat16": bfloat16, "checkpointed": checkpointed, "counted": counted, "real": real}
        rows.append(row)
        print(
            f"{'bfloat16' if bfloat16 else 'float32':<10}{'checkpointed' if checkpointed else 'all kept':<14}"
            f"{counted / MIB:>10,.1f} MiB counted{real / MIB:>10,.1f} MiB real{counted / real:>8.3f}",
            flush=True,
        )
    return rows


def kept_on_cpu(step: TrainingStep, pairs: int, *, bfloat16: bool) -> int:
    """Return the bytes that autograd keeps of a real forward pass."""
    batch = longest_batch(step.student.config, pairs)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        return kept_bytes(step, lambda: step(batch, 0.4))


def peak_on_gpu(step: TrainingStep, pairs: int, *, bfloat16: bool) -> int:
    """Return the peak of the memory that torch allocated in two whole steps."""
    optimizer = adamw(step, 1e-5, 1e-5, 0.02)
    batch = longest_batch(step.student.config, pairs).to("cuda")
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):  # the first step creates the averages of the optimizer
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=bfloat16):
            terms = step(batch, 0.4)
        terms["total"].backward()
        optimizer.step()
    return torch.cuda.max_memory_allocated()


def show_gpus(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Print and return what the published run is fitted to, a row for each kind and number of GPUs."""
    rows = []
    print("GPUs            precision  micro batches  checkpointing  GiB  hours, from, to  cores for decoding a GPU")
    for kind, workers, precision in itertools.product(GPU_MEMORY_GB, (1, 8), ("tf32", "bfloat16")):
        settings = TrainSettings(
            corpus="c", out="o", preset="published", recipe=options.recipe, workers=workers, precision=precision
        )
        config = model_config(settings, WORDS)
        fit = fit_to_device(settings, config, gpu_called(kind), settings.model_fields_set)
        settings = settings.model_copy(update=fit.chosen)
        speeds = gpu_speeds(flops_of_pair(settings, config), "stream", None, settings.precision)
        speed = next(speed for speed in speeds if speed.gpu == kind)
        pairs = settings.total_steps(options.train_pairs) * settings.batch_size / workers / 3600
        row = {
            "gpu": kind, "workers": workers, "precision": precision, "micro_batches": fit.accumulation,
            "pairs": fit.micro_batch, "checkpointing": fit.checkpoint_activations, "bytes": sum(fit.memory.values()),
            "hours": pairs / speed.pairs_per_s, "from": pairs / speed.most_pairs_per_s,
            "to": pairs / speed.least_pairs_per_s, "cores": speed.decoding_cores,
        }  # fmt: skip
        rows.append(row)
        print(
            f"{workers} x {kind:<12}{precision:<9}{fit.accumulation:>4} x {fit.micro_batch:<4}"
            f"{'on' if fit.checkpoint_activations else 'off':>6}{row['bytes'] / 2**30:>8.1f}{row['hours']:>9,.1f}"
            f"{row['from']:>9,.1f}{row['to']:>9,.1f}{row['cores']:>7.1f}"
        )
    return rows


def main() -> None:
    """Measure, or show the fits, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base", choices=["base", "tiny"])
    parser.add_argument("--recipe", default="asap")
    parser.add_argument("--pairs", type=int, default=1, help="Pairs of a micro batch.")
    parser.add_argument("--queue", type=int, default=65_536, help="Features in each queue.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--gpus", action="store_true", help="Show the fits of the published run.")
    parser.add_argument("--train-pairs", type=int, default=181_248, help="Training pairs of the corpus.")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    options = parser.parse_args()
    rows = show_gpus(options) if options.gpus else compare(options)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
