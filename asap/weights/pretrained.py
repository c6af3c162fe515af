"""Pretrained encoders of timm and transformers, by this library's names: a ViT for the image, a BERT for the rest.

A source is a folder (or, for timm, a file) on this machine, or else a name that timm or transformers downloads.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from asap.errors import CheckpointError
from asap.model.config import ModelConfig
from asap.preprocessing.text import as_tokenizer, load_tokenizer
from asap.weights.checkpoint_file import read_safetensors, read_state
from asap.weights.matching import PATCH_EMBEDDING, WORDS, InitializationReport, check_post_norm, select_fitting

_TIMM_HEADS = re.compile(r"(head|head_dist|fc_norm|pre_logits)\.")
_BERT_HEADS = re.compile(r"(pooler|cls)\.|embeddings\.position_ids$")
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


def timm_encoder(source: str, config: ModelConfig) -> tuple[dict[str, Tensor], InitializationReport]:
    """Return the image encoder's weights from a ViT of timm, without its head, and the report.

    Raises `CheckpointError` with every key that does not fit: a ViT with other parts than ours computes something else.
    """
    state = read_weights(source)
    if state is None:
        import timm

        with _download_errors(source):
            state = timm.create_model(source, pretrained=True).state_dict()
    heads = {key for key in state if _TIMM_HEADS.match(key)}
    found = {f"image_encoder.{key}": value for key, value in state.items() if key not in heads}
    left_out = [PATCH_EMBEDDING] if config.patch_embedding == "conv" else []
    weights, report = select_fitting(found, config, f"timm:{source}", left_out, scope=("image_encoder.",))
    dropped = heads | {name.removeprefix("image_encoder.") for name in report.dropped}
    return weights, dataclasses.replace(report, dropped=sorted(dropped))


def bert_encoders(
    source: str, config: ModelConfig, *, takes_words: bool = True
) -> tuple[dict[str, Tensor], InitializationReport]:
    """Return the weights from a BERT, and the report.

    Its first layers become the text encoder and the next ones the fusion encoder; layers beyond ours are dropped.
    Cross attention stays fresh.

    Args:
        source: the BERT.
        config: the model to train.
        takes_words: False leaves the word embeddings fresh, because the run has another tokenizer.

    Raises:
        CheckpointError: with every key that does not fit.
    """
    check_post_norm(f"bert:{source}", config)
    state, settings = _read_bert(source)
    # No shape shows these two. A model with another number of heads would load, and compute something else.
    for name, theirs, ours in (
        ("model_type", settings.get("model_type"), "bert"),
        ("num_attention_heads", settings.get("num_attention_heads"), config.heads),
    ):
        if theirs != ours:
            raise CheckpointError(f"bert:{source} has {name} {theirs!r} and not {ours!r}; nothing was loaded")

    names = {key: _our_bert_name(key, config) for key in state}
    found = {name: state[key] for key, name in names.items() if name}
    left_out = [] if takes_words else [WORDS]
    if not any(".crossattention." in name for name in found):
        left_out.append(r"fusion_encoder\.layers\.\d+\.crossattention\.")
    scope = ("text_encoder.", "fusion_encoder.")
    weights, report = select_fitting(found, config, f"bert:{source}", left_out, scope=scope)
    return weights, dataclasses.replace(report, dropped=sorted(key for key in state if names[key] not in weights))


def bert_tokenizer(source: str) -> Any:
    """Return the tokenizer of a BERT, or None if its folder has none."""
    folder = Path(source)
    if folder.exists():
        return load_tokenizer(folder) if any((folder / name).is_file() for name in _TOKENIZER_FILES) else None
    return _downloaded_tokenizer(source)


def tokenizer_at(source: str) -> Any:
    """Return the tokenizer of a folder, or the one that transformers downloads by this name.

    Raises `CheckpointError` if there is none.
    """
    if Path(source).exists():
        return load_tokenizer(Path(source))
    try:
        return as_tokenizer(_downloaded_tokenizer(source))
    except CheckpointError as error:
        raise CheckpointError(f"{error}. Name a folder that holds the tokenizer, with tokenizer.json.") from error


def _downloaded_tokenizer(name: str) -> Any:
    """Return the tokenizer that transformers downloads by its name. Raises `CheckpointError` if it cannot."""
    from transformers import AutoTokenizer  # takes seconds to import

    if Path(name).is_absolute() or name.startswith("."):  # clearly a path, so it is not looked up on a hub
        raise CheckpointError(f"tokenizer folder {name!r} does not exist")
    with _download_errors(name):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def read_weights(source: str) -> dict[str, Tensor] | None:
    """Read the tensors of a file, or of a folder's weights file; return None for a name that is not a local path.

    Raises `CheckpointError` for a path to nothing, a folder without weights, or a damaged file.
    """
    path = Path(source)
    if not path.exists():
        if path.is_absolute() or source.startswith("."):  # clearly a path, so it is not looked up on a hub
            raise CheckpointError(f"{source} does not exist; nothing was loaded")
        return None
    if path.is_dir():
        files = [path / name for name in _WEIGHT_FILES if (path / name).is_file()]
        if not files:
            raise CheckpointError(f"folder {path} has none of {', '.join(_WEIGHT_FILES)}; nothing was loaded")
        path = files[0]
    return read_safetensors(path) if path.suffix == ".safetensors" else read_state(path)


def _read_bert(source: str) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Return the weights of a BERT, and its settings as `config.json` has them."""
    if (state := read_weights(source)) is not None:
        file = Path(source) / "config.json"
        try:
            return state, dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{file} does not describe a BERT: {error}") from error
    from transformers import AutoModel  # takes seconds to import

    with _download_errors(source):
        model = AutoModel.from_pretrained(source, trust_remote_code=False, use_safetensors=True)
    return dict(model.state_dict()), model.config.to_dict()


def _our_bert_name(key: str, config: ModelConfig) -> str | None:
    """Return our name of a BERT's parameter; None for heads and for layers beyond ours, which our encoders lack."""
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
def _download_errors(name: str) -> Iterator[None]:
    """Turn any error of a download into a `CheckpointError` of one line."""
    try:
        yield
    except Exception as error:  # the errors of hubs are not documented, and a network can fail in many ways
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise CheckpointError(
            f"{name} is not a folder on this machine and could not be downloaded, {type(error).__name__}: {reason}"
        ) from error
