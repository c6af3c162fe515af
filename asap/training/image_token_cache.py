"""A cache of the image tokens of a locked image encoder: each picture is encoded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from asap.model.config import ModelConfig

_STORED_DTYPE = torch.float16


def token_bytes(pairs: int, config: ModelConfig) -> int:
    """Return the memory, in bytes, of the tokens of `pairs` pictures."""
    return _STORED_DTYPE.itemsize * math.prod(_shape(pairs, config))


def _shape(pairs: int, config: ModelConfig) -> tuple[int, int, int]:
    return (pairs, config.patches_per_side**2 + 1, config.width)


class ImageTokens:
    """Image tokens by the number of their pair, kept in memory as float16 if those of all pairs fit.

    Tokens are rounded to float16 whether they fit or not. The amount of memory thus decides how long a step takes, and
    not what it learns.
    """

    def __init__(self, pairs: int, config: ModelConfig, most_bytes: float) -> None:
        self._has_tokens = torch.zeros(pairs, dtype=torch.bool)
        fits = token_bytes(pairs, config) <= most_bytes
        self._kept = torch.empty(_shape(pairs, config), dtype=_STORED_DTYPE) if fits else None

    def get_or_encode(self, numbers: Sequence[int], encode: Callable[[], Tensor]) -> Tensor:
        """Return the tokens of these pairs, (B, N, W) float32; `encode` computes the tokens of all of them.

        If the tokens of one pair are missing, the whole batch is encoded. The number of pictures that are encoded
        together must not depend on the pairs seen before a run was stopped.
        """
        rows = torch.tensor(numbers)
        if self._kept is not None and self._has_tokens[rows].all():
            return self._kept[rows].float()
        tokens_BNW = encode().to(_STORED_DTYPE)
        if self._kept is not None:
            self._kept[rows] = tokens_BNW.cpu()
            self._has_tokens[rows] = True
        return tokens_BNW.float()
