"""Matches the tensors of a checkpoint with the model to train: they fit it, or they are refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from asap.errors import CheckpointError, printable
from asap.model.asap import Asap
from asap.model.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Shapes = Mapping[str, tuple[int, ...]]

POSITIONS = "image_encoder.pos_embed"
"""The only parameter that is resized, to the patches of another image size."""
PATCH_EMBEDDING = r"image_encoder\.patch_embed\."
WORDS = r"text_encoder\.embeddings\.word_embeddings\."
ASAP_ONLY = r"image_side_attention\.self_attention\.|explanation_head\.|patch_head\.|(real_fake|type)_scale$"
"""Pattern of the parameters that HAMMER lacks. Without them, either model may start from the other."""
_LISTED = 20
"""Keys that an error names; the others are counted."""


@dataclass(frozen=True)
class InitializationReport:
    """The use of each tensor of a checkpoint that a model starts from. Names are ours unless stated otherwise."""

    taken: list[str]
    resized: list[str]
    """Parameters taken at another image size; they are in `taken` too."""
    fresh: list[str]
    """Parameters left as the model's own initialization drew them."""
    for_twins: list[str]
    """Tensors that `albef_twins` or `published_twins` takes, by the checkpoint's names."""
    dropped: list[str]
    """Tensors that neither the model nor the twin has a parameter for, by the checkpoint's names."""

    def __str__(self) -> str:
        groups = {
            "taken": self.taken,
            "of these resized": self.resized,
            "left fresh": self.fresh,
            "for the twins": self.for_twins,
            "dropped": self.dropped,
        }
        lines = []
        for title, names in groups.items():
            counts = Counter(name.partition(".")[0] for name in names)
            modules = ", ".join(f"{module} {count}" for module, count in sorted(counts.items()))
            lines.append(f"{title:>16}: " + (f"{counts.total()} tensors ({modules})" if counts else "none"))
        return "\n".join(lines)


@lru_cache(maxsize=8)
def expected_shapes(config: ModelConfig) -> Shapes:
    """Return the names and shapes of a model's parameters."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Asap(config).state_dict().items()}


def describe_mismatches(expected: Shapes, found: Shapes) -> str:
    """Return a line each for missing, unexpected and wrongly shaped keys; an empty text if everything fits."""
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
    return "\n".join(f"{len(keys)} {title}: {shorten(keys)}" for title, keys in groups.items() if keys)


def shorten(keys: list[str]) -> str:
    """Return the first keys as a text, and the number of the others."""
    more = f", and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(map(printable, keys[:_LISTED])) + more


def has_another_size(positions: Tensor | None, expected: tuple[int, ...]) -> bool:
    """Return True if these are the positions of another square of patches, at the same width."""
    if positions is None or positions.ndim != 3 or tuple(positions.shape) == expected:
        return False
    side = round((positions.shape[1] - 1) ** 0.5)  # one position is that of [CLS]
    return side**2 + 1 == positions.shape[1] and positions.shape[::2] == torch.Size(expected[::2])


def resize_positions(positions_1NW: Tensor, config: ModelConfig) -> Tensor:
    """Interpolate position embeddings to the patches of the configured image size. [CLS] keeps its own."""
    side = config.patches_per_side
    # antialias=False gives the published values.
    resized: Tensor = resample_abs_pos_embed(positions_1NW.float(), [side, side], antialias=False)
    return resized


def select_fitting(
    found: Mapping[str, Tensor], config: ModelConfig, title: str, left_out: list[str], scope: tuple[str, ...] = ("",)
) -> tuple[dict[str, Tensor], InitializationReport]:
    """Return the weights to take, in float32, and the report on them; its `fresh` stays empty.

    Args:
        found: the tensors of the checkpoint, by our names.
        config: the model to train.
        title: the checkpoint's name in messages.
        left_out: patterns of parameters that are neither expected nor taken.
        scope: prefixes of the parameters that the checkpoint must have, all of them and no others.

    Raises:
        CheckpointError: with every key that does not fit.
    """
    pattern = re.compile("|".join(left_out) or "(?!)")  # (?!) matches nothing
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
    if lines := describe_mismatches(expected, {name: tuple(value.shape) for name, value in weights.items()}):
        raise CheckpointError(f"{title} does not fit the model to train; nothing was loaded\n{lines}")
    weights = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    report = InitializationReport(
        taken=sorted(weights), resized=resized, fresh=[], for_twins=[], dropped=sorted(set(found) - set(weights))
    )
    return weights, report


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, config: ModelConfig) -> None:
    """Raise `CheckpointError` unless the tokenizer has as many pieces as the word embedding has rows."""
    if len(tokenizer) != config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {len(tokenizer)} pieces and the word embedding {config.vocab_size} rows. "
            "Use the tokenizer that the weights were trained with."
        )


def check_post_norm(source: str, config: ModelConfig) -> None:
    """Raise `CheckpointError` unless the model normalizes where BERT and every published checkpoint do."""
    if config.text_norm != "post":
        raise CheckpointError(
            f"{source} normalizes after each residual sum, and the run's text_norm is {config.text_norm!r}; "
            'nothing was loaded. Set model={"text_norm": "post"}, or preset=base.'
        )
