"""A corpus in DGM4's layout as the input of a job: its pairs as training reads them, of every split that it has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from asap.corpus.annotations import ReadRules
from asap.corpus.reader import SPLITS, Corpus, read_corpus
from asap.errors import AnnotationError
from asap.labels import LABEL_SETS
from asap.storage.files import file_info, list_files
from asap.storage.location import FileInfo, Location
from jobs.scan.input.manifest import ManifestRow
from jobs.scan.input.sources import Source

_METADATA = re.compile(rf"({'|'.join(SPLITS)})([-_.]\d+(-of-\d+)?)?\.jsonl?")


@dataclass(frozen=True)
class CorpusPairs:
    """The pairs of a corpus, split by split (`jobs.scan.input.sources.Content`)."""

    metadata: tuple[FileInfo, ...]
    splits: dict[str, Corpus]

    @property
    def kind(self) -> str:
        """The kind of the input."""
        return "corpus"

    def rows(self, limit: int | None = None) -> Iterator[ManifestRow]:
        """Yield the pairs that training would use. The part of a row is its split."""
        return islice(self._rows(), limit)

    def _rows(self) -> Iterator[ManifestRow]:
        for part, (split, corpus) in enumerate(self.splits.items()):
            for number, record in enumerate(corpus.records):
                about = {"split": split, "fake_cls": record.fake_cls}
                yield ManifestRow(
                    row_id=part << 32 | number,
                    custom_id=record.id,
                    image_uri=str(record.image),
                    text=record.text,
                    metadata=json.dumps(about),
                )

    def files(self, limit: int | None = None) -> Iterator[FileInfo]:
        """Yield the files of metadata."""
        return iter(self.metadata)

    def describe(self) -> dict[str, Any]:
        """Return the pairs of each split, and what reading it found."""
        notes = [
            line
            for corpus in self.splits.values()
            for line in corpus.report.lines()
            if not line.startswith(("captions:", "explanations:"))
        ]
        return {"splits": {split: len(corpus.records) for split, corpus in self.splits.items()}, "notes": notes}


def find_corpus(location: Location, limit: int | None, missing_images: float) -> Source | None:
    """Return a corpus in DGM4's layout as an input; None if the folder holds none.

    Raises `CorpusError` for a corpus that cannot be used, such as one without its pictures.

    Args:
        location: The folder.
        limit: Read only the first so many pairs.
        missing_images: Largest fraction of a split whose pictures may be missing.
    """
    if file_info(location) is not None:
        return None
    folders = (location / "metadata", location / "jsons")
    found = [info for folder in folders for info in list_files(folder, deep=False)]
    metadata = [info for info in found if _METADATA.fullmatch(info.location.name)]
    present = [split for split in SPLITS if any(info.location.name.startswith(split) for info in metadata)]
    if not present:
        return None
    for name in LABEL_SETS:
        rules = ReadRules(label_set=name, missing_images=missing_images)
        try:
            splits = {split: read_corpus(location.uri, split, rules) for split in present}
        except AnnotationError:  # the records are of another label set, or not of a corpus at all
            continue
        return Source(location, CorpusPairs(tuple(metadata), splits), limit)
    return None
