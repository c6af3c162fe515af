"""A model judged on labelled pairs: the DGM4 evaluation, in batches. The one path from a model to its figures."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asap.batch import Batch
from asap.dataset import PictureCache, Record, TrainingSet, collate
from asap.errors import InputError
from asap.images import PreparedImage, prepare_image
from asap.metrics import Evaluation
from asap.model import Asap
from asap.text import TextCodec
from jobs.fit import Split


def judge(model: Asap, split: Split, batch_size: int = 64) -> dict[str, Any]:
    """Every figure of `asap.metrics.Evaluation` for the pairs of the split. Leaves the model in its mode."""
    evaluation, was_training = Evaluation(), model.training
    model.eval()
    for start in range(0, len(split.pairs), batch_size):
        judge_batch(evaluation, model, split.pairs, range(start, min(start + batch_size, len(split.pairs))))
    model.train(was_training)
    return evaluation.compute()


def judge_records(
    model: Asap, codec: TextCodec, records: Sequence[Record], batch_size: int = 64, threads: int = 1
) -> Evaluation:
    """Judge records whose pictures nobody has decoded yet, holding one batch of them at a time.

    `threads`: for decoding. Raises `AnnotationError` or `InputError`, naming the picture or record.
    """
    evaluation = Evaluation()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(records), batch_size):
            some = records[start : start + batch_size]
            pictures = _decode(some, model.config.image_size, pool)
            judge_batch(evaluation, model, TrainingSet(some, pictures, codec), range(len(some)))
    return evaluation


@torch.inference_mode()
def judge_batch(evaluation: Evaluation, model: Asap, pairs: TrainingSet, numbers: range) -> None:
    """Add some of the pairs to an evaluation. The model is in eval mode, on whichever device."""
    batch = collate([pairs.sample(number) for number in numbers], model.config, pairs.pad_id)
    published_BL = _published_labels(pairs, numbers, batch)
    batch = batch.to(next(model.parameters()).device)
    output = model(batch.images, *batch.text)
    evaluation.update(output, batch.types, batch.box_cxcywh, batch.token_labels, published_BL)


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

    def prepare(path: Path) -> PreparedImage:
        try:
            return prepare_image(path, image_size)
        except InputError as error:
            raise type(error)(f"picture {path}: {error}") from error

    paths = list(dict.fromkeys(record.image for record in records))
    pictures = list(pool.map(prepare, paths))
    sizes = np.array([(picture.width, picture.height) for picture in pictures], np.int32)
    pixels = np.stack([picture.pixels for picture in pictures])
    return PictureCache(pixels, sizes, {path: row for row, path in enumerate(paths)})
