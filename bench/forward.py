"""Measure the gain of running the text and fusion layers once: our forward with and without a second pass.

The published code runs both layers a second time at inference, for the token head. Both variants have the same random
weights and the same input. They take turns in one run, so that other load on the machine affects both. The ratio is the
median over the rounds. Under heavy load, `--clock cpu --threads 1` still gives a narrow spread.

    python bench/forward.py [--models base tiny] [--batch 8] [--tokens 24] [--rounds 9] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asap.model.asap import Asap, AsapOutput
from asap.model.config import ModelConfig

Inputs = tuple[Tensor, Tensor, Tensor]
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def forward_twice(model: Asap, images: Tensor, input_ids: Tensor, mask: Tensor) -> AsapOutput:
    """Return the same output from heads that read a second run of the text and fusion layers."""
    image_BNW = model.encode_image(images)
    fused = model.fuse(image_BNW, model.encode_text(input_ids, mask), mask)
    again_BLW, _ = model.fusion_encoder(model.encode_text(input_ids, mask), mask, image_BNW)
    return model.predict(replace(fused, tokens_BLW=again_BLW))


def draw_inputs(config: ModelConfig, batch: int, tokens: int) -> Inputs:
    """Draw noise of the right shapes, unpadded."""
    images = torch.randn(batch, 3, config.image_size, config.image_size)
    return images, torch.randint(1, config.vocab_size, (batch, tokens)), torch.ones(batch, tokens, dtype=torch.long)


def seconds(clock: Clock, forward: Callable[..., AsapOutput], *inputs: Any) -> float:
    """Return the time of one call."""
    start = clock()
    forward(*inputs)
    return clock() - start


@torch.inference_mode()
def measure(name: str, batch: int, tokens: int, rounds: int, clock: Clock) -> dict[str, Any]:
    """Time both variants in turns, after one warm-up each, in milliseconds per pair."""
    torch.manual_seed(0)
    model = Asap(ModelConfig.preset(name)).eval()
    inputs = draw_inputs(model.config, batch, tokens)
    torch.testing.assert_close(model(*inputs), forward_twice(model, *inputs))
    turns = [(seconds(clock, model, *inputs), seconds(clock, forward_twice, model, *inputs)) for _ in range(rounds)]
    once, twice = ([1000 * turn / batch for turn in column] for column in zip(*turns, strict=True))
    return {
        "model": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "once_ms": spread(once),
        "twice_ms": spread(twice),
        "ratio": spread([slow / fast for fast, slow in turns]),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return the median and the middle half around it."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": round(median, 4), "low": round(low, 4), "high": round(high, 4)}


def format_spread(spread: dict[str, float]) -> str:
    """Format as `median (low to high)`."""
    return f"{spread['median']:8.2f} ({spread['low']:.2f} to {spread['high']:.2f})"


def main() -> None:
    """Measure, print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["base", "tiny"], choices=["base", "tiny"])
    parser.add_argument("--batch", type=int, default=8, help="Pairs in a batch.")
    parser.add_argument("--tokens", type=int, default=24, help="Tokens of every text, [CLS] included.")
    parser.add_argument("--rounds", type=int, default=9, help="Turns of each variant, at least 2.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="Threads of torch.")
    parser.add_argument(
        "--clock", default="wall", choices=CLOCKS, help="cpu counts seconds of this process alone, for a busy machine."
    )
    parser.add_argument("--json", type=Path, help="File for the figures.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"batch {options.batch}, {options.tokens} tokens, {options.threads} threads, {options.rounds} rounds, "
          f"{options.clock} time; median (middle half)")  # fmt: skip
    print(f"{'model':<6}{'parameters':>12}  {'once, ms/pair':<28}{'twice, ms/pair':<28}{'twice / once'}")
    results = []
    for name in options.models:
        figures = measure(name, options.batch, options.tokens, options.rounds, CLOCKS[options.clock])
        columns = "".join(f"{format_spread(figures[key]):<28}" for key in ("once_ms", "twice_ms", "ratio"))
        print(f"{name:<6}{figures['parameters']:>12,}  {columns}", flush=True)
        results.append(figures)
    if options.json:
        settings = {"batch": options.batch, "tokens": options.tokens, "rounds": options.rounds, "clock": options.clock}
        report = settings | {"threads": options.threads, "torch": torch.__version__, "results": results}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
