"""What a run learns, by name: the objectives of the papers, each with a part more, and this project's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from asap.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """The weight of each term in the total (the published recipe). 0 leaves a term out."""

    vlc: float = 0.1
    bic: float = 1.0
    bbox_l1: float = 0.1
    giou: float = 0.1
    tmg: float = 1.0
    mlc: float = 1.0
    mgca: float = 0.1
    ied: float = 0.1
    mpp: float = 0.01
    cwp: float = 0.0
    """Caption word prediction, which is not of the paper: see `asap.training.losses.caption_word_loss`."""
    mlm: float = 0.0
    """Masked language modelling with the picture, which is of ALBEF: see `asap.training.losses.masked_word_loss`."""

    def __post_init__(self) -> None:
        for name, weight in dataclasses.asdict(self).items():
            if not weight >= 0:
                raise ConfigError(f"loss weight {name} {weight} is negative; 0 leaves a term out")

    @classmethod
    def from_dict(cls, weights: dict[str, float]) -> Self:
        """The published weights with these changes; an unknown term is an error, not ignored."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(weights) - set(known)):
            raise ConfigError(f"unknown loss weights {unknown}; known are {known}")
        return cls(**weights)


@dataclass(frozen=True, kw_only=True)
class PublishedDefects:
    """Defects of the published losses, one switch each. All off is the default; on is for parity with old numbers."""

    mgca_words_of_the_batch: bool = False
    """MGCA marks each sample's manipulated words, one position early, in every sample of the batch."""
    mgca_padding: bool = False
    """MGCA averages over padded words too."""
    mpp_ignored_patches: bool = False
    """MPP counts each ignored patch as ln 2."""
    explanation_targets: bool = False
    """The image-to-explanation soft targets are the explanation-to-image ones."""
    boxless_pairs: bool = False
    """The box losses average over all pairs, with zeros as the target of those without a box."""

    @classmethod
    def all(cls) -> Self:
        """Every defect on: what the published code computes."""
        return cls(**{field.name: True for field in dataclasses.fields(cls)})


MppLabels = Literal["published", "authentic", "dense"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An objective, and the parts of a model that it needs."""

    model: Mapping[str, Any] = field(default_factory=dict)
    """Changes to a preset of `ModelConfig`."""
    weights: LossWeights = field(default_factory=LossWeights)
    defects: PublishedDefects = field(default_factory=PublishedDefects)
    mpp_labels: MppLabels = "published"
    """Which patches MPP labels; see `asap.training.dataset.collate`."""


RECIPES: Mapping[str, Recipe] = {
    # HAMMER (Shao et al., CVPR 2023): contrast of image and text, real or fake, types, box, tokens.
    "hammer": Recipe(model={"variant": "hammer"}, weights=LossWeights(mgca=0, ied=0, mpp=0)),
    # ASAP's image side and scalars, and captions and explanations in the contrast and in IED.
    "hammer+lma": Recipe(weights=LossWeights(mgca=0, mpp=0)),
    "hammer+lma+mgca": Recipe(weights=LossWeights(mpp=0)),
    "asap": Recipe(),
    "asap-as-published": Recipe(defects=PublishedDefects.all()),
    # From random weights the box and the patches need more weight than after pre-training; every patch has a label,
    # which a small corpus cannot do without; types learn from their own side; pictures learn words from captions, and
    # the fusion learns to read pictures by words that are hidden from it.
    "asap-ray": Recipe(
        model={"type_heads": "apart"},
        weights=LossWeights(bbox_l1=1.0, giou=0.5, mpp=2.0, cwp=0.2, mlm=0.5),
        mpp_labels="dense",
    ),
}


def recipe_called(name: str) -> Recipe:
    """The recipe of that name. Raises `ConfigError` with the known ones."""
    if name not in RECIPES:
        raise ConfigError(f"recipe {name!r} is unknown; {', '.join(RECIPES)} are known")
    return RECIPES[name]
