"""Execution of a model: the same results with less memory or in less time."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import torch

from asap.model.asap import Asap


def has_bfloat16(device: torch.device) -> bool:
    """Return True if the device is a GPU that supports bfloat16 in hardware; older GPUs only emulate it."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def can_compile() -> bool:
    """Return True if `torch.compile` can build GPU code here: it needs a C compiler and Python's headers."""
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("gcc", "clang", "cc"))), None)
    return compiler is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


def checkpoint_activations(model: Asap) -> None:
    """Keep only the inputs of each encoder layer; the backward pass computes the rest again."""
    model.image_encoder.set_grad_checkpointing()
    model.text_encoder.checkpoints_activations = True
    model.fusion_encoder.checkpoints_activations = True


def compile_encoders(model: Asap) -> None:
    """Compile the encoders with `torch.compile` on their first run; the names of weights do not change.

    Images have one size. Texts have any length, so the encoders that read text are compiled for all lengths at once.
    They are compiled anew for a length with other divisors, such as an odd one; a run therefore pads its texts to
    multiples of one length (`asap.training.batch.pad_texts`).
    """
    model.image_encoder.compile()
    model.text_encoder.compile(dynamic=True)
    model.fusion_encoder.compile(dynamic=True)
