"""Measure the cost of one optimization step and compare it with the published implementation.

The published implementation runs the text and fusion layers a second time for the tokens, keeps the attention maps of
every layer, encodes text, caption and explanation in three passes, and runs the twin's text encoder twice. Both
variants give the same losses; this is checked first, without dropout. On a CPU each variant is timed in its own
process, so that peak memory is its own. The variants take turns, so that other load on the machine affects all of them.

On a GPU our variant is also measured as training runs it, in bfloat16 and compiled. The operations per second are
compared with those of one large matrix product.

    python bench/train_step.py [--model base] [--batch 8] [--tokens 24] [--rounds 3] [--steps 3] [--json PATH]
    python bench/train_step.py --device cuda --batch 32 --steps 20 --compile
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.model.encoders import Attention
from asap.model.execution import compile_encoders
from asap.training.batch import Batch, Tokens
from asap.training.losses import token_loss
from asap.training.optimizer import adamw
from asap.training.step import Encoded, TrainingStep
from asap.training.targets import patch_labels, patch_mask

ALPHA = 0.4


@dataclass(frozen=True)
class Variant:
    """An implementation of the step."""

    name: str
    published: bool = False
    bfloat16: bool = False
    compiled: bool = False


PUBLISHED, OURS = Variant("published", published=True), Variant("ours")
ON_GPU = (Variant("ours, bfloat16", bfloat16=True), Variant("ours, bfloat16, compiled", bfloat16=True, compiled=True))
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PRODUCT = 8192
"""Rows and columns of the matrices whose product is taken as the limit of the device."""


class PublishedStep(TrainingStep):
    """A step that computes the same losses in the published order of work."""

    def _encode(self, model: Asap, batch: Batch) -> Encoded:
        texts = {"text": batch.text, "caption": batch.caption, "explanation": batch.explanation}
        if model is not self.student:
            model.encode_text(*batch.text)
        return Encoded(
            model.encode_image(batch.images),
            {name: (model.encode_text(*tokens), tokens.mask) for name, tokens in texts.items()},
        )

    def _fused_terms(self, batch: Batch, encoded: Encoded, twin: Encoded | None, alpha: float) -> dict[str, Tensor]:
        terms = super()._fused_terms(batch, encoded, twin, alpha)
        text_BLW = self.student.encode_text(*batch.text)
        tokens_BLW, _ = self.student.fusion_encoder(text_BLW, batch.text.mask, encoded.image_BNW)
        logits_BL2 = self.student.token_logits(tokens_BLW)
        return terms | {"tmg": token_loss(logits_BL2, batch.token_labels, self._soft_tokens(twin, alpha), alpha)}


def attend_with_maps(self: Attention, tokens_BLW: Tensor, context_BMW: Tensor, mask_B11M: Tensor | None) -> Tensor:
    """Compute `Attention.forward` by its definition; autograd keeps the attention maps."""
    query, key, value = (
        self._split(layer(tokens))
        for layer, tokens in ((self.query, tokens_BLW), (self.key, context_BMW), (self.value, context_BMW))
    )
    scores_BHLM = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask_B11M is not None:
        scores_BHLM = scores_BHLM.masked_fill(~mask_B11M, -math.inf)
    map_BHLM = F.dropout(scores_BHLM.softmax(dim=-1), self.dropout, self.training)
    return (map_BHLM @ value).transpose(1, 2).flatten(2)


def build_step(variant: Variant, config: ModelConfig, device: str) -> TrainingStep:
    """Build a training step of this variant."""
    torch.manual_seed(0)
    with torch.device(device):
        step = (PublishedStep if variant.published else TrainingStep)(Asap(config), queue_size=4096)
    for model in (step.student, step.twin.model):
        if variant.compiled:
            compile_encoders(model)
        if variant.published:
            for block in model.image_encoder.blocks:
                block.attn.fused_attn = False
    return step


def attention_of(variant: Variant) -> AbstractContextManager[Any]:
    """Replace the attention, for the time of the block, by that of the variant."""
    return mock.patch.object(Attention, "forward", attend_with_maps) if variant.published else nullcontext()


def draw_batch(config: ModelConfig, pairs: int, tokens: int) -> Batch:
    """Draw noise of the right shapes, unpadded; every second pair has a manipulated face and a manipulated word."""
    generator = torch.Generator().manual_seed(1)

    def text() -> Tokens:
        ids = torch.randint(1, config.vocab_size, (pairs, tokens), generator=generator)
        return Tokens(ids, torch.ones_like(ids))

    fake_B = torch.arange(pairs) % 2 == 1
    side = config.image_size
    boxes_B4 = torch.tensor([[0.25, 0.25, 0.5, 0.75]], dtype=torch.float64).repeat(pairs, 1) * side * fake_B[:, None]
    mask_BP = patch_mask(boxes_B4, fake_B, side, config.patch_size)
    words_BL = torch.zeros(pairs, tokens - 1, dtype=torch.long)
    words_BL[fake_B, 0] = 1
    return Batch(
        images=torch.randn(pairs, 3, side, side, generator=generator), text=text(), caption=text(), explanation=text(),
        manipulated=fake_B, types=fake_B[:, None].float() * torch.tensor([1.0, 0.0, 0.0, 1.0]),
        box_cxcywh=torch.tensor([[0.375, 0.5, 0.25, 0.5]]).repeat(pairs, 1) * fake_B[:, None], has_box=fake_B,
        token_labels=words_BL, patch_mask=mask_BP, patch_labels=patch_labels(mask_BP),
    )  # fmt: skip


def take(step: TrainingStep, variant: Variant, batch: Batch) -> dict[str, Tensor]:
    """Return the losses in the precision of the variant."""
    with attention_of(variant), torch.autocast(batch.images.device.type, torch.bfloat16, enabled=variant.bfloat16):
        terms: dict[str, Tensor] = step(batch, ALPHA)
    return terms


def losses(variant: Variant, config: ModelConfig, pairs: int, tokens: int, device: str) -> dict[str, float]:
    """Return every term of the first step."""
    terms = take(build_step(variant, config, device), variant, draw_batch(config, pairs, tokens).to(device))
    return {name: term.item() for name, term in terms.items()}


def largest_difference(some: dict[str, float], others: dict[str, float]) -> float:
    """Return the largest absolute difference between the losses of two variants."""
    return max(abs(some[name] - others[name]) for name in some)


def operations(variant: Variant, config: ModelConfig, pairs: int, tokens: int, device: str) -> float:
    """Count the floating-point operations of one step's products, forward and backward, uncompiled."""
    step, batch = build_step(variant, config, device), draw_batch(config, pairs, tokens).to(device)
    with FlopCounterMode(display=False) as counter:
        take(step, variant, batch)["total"].backward()
    return float(counter.get_total_flops())


