"""The speed that a run can have on GPUs by name, estimated without one: arithmetic, batches and decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.training.step import descriptions_read
from jobs.train.settings import TrainSettings

PEAK_TFLOPS: Mapping[str, Mapping[str, float]] = {
    "bfloat16": {"H200": 989, "H100": 989, "A100": 312, "A100-40GB": 312, "A10": 125, "L4": 121, "RTX-4090": 165},
    "tf32": {"H200": 494, "H100": 494, "A100": 156, "A100-40GB": 156, "A10": 62, "L4": 60, "RTX-4090": 83},
    "float32": {"H200": 67, "H100": 67, "A100": 19.5, "A100-40GB": 19.5, "A10": 31, "L4": 30, "RTX-4090": 83},
}
"""Dense TFLOP/s of the SXM forms (A10, L4: PCIe) by precision, from the data sheets of NVIDIA."""
MFU = 0.35
"""Share of the peak that the products of a step are taken to reach: an assumption, not a measurement."""
LEAST_MFU, MOST_MFU = 0.2, 0.5
"""The interval of this share: assumptions too."""
WORKER_MS = {"stream": 0.2, "cache": 0.85}
"""Milliseconds of one core in which a worker makes a pair of its batch; it also augments a cached picture
(`bench/feed.py`).
"""
DECODE_MS = 12.0
"""Milliseconds of one core in which a task decodes and augments a JPEG of 1024 x 768 (`bench/feed.py`)."""
Precision = Literal["bfloat16", "tf32", "float32"]
_PADDED_TOKENS = 64
"""Tokens of the longest text of a batch: fifty words, the most that the model reads."""
_PAIRS = 2


@dataclass(frozen=True)
class GpuSpeed:
    """The estimated speed of one GPU and its worker."""

    gpu: str
    pairs_per_s: float
    """The lowest limit."""
    least_pairs_per_s: float
    """The same at `LEAST_MFU`."""
    most_pairs_per_s: float
    """The same at `MOST_MFU`."""
    mfu: float
    """Share of the peak that the products of the model reach at that speed."""
    decoding_cores: float
    """Cores that decode the pictures of this GPU at that speed."""
    bottleneck: str


def gpu_speeds(
    flops_a_pair: float,
    ingest: Literal["cache", "stream"],
    decode_tasks: int | None,
    precision: Precision = "bfloat16",
) -> list[GpuSpeed]:
    """Return the speed of a worker on each of the known GPUs.

    Args:
        flops_a_pair: Floating-point operations of a pair; see `flops_of_pair`.
        ingest: The source of the pictures.
        decode_tasks: Tasks that decode for each worker; None: as many as are wanted.
        precision: The precision of the layers.
    """
    # A thread of the worker makes its batches; tasks of one core decode streamed pictures.
    limits = {"batches made by one core of the worker": 1000 / WORKER_MS[ingest]}
    if ingest == "stream" and decode_tasks is not None:
        limits[f"decoding in decode_tasks={decode_tasks}"] = 1000 * decode_tasks / DECODE_MS
    speeds = []
    for gpu, tflops in PEAK_TFLOPS[precision].items():
        peak = tflops * 1e12
        all_limits = {f"the GPU at {MFU:.0%} of its peak": MFU * peak / flops_a_pair} | limits
        bottleneck, pairs_per_s = min(all_limits.items(), key=lambda limit: limit[1])
        least, most = (min(share * peak / flops_a_pair, *limits.values()) for share in (LEAST_MFU, MOST_MFU))
        cores = pairs_per_s * DECODE_MS / 1000 if ingest == "stream" else 0.0
        speeds.append(GpuSpeed(gpu, pairs_per_s, least, most, pairs_per_s * flops_a_pair / peak, cores, bottleneck))
    return speeds


def flops_of_pair(settings: TrainSettings, config: ModelConfig) -> float:
    """Return the floating-point operations that a pair costs in a step that trains all terms of the run.

    The products of the modules are counted on shapes alone. A backward pass has twice the products of its forward pass,
    and computes that pass again with activation checkpointing.
    The contrast with the queues and the optimizer are left out; they take less than a hundredth.
    """
    weights, length = settings.objective.weights, min(_PADDED_TOKENS, config.max_tokens)
    with torch.device("meta"):  # shapes without data
        model = Asap(config)
        pictures = torch.zeros(_PAIRS, 3, config.image_size, config.image_size)
        ids = torch.ones(_PAIRS, length, dtype=torch.long)
        image_BNW, text_BLW = model.encode_image(pictures), model.encode_text(ids, ids)
        image = _count(lambda: model.encode_image(pictures))
        text = _count(lambda: model.encode_text(ids, ids))
        fusion = _count(lambda: model.fusion_encoder(text_BLW, ids, image_BNW))
        whole = _count(lambda: model.predict(model.fuse(image_BNW, text_BLW, ids)))
    texts = 3 if "explanation" in descriptions_read(config, vars(weights)) else 1
    student = image + texts * text + whole
    student += whole if weights.ied else 0
    student += text + fusion if weights.mlm else 0
    # The twin gives targets to the contrast, and to the words while `alpha` has weight.
    soft_words = bool(weights.tmg and settings.alpha)
    twin = (image + texts * text if weights.vlc or soft_words else 0) + (fusion if soft_words else 0)
    passes = 4 if settings.checkpoint_activations else 3
    return (passes * student + twin) / _PAIRS


def _count(run: Callable[[], Any]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())
