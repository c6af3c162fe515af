"""What the classes of a data set say: which of the manipulation types is in a pair.

A label set maps every value of `fake_cls` to the types of `asap.labels.TYPES`. A model speaks one of them
(`ModelConfig.label_set`), and a corpus is read with the one its model speaks. The type head has an output for each of
the four types whatever the label set; where a set has no class with a type, that output was never taught to say yes.

    dgm4    nine classes, four types
    samm    three classes: no pair is manipulated in the image alone or the text alone
    dgm4+   DGM4's, and `origin`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from asap.errors import AnnotationError, ConfigError

VERDICTS = ("manipulated", "review", "authentic")


TYPES = ("face_swap", "face_attribute", "text_swap", "text_attribute")
"""The manipulation types, in the order of `logits_multilabel` (the published order)."""


IMAGE_TYPES = TYPES[:2]


TEXT_TYPES = TYPES[2:]


LABEL_SETS = ("dgm4", "samm", "dgm4+")
"""Whose classes a model may speak; `asap.labels` says what each class means."""


AUTHENTIC = "orig"


@dataclass(frozen=True, eq=False)
class LabelSet:
    """The classes of a data set."""

    name: str
    """As `ModelConfig.label_set` has it."""
    title: str
    """As its authors write it."""
    classes: Mapping[str, tuple[str, ...]]
    """`fake_cls` to the types in it, in the order of `asap.labels.TYPES`; none for an authentic pair."""

    @property
    def types(self) -> tuple[str, ...]:
        """The types that some class has."""
        return tuple(name for name in TYPES if any(name in types for types in self.classes.values()))

    def types_of(self, fake_cls: str) -> tuple[str, ...]:
        """The types in a class; none for an authentic pair. Raises `AnnotationError`, with the known classes."""
        if isinstance(fake_cls, str) and fake_cls in self.classes:
            return self.classes[fake_cls]
        others = [name for name in LABEL_SETS if isinstance(fake_cls, str) and fake_cls in label_set(name).classes]
        hint = f"; it is a class of {others[0]!r}, for a model whose label_set that is" if others else ""
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
"""As the annotations of rshaojimmy/MultiModal-DeepFake (Shao et al., CVPR 2023) have them."""

SAMM = LabelSet(
    "samm",
    "SAMM",
    {
        AUTHENTIC: (),
        "swap_manipulation": ("face_swap", "text_attribute"),
        "attribute_manipulation": ("face_attribute", "text_attribute"),
    },
)
"""As `tools/multilabel_metrics.py` of shen8424/SAMM-RamDG-CAP (Shen et al., ACM MM 2025) reads them: three types, face
swap, face attribute and one for the text, which it calls text attribute and gives to both manipulated classes."""

DGM4_PLUS = LabelSet("dgm4+", "DGM4+", {**DGM4.classes, "origin": ()})
"""As the generator and the challenge page of Gaganx0/DGM4plus (Singh et al., arXiv 2509.26047) have them: `origin`,
`text_attribute` and `text_swap`, of which the challenge calls `origin` authentic. The paper counts every drawn picture
as a manipulation, a foreground before a background that does not fit it (FG-BG, FG-BG+TA, FG-BG+TS), but the files
have neither a class nor a box for that: a model that speaks this set learns nothing of it."""

_ALL = {one.name: one for one in (DGM4, SAMM, DGM4_PLUS)}


def label_set(name: str) -> LabelSet:
    """The label set called so. Raises `ConfigError`, with the known ones."""
    if name not in _ALL:
        raise ConfigError(f"label set {name!r} is unknown; {', '.join(_ALL)} are known")
    return _ALL[name]


def types_of(fake_cls: str, labels: LabelSet = DGM4) -> tuple[str, ...]:
    """The manipulation types in a `fake_cls`; none for an authentic pair. Raises `AnnotationError`."""
    return labels.types_of(fake_cls)


def is_manipulated(fake_cls: str, labels: LabelSet = DGM4) -> bool:
    """The real/fake label: a pair with any type is manipulated. Raises `AnnotationError`."""
    return bool(types_of(fake_cls, labels))


def shows_a_fake_face(fake_cls: str, labels: LabelSet = DGM4) -> bool:
    """Whether the class has an image type, and so a box. Raises `AnnotationError`."""
    return any(name in IMAGE_TYPES for name in types_of(fake_cls, labels))
