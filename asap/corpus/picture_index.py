"""Finds the picture files of a corpus by the names in its metadata.

A file of exactly the name is preferred. These differences between metadata and copies of DGM4 are allowed for:

- `gardian` and `guardian`: the README of the data set lists `origin/gardian`, copies of the data have either;
- paths that start at the folder above (`DGM4/origin/…`, in `DGM4/metadata/train.json`), in a corpus of any name;
- archives unpacked into folders of their own name: `DGM4/DGM4/origin/…`, `infoswap/DGM4/manipulation/infoswap/…`
  (rshaojimmy/MultiModal-DeepFake, issue 37).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from asap.corpus.folder import Folder

_SPELLINGS = {"gardian": "guardian"}
_DATASET_FOLDERS = {"dgm4", "samm", "samm_datasets"}
"""Folder names, in lower case, that paths of the metadata may start with."""


def canonical(path: str) -> tuple[str, ...]:
    """Return the parts of a path in one spelling, without those that repeat the part before them."""
    parts = [_SPELLINGS.get(part, part) for part in path.split("/") if part not in ("", ".")]
    return tuple(part for part, _ in groupby(parts))


class PictureIndex:
    """An index of a folder's files by every name that the metadata may give them."""

    def __init__(self, folder: Folder, files: Iterable[str]) -> None:
        self.folder = folder
        self._files = set(files)
        self._wrappers = _DATASET_FOLDERS | {folder.name.lower()}
        self._by_parts: dict[str, str] = {}
        # The file nearest to the top of the folder gets a name that several could have.
        for file in sorted(self._files, key=lambda file: (file.count("/"), file)):
            for parts in self._endings(canonical(file)):
                self._by_parts.setdefault("/".join(parts), file)

    def find(self, name: str) -> str | None:
        """Return the file that a name of the metadata stands for, or None.

        A file of the same name is preferred; else the name is matched as the module describes.
        """
        name = name.removeprefix(f"{self.folder}/")
        if name in self._files:
            return name
        parts = canonical(name)
        found = self._by_parts.get("/".join(parts))
        if found is None and len(parts) > 1 and parts[0].lower() in self._wrappers:
            found = self._by_parts.get("/".join(parts[1:]))
        return found

    def _endings(self, parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """Yield the path from each folder on before which only folders of the rest or the data set come.

        Accepting any ending would find thumbnails in place of missing pictures.
        """
        for start in range(len(parts)):
            rest = parts[start:]
            if all(part in rest or part.lower() in self._wrappers for part in parts[:start]):
                yield rest


def index_pictures(folder: Folder, files: Iterable[str], names: Sequence[str]) -> PictureIndex:
    """Index the pictures of a corpus, or, if it holds none of them, those in the folder beside it.

    Args:
        folder: the folder of the corpus.
        files: every file in it.
        names: the pictures as the metadata names them.
    """
    index = PictureIndex(folder, files)
    if any(index.find(name) for name in names):
        return index
    # Only the folder that the paths start with is listed, not everything beside the corpus.
    first = next((name.strip("/").partition("/")[0] for name in names if "/" in name.strip("/")), "")
    beside = PictureIndex(folder.parent, folder.parent.names(first) if first not in ("", "..", ".") else ())
    return beside if any(beside.find(name) for name in names) else index
