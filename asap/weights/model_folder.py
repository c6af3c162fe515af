"""Model folders: saved, loaded and named by their content.

A folder holds `config.json` (name, schema version, `ModelConfig`), `model.safetensors`, `tokenizer/`, `policy.json`
and `README.md` (the card). `limits.json` says what the model was made from, and `familiarity.safetensors` what its
pairs look like to it; a folder may lack both. The folder is written whole or not at all. It is read strictly, and
nothing in it is unpickled.

Torch and the model are imported by the functions that need them: a plan of a job reads a folder without them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asap.errors import CheckpointError, ConfigError, StorageError, printable
from asap.familiarity_file import id_of_content, parse_familiarity
from asap.limits import Limits
from asap.model.config import ModelConfig
from asap.policy import Policy
from asap.storage.fingerprint import files_fingerprint
from asap.storage.folder_cache import cached_folder, wanted_files
from asap.storage.location import FileInfo, Location, s3_uri

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from asap.familiarity import Familiarity
    from asap.model.asap import Asap

SCHEMA_VERSION = 1
"""The version of `config.json`. A folder of another version is refused."""

_DEMO = Path(__file__).parent.parent / "demo"
_CONFIG, _WEIGHTS, _TOKENIZER, _POLICY, _CARD = (
    "config.json",
    "model.safetensors",
    "tokenizer",
    "policy.json",
    "README.md",
)
_LIMITS = "limits.json"
FAMILIARITY = "familiarity.safetensors"
"""The file of a model's familiarity."""
_FILES = {_CONFIG, _WEIGHTS, _POLICY, _CARD, _LIMITS, FAMILIARITY}
_ORIGIN = ("is_local", "local_files_only", "name_or_path")
"""Settings that say where a tokenizer was read from. They are not saved, so they do not change the model's id."""


@dataclass(frozen=True)
class ModelFolder:
    """The content of a model folder: everything that a prediction needs."""

    model: Asap
    """The model in eval mode, float32, on the CPU."""
    tokenizer: PreTrainedTokenizerFast
    policy: Policy
    model_id: str
    limits: Limits | None = None
    """Its origin and the uses that are ruled out; None if nobody has recorded them."""
    familiarity: Familiarity | None = None
    """Its own pairs, as its early layers see them; None if that was never fitted."""

    @property
    def config(self) -> ModelConfig:
        """The configuration of the model."""
        return self.model.config


def resolve_folder(folder: str | Path) -> Path:
    """Return the path of a model folder; `"demo"` is the one in this library (`"./demo"` is your own).

    For a folder at s3://, this is the path of this machine's copy, which is downloaded if there is none of the version
    that is there now. Raises `CheckpointError` if there is no such folder.
    """
    if is_remote(folder):
        return _copy_here(Location.parse(folder))
    path = _DEMO if folder == "demo" else Path(folder)
    if path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(
            f"model {str(folder)!r} is a file and not a model folder. Make a model folder of a .pth file with "
            "`asap import`."
        )
    raise CheckpointError(
        f"model folder {str(folder)!r} does not exist. It was looked for on the machine {socket.gethostname()}. Name a "
        "folder that is there, an s3:// address, or 'demo'; names of a hub are not downloaded."
    )


def is_remote(folder: str | Path) -> bool:
    """Return True for a model folder in a bucket."""
    return isinstance(folder, str) and s3_uri(folder) is not None


def _copy_here(source: Location) -> Path:
    """Return this machine's copy of a model folder in a bucket. Raises `CheckpointError` if it cannot be copied.

    Files that are no parts of a model folder are not copied.
    """
    with _reading(source):
        return cached_folder(source, _list_parts(source))


@contextmanager
def _reading(source: Location) -> Iterator[None]:
    """Raise a `StorageError` of the block as a `CheckpointError` about the model folder."""
    try:
        yield
    except StorageError as error:
        raise CheckpointError(f"model folder {source} cannot be read: {error}") from error


def _list_parts(source: Location) -> list[FileInfo]:
    """Return the files of a model folder in a bucket. Raises `CheckpointError` if it is none, or `StorageError`."""
    files = wanted_files(source, _is_part)
    if all(info.location != source / _CONFIG for info in files):
        raise CheckpointError(
            f"model folder {source} does not exist, or is none: there is no {source / _CONFIG}. Check the bucket and "
            "the name."
        )
    return files


