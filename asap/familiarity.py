"""Familiarity: the share of a model's own held-out pairs that are at least as strange to it as a given pair.

A model has an opinion on any pair, also on kinds of pictures and texts that it has never seen. Its familiarity file
holds what its own pairs look like to it: mean and covariance of early features (`asap.model.activations`), and the
strangeness of held-out pairs. The strangeness of a picture or text is its Mahalanobis distance (Lee et al., NeurIPS
2018), and the stranger of both decides about the pair. A conformal p-value says how many held-out pairs are as strange.

A p-value is an upper bound of the share, with 99 % confidence (Bates et al., Annals of Statistics 2023), so a small
number of held-out pairs never makes pairs unfamiliar by chance.

Shapes: N pairs, D features, K directions, H held-out pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from scipy.special import betaincinv
from torch import Tensor

from asap.errors import CheckpointError, ConfigError

Floats = NDArray[np.float64]

VERSION = 1
"""The version of the file. A file of another version is refused."""
CONFIDENCE = 0.99
MIN_PAIRS = 1000
"""Pairs that the distributions and the p-values need at least."""
_DIRECTIONS = 1024
"""Features of a larger model are projected onto so many random directions, since a covariance needs many more pairs
than it has rows."""
_IMAGE_LEVEL, _TEXT_LEVEL = 0.004, 0.001
"""Shares of held-out pictures and texts beyond the level at which a picture is called as strange as a text.

