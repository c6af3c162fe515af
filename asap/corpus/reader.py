"""Reads a corpus in DGM4's layout into records: checks rows, finds pictures, joins captions and explanations.

DGM4 is `metadata/{train,val,test}.json`, a list of objects with `id`, `image`, `text`, `fake_cls`, `fake_image_box`
(xmin, ymin, xmax, ymax in pixels, or empty) and `fake_text_pos` (positions of whitespace words), and the pictures
beside it (rshaojimmy/MultiModal-DeepFake, README). SAMM has the same fields in `jsons/` (shen8424/SAMM-RamDG-CAP,
README; its fields about celebrities are not read). MDSM has the same fields without `fake_text_pos`; its detected faces
(`mtcnn_boxes`) are not read (YcZhangSing/AMD, README and `scripts/data.py`). DGM4+ has one `metadata.json` without
splits (Gaganx0/DGM4plus, `src/Datasetgen.py`), which must be named as the file of a split.
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

from asap.corpus.annotated import find_annotations, read_annotations
from asap.corpus.annotations import DEFAULT_RULES, STRICT, ReadRules, Row, read_row, repair_row
from asap.corpus.descriptions import Descriptions, Kind, PairKeys, join
from asap.corpus.folder import Folder, ImageAddress, LocalFolder, open_folder, parse_json
from asap.corpus.picture_index import PictureIndex, index_pictures
from asap.corpus.report import SHOWN, CorpusReport, JoinReport
from asap.errors import ConfigError, CorpusError, PicturesMissing
from asap.labels import LabelSet, label_set

SPLITS = ("train", "val", "test")

_METADATA_FOLDERS = ("metadata/", "jsons/", "")


@dataclass(frozen=True)
class Record:
    """An annotated pair, with the caption and explanation that training uses."""

    id: str
    """The id in the metadata. In DGM4 an authentic pair and those made from it share one."""
    image: ImageAddress
    text: str
    fake_cls: str
    fake_image_box: tuple[float, ...]
    """xmin, ymin, xmax, ymax in pixels of the original image; empty if no face was manipulated or the box
    is unknown."""
    fake_text_pos: tuple[int, ...] | None
    """Positions of the manipulated whitespace words. None if they are unknown: the words of this text then have no
    labels."""
    caption: str
    """The description of the picture by a captioner; the text if there is none."""
    explanation: str
    """The explanation of the text by a language model; the text if there is none."""
    label_set: str = "dgm4"
    """The name of the label set that `fake_cls` belongs to."""

    @property
    def labels(self) -> LabelSet:
        """The label set that `fake_cls` belongs to."""
        return label_set(self.label_set)


@dataclass(frozen=True)
class Corpus:
    """The records of a split, and the report on reading it."""

    records: list[Record]
    report: CorpusReport


def fingerprint(records: Sequence[Record]) -> str:
    """Return 16 hex digits of a SHA-256 over the records of a split, in their order.

    Every field counts. A picture counts by its path below the folder that holds all pictures, so a corpus keeps its
    fingerprint in another location. The content of the picture files is not read.
    """
    # The common prefix may end within a name, so it is cut back to the folder.
    prefix = os.path.commonprefix([str(record.image) for record in records])  # noqa: RUF071  # addresses, not only paths
    above = prefix.rpartition("/")[0]
    digest = hashlib.sha256()
    for record in records:
        fields = dict(vars(record), image=str(record.image).removeprefix(above))
        # Unknown positions are those that the metadata does not give, which count as an empty list.
        fields["fake_text_pos"] = record.fake_text_pos or ()
        digest.update(json.dumps(fields, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:16]


def read_split(corpus: Path, split: str) -> list[Record]:
    """Read the records of a split of a local corpus, and refuse every fault (`STRICT`).

    Raises `CorpusError` for a folder or file that is not DGM4 or pictures that are missing, `AnnotationError` for a
    record that is not DGM4's.
    """
    return read_corpus(LocalFolder(corpus), split, STRICT).records


def read_corpus(
    corpus: Folder | Path | str,
    split: str,
    rules: ReadRules = DEFAULT_RULES,
    *,
    files: Sequence[str] = (),
    captions: Sequence[str] = (),
    explanations: Sequence[str] = (),
    pictures: Folder | Path | str | None = None,
) -> Corpus:
    """Read a split of a corpus. The caller should show the report to a person.

    The folder of the pictures is listed once.

    Args:
        corpus: the folder of the corpus, or its address: a path, file:// or s3://.
        split: train, val or test.
        rules: the handling of faults.
        files: files of metadata, by name in the corpus or by an address of their own. By default
            `metadata/{split}.json` (or `.jsonl`, or numbered parts of either, or in `jsons/` or the folder itself).
        captions: files of captions, named likewise, or folders that `asap annotate` wrote; an earlier one takes
            precedence. By default `captions.json` or `captions.jsonl`, if there is one.
        explanations: files of explanations, likewise.
        pictures: the folder that holds the pictures, if it is not `corpus`.

    Raises:
        ConfigError: if the split is unknown.
        StorageError: if an address is not valid, or a bucket cannot be read.
        CorpusError: if the corpus cannot be used. `PicturesMissing` lists the names of the missing pictures.
        AnnotationError: if a row is not a record, or the rules refuse it.
    """
    folder = open_folder(corpus)
    picture_folder = None if pictures is None else open_folder(pictures)
    if split not in SPLITS:
        raise ConfigError(f"split {split!r} is unknown; {', '.join(SPLITS)} are known")

    # Rows, checked and repaired.
    listing = set(folder.names())
    files = list(files) or _metadata_files(listing, split, folder)
    report = CorpusReport(str(folder), split, rules.label_set, files)
    rows = [row for name in files for row in _read_rows(folder, name, label_set(rules.label_set))]
    report.rows = len(rows)
    # All rows take part in finding the folder of the pictures, before repairs leave some of them out.
    picture_names = picture_folder.names() if picture_folder else listing
    index = index_pictures(picture_folder or folder, picture_names, [row.image for row in rows])
    usable = [row for row in (repair_row(row, rules, report) for row in rows) if row is not None]
    # The authentic texts alone would teach that no word is ever manipulated, so they have no labels of words either.
    report.has_word_positions = not report.unplaced_words or any(row.fake_text_pos for row in usable)
    if not report.has_word_positions:
        usable = [row._replace(fake_text_pos=None) for row in usable]

    # Pictures, captions and explanations of the rows that are left.
    found = _find_pictures(usable, index, rules, report)
    pairs = [PairKeys.of(row.id, row.image, (file, _full_name(index, file)), row.text) for row, file in found]
    pair_captions, report.captions = _join("caption", folder, captions, listing, pairs)
    pair_explanations, report.explanations = _join("explanation", folder, explanations, listing, pairs)
    records = [
        Record(
            id=row.id,
            image=index.folder.address(file),
            text=row.text,
            fake_cls=row.fake_cls,
            fake_image_box=row.fake_image_box,
            fake_text_pos=row.fake_text_pos,
            caption=caption,
            explanation=explanation,
            label_set=rules.label_set,
        )
        for (row, file), caption, explanation in zip(found, pair_captions, pair_explanations, strict=True)
    ]
    if not records:
        raise CorpusError(f"no pair of {', '.join(files)} in {folder} can be used:\n{report}")
    report.records, report.classes = len(records), dict(Counter(row.fake_cls for row, _ in found).most_common())
    return Corpus(records, report)


def check_split(corpus: Path | str, split: str, files: Sequence[str] = ()) -> None:
    """Raise the errors of a corpus that lacks a split, without listing its pictures.

    A bucket is only asked whether the corpus has any file, unless the split lies in one of the usual folders.

    Args:
        corpus: the folder of the corpus, or its address: a path, file:// or s3://.
        split: train, val or test.
        files: files of metadata, as `read_corpus` takes them.
    """
    folder = open_folder(corpus)
    if files:
        for name in files:
            if isinstance(folder, LocalFolder) and "://" not in name and not (folder.path / name).is_file():
                raise CorpusError(f"{folder.path / name} does not exist. Check the setting files.")
        return
    listing = {name for below in _METADATA_FOLDERS if below for name in folder.names(below.rstrip("/"))}
    if isinstance(folder, LocalFolder):
        above = folder.path.iterdir() if folder.path.is_dir() else ()
        listing |= {path.name for path in above if path.is_file()} | set(folder.names(split))
    elif next(iter(folder.names()), None) is not None:
        return
    _metadata_files(listing, split, folder)


def _metadata_files(listing: set[str], split: str, folder: Folder) -> list[str]:
    """Return the files of a split, from the first folder that has any.

    A whole file takes precedence over numbered parts, and JSON over JSON lines.
    """
    for parent in _METADATA_FOLDERS:
        for suffix in ("json", "jsonl"):
            if (whole := f"{parent}{split}.{suffix}") in listing:
                return [whole]
            part = re.compile(rf"{re.escape(parent + split)}([-_.]\d+(-of-\d+)?|/[^/]+)\.{suffix}")
            if parts := sorted(filter(part.fullmatch, listing)):
                return parts
    raise CorpusError(
        f"{folder.address(f'metadata/{split}.json')} does not exist; a corpus has metadata/train.json, val.json and "
        "test.json"
    )


def _read_rows(folder: Folder, name: str, labels: LabelSet) -> list[Row]:
    title = str(folder.address(name))
    rows = parse_json(title, folder.read(name))
    if not isinstance(rows, list) or not rows:
        raise CorpusError(f"{title} is not a list of DGM4 records, or is empty")
    return [read_row(row, f"record {number} of {title}", labels) for number, row in enumerate(rows)]


def _find_pictures(
    rows: list[Row], index: PictureIndex, rules: ReadRules, report: CorpusReport
) -> list[tuple[Row, str]]:
    """Return the rows whose picture exists, each with its file.

    Raises `PicturesMissing` if more pictures are missing than the rules allow.
    """
    found = []
    for row in rows:
        file = index.find(row.image)
        if file is None:
            report.missing_pairs += 1
            report.missing_images.append(row.image)
            continue
        # A name that only starts further up, such as DGM4/origin/…, is as DGM4 means it and not worth a line.
        if not f"/{row.image}".endswith(f"/{file}"):
            report.relocated_images.add(f"{row.image} at {file}")
        found.append((row, file))
    report.missing_images = list(dict.fromkeys(report.missing_images))  # several pairs may show one picture
    if report.missing_pairs > rules.missing_images * report.rows:
        raise PicturesMissing(
            f"the pictures of {report.missing_pairs} of {report.rows} pairs of {', '.join(report.files)} are not in "
            f"{index.folder}, {report.missing_pairs / report.rows:.2%} where missing_images allows "
            f"{rules.missing_images:.2%}: {', '.join(report.missing_images[:SHOWN])}. "
            "Check where the pictures are, or raise missing_images.",
            report.missing_images,
        )
    return found


def _full_name(index: PictureIndex, file: str) -> str:
    """Return the address of a picture that holds in any working directory."""
    address = index.folder.address(file)
    return str(address.absolute() if isinstance(address, Path) else address)


def _join(
    kind: Kind, folder: Folder, files: Sequence[str], listing: set[str], pairs: list[PairKeys]
) -> tuple[list[str], JoinReport]:
    """Join the captions or explanations of these files, or of the default ones, to the pairs."""
    names = files or [name for name in (f"{kind}s.json", f"{kind}s.jsonl") if name in listing]
    return join(kind, pairs, [_read_descriptions(folder, name, kind) for name in names])


def _read_descriptions(folder: Folder, name: str, kind: Kind) -> Descriptions:
    """Read a file of captions or explanations, or a folder that `asap annotate` wrote."""
    address = str(folder.address(name))
    if annotations := find_annotations(name, address):
        return read_annotations(annotations, kind)
    return Descriptions.parse(address, folder.read(name), kind)
