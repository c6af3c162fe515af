"""Files at an address of an input, told apart by their names.

A name says enough to know what is at an address before a byte of it is read.
"""

from __future__ import annotations

import itertools
import posixpath
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from asap.storage.files import list_files, list_folders
from asap.storage.location import FileInfo, Location
from jobs.scan.input.files.globs import Glob
from jobs.scan.input.tables.record_files import record_file

PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic",
     ".heif", ".jp2", ".jxl", ".ico")
)  # fmt: skip
TEXT_SUFFIXES = (".txt", ".text", ".caption", ".json")
"""Suffixes of a text beside its picture. An earlier one goes before a later one."""
MOST_FILES = 20_000
"""Files that a listing holds at most."""
_MOST_SECONDS = 8.0
_MOST_FOLDERS = 50
_MOST_OF_A_FOLDER = 1000
_PACKED_TAR = re.compile(r".+\.(tar\.(gz|bz2|zst|xz|lz4|z)|tgz|tbz2?|txz|tzst)", re.IGNORECASE | re.DOTALL)
_STRAY = re.compile(
    r"_SUCCESS|_metadata|_common_metadata|_committed_.*|_started_.*|Thumbs\.db|desktop\.ini|Icon\r"
    r"|md5sums?(\.txt)?|sha\d+sums?(\.txt)?|readme(\.\w+)?|licen[cs]e(\.\w+)?"
    r"|dataset_infos?\.json|dataset_dict\.json|state\.json",
    re.IGNORECASE | re.DOTALL,
)
"""Names of files that tools leave beside data."""
_STRAY_ENDS = (".crc", ".md5", ".sha1", ".sha256", ".sha512", ".checksum", ".md", "_stats.json")
"""Ends of the names of such files."""
_STRAY_FOLDERS = frozenset({"__MACOSX", "@eaDir", "_temporary", "_delta_log", "_spark_metadata", "__pycache__"})


def split_suffix(name: str) -> tuple[str, str]:
    """Return a path without its suffix, and the suffix in lower case; an empty one for a name without.

    Folders have millions of files, and this takes a third of the time of `posixpath.splitext`.
    """
    stem, dot, suffix = name.rpartition(".")
    if not dot or "/" in suffix:
        return name, ""
    if not stem or stem[-1] in "/.":  # dots at the beginning of a name begin no suffix
        stem, suffix = posixpath.splitext(name)
        return stem, suffix.lower()
    return stem, dot + suffix.lower()


class Role(StrEnum):
    """The use of a file, by its name."""

    TABLE = "table"
    PICTURE = "picture"
    TAR = "tar"
    PACKED_TAR = "compressed tar"
    TEXT = "text"
    STRAY = "stray"
    BARE = "file without a suffix"
    OTHER = "other file"


def role_of(name: str) -> Role:
    """Return the use of a file.

    Args:
        name: The path from the folder of the input on.
    """
    if name.startswith(".") or "/." in name:
        return Role.STRAY
    folders, _, last = name.rpartition("/")
    if folders and not _STRAY_FOLDERS.isdisjoint(folders.split("/")):
        return Role.STRAY
    suffix = split_suffix(last)[1]
    if suffix in PICTURE_SUFFIXES:
        return Role.PICTURE
    if _STRAY.fullmatch(last) or last.lower().endswith(_STRAY_ENDS):
        return Role.STRAY
    if suffix != ".txt" and record_file(last):
        return Role.STRAY if last.startswith("_") else Role.TABLE
    if suffix == ".tar":
        return Role.TAR
    if _PACKED_TAR.fullmatch(last):
        return Role.PACKED_TAR
    if suffix in TEXT_SUFFIXES:
        return Role.TEXT
    return Role.OTHER if suffix else Role.BARE


