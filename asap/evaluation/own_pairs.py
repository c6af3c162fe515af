"""Familiarity of a model, fitted to the pairs of its own corpus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from asap.corpus.picture_cache import read_picture
from asap.corpus.reader import Record
from asap.errors import ConfigError, InputError
from asap.familiarity import MIN_PAIRS, Familiarity, PairFeatures
from asap.finding import Pair
from asap.predictor import Predictor
from asap.preprocessing.changes import CHANGES, Change
from asap.preprocessing.images import decode_image

MOST_PAIRS = 50_000
"""Pairs of each split that are read at most. More would change no verdict and take memory."""
CHANGED_PAIRS = 1_500
"""Authentic pairs whose pictures are changed, in each of the ways of `asap.preprocessing.changes`."""
_CHUNK_BATCHES = 16
_READERS = 8
"""Threads that read pictures; those of a bucket take a round trip each."""


def fit_familiarity(
    predictor: Predictor,
    known: Sequence[Record],
    held_out: Sequence[Record],
    *,
    weights_sha256: str,
    corpus: str,
    most_pairs: int = MOST_PAIRS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Familiarity:
    """Fit the familiarity of a model to annotated pairs. The same pairs give the same result.

    Args:
        predictor: the model.
        known: pairs of the training; the distributions are fitted to them.
        held_out: pairs that training never saw, authentic and manipulated. Those that are among the known ones are
            left out.
        weights_sha256: the SHA-256 of the model's weights.
        corpus: a description of the pairs.
        most_pairs: pairs of each that are read at most; a seeded sample is drawn from more.
        progress: receives the number of pairs read and of all pairs to read.

    Raises:
        ConfigError: if fewer than `MIN_PAIRS` of either can be read.
        StorageError: if a bucket cannot be read.
    """
    samples = _sample(known, most_pairs), _sample(without(held_out, known), most_pairs)
    if min(map(len, samples)) < MIN_PAIRS:  # known before anything is read
        raise ConfigError(
            f"{len(samples[0]):,} training pairs and {len(samples[1]):,} held-out pairs are too few, since familiarity "
            f"needs {MIN_PAIRS:,} of each."
        )
    # Pairs that share a picture would show the same changes.
    pictures = {record.image: record for record in reversed(samples[0]) if not record.labels.types_of(record.fake_cls)}
    authentic = _sample(list(reversed(pictures.values())), CHANGED_PAIRS)
    total = sum(map(len, samples)) + len(CHANGES) * len(authentic)
    fitted = _features(predictor, samples[0], lambda done: progress(done, total))
    compared = _features(predictor, samples[1], lambda done: progress(len(samples[0]) + done, total))
    read = sum(map(len, samples))
    changed = []
    for change in CHANGES.values():
        changed.append(_falsely_flagged(predictor, authentic, change))
        read += len(authentic)
        progress(read, total)
    about = {"weights_sha256": weights_sha256, "corpus": corpus}
    return Familiarity.fit(fitted, compared, about, changed)


def without(records: Sequence[Record], others: Sequence[Record]) -> list[Record]:
    """Return the records whose pair of picture and text is not among the other records."""
    pairs = {(record.image, record.text) for record in others}
    return [record for record in records if (record.image, record.text) not in pairs]


def read_pair(record: Record) -> Pair:
    """Return the pair of a record. A picture that cannot be read fails in the predictor, as that pair's error."""
    try:
        return Pair(read_picture(record.image), record.text)
    except InputError:
        return Pair(None, record.text)


def _sample(records: Sequence[Record], most: int) -> Sequence[Record]:
    """Return the records, or a seeded sample of them, in their order."""
    if len(records) <= most:
        return records
    numbers = np.random.default_rng(0).choice(len(records), most, replace=False)
    return [records[number] for number in np.sort(numbers)]


def _features(predictor: Predictor, records: Sequence[Record], progress: Callable[[int], None]) -> PairFeatures:
    """Return the features of the records that can be read, with the pictures of a few batches in memory at a time."""
    parts: list[PairFeatures] = []
    chunk = _CHUNK_BATCHES * predictor.batch_size
    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(records), chunk):
            pairs = list(readers.map(read_pair, records[start : start + chunk]))
            try:
                features = predictor.features(pairs)
            except InputError:  # none of these pairs can be read
                continue
            finally:
                progress(start + len(pairs))
            parts.append(features)
    if not parts:
        return PairFeatures(*(torch.zeros(0, 0) for _ in PairFeatures._fields))
    return PairFeatures.joined(parts)


def _falsely_flagged(predictor: Predictor, records: Sequence[Record], change: Change) -> torch.Tensor:
    """Return the features of the changed pictures that the model flags, (N, D), from authentic records."""
    found = []

    def changed_pair(record: Record) -> Pair:
        pair = read_pair(record)
        try:
            return Pair(change(decode_image(pair.image).image), pair.text)
        except InputError:
            return Pair(None, pair.text)

    chunk = _CHUNK_BATCHES * predictor.batch_size
    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(records), chunk):
            pairs = list(readers.map(changed_pair, records[start : start + chunk]))
            scores = [finding.score or 0.0 for finding in predictor.predict(pairs)]
            if flagged := [pair for pair, score in zip(pairs, scores, strict=True) if score >= 0.5]:
                found.append(predictor.features(flagged).whole_image)
    return torch.cat(found) if found else torch.zeros(0, 0)
