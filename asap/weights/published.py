"""Published ASAP and HAMMER checkpoints, translated to this library's names.

A checkpoint fits exactly or is refused: the error lists every missing, unexpected or wrongly shaped key, and nothing
is loaded. Momentum twins (`*_m.`, except `itm_head_m`, the explanation head) and feature queues are checked with the
rest. Inference needs neither; training takes them with `published_twins`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from asap.errors import CheckpointError
from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.preprocessing.text import as_tokenizer
from asap.weights.checkpoint_file import read_state, title_of
from asap.weights.matching import (
    POSITIONS,
    Shapes,
    check_vocabulary,
    describe_mismatches,
    expected_shapes,
    resize_positions,
    shorten,
)
from asap.weights.other_models import HEAD_OUTPUT, extends_hammer, recognize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PUBLISHED_NAMES = {
    "image_encoder.": "visual_encoder.",
    "text_encoder.embeddings.": "text_encoder.bert.embeddings.",
    "text_encoder.layers.": "text_encoder.bert.encoder.layer.",
    "token_head.": "text_encoder.classifier.",
    "image_projection.": "vision_proj.",
    "text_projection.": "text_proj.",
    "temperature": "temp",
    "image_side_norm.": "norm_layer_it_cross_atten.",
    "image_side_attention.self_attention.": "it_cross_attn.selfatten.",
    "image_side_attention.cross_attention.": "it_cross_attn.crossatten.",
    "aggregate_norm.": "norm_layer_aggr.",
    "aggregate_token": "cls_token_local",
    "aggregator.": "aggregator.",
    "real_fake_head.": "itm_head.",
    "real_fake_scale": "UtilsB",
    "type_head.": "cls_head.",
    "type_scale": "UtilsC",
    "box_head.": "bbox_head.",
    "explanation_head.": "itm_head_m.",
    "patch_head.": "patch_head.",
}
"""Our prefixes and the published ones. There the fusion layers are numbered on from the text layers."""
TWINNED = ("image_encoder.", "text_encoder.", "fusion_encoder.", "token_head.", "image_projection.", "text_projection.")
"""Prefixes of the modules that have a momentum twin."""
_ASAP_ONLY = re.compile(r"Utils[BC]$|(itm_head_m|patch_head|it_cross_attn\.selfatten)\.|(cap|prom)_queue$")
_QUEUES = {"image": "image_queue", "text": "text_queue", "caption": "cap_queue", "explanation": "prom_queue"}
_BUFFERS = re.compile(r"queue_ptr$|text_encoder(_m)?\.bert\.embeddings\.position_ids$")
"""Integers that follow from the other tensors. Only some versions of the published code write them."""


@dataclass(frozen=True)
class Twins:
    """The state of momentum training beside the model: a momentum twin and feature queues."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    """The momentum twin's weights by the student's names; empty if the checkpoint has none."""
    queues: dict[str, Tensor] = field(default_factory=dict)
    """image, text, caption, explanation: (embed_dim, K), columns of unit length; pointer: (), the column to write next.
    HAMMER has only the first two of the features. Empty if the checkpoint has none."""


@dataclass(frozen=True)
class HammerPart:
    """The tensors of a checkpoint that extends HAMMER, as far as HAMMER has them."""

    config: ModelConfig
    weights: dict[str, Tensor]
    """The weights by our names, without the last layer of the type head."""
    twins: Twins
    dropped: list[str]
    """Keys of the checkpoint that were left out."""


def import_published(
    source: str | Path | Mapping[str, Any],
    *,
    tokenizer: PreTrainedTokenizerFast | str | Path | None = None,
    heads: int = 12,
    image_size: int | None = None,
) -> Asap:
    """Import a published ASAP or HAMMER checkpoint as a model in eval mode, float32, on the CPU.

    The keys decide which model it is, and the shapes give every size, except the number of heads. A checkpoint holds no
    pairs, so a model folder of it has neither limits nor familiarity: it judges every pair, until `asap familiarize`
    fits its familiarity to the corpus that it was trained on.

    Args:
        source: a `.pth` file, or a state dict in the published names; bare or under "model", with or without DDP's
            "module.".
        tokenizer: the tokenizer that the checkpoint was trained with, or its folder; its vocabulary is compared with
            the shapes before the weights are read.
        heads: attention heads of the model.
        image_size: the side in pixels to resize the position embedding to; None keeps the checkpoint's.

    Raises:
        CheckpointError: with every key that does not fit; nothing is loaded.
    """
    words = None if tokenizer is None else as_tokenizer(tokenizer)
    return model_of_state(read_state(source), title_of(source), words, heads=heads, image_size=image_size)


def model_of_state(
    state: dict[str, Tensor],
    title: str,
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    heads: int = 12,
    image_size: int | None = None,
) -> Asap:
    """Return the model of a state dict that `read_state` returned. `title` names it in messages.

    The other arguments and the errors are `import_published`'s.
    """
    config = _check_published(state, title, heads)
    if tokenizer is not None:
        check_vocabulary(tokenizer, config)
    weights = _translated(state, config, twin=False)
    if image_size is not None:
        config, weights = _resized(weights, config, image_size)
    return build(config, weights).eval()


def published_twins(source: str | Path | Mapping[str, Any], *, heads: int = 12, image_size: int | None = None) -> Twins:
    """Return the momentum twin and queues of a published checkpoint. Arguments and errors are `import_published`'s."""
    state = read_state(source)
    config = _check_published(state, title_of(source), heads)
    weights = _translated(state, config, twin=True)
    if image_size is not None and weights:
        _, weights = _resized(weights, config, image_size)
    return Twins(weights, queues(state))


