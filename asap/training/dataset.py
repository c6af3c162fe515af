"""The training set: records made ready to train on, their samples, and the batches of a step."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from asap.corpus.annotations import BadBox
from asap.corpus.folder import ImageAddress
from asap.corpus.picture_cache import PictureCache, PictureInfo
from asap.corpus.reader import Record
from asap.corpus.report import CorpusReport
from asap.errors import AnnotationError, InputError
from asap.labels import IMAGE_TYPES
from asap.model.config import ModelConfig
from asap.preprocessing.images import BoxXyxy, Pixels
from asap.preprocessing.text import TextCodec, pad_batch
from asap.training.augmentation import Augmentation, augment, names_a_side
from asap.training.batch import Batch, Tokens
from asap.training.losses import IGNORED_TOKEN
from asap.training.objective import MppLabels
from asap.training.targets import (
    box_targets,
    face_box,
    multi_hot,
    patch_labels,
    patch_mask,
    resize_box,
    stack_boxes,
)

DESCRIPTIONS = ("caption", "explanation")
"""The texts of a pair that only some steps read; see `asap.training.step.descriptions_read`."""


@dataclass(frozen=True)
class Sample:
    """A record as a step reads it, before padding."""

    pixels: NDArray[np.uint8]
    """(S, S, 3)."""
    box_xyxy: BoxXyxy | None
    """The box of the manipulated face in pixels of the square picture."""
    types: NDArray[np.float32]
    """(4,), 0 or 1 for each of `asap.labels.TYPES`; all 0 for an authentic pair."""
    text_ids: NDArray[np.int32]
    token_labels: NDArray[np.int32]
    """A label for each token after [CLS]; `IGNORED_TOKEN` for all if the manipulated words are unknown."""
    caption_ids: NDArray[np.int32]
    explanation_ids: NDArray[np.int32]


class _Prepared(NamedTuple):
    """The fields of a record that do not change between epochs."""

    picture: int
    """The row of its picture in the cache."""
    types: NDArray[np.float32]
    box_xyxy: BoxXyxy | None
    may_flip: bool


class _Texts:
    """Sequences of integers in one array. Lists take at least twice the memory, and more than twice as long to pad."""

    def __init__(self) -> None:
        self._values, self._ends = array("i"), array("q", [0])

    def append(self, values: Sequence[int]) -> None:
        """Add a sequence at the end."""
        self._values.extend(values)
        self._ends.append(len(self._values))

    def __getitem__(self, number: int) -> NDArray[np.int32]:
        # A view, not a copy.
        return np.frombuffer(self._values, np.int32)[self._ends[number] : self._ends[number + 1]]


class View(NamedTuple):
    """The fields of a record that decide how an epoch shows its picture."""

    image: ImageAddress
    box_xyxy: BoxXyxy | None
    """The box in pixels of the square picture, before augmentation."""
    may_flip: bool


class _LeftOut(Exception):
    """The record is left out; the report says so already."""


class TrainingSet:
    """Annotated pairs ready to train on.

    Texts are tokenized and boxes are resized at construction; pictures are read when a sample is requested. Pairs whose
    picture is `broken` are left out.
    """

    def __init__(
        self,
        records: Sequence[Record],
        pictures: PictureInfo,
        codec: TextCodec,
        *,
        bad_boxes: BadBox = "refuse",
        report: CorpusReport | None = None,
    ) -> None:
        """Tokenize the texts and resize the boxes.

        Args:
            records: the annotated pairs.
            pictures: the decoded pictures (`PictureCache`), or only their sizes (`PictureInfo`).
            codec: the tokenizer.
            bad_boxes: how to treat a box that covers nothing of its picture; see
                `asap.corpus.annotations.ReadRules`.
            report: receives the pairs whose box is clipped, that are kept without a box, or that are left out.

        Raises `AnnotationError` or `InputError`, naming the record, if a box, position or text cannot be used.
        """
        self.pictures = pictures
        self.codec = codec
        self.pad_id = codec.pad_id
        self._bad_boxes = bad_boxes
        self._report = report or CorpusReport("", "", "")
        self._text, self._labels, self._caption, self._explanation = (_Texts() for _ in range(4))
        ready = [(record, prepared) for record in records if (prepared := self._prepare(record)) is not None]
        self.records = [record for record, _ in ready]
        self._prepared = [prepared for _, prepared in ready]
        self._report.records -= len(records) - len(ready)

    def __len__(self) -> int:
        return len(self.records)

    def _prepare(self, record: Record) -> _Prepared | None:
        """Return the record's fixed fields and keep its tokens; None if it is left out."""
        if record.image in self.pictures.broken:
            self._report.broken_images.add(self.pictures.broken[record.image])
            return None
        try:
            prepared = _Prepared(
                self.pictures.index[record.image],
                multi_hot(record.fake_cls, record.labels).numpy(),
                self._box(record),
                not names_a_side(record.text, record.caption, record.explanation),
            )
            text = self.codec.encode_labeled(record.text, record.fake_text_pos or ())
            caption, explanation = map(self.codec.encode_labeled, (record.caption, record.explanation))
        except _LeftOut:
            return None
        except (AnnotationError, InputError) as error:
            raise type(error)(f"record {record.id}: {error}") from error
        # Nothing is kept before all of the record was understood, so that the texts stay aligned with the records.
        self._text.append(text.input_ids)
        is_labeled = record.fake_text_pos is not None
        self._labels.append(text.token_labels if is_labeled else [IGNORED_TOKEN] * len(text.token_labels))
        self._caption.append(caption.input_ids)
        self._explanation.append(explanation.input_ids)
        return prepared

    def _box(self, record: Record) -> BoxXyxy | None:
        width, height = (int(side) for side in self.pictures.sizes[self.pictures.index[record.image]])
        try:
            box = face_box(record.fake_cls, record.fake_image_box, width, height, record.labels)
        except AnnotationError as error:
            self._report_bad_box(record, error)
            return None
        if box is None:
            return None
        if box != tuple(record.fake_image_box):
            self._report.clipped_boxes.add(f"{list(record.fake_image_box)} in {width} x {height} (id {record.id})")
        return resize_box(box, width, height, self.pictures.image_size)

    def _report_bad_box(self, record: Record, error: AnnotationError) -> None:
        """Report a pair that is kept without its box.

        Raises `AnnotationError` if such boxes are refused, `_LeftOut` if their pairs are skipped.
        """
        if self._bad_boxes == "refuse":
            raise error
        if self._bad_boxes == "skip":
            self._report.skipped.add(f"{error} (id {record.id})")
            raise _LeftOut
        if record.fake_image_box:  # a pair that has no box at all was reported when it was read
            self._report.boxless.add(f"{list(record.fake_image_box)} (id {record.id})")

    def sample(self, number: int, *, augmentation: Augmentation = "none", seed: int = 0, epoch: int = 0) -> Sample:
        """Return the sample of record `number`, its picture read from the cache and augmented.

        The augmentation depends on (seed, epoch, number) alone. Raises `TypeError` if the pictures are not cached.
        """
        if not isinstance(self.pictures, PictureCache):
            raise TypeError("these pictures are not cached. Decode them and pass them to sample_with.")
        prepared = self._prepared[number]
        pixels, box = augment(
            np.asarray(self.pictures.pixels[prepared.picture]), prepared.box_xyxy, seed, epoch, number, augmentation,
            may_flip=prepared.may_flip,
        )  # fmt: skip
        return self.sample_with(number, pixels, box)

    def view(self, number: int) -> View:
        """Return the fields of record `number` that are needed to decode and augment its picture."""
        prepared = self._prepared[number]
        return View(self.records[number].image, prepared.box_xyxy, prepared.may_flip)

    def sample_with(self, number: int, pixels: Pixels, box_xyxy: BoxXyxy | None) -> Sample:
        """Return the sample of record `number` with a picture and box that were augmented elsewhere."""
        prepared = self._prepared[number]
        return Sample(
            pixels=pixels,
            box_xyxy=box_xyxy,
            types=prepared.types,
            text_ids=self._text[number],
            token_labels=self._labels[number],
            caption_ids=self._caption[number],
            explanation_ids=self._explanation[number],
        )


