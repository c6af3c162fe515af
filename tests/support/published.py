"""Checkpoints in the form in which HAMMER and ASAP were published, and tokenizers of their size."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BertTokenizerFast

from tests.golden.weights import golden_state_dict
from tests.support.pictures import CAPTIONS

ALBEF_SIDES = {
    257: 17, 768: 48, 2304: 144, 3072: 96, 30522: 60, 512: 24, 256: 16, 65536: 8, 3: 3, 1: 1, 2: 2
}  # fmt: skip
"""Sides of ALBEF's tensors, and those of a small one: 64 px, width 48, 60 word pieces, 24 positions."""
GOLDEN = Path(__file__).parents[1] / "golden"
TWIN_OR_QUEUE = re.compile(r"(visual_encoder|text_encoder|vision_proj|text_proj)_m\.|.*_queue$|queue_ptr$")
CONFIG = {
    "image_res": 64,
    "vision_width": 96,
    "embed_dim": 32,
    "max_words": 50,
    "temp": 0.07,
    "optimizer": {"lr": 2e-5},
}


def spec_of(name: str) -> dict[str, Any]:
    """Return the sizes, keys and shapes of a golden model."""
    return dict(json.loads((GOLDEN / f"{name}.json").read_text()))


def golden_state(name: str, *, with_twins: bool = True) -> dict[str, Tensor]:
    """Return the weights of a golden model by their published names."""
    spec = spec_of(name)
    if not with_twins:
        spec["state_dict"] = {key: shape for key, shape in spec["state_dict"].items() if not TWIN_OR_QUEUE.match(key)}
    return {key: torch.from_numpy(np.asarray(value)) for key, value in golden_state_dict(spec).items()}


def golden_arrays(name: str) -> dict[str, Tensor]:
    """Return the inputs and outputs of a golden model."""
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}.npz").items()}


def albef_state(changed_sides: dict[int, int] | None = None) -> dict[str, Tensor]:
    """Return weights with the keys of ALBEF's published checkpoint and every side scaled down.

    Args:
        changed_sides: Changes to `ALBEF_SIDES`.
    """
    sides = ALBEF_SIDES | (changed_sides or {})
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in spec_of("albef_keys")["state_dict"].items():
        is_patch = key.endswith("patch_embed.proj.weight")  # (width, 3, 16, 16)
        scaled = [side if is_patch and side == 16 else sides[side] for side in shape]
        state[key] = torch.randn(scaled, generator=generator)
    return state | {"queue_ptr": torch.tensor([5])}


def write_published(file: Path, state: dict[str, Tensor], *, prefix: str = "", **changes: Any) -> Path:
    """Write a file as the published training code does: state dict, optimizer, scheduler, config and epoch."""
    moments = {"step": 3, "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    content = {
        "model": {f"{prefix}{key}": value for key, value in state.items()},
        "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 2e-5, "params": [0]}]},
        "lr_scheduler": {"base_values": [2e-5], "t_initial": 50},
        "config": CONFIG,
        "epoch": 49,
    }
    torch.save(content | changes, file)
    return file


def tokenizer_of(size: int) -> BertTokenizerFast:
    """Return a tokenizer of so many pieces that reads the words of `CAPTIONS`."""
    words = sorted({word for caption in CAPTIONS for word in re.findall(r"\w+|[^\w\s]", caption.lower())})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    pieces += [f"[unused{number}]" for number in range(size - len(pieces))]
    return BertTokenizerFast(vocab={piece: number for number, piece in enumerate(pieces)})
