"""What the classes of a data set say: which of the manipulation types is in a pair.

A label set maps every value of `fake_cls` to the types of `asap.model.config.TYPES`. A model speaks one of them
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
from asap.model.config import IMAGE_TYPES, LABEL_SETS, TEXT_TYPES, TYPES

AUTHENTIC = "orig"


@dataclass(frozen=True, eq=False)
class LabelSet:
    """The classes of a data set."""

    name: str
    """As `ModelConfig.label_set` has it."""
    title: str
    """As its authors write it."""
    classes: Mapping[str, tuple[str, ...]]
    """`fake_cls` to the types in it, in the order of `asap.model.config.TYPES`; none for an authentic pair."""

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
