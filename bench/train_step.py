"""What one optimisation step costs, beside the same step done the published way.

The published way runs the text and fusion layers a second time for the tokens, keeps the attention maps of every
layer, encodes text, caption and explanation in three passes, and runs the twin's text encoder twice. Both give the
same losses (checked first, without dropout). Each is timed in a process of its own, so that peak memory is its own;
the processes take turns, so that other load on the machine falls on both.

    python bench/train_step.py [--model base] [--batch 8] [--tokens 24] [--rounds 3] [--steps 3] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from asap.batch import Batch, Tokens
from asap.config import ModelConfig
from asap.encoders import Attention
from asap.losses import token_loss
from asap.model import Asap
from asap.optimiser import adamw
from asap.targets import patch_labels, patch_mask
from asap.training import Encoded, TrainingStep

ALPHA = 0.4
WAYS = ("ours", "published")


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


@contextmanager
def prepared(way: str, config: ModelConfig) -> Iterator[TrainingStep]:
    """A training step that works in that way."""
    torch.manual_seed(0)
    step = (TrainingStep if way == "ours" else PublishedWay)(Asap(config), queue_size=4096)
    if way == "ours":
        yield step
        return
    for model in (step.student, step.twin.model):
        for block in model.image_encoder.blocks:
            block.attn.fused_attn = False
    with mock.patch.object(Attention, "forward", attend_with_maps):
        yield step


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


def losses(way: str, config: ModelConfig, pairs: int, tokens: int) -> dict[str, float]:
    """Every term of the first step."""
    with prepared(way, config) as step:
        return {name: term.item() for name, term in step(draw_batch(config, pairs, tokens), ALPHA).items()}


def measure(way: str, preset: str, pairs: int, tokens: int, steps: int, threads: int) -> dict[str, float]:
    """Seconds of the median step after one warm-up, and the process's peak memory above what it began with."""
    torch.set_num_threads(threads)
    config = ModelConfig.preset(preset)
    with prepared(way, config) as step:
        optimiser = adamw(step.student, 1e-5, 1e-5, 0.02)
        batch = draw_batch(config, pairs, tokens)
        before = _peak_bytes()
        times = []
        for _ in range(steps + 1):
            start = time.perf_counter()
            optimiser.zero_grad()
            step(batch, ALPHA)["total"].backward()
            optimiser.step()
            times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times[1:]), "bytes": _peak_bytes() - before}


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


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
    parser.add_argument("--json", type=Path, help="where to write the figures")
    given = parser.parse_args()
    calm = ModelConfig.preset(given.model, dropout=0.0)
    ours, published = (losses(way, calm, given.batch, given.tokens) for way in WAYS)
    apart = max(abs(ours[name] - published[name]) for name in ours)
    if apart > 1e-4:
        raise SystemExit(f"the two ways do not agree: {ours} and {published}")
    rounds = []
    for _ in range(given.rounds):
        arguments = (given.model, given.batch, given.tokens, given.steps, given.threads)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            rounds.append([pool.apply(measure, (way, *arguments)) for way in WAYS])
    figures = {
        "times_faster": spread([published["seconds"] / ours["seconds"] for ours, published in rounds]),
        "share_of_memory": spread([ours["bytes"] / published["bytes"] for ours, published in rounds]),
        "ours_s": spread([ours["seconds"] for ours, _ in rounds]),
        "published_s": spread([published["seconds"] for _, published in rounds]),
        "ours_gib": spread([ours["bytes"] / 2**30 for ours, _ in rounds]),
        "published_gib": spread([published["bytes"] / 2**30 for _, published in rounds]),
    }
    print(f"{given.model}, {given.batch} pairs a step, {given.tokens} tokens, {given.threads} threads, float32; "
          f"losses apart by at most {apart:.1e}; median (lowest to highest) of {given.rounds}")  # fmt: skip
    for name, value in figures.items():
        print(f"{name:<16}{value['median']:8.3f}  ({value['low']:.3f} to {value['high']:.3f})")
    if given.json:
        settings = {name: value for name, value in vars(given).items() if name != "json"}
        given.json.write_text(json.dumps(settings | {"losses_apart": apart} | figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
