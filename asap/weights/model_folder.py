"""Model folders, and the way into them from published checkpoints.

A folder holds `config.json` (name, schema version, `ModelConfig`), `model.safetensors`, `tokenizer/`, `policy.json`
and `README.md` (the card). It is written whole or not at all, read strictly, and never unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from asap.errors import CheckpointError, ConfigError
from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.policy import Policy
from asap.preprocessing.text import load_tokenizer
from asap.weights.matching import check_vocabulary, expected_shapes, misfits
from asap.weights.published import build

SCHEMA_VERSION = 1
"""Of `config.json`. A reader refuses a newer one."""

_DEMO = Path(__file__).parent.parent / "demo"
_CONFIG, _WEIGHTS, _TOKENIZER, _POLICY, _CARD = (
    "config.json",
    "model.safetensors",
    "tokenizer",
    "policy.json",
    "README.md",
)
_ORIGIN = ("is_local", "local_files_only", "name_or_path")
"""What a tokenizer's settings say of where it was read from: not part of the model, so not of its id."""


@dataclass(frozen=True)
class ModelFolder:
    """Everything that a prediction needs."""

    model: Asap
    """In eval mode, float32, on the CPU."""
    tokenizer: Any
    policy: Policy
    model_id: str

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.model.config


def resolve_folder(folder: str | Path) -> Path:
    """The folder of a model: `"demo"` is the one that ships with the library (`"./demo"` is your own)."""
    path = _DEMO if folder == "demo" else Path(folder)
    if path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(
            f"model {str(folder)!r} is a file; a model is a folder (import_published reads .pth files)"
        )
    raise CheckpointError(
        f"model folder {str(folder)!r} does not exist; a model is a folder on this machine, or 'demo': "
        "names of a hub are not downloaded"
    )


def save(
    model: Asap,
    folder: str | Path,
    *,
    tokenizer: Any,
    policy: Policy | None = None,
    name: str | None = None,
    card: str | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a model folder and return its path; a model that is there already is replaced, anything else is not.

    policy: by default the uncalibrated thresholds of a half. name: by default the folder's; it begins the model id.
    card: the text of README.md. dtype: of the stored weights, such as `torch.float16`; None leaves them as they are.
    Raises `CheckpointError` if the tokenizer does not fit, a weight is not finite (in `dtype`), or the folder holds
    something else.
    """
    folder = Path(folder)
    name = _checked_name(folder.resolve().name if name is None else name)
    check_vocabulary(tokenizer, model.config)
    weights = _stored(model, dtype)
    with _published_whole(folder) as draft:
        settings = {"schema_version": SCHEMA_VERSION, "name": name, "model": dataclasses.asdict(model.config)}
        (draft / _CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_file(weights, draft / _WEIGHTS)
        _save_tokenizer(tokenizer, draft / _TOKENIZER)
        (policy or Policy()).save(draft / _POLICY)
        (draft / _CARD).write_text(card or f"# {name}\n\nNo metrics were recorded for this model.\n", encoding="utf-8")
    return folder


def load(folder: str | Path) -> Asap:
    """The model of a folder (or of `"demo"`), in eval mode, float32, on the CPU.

    Raises `CheckpointError`, naming the folder and what is missing or does not fit in it.
    """
    path = resolve_folder(folder)
    config = model_config(path)
    weights = _read_weights(_piece(path, _WEIGHTS))
    found = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    if lines := misfits(expected_shapes(config), found):
        raise CheckpointError(f"{path / _WEIGHTS} does not fit {_CONFIG}; nothing was loaded\n{lines}")
    return build(config, weights).eval()


def load_folder(folder: str | Path) -> ModelFolder:
    """Model, tokenizer, policy and id of a folder (or of `"demo"`). Raises `CheckpointError` as `load` does."""
    path = resolve_folder(folder)
    tokenizer = load_tokenizer(_piece(path, _TOKENIZER))
    check_vocabulary(tokenizer, model_config(path))
    policy = Policy.load(_piece(path, _POLICY))
    return ModelFolder(load(path), tokenizer, policy, model_id(path))


def model_config(folder: str | Path) -> ModelConfig:
    """The configuration of a folder's model, without reading its weights."""
    path = resolve_folder(folder)
    try:
        return ModelConfig.from_dict(_settings(path)["model"])
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path / _CONFIG} describes no model: {error}") from error


def model_id(folder: str | Path) -> str:
    """NAME@ and the first 12 hex digits of a SHA-256 over configuration, weights and tokenizer."""
    path = resolve_folder(folder)
    pieces = [_piece(path, _CONFIG), _piece(path, _WEIGHTS), *_piece(path, _TOKENIZER).rglob("*")]
    total = hashlib.sha256()
    for name, piece in sorted((piece.relative_to(path).as_posix(), piece) for piece in pieces if piece.is_file()):
        with piece.open("rb") as file:
            total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"{_settings(path)['name']}@{total.hexdigest()[:12]}"


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"model name {name!r} is not made of letters, digits, '.', '_' and '-'; pass name=")
    return name


def _stored(model: Asap, dtype: torch.dtype | None) -> dict[str, Tensor]:
    weights = {
        key: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for key, tensor in model.state_dict().items()
    }
    if bad := sorted(key for key, tensor in weights.items() if not tensor.isfinite().all()):
        stored = f" as {dtype}" if dtype else ""
        raise CheckpointError(f"{len(bad)} weights are not finite{stored}, first {bad[0]}; nothing was saved")
    return weights


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = {key: value for key, value in json.loads(path.read_text("utf-8")).items() if key not in _ORIGIN}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _published_whole(folder: Path) -> Iterator[Path]:
    """A draft beside `folder` that takes its place once it is complete, and leaves no trace if it never is."""
    if folder.exists() and not _may_be_replaced(folder):
        raise CheckpointError(f"{folder} is there and is no model folder; choose another, nothing was saved")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft, former = (folder.with_name(f".{folder.name}.{kind}-{uuid.uuid4().hex[:8]}") for kind in ("new", "old"))
    draft.mkdir()
    try:
        yield draft
        if folder.exists():
            folder.rename(former)
        draft.rename(folder)
    except BaseException:
        if former.exists() and not folder.exists():
            former.rename(folder)
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


def _may_be_replaced(folder: Path) -> bool:
    return folder.is_dir() and ((folder / _CONFIG).is_file() or not any(folder.iterdir()))


def _piece(path: Path, name: str) -> Path:
    piece = path / name
    if not piece.exists():
        raise CheckpointError(f"model folder {path} has no {name}")
    return piece


def _settings(path: Path) -> dict[str, Any]:
    """The contents of `config.json`, checked for its form."""
    file = _piece(path, _CONFIG)
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        version, _, _ = settings["schema_version"], settings["name"], settings["model"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file} is no model configuration: {type(error).__name__}: {error}") from error
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{file} has schema_version {version!r}; this library reads {SCHEMA_VERSION}")
    return dict(settings)


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(file))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors: {error}") from error
