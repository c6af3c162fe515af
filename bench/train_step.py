"""What one optimisation step costs, beside the same step done the published way.

The published way runs the text and fusion layers a second time for the tokens, keeps the attention maps of every
layer, encodes text, caption and explanation in three passes, and runs the twin's text encoder twice. Both give the
same losses (checked first, without dropout). On a CPU each is timed in a process of its own, so that peak memory is its
own; they take turns, so that other load on the machine falls on all.

On a GPU ours is measured as training runs it too, in bfloat16 and compiled, and the work done in a second is held
against what one large product of matrices reaches there.

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
class Way:
    """How a step is done."""

    name: str
    published: bool = False
    bfloat16: bool = False
    compiled: bool = False


PUBLISHED, OURS = Way("published", published=True), Way("ours")
ON_GPU = (Way("ours, bfloat16", bfloat16=True), Way("ours, bfloat16, compiled", bfloat16=True, compiled=True))
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PRODUCT = 8192
"""Rows and columns of the matrices whose product is the device's limit."""


class PublishedWay(TrainingStep):
    """The same losses by the published order of work."""

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
        logits_BL2 = self.student.token_head(tokens_BLW[:, 1:])
        return terms | {"tmg": token_loss(logits_BL2, batch.token_labels, self._soft_tokens(twin, alpha), alpha)}


def attend_with_maps(self: Attention, tokens_BLW: Tensor, context_BMW: Tensor, mask_B11M: Tensor | None) -> Tensor:
    """`Attention.forward` by its definition, whose maps autograd keeps."""
    query, key, value = (
        self._split(layer(given))
        for layer, given in ((self.query, tokens_BLW), (self.key, context_BMW), (self.value, context_BMW))
    )
    scores_BHLM = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask_B11M is not None:
        scores_BHLM = scores_BHLM.masked_fill(~mask_B11M, -math.inf)
    map_BHLM = F.dropout(scores_BHLM.softmax(dim=-1), self.dropout, self.training)
    return (map_BHLM @ value).transpose(1, 2).flatten(2)


def built(way: Way, config: ModelConfig, device: str) -> TrainingStep:
    """A training step of that way."""
    torch.manual_seed(0)
    with torch.device(device):
        step = (PublishedWay if way.published else TrainingStep)(Asap(config), queue_size=4096)
    for model in (step.student, step.twin.model):
        if way.compiled:
            compile_encoders(model)
        if way.published:
            for block in model.image_encoder.blocks:
                block.attn.fused_attn = False
    return step


def working(way: Way) -> AbstractContextManager[Any]:
    """For as long as steps are done that way."""
    return mock.patch.object(Attention, "forward", attend_with_maps) if way.published else nullcontext()


def draw_batch(config: ModelConfig, pairs: int, tokens: int) -> Batch:
    """Noise of the right shapes without padding; every second pair has a manipulated face and a manipulated word."""
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


def take(step: TrainingStep, way: Way, batch: Batch) -> dict[str, Tensor]:
    """The losses, in the precision of that way."""
    with working(way), torch.autocast(batch.images.device.type, torch.bfloat16, enabled=way.bfloat16):
        terms: dict[str, Tensor] = step(batch, ALPHA)
    return terms


def losses(way: Way, config: ModelConfig, pairs: int, tokens: int, device: str) -> dict[str, float]:
    """Every term of the first step."""
    terms = take(built(way, config, device), way, draw_batch(config, pairs, tokens).to(device))
    return {name: term.item() for name, term in terms.items()}


def apart(some: dict[str, float], others: dict[str, float]) -> float:
    """How far the two are at most."""
    return max(abs(some[name] - others[name]) for name in some)


def operations(way: Way, config: ModelConfig, pairs: int, tokens: int, device: str) -> float:
    """Floating-point operations of one step's products, forward and backward, uncompiled."""
    step, batch = built(way, config, device), draw_batch(config, pairs, tokens).to(device)
    with FlopCounterMode(display=False) as counter:
        take(step, way, batch)["total"].backward()
    return float(counter.get_total_flops())


def product_tflops(dtype: torch.dtype) -> float:
    """Of one large product of matrices on the GPU."""
    left, right = (torch.randn(PRODUCT, PRODUCT, device="cuda", dtype=dtype) for _ in range(2))
    times = [_timed("cuda", lambda: torch.mm(left, right)) for _ in range(13)]
    return 2 * PRODUCT**3 / statistics.median(times[3:]) / 1e12


class Optimisation:
    """A model that is trained one way, and what its steps cost."""

    def __init__(self, way: Way, config: ModelConfig, pairs: int, tokens: int, device: str) -> None:
        self._way, self._device = way, device
        self._step = built(way, config, device)
        self._optimiser = adamw(self._step.student, 1e-5, 1e-5, 0.02)
        self._batch = draw_batch(config, pairs, tokens).to(device)

    def measure(self, steps: int, warm_up: int) -> dict[str, float]:
        """Seconds of the median step after the first, and the peak memory above what there was before."""
        before = _peak_bytes(self._device, afresh=True)
        times = [_timed(self._device, self._optimise) for _ in range(warm_up + steps)]
        return {
            "seconds": statistics.median(times[warm_up:]),
            "bytes": _peak_bytes(self._device) - before,
            "warm_up_seconds": sum(times[:warm_up]),
        }

    def _optimise(self) -> None:
        self._optimiser.zero_grad()
        take(self._step, self._way, self._batch)["total"].backward()
        self._optimiser.step()


