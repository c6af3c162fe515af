"""The file of a model's familiarity, read and checked without torch, which takes seconds to load.

It is a safetensors file. Its metadata hold the version and `about`, a description of the fit.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from asap.errors import CheckpointError

VERSION = 1
"""The version of the file. A file of another version is refused."""
HELD_OUT = ("kinds", "changes", "texts", "images", "pairs")
"""Tensors of the strangeness of held-out pairs."""
_MATRICES = {"image": "whitening_DK", "changed": "weight_DK", "text": "whitening_DK"}
_HOW_TO_GET_ONE = "Make one with `asap familiarize`, or delete the file: the model then judges every pair."


class FamiliarityFile(NamedTuple):
    """The content of a familiarity file."""

    tensors: dict[str, NDArray[Any]]
    about: dict[str, str]
    """`weights_sha256`, `corpus`, `fitted_pairs` and `held_out_pairs`."""


def parse_familiarity(content: bytes, weights_sha256: str, source: object) -> FamiliarityFile:
    """Parse the content of a familiarity file.

    Raises `CheckpointError`, with the source, if it is none, or if it was fitted to other weights.
    """
    try:
        tensors, about = load(content), _about(content)
        if missing := {"changed.bias_K", *HELD_OUT} - tensors.keys():
            raise KeyError(min(missing))
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            raise ValueError("a value is not finite")
        for name, matrix in _MATRICES.items():
            mean_D, scale_D, matrix_DK = (tensors[f"{name}.{field}"] for field in ("mean_D", "scale_D", matrix))
            if not mean_D.shape == scale_D.shape == matrix_DK.shape[:1]:
                raise ValueError("the sizes of its tensors do not fit each other")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source} is not a familiarity file: {error}. {_HOW_TO_GET_ONE}") from error
    if (version := about.pop("version", None)) != VERSION:
        raise CheckpointError(f"{source} has version {version}; {VERSION} is known. {_HOW_TO_GET_ONE}")
    check_weights(about, weights_sha256, source)
    return FamiliarityFile(tensors, about)


def check_weights(about: dict[str, str], weights_sha256: str, source: object) -> None:
    """Raise `CheckpointError`, with the source, unless it was fitted to the weights with this SHA-256."""
    if about.get("weights_sha256") != weights_sha256:
        raise CheckpointError(f"{source} was fitted to other weights than those of this model. {_HOW_TO_GET_ONE}")


def id_of_content(content: bytes) -> str:
    """Return the id of a familiarity file: the first 12 hex digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:12]


def _about(content: bytes) -> dict[str, Any]:
    """Return the metadata of a safetensors file: its header is JSON, after its length in 8 bytes."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return dict(json.loads(header["__metadata__"]["about"]))
