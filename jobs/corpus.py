"""Reads the corpus of a job as its settings say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

from asap.corpus import reader
from asap.corpus.reader import Corpus
from asap.errors import PicturesMissing
from jobs.settings import CorpusSettings


def read_corpus(settings: CorpusSettings, corpus: str, split: str, label_set: str) -> Corpus:
    """Read a split of a corpus. The errors are those of `asap.corpus.reader.read_corpus`.

    If too many pictures are missing, a file on this machine lists all their names, and the error names that file.

    Args:
        settings: the files, and the rules for faults.
        corpus: the address of the corpus: a path, file:// or s3://.
        split: train, val or test.
        label_set: the label set of the model.
    """
    try:
        return reader.read_corpus(
            corpus,
            split,
            settings.rules(label_set),
            files=[file for name, files in settings.files.items() if name == split for file in files],
            captions=settings.captions,
            explanations=settings.explanations,
            pictures=settings.pictures,
        )
    except PicturesMissing as error:
        if file := _write_list(error.pictures, split):
            raise PicturesMissing(f"{error} {file} lists all {len(error.pictures)}.", error.pictures) from error
        raise


def _write_list(names: Sequence[str], split: str) -> Path | None:
    """Write the names, one a line, to a new file in the folder for temporary files; return None if that fails."""
    try:
        with NamedTemporaryFile(
            "w", prefix=f"asap-missing-{split}-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.writelines(f"{name}\n" for name in names)
    except OSError:  # the refusal matters more than its list
        return None
    return Path(file.name)