@dataclass(frozen=True)
class Address:
    """A folder of an input, and the pattern of the names that are meant."""

    location: Location
    """The address, as a person gave it."""
    folder: Location
    glob: Glob | None = None
    only: FileInfo | None = None
    """The single file that is meant."""

    def files(self) -> Iterator[FileInfo]:
        """Return the files of the folder: also those beside the ones that are meant, such as the texts of pictures."""
        if self.only:
            return iter([self.only])
        return list_files(self.folder, deep=self.glob is None or self.glob.is_deep)

    def is_meant(self, info: FileInfo) -> bool:
        """Return True if the name of a file has the pattern."""
        return self.glob is None or self.glob.matches(info.location)

    def name_of(self, info: FileInfo) -> str:
        """Return the path of a file from the folder on."""
        return info.location.uri[len(self.folder.uri) :].lstrip("/")

    def role_of(self, info: FileInfo) -> Role:
        """Return the use of a file."""
        return role_of(self.name_of(info))


@dataclass
class Listing:
    """The files at an address, as far as a short look sees them."""

    address: Address
    files: dict[Role, list[FileInfo]] = field(default_factory=lambda: {role: [] for role in Role})
    """The files that are meant, by their use, in the order of their names."""
    is_complete: bool = True
    """False if there are more files than the listing holds."""

    def __getitem__(self, role: Role) -> list[FileInfo]:
        return self.files[role]

    def move(self, infos: Iterable[FileInfo], role: Role) -> None:
        """Give files of the listing another use."""
        moved = {info.location for info in infos}
        for files in self.files.values():
            files[:] = [info for info in files if info.location not in moved]
        self.files[role] = sorted([*self.files[role], *infos], key=lambda info: info.location)

    def describe(self, taken: Iterable[FileInfo], named: Iterable[Role] = ()) -> dict[str, Any]:
        """Return the number and bytes of the files that are read, and the counts of the others by their suffixes.

        Args:
            taken: The files that are read.
            named: Uses of files that the tables name: they are read as rows name them, and are not left out.
        """
        taken = list(taken)
        read = {info.location: info.size for info in taken}
        passed = {Role.STRAY, *named}
        rest = [info for role, infos in self.files.items() if role not in passed for info in infos]
        # With a pattern, the listing also has texts that no one meant, for the pictures beside them.
        left_out = Counter(
            suffix_of(info) for info in rest if info.location not in read and self.address.is_meant(info)
        )
        found = {
            "files": {"count": len(read), "bytes": sum(read.values())},
            "left_out": dict(left_out.most_common(50)),
            "strays": len(self.files[Role.STRAY]),
            "archived": sum(info.is_archived for info in taken),
        }
        return found if self.is_complete else found | {"at_least": True}

    def sentence(self) -> str:
        """Return the counts of all files, by their suffixes, for a message."""
        counts = Counter(suffix_of(info) for infos in self.files.values() for info in infos).most_common(6)
        return f"{'' if self.is_complete else 'at least '}{', '.join(f'{count} {name}' for name, count in counts)}"


def suffix_of(info: FileInfo) -> str:
    """Return the suffix of a file's name in lower case, or a word for a name without one."""
    return posixpath.splitext(info.location.name)[1].lower() or "without a suffix"


def list_address(address: Address) -> Listing:
    """Return what lies at an address, after some seconds at most."""
    listing = Listing(address)
    deadline = time.monotonic() + _MOST_SECONDS
    seen: set[Location] = set()

    def take(files: Iterable[FileInfo], most: int) -> bool:
        """Add files to the listing; return False if there are more."""
        for number, info in enumerate(files):
            if number >= most or time.monotonic() > deadline:
                return False
            if info.location not in seen:
                seen.add(info.location)
                role = address.role_of(info)
                if address.is_meant(info) or role is Role.TEXT:
                    listing.files[role].append(info)
        return True

    listing.is_complete = take(address.files(), MOST_FILES)
    if not listing.is_complete and (address.glob is None or address.glob.is_deep):
        # Tables lie at the top of a folder, or one folder deeper. The listing may name them after millions of pictures.
        for folder in itertools.islice([address.folder, *list_folders(address.folder)], _MOST_FOLDERS):
            deadline = max(deadline, time.monotonic() + 1)
            take(list_files(folder, deep=False), _MOST_OF_A_FOLDER)
    for infos in listing.files.values():
        infos.sort(key=lambda info: info.location)
    return listing
