"""Manipulation types, verdicts, and the manipulation types that each class of a data set stands for.

A label set maps every value of `fake_cls` to a subset of `TYPES`. A model is trained on one label set
(`ModelConfig.label_set`), and a corpus is read with the label set of its model. The type head has an output for each of
the four types under every label set. If no class of a set has a type, that output was never trained to be positive.

    dgm4    nine classes, four types
    samm    three classes; no pair is manipulated in the image alone or in the text alone
    dgm4+   the classes of dgm4, and `origin`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from asap.errors import AnnotationError, ConfigError

VERDICTS = ("manipulated", "review", "authentic", "unfamiliar")
"""The verdicts. `unfamiliar` says that the model has seen nothing like the pair, whatever its score."""
FLAGGED = VERDICTS[:2]
"""The verdicts that flag a pair."""
TYPES = ("face_swap", "face_attribute", "text_swap", "text_attribute")
"""The manipulation types, in the order of `logits_multilabel` (the published order)."""
IMAGE_TYPES = TYPES[:2]
TEXT_TYPES = TYPES[2:]
LABEL_SETS = ("dgm4", "samm", "dgm4+")
"""Names of the label sets that a model can be trained on."""
AUTHENTIC = "orig"
"""The value of `fake_cls` for an authentic pair, the same in every label set."""


@dataclass(frozen=True, eq=False)
class LabelSet:
    """The classes of a data set."""

    name: str
    """The name in `ModelConfig.label_set`."""
    title: str
    """The name as the authors of the data set write it."""
    classes: Mapping[str, tuple[str, ...]]
    """Types of each `fake_cls`, in the order of `TYPES`; an authentic class has none."""

    @property
    def types(self) -> tuple[str, ...]:
        """The types that at least one class has."""
        return tuple(name for name in TYPES if any(name in types for types in self.classes.values()))

    def types_of(self, fake_cls: str) -> tuple[str, ...]:
        """Return the types of a class; an authentic class has none.

        Raises `AnnotationError`, with the known classes, if the class is unknown.
        """
        # An annotation may hold any JSON value, and an unhashable one must not reach the lookup.
        if isinstance(fake_cls, str) and fake_cls in self.classes:
            return self.classes[fake_cls]
        others = [name for name in LABEL_SETS if isinstance(fake_cls, str) and fake_cls in label_set(name).classes]
        hint = f"; it is a class of label set {others[0]!r}, so use a model with that label_set" if others else ""
        raise AnnotationError(f"fake_cls {fake_cls!r} is unknown; {self.title} has {', '.join(self.classes)}{hint}")


DGM4 = LabelSet(
    "dgm4",
    "DGM4",
    {
        AUTHENTIC: (),
        **{name: (name,) for name in TYPES},
        **{f"{image}&{text}": (image, text) for image in IMAGE_TYPES for text in TEXT_TYPES},
    },
)
"""The classes in the annotations of rshaojimmy/MultiModal-DeepFake (Shao et al., CVPR 2023)."""

SAMM = LabelSet(
    "samm",
    "SAMM",
    {
        AUTHENTIC: (),
        "swap_manipulation": ("face_swap", "text_attribute"),
        "attribute_manipulation": ("face_attribute", "text_attribute"),
    },
)
"""The classes that `tools/multilabel_metrics.py` of shen8424/SAMM-RamDG-CAP reads (Shen et al., ACM MM 2025).

It has three types: face swap, face attribute, and one for the text. It calls the last one text attribute and gives it
to both manipulated classes.
"""

DGM4_PLUS = LabelSet("dgm4+", "DGM4+", {**DGM4.classes, "origin": ()})
"""The classes of the generator and challenge page of Gaganx0/DGM4plus (Singh et al., arXiv 2509.26047).

These are `origin`, `text_attribute` and `text_swap`; the challenge counts `origin` as authentic. The paper counts every
generated image as a manipulation: a foreground in front of a background that does not fit it (FG-BG, FG-BG+TA,
FG-BG+TS). The files have neither a class nor a box for that, so a model with this label set learns nothing about it.
"""

_ALL = {labels.name: labels for labels in (DGM4, SAMM, DGM4_PLUS)}


def label_set(name: str) -> LabelSet:
    """Return the label set with this name. Raises `ConfigError`, with the known names, if there is none."""
    if name not in _ALL:
        raise ConfigError(f"label set {name!r} is unknown; {', '.join(_ALL)} are known")
    return _ALL[name]


def types_of(fake_cls: str, labels: LabelSet = DGM4) -> tuple[str, ...]:
    """Return the types of a `fake_cls`; an authentic one has none. Raises `AnnotationError`."""
    return labels.types_of(fake_cls)


def is_manipulated(fake_cls: str, labels: LabelSet = DGM4) -> bool:
    """Return True if the class has any type: the real/fake label of the pair. Raises `AnnotationError`."""
    return bool(types_of(fake_cls, labels))


def has_a_fake_text(fake_cls: str, labels: LabelSet = DGM4) -> bool:
    """Return True if the class has a text type, and therefore manipulated words. Raises `AnnotationError`."""
    return any(name in TEXT_TYPES for name in types_of(fake_cls, labels))


def shows_a_fake_face(fake_cls: str, labels: LabelSet = DGM4) -> bool:
    """Return True if the class has an image type, and therefore a box. Raises `AnnotationError`."""
    return any(name in IMAGE_TYPES for name in types_of(fake_cls, labels))