def _is_part(name: str) -> bool:
    """Return True for the name of a file that belongs to a model folder."""
    return name in _FILES or name.startswith(f"{_TOKENIZER}/")


def check_folder(folder: str | Path) -> Path:
    """Return the path of a model folder after checking its files, without torch and without reading the weights.

    The header of the weights is compared with the size of their file. Whether the weights fit the configuration, only
    `load` can say. A folder at s3:// is copied to this machine. Raises `CheckpointError` or `ConfigError`.
    """
    from safetensors import SafetensorError, safe_open

    path = resolve_folder(folder)
    model_config(path)
    weights = _piece(path, _WEIGHTS)
    try:
        with safe_open(weights, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{weights} cannot be read as safetensors: {error}. Copy or download the file again."
        ) from error
    if not any(_piece(path, _TOKENIZER).iterdir()):
        raise CheckpointError(f"{path / _TOKENIZER} is empty. Copy the tokenizer of the model there.")
    Policy.load(_piece(path, _POLICY))
    read_limits(path)
    return path


def save(
    model: Asap,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerFast | str | Path,
    policy: Policy | None = None,
    name: str | None = None,
    card: str | None = None,
    limits: Limits | None = None,
    familiarity: Familiarity | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a model folder and return its path. A model folder that is there already is replaced.

    Args:
        model: the model.
        folder: the path to write to.
        tokenizer: the tokenizer that the model was trained with, or its folder.
        policy: the thresholds; by default the uncalibrated ones of a half.
        name: the name that the model id begins with; by default the folder's.
        card: the text of README.md.
        limits: what the model was made from and must not be used for.
        familiarity: what its pairs look like to these weights in `dtype`.
        dtype: the type of the stored weights, such as `torch.float16`; None leaves them as they are.

    Raises:
        ConfigError: if the name has other characters than letters, digits, '.', '_' and '-', or an argument is of
            another kind.
        CheckpointError: if the tokenizer does not fit, a weight is not finite (in `dtype`), the familiarity was fitted
            to other weights, or the folder holds something else than a model.
    """
    from safetensors.torch import save_file

    from asap.preprocessing.text import as_tokenizer
    from asap.weights.matching import check_vocabulary

    folder = Path(folder)
    name = model_name(folder, name)
    _check_kinds(model, policy, card, limits, familiarity)
    tokenizer = as_tokenizer(tokenizer)
    check_vocabulary(tokenizer, model.config)
    weights = _stored_weights(model, dtype)
    with _replace_folder(folder) as draft:
        settings = {"schema_version": SCHEMA_VERSION, "name": name, "model": dataclasses.asdict(model.config)}
        (draft / _CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_file(weights, draft / _WEIGHTS)
        # The library lets its owner alone read the file. Those who may read the folder may read its weights.
        (draft / _WEIGHTS).chmod((draft / _CONFIG).stat().st_mode)
        if familiarity is not None:
            familiarity.check_weights(weights_sha256(draft), "the familiarity")
            (draft / FAMILIARITY).write_bytes(familiarity.to_bytes())
        if limits is not None:
            (draft / _LIMITS).write_text(limits.to_json(), encoding="utf-8")
        # The id is a hash over the tokenizer's files too. Sorted and without their origin, they are the same each time
        # that a loaded model is saved.
        tokenizer.save_pretrained(draft / _TOKENIZER)
        path = draft / _TOKENIZER / "tokenizer_config.json"
        kept = {key: value for key, value in json.loads(path.read_text("utf-8")).items() if key not in _ORIGIN}
        path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (policy or Policy()).save(draft / _POLICY)
        (draft / _CARD).write_text(card or f"# {name}\n\nNo metrics were recorded for this model.\n", encoding="utf-8")
    return folder


def model_name(folder: Path, name: str | None = None) -> str:
    """Return the name of a model in a folder: the given one, else the folder's. Raises `ConfigError` for a bad one."""
    name = folder.resolve().name if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"model name {name!r} is not made of letters, digits, '.', '_' and '-'. Pass another name=.")
    return name


