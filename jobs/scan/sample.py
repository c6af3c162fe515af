"""A look at an input before all of it is scanned: a seeded sample of pairs that could be read.

A model that has seen nothing like the input would judge none of it. A sample of 200 pairs shows that in seconds, and a
scan of millions need not run to its end to say so.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from asap.job_records.rows import results_file, results_files
from asap.limits import Limits
from asap.storage.files import list_files, open_seekable
from asap.storage.location import Location

SAMPLE = 200
"""Pairs that a sample holds. An input of no more is scanned whole."""
_ROUNDS = 5
"""Draws before a sample with fewer pairs is accepted, so that an input of broken rows cannot take for ever."""
_MOST_ROWS = 16 * SAMPLE
"""Rows that are drawn at most, over all rounds."""

Scan = Callable[[pa.Table], None]
"""Scans manifest rows, as far as they are not in the results yet."""


@dataclass(frozen=True)
class Sample:
    """Pairs of an input that were judged, or refused as unfamiliar, before the rest."""

    judged: int
    """Pairs that could be read."""
    unfamiliar: int
    """Those among them that are unfamiliar to the model."""

    @property
    def is_mostly_unfamiliar(self) -> bool:
        """True if more than half of the pairs are unfamiliar."""
        return 2 * self.unfamiliar > self.judged

    def sentence(self, model_id: str, limits: Limits | None) -> str:
        """Return why the scan stopped, and how to scan all the same."""
        made_from = f" ({limits.made_from})" if limits else ""
        return (
            f"{self.unfamiliar:,} of {self.judged:,} sampled pairs look like nothing that {model_id.partition('@')[0]} "
            f"was made from{made_from}; its verdicts mean nothing here. --allow-unfamiliar scans all the same."
        )


def take_sample(manifest: Location, rows: int, results: Location, scan: Scan, seed: int = 0) -> Sample:
    """Draw rows of the manifest and have them scanned, until `SAMPLE` of them could be read.

    The rows depend on the seed, the number of rows and the results alone, so a sample that was interrupted is drawn
    again as it was. It is smaller than `SAMPLE` if too few rows could be read within `_ROUNDS` draws.

    Args:
        manifest: Folder of the manifest.
        rows: Rows of the manifest.
        results: Folder that `scan` adds its results to.
        scan: Called with the drawn rows of each round.
        seed: Seed of the draw.
    """
    order = random.Random(seed).sample(range(rows), min(rows, _MOST_ROWS))
    drawn: list[int] = []
    verdicts: list[str] = []
    size = SAMPLE
    for _ in range(_ROUNDS):
        table = read_positions(manifest, order[len(drawn) : len(drawn) + size])
        if not table.num_rows:
            break
        scan(table)
        drawn += table["row_id"].to_pylist()
        found = _verdicts(results, drawn)
        verdicts = [found[row_id] for row_id in drawn if row_id in found]
        if len(verdicts) >= SAMPLE:
            break
        # Draw as many as are missing if the share that can be read stays the same.
        size = math.ceil((SAMPLE - len(verdicts)) * len(drawn) / max(len(verdicts), 1))
    verdicts = verdicts[:SAMPLE]
    return Sample(len(verdicts), verdicts.count("unfamiliar"))


def read_positions(manifest: Location, positions: Sequence[int]) -> pa.Table:
    """Return the manifest's rows at these positions, counted from 0 over all files, in the order of `positions`."""
    found: dict[int, pa.Table] = {}
    start = 0
    for info in list_files(manifest):
        with open_seekable(info.location) as stream:
            file = pq.ParquetFile(stream)
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                # Only row groups with a wanted row are read.
                if wanted := [position for position in positions if start <= position < end]:
                    table = file.read_row_group(group)
                    found |= {position: table.slice(position - start, 1) for position in wanted}
                start = end
    return pa.concat_tables([found[position] for position in positions]) if found else pa.table({})


def _verdicts(results: Location, row_ids: Sequence[int]) -> dict[int, str]:
    """Return the verdicts of these rows, by row_id; rows that are errors or missing have none."""
    found: dict[int, str] = {}
    for location in results_files(results):
        with results_file(location) as file:
            for batch in file.iter_batches(columns=["row_id", "verdict"]):
                rows = batch.filter(pc.is_in(batch["row_id"], pa.array(row_ids, pa.int64())))
                found |= dict(zip(rows["row_id"].to_pylist(), rows["verdict"].to_pylist(), strict=True))
    return {row_id: verdict for row_id, verdict in found.items() if verdict is not None}
