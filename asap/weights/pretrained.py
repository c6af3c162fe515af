"""Encoders that timm and transformers have trained, in this library's names: a ViT for the image, a BERT for the rest.

Each place is a folder (or, for timm, a file) on this machine, or else a name that the library downloads.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from asap.errors import CheckpointError
from asap.model.config import ModelConfig
from asap.preprocessing.text import load_tokenizer
from asap.weights.matching import PATCH_EMBEDDING, WORDS, InitialisationReport, check_post_norm, fitting
from asap.weights.published import read_state

_TIMM_HEADS = re.compile(r"(head|head_dist|fc_norm|pre_logits)\.")
_BERT_HEADS = re.compile(r"(pooler|cls)\.|embeddings\.position_ids$")
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


def timm_encoder(place: str, config: ModelConfig) -> tuple[dict[str, Tensor], InitialisationReport]:
    """The weights that a ViT of timm gives the image encoder, and the report; its head is dropped.

    Raises `CheckpointError` with every key that does not fit: a ViT with other parts than ours computes another thing.
    """
    state = read_weights(place)
    if state is None:
        import timm

        with _download(place):
            state = timm.create_model(place, pretrained=True).state_dict()
    heads = {key for key in state if _TIMM_HEADS.match(key)}
    found = {f"image_encoder.{key}": value for key, value in state.items() if key not in heads}
    left_out = [PATCH_EMBEDDING] if config.patch_embedding == "conv" else []
    weights, report = fitting(found, config, f"timm:{place}", left_out, scope=("image_encoder.",))
    dropped = heads | {name.removeprefix("image_encoder.") for name in report.dropped}
    return weights, dataclasses.replace(report, dropped=sorted(dropped))


def bert_encoders(
    place: str, config: ModelConfig, *, takes_words: bool = True
) -> tuple[dict[str, Tensor], InitialisationReport]:
    """The weights that a BERT gives: its first layers to the text encoder, those after them to the fusion encoder.

    Cross attention stays fresh, as do the word embeddings without `takes_words`; layers beyond ours are dropped.
    Raises `CheckpointError` with every key that does not fit.
    """
    check_post_norm(f"bert:{place}", config)
    state, settings = _read_bert(place)
    _check_bert(place, settings, config)
    names = {key: _our_bert_name(key, config) for key in state}
    found = {name: state[key] for key, name in names.items() if name}
    left_out = [] if takes_words else [WORDS]
    if not any(".crossattention." in name for name in found):
        left_out.append(r"fusion_encoder\.layers\.\d+\.crossattention\.")
    weights, report = fitting(found, config, f"bert:{place}", left_out, scope=("text_encoder.", "fusion_encoder."))
    return weights, dataclasses.replace(report, dropped=sorted(key for key in state if names[key] not in weights))


def bert_tokenizer(place: str) -> Any:
    """The tokenizer of a BERT, or None where its folder has none."""
    folder = Path(place)
    if folder.exists():
        return load_tokenizer(folder) if any((folder / name).is_file() for name in _TOKENIZER_FILES) else None
    from transformers import AutoTokenizer  # takes seconds to import

    with _download(place):
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)


def read_weights(place: str) -> dict[str, Tensor] | None:
    """The tensors of a file, or of a folder's weights file; None for what is not on this machine."""
    path = Path(place)
    if not path.exists():
        if path.is_absolute() or place.startswith("."):
            raise CheckpointError(f"{place} is not there; nothing was loaded")
        return None
    if path.is_dir():
        files = [path / name for name in _WEIGHT_FILES if (path / name).is_file()]
        if not files:
            raise CheckpointError(f"folder {path} has none of {', '.join(_WEIGHT_FILES)}; nothing was loaded")
        path = files[0]
    return read_safetensors(path) if path.suffix == ".safetensors" else read_state(path)


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file."""
    try:
        return dict(load_file(file))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors: {error}") from error


def _read_bert(place: str) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Weights and settings."""
    if (state := read_weights(place)) is not None:
        return state, _bert_settings(Path(place) / "config.json")
    from transformers import AutoModel  # takes seconds to import

    with _download(place):
        model = AutoModel.from_pretrained(place, trust_remote_code=False, use_safetensors=True)
    return dict(model.state_dict()), model.config.to_dict()


def _bert_settings(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file} does not describe a BERT: {error}") from error


def _check_bert(place: str, settings: Mapping[str, Any], config: ModelConfig) -> None:
    """What no shape tells."""
    for name, theirs, ours in (
        ("model_type", settings.get("model_type"), "bert"),
        ("num_attention_heads", settings.get("num_attention_heads"), config.heads),
    ):
        if theirs != ours:
            raise CheckpointError(f"bert:{place} has {name} {theirs!r} and not {ours!r}; nothing was loaded")


def _our_bert_name(key: str, config: ModelConfig) -> str | None:
    """None for what our encoders have no place for: heads, and layers beyond ours."""
    key = key.removeprefix("bert.")
    for older, newer in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        key = key.replace(older, newer)  # Google's files have the older names
    if _BERT_HEADS.match(key):
        return None
    if not (layer := re.match(r"encoder\.layer\.(\d+)\.", key)):
        return f"text_encoder.{key}"
    number, rest = int(layer[1]), key[layer.end() :]
    if number < config.text_layers:
        return f"text_encoder.layers.{number}.{rest}"
    number -= config.text_layers
    return f"fusion_encoder.layers.{number}.{rest}" if number < config.fusion_layers else None


@contextmanager
def _download(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what hubs raise is not documented, and a network can fail in any way
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{name} is no folder on this machine and could not be downloaded, {type(error).__name__}: {reason}"
        ) from error