@lru_cache(maxsize=2)
def epoch_order(pairs: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of an epoch, (pairs,). It depends on seed and epoch alone."""
    order = np.random.default_rng((seed, epoch)).permutation(pairs)
    order.flags.writeable = False  # the cached array is shared by all callers
    return order


def collate(
    samples: Sequence[Sample],
    config: ModelConfig,
    pad_id: int,
    *,
    mpp_labels: MppLabels = "published",
    descriptions: Collection[str] = DESCRIPTIONS,
) -> Batch:
    """Pad and stack samples into a batch.

    Patches of a picture whose manipulated face has no known box are ignored.

    Args:
        samples: the samples.
        config: the model, for its image and patch size.
        pad_id: the id of the padding token.
        mpp_labels: the patches labeled for manipulated patch prediction (MPP). `published` labels the patches of a
            manipulated face 1 and the ring around them 0; `authentic` also labels the patches of pictures without a
            manipulated face 0; `dense` labels every other patch 0.
        descriptions: the `DESCRIPTIONS` that the step reads; the others have no tokens.
    """

    def padded(name: str) -> Tokens:
        if name not in descriptions:
            return Tokens(*(torch.zeros(len(samples), 0, dtype=torch.long) for _ in Tokens._fields))
        return Tokens(*pad_batch([getattr(sample, f"{name}_ids") for sample in samples], pad_id))

    boxes_B4, has_box_B = stack_boxes([sample.box_xyxy for sample in samples])
    mask_BP = patch_mask(boxes_B4, has_box_B, config.image_size, config.patch_size)
    labels_BP = mask_BP
    if mpp_labels != "dense":
        labels_BP = patch_labels(mask_BP, authentic=0.0 if mpp_labels == "authentic" else -1.0)
    types_B4 = torch.from_numpy(np.stack([sample.types for sample in samples]))
    # With an image type but no box, a manipulated face is somewhere in the picture: its patches are unknown.
    unknown_B = types_B4[:, : len(IMAGE_TYPES)].any(dim=1) & ~has_box_B
    return Batch(
        images=torch.from_numpy(np.stack([sample.pixels for sample in samples])),
        text=Tokens(*pad_batch([sample.text_ids for sample in samples], pad_id)),
        caption=padded("caption"),
        explanation=padded("explanation"),
        manipulated=types_B4.any(dim=1),
        types=types_B4,
        box_cxcywh=box_targets(boxes_B4, config.image_size),
        has_box=has_box_B,
        token_labels=pad_batch([sample.token_labels for sample in samples], IGNORED_TOKEN)[0],
        patch_mask=mask_BP,
        patch_labels=labels_BP.masked_fill(unknown_B[:, None], -1.0),
    )
