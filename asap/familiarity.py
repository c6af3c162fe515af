"""Familiarity: the share of a model's own held-out pairs that are at least as strange to it as a given pair.

A model has an opinion on any pair, also on kinds of pictures and texts that it has never seen. Its familiarity file
holds what its own pairs look like to it, and how strange held-out pairs are. A conformal p-value says how many of these
are as strange. Three measures look at the features of `asap.model.activations`, and the strangest decides:

- the Mahalanobis distance of the picture's early features (Lee et al., NeurIPS 2018) finds pictures of other kinds;
- a classifier of changed pictures finds own pictures that were blurred, shrunk, dimmed and so on. It learns from those
  that the model flags although they are authentic, as outlier exposure does (Hendrycks et al., ICLR 2019);
- the Mahalanobis distance of the text's features finds texts of other kinds.

A p-value is an upper bound of the share, with 99 % confidence (Bates et al., Annals of Statistics 2023), so a small
number of held-out pairs never makes pairs unfamiliar by chance.

Shapes: N pairs, D features, K directions or kinds of changes, H held-out pairs.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from scipy.special import betaincinv
from torch import Tensor

from asap.errors import ConfigError
from asap.familiarity_file import HELD_OUT, VERSION, check_weights, id_of_content, parse_familiarity

Floats = NDArray[np.float64]

CONFIDENCE = 0.99
MIN_PAIRS = 1000
"""Pairs that the distributions and the p-values need at least."""
_DIRECTIONS = 1024
"""Features of a larger model are projected onto so many random directions, since a covariance needs many more pairs
than it has rows."""
_KIND_LEVEL, _CHANGE_LEVEL, _TEXT_LEVEL = 0.003, 0.0017, 0.0003
"""Shares of held-out pairs beyond the level at which one measure is called as strange as another.