def published_name(name: str, config: ModelConfig, *, twin: bool = False) -> str:
    """Return the published name of one of our parameters, or of its momentum twin."""
    if layer := re.match(r"fusion_encoder\.layers\.(\d+)\.", name):
        name = f"text_encoder.layers.{config.text_layers + int(layer[1])}.{name[layer.end() :]}"
    ours = next(prefix for prefix in _PUBLISHED_NAMES if name.startswith(prefix))
    published = _PUBLISHED_NAMES[ours] + name.removeprefix(ours)
    # HAMMER has a single attention there, which the published code gives no name of its own.
    if config.variant == "hammer":
        published = published.replace("it_cross_attn.crossatten.", "it_cross_attn.")
    if twin:
        module, _, rest = published.partition(".")
        published = f"{module}_m.{rest}"
    return published


def build(config: ModelConfig, weights: Mapping[str, Tensor]) -> Asap:
    """Build a model that owns a float32 copy of `weights`, whose keys and shapes have been checked."""
    with torch.device("meta"):  # saves drawing random numbers that are overwritten
        model = Asap(config)
    owned = {
        name: tensor.to(torch.float32 if tensor.is_floating_point() else None, copy=True).contiguous()
        for name, tensor in weights.items()
    }
    model.load_state_dict(owned, strict=True, assign=True)
    return model


def hammer_part(source: str | Path, *, heads: int = 12) -> HammerPart | None:
    """Return the part of RamDG that HAMMER has too, or HAMMER or ASAP without the last layer of another type head.

    It is a start for training and no model. None for any other checkpoint. Raises `CheckpointError`, with every key
    that is missing or does not fit.
    """
    state = read_state(source)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    if not extends_hammer(shapes):
        return None
    config = _published_config(shapes, title_of(source), heads)
    expected = _published_shapes(shapes, config)
    part = {key: value for key, value in state.items() if key in expected and not key.startswith(HEAD_OUTPUT)}
    wanted = {key: shape for key, shape in expected.items() if not key.startswith(HEAD_OUTPUT)}
    if lines := describe_mismatches(wanted, {key: shapes[key] for key in part}):
        raise CheckpointError(f"{title_of(source)} does not fit; nothing was loaded\n{lines}")
    twins = Twins(_translated(part, config, twin=True), queues(part))
    return HammerPart(config, _translated(part, config, twin=False), twins, sorted(set(state) - set(part)))


def _check_published(state: dict[str, Tensor], title: str, heads: int) -> ModelConfig:
    """Check every key of a state dict in the published names, and return its configuration."""
    found = {key: tuple(value.shape) for key, value in state.items()}
    if other := recognize(found, title):
        raise CheckpointError(f"{other} Nothing was loaded.")
    config = _published_config(found, title, heads)
    if lines := describe_mismatches(_published_shapes(found, config), found):
        raise CheckpointError(
            f"{title}, read as {config.variant} of {config.image_size} px, width {config.width} and "
            f"{config.image_layers} + {config.text_layers} + {config.fusion_layers} layers, does not fit; "
            f"nothing was loaded\n{lines}"
        )
    return config


