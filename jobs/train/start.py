"""What a run starts from, made ready once for all workers: the tokenizer that comes along, and the weights.

The run folder keeps both, so that a run goes on where its sources are no longer there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asap.errors import ConfigError, StorageError
from asap.model.config import ModelConfig
from asap.preprocessing.text import load_tokenizer
from asap.storage.files import download_file, download_folder, exists, target_of_key
from asap.storage.location import Location
from asap.weights.start import has_words, read_starts, source_tokenizer, split_source
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings

TRAINED = "train"
"""The setting of a tokenizer that is made of the corpus."""


def prepare_start(
    folder: RunFolder,
    settings: TrainSettings,
    config_of: Callable[[TrainSettings, int], ModelConfig],
    progress: Callable[[dict[str, Any]], None],
) -> None:
    """Write tokenizer and weights that `settings.init` and `settings.tokenizer` give into the run folder, if they do.

    config_of: settings and vocabulary size to the configuration of the model. `progress` gets
    `{"start": source, "report": text}` for each source. Raises `CheckpointError` or `ConfigError`.
    """
    if folder.start.exists() or not (settings.init or settings.tokenizer):
        return
    with tempfile.TemporaryDirectory() as scratch:
        places = {_fetched(source, Path(scratch) / str(number)): source for number, source in enumerate(settings.init)}
        words_of = _prepare_tokenizer(folder, settings, places)
        if not places:
            return
        vocab_size = len(load_tokenizer(folder.tokenizer)) if folder.tokenizer.exists() else settings.vocab_size
        config = config_of(settings, vocab_size)
        start = read_starts(places, config, queue_size=settings.queue_size, words_of=words_of)
        reports = {places[place]: str(report) for place, report in start.reports.items()}
        folder.start.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{source}\n{report}\n\n" for source, report in reports.items())
        (folder.start.parent / "report.txt").write_text(text, encoding="utf-8")
        draft = folder.start.with_suffix(".draft")
        start.save(draft)
        draft.rename(folder.start)
    for source, report in reports.items():
        progress({"start": source, "report": report})


def _prepare_tokenizer(folder: RunFolder, settings: TrainSettings, places: dict[str, str]) -> list[str]:
    """Put the tokenizer into the run folder unless one is to be made; the places whose words it numbers."""
    own = {place: source_tokenizer(place) for place in places}
    bringing = [place for place in own if own[place] is not None]
    if settings.tokenizer == TRAINED or (settings.tokenizer is None and not bringing):
        if silent := [places[place] for place in places if has_words(place) and own[place] is None]:
            raise ConfigError(
                f"init {silent[0]} has word embeddings and does not say which words they are; set tokenizer to the "
                "folder of the tokenizer that it was trained with"
            )
        return []
    if settings.tokenizer is not None:
        with tempfile.TemporaryDirectory() as scratch:
            chosen = load_tokenizer(Path(_fetched(settings.tokenizer, Path(scratch) / "tokenizer")))
    else:
        chosen = own[bringing[-1]]
    if not folder.tokenizer.exists():
        draft = folder.path / "tokenizer.draft"
        chosen.save_pretrained(draft)
        draft.rename(folder.tokenizer)
    # What is silent about its words is taken to speak those of the tokenizer that it was given.
    return [place for place in places if own[place] is None or own[place].get_vocab() == chosen.get_vocab()]


def _fetched(source: str, scratch: Path) -> str:
    """A source on this machine: what lies at s3:// is copied under `scratch`."""
    kind, place = split_source(source)
    if not place.startswith("s3://"):
        return source
    origin = Location.parse(place)
    target = target_of_key(scratch, origin.parent, origin.name)
    if exists(origin):
        download_file(origin, target)
    elif not download_folder(origin, target):
        raise StorageError(f"init {source} is not there")
    return f"{kind}{target}"
