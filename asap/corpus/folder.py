"""Folders that hold a corpus, on this machine or in a bucket, and their JSON files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from asap.errors import CorpusError
from asap.storage.files import list_files, read_bytes
from asap.storage.location import Location

ImageAddress = Path | str
"""What a picture is opened by: a path, or the address of an object."""


class Folder(Protocol):
    """A folder with a corpus in it, wherever it is; names are relative to it and have slashes. `str` is its address."""

    @property
    def name(self) -> str:
        """The last part of its address."""
        ...

    @property
    def above(self) -> Folder:
        """The folder that this one lies in."""
        ...

    def names(self, below: str = "") -> Iterator[str]:
        """Every file in it, or in one of its folders; none where there is no such folder."""
        ...

    def read(self, name: str) -> bytes:
        """A whole file. `name` may also be an address of its own. Raises an `AsapError` that names the file."""
        ...

    def place(self, name: str) -> ImageAddress:
        """What a picture is opened by."""
        ...


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine. Links are followed."""

    path: Path

    @property
    def name(self) -> str:
        """See `Folder`."""
        return self.path.resolve().name

    @property
    def above(self) -> LocalFolder:
        """See `Folder`."""
        return LocalFolder(self.path.parent)

    def names(self, below: str = "") -> Iterator[str]:
        """See `Folder`."""
        seen: set[tuple[int, int]] = set()
        for parent, folders, files in os.walk(self.path / below, followlinks=True):
            status = Path(parent).stat()
            if (status.st_dev, status.st_ino) in seen:  # a link back to a folder above
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders.sort()
            relative = Path(parent).relative_to(self.path)
            yield from ((relative / file).as_posix() for file in sorted(files))

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        path = self.path / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise CorpusError(f"{path} does not exist") from None
        except OSError as error:
            raise CorpusError(f"{path} cannot be read: {error}") from error

    def place(self, name: str) -> Path:
        """See `Folder`."""
        return self.path / name

    def __str__(self) -> str:
        return str(self.path)


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


def full_address(folder: str) -> str:
    """What a person calls a folder by, from anywhere: its path with links followed, or its s3:// address."""
    location = Location.parse(folder)
    return location.uri if location.is_s3 else str(Path(location.uri).resolve())


def parse_json(name: str, data: bytes, *, trailing_comma: bool = False) -> Any:
    """The content of a file; a list of its lines where `name` ends in .jsonl or .ndjson.

    `trailing_comma` allows a comma between the last object of a list and the bracket that closes it, and nothing else
    that is not JSON. Raises `CorpusError`, naming the file.
    """
    try:
        text = data.decode("utf-8-sig")
        if name.endswith((".jsonl", ".ndjson")):
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(_without_trailing_comma(text) if trailing_comma else text)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{name} cannot be read as JSON: {error}") from error


def _without_trailing_comma(text: str) -> str:
    """No string of a JSON text can hold the comma that is found here: a bracket that is outside all of them ends it."""
    match = re.search(r"\}\s*(,)\s*\]\s*\Z", text)
    return text[: match.start(1)] + text[match.end(1) :] if match else text
