"""Checks of the command of a run, made before torch and Ray are imported, which takes seconds.

`jobs.train.run` checks everything again, and more: the other settings of a run in the folder, each row of the corpus.
"""

from __future__ import annotations

from pathlib import Path

from asap.corpus.reader import SPLITS, check_split
from asap.errors import AsapError, CheckpointError, ConfigError
from asap.model.config import ModelConfig
from asap.storage.files import check_folder_writable, exists, is_empty
from asap.storage.location import Location
from asap.weights.model_folder import check_folder
from jobs.states import job_states
from jobs.train.settings import TrainSettings


def check_command(settings: TrainSettings) -> None:
    """Raise the error of a command that cannot work: settings, OUT, corpus, sources of weights.

    An error is logged and notified as one of the run, unless it is about the settings or OUT.
    """
    ModelConfig.preset(settings.size, **settings.objective.model)
    out = Location.parse(settings.out)
    check_folder_writable(out)
    if exists(out / "model" / "config.json"):
        return
    is_begun = exists(out / "train.json")
    if not is_begun and not is_empty(out):
        raise ConfigError(f"{out} holds something that is not a training run. Choose another folder.")
    try:
        _check_corpora(settings)
        if not is_begun:  # a run keeps its first weights
            for source in settings.init:
                _check_source(source)
            if settings.tokenizer not in (None, "train") and not settings.tokenizer.startswith("s3://"):
                _check_tokenizer(settings.tokenizer)
            _check_words(settings)
    except AsapError:
        with job_states(settings, "train", out.name, out) as states:
            states.change({"state": "validating"})
            raise


def _check_corpora(settings: TrainSettings) -> None:
    for split in SPLITS:
        if split == "test" and settings.test_corpus:
            check_split(settings.test_corpus, split)
        else:
            check_split(
                settings.corpus,
                split,
                [file for name, files in settings.files.items() if name == split for file in files],
            )


def _check_source(source: str) -> None:
    """Raise `CheckpointError` for a file or folder of weights that does not exist, or is no model folder."""
    address = source.removeprefix("timm:").removeprefix("bert:")
    if address.startswith("s3://"):
        location = Location.parse(address)
        if not exists(location) and is_empty(location):
            raise CheckpointError(f"init {source!r} does not exist. Check its bucket and its name.")
    elif source == "demo" or (address == source and Path(source).is_dir()):
        check_folder(source)
    elif address == source and not Path(source).is_file():  # with a prefix, it may be the name of a hub
        raise CheckpointError(
            f"init {source!r} does not exist. Name a .pth file, a model folder, timm:NAME_OR_FOLDER or "
            "bert:NAME_OR_FOLDER."
        )


def _check_words(settings: TrainSettings) -> None:
    """Raise `ConfigError` if a file of weights has words and nothing says which. A file of a bucket is read later."""
    files = [source for source in settings.init if Path(source).is_file()]
    others = [source for source in settings.init if source not in files and not source.startswith("timm:")]
    if files and (settings.tokenizer == "train" or (settings.tokenizer is None and not others)):
        raise no_tokenizer(files[0])


def no_tokenizer(source: str) -> ConfigError:
    """Return the error of a source whose words have no tokenizer."""
    return ConfigError(
        f"init {source} has word embeddings but no tokenizer that says which words they are. Name the tokenizer that "
        "it was trained with, a folder or a name to download: --set tokenizer=bert-base-uncased for ALBEF, HAMMER and "
        "ASAP as published."
    )


def _check_tokenizer(tokenizer: str) -> None:
    """Raise `CheckpointError` for a folder that does not exist; a short relative name may be one to download."""
    is_name = not tokenizer.startswith((".", "/", "~")) and tokenizer.count("/") <= 1
    if not is_name and not Path(tokenizer).is_dir():
        raise CheckpointError(
            f"tokenizer folder {tokenizer!r} does not exist. Name a folder, a tokenizer to download, or 'train' to "
            "train one."
        )
