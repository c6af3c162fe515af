"""What a locked image encoder makes of each picture, computed once and kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from asap.model.config import ModelConfig

_KEPT_AS = torch.float16


def token_bytes(pairs: int, config: ModelConfig) -> int:
    """What the tokens of so many pictures take in memory."""
    return _KEPT_AS.itemsize * math.prod(_shape(pairs, config))


def _shape(pairs: int, config: ModelConfig) -> tuple[int, int, int]:
    return (pairs, config.patches_per_side**2 + 1, config.width)


class ImageTokens:
    """Image tokens by the number of their pair, in memory as float16 where those of all pairs fit.

    Rounded to float16 whether they fit or not, so that memory decides how long a step takes and not what it learns.
    """

    def __init__(self, pairs: int, config: ModelConfig, most_bytes: float) -> None:
        self._known = torch.zeros(pairs, dtype=torch.bool)
        fits = token_bytes(pairs, config) <= most_bytes
        self._kept = torch.empty(_shape(pairs, config), dtype=_KEPT_AS) if fits else None

    def of(self, numbers: Sequence[int], encode: Callable[[], Tensor]) -> Tensor:
        """The tokens of these pairs, (B, N, W) in float32; `encode` computes those of all of them.

        Where one is not known the whole batch is computed: how many pictures are encoded together must not depend on
        what was seen before a run was stopped.
        """
        rows = torch.tensor(numbers)
        if self._kept is not None and self._known[rows].all():
            return self._kept[rows].float()
        tokens_BNW = encode().to(_KEPT_AS)
        if self._kept is not None:
            self._kept[rows] = tokens_BNW.cpu()
            self._known[rows] = True
        return tokens_BNW.float()
