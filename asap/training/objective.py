"""Training objectives by name: those of the papers, each with one part more, and this project's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from asap.errors import ConfigError

LOSS_NAMES: Mapping[str, str] = {
    "vlc": "pictures matched with their texts (vision-language contrast)",
    "bic": "real or fake (binary classification)",
    "bbox_l1": "box of the manipulated face: distance (L1)",
    "giou": "box of the manipulated face: overlap (generalized IoU)",
    "tmg": "manipulated words (token grounding)",
    "mlc": "the four types of manipulation (multi-label classification)",
    "mgca": "attention to what was manipulated (manipulation-guided cross attention)",
    "ied": "real or fake from the explanation",
    "mpp": "manipulated patches of the picture (manipulated patch prediction)",
    "cwp": "words of the caption, from the picture (caption word prediction)",
    "mlm": "hidden words, from the text and the picture (masked language modeling)",
    "mgca_patches": "guided attention of the text, as a distribution over patches",
    "mgca_words": "guided attention of the image, as a distribution over words",
    "patch_consistency": "similarity of patches with the same label",
    "word_consistency": "similarity of words with the same label",
    "presence": "presence of a manipulated face",
    "hard_negative": "caption against the manipulated text",
}
"""The words for each term of the objective, by its short name (a field of `LossWeights`)."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """The weight of each term in the total (defaults: the published recipe). 0 leaves a term out."""

    vlc: float = 0.1
    """Vision-language contrast of pictures with texts, captions and explanations."""
    bic: float = 1.0
    """Binary classification: real or fake."""
    bbox_l1: float = 0.1
    """L1 distance of the predicted and the true box."""
    giou: float = 0.1
    """Generalized IoU of the predicted and the true box."""
    tmg: float = 1.0
    """Token grounding: real or fake for each token of the text."""
    mlc: float = 1.0
    """Multi-label classification of the four types of manipulation."""
    mgca: float = 0.1
    """Manipulation-guided cross attention: the attention scores of manipulated patches and words."""
    ied: float = 0.1
    """Real or fake, predicted from the picture and its explanation."""
    mpp: float = 0.01
    """Manipulated patch prediction: real or fake for each labeled patch."""
    cwp: float = 0.0
    """Caption word prediction. It is not in the paper; see `asap.training.losses.caption_word_loss`."""
    mlm: float = 0.0
    """Masked language modeling with the picture. It comes from ALBEF; see `asap.training.losses.masked_word_loss`."""
    mgca_patches: float = 0.0
    """Guided attention after softmax, text to image; see `asap.training.losses.guided_attention_loss`."""
    mgca_words: float = 0.0
    """Guided attention after softmax, image to text; see `asap.training.losses.guided_attention_loss`."""
    patch_consistency: float = 0.0
    """Similarity of the patches of a picture; see `asap.training.losses.consistency_loss`."""
    word_consistency: float = 0.0
    """Similarity of the fused words of a text; see `asap.training.losses.consistency_loss`."""
    presence: float = 0.0
    """Presence of a manipulated face, which gates the box; needs `box_gate` `presence` of `ModelConfig`."""
    hard_negative: float = 0.0
    """A manipulated text as the negative of its picture; see `asap.training.losses.hard_negative_loss`."""

    def __post_init__(self) -> None:
        for name, weight in dataclasses.asdict(self).items():
            if not weight >= 0:
                raise ConfigError(f"loss weight {name} {weight} is negative; 0 leaves a term out")

    @classmethod
    def from_dict(cls, weights: dict[str, float]) -> Self:
        """Change the published weights. Raises `ConfigError` for an unknown term."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(weights) - set(known)):
            raise ConfigError(f"unknown loss weights {unknown}; known are {known}")
        return cls(**weights)


@dataclass(frozen=True, kw_only=True)
class PublishedDefects:
    """Defects of the published losses, one switch each.

    All are off by default. Switched on, they reproduce numbers of the published code.
    """

    mgca_words_of_the_batch: bool = False
    """MGCA (guided cross attention) marks a sample's manipulated words in every sample, one position early."""
    mgca_padding: bool = False
    """MGCA averages over padded words too."""
    mpp_ignored_patches: bool = False
    """MPP (patch prediction) counts each ignored patch as a loss of ln 2."""
    explanation_targets: bool = False
    """The image-to-explanation soft targets are the explanation-to-image ones."""
    boxless_pairs: bool = False
    """The box losses average over all pairs. Pairs without a box have zeros as their target."""

    @classmethod
    def all(cls) -> Self:
        """Switch every defect on, as in the published code."""
        return cls(**{field.name: True for field in dataclasses.fields(cls)})


MppLabels = Literal["published", "authentic", "dense"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An objective and the changes to the model that it needs."""

    model: Mapping[str, Any] = field(default_factory=dict)
    """Changes to a preset of `ModelConfig`."""
    weights: LossWeights = field(default_factory=LossWeights)
    defects: PublishedDefects = field(default_factory=PublishedDefects)
    mpp_labels: MppLabels = "published"
    """The patches that MPP labels; see `asap.training.dataset.collate`."""


# For training from random weights. The box and the patches need more weight than after pre-training. Every patch has a
# label: a small corpus needs them all. The types of each modality have a head on their own side. CWP teaches the image
# side words from captions; MLM hides words, so that the fusion learns to read them from the picture.
_RAY = Recipe(
    model={"type_heads": "apart"},
    weights=LossWeights(bbox_l1=1.0, giou=0.5, mpp=2.0, cwp=0.2, mlm=0.5),
    mpp_labels="dense",
)

RECIPES: Mapping[str, Recipe] = {
    # HAMMER (Shao et al., CVPR 2023): image-text contrast, real or fake, types, box, tokens.
    "hammer": Recipe(model={"variant": "hammer"}, weights=LossWeights(mgca=0, ied=0, mpp=0)),
    # Adds ASAP's image side and scalars, and captions and explanations (in the contrast and in IED).
    "hammer+lma": Recipe(weights=LossWeights(mgca=0, mpp=0)),
    "hammer+lma+mgca": Recipe(weights=LossWeights(mpp=0)),
    "asap": Recipe(),
    "asap-as-published": Recipe(defects=PublishedDefects.all()),
    "asap-ray": _RAY,
    # From pretrained weights. The part that it adds was not tried from random ones (docs/training.md).
    "asap-ray-pretrained": replace(_RAY, weights=replace(_RAY.weights, patch_consistency=0.1)),
}


def recipe_called(name: str) -> Recipe:
    """Return the recipe of that name. Raises `ConfigError`, with the known names, if it is unknown."""
    if name not in RECIPES:
        raise ConfigError(f"recipe {name!r} is unknown; {', '.join(RECIPES)} are known")
    return RECIPES[name]
