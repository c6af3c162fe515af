"""Corpora wherever they lie: what `asap.corpus.reader` reads, from a folder of this machine or an s3:// prefix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

from asap.corpus.annotations import DEFAULT_RULES, ReadRules
from asap.corpus.folder import open_folder
from asap.corpus.reader import Corpus
from asap.corpus.reader import read_corpus as read_folder
from asap.errors import PicturesMissing
from jobs.settings import CorpusSettings


def read_corpus(
    corpus: str,
    split: str,
    rules: ReadRules = DEFAULT_RULES,
    *,
    files: Sequence[str] = (),
    captions: Sequence[str] = (),
    explanations: Sequence[str] = (),
    pictures: str | None = None,
) -> Corpus:
    """A split of the corpus called `corpus`; the other arguments and errors are `asap.corpus.reader.read_corpus`'s.

    Files may be called by paths and s3:// addresses of their own too.
    """
    return read_folder(
        open_folder(corpus),
        split,
        rules,
        files=files,
        captions=captions,
        explanations=explanations,
        pictures=None if pictures is None else open_folder(pictures),
    )


def read_as_told(settings: CorpusSettings, corpus: str, split: str, label_set: str) -> Corpus:
    """A split of the corpus called `corpus`, as a job's settings say. The errors are `read_corpus`'s.

    Where too many pictures are missing, all their names are left in a file of this machine, which the error names.
    """
    try:
        return read_corpus(
            corpus,
            split,
            settings.rules(label_set),
            files=[file for name, files in settings.files.items() if name == split for file in files],
            captions=settings.captions,
            explanations=settings.explanations,
            pictures=settings.pictures,
        )
    except PicturesMissing as error:
        if file := _listed(error.pictures, split):
            raise PicturesMissing(f"{error}; {file} lists all {len(error.pictures)}", error.pictures) from error
        raise


def _listed(names: Sequence[str], split: str) -> Path | None:
    """A new file with a name a line, in the folder for temporary files; None where none can be written."""
    try:
        with NamedTemporaryFile(
            "w", prefix=f"asap-missing-{split}-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.writelines(f"{name}\n" for name in names)
    except OSError:  # the refusal matters more than its list
        return None
    return Path(file.name)
