"""DGM4 records, their pictures kept small and ready, and the batches that training reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from asap.augmentation import augment, horizontal_flip
from asap.batch import Batch, Tokens
from asap.config import ModelConfig
from asap.errors import AnnotationError, ConfigError, CorpusError, InputError
from asap.images import BoxXyxy, PreparedImage, normalise, prepare_image
from asap.targets import (
    box_targets,
    face_box,
    is_manipulated,
    multi_hot,
    patch_labels,
    patch_mask,
    resize_box,
    stack_boxes,
)
from asap.text import LabelledText, TextCodec, pad_batch

SPLITS = ("train", "val", "test")

Augmentation = Literal["none", "flip", "published"]
MppLabels = Literal["published", "authentic", "dense"]


@dataclass(frozen=True)
class Record:
    """One annotated pair, with the caption and explanation that training uses."""

    id: str
    image: Path
    text: str
    fake_cls: str
    fake_image_box: tuple[float, ...]
    """xmin, ymin, xmax, ymax in pixels of the original image; empty where no face was manipulated."""
    fake_text_pos: tuple[int, ...]
    """Positions of the manipulated whitespace words."""
    caption: str
    """What a captioner says of the picture; the text where there is none."""
    explanation: str
    """What a language model says of the text; the text where there is none."""


def read_split(corpus: Path, split: str) -> list[Record]:
    """The records of `corpus/metadata/{split}.json`, with their captions and explanations where files give them.

    Raises `CorpusError` for a folder or file that is not DGM4, `AnnotationError` for a record that is not.
    """
    if split not in SPLITS:
        raise ConfigError(f"split {split!r} is unknown; {', '.join(SPLITS)} are known")
    metadata = corpus / "metadata" / f"{split}.json"
    rows = _read_json(metadata)
    if not isinstance(rows, list) or not rows:
        raise CorpusError(f"{metadata} is not a list of DGM4 records, or is empty")
    captions, explanations = (_read_lookup(corpus / f"{name}.json") for name in ("captions", "explanations"))
    base = _image_base(corpus, rows[0])
    return [_record(row, base, captions, explanations, metadata, line) for line, row in enumerate(rows)]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorpusError(f"{path} does not exist; a corpus has metadata/train.json, val.json and test.json") from None
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path} cannot be read as JSON: {error}") from error


def _read_lookup(path: Path) -> dict[str, str]:
    lookup = _read_json(path) if path.exists() else {}
    if not isinstance(lookup, dict):
        raise CorpusError(f"{path} is not a JSON object from record id to text")
    return lookup


def _image_base(corpus: Path, row: Any) -> Path:
    """Where image paths start: the corpus, or the folder around it, from which DGM4's own files name them."""
    image = row.get("image") if isinstance(row, dict) else None
    if isinstance(image, str) and not (corpus / image).exists() and (corpus.parent / image).exists():
        return corpus.parent
    return corpus


def _record(
    row: Any, base: Path, captions: dict[str, str], explanations: dict[str, str], metadata: Path, line: int
) -> Record:
    try:
        key, text = str(row["id"]), row["text"]
        if not isinstance(text, str):
            raise TypeError(f"text is a {type(text).__name__}")
        record = Record(
            id=key,
            image=base / row["image"],
            text=text,
            fake_cls=row["fake_cls"],
            fake_image_box=tuple(row.get("fake_image_box") or ()),
            fake_text_pos=tuple(row.get("fake_text_pos") or ()),
            caption=captions.get(key, text),
            explanation=explanations.get(key, text),
        )
        is_manipulated(record.fake_cls)
    except (KeyError, TypeError, AttributeError) as error:
        raise AnnotationError(f"record {line} of {metadata} is not a DGM4 record: {error!r} in {row!r}") from error
    except AnnotationError as error:
        raise AnnotationError(f"record {line} of {metadata}: {error}") from error
    return record


@dataclass(frozen=True)
class PictureCache:
    """The pictures of some records at a model's size: decoded once, read by every epoch and worker.

    A memory-mapped file of uint8, so that workers of one machine share it and memory stays with the page cache.
    """

    pixels: NDArray[np.uint8]
    """(pictures, S, S, 3)."""
    sizes: NDArray[np.int32]
    """(pictures, 2): width and height of the originals after EXIF rotation, in pixels."""
    index: dict[Path, int]
    """Which row holds which picture."""

    @classmethod
    def prepare(
        cls,
        records: Sequence[Record],
        image_size: int,
        folder: Path,
        progress: Callable[[int], None] | None = None,
    ) -> Self:
        """Open the cache of these pictures under `folder`, decoding them first unless that was done before.

        `progress` is called with the pictures done so far. Raises `InputError` for a picture that cannot
        be decoded, naming it.
        """
        paths = list(dict.fromkeys(record.image for record in records))
        key = hashlib.sha256("\n".join([str(image_size), *map(str, paths)]).encode()).hexdigest()[:16]
        pixels_file, sizes_file = folder / f"{key}.pixels.npy", folder / f"{key}.sizes.npy"
        if not sizes_file.exists():  # written last, so its presence means that all is there
            folder.mkdir(parents=True, exist_ok=True)
            _decode_all(paths, image_size, pixels_file, sizes_file, progress)
        pixels = np.load(pixels_file, mmap_mode="r", allow_pickle=False)
        return cls(pixels, np.load(sizes_file, allow_pickle=False), {path: row for row, path in enumerate(paths)})


