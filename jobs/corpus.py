"""Corpora wherever they lie: what `asap.corpus.reader` reads, from a folder of this machine or an s3:// prefix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from asap.corpus.picture_index import Folder, ImagePlace, LocalFolder
from asap.corpus.read_rules import DEFAULT_RULES, ReadRules
from asap.corpus.reader import Corpus
from asap.corpus.reader import read_corpus as read_folder
from asap.errors import ImageMissing, PicturesMissing
from asap.preprocessing.images import DEFAULT_LIMITS
from asap.storage.fetch import fetch
from asap.storage.files import Location, list_files, read_bytes
from jobs.errors import FetchFailed, StorageError
from jobs.settings import CorpusSettings, FetchSettings


@dataclass(frozen=True)
class BucketFolder:
    """A prefix of a bucket as `Folder`. Listing it costs a request for every thousand objects."""

    location: Location

    @property
    def name(self) -> str:
        """See `Folder`."""
        return self.location.name

    @property
    def above(self) -> BucketFolder:
        """See `Folder`; a bucket lies in itself."""
        return BucketFolder(self.location.parent)

    def names(self, below: str = "") -> Iterator[str]:
        """See `Folder`."""
        for info in list_files(self.location / below if below else self.location):
            yield info.location.uri.removeprefix(f"{self.location}/")

    def read(self, name: str) -> bytes:
        """See `Folder`. Raises `StorageError`."""
        return read_bytes(Location.parse(self.place(name)))

    def place(self, name: str) -> str:
        """See `Folder`: an s3:// address, or a path for what is called by one."""
        return name if "://" in name or name.startswith("/") else str(self.location / name)

    def __str__(self) -> str:
        return str(self.location)


@dataclass(frozen=True)
class DiskFolder(LocalFolder):
    """A folder of this machine, whose corpus may have files in a bucket."""

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        return read_bytes(Location.parse(name)) if name.startswith("s3://") else super().read(name)


def open_folder(text: str) -> Folder:
    """The folder called `text`: a path, file:// or s3://. Raises `StorageError` for any other address."""
    location = Location.parse(text)
    return BucketFolder(location) if location.is_s3 else DiskFolder(Path(location.uri))


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


def full_address(folder: str) -> str:
    """What a person calls a folder by, from anywhere: its path with links followed, or its s3:// address."""
    location = Location.parse(folder)
    return location.uri if location.is_s3 else str(Path(location.uri).resolve())


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


def picture_place(text: str) -> ImagePlace:
    """A record's picture from its place in words."""
    return text if "://" in text else Path(text)


def read_picture(place: ImagePlace) -> bytes | Path:
    """What decoding a record's picture begins with: its bytes from a bucket, or its path.

    Raises `ImageMissing` or `ImageTooLarge` for the one object, `StorageError` for a store that does not give it.
    """
    if isinstance(place, Path):
        return place
    try:
        return fetch(place, DEFAULT_LIMITS.max_bytes, FetchSettings()).data
    except FetchFailed as error:
        if error.code == "not_found":
            raise ImageMissing("the object does not exist") from error
        raise StorageError(f"picture {place} cannot be read, after {error.attempt} tries: {error.detail}") from error