They share the half percent of own pairs that the default policy calls unfamiliar. A text of another kind lies far
beyond any level, while some photographs lie close to drawings, so the text gets the least.
"""
MIN_CHANGED = 20
"""Falsely flagged pictures of a kind of change that the classifier needs to learn it."""
_PENALTY = 0.1
"""Weight of the data against the L2 penalty of the classifier, over features of unit variance."""
_RIDGE = 1e-4
"""Added to the diagonal of the correlation matrix, so that it can be inverted."""


class PairFeatures(NamedTuple):
    """Features of pairs (`asap.model.activations`)."""

    image_ND: Tensor
    """Early features of the pictures."""
    tokens_ND: Tensor
    """Features of the image tokens, the output of the image encoder."""
    text_ND: Tensor

    @classmethod
    def joined(cls, parts: Sequence[PairFeatures]) -> Self:
        """Return the features of several groups of pairs as those of one."""
        return cls(*map(torch.cat, zip(*parts, strict=True)))

    @property
    def whole_image(self) -> Tensor:
        """All features of the pictures."""
        return torch.cat([self.image_ND, self.tokens_ND], dim=1)


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
        return np.asarray(distances_N.cpu().double().numpy())


def _directions(features: int) -> Tensor:
    """Return orthonormal random directions (D, K), the same each time; the identity where all features are kept."""
    if features <= _DIRECTIONS:
        return torch.eye(features).double()
    random_DK = torch.randn(features, _DIRECTIONS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(random_DK).Q


class ChangeClassifier(NamedTuple):
    """A linear classifier of own pictures and of kinds of changed ones."""

    mean_D: Tensor
    scale_D: Tensor
    weight_DK: Tensor
    """Weights of each kind of change, less those of own pictures; K is 0 if the model errs on no change."""
    bias_K: Tensor

    @classmethod
    def fit(cls, own_ND: Tensor, changed: Sequence[Tensor]) -> Self:
        """Fit the classifier to features of own pictures, and of changed ones (N, D), a tensor for each kind.

        A kind with fewer than `MIN_CHANGED` pictures is left out.
        """
        kinds = [kind_ND for kind_ND in changed if len(kind_ND) >= MIN_CHANGED]
        mean_D, scale_D = own_ND.mean(0), own_ND.std(0, correction=0) + 1e-8
        if not kinds:
            return cls(mean_D, scale_D, torch.zeros(len(mean_D), 0), torch.zeros(0))
        # scikit-learn takes a second to import, and only a fit needs it.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        rows_ND = (torch.cat([own_ND, *kinds]) - mean_D) / scale_D
        labels_N = np.repeat(np.arange(1 + len(kinds)), [len(own_ND), *map(len, kinds)])
        # Steps that are still to come would change little, and the p-values hold for whatever is fitted.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = LogisticRegression(C=_PENALTY, max_iter=200).fit(rows_ND.numpy(), labels_N)
        weight_KD, bias_K = torch.from_numpy(fitted.coef_).float(), torch.from_numpy(fitted.intercept_).float()
        if len(kinds) == 1:  # of two classes, scikit-learn returns the second less the first
            return cls(mean_D, scale_D, weight_KD.T.contiguous(), bias_K)
        return cls(mean_D, scale_D, (weight_KD[1:] - weight_KD[0]).T.contiguous(), bias_K[1:] - bias_K[0])

    def strangeness(self, features_ND: Tensor) -> Floats:
        """Return the softplus of the log-odds of the most likely change against own pictures, (N,)."""
        if not len(self.bias_K):
            return np.zeros(len(features_ND))
        odds_NK = ((features_ND - self.mean_D) / self.scale_D) @ self.weight_DK + self.bias_K
        return np.asarray(torch.nn.functional.softplus(odds_NK.max(1).values.cpu().double()).numpy())


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
        """Return the strangeness that this share of the held-out pairs exceeds; it is above 0, so that it divides."""
        if share not in self._levels:
            self._levels[share] = max(float(np.quantile(self.strangeness_H, 1 - share)), 1e-9)
        return self._levels[share]


@dataclass(frozen=True, eq=False)
class Familiarity:
    """The pairs that a model was made from, as its early layers see them."""

    image: Gaussian
    changed: ChangeClassifier
    text: Gaussian
    kinds: HeldOut
    """Held-out pairs by the distance of their picture."""
    changes: HeldOut
    """Held-out pairs by the odds that their picture was changed."""
    texts: HeldOut
    """Held-out pairs by the distance of their text."""
    images: HeldOut
    """Held-out pairs by distance and change of their picture, whichever is stranger."""
    pairs: HeldOut
    """Held-out pairs by the strangest of the three."""
    about: dict[str, str]
    """`weights_sha256`, `corpus`, `fitted_pairs` and `held_out_pairs`."""

    @classmethod
    def fit(
        cls, known: PairFeatures, held_out: PairFeatures, about: dict[str, str], changed: Sequence[Tensor] = ()
    ) -> Self:
        """Fit the measures to known pairs, and the p-values to held-out pairs.

        Args:
            known: features of the pairs that the distributions are fitted to.
            held_out: features of other pairs of the same corpus, authentic and manipulated.
            about: `weights_sha256`, the SHA-256 of the model's weights, and `corpus`, a description of the pairs.
            changed: for each kind of change, all features (N, D) of changed pictures of authentic pairs that the model
                flags.

        Raises `ConfigError` if there are fewer than `MIN_PAIRS` of either.
        """
        for name, count in (("known", len(known.image_ND)), ("held-out", len(held_out.image_ND))):
            if count < MIN_PAIRS:
                raise ConfigError(f"{count} {name} pairs are too few to fit familiarity. Give at least {MIN_PAIRS}.")
        image, text = Gaussian.fit(known.image_ND), Gaussian.fit(known.text_ND)
        classifier = ChangeClassifier.fit(known.whole_image, changed)
        kinds = HeldOut(image.strangeness(held_out.image_ND))
        changes = HeldOut(classifier.strangeness(held_out.whole_image))
        texts = HeldOut(text.strangeness(held_out.text_ND))
        counts = {"fitted_pairs": str(len(known.image_ND)), "held_out_pairs": str(len(held_out.image_ND))}
        nobody = HeldOut(np.zeros(1))
        draft = cls(image, classifier, text, kinds, changes, texts, nobody, nobody, about | counts)
        image_N, _, pair_N = draft._strangeness(held_out)
        return replace(draft, images=HeldOut(image_N), pairs=HeldOut(pair_N))

    def _strangeness(self, features: PairFeatures) -> tuple[Floats, Floats, Floats]:
        """Return the strangeness of picture, text and pair, each (N,): a measure divided by its level, the highest."""
        kind_N = self.image.strangeness(features.image_ND) / self.kinds.level(_KIND_LEVEL)
        change_N = self.changed.strangeness(features.whole_image) / self.changes.level(_CHANGE_LEVEL)
        text_N = self.text.strangeness(features.text_ND)
        image_N = np.maximum(kind_N, change_N)
        return image_N, text_N, np.maximum(image_N, text_N / self.texts.level(_TEXT_LEVEL))

    def of_pairs(self, features: PairFeatures, captioned: Sequence[bool]) -> list[PairFamiliarity]:
        """Return the familiarity of pairs; `captioned` is True where a caption replaced a missing text."""
        shares_N3 = self.shares(features, np.asarray(captioned, bool)).tolist()
        return [PairFamiliarity(pair, image, None if np.isnan(text) else text) for pair, image, text in shares_N3]

    def shares(self, features: PairFeatures, captioned_N: NDArray[np.bool_]) -> Floats:
        """Return the fields of `PairFamiliarity` as columns, (N, 3): a text that is None is NaN."""
        image_N, text_N, pair_N = self._strangeness(features)
        shares_N3 = np.stack(
            [self.pairs.share_as_strange(pair_N), self.images.share_as_strange(image_N),
             self.texts.share_as_strange(text_N)], axis=1,
        )  # fmt: skip
        shares_N3[captioned_N, 0] = shares_N3[captioned_N, 1]
        shares_N3[captioned_N, 2] = np.nan
        return shares_N3

    def to(self, device: torch.device) -> Self:
        """Return the same familiarity, which compares features where they are computed."""
        image, text = (Gaussian(*(tensor.to(device) for tensor in part)) for part in (self.image, self.text))
        changed = ChangeClassifier(*(tensor.to(device) for tensor in self.changed))
        return replace(self, image=image, changed=changed, text=text)

    @cached_property
    def familiarity_id(self) -> str:
        """The first 12 hex digits of the SHA-256 of the file."""
        return id_of_content(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the content of a familiarity file (safetensors)."""
        tensors = {
            f"{name}.{field}": tensor.contiguous()
            for name in ("image", "changed", "text")
            for field, tensor in getattr(self, name)._asdict().items()
        }
        tensors |= {name: torch.from_numpy(getattr(self, name).strangeness_H) for name in HELD_OUT}
        return save(tensors, {"about": json.dumps({"version": VERSION} | self.about, sort_keys=True)})

    @classmethod
    def from_bytes(cls, content: bytes, weights_sha256: str, source: object) -> Self:
        """Parse the output of `to_bytes`.

        Raises `CheckpointError`, with the source, if it is none, or if it was fitted to other weights.
        """
        content_of, about = parse_familiarity(content, weights_sha256, source)
        tensors = {name: torch.from_numpy(tensor) for name, tensor in content_of.items()}
        image, text = (
            Gaussian(*(tensors[f"{name}.{field}"] for field in Gaussian._fields)) for name in ("image", "text")
        )
        changed = ChangeClassifier(*(tensors[f"changed.{field}"] for field in ChangeClassifier._fields))
        kinds, changes, texts, images, pairs = (HeldOut(content_of[name]) for name in HELD_OUT)
        return cls(image, changed, text, kinds, changes, texts, images, pairs, about)

    def check_weights(self, weights_sha256: str, source: object) -> None:
        """Raise `CheckpointError`, with the source, unless it was fitted to the weights with this SHA-256."""
        check_weights(self.about, weights_sha256, source)