def _decode_all(
    paths: list[Path],
    image_size: int,
    pixels_file: Path,
    sizes_file: Path,
    progress: Callable[[int], None] | None,
) -> None:
    shape = (len(paths), image_size, image_size, 3)
    pixels = np.lib.format.open_memmap(pixels_file, mode="w+", dtype=np.uint8, shape=shape)
    sizes = np.zeros((len(paths), 2), np.int32)
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter's lock
        for row, picture in enumerate(pool.map(lambda path: _decode(path, image_size), paths)):
            pixels[row] = picture.pixels
            sizes[row] = picture.width, picture.height
            if progress and (row % 256 == 255 or row + 1 == len(paths)):
                progress(row + 1)
    pixels.flush()
    partial = sizes_file.with_suffix(".partial.npy")
    np.save(partial, sizes)
    partial.rename(sizes_file)


def _decode(path: Path, image_size: int) -> PreparedImage:
    try:
        return prepare_image(path, image_size)
    except InputError as error:
        raise type(error)(f"picture {path}: {error}") from error


@dataclass(frozen=True)
class Sample:
    """One record as a step reads it, before padding."""

    pixels: NDArray[np.uint8]
    """(S, S, 3)."""
    box_xyxy: BoxXyxy | None
    """The manipulated face in pixels of the square picture."""
    fake_cls: str
    text_ids: list[int]
    token_labels: list[int]
    """For each token after [CLS]."""
    caption_ids: list[int]
    explanation_ids: list[int]


class _Prepared(NamedTuple):
    """What of a record is the same in every epoch."""

    picture: int
    """Its row in the cache."""
    box_xyxy: BoxXyxy | None
    text: LabelledText
    caption_ids: list[int]
    explanation_ids: list[int]


class TrainingSet:
    """Annotated pairs ready to train on: texts tokenised at construction, pictures from the cache.

    Raises `AnnotationError` or `InputError`, naming the record, for a box, position or text that cannot be used.
    """

    def __init__(self, records: Sequence[Record], pictures: PictureCache, codec: TextCodec) -> None:
        self.records = records
        self.pictures = pictures
        self.codec = codec
        self.pad_id = codec.pad_id
        self._prepared = [self._prepare(record, codec) for record in records]

    def __len__(self) -> int:
        return len(self.records)

    def _prepare(self, record: Record, codec: TextCodec) -> _Prepared:
        picture = self.pictures.index[record.image]
        try:
            return _Prepared(
                picture,
                self._box(record, picture),
                codec.encode_labelled(record.text, record.fake_text_pos),
                codec.encode_labelled(record.caption).input_ids,
                codec.encode_labelled(record.explanation).input_ids,
            )
        except (AnnotationError, InputError) as error:
            raise type(error)(f"record {record.id}: {error}") from error

    def _box(self, record: Record, picture: int) -> BoxXyxy | None:
        width, height = (int(side) for side in self.pictures.sizes[picture])
        box = face_box(record.fake_cls, record.fake_image_box, width, height)
        return None if box is None else resize_box(box, width, height, self.pictures.pixels.shape[1])

    def sample(self, number: int, *, augmentation: Augmentation = "none", seed: int = 0, epoch: int = 0) -> Sample:
        """Record `number`, its picture augmented as a function of (seed, epoch, number) alone."""
        prepared = self._prepared[number]
        pixels, box = np.asarray(self.pictures.pixels[prepared.picture]), prepared.box_xyxy
        if augmentation == "published":
            pixels, box = augment(pixels, box, seed, epoch, number)
        elif augmentation == "flip" and np.random.default_rng((seed, epoch, number)).random() < 0.5:
            pixels, box = horizontal_flip(pixels, box)
        return Sample(
            pixels=pixels,
            box_xyxy=box,
            fake_cls=self.records[number].fake_cls,
            text_ids=prepared.text.input_ids,
            token_labels=prepared.text.token_labels,
            caption_ids=prepared.caption_ids,
            explanation_ids=prepared.explanation_ids,
        )


def epoch_order(pairs: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch, from seed and epoch alone: (pairs,)."""
    return np.random.default_rng((seed, epoch)).permutation(pairs)


def collate(
    samples: Sequence[Sample], config: ModelConfig, pad_id: int, *, mpp_labels: MppLabels = "published"
) -> Batch:
    """Pad and stack.

    `mpp_labels`: `published` labels the patches of a manipulated face 1 and the ring around them 0; `authentic`
    labels those of pictures without one 0 too; `dense` labels every other patch 0.
    """
    boxes_B4, has_box_B = stack_boxes([sample.box_xyxy for sample in samples])
    mask_BP = patch_mask(boxes_B4, has_box_B, config.image_size, config.patch_size)
    labels_BP = mask_BP
    if mpp_labels != "dense":
        labels_BP = patch_labels(mask_BP, authentic=0.0 if mpp_labels == "authentic" else -1.0)
    return Batch(
        images=normalise(np.stack([sample.pixels for sample in samples])),
        text=_tokens((sample.text_ids for sample in samples), pad_id),
        caption=_tokens((sample.caption_ids for sample in samples), pad_id),
        explanation=_tokens((sample.explanation_ids for sample in samples), pad_id),
        manipulated=torch.tensor([is_manipulated(sample.fake_cls) for sample in samples]),
        types=torch.stack([multi_hot(sample.fake_cls) for sample in samples]),
        box_cxcywh=box_targets(boxes_B4, config.image_size),
        has_box=has_box_B,
        token_labels=_pad_labels([sample.token_labels for sample in samples]),
        patch_mask=mask_BP,
        patch_labels=labels_BP,
    )


def _tokens(input_ids: Iterable[list[int]], pad_id: int) -> Tokens:
    return Tokens(*pad_batch(list(input_ids), pad_id))


def _pad_labels(labels: Sequence[Sequence[int]]) -> torch.Tensor:
    longest = max(map(len, labels))
    return torch.tensor([[*row, *[-100] * (longest - len(row))] for row in labels], dtype=torch.long)
