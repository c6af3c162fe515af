"""A familiarity file for a small model: it knows pairs like those that it is given."""

from collections.abc import Sequence
from pathlib import Path

import torch

from asap.familiarity import MIN_PAIRS, Familiarity, PairFeatures
from asap.finding import Pair
from asap.predictor import Predictor
from asap.weights.model_folder import replace_familiarity, weights_sha256


def make_familiar(folder: Path, pairs: Sequence[Pair]) -> Familiarity:
    """Write a familiarity file into a model folder, and return it.

    It is fitted to the features of the pairs, repeated with a little noise, so the pairs themselves are familiar.
    """
    features = Predictor.from_folder(folder, "cpu").features(pairs)
    known, held_out = (PairFeatures(*(_jitter(part, seed) for part in features)) for seed in (0, 1))
    about = {"weights_sha256": weights_sha256(folder), "corpus": f"{len(pairs)} pairs of a test"}
    familiarity = Familiarity.fit(known, held_out, about)
    replace_familiarity(folder, familiarity)
    return familiarity


def _jitter(features_ND: torch.Tensor, seed: int) -> torch.Tensor:
    """Return `MIN_PAIRS` rows: the rows in turn, each with noise of a tenth of the spread of its features."""
    generator = torch.Generator().manual_seed(seed)
    rows_ND = features_ND[torch.arange(MIN_PAIRS) % len(features_ND)]
    spread_D = features_ND.std(0) + features_ND.std() / 10
    return rows_ND + torch.randn(rows_ND.shape, generator=generator) * spread_D / 10
