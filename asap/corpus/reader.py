"""A corpus in DGM4's layout becomes records: rows checked, pictures found, captions and explanations joined.

DGM4 is `metadata/{train,val,test}.json`, a list of objects with `id`, `image`, `text`, `fake_cls`, `fake_image_box`
(xmin, ymin, xmax, ymax in pixels, or empty) and `fake_text_pos` (positions of whitespace words), and the pictures
beside it (rshaojimmy/MultiModal-DeepFake, README). SAMM has the same fields in `jsons/` (shen8424/SAMM-RamDG-CAP,
README; what it says of celebrities is not read). DGM4+ has one `metadata.json` without splits (Gaganx0/DGM4plus,
`src/Datasetgen.py`), to be named as a split's file.

Nothing here opens a file by itself: a `Folder` does, of this machine (`LocalFolder`) or another place.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from asap.corpus.annotations import DEFAULT_RULES, STRICT, ReadRules, Row, read_row, repaired
from asap.corpus.descriptions import Descriptions, Kind, PairKeys, join
from asap.corpus.folder import Folder, ImageAddress, LocalFolder, parse_json
from asap.corpus.picture_index import PictureIndex, index_pictures
from asap.corpus.report import SHOWN, CorpusReport, Joined
from asap.errors import ConfigError, CorpusError, PicturesMissing
from asap.labels import LabelSet, label_set

SPLITS = ("train", "val", "test")

_METADATA_FOLDERS = ("metadata/", "jsons/", "")


@dataclass(frozen=True)
class Record:
    """One annotated pair, with the caption and explanation that training uses."""

    id: str
    """As its file has it; in DGM4 an authentic pair and those made from it share one."""
    image: ImageAddress
    text: str
    fake_cls: str
    fake_image_box: tuple[float, ...]
    """xmin, ymin, xmax, ymax in pixels of the original image; empty where no face was manipulated, or no box is
    known."""
    fake_text_pos: tuple[int, ...]
    """Positions of the manipulated whitespace words."""
    caption: str
    """What a captioner says of the picture; the text where there is none."""
    explanation: str
    """What a language model says of the text; the text where there is none."""
    label_set: str = "dgm4"
    """What `fake_cls` is to be read with."""

    @property
    def labels(self) -> LabelSet:
        """The label set itself."""
        return label_set(self.label_set)


@dataclass(frozen=True)
class Corpus:
    """A split that was read."""

    records: list[Record]
    report: CorpusReport


def fingerprint(records: Sequence[Record]) -> str:
    """Of everything that was read of a split: 16 hex digits of a SHA-256 over its records, in their order.

    Pictures count by where they lie below the folder that holds them all: the same corpus in another place is the
    same. What is in a picture's file is not looked at.
    """
    begins = os.path.commonprefix([str(record.image) for record in records])  # noqa: RUF071  # addresses, not only paths
    above = begins.rpartition("/")[0]
    digest = hashlib.sha256()
    for record in records:
        told = dict(vars(record), image=str(record.image).removeprefix(above))
        digest.update(json.dumps(told, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:16]


def read_split(corpus: Path, split: str) -> list[Record]:
    """The records of a split of a local corpus, which must be as it should be (`STRICT`).

    Raises `CorpusError` for a folder or file that is not DGM4 or pictures that are missing, `AnnotationError` for a
    record that is not DGM4's.
    """
    return read_corpus(LocalFolder(corpus), split, STRICT).records


def read_corpus(
    folder: Folder,
    split: str,
    rules: ReadRules = DEFAULT_RULES,
    *,
    files: Sequence[str] = (),
    captions: Sequence[str] = (),
    explanations: Sequence[str] = (),
    pictures: Folder | None = None,
) -> Corpus:
    """A split of a corpus, and what was found reading it, which the caller should show.

    files: of metadata, in `folder` or by address; by default `metadata/{split}.json` (or `.jsonl`, or numbered parts
    of either, or in `jsons/` or the folder itself). captions, explanations: likewise, those before going before; by
    default `captions.json` and `explanations.json` (or `.jsonl`) if they are there. pictures: the folder that the
    pictures lie in, if it is not `folder`. Everything in that folder is listed once.

    Raises `ConfigError` for an unknown split, `CorpusError` for a corpus, of which `PicturesMissing` has the names of
    the pictures, `AnnotationError` for a record.
    """
    if split not in SPLITS:
        raise ConfigError(f"split {split!r} is unknown; {', '.join(SPLITS)} are known")
    listing = set(folder.names())
    files = list(files) or _metadata_files(listing, split, folder)
    report = CorpusReport(str(folder), split, rules.label_set, files)
    rows = [row for name in files for row in _read_rows(folder, name, label_set(rules.label_set))]
    report.rows = len(rows)
    index = index_pictures(pictures or folder, pictures.names() if pictures else listing, [row.image for row in rows])
    usable = [row for row in (repaired(row, rules, report) for row in rows) if row is not None]
    found = _find_pictures(usable, index, rules, report)
    pairs = [PairKeys.of(row.id, row.image, (file, str(index.folder.place(file))), row.text) for row, file in found]
    described = _join("caption", folder, captions, listing, pairs)
    explained = _join("explanation", folder, explanations, listing, pairs)
    report.captions, report.explanations = described.report, explained.report
    records = [
        Record(
            id=row.id,
            image=index.folder.place(file),
            text=row.text,
            fake_cls=row.fake_cls,
            fake_image_box=row.fake_image_box,
            fake_text_pos=row.fake_text_pos,
            caption=caption,
            explanation=explanation,
            label_set=rules.label_set,
        )
        for (row, file), caption, explanation in zip(found, described.values, explained.values, strict=True)
    ]
    if not records:
        raise CorpusError(f"no pair of {', '.join(files)} in {folder} can be used:\n{report}")
    report.records, report.classes = len(records), dict(Counter(row.fake_cls for row, _ in found).most_common())
    return Corpus(records, report)


def _metadata_files(listing: set[str], split: str, folder: Folder) -> list[str]:
    """The files of a split: in the first folder that has any; the whole before numbered parts, JSON before lines."""
    for place in _METADATA_FOLDERS:
        for suffix in ("json", "jsonl"):
            if (whole := f"{place}{split}.{suffix}") in listing:
                return [whole]
            part = re.compile(rf"{re.escape(place + split)}([-_.]\d+(-of-\d+)?|/[^/]+)\.{suffix}")
            if parts := sorted(filter(part.fullmatch, listing)):
                return parts
    raise CorpusError(
        f"{folder.place(f'metadata/{split}.json')} does not exist; a corpus has metadata/train.json, val.json and "
        "test.json"
    )


def _read_rows(folder: Folder, name: str, labels: LabelSet) -> list[Row]:
    title = str(folder.place(name))
    rows = parse_json(title, folder.read(name))
    if not isinstance(rows, list) or not rows:
        raise CorpusError(f"{title} is not a list of DGM4 records, or is empty")
    return [read_row(row, f"record {number} of {title}", labels) for number, row in enumerate(rows)]


def _find_pictures(
    rows: list[Row], index: PictureIndex, rules: ReadRules, report: CorpusReport
) -> list[tuple[Row, str]]:
    """The rows whose picture is there, with its file."""
    found = []
    for row in rows:
        file = index.find(row.image)
        if file is None:
            report.missing_pairs += 1
            report.missing_images.append(row.image)
            continue
        if not f"/{row.image}".endswith(f"/{file}"):
            report.relocated_images.add(f"{row.image} at {file}")
        found.append((row, file))
    report.missing_images = list(dict.fromkeys(report.missing_images))
    if report.missing_pairs > rules.missing_images * report.rows:
        raise PicturesMissing(
            f"the pictures of {report.missing_pairs} of {report.rows} pairs of {', '.join(report.files)} are not in "
            f"{index.folder}, {report.missing_pairs / report.rows:.2%} where missing_images allows "
            f"{rules.missing_images:.2%}: {', '.join(report.missing_images[:SHOWN])}; look where they lie, or raise it",
            report.missing_images,
        )
    return found


class _Texts(NamedTuple):
    values: list[str]
    report: Joined


def _join(kind: Kind, folder: Folder, given: Sequence[str], listing: set[str], pairs: list[PairKeys]) -> _Texts:
    names = given or [name for name in (f"{kind}s.json", f"{kind}s.jsonl") if name in listing]
    files = [Descriptions.parse(str(folder.place(name)), folder.read(name), kind) for name in names]
    return _Texts(*join(kind, pairs, files))
