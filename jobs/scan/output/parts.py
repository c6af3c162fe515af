"""The lists and the counts of a job, made in one pass over its results, by tasks where these are many.

A part is a run of files that follow each other. Its task writes the lists of the part and its counts, which are written
last, below `_lists`. A part whose counts are there is done, so a job that was stopped goes on with the others. The name
of a part stands for the revisions of its files: what was made from other files is never taken.

The lists of the parts are then joined in their order. Few parts are listed by this process, straight into the lists of
the job, because the processes of tasks would take longer to start.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from asap.job_records.json_rows import json_lines
from asap.job_records.rows import is_results_file, results_file
from asap.labels import FLAGGED
from asap.storage.files import (
    OutputStream,
    delete_folder,
    exists,
    list_files,
    open_read,
    open_write,
    read_bytes,
    write_bytes,
)
from asap.storage.location import FileInfo, Location
from jobs.scan.output.tally import Tally
from jobs.scan.stages.result_rows import SCHEMA_VERSION

FOLDER = "_lists"
LISTS = ("errors", "flagged", "unfamiliar")
"""Names of the lists, without their suffix."""
_COUNTS = "counts.json"
_PART_BYTES = 2**26
_FEW_PARTS = 4
_COPIED_BYTES = 2**22
_ERROR_COLUMNS = [
    "row_id", "custom_id", "given_id", "image_uri", "text", "metadata", "error_code", "error_detail", "retryable",
    "attempt",
]  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Files of results that follow each other."""

    files: tuple[FileInfo, ...]

    def __str__(self) -> str:
        others = len(self.files) - 1
        more = f" and the {others} files behind it" if others > 1 else " and the file behind it" if others else ""
        return f"{self.files[0].location}{more}"

    @property
    def name(self) -> str:
        """A name that no part of other files has, nor one whose lists have other columns."""
        files = "\n".join(f"{info.location} {info.revision}" for info in self.files)
        return hashlib.sha256(f"{SCHEMA_VERSION}\n{files}".encode()).hexdigest()[:32]


def write_lists(folder: Location, top: int = 0, strangest: int = 0, check: Callable[[], None] = lambda: None) -> Tally:
    """Write `errors.jsonl`, `flagged.jsonl` (manipulated or for review) and `unfamiliar.jsonl`, a line for each row.

    Many files are listed by Ray tasks if Ray runs.

    Args:
        folder: Folder of the job.
        top: Number of flagged rows to keep the addresses of; see `Tally`.
        strangest: Number of unfamiliar rows to keep the addresses of.
        check: Called now and then; what it raises stops the work.

    Returns:
        The counts over all rows.
    """
    parts = list(_parts((info for info in list_files(folder / "results") if is_results_file(info)), _PART_BYTES))
    if len(parts) <= _FEW_PARTS or not _is_ray_running():
        tally = Tally(top, strangest)
        _list_files([info for part in parts for info in part.files], folder, tally, check)
        return tally

    from jobs.scan.file_tasks import run_on_files

    run_on_files(_list_part, (folder, top, strangest), parts, check)
    places = [folder / FOLDER / part.name for part in parts]
    _join_lists(folder, places, check)
    tally = Tally(top, strangest)
    for place in places:
        tally.add_counts(json.loads(read_bytes(place / _COUNTS)))
    delete_folder(folder / FOLDER)
    return tally


def _is_ray_running() -> bool:
    import ray

    return ray.is_initialized()


def _parts(files: Iterable[FileInfo], size: int) -> Iterator[Part]:
    """Yield runs of files of at least this size in bytes; the last has what is left."""
    waiting: list[FileInfo] = []
    held = 0
    for info in files:
        waiting.append(info)
        held += info.size
        if held >= size:
            yield Part(tuple(waiting))
            waiting, held = [], 0
    if waiting:
        yield Part(tuple(waiting))


def _list_part(shared: tuple[Location, int, int], part: Part) -> None:
    """Write the lists of a part and its counts, unless an earlier run has."""
    folder, top, strangest = shared
    place = folder / FOLDER / part.name
    if exists(place / _COUNTS):
        return
    tally = Tally(top, strangest)
    _list_files(part.files, place, tally)
    write_bytes(place / _COUNTS, json.dumps(tally.counts()).encode())


def _list_files(
    files: Iterable[FileInfo], place: Location, tally: Tally, check: Callable[[], None] = lambda: None
) -> None:
    """Write the lists of some files into a folder, and count their rows."""
    with ExitStack() as stack:
        lists = {name: stack.enter_context(open_write(place / f"{name}.jsonl")) for name in LISTS}
        for info in files:
            check()
            with results_file(info.location, pre_buffer=True) as file:
                for row_group in range(file.num_row_groups):
                    # The wide columns of a row group are read only if it has a row for a list.
                    if tally.add_row_group(file, info.location, row_group):
                        _list_row_group(file, row_group, lists)


def _list_row_group(file: pq.ParquetFile, row_group: int, lists: dict[str, OutputStream]) -> None:
    columns = [name for name in file.schema_arrow.names if name != "word_scores"]
    for batch in file.iter_batches(2**12, row_groups=[row_group], columns=columns):
        table = pa.Table.from_batches([batch])
        failed = table.filter(pc.equal(table["status"], "error"))
        lists["errors"].write(json_lines(failed.select([name for name in _ERROR_COLUMNS if name in columns])))
        lists["flagged"].write(json_lines(table.filter(pc.is_in(table["verdict"], pa.array(FLAGGED)))))
        lists["unfamiliar"].write(json_lines(table.filter(pc.equal(table["verdict"], "unfamiliar"))))


def _join_lists(folder: Location, places: Sequence[Location], check: Callable[[], None]) -> None:
    """Write the lists of the job from those of its parts, in their order."""
    for name in LISTS:
        with open_write(folder / f"{name}.jsonl") as joined:
            for place in places:
                check()
                with open_read(place / f"{name}.jsonl") as stream:
                    while data := stream.read(_COPIED_BYTES):
                        joined.write(data)
