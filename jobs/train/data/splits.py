"""The splits of a run: read the corpus, decode or measure its pictures, and write an index for all workers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from asap.corpus.picture_cache import PictureCache, PictureInfo, PictureSizes, read_picture
from asap.corpus.reader import SPLITS, Corpus, Record, fingerprint
from asap.corpus.report import SHOWN
from asap.errors import CorpusError
from asap.labels import is_manipulated
from asap.model.config import ModelConfig
from asap.preprocessing.text import TextCodec, load_tokenizer
from asap.training.dataset import TrainingSet
from jobs.corpus import read_corpus
from jobs.settings import CorpusSettings
from jobs.train.data.split_index import about_index, read_index, write_index
from jobs.train.data.stream import Decoding, measure_pictures
from jobs.train.events import OnEvent
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings

Ingest = Literal["cache", "stream"]


def read_splits(settings: TrainSettings, label_set: str) -> dict[str, Corpus]:
    """Read every split of a run. Raises `CorpusError`, `AnnotationError` or `StorageError`."""
    corpora = {
        split: read_corpus(settings, settings.corpus, split, label_set)
        for split in SPLITS
        if split != "test" or not settings.test_corpus
    }
    if settings.test_corpus:
        # Another corpus follows the same rules, but the files that the settings name belong to `corpus`.
        rules = settings.model_dump(include={"missing_images", "bad_boxes", "stray_positions"})
        corpora["test"] = read_corpus(CorpusSettings(**rules), settings.test_corpus, "test", label_set)
    return corpora


def data_of(corpus: Corpus) -> dict[str, Any]:
    """Return the number and the fingerprint of a split's pairs, by which a run recognizes its data."""
    return {"pairs": len(corpus.records), "fingerprint": fingerprint(corpus.records)}


def single_class_notes(settings: TrainSettings, corpora: dict[str, Corpus]) -> list[str]:
    """Return a sentence for the training pairs, and for the pairs of each validation, if all have one real/fake label.

    Such a run is possible, but it learns no difference, or cannot tell its checkpoints apart.
    """
    notes = []
    validation = corpora["val"].records[: settings.validation_pairs or None]
    for which, records in (("training", corpora["train"].records), ("validation", validation)):
        labels = {is_manipulated(record.fake_cls, record.labels) for record in records}
        if len(labels) == 1:
            kind = "manipulated" if labels.pop() else "authentic"
            follows = "the model learns no difference"
            if which == "validation":
                follows = "no checkpoint has an AUC, so the last one becomes the model"
            notes.append(f"the {which} pairs ({len(records):,}) are all {kind}: {follows}")
    return notes


def choose_ingest(settings: TrainSettings, corpora: dict[str, Corpus], image_size: int) -> Ingest:
    """Return the requested ingest; for `auto`, the cache if all pictures are on this machine and fit in it."""
    if settings.ingest != "auto":
        return settings.ingest
    pictures = {record.image for corpus in corpora.values() for record in corpus.records}
    fits = len(pictures) * image_size**2 * 3 <= settings.cache_gib * 2**30
    return "cache" if fits and not any(isinstance(address, str) for address in pictures) else "stream"


def prepare_splits(
    folder: RunFolder, settings: TrainSettings, corpora: dict[str, Corpus], config: ModelConfig, progress: OnEvent
) -> None:
    """Decode or measure the pictures of every split, check every record, and write the indexes and `corpus.json`.

    A picture that cannot be decoded is left out with its pairs, as a missing picture is, and counts towards the same
    limit. All pictures are tried before the first step, which costs as much as decoding for one epoch. So the order of
    an epoch is known for either ingest, and one bad file does not end a run of days. A later start of the run finds the
    result in the index, on any machine and for either ingest.

    Args:
        folder: The folder of the run; it holds the tokenizer already.
        settings: The settings of the run.
        corpora: The splits as `read_splits` returned them.
        config: The configuration of the model.
        progress: A function that gets the events of `jobs.train.events`.

    Raises `CorpusError` if too many pictures are missing or broken, `AnnotationError` or `InputError` for a record that
    cannot be used, and `StorageError`.
    """
    ingest = choose_ingest(settings, corpora, config.image_size)
    codec = _codec(folder, config)
    for split, corpus in corpora.items():
        about = data_of(corpus) | {"image_size": config.image_size, "ingest": ingest}
        pictures = _indexed_pictures(folder.index(split), corpus, about)
        if pictures is None:
            pictures = _decode_or_measure(folder, split, corpus, config.image_size, ingest, progress)
            write_index(folder.index(split), corpus.records, pictures, about)
            folder.push("index")  # now, because the next split may take hours
        # This checks the records and adds the findings to the report. The pixels are not needed for it.
        TrainingSet(corpus.records, pictures, codec, bad_boxes=settings.bad_boxes, report=corpus.report)
        _check_broken_pictures(corpus, settings.missing_images)
    reports = {split: data_of(corpus) | corpus.report.to_dict() for split, corpus in corpora.items()}
    folder.corpus.write_text(json.dumps({"ingest": ingest} | reports, indent=2) + "\n", encoding="utf-8")
    progress(corpus_event(corpora, ingest))


