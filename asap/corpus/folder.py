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
"""The address of a picture: a path, or an s3:// address."""


class Folder(Protocol):
    """A folder that holds a corpus, on this machine or in a bucket. `str` gives its address.

    Names of files are relative to the folder and have slashes.
    """

    @property
    def name(self) -> str:
        """The last part of the folder's address."""
        ...

    @property
    def parent(self) -> Folder:
        """The folder that this one lies in; a bucket is its own parent."""
        ...

    def names(self, below: str = "") -> Iterator[str]:
        """Yield the name of every file in the folder, or below one of its folders; none if that does not exist."""
        ...

    def read(self, name: str) -> bytes:
        """Read a whole file, which may also be named by an address of its own.

        Raises an `AsapError` that names the file.
        """
        ...

    def address(self, name: str) -> ImageAddress:
        """Return the address of a file."""
        ...


@dataclass(frozen=True)
class LocalFolder:
    """A `Folder` of this machine, whose corpus may have files in a bucket. Links are followed."""

    path: Path

    @property
    def name(self) -> str:
        """The name of the folder that a link leads to."""
        return self.path.resolve().name

    @property
    def parent(self) -> LocalFolder:
        """The folder that this one lies in, as its path says."""
        return LocalFolder(self.path.parent)

    def names(self, below: str = "") -> Iterator[str]:
        """Yield the names of the files in order, each folder once, however many links lead to it."""
        seen: set[tuple[int, int]] = set()
        for parent, folders, files in os.walk(self.path / below, followlinks=True):
            status = Path(parent).stat()
            if (status.st_dev, status.st_ino) in seen:  # a link back to a folder above
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders.sort()  # os.walk enters the folders in the order of this list
            relative = Path(parent).relative_to(self.path)
            yield from ((relative / file).as_posix() for file in sorted(files))

    def read(self, name: str) -> bytes:
        """Read a file by its name here, its path, or its s3:// address. Raises `CorpusError` or `StorageError`."""
        if name.startswith("s3://"):
            return read_bytes(Location.parse(name))
        path = self.path / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise CorpusError(f"{path} does not exist") from None
        except OSError as error:
            raise CorpusError(f"{path} cannot be read: {error}") from error

    def address(self, name: str) -> Path:
        """Return the path of a file."""
        return self.path / name

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class BucketFolder:
    """A prefix of a bucket as a `Folder`. Listing it costs a request for every thousand objects."""

    location: Location

    @property
    def name(self) -> str:
        """The last part of the prefix; the bucket's name for a whole bucket."""
        return self.location.name

    @property
    def parent(self) -> BucketFolder:
        """The prefix above this one; a bucket is its own parent."""
        return BucketFolder(self.location.parent)

    def names(self, below: str = "") -> Iterator[str]:
        """Yield the names of the objects as the bucket lists them."""
        for info in list_files(self.location / below if below else self.location):
            yield info.location.uri.removeprefix(f"{self.location}/")

    def read(self, name: str) -> bytes:
        """Read an object, or a file that is named by an address of its own. Raises `StorageError`."""
        return read_bytes(Location.parse(self.address(name)))

    def address(self, name: str) -> str:
        """Return the s3:// address of a file; an address or an absolute path is returned as it is."""
        return name if "://" in name or name.startswith("/") else str(self.location / name)

    def __str__(self) -> str:
        return str(self.location)


def open_folder(address: Folder | Path | str) -> Folder:
    """Open the folder at a path, a file:// or an s3:// address; return a `Folder` as it is.

    Raises `StorageError` for any other address, `CorpusError` for a file.
    """
    if not isinstance(address, Path | str):
        return address
    location = Location.parse(address)
    if not location.is_s3 and Path(location.uri).is_file():
        raise CorpusError(f"corpus {location} is a file. Name the folder that holds metadata and pictures.")
    return BucketFolder(location) if location.is_s3 else LocalFolder(Path(location.uri))


def full_address(folder: str) -> str:
    """Return an address that holds in any working directory: a path without links, or an s3:// address."""
    location = Location.parse(folder)
    return location.uri if location.is_s3 else str(Path(location.uri).resolve())


def parse_json(name: str, data: bytes, *, trailing_comma: bool = False) -> Any:
    """Parse the content of a JSON file, or the lines of one whose name ends in .jsonl or .ndjson as a list.

    Args:
        name: the file's name, which decides how it is read and which messages name.
        data: the file's bytes.
        trailing_comma: allow a comma between the last object of a list and the bracket that closes it, and nothing
            else that is not JSON.

    Raises:
        CorpusError: if the file is not JSON.
    """
    try:
        text = data.decode("utf-8-sig")
        if name.endswith((".jsonl", ".ndjson")):
            # Not `splitlines`, which also splits at characters that a JSON string may hold, such as U+2028.
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        # The comma cannot be within a string, because the bracket that ends the text is outside all strings.
        if trailing_comma and (match := re.search(r"\}\s*(,)\s*\]\s*\Z", text)):
            text = text[: match.start(1)] + text[match.end(1) :]
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{name} cannot be read as JSON: {error}") from error
