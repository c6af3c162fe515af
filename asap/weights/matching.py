"""Tensors that others trained, under our names: taken where they fit the model to be trained, else refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from asap.errors import CheckpointError
from asap.model.asap import Asap
from asap.model.config import ModelConfig


@dataclass(frozen=True)
class InitialisationReport:
    """What became of a checkpoint that was taken as a start. Names are ours unless said otherwise."""

    taken: list[str]
    resized: list[str]
    """Taken at another image size; these are in `taken` too."""
    fresh: list[str]
    """Left as the model's own initialisation drew them."""
    for_twins: list[str]
    """What `albef_twins` takes, in the checkpoint's names."""
    dropped: list[str]
    """What neither model nor twin has a place for, in the checkpoint's names."""

    def __str__(self) -> str:
        groups = {
            "taken": self.taken,
            "of these resized": self.resized,
            "left fresh": self.fresh,
            "for the twins": self.for_twins,
            "dropped": self.dropped,
        }
        return "\n".join(f"{title:>16}: {_by_module(names)}" for title, names in groups.items())


def has_another_size(positions: Tensor | None, expected: tuple[int, ...]) -> bool:
    """Whether these are the positions of another square of patches, at the same width."""
    if positions is None or positions.ndim != 3 or tuple(positions.shape) == expected:
        return False
    side = round((positions.shape[1] - 1) ** 0.5)
    return side**2 + 1 == positions.shape[1] and positions.shape[::2] == torch.Size(expected[::2])


def _by_module(names: Iterable[str]) -> str:
    """How many, and how many of each module."""
    counts = Counter(name.partition(".")[0] for name in names)
    modules = ", ".join(f"{module} {count}" for module, count in sorted(counts.items()))
    return f"{counts.total()} tensors ({modules})" if counts else "none"


Shapes = Mapping[str, tuple[int, ...]]


POSITIONS = "image_encoder.pos_embed"


_LISTED = 20


@lru_cache(maxsize=8)
def expected_shapes(config: ModelConfig) -> Shapes:
    """Our parameter names and their shapes."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Asap(config).state_dict().items()}


def misfits(expected: Shapes, found: Shapes) -> str:
    """One line each for what is missing, unexpected and wrongly shaped; empty where everything fits."""
    wrong = [
        f"{key} is {found[key]}, not {expected[key]}"
        for key in sorted(set(expected) & set(found))
        if found[key] != expected[key]
    ]
    groups = {
        "missing": sorted(set(expected) - set(found)),
        "unexpected": sorted(set(found) - set(expected)),
        "wrongly shaped": wrong,
    }
    return "\n".join(f"{len(keys)} {what}: {shorten(keys)}" for what, keys in groups.items() if keys)


def check_vocabulary(tokenizer: Any, config: ModelConfig) -> None:
    """Raise `CheckpointError` unless the tokenizer has as many pieces as the word embedding has rows."""
    if len(tokenizer) != config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {len(tokenizer)} pieces and the word embedding {config.vocab_size} rows; "
            "use the tokenizer that the weights were trained with"
        )


def shorten(keys: list[str]) -> str:
    more = f", and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(keys[:_LISTED]) + more


def resize_positions(positions_1NW: Tensor, config: ModelConfig) -> Tensor:
    side = config.patches_per_side
    # antialias=False gives the published values.
    resized: Tensor = resample_abs_pos_embed(positions_1NW.float(), [side, side], antialias=False)
    return resized


PATCH_EMBEDDING = r"image_encoder\.patch_embed\."
WORDS = r"text_encoder\.embeddings\.word_embeddings\."
ASAP_ONLY = r"image_side_attention\.self_attention\.|explanation_head\.|patch_head\.|(real_fake|type)_scale$"
"""What HAMMER has not: one may start from the other."""


def fitting(
    found: Mapping[str, Tensor], config: ModelConfig, title: str, left_out: list[str], scope: tuple[str, ...] = ("",)
) -> tuple[dict[str, Tensor], InitialisationReport]:
    """What is taken of `found`, in float32, and the report of it, which does not say what stays fresh.

    All that the modules of `scope` have must be there, and nothing else, but for what matches a pattern of `left_out`:
    that is neither expected nor taken. Raises `CheckpointError` with every key that does not fit.
    """
    pattern = re.compile("|".join(left_out) or "(?!)")
    expected = {
        name: shape
        for name, shape in expected_shapes(config).items()
        if name.startswith(scope) and not pattern.match(name)
    }
    weights = {name: value for name, value in found.items() if not pattern.match(name)}
    resized = []
    if POSITIONS in expected and has_another_size(weights.get(POSITIONS), expected[POSITIONS]):
        weights[POSITIONS] = resize_positions(weights[POSITIONS], config)
        resized = [POSITIONS]
    if lines := misfits(expected, {name: tuple(value.shape) for name, value in weights.items()}):
        raise CheckpointError(f"{title} does not fit the model that is to be trained; nothing was loaded\n{lines}")
    weights = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    report = InitialisationReport(
        taken=sorted(weights), resized=resized, fresh=[], for_twins=[], dropped=sorted(set(found) - set(weights))
    )
    return weights, report


def check_post_norm(source: str, config: ModelConfig) -> None:
    """Raise `CheckpointError` unless the model normalises where BERT and every published checkpoint do."""
    if config.text_norm != "post":
        raise CheckpointError(
            f"{source} normalises after each residual sum, and the run's text_norm is {config.text_norm!r}; "
            'nothing was loaded: set model={"text_norm": "post"}, or preset=base'
        )
