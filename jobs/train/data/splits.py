"""The splits of a run before it starts: read, their pictures decoded or measured, and an index left for all workers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from asap.corpus.picture_cache import PictureCache, PictureInfo, read_picture
from asap.corpus.reader import SPLITS, Corpus, fingerprint
from asap.corpus.report import SHOWN, CorpusReport
from asap.errors import CorpusError
from asap.model.config import ModelConfig
from asap.preprocessing.text import TextCodec, load_tokenizer
from asap.training.dataset import TrainingSet
from jobs.corpus import read_corpus
from jobs.settings import CorpusSettings
from jobs.train.data.split_index import about_index, read_index, write_index
from jobs.train.data.stream import measure_pictures
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings

Ingest = Literal["cache", "stream"]
OnEvent = Callable[[dict[str, Any]], None]


def read_splits(settings: TrainSettings, label_set: str) -> dict[str, Corpus]:
    """Every split of a run. Raises `CorpusError`, `AnnotationError`, `StorageError`."""
    corpora = {
        split: read_corpus(settings, settings.corpus, split, label_set)
        for split in SPLITS
        if split != "test" or not settings.test_corpus
    }
    if settings.test_corpus:
        rules = settings.model_dump(include={"missing_images", "bad_boxes", "stray_positions"})
        corpora["test"] = read_corpus(CorpusSettings(**rules), settings.test_corpus, "test", label_set)
    return corpora


def data_of(corpus: Corpus) -> dict[str, Any]:
    """What a run remembers of a split that it learns from."""
    return {"pairs": len(corpus.records), "fingerprint": fingerprint(corpus.records)}


def choose_ingest(settings: TrainSettings, corpora: dict[str, Corpus], image_size: int) -> Ingest:
    """The cache where every picture lies on this machine and all of them fit, else the stream; or what is asked for."""
    if settings.ingest != "auto":
        return settings.ingest
    pictures = {record.image for corpus in corpora.values() for record in corpus.records}
    fits = len(pictures) * image_size**2 * 3 <= settings.cache_gib * 2**30
    return "cache" if fits and not any(isinstance(place, str) for place in pictures) else "stream"


def prepare_splits(
    folder: RunFolder, settings: TrainSettings, corpora: dict[str, Corpus], config: ModelConfig, progress: OnEvent
) -> None:
    """Decode or measure the pictures of every split, try every record, and keep what was found.

    A picture that cannot be decoded is left out with its pairs, as one that is missing, and under the same share. All
    are tried before the first step, at the cost of one epoch's decoding: so the order of an epoch is known, whichever
    way the pictures come, and one bad file does not end a run of days. Raises `CorpusError` above the share,
    `AnnotationError` or `InputError` for a record, `StorageError`.
    """
    ingest = choose_ingest(settings, corpora, config.image_size)
    for split, corpus in corpora.items():
        about = data_of(corpus) | {"image_size": config.image_size, "ingest": ingest}
        if about_index(folder.index(split)) != about:
            pictures = _look_at_pictures(folder, split, corpus, config.image_size, ingest, progress)
            write_index(folder.index(split), corpus.records, pictures, about)
        Split.open(settings, folder, split, config, report=corpus.report)
        _check_broken(corpus, settings.missing_images)
    told = {split: data_of(corpus) | corpus.report.to_dict() for split, corpus in corpora.items()}
    folder.corpus.write_text(json.dumps({"ingest": ingest} | told, indent=2) + "\n", encoding="utf-8")
    progress(corpus_event(corpora, ingest))


def corpus_event(corpora: dict[str, Corpus], ingest: Ingest) -> dict[str, Any]:
    """What a run tells of its corpus: the lines of the splits' reports, and which way their pictures come."""
    return {"corpus": [line for corpus in corpora.values() for line in corpus.report.lines()], "ingest": ingest}


def _look_at_pictures(
    folder: RunFolder, split: str, corpus: Corpus, image_size: int, ingest: Ingest, progress: OnEvent
) -> PictureInfo:
    stage = {"stage": f"{split} pictures", "total": len({record.image for record in corpus.records})}

    def tell(done: int) -> None:
        progress(stage | {"done": done})

    if ingest == "stream":
        return measure_pictures(corpus.records, image_size, tell)
    return PictureCache.prepare(corpus.records, image_size, folder.pictures, tell, read_picture, keep_broken=True)


def _check_broken(corpus: Corpus, allowed: float) -> None:
    report = corpus.report
    unusable = report.missing_pairs + report.broken_images.count
    if report.broken_images and unusable > allowed * report.rows:
        raise CorpusError(
            f"the pictures of {unusable} of {report.rows} pairs of {report.split} in {report.corpus} are missing or "
            f"cannot be decoded, {unusable / report.rows:.2%} where missing_images allows {allowed:.2%}: "
            f"{'; '.join(report.broken_images.examples[:SHOWN])}; replace them, or raise it"
        )


@dataclass(frozen=True)
class Split:
    """A split of the corpus, ready to train on or to judge."""

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
        report: CorpusReport | None = None,
    ) -> Split:
        """Open a split as the driver left it. `limit` keeps the first so many pairs; `report`: see `TrainingSet`."""
        codec = TextCodec(load_tokenizer(folder.tokenizer), max_words=config.max_words, max_tokens=config.max_tokens)
        index = read_index(folder.index(split))
        pictures: PictureInfo = index.pictures
        if index.about["ingest"] == "cache":
            cache = PictureCache.prepare(
                index.records, config.image_size, folder.pictures, read=read_picture, keep_broken=True
            )
            pictures = dataclasses.replace(cache, broken=pictures.broken)
        records = index.records[: limit or None]
        return cls(TrainingSet(records, pictures, codec, bad_boxes=settings.bad_boxes, report=report), config)
