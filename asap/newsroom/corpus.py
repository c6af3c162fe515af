"""The corpus folder: which record gets which manipulation and picture, drawn by several processes.

Every record and every picture has its own random generator, seeded by (seed, split, number, purpose). The same seed
therefore gives the same files, whatever the number of processes and the order in which they finish.
"""

import io
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asap.errors import ConfigError, CorpusError
from asap.newsroom.captioner import describe
from asap.newsroom.grammar import draw_name, explain, swap, turn_mood, write
from asap.newsroom.looks import Plan, draw_plan
from asap.newsroom.picture import draw_picture
from asap.storage.files import write_atomically

CORPUS_VERSION = "newsroom-3"

SPLITS = ("train", "val", "test")

# The classes of DGM4 and their proportions, in tenths of a percent.
CLASS_SHARES: dict[str, int] = {
    "orig": 337, "face_swap": 213, "face_attribute": 180, "text_swap": 90, "text_attribute": 38,
    "face_swap&text_swap": 54, "face_swap&text_attribute": 23, "face_attribute&text_swap": 46,
    "face_attribute&text_attribute": 19,
}  # fmt: skip

_REUSED_PER_CENT = 15  # of the records show the picture of an earlier record, with another text
RESIDUES = {"train": (0, 1, 2, 3, 4, 5, 6, 7), "val": (8,), "test": (9,)}  # of people's names; see draw_name
_CHUNK = 64  # pictures that a process draws at a time


@dataclass(frozen=True)
class Job:
    """One picture, by its number in the split, and the (record id, fake_cls) of each record that shows it."""

    seed: int
    split: str
    picture: int
    records: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class JobResult:
    """The annotations, captions and explanations of a job's records."""

    records: list[dict[str, object]]
    captions: dict[str, str]
    explanations: dict[str, str]


@dataclass(frozen=True)
class Summary:
    """The counts of a finished corpus: pairs by split, and pictures in total."""

    out: Path
    corpus_version: str
    pairs: dict[str, int]
    pictures: int