def corpus_event(corpora: dict[str, Corpus], ingest: Ingest) -> dict[str, Any]:
    """Return the event that reports the findings in each split, and where the pictures come from."""
    return {"corpus": [line for corpus in corpora.values() for line in corpus.report.lines()], "ingest": ingest}


def _indexed_pictures(file: Path, corpus: Corpus, about: dict[str, Any]) -> PictureInfo | None:
    """Return the sizes of the pictures from the index of an earlier start; None if there is none for these data.

    Pictures may lie elsewhere on this machine, or be read in another way. The index is then written anew, from what it
    knows about them.
    """
    found = about_index(file)
    if found is None or any(found.get(name) != value for name, value in about.items() if name != "ingest"):
        return None
    index = read_index(file)
    known = index.pictures
    if found == about and all(
        old.image == record.image for old, record in zip(index.records, corpus.records, strict=True)
    ):
        return known
    # Equal fingerprints mean the same records in the same order.
    former = {record.image: old.image for old, record in zip(index.records, corpus.records, strict=True)}
    pictures = PictureSizes(
        known.sizes[[known.index[old] for old in former.values()]],
        {image: row for row, image in enumerate(former)},
        known.image_size,
        {image: known.broken[old] for image, old in former.items() if old in known.broken},
    )
    write_index(file, corpus.records, pictures, about)
    return pictures


def cache_pictures(folder: RunFolder, config: ModelConfig, progress: OnEvent) -> None:
    """Decode the pictures of training and validation on this machine, unless its cache has them or the run streams.

    A run at s3:// does not keep the caches there: they are large and can be made from the corpus. A start on another
    machine makes those that its workers read.
    """
    for split in ("train", "val"):
        index = read_index(folder.index(split))
        is_made = PictureCache.is_made(index.records, config.image_size, folder.pictures)
        if index.about["ingest"] == "cache" and not is_made:
            on_done = _picture_counter(split, index.records, progress)
            PictureCache.prepare(
                index.records, config.image_size, folder.pictures, on_done, read_picture, keep_broken=True
            )


def _picture_counter(split: str, records: Sequence[Record], progress: OnEvent) -> Callable[[int], None]:
    """Return a function that reports the number of pictures of a split that are decoded."""
    stage = {"stage": f"decoding {split} pictures", "total": len({record.image for record in records})}
    return lambda done: progress(stage | {"done": done})


def _decode_or_measure(
    folder: RunFolder, split: str, corpus: Corpus, image_size: int, ingest: Ingest, progress: OnEvent
) -> PictureInfo:
    """Decode every picture of a split: into the cache, or only to measure it for a stream."""
    on_done = _picture_counter(split, corpus.records, progress)
    on_done(0)
    if ingest == "stream":
        return measure_pictures(corpus.records, image_size, on_done, Decoding.alone())
    return PictureCache.prepare(corpus.records, image_size, folder.pictures, on_done, read_picture, keep_broken=True)


def _check_broken_pictures(corpus: Corpus, allowed: float) -> None:
    """Raise `CorpusError` if a split has broken pictures, and more than the allowed fraction cannot be used."""
    report = corpus.report
    unusable = report.missing_pairs + report.broken_images.count
    if report.broken_images and unusable > allowed * report.rows:
        raise CorpusError(
            f"the pictures of {unusable} of {report.rows} pairs of {report.split} in {report.corpus} are missing or "
            f"cannot be decoded, which is {unusable / report.rows:.2%} where missing_images allows {allowed:.2%}: "
            f"{'; '.join(report.broken_images.examples[:SHOWN])}. Replace these pictures, or raise missing_images."
        )


@dataclass(frozen=True)
class Split:
    """A split of the corpus, ready for training or evaluation."""

    pairs: TrainingSet
    config: ModelConfig

    @classmethod
    def open(
        cls,
        settings: TrainSettings,
        folder: RunFolder,
        split: str,
        config: ModelConfig,
        limit: int = 0,
        may_decode: bool = True,
    ) -> Split:
        """Open a split that `prepare_splits` prepared. Raises `CorpusError` if a picture has become unreadable since.

        Args:
            settings: The settings of the run.
            folder: The folder of the run.
            split: The name of the split: train, val or test.
            config: The configuration of the model.
            limit: Maximum number of pairs, taken from the start; 0 for all.
            may_decode: False to leave the pictures as they are if this machine has no cache of them.
        """
        index = read_index(folder.index(split))
        pictures: PictureInfo = index.pictures
        is_cached = index.about["ingest"] == "cache"
        if is_cached and (may_decode or PictureCache.is_made(index.records, config.image_size, folder.pictures)):
            cache = PictureCache.prepare(
                index.records, config.image_size, folder.pictures, read=read_picture, keep_broken=True
            )
            if lost := [message for image, message in cache.broken.items() if image not in pictures.broken]:
                raise CorpusError(f"{lost[0]}. It could be decoded when this run began. Restore the picture.")
            # The index has the reason why a picture is broken; the cache has only its size of 0.
            pictures = dataclasses.replace(cache, broken=pictures.broken)
        records = index.records[: limit or None]
        return cls(TrainingSet(records, pictures, _codec(folder, config), bad_boxes=settings.bad_boxes), config)


def _codec(folder: RunFolder, config: ModelConfig) -> TextCodec:
    return TextCodec(load_tokenizer(folder.tokenizer), max_words=config.max_words, max_tokens=config.max_tokens)