def _check_kinds(model: object, policy: object, card: object, limits: object, familiarity: object) -> None:
    """Raise `ConfigError` for an argument of `save` that is of another kind, such as the path of a file."""
    from asap.familiarity import Familiarity
    from asap.model.asap import Asap

    if isinstance(model, ModelFolder):
        raise ConfigError("model is a ModelFolder, as load_model returns it. Pass its .model.")
    kinds: dict[str, tuple[object, type]] = {
        "model": (model, Asap), "policy": (policy, Policy), "card": (card, str), "limits": (limits, Limits),
        "familiarity": (familiarity, Familiarity),
    }  # fmt: skip
    for argument, (value, kind) in kinds.items():
        if not isinstance(value, kind) and (value is not None or argument == "model"):
            raise ConfigError(
                f"{argument} {printable(repr(value))} is a {type(value).__name__} and not a {kind.__name__}; "
                "nothing was saved"
            )


def load(folder: str | Path) -> Asap:
    """Load the model of a folder (or of `"demo"`), in eval mode, float32, on the CPU.

    Raises `CheckpointError`, which names the folder and every weight that is missing or does not fit.
    """
    from asap.weights.checkpoint_file import read_safetensors
    from asap.weights.matching import describe_mismatches, expected_shapes
    from asap.weights.published import build

    path = resolve_folder(folder)
    config = model_config(path)
    weights = read_safetensors(_piece(path, _WEIGHTS))
    found = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    if lines := describe_mismatches(expected_shapes(config), found):
        raise CheckpointError(f"{path / _WEIGHTS} does not fit {_CONFIG}; nothing was loaded\n{lines}")
    return build(config, weights).eval()


def load_folder(folder: str | Path, *, with_familiarity: bool = True) -> ModelFolder:
    """Load model, tokenizer, policy and id of a folder (or of `"demo"`). Raises `CheckpointError` as `load` does.

    Without familiarity, its file is not read: it may belong to other weights, and is to be replaced.
    """
    from asap.preprocessing.text import load_tokenizer
    from asap.weights.matching import check_vocabulary

    path = resolve_folder(folder)
    # The small files come first, so that a fault in one of them shows before the weights are read.
    tokenizer = load_tokenizer(_piece(path, _TOKENIZER))
    check_vocabulary(tokenizer, model_config(path))
    policy = Policy.load(_piece(path, _POLICY))
    weights = weights_sha256(path)
    limits, familiarity = read_limits(path), read_familiarity(path, weights) if with_familiarity else None
    return ModelFolder(load(path), tokenizer, policy, model_id(path, weights), limits, familiarity)


def model_config(folder: str | Path) -> ModelConfig:
    """Read the configuration of a folder's model, but not its weights."""
    path = resolve_folder(folder)
    try:
        return ModelConfig.from_dict(_settings(path)["model"])
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path / _CONFIG} does not describe a model: {error}") from error


def model_id(folder: str | Path, weights: str | None = None) -> str:
    """Return NAME@ and the first 12 hex digits of a SHA-256 over configuration, weights and tokenizer.

    `weights` is the `weights_sha256` of the folder, if the caller has it: large weights take seconds to hash.
    """
    path = resolve_folder(folder)
    pieces = [_piece(path, _CONFIG), _piece(path, _WEIGHTS), *_piece(path, _TOKENIZER).rglob("*")]
    total = hashlib.sha256()
    for name, piece in sorted((piece.relative_to(path).as_posix(), piece) for piece in pieces if piece.is_file()):
        digest = weights if weights is not None and name == _WEIGHTS else _sha256(piece)
        total.update(f"{name} {digest}\n".encode())
    return f"{_settings(path)['name']}@{total.hexdigest()[:12]}"


