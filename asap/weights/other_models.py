"""Checkpoints of other models, recognized by their keys, and what can be done with each.

The keys are those of the modules in the public code: `models/RamDGG.py` and `tools/multilabel_metrics.py` of
shen8424/SAMM-RamDG-CAP, `models/CSCL.py` and `models/METER/meter_module.py` of liyih/CSCL, and
`models/modeling_florence2.py` of YcZhangSing/AMD, as they were when this was written. No checkpoint of these was at
hand.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping

HEAD_OUTPUT = "cls_head.6."
"""Prefix of the last layer of the type head, in the published names. It has a row for each type."""
_RAMDG = (r"visual_encoder\.", r"extra_(vision|text)_proj\.", r"extraimgs_fusion\.")
_HAMMER = (r"visual_encoder\.", r"it_cross_attn\.", r"bbox_head\.")
_AUTHORS = "Run it with the code of its authors."
_OTHERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (r"meter\.", r"(img|text)_(intra|extra)_model\."),
        "is one of CSCL and cannot be imported: its encoders are those of METER (CLIP's ViT, RoBERTa, and two towers "
        f"of cross attention), which this library does not have. {_AUTHORS}",
    ),
    (
        (r"(.*\.)?learnable_tokens$", r"(.*\.)?Bbox_Verification\."),
        "is one of AMD and cannot be imported: it is a Florence-2, which writes its answer as a text, and this library "
        f"has no such model. {_AUTHORS}",
    ),
    (
        (r"image_encoder\.", r"fusion_encoder\.", r"real_fake_head\."),
        "has the names of this library: it is the weights file of a model folder. Name the folder wherever a model is "
        "asked for.",
    ),
)
"""Patterns of keys that a checkpoint has all of, and what it is."""
_ALBEF = (r"visual_encoder\.", r"text_encoder\.bert\.", r"text_encoder\.cls\.|itm_head\.(weight|bias)$")


def recognize(shapes: Mapping[str, tuple[int, ...]], title: str) -> str:
    """Return what a checkpoint of another model is and what can be done with it; empty if it is not recognized.

    Args:
        shapes: Shapes by key.
        title: The checkpoint's name in messages: "checkpoint" and its file, or another text.
    """
    file = shlex.quote(title.removeprefix("checkpoint ")) if title.startswith("checkpoint ") else "FILE"
    recipe = "asap" if _has_all(shapes, (r"it_cross_attn\.selfatten\.",)) else "hammer"
    command = f"asap train CORPUS --out RUN --init {file} --set preset=base --set recipe={recipe}"
    as_start = f"can be the first weights of a training, `{command} --set tokenizer=FOLDER`"
    if _has_all(shapes, _RAMDG):
        return (
            f"{title} is one of RamDG and cannot be imported: beside a pair it reads pictures and texts of a knowledge "
            f"base, through layers that this library does not have, and it tells three types apart and not four. Its "
            f"HAMMER part {as_start}; the last layer of the type head then starts fresh."
        )
    if extends_hammer(shapes):
        return (
            f"{title} is one of {recipe.upper()} for {shapes[f'{HEAD_OUTPUT}weight'][0]} types, as RamDG's code trains "
            f"it on SAMM, and cannot be imported: a model of this library has four types. It {as_start}; the last "
            "layer of the type head then starts fresh."
        )
    if _has_all(shapes, _ALBEF) and not _has_all(shapes, (r"bbox_head\.",)):
        return f"{title} is one of ALBEF, which has no heads for manipulations and judges nothing. It {as_start}."
    for marks, sentence in _OTHERS:
        if _has_all(shapes, marks):
            return f"{title} {sentence}"
    return ""


def extends_hammer(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return True for RamDG, and for HAMMER or ASAP with another number of types."""
    rows = shapes.get(f"{HEAD_OUTPUT}weight", ())[:1]
    return _has_all(shapes, _RAMDG) or (rows not in ((), (4,)) and _has_all(shapes, _HAMMER))


def _has_all(keys: Iterable[str], patterns: tuple[str, ...]) -> bool:
    return all(any(re.match(pattern, key) for key in keys) for pattern in patterns)