def _published_config(found: Shapes, title: str, heads: int) -> ModelConfig:
    """Infer the model and its sizes, by majority vote so that one damaged tensor is tolerated."""

    def size(pattern: str, axis: int) -> int:
        sizes = [
            shape[axis] for key, shape in found.items() if re.fullmatch(pattern, key) and len(shape) > max(axis, 0)
        ]
        if not sizes:
            key = re.sub(r"\(\?:|\(_m\)\?|\\|[()?]", "", pattern.replace(r"\d+", "N").replace("(?:_m)?", ""))
            raise CheckpointError(
                f"{title} is not a published ASAP or HAMMER checkpoint: it has no {key.replace('|', ' or ')}. "
                f"It has {len(found)} keys: {shorten(sorted(found)[:3])}, …"
            )
        return Counter(sizes).most_common(1)[0][0]

    def layers(pattern: str) -> list[int]:
        return sorted({int(match[1]) for key in found if (match := re.match(pattern, key))})

    bert = r"text_encoder(?:_m)?\.bert\."
    patches = size(r"visual_encoder(_m)?\.pos_embed", 1) - 1
    patch_size = size(r"visual_encoder(_m)?\.patch_embed\.proj\.weight", -1)
    if math.isqrt(patches) ** 2 != patches:
        raise CheckpointError(f"{title} has position embeddings for {patches} patches, which is not a square")
    blocks = layers(r"visual_encoder\.blocks\.(\d+)\.")
    bert_layers = layers(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.")
    # The layers are one BERT: text layers first, then those with cross attention, which fuse both sides.
    fusing = layers(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.crossattention\.")
    if not (blocks and fusing and fusing[0]):
        raise CheckpointError(
            f"{title} is not a published ASAP or HAMMER checkpoint: image, text or fusion layers are absent"
        )
    return ModelConfig(
        variant="asap" if any(_ASAP_ONLY.match(key) for key in found) else "hammer",
        image_size=math.isqrt(patches) * patch_size,
        patch_size=patch_size,
        width=size(r"(visual_encoder(_m)?\.norm|norm_layer_aggr|norm_layer_it_cross_atten)\.weight", 0),
        heads=heads,
        image_layers=blocks[-1] + 1,
        image_mlp_width=size(r"visual_encoder(_m)?\.blocks\.\d+\.mlp\.fc1\.weight", 0),
        text_layers=fusing[0],
        fusion_layers=bert_layers[-1] + 1 - fusing[0],
        text_mlp_width=size(bert + r"encoder\.layer\.\d+\.intermediate\.dense\.weight", 0),
        vocab_size=size(bert + r"embeddings\.word_embeddings\.weight", 0),
        max_positions=(positions := size(bert + r"embeddings\.position_embeddings\.weight", 0)),
        type_vocab_size=size(bert + r"embeddings\.token_type_embeddings\.weight", 0),
        max_tokens=min(positions, ModelConfig.max_tokens),
        embed_dim=size(r"(vision|text)_proj(_m)?\.(weight|bias)", 0),
    )  # fmt: skip


def _published_shapes(found: Shapes, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the checkpoint must have: the model's, and those of any twins, queues and buffers."""
    ours = expected_shapes(config)
    shapes = {published_name(name, config): shape for name, shape in ours.items()}
    twins = {published_name(name, config, twin=True): ours[name] for name in ours if name.startswith(TWINNED)}
    if any(key in found for key in twins):
        shapes |= twins
    # The length of the queues is free, but must be the same for all.
    queue_keys = list(_QUEUES.values())[: 4 if config.variant == "asap" else 2]
    lengths = Counter(found[key][-1] for key in queue_keys if found.get(key))
    if lengths:
        shapes |= dict.fromkeys(queue_keys, (config.embed_dim, lengths.most_common(1)[0][0]))
    buffers = {key for key in found if _BUFFERS.match(key)}
    return shapes | {key: (1,) if key == "queue_ptr" else (1, config.max_positions) for key in buffers}


def _translated(state: dict[str, Tensor], config: ModelConfig, *, twin: bool) -> dict[str, Tensor]:
    """Return the weights of the model, or of its twin, by our names; empty if the checkpoint has no twin."""
    names = [name for name in expected_shapes(config) if not twin or name.startswith(TWINNED)]
    published = {name: published_name(name, config, twin=twin) for name in names}
    return {name: state[key] for name, key in published.items() if key in state}


def queues(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the feature queues of a state dict in published names, as `Twins` holds them."""
    found = {name: state[key] for name, key in _QUEUES.items() if key in state}
    if found:
        found["pointer"] = state["queue_ptr"].reshape(()) if "queue_ptr" in state else torch.tensor(0)
    return found


def _resized(weights: dict[str, Tensor], config: ModelConfig, image_size: int) -> tuple[ModelConfig, dict[str, Tensor]]:
    config = dataclasses.replace(config, image_size=image_size)
    return config, weights | {POSITIONS: resize_positions(weights[POSITIONS], config)}
