"""A model judged on labelled pairs: the DGM4 evaluation, in batches. The one path from a model to its figures."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asap.corpus.annotations import BadBox
from asap.corpus.picture_cache import PictureCache, decode_picture, read_picture
from asap.evaluation.metrics import Evaluation
from asap.labels import IMAGE_TYPES
from asap.model.asap import Asap
from asap.preprocessing.text import TextCodec
from asap.training.batch import Batch
from asap.training.dataset import Record, TrainingSet, collate


def evaluate_split(model: Asap, pairs: TrainingSet, batch_size: int = 64, *, elsewhere: bool = False) -> dict[str, Any]:
    """Every figure of `asap.evaluation.metrics.Evaluation` for the pairs of the split. Leaves the model in its mode.

    `elsewhere`: see `evaluate_batch`.
    """
    was_training = model.training
    model.eval()
    if isinstance(pairs.pictures, PictureCache):
        evaluation = Evaluation()
        for start in range(0, len(pairs), batch_size):
            numbers = range(start, min(start + batch_size, len(pairs)))
            evaluate_batch(evaluation, model, pairs, numbers, elsewhere=elsewhere)
    else:
        threads = max(2, torch.get_num_threads())
        evaluation = evaluate_records(
            model, pairs.codec, pairs.records, batch_size, threads, "boxless", elsewhere=elsewhere
        )
    model.train(was_training)
    return evaluation.compute()


def evaluate_records(
    model: Asap,
    codec: TextCodec,
    records: Sequence[Record],
    batch_size: int = 64,
    threads: int = 1,
    bad_boxes: BadBox = "refuse",
    *,
    elsewhere: bool = False,
) -> Evaluation:
    """Judge records whose pictures nobody has decoded yet, holding one batch of them at a time.

    `threads`: for decoding. `bad_boxes`: see `TrainingSet`. `elsewhere`: see `evaluate_batch`. Raises `AnnotationError`
    or `InputError`, naming the picture or record, `StorageError`.
    """
    evaluation = Evaluation()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(records), batch_size):
            some = records[start : start + batch_size]
            pictures = _decode(some, model.config.image_size, pool)
            pairs = TrainingSet(some, pictures, codec, bad_boxes=bad_boxes)
            evaluate_batch(evaluation, model, pairs, range(len(some)), elsewhere=elsewhere)
    return evaluation


@torch.inference_mode()
def evaluate_batch(
    evaluation: Evaluation, model: Asap, pairs: TrainingSet, numbers: range, *, elsewhere: bool = False
) -> None:
    """Add some of the pairs to an evaluation. The model is in eval mode, on whichever device.

    `elsewhere`: judge each text beside the picture of the pair before it too, which fuses once more.
    """
    batch = collate([pairs.sample(number) for number in numbers], model.config, pairs.pad_id)
    fake_cls = [pairs.records[number].fake_cls for number in numbers]
    published_BL = _published_labels(pairs, numbers, batch)
    batch = batch.to(next(model.parameters()).device)
    image_BNW, text_BLW = model.encode_image(batch.images), model.encode_text(*batch.text)
    output = model.predict(model.fuse(image_BNW, text_BLW, batch.text.mask))
    text_types_B2 = None
    if elsewhere and len(numbers) > 1:  # one pair has no other beside it
        other = model.predict(model.fuse(image_BNW.roll(1, dims=0), text_BLW, batch.text.mask))
        text_types_B2 = other.logits_multilabel[:, len(IMAGE_TYPES) :]
    evaluation.update(output, batch.types, batch.box_cxcywh, batch.token_labels, published_BL, text_types_B2, fake_cls)


def _published_labels(pairs: TrainingSet, numbers: range, batch: Batch) -> Tensor:
    """(B, L) in step with the batch's token labels."""
    labels_BL = torch.full_like(batch.token_labels, -100)
    for row, number in enumerate(numbers):
        record = pairs.records[number]
        labels = pairs.codec.label_as_published(record.text, record.fake_text_pos)
        labels_BL[row, : len(labels)] = torch.tensor(labels)
    return labels_BL


def _decode(records: Sequence[Record], image_size: int, pool: ThreadPoolExecutor) -> PictureCache:
    """The pictures of a batch, in memory."""
    places = list(dict.fromkeys(record.image for record in records))
    pictures = list(pool.map(lambda place: decode_picture(place, image_size, read_picture), places))
    sizes = np.array([(picture.width, picture.height) for picture in pictures], np.int32)
    pixels = np.stack([picture.pixels for picture in pictures])
    return PictureCache(pixels, sizes, {place: row for row, place in enumerate(places)})
