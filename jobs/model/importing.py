"""A checkpoint becomes a model folder: a published one of ASAP or HAMMER, or one of a run of ours.

Everything that can be refused without the weights comes before them: the output, the kind of the file, the tokenizer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from asap.errors import ConfigError, StorageError, printable
from asap.limits import NO_FAMILIARITY, limits_sentences
from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.preprocessing.text import load_tokenizer
from asap.weights.checkpoint_file import check_checkpoint, read_checkpoint, read_state, title_of
from asap.weights.model_folder import model_name, save
from asap.weights.pretrained import tokenizer_at
from asap.weights.published import model_of_state
from jobs.model.own_run import build_own, is_own, run_of
from jobs.train.run_folder.folder import RunFolder
from jobs.train.trainer import STATE_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SIZES = {
    "image_res": "image_size",
    "vision_width": "width",
    "embed_dim": "embed_dim",
    "vocab_size": "vocab_size",
}
"""Settings of the published code, and the field of `ModelConfig` that the shapes give for each."""
_TITLES = {"asap": "ASAP", "hammer": "HAMMER"}
_LICENSES = {
    "asap": "The published repository of ASAP names no license. Ask its authors before you use its weights.",
    "hammer": "The license of HAMMER's weights allows non-commercial use only.",
}
_CARD = """# {name}

{what}. It was made by `asap import` of `{file}` (SHA-256 `{sha256}`).

## Metrics

None were measured. `asap evaluate` measures the model on labeled pairs.

## Limits

{limits} {familiarity}

All thresholds are 0.5. They are not calibrated to a precision or a prevalence. `asap calibrate` chooses them.
{license}"""


@dataclass(frozen=True)
class Imported:
    """A model folder that was made of a checkpoint."""

    folder: Path
    what: str
    """The model and the origin of its weights, in words."""
    notes: list[str]
    """Sentences on what the file says of itself that its tensors do not confirm."""


def import_checkpoint(
    checkpoint: str,
    out: str,
    tokenizer: str | None = None,
    name: str | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Imported:
    """Make a model folder of a checkpoint. It appears whole, or not at all.

    Args:
        checkpoint: A `.pth` file of ASAP or HAMMER as published, or `state.pt` of a checkpoint of `asap train`.
        out: The model folder to make. Its parent must exist.
        tokenizer: A folder, or the name of a tokenizer to download. None: that of the run that wrote the checkpoint.
        name: The name that the model id begins with; by default the folder's.
        progress: A function that gets the name of each stage.

    Raises:
        CheckpointError: The checkpoint or the tokenizer cannot be used.
        ConfigError: An argument cannot work.
        StorageError: The model folder cannot be written.
    """
    file, folder = _local(checkpoint, "checkpoint"), _local(out, "--out")
    name = model_name(folder, name)
    _check_out(folder)
    file = _file_in(file)
    check_checkpoint(file)
    run = run_of(file)
    progress(f"reading the tokenizer {tokenizer or ''}".rstrip())
    words = _tokenizer(tokenizer, run)
    progress(f"reading {printable(file.name)}")
    content = read_checkpoint(file)
    if is_own(content):
        model, origin = build_own(content, file, len(words))
        notes: list[str] = []
        origin, license = f"from {origin}", ""
    else:
        model, notes = _published(content, file, words)
        origin, license = f"as published{_epoch(content)}", f"\n{_LICENSES[model.config.variant]}\n"
    what = f"{_TITLES[model.config.variant]}, {origin}"
    card = _CARD.format(
        name=name, what=what, file=printable(file.name), sha256=_sha256(file),
        limits=limits_sentences(None, name), familiarity=NO_FAMILIARITY, license=license,
    )  # fmt: skip
    try:
        save(model, folder, tokenizer=words, name=name, card=card)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"--out {out} cannot be written: {error}. Nothing was left there.") from error
    return Imported(folder, what, notes)


def _local(path: str, argument: str) -> Path:
    """Return a path on this machine. Raises `ConfigError` for an address of a store or a site."""
    scheme, separator, _ = path.partition("://")
    if separator:
        raise ConfigError(f"{argument} {path} is at {scheme}://, not on this machine. Download it, and name the copy.")
    if not path.strip():
        raise ConfigError(f"{argument} is empty. Name a path.")
    return Path(path)


def _file_in(path: Path) -> Path:
    """Return the file of a checkpoint folder of Ray Train; another path as it is.

    Raises `ConfigError` for a folder that holds no checkpoint of its own.
    """
    if (path / STATE_FILE).is_file():
        return path / STATE_FILE
    if (path / "config.json").is_file() and (path / "policy.json").is_file():
        raise ConfigError(f"checkpoint {path} is a model folder already. Use it wherever a model is asked for.")
    # The folder of the run, or its ray_train.
    if states := sorted([*path.glob(f"ray_train/*/{STATE_FILE}"), *path.glob(f"*/{STATE_FILE}")]):
        raise ConfigError(f"checkpoint {path} is the folder of a run. Name one of its checkpoints: {states[-1].parent}")
    if (path / "config.json").is_file():
        raise ConfigError(
            f"checkpoint {path} is the folder of another library, such as transformers. Name a .pth file of ASAP or "
            "HAMMER."
        )
    return path


def _check_out(folder: Path) -> None:
    """Raise `ConfigError` unless a model folder can appear at a path without replacing anything."""
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise ConfigError(f"--out {folder} is in a folder that does not exist. Create {parent}, or choose another.")
    if folder.is_file():
        raise ConfigError(f"--out {folder} is a file. Choose another path.")
    if folder.is_dir() and any(folder.iterdir()):
        what = "a model folder already" if (folder / "config.json").is_file() else "not empty"
        raise ConfigError(f"--out {folder} is {what}. Choose another path, or delete it first.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {folder} is in a folder that you cannot write to. Choose another.")


def _tokenizer(tokenizer: str | None, run: RunFolder | None) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a folder or a name, or that of the run."""
    if tokenizer is None and run is not None and run.tokenizer.is_dir():
        return load_tokenizer(run.tokenizer)
    if tokenizer is None:
        raise ConfigError(
            "--tokenizer is missing: a published checkpoint has none. Name the folder of the tokenizer that it was "
            "trained with, or bert-base-uncased, which is downloaded: HAMMER and ASAP were published with it."
        )
    return tokenizer_at(str(_local(tokenizer, "--tokenizer")))