A text of another kind lies far beyond any level, while some photographs lie close to drawings. So the picture gets four
fifths of the half percent of own pairs that the default policy calls unfamiliar.
"""
_RIDGE = 1e-4
"""Added to the diagonal of the correlation matrix, so that it can be inverted."""
_HOW_TO_GET_ONE = "Make one with `asap familiarize`, or delete the file: the model then judges every pair."


class PairFeatures(NamedTuple):
    """Early features of pairs (`asap.model.activations`)."""

    image_ND: Tensor
    text_ND: Tensor


class Gaussian(NamedTuple):
    """A normal distribution of features."""

    mean_D: Tensor
    scale_D: Tensor
    """Standard deviation of each feature."""
    whitening_DK: Tensor
    """Turns standardized features into uncorrelated ones of unit variance."""

    @classmethod
    def fit(cls, features_ND: Tensor) -> Self:
        """Fit the distribution to features."""
        features_ND = features_ND.double()
        mean_D, scale_D = features_ND.mean(0), features_ND.std(0, correction=0) + 1e-8
        standard_NK = (features_ND - mean_D) / scale_D
        projection_DK = _directions(standard_NK.shape[1])
        standard_NK = standard_NK @ projection_DK
        correlation_KK = standard_NK.T @ standard_NK / len(standard_NK)
        precision_KK = torch.linalg.inv(correlation_KK + _RIDGE * torch.eye(len(correlation_KK)).double())
        whitening_DK = projection_DK @ torch.linalg.cholesky(precision_KK)
        return cls(mean_D.float(), scale_D.float(), whitening_DK.float())

    def strangeness(self, features_ND: Tensor) -> Floats:
        """Return the squared Mahalanobis distance of features to the mean, (N,)."""
        distances_N = (((features_ND - self.mean_D) / self.scale_D) @ self.whitening_DK).square().sum(1)
        return np.asarray(distances_N.double().numpy())


def _directions(features: int) -> Tensor:
    """Return orthonormal random directions (D, K), the same each time; the identity where all features are kept."""
    if features <= _DIRECTIONS:
        return torch.eye(features).double()
    random_DK = torch.randn(features, _DIRECTIONS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(random_DK).Q


class PairFamiliarity(NamedTuple):
    """The familiarity of a pair; every value is in (0, 1]."""

    pair: float
    """The familiarity that decides, from the stranger of picture and text."""
    image: float
    text: float | None
    """None if a caption replaced a missing text: a caption says nothing about the pair."""


class HeldOut:
    """The strangeness of held-out pairs, which turns that of another pair into a p-value."""

    def __init__(self, strangeness_H: Floats) -> None:
        """Keep the strangeness of H held-out pairs, in any order."""
        held_out = len(strangeness_H)
        self.strangeness_H = np.sort(strangeness_H)
        # Clopper-Pearson: the bound for 0, 1, … H stranger pairs.
        stranger_H = np.arange(held_out, dtype=np.float64)
        self._bounds = np.append(betaincinv(stranger_H + 1, held_out - stranger_H, CONFIDENCE), 1.0)
        self._levels: dict[float, float] = {}

    def share_as_strange(self, strangeness_N: Floats) -> Floats:
        """Return an upper bound, at `CONFIDENCE`, of the share of pairs that are at least as strange, (N,)."""
        stranger_N = len(self.strangeness_H) - np.searchsorted(self.strangeness_H, strangeness_N, side="left")
        return np.asarray(self._bounds[stranger_N])

    def level(self, share: float) -> float:
        """Return the strangeness that this share of the held-out pairs exceeds."""
        if share not in self._levels:
            self._levels[share] = float(np.quantile(self.strangeness_H, 1 - share))
        return self._levels[share]


@dataclass(frozen=True, eq=False)
class Familiarity:
    """The pairs that a model was made from, as its early layers see them."""

    image: Gaussian
    text: Gaussian
    images: HeldOut
    """The pictures of held-out pairs."""
    texts: HeldOut
    """The texts of held-out pairs."""
    pairs: HeldOut
    """Held-out pairs; their strangeness is that of `strangeness_of_pairs`."""
    about: dict[str, str]
    """`weights_sha256`, `corpus`, `fitted_pairs` and `held_out_pairs`."""

    @classmethod
    def fit(cls, known: PairFeatures, held_out: PairFeatures, about: dict[str, str]) -> Self:
        """Fit the distributions to known pairs, and the p-values to held-out pairs.

        Args:
            known: features of the pairs that the distributions are fitted to.
            held_out: features of other pairs of the same corpus, authentic and manipulated.
            about: `weights_sha256`, the SHA-256 of the model's weights, and `corpus`, a description of the pairs.

        Raises `ConfigError` if there are fewer than `MIN_PAIRS` of either.
        """
        for name, count in (("known", len(known.image_ND)), ("held-out", len(held_out.image_ND))):
            if count < MIN_PAIRS:
                raise ConfigError(f"{count} {name} pairs are too few to fit familiarity. Give at least {MIN_PAIRS}.")
        image, text = Gaussian.fit(known.image_ND), Gaussian.fit(known.text_ND)
        image_N, text_N = image.strangeness(held_out.image_ND), text.strangeness(held_out.text_ND)
        images, texts = HeldOut(image_N), HeldOut(text_N)
        pairs = HeldOut(strangeness_of_pairs(images, texts, image_N, text_N))
        counts = {"fitted_pairs": str(len(known.image_ND)), "held_out_pairs": str(len(image_N))}
        return cls(image, text, images, texts, pairs, about | counts)

    def of_pairs(self, features: PairFeatures, captioned: Sequence[bool]) -> list[PairFamiliarity]:
        """Return the familiarity of pairs; `captioned` is True where a caption replaced a missing text."""
        image_N, text_N = self.image.strangeness(features.image_ND), self.text.strangeness(features.text_ND)
        pair_N = strangeness_of_pairs(self.images, self.texts, image_N, text_N)
        shares = (
            held_out.share_as_strange(values_N).tolist()
            for held_out, values_N in ((self.pairs, pair_N), (self.images, image_N), (self.texts, text_N))
        )
        rows = zip(*shares, captioned, strict=True)
        return [
            PairFamiliarity(image, image, None) if is_caption else PairFamiliarity(pair, image, text)
            for pair, image, text, is_caption in rows
        ]

    @cached_property
    def familiarity_id(self) -> str:
        """The first 12 hex digits of the SHA-256 of the file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()[:12]

    def to_bytes(self) -> bytes:
        """Return the content of a familiarity file (safetensors)."""
        tensors = {
            f"{name}.{field}": tensor
            for name in ("image", "text")
            for field, tensor in getattr(self, name)._asdict().items()
        }
        tensors |= {name: torch.from_numpy(getattr(self, name).strangeness_H) for name in ("images", "texts", "pairs")}
        return save(tensors, {"about": json.dumps({"version": VERSION} | self.about, sort_keys=True)})

    @classmethod
    def from_bytes(cls, content: bytes, weights_sha256: str, source: object) -> Self:
        """Parse the output of `to_bytes`.

        Raises `CheckpointError`, with the source, if it is none, or if it was fitted to other weights.
        """
        try:
            tensors, about = load(content), _about(content)
            image, text = (
                Gaussian(*(tensors[f"{name}.{field}"] for field in Gaussian._fields)) for name in ("image", "text")
            )
            images, texts, pairs = (HeldOut(tensors[name].numpy()) for name in ("images", "texts", "pairs"))
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                raise ValueError("a value is not finite")
            for gaussian in (image, text):
                if not gaussian.mean_D.shape == gaussian.scale_D.shape == gaussian.whitening_DK.shape[:1]:
                    raise ValueError("the sizes of its tensors do not fit each other")
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{source} is not a familiarity file: {error}. {_HOW_TO_GET_ONE}") from error
        if (version := about.pop("version", None)) != VERSION:
            raise CheckpointError(f"{source} has version {version}; {VERSION} is known. {_HOW_TO_GET_ONE}")
        familiarity = cls(image, text, images, texts, pairs, about)
        familiarity.check_weights(weights_sha256, source)
        return familiarity

    def check_weights(self, weights_sha256: str, source: object) -> None:
        """Raise `CheckpointError`, with the source, unless it was fitted to the weights with this SHA-256."""
        if self.about.get("weights_sha256") != weights_sha256:
            raise CheckpointError(f"{source} was fitted to other weights than those of this model. {_HOW_TO_GET_ONE}")


def strangeness_of_pairs(images: HeldOut, texts: HeldOut, image_N: Floats, text_N: Floats) -> Floats:
    """Return the higher of the strangeness of picture and text, (N,), each divided by its level."""
    return np.maximum(image_N / images.level(_IMAGE_LEVEL), text_N / texts.level(_TEXT_LEVEL))


def _about(content: bytes) -> dict[str, Any]:
    """Return the metadata of a safetensors file: its header is JSON, after its length in 8 bytes."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return dict(json.loads(header["__metadata__"]["about"]))
