"""Evaluation of a model on labeled pairs, in batches. Every figure of a model is computed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asap.corpus.annotations import BadBox
from asap.corpus.picture_cache import PictureCache, decode_picture, read_picture
from asap.corpus.reader import Record
from asap.evaluation.metrics import Evaluation
from asap.familiarity import Familiarity, PairFeatures
from asap.labels import IMAGE_TYPES
from asap.model.activations import EarlyActivations, text_features, text_sums, token_features
from asap.model.asap import Asap
from asap.preprocessing.text import TextCodec
from asap.training.batch import Batch
from asap.training.dataset import TrainingSet, collate
from asap.training.distributed import gather_objects, rank, world_size
from asap.training.losses import IGNORED_TOKEN


def evaluate_split(model: Asap, pairs: TrainingSet, batch_size: int = 64, *, elsewhere: bool = False) -> dict[str, Any]:
    """Return every figure of `asap.evaluation.metrics.Evaluation` for the pairs of a split.

    The arguments are those of `predict_split`, whose predictions `asap.evaluation.intervals` needs.
    """
    return predict_split(model, pairs, batch_size, elsewhere=elsewhere).compute()


def predict_split(
    model: Asap,
    pairs: TrainingSet,
    batch_size: int = 64,
    *,
    elsewhere: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Evaluate the pairs of a split.

    The model is evaluated in eval mode; its former mode is restored afterwards.

    Args:
        model: the model, on any device.
        pairs: the pairs. Pictures that are not cached are decoded batch by batch.
        batch_size: pairs in a batch.
        elsewhere: also evaluate each text beside the picture of another pair; see `evaluate_batch`.
        progress: receives the number of evaluated pairs and of all pairs.
    """

    def watched() -> Iterator[int]:
        for start in range(0, len(pairs), batch_size):
            progress(start, len(pairs))
            yield start

    evaluation = _merged(_evaluate_batches(model, pairs, watched(), batch_size, elsewhere=elsewhere))
    progress(len(pairs), len(pairs))
    return evaluation


def evaluate_split_together(model: Asap, pairs: TrainingSet, batch_size: int = 64) -> dict[str, Any]:
    """Return the report of `evaluate_split`, with the batches of the split divided among the workers.

    Every worker must call this with the same weights and pairs. The report is that of one worker to the bit: the
    batches are the same ones, and they are merged in their order.
    """
    own = range(rank() * batch_size, len(pairs), world_size() * batch_size)
    parts = gather_objects(_evaluate_batches(model, pairs, own, batch_size))
    taken_in_turns = (batch for turn in zip_longest(*parts) for batch in turn)
    return _merged(batch for batch in taken_in_turns if batch is not None).compute()


def _merged(batches: Iterable[Evaluation]) -> Evaluation:
    """Return the evaluation of all batches."""
    evaluation = Evaluation()
    for batch in batches:
        evaluation.merge(batch)
    return evaluation


def _evaluate_batches(
    model: Asap, pairs: TrainingSet, starts: Iterable[int], batch_size: int, *, elsewhere: bool = False
) -> list[Evaluation]:
    """Return the evaluation of each batch that begins at one of the positions; see `evaluate_split`."""
    was_training = model.training
    model.eval()
    evaluations = []
    # One pool for all batches. It starts no thread before a picture is to be decoded.
    with ThreadPoolExecutor(max(2, torch.get_num_threads())) as pool:
        for start in starts:
            batch, numbers = pairs, range(start, min(start + batch_size, len(pairs)))
            if not isinstance(pairs.pictures, PictureCache):
                # The training set has applied its rule for bad boxes already: a pair that is still there was kept
                # without one.
                records = pairs.records[start : numbers.stop]
                batch = _with_pictures(records, pairs.codec, "boxless", model.config.image_size, pool)
                numbers = range(len(records))
            evaluation = Evaluation()
            evaluate_batch(evaluation, model, batch, numbers, elsewhere=elsewhere)
            evaluations.append(evaluation)
    model.train(was_training)
    return evaluations


