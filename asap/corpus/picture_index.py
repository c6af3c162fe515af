"""Where the pictures of a corpus lie: their names in the metadata against the files that are there.

What users of DGM4 meet, and what is looked for after the name itself:

- `gardian` and `guardian`: the paper's README lists `origin/gardian`, copies of the data have either;
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
"""Names, in lower case, that paths of the metadata may start with."""


def canonical(path: str) -> tuple[str, ...]:
    """The parts of a path in one spelling, those that repeat the part before them left out."""
    parts = [_SPELLINGS.get(part, part) for part in path.split("/") if part not in ("", ".")]
    return tuple(part for part, _ in groupby(parts))


class PictureIndex:
    """The files of a folder by every name that the metadata may give them."""

    def __init__(self, folder: Folder, files: Iterable[str]) -> None:
        self.folder = folder
        self._files = set(files)
        self._wrappers = _DATASET_FOLDERS | {folder.name.lower()}
        self._by_parts: dict[str, str] = {}
        for file in sorted(self._files, key=lambda file: (file.count("/"), file)):
            for parts in self._endings(canonical(file)):
                self._by_parts.setdefault("/".join(parts), file)

    def find(self, name: str) -> str | None:
        """The file that a name of the metadata means: of that name, else as the module says; None if there is none."""
        name = name.removeprefix(f"{self.folder}/")
        if name in self._files:
            return name
        parts = canonical(name)
        found = self._by_parts.get("/".join(parts))
        if found is None and len(parts) > 1 and parts[0].lower() in self._wrappers:
            found = self._by_parts.get("/".join(parts[1:]))
        return found

    def _endings(self, parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """The path from each folder on before which nothing but folders of the path or data set is repeated.

        Any ending would find thumbnails in place of missing pictures.
        """
        for start in range(len(parts)):
            rest = parts[start:]
            if all(part in rest or part.lower() in self._wrappers for part in parts[:start]):
                yield rest


def index_pictures(folder: Folder, files: Iterable[str], names: Sequence[str]) -> PictureIndex:
    """The index of a corpus, or, where it holds none of the pictures called `names`, of those beside it.

    `files`: everything in the folder.
    """
    index = PictureIndex(folder, files)
    if any(index.find(name) for name in names):
        return index
    first = next((name.strip("/").partition("/")[0] for name in names if "/" in name.strip("/")), "")
    beside = PictureIndex(folder.above, folder.above.names(first) if first not in ("", "..", ".") else ())
    return beside if any(beside.find(name) for name in names) else index