def _published(content: Any, file: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[Asap, list[str]]:
    """Return the model of a published checkpoint, and notes on what its configuration says otherwise."""
    model = model_of_state(read_state(content, title_of(file)), title_of(file), tokenizer)
    model.config, notes = _compared(content.get("config") if isinstance(content, Mapping) else None, model.config)
    return model, notes


def _compared(theirs: Any, config: ModelConfig) -> tuple[ModelConfig, list[str]]:
    """Return the configuration with what only the file's own can tell, and a sentence on each contradiction.

    The shapes of the tensors are facts. What the file says beside them may be from another run.
    """
    if not isinstance(theirs, Mapping):
        return config, []
    notes = []
    for key, field in _SIZES.items():
        ours = getattr(config, field)
        if key in theirs and theirs[key] != ours:
            notes.append(
                f"the file's config says {key} {printable(repr(theirs[key]), 40)} and its tensors {ours}; "
                "the tensors were followed"
            )
    words = theirs.get("max_words", config.max_words)
    if isinstance(words, bool) or not isinstance(words, int) or not 1 <= words <= config.max_positions:
        notes.append(
            f"the file's config says max_words {printable(repr(words), 40)}, which is no number of words; "
            f"{config.max_words} is used"
        )
        words = config.max_words
    return dataclasses.replace(config, max_words=words), notes


def _epoch(content: Any) -> str:
    """Return the epoch that a published file says it is of, as words for the card."""
    epoch = content.get("epoch") if isinstance(content, Mapping) else None
    return f", epoch {epoch}" if isinstance(epoch, int) else ""


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