def generate(
    out: Path,
    pairs: int,
    seed: int,
    workers: int | None = None,
    splits: Sequence[float] = (0.8, 0.1, 0.1),
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Draw a corpus. The same `seed`, `pairs` and `splits` give the same corpus.

    `newsroom.json` is written last: a folder without it was left by a run that did not finish.

    Args:
        out: the corpus folder, which must be new or empty.
        pairs: image-text pairs, over all splits.
        seed: the seed of all random values.
        workers: processes, by default one per core; their number does not change the corpus.
        splits: the proportions of train, val and test.
        progress: called with (pairs done, pairs in total).

    Raises `ConfigError` if a value is out of range, and `CorpusError` if `out` is in use or a process dies.
    """
    _check_arguments(out, pairs, seed, workers, splits)
    counts = dict(zip(SPLITS, allot(pairs, splits), strict=True))
    jobs: list[Job] = []
    first_id = 0
    for split in SPLITS:
        jobs += plan_split(seed, split, counts[split], first_id)
        first_id += counts[split]
    try:
        for split in SPLITS:
            (out / "images" / split).mkdir(parents=True, exist_ok=True)
        (out / "metadata").mkdir(exist_ok=True)
    except OSError as error:
        raise CorpusError(f"{out} cannot be written: {error.strerror}. Choose another folder.") from error

    results: dict[str, list[JobResult]] = {split: [] for split in SPLITS}
    done = 0
    for split, result in _run(jobs, out, workers or os.cpu_count() or 1):
        results[split].append(result)
        done += len(result.records)
        if progress:
            progress(done, pairs)
    _write_metadata(out, results)
    classes = {
        split: [record["fake_cls"] for result in results[split] for record in result.records] for split in SPLITS
    }
    _dump(out / "newsroom.json", {
        "corpus_version": CORPUS_VERSION, "seed": seed, "pairs": pairs, "splits": counts, "pictures": len(jobs),
        "classes": {split: {name: names.count(name) for name in CLASS_SHARES} for split, names in classes.items()},
    })  # fmt: skip
    return Summary(out, CORPUS_VERSION, counts, len(jobs))


def _check_arguments(out: Path, pairs: int, seed: int, workers: int | None, splits: Sequence[float]) -> None:
    if pairs < 1:
        raise ConfigError(f"pairs is {pairs}. A corpus needs at least 1.")
    if seed < 0:
        raise ConfigError(f"seed is {seed}. It must be 0 or more.")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}. It must be at least 1, or None for one per core.")
    if len(splits) != len(SPLITS) or min(splits) < 0 or sum(splits) <= 0:
        raise ConfigError(f"splits is {tuple(splits)}. It must be three proportions, of train, val and test, such as "
                          "(0.8, 0.1, 0.1).")  # fmt: skip
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        unfinished = out.is_dir() and (out / "metadata").is_dir() and not (out / "newsroom.json").exists()
        state = "holds a corpus that was never finished" if unfinished else "exists and is not an empty folder"
        raise CorpusError(f"{out} {state}. Remove it, or choose another folder.")


def check_drawn(folder: Path) -> None:
    """Raise `CorpusError` unless the folder holds a whole corpus of newsroom."""
    if not (folder / "newsroom.json").is_file():
        raise CorpusError(f"corpus {folder} was not drawn by asap newsroom: it has no newsroom.json. Draw one.")


def allot(total: int, shares: Sequence[float]) -> list[int]:
    """Divide `total` by the shares into whole numbers, by largest remainder; ties go to the earlier share."""
    weights = [round(share * 1_000_000) for share in shares]  # integers round alike on every machine
    whole = sum(weights)
    counts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _rng(seed: int, split: str, number: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), number, purpose]))


def plan_split(seed: int, split: str, count: int, first_id: int) -> list[Job]:
    """Return the pictures of a split, in the order of their numbers, with the records that show each.

    Args:
        seed: the seed of the corpus.
        split: the name of the split.
        count: the number of records in it.
        first_id: the id of its first record.
    """
    rng = _rng(seed, split, 0, 0)
    per_class = allot(count, list(CLASS_SHARES.values()))
    classes = [name for name, n in zip(CLASS_SHARES, per_class, strict=True) for _ in range(n)]
    classes = [classes[int(i)] for i in rng.permutation(count)]
    shown: list[list[tuple[int, str]]] = []  # the records of each picture
    by_tamper: dict[str, list[int]] = {}  # the pictures shown once, by what was done to the face
    for i, fake_cls in enumerate(classes):
        earlier = by_tamper.setdefault(face_part(fake_cls), [])
        reused = int(rng.integers(100)) < _REUSED_PER_CENT
        if reused and earlier:
            # The picture is shown again with another text. Its face keeps its label.
            shown[earlier.pop(int(rng.integers(len(earlier))))].append((first_id + i, fake_cls))
        else:
            earlier.append(len(shown))
            shown.append([(first_id + i, fake_cls)])
    return [Job(seed, split, number, tuple(records)) for number, records in enumerate(shown)]


def face_part(fake_cls: str) -> str:
    """Return the manipulation of the face in a class: "swap", "attribute" or ""."""
    return next((part[5:] for part in fake_cls.split("&") if part.startswith("face_")), "")


def text_part(fake_cls: str) -> str:
    """Return the manipulation of the text in a class: "swap", "attribute" or ""."""
    return next((part[5:] for part in fake_cls.split("&") if part.startswith("text_")), "")


def _run(jobs: list[Job], out: Path, workers: int) -> Iterator[tuple[str, JobResult]]:
    """Draw all jobs; yield the split and result of each, in the order of the jobs."""
    chunks = [(jobs[i : i + _CHUNK], out) for i in range(0, len(jobs), _CHUNK)]
    if workers == 1 or len(chunks) == 1:
        for chunk in chunks:
            yield from _draw_chunk(chunk)
        return
    try:
        # A forked child could inherit locked locks from threads of the caller, so processes are spawned.
        with ProcessPoolExecutor(min(workers, len(chunks)), multiprocessing.get_context("spawn")) as pool:
            for results in pool.map(_draw_chunk, chunks):
                yield from results
    except BrokenProcessPool as error:
        raise CorpusError(
            "a process that draws pictures died. Either the machine ran out of memory, or the script that calls "
            "generate() does so outside `if __name__ == '__main__':`, which new processes need."
        ) from error


def _draw_chunk(chunk: tuple[list[Job], Path]) -> list[tuple[str, JobResult]]:
    jobs, out = chunk
    return [(job.split, draw_job(job, out)) for job in jobs]


def draw_job(job: Job, out: Path) -> JobResult:
    """Draw and save one picture; return the records that show it."""
    tamper = face_part(job.records[0][1])
    # The last number of each generator is its purpose: a change to one part leaves the others as they are.
    rng = _rng(job.seed, job.split, job.picture, 1)
    plan = draw_plan(rng, tamper)
    name = draw_name(rng, RESIDUES[job.split])
    path = f"images/{job.split}/{job.picture:07d}.jpg"
    image = draw_picture(plan, _rng(job.seed, job.split, job.picture, 2), _rng(job.seed, job.split, job.picture, 3))
    quality = int(rng.integers(60, 96))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    (out / path).write_bytes(buffer.getvalue())

    result = JobResult([], {}, {})
    for record_id, fake_cls in job.records:
        record, explanation = _write_record(_rng(job.seed, job.split, record_id, 4), plan, name, fake_cls)
        result.records.append({"id": record_id, "image": path, **record})
        result.captions[str(record_id)] = describe(_rng(job.seed, job.split, record_id, 5), plan)
        result.explanations[str(record_id)] = explanation
    return result


def _write_record(rng: np.random.Generator, plan: Plan, name: str, fake_cls: str) -> tuple[dict[str, object], str]:
    text = write(rng, plan.facts, name)
    if text_part(fake_cls) == "swap":
        text = swap(rng, text)
    elif text_part(fake_cls) == "attribute":
        text = turn_mood(rng, text)
    sentence, fake_words = text.render()
    record: dict[str, object] = {
        "text": sentence,
        "fake_cls": fake_cls,
        "fake_image_box": list(plan.boxes[plan.target]) if plan.tamper else [],
        "fake_text_pos": fake_words,
        "mtcnn_boxes": [list(box) for box in plan.boxes],
        "disproved_by": text.disproved_by,
    }
    return record, explain(rng, text)


def _write_metadata(out: Path, results: dict[str, list[JobResult]]) -> None:
    captions: dict[str, str] = {}
    explanations: dict[str, str] = {}
    for split, of_split in results.items():
        records = [record for result in of_split for record in result.records]
        records.sort(key=lambda record: int(str(record["id"])))
        _dump(out / "metadata" / f"{split}.json", records)
        for result in of_split:
            captions |= result.captions
            explanations |= result.explanations
    _dump(out / "captions.json", dict(sorted(captions.items(), key=lambda item: int(item[0]))))
    _dump(out / "explanations.json", dict(sorted(explanations.items(), key=lambda item: int(item[0]))))


def _dump(path: Path, value: object) -> None:
    """Write JSON whole or not at all."""
    with write_atomically(path) as draft:
        draft.write_text(json.dumps(value, ensure_ascii=False, indent=None if isinstance(value, list) else 1), "utf-8")
