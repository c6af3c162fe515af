"""How a model is executed: the same results with less memory, or in less time."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import torch

from asap.model.asap import Asap


def has_bfloat16(device: torch.device) -> bool:
    """Whether it is a GPU that computes in bfloat16 by itself; older ones only emulate it."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def can_compile() -> bool:
    """Whether this machine has what `torch.compile` builds code for a GPU with: a C compiler, and Python's headers."""
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("gcc", "clang", "cc"))), None)
    return compiler is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


def checkpoint_activations(model: Asap) -> None:
    """Keep only what goes into each layer of the encoders; the backward pass computes the rest again."""
    model.image_encoder.set_grad_checkpointing()
    model.text_encoder.checkpoints_activations = True
    model.fusion_encoder.checkpoints_activations = True


def compile_encoders(model: Asap) -> None:
    """Have `torch.compile` compile the encoders when they are first run; names of weights stay what they are.

    Pictures have one size; texts are of any length, which is why theirs are compiled for all lengths at once.
    """
    model.image_encoder.compile()
    model.text_encoder.compile(dynamic=True)
    model.fusion_encoder.compile(dynamic=True)
