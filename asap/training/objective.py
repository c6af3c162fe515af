"""What a run learns, by name: the objectives of the papers, each with a part more, and this project's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from asap.errors import ConfigError
from asap.model.config import LossWeights, PublishedDefects

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