def evaluate_records(
    model: Asap,
    codec: TextCodec,
    records: Sequence[Record],
    batch_size: int = 64,
    threads: int = 1,
    bad_boxes: BadBox = "refuse",
    *,
    elsewhere: bool = False,
    familiarity: Familiarity | None = None,
) -> Evaluation:
    """Evaluate records whose pictures are not decoded yet, with the pictures of one batch in memory at a time.

    Args:
        model: the model in eval mode, on any device.
        codec: the tokenizer of the model.
        records: the annotated pairs.
        batch_size: pairs in a batch.
        threads: threads that decode pictures.
        bad_boxes: how to treat a pair whose box is missing, is not a box, or covers nothing of its picture. `refuse`
            raises `AnnotationError`; `boxless` keeps the pair, with no true box that a prediction could match. `skip`
            is not for evaluations, in which every record counts. See `asap.corpus.annotations.ReadRules`.
        elsewhere: also evaluate each text beside the picture of another pair; see `evaluate_batch`.
        familiarity: the familiarity of the model, for the familiarity of each pair.

    Raises:
        AnnotationError: a box, position or class cannot be used; the message names the record.
        InputError: a picture or text cannot be used; the message names the picture or record.
        StorageError: a picture cannot be read.
    """
    evaluation = Evaluation()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(records), batch_size):
            some = records[start : start + batch_size]
            pairs = _with_pictures(some, codec, bad_boxes, model.config.image_size, pool)
            evaluate_batch(evaluation, model, pairs, range(len(some)), elsewhere=elsewhere, familiarity=familiarity)
    return evaluation


@torch.inference_mode()
def evaluate_batch(
    evaluation: Evaluation,
    model: Asap,
    pairs: TrainingSet,
    numbers: range,
    *,
    elsewhere: bool = False,
    familiarity: Familiarity | None = None,
) -> None:
    """Add some of the pairs to an evaluation.

    Args:
        evaluation: the evaluation that receives predictions and targets.
        model: the model in eval mode, on any device.
        pairs: the pairs, whose pictures are cached.
        numbers: the numbers of the pairs in `pairs`.
        elsewhere: also evaluate each text beside the picture of the pair before it in the batch, which runs the fusion
            encoder once more. The evaluation then reports the AP of the text types for these texts (`AP_elsewhere`),
            which shows how much the picture contributes. A batch of one pair has no other picture and is left out.
        familiarity: the familiarity of the model. Its features come from the same pass, and so from the part of a long
            text that this pass holds.
    """
    samples = [pairs.sample(number) for number in numbers]
    batch = collate(samples, model.config, pairs.pad_id, descriptions=())
    fake_cls = [pairs.records[number].fake_cls for number in numbers]
    items = [(str(pairs.records[number].image), pairs.records[number].id) for number in numbers]
    published_BL = _published_labels(pairs, numbers, batch)
    batch = batch.to(next(model.parameters()).device).normalized()
    text_BLW = model.encode_text(*batch.text)
    familiarity_B = None
    if familiarity is None:
        image_BNW = model.encode_image(batch.images)
    else:
        image_BNW, image_BD = EarlyActivations(model).encode_image(batch.images)
        text_BD = text_features(text_sums(text_BLW, batch.text.mask))
        features = PairFeatures(image_BD.cpu(), token_features(image_BNW).cpu(), text_BD.cpu())
        familiarity_B = [familiar.pair for familiar in familiarity.of_pairs(features, [False] * len(numbers))]
    output = model.predict(model.fuse(image_BNW, text_BLW, batch.text.mask))
    text_types_B2 = None
    if elsewhere and len(numbers) > 1:  # a single pair has no other picture in its batch
        other = model.predict(model.fuse(image_BNW.roll(1, dims=0), text_BLW, batch.text.mask))
        text_types_B2 = other.logits_multilabel[:, len(IMAGE_TYPES) :]
    evaluation.update(
        output,
        batch.types,
        batch.box_cxcywh,
        batch.token_labels,
        published_BL,
        text_types_B2,
        fake_cls,
        familiarity_B,
        items,
    )


def _published_labels(pairs: TrainingSet, numbers: range, batch: Batch) -> Tensor:
    """Return the token labels of the published alignment, (B, L), padded and ignored like the batch's own."""
    labels_BL = torch.full_like(batch.token_labels, IGNORED_TOKEN)
    for row, number in enumerate(numbers):
        record = pairs.records[number]
        if record.fake_text_pos is None:
            continue
        labels = pairs.codec.label_as_published(record.text, record.fake_text_pos)
        labels_BL[row, : len(labels)] = torch.tensor(labels)
    return labels_BL


def _with_pictures(
    records: Sequence[Record], codec: TextCodec, bad_boxes: BadBox, image_size: int, pool: ThreadPoolExecutor
) -> TrainingSet:
    """Return a batch of records whose pictures are decoded into memory; one that several share is decoded once."""
    addresses = list(dict.fromkeys(record.image for record in records))
    pictures = list(pool.map(lambda address: decode_picture(address, image_size, read_picture), addresses))
    sizes = np.array([(picture.width, picture.height) for picture in pictures], np.int32)
    pixels = np.stack([picture.pixels for picture in pictures])
    cache = PictureCache(pixels, sizes, {address: row for row, address in enumerate(addresses)})
    return TrainingSet(records, cache, codec, bad_boxes=bad_boxes)