def product_tflops(dtype: torch.dtype) -> float:
    """Return the TFLOPS of one large matrix product on the GPU."""
    left, right = (torch.randn(PRODUCT, PRODUCT, device="cuda", dtype=dtype) for _ in range(2))
    times = [_timed("cuda", lambda: torch.mm(left, right)) for _ in range(13)]
    return 2 * PRODUCT**3 / statistics.median(times[3:]) / 1e12


class Optimization:
    """A model trained by one variant, and the cost of its steps."""

    def __init__(self, variant: Variant, config: ModelConfig, pairs: int, tokens: int, device: str) -> None:
        self._variant, self._device = variant, device
        self._step = build_step(variant, config, device)
        self._optimizer = adamw(self._step.student, 1e-5, 1e-5, 0.02)
        self._batch = draw_batch(config, pairs, tokens).to(device)

    def measure(self, steps: int, warm_up: int) -> dict[str, float]:
        """Return the seconds of the median step after the warm-up, and the peak memory above the level before."""

        def optimize() -> None:
            self._optimizer.zero_grad()
            take(self._step, self._variant, self._batch)["total"].backward()
            self._optimizer.step()

        before = _peak_bytes(self._device, afresh=True)
        times = [_timed(self._device, optimize) for _ in range(warm_up + steps)]
        return {
            "seconds": statistics.median(times[warm_up:]),
            "bytes": _peak_bytes(self._device) - before,
            "warm_up_seconds": sum(times[:warm_up]),
        }


def measure_in_processes(
    variants: Sequence[Variant], options: argparse.Namespace
) -> Iterator[dict[Variant, dict[str, float]]]:
    """Yield a round of all variants on a CPU, each in its own process, where its peak memory can be measured."""
    while True:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            yield {variant: pool.apply(measure_alone, (variant, options)) for variant in variants}


def measure_alone(variant: Variant, options: argparse.Namespace) -> dict[str, float]:
    """Measure one variant on the requested number of threads."""
    torch.set_num_threads(options.threads)
    config = ModelConfig.preset(options.model)
    return Optimization(variant, config, options.batch, options.tokens, "cpu").measure(options.steps, 1)


