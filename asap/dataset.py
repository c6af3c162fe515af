"""Records ready to train on: their pictures kept small, their samples, and the batches that training reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from asap.annotations import BadBox
from asap.augmentation import augment, horizontal_flip
from asap.batch import Batch, Tokens
from asap.config import IMAGE_TYPES, ModelConfig
from asap.corpus import Record, read_split
from asap.corpus_report import CorpusReport
from asap.errors import AnnotationError, InputError
from asap.images import BoxXyxy, ImageSource, PreparedImage, normalise, prepare_image
from asap.layout import ImagePlace
from asap.recipes import MppLabels
from asap.targets import (
    box_targets,
    face_box,
    multi_hot,
    patch_labels,
    patch_mask,
    resize_box,
    stack_boxes,
)
from asap.text import LabelledText, TextCodec, pad_batch

__all__ = [
    "Augmentation",
    "MppLabels",
    "PictureCache",
    "Record",
    "Sample",
    "TrainingSet",
    "collate",
    "epoch_order",
    "read_split",
]

Augmentation = Literal["none", "flip", "published"]


@dataclass(frozen=True)
class PictureCache:
    """The pictures of some records at a model's size: decoded once, read by every epoch and worker.

    A memory-mapped file of uint8, so that workers of one machine share it and memory stays with the page cache.
    """

    pixels: NDArray[np.uint8]
    """(pictures, S, S, 3)."""
    sizes: NDArray[np.int32]
    """(pictures, 2): width and height of the originals after EXIF rotation, in pixels."""
    index: dict[ImagePlace, int]
    """Which row holds which picture."""

    @classmethod
    def prepare(
        cls,
        records: Sequence[Record],
        image_size: int,
        folder: Path,
        progress: Callable[[int], None] | None = None,
        read: Callable[[ImagePlace], ImageSource] = lambda place: place,
    ) -> Self:
        """Open the cache of these pictures under `folder`, decoding them first unless that was done before.

        `progress` is called with the pictures done so far. `read` opens a picture that is no file of this machine.
        Raises `InputError` for a picture that cannot be decoded, naming it.
        """
        paths = list(dict.fromkeys(record.image for record in records))
        key = hashlib.sha256("\n".join([str(image_size), *map(str, paths)]).encode()).hexdigest()[:16]
        pixels_file, sizes_file = folder / f"{key}.pixels.npy", folder / f"{key}.sizes.npy"
        if not sizes_file.exists():  # written last, so its presence means that all is there
            folder.mkdir(parents=True, exist_ok=True)
            _decode_all(paths, image_size, pixels_file, sizes_file, progress, read)
        pixels = np.load(pixels_file, mmap_mode="r", allow_pickle=False)
        return cls(pixels, np.load(sizes_file, allow_pickle=False), {path: row for row, path in enumerate(paths)})


def _decode_all(
    paths: list[ImagePlace],
    image_size: int,
    pixels_file: Path,
    sizes_file: Path,
    progress: Callable[[int], None] | None,
    read: Callable[[ImagePlace], ImageSource],
) -> None:
    shape = (len(paths), image_size, image_size, 3)
    pixels = np.lib.format.open_memmap(pixels_file, mode="w+", dtype=np.uint8, shape=shape)
    sizes = np.zeros((len(paths), 2), np.int32)
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter's lock
        for row, picture in enumerate(pool.map(lambda path: _decode(path, read, image_size), paths)):
            pixels[row] = picture.pixels
            sizes[row] = picture.width, picture.height
            if progress and (row % 256 == 255 or row + 1 == len(paths)):
                progress(row + 1)
    pixels.flush()
    partial = sizes_file.with_suffix(".partial.npy")
    np.save(partial, sizes)
    partial.rename(sizes_file)


def _decode(path: ImagePlace, read: Callable[[ImagePlace], ImageSource], image_size: int) -> PreparedImage:
    try:
        return prepare_image(read(path), image_size)
    except InputError as error:
        raise type(error)(f"picture {path}: {error}") from error


@dataclass(frozen=True)
class Sample:
    """One record as a step reads it, before padding."""

    pixels: NDArray[np.uint8]
    """(S, S, 3)."""
    box_xyxy: BoxXyxy | None
    """The manipulated face in pixels of the square picture."""
    types: torch.Tensor
    """(4,) float32, 0 or 1 for each of `asap.config.TYPES`; none of them is an authentic pair."""
    text_ids: list[int]
    token_labels: list[int]
    """For each token after [CLS]."""
    caption_ids: list[int]
    explanation_ids: list[int]


class _Prepared(NamedTuple):
    """What of a record is the same in every epoch."""

    picture: int
    """Its row in the cache."""
    types: torch.Tensor
    box_xyxy: BoxXyxy | None
    text: LabelledText
    caption_ids: list[int]
    explanation_ids: list[int]


class _LeftOut(Exception):
    """A record is skipped, and the report says so."""


class TrainingSet:
    """Annotated pairs ready to train on: texts tokenised at construction, pictures from the cache.

    `bad_boxes`: of a box with nothing in its picture, as `asap.annotations.ReadRules` says. `report`: gets what is
    clipped, kept without a box or skipped. Raises `AnnotationError` or `InputError`, naming the record, for a box,
    position or text that cannot be used.
    """

    def __init__(
        self,
        records: Sequence[Record],
        pictures: PictureCache,
        codec: TextCodec,
        *,
        bad_boxes: BadBox = "refuse",
        report: CorpusReport | None = None,
    ) -> None:
        self.pictures = pictures
        self.codec = codec
        self.pad_id = codec.pad_id
        self._bad_boxes = bad_boxes
        self._report = report or CorpusReport("", "", "")
        ready = [(record, prepared) for record in records if (prepared := self._prepare(record, codec)) is not None]
        self.records = [record for record, _ in ready]
        self._prepared = [prepared for _, prepared in ready]
        self._report.records -= len(records) - len(ready)

    def __len__(self) -> int:
        return len(self.records)

    def _prepare(self, record: Record, codec: TextCodec) -> _Prepared | None:
        """None for a record to leave out."""
        try:
            return _Prepared(
                self.pictures.index[record.image],
                multi_hot(record.fake_cls, record.labels),
                self._box(record),
                codec.encode_labelled(record.text, record.fake_text_pos),
                codec.encode_labelled(record.caption).input_ids,
                codec.encode_labelled(record.explanation).input_ids,
            )
        except _LeftOut:
            return None
        except (AnnotationError, InputError) as error:
            raise type(error)(f"record {record.id}: {error}") from error

    def _box(self, record: Record) -> BoxXyxy | None:
        width, height = (int(side) for side in self.pictures.sizes[self.pictures.index[record.image]])
        try:
            box = face_box(record.fake_cls, record.fake_image_box, width, height, record.labels)
        except AnnotationError as error:
            self._without_box(record, error)
            return None
        if box is None:
            return None
        if box != tuple(record.fake_image_box):
            self._report.clipped_boxes.add(f"{list(record.fake_image_box)} in {width} x {height} (id {record.id})")
        return resize_box(box, width, height, self.pictures.pixels.shape[1])

    def _without_box(self, record: Record, error: AnnotationError) -> None:
        """Go on without, or do not."""
        if self._bad_boxes == "refuse":
            raise error
        if self._bad_boxes == "skip":
            self._report.skipped.add(f"{error} (id {record.id})")
            raise _LeftOut
        if record.fake_image_box:  # one without any was told of when it was read
            self._report.boxless.add(f"{list(record.fake_image_box)} (id {record.id})")

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
            types=prepared.types,
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
    """Pad and stack. Patches of a manipulated face whose box is not known are ignored.

    `mpp_labels`: `published` labels the patches of a manipulated face 1 and the ring around them 0; `authentic`
    labels those of pictures without one 0 too; `dense` labels every other patch 0.
    """
    boxes_B4, has_box_B = stack_boxes([sample.box_xyxy for sample in samples])
    mask_BP = patch_mask(boxes_B4, has_box_B, config.image_size, config.patch_size)
    labels_BP = mask_BP
    if mpp_labels != "dense":
        labels_BP = patch_labels(mask_BP, authentic=0.0 if mpp_labels == "authentic" else -1.0)
    types_B4 = torch.stack([sample.types for sample in samples])
    # Somewhere in such a picture is a manipulated face: its patches are not authentic, they are unknown.
    unknown_B = types_B4[:, : len(IMAGE_TYPES)].any(dim=1) & ~has_box_B
    return Batch(
        images=normalise(np.stack([sample.pixels for sample in samples])),
        text=_tokens((sample.text_ids for sample in samples), pad_id),
        caption=_tokens((sample.caption_ids for sample in samples), pad_id),
        explanation=_tokens((sample.explanation_ids for sample in samples), pad_id),
        manipulated=types_B4.any(dim=1),
        types=types_B4,
        box_cxcywh=box_targets(boxes_B4, config.image_size),
        has_box=has_box_B,
        token_labels=_pad_labels([sample.token_labels for sample in samples]),
        patch_mask=mask_BP,
        patch_labels=labels_BP.masked_fill(unknown_B[:, None], -1.0),
    )


def _tokens(input_ids: Iterable[list[int]], pad_id: int) -> Tokens:
    return Tokens(*pad_batch(list(input_ids), pad_id))


def _pad_labels(labels: Sequence[Sequence[int]]) -> torch.Tensor:
    longest = max(map(len, labels))
    return torch.tensor([[*row, *[-100] * (longest - len(row))] for row in labels], dtype=torch.long)