def in_a_process_each(ways: Sequence[Way], given: argparse.Namespace) -> Iterator[dict[Way, dict[str, float]]]:
    """A round of every way, on a CPU, whose memory only a process of its own tells."""
    while True:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            yield {way: pool.apply(measure_alone, (way, given)) for way in ways}


def measure_alone(way: Way, given: argparse.Namespace) -> dict[str, float]:
    """One way, on the threads that were given."""
    torch.set_num_threads(given.threads)
    config = ModelConfig.preset(given.model)
    return Optimisation(way, config, given.batch, given.tokens, "cpu").measure(given.steps, 1)


def in_turns(ways: Sequence[Way], given: argparse.Namespace) -> Iterator[dict[Way, dict[str, float]]]:
    """A round of every way, on a GPU, where all find room together; memory is that of the first steps."""
    config = ModelConfig.preset(given.model)
    trained, first = {}, {}
    for way in ways:
        trained[way] = Optimisation(way, config, given.batch, given.tokens, "cuda")
        first[way] = trained[way].measure(1, 3)
        print(f"{way.name}: the first 3 steps took {first[way]['warm_up_seconds']:.1f} s", flush=True)
    while True:
        yield {way: run.measure(given.steps, 1) | {"bytes": first[way]["bytes"]} for way, run in trained.items()}


def _timed(device: str, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak_bytes(device: str, *, afresh: bool = False) -> int:
    """The most there was so far; on a GPU `afresh`, what there is now, from which the peak is counted on."""
    if device == "cpu":
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if afresh:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def main() -> None:
    """Check, measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base", choices=["base", "tiny"])
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step")
    parser.add_argument("--tokens", type=int, default=24, help="of every text, [CLS] included")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="on a GPU, measure the compiled step too")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    given = parser.parse_args()
    size = (given.batch, given.tokens)
    calm = ModelConfig.preset(given.model, dropout=0.0)
    ours, published = (losses(way, calm, *size, given.device) for way in (OURS, PUBLISHED))
    if apart(ours, published) > 1e-4:
        raise SystemExit(f"the two ways do not agree: {ours} and {published}")
    told = {name: value for name, value in vars(given).items() if name != "json"}
    told |= {"device_name": "cpu", "losses_apart": apart(ours, published)}
    if given.device == "cuda":
        told["device_name"] = torch.cuda.get_device_name()
        told["bfloat16_losses_apart"] = apart(losses(ON_GPU[0], calm, *size, given.device), ours)
        told["product_tflops"] = {name: product_tflops(dtype) for name, dtype in PRECISIONS.items()}
        told["step_tflop"] = {way.name: operations(way, calm, *size, "cuda") / 1e12 for way in (PUBLISHED, OURS)}
        ways = [PUBLISHED, OURS, *ON_GPU[: 2 if given.compile else 1]]
        turns = in_turns(ways, given)
    else:
        ways = [PUBLISHED, OURS]
        turns = in_a_process_each(ways, given)
    rounds = []
    for turn in itertools.islice(turns, given.rounds):
        print({way.name: round(found["seconds"], 4) for way, found in turn.items()}, flush=True)
        rounds.append(turn)
    told["ways"] = {way.name: _figures(way, rounds, told) for way in ways}
    show(told)
    if given.json:
        given.json.write_text(json.dumps(told, indent=2) + "\n")


def _figures(way: Way, rounds: list[dict[Way, dict[str, float]]], told: dict[str, Any]) -> dict[str, Any]:
    found = {
        "times_faster": spread([turn[PUBLISHED]["seconds"] / turn[way]["seconds"] for turn in rounds]),
        "share_of_memory": spread([turn[way]["bytes"] / turn[PUBLISHED]["bytes"] for turn in rounds]),
        "seconds": spread([turn[way]["seconds"] for turn in rounds]),
        "pairs_per_s": spread([told["batch"] / turn[way]["seconds"] for turn in rounds]),
        "gib": spread([turn[way]["bytes"] / 2**30 for turn in rounds]),
    }
    if "step_tflop" in told:
        work, limit = told["step_tflop"], told["product_tflops"]["bfloat16" if way.bfloat16 else "float32"]
        done = work["published" if way.published else "ours"]
        found["tflops"] = spread([done / turn[way]["seconds"] for turn in rounds])
        found["share_of_product"] = spread([done / turn[way]["seconds"] / limit for turn in rounds])
    return found


def show(told: dict[str, Any]) -> None:
    """A line for each figure of each way."""
    print({name: value for name, value in told.items() if name != "ways"})
    print(f"median (lowest to highest) of {told['rounds']}")
    for name, found in told["ways"].items():
        print(name)
        for figure, value in found.items():
            print(f"  {figure:<16}{value['median']:10.3f}  ({value['low']:.3f} to {value['high']:.3f})")


if __name__ == "__main__":
    main()