def measure_in_turns(
    variants: Sequence[Variant], options: argparse.Namespace
) -> Iterator[dict[Variant, dict[str, float]]]:
    """Yield a round of all variants on a GPU, which holds all of them; memory is that of the first steps."""
    config = ModelConfig.preset(options.model)
    trained, first = {}, {}
    for variant in variants:
        trained[variant] = Optimization(variant, config, options.batch, options.tokens, "cuda")
        first[variant] = trained[variant].measure(1, 3)
        print(f"{variant.name}: the first 3 steps took {first[variant]['warm_up_seconds']:.1f} s", flush=True)
    while True:
        yield {
            variant: run.measure(options.steps, 1) | {"bytes": first[variant]["bytes"]}
            for variant, run in trained.items()
        }


def _timed(device: str, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak_bytes(device: str, *, afresh: bool = False) -> int:
    """Return the peak memory so far; `afresh` resets the peak of a GPU to the current use first."""
    if device == "cpu":
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if afresh:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()


def spread(values: list[float]) -> dict[str, float]:
    """Return median, lowest and highest value."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def main() -> None:
    """Check the losses, measure, print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base", choices=["base", "tiny"])
    parser.add_argument("--batch", type=int, default=8, help="Pairs in a step.")
    parser.add_argument("--tokens", type=int, default=24, help="Tokens of every text, [CLS] included.")
    parser.add_argument("--steps", type=int, default=3, help="Timed steps in a round.")
    parser.add_argument("--rounds", type=int, default=3, help="Rounds; on a CPU, processes of each variant.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="On a GPU, measure the compiled step too.")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    options = parser.parse_args()
    size = (options.batch, options.tokens)
    config = ModelConfig.preset(options.model, dropout=0.0)
    ours, published = (losses(variant, config, *size, options.device) for variant in (OURS, PUBLISHED))
    if largest_difference(ours, published) > 1e-4:
        raise SystemExit(f"the losses of the two variants differ: {ours} and {published}")
    report = {name: value for name, value in vars(options).items() if name != "json"}
    report |= {"device_name": "cpu", "losses_apart": largest_difference(ours, published)}
    if options.device == "cuda":
        report["device_name"] = torch.cuda.get_device_name()
        report["bfloat16_losses_apart"] = largest_difference(losses(ON_GPU[0], config, *size, options.device), ours)
        report["product_tflops"] = {name: product_tflops(dtype) for name, dtype in PRECISIONS.items()}
        report["step_tflop"] = {
            variant.name: operations(variant, config, *size, "cuda") / 1e12 for variant in (PUBLISHED, OURS)
        }
        variants = [PUBLISHED, OURS, *ON_GPU[: 2 if options.compile else 1]]
        turns = measure_in_turns(variants, options)
    else:
        variants = [PUBLISHED, OURS]
        turns = measure_in_processes(variants, options)
    rounds = []
    for turn in itertools.islice(turns, options.rounds):
        print({variant.name: round(found["seconds"], 4) for variant, found in turn.items()}, flush=True)
        rounds.append(turn)
    report["ways"] = {variant.name: _figures(variant, rounds, report) for variant in variants}
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _figures(variant: Variant, rounds: list[dict[Variant, dict[str, float]]], report: dict[str, Any]) -> dict[str, Any]:
    found = {
        # The ratios are taken round by round, so that other load on the machine affects both sides.
        "times_faster": spread([turn[PUBLISHED]["seconds"] / turn[variant]["seconds"] for turn in rounds]),
        "share_of_memory": spread([turn[variant]["bytes"] / turn[PUBLISHED]["bytes"] for turn in rounds]),
        "seconds": spread([turn[variant]["seconds"] for turn in rounds]),
        "pairs_per_s": spread([report["batch"] / turn[variant]["seconds"] for turn in rounds]),
        "gib": spread([turn[variant]["bytes"] / 2**30 for turn in rounds]),
    }
    if "step_tflop" in report:
        work, limit = report["step_tflop"], report["product_tflops"]["bfloat16" if variant.bfloat16 else "float32"]
        done = work["published" if variant.published else "ours"]
        found["tflops"] = spread([done / turn[variant]["seconds"] for turn in rounds])
        found["share_of_product"] = spread([done / turn[variant]["seconds"] / limit for turn in rounds])
    return found


def show(report: dict[str, Any]) -> None:
    """Print a line for each figure of each variant."""
    print({name: value for name, value in report.items() if name != "ways"})
    print(f"median (lowest to highest) of {report['rounds']}")
    for name, found in report["ways"].items():
        print(name)
        for figure, value in found.items():
            print(f"  {figure:<16}{value['median']:10.3f}  ({value['low']:.3f} to {value['high']:.3f})")


if __name__ == "__main__":
    main()