def folder_version(folder: str | Path, loaded: str | None = None) -> str:
    """Return a fingerprint of all that a prediction depends on, the same on each machine that has the folder.

    For a folder at s3://, nothing is downloaded: the fingerprint is one of ETags. Raises `CheckpointError`.

    Args:
        folder: The model folder.
        loaded: The `model_id` of a model that was loaded from it, whose weights are not read again then.
    """
    if is_remote(folder):
        source = Location.parse(folder)
        with _reading(source):
            return files_fingerprint(info for info in _list_parts(source) if info.location != source / _CARD)
    path = resolve_folder(folder)
    small = [path / name for name in (_POLICY, _LIMITS, FAMILIARITY)]
    lines = [loaded or model_id(path), *(f"{file.name} {_sha256(file)}" for file in small if file.exists())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def weights_sha256(folder: str | Path) -> str:
    """Return the SHA-256 of a folder's weights, as hex digits."""
    return _sha256(_piece(resolve_folder(folder), _WEIGHTS))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_limits(folder: str | Path) -> Limits | None:
    """Read the limits of a folder's model; None if there are none. Raises `CheckpointError` for a broken file."""
    path = resolve_folder(folder) / _LIMITS
    return Limits.from_json(path.read_bytes(), path) if path.exists() else None


def read_familiarity(folder: str | Path, weights: str | None = None) -> Familiarity | None:
    """Read the familiarity of a folder's model; None if there is none. `weights` is as in `model_id`.

    Raises `CheckpointError` for a broken file, or one that was fitted to other weights.
    """
    from asap.familiarity import Familiarity

    path = resolve_folder(folder) / FAMILIARITY
    if not path.exists():
        return None
    return Familiarity.from_bytes(path.read_bytes(), weights or weights_sha256(folder), path)


def familiarity_id(folder: str | Path, weights: str | None = None) -> str | None:
    """Return the id of a folder's familiarity after checking the file, as `read_familiarity` does, but without torch.

    Args:
        folder: The model folder.
        weights: The `weights_sha256` of the folder, if the caller has it.
    """
    path = resolve_folder(folder) / FAMILIARITY
    if not path.exists():
        return None
    content = path.read_bytes()
    parse_familiarity(content, weights or weights_sha256(folder), path)
    return id_of_content(content)


def replace_familiarity(folder: str | Path, familiarity: Familiarity) -> None:
    """Write the familiarity of a folder's model, atomically.

    Raises `CheckpointError` if it was fitted to other weights.
    """
    path = resolve_folder(folder)
    familiarity.check_weights(weights_sha256(path), "the familiarity")
    draft = path / f".{FAMILIARITY}.{uuid.uuid4().hex[:8]}"
    try:
        draft.write_bytes(familiarity.to_bytes())
        draft.replace(path / FAMILIARITY)
    finally:
        draft.unlink(missing_ok=True)


def _stored_weights(model: Asap, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return the weights on the CPU in `dtype`. Raises `CheckpointError` if one is not finite there."""
    weights = {
        key: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for key, tensor in model.state_dict().items()
    }
    if bad := sorted(key for key, tensor in weights.items() if not tensor.isfinite().all()):
        stored = f" as {dtype}" if dtype else ""
        raise CheckpointError(f"{len(bad)} weights are not finite{stored}, first {bad[0]}; nothing was saved")
    return weights


def check_replaceable(folder: Path) -> None:
    """Raise `CheckpointError` if something else than a model folder, or an empty one, is at the path."""
    is_replaceable = folder.is_dir() and ((folder / _CONFIG).is_file() or not any(folder.iterdir()))
    if folder.exists() and not is_replaceable:
        raise CheckpointError(f"{folder} exists and is not a model folder. Choose another path; nothing was saved.")


@contextmanager
def _replace_folder(folder: Path) -> Iterator[Path]:
    """Yield a draft beside `folder`, which replaces it when the block ends.

    An error leaves the former folder and no trace of the draft.
    """
    check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft, former = (folder.with_name(f".{folder.name}.{kind}-{uuid.uuid4().hex[:8]}") for kind in ("new", "old"))
    draft.mkdir()
    try:
        yield draft
        # A folder cannot be renamed over another one, so the former one steps aside first, and back on an error.
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


def _piece(path: Path, name: str) -> Path:
    """Return the path of a file or folder in a model folder. Raises `CheckpointError` if it is missing."""
    piece = path / name
    if not piece.exists():
        raise CheckpointError(
            f"model folder {path} has no {name}. Name a folder that `asap train` or asap.save_model has written."
        )
    return piece


def _settings(path: Path) -> dict[str, Any]:
    """Return the content of `config.json` after checking its form and version."""
    file = _piece(path, _CONFIG)
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        version, _, _ = settings["schema_version"], settings["name"], settings["model"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file} is not a model configuration: {type(error).__name__}: {error}") from error
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{file} has schema_version {version!r}; this library reads {SCHEMA_VERSION}")
    return dict(settings)
