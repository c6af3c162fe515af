"""The first weights and the tokenizer of a run, prepared once for all workers.

The run folder keeps both, so that a run can resume when its sources no longer exist.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from asap.errors import StorageError
from asap.model.config import ModelConfig
from asap.preprocessing.text import load_tokenizer
from asap.storage.files import download_file, download_folder, exists, target_of_key, write_atomically
from asap.storage.location import Location
from asap.weights.model_folder import resolve_folder
from asap.weights.pretrained import tokenizer_at
from asap.weights.start import has_words, read_starts, source_tokenizer, split_source
from jobs.train.check import no_tokenizer
from jobs.train.events import OnEvent
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings

TRAINED = "train"
"""The value of the setting `tokenizer` that trains one on the corpus."""


def prepare_start(
    folder: RunFolder,
    settings: TrainSettings,
    config_of: Callable[[TrainSettings, int], ModelConfig],
    progress: OnEvent,
) -> None:
    """Write the tokenizer and the first weights to the run folder, if the settings name any.

    Args:
        folder: The folder of the run.
        settings: The settings of the run.
        config_of: A function from settings and vocabulary size to the configuration of the model.
        progress: A function that gets `{"start": source, "report": text}` for each source.

    Raises `CheckpointError` or `ConfigError`.
    """
    if folder.start.exists() or not (settings.init or settings.tokenizer):
        return
    with tempfile.TemporaryDirectory() as scratch:
        # Each source by its address on this machine. Reports name it as the user typed it.
        sources = {_fetch(source, Path(scratch) / str(number)): source for number, source in enumerate(settings.init)}
        words_of = _prepare_tokenizer(folder, settings, sources)
        if not sources:
            return
        vocab_size = len(load_tokenizer(folder.tokenizer)) if folder.tokenizer.exists() else settings.vocab_size
        config = config_of(settings, vocab_size)
        start = read_starts(sources, config, queue_size=settings.queue_size, words_of=words_of)
        reports = {sources[address]: str(report) for address, report in start.reports.items()}
        # The weights are moved into place last: their presence means that all is there.
        folder.start.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{source}\n{report}\n\n" for source, report in reports.items())
        (folder.start.parent / "report.txt").write_text(text, encoding="utf-8")
        with write_atomically(folder.start) as draft:
            start.save(draft)
    for source, report in reports.items():
        progress({"start": source, "report": report})


def _prepare_tokenizer(folder: RunFolder, settings: TrainSettings, sources: dict[str, str]) -> list[str]:
    """Write the tokenizer of the run, unless one is to be trained, and return the sources with the same vocabulary.

    Args:
        folder: The folder of the run.
        settings: The settings of the run.
        sources: The address of each source on this machine, and the source as the user typed it.
    """
    own = {address: source_tokenizer(address) for address in sources}
    with_tokenizer = [address for address in own if own[address] is not None]
    if settings.tokenizer == TRAINED or (settings.tokenizer is None and not with_tokenizer):
        if without := [sources[address] for address in sources if has_words(address) and own[address] is None]:
            raise no_tokenizer(without[0])
        return []
    if settings.tokenizer is not None:
        with tempfile.TemporaryDirectory() as scratch:
            chosen = tokenizer_at(_fetch(settings.tokenizer, Path(scratch) / "tokenizer"))
    else:
        chosen = own[with_tokenizer[-1]]
    if not folder.tokenizer.exists():
        draft = folder.path / "tokenizer.draft"
        chosen.save_pretrained(draft)
        draft.rename(folder.tokenizer)
    # A source without a tokenizer is taken to have been trained with the chosen one.
    return [address for address in sources if own[address] is None or own[address].get_vocab() == chosen.get_vocab()]


def _fetch(source: str, scratch: Path) -> str:
    """Return the address of a source on this machine, after downloading a source at s3://.

    A model folder becomes this machine's copy of it, anything else is downloaded to `scratch`.
    """
    kind, address = split_source(source)
    if not address.startswith("s3://"):
        return source
    origin = Location.parse(address)
    if not kind and exists(origin / "config.json"):
        return str(resolve_folder(address))
    target = target_of_key(scratch, origin.parent, origin.name)
    if exists(origin):
        download_file(origin, target)
    elif not download_folder(origin, target):
        raise StorageError(f"init {source} does not exist")
    return f"{kind}{target}"
