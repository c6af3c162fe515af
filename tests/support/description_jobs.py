"""The three jobs that write captions, with the same pairs, and what they say of each pair in one form."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow.parquet as pq
import pytest

from asap.policy import Policy
from jobs.annotate.run import annotate
from jobs.annotate.settings import AnnotateSettings
from jobs.scan.passes import ScanProgress
from jobs.scan.run import scan
from jobs.scan.settings import ScanSettings
from tests.support.pictures import CAPTIONS, draw_jpeg

JobKind = Literal["annotate", "all", "flagged"]
"""`asap annotate`, and `asap scan` with each value of `--captions`."""
EACH_JOB = pytest.mark.parametrize("job", ["annotate", pytest.param("all", marks=pytest.mark.drill), "flagged"])
"""A test of each job. Captions of all pairs take the way of those of flagged pairs, so that one is a drill."""
FIRST_WIDTH = 100
"""Width of the picture of row 0; that of row 1 is wider by one pixel, and so on. It names the row at an endpoint."""


class Caption(NamedTuple):
    """The caption of a row, or its failure."""

    text: str | None
    kind: str | None = None
    retryable: bool | None = None


def write_pairs(folder: Path, rows: int, textless: Sequence[int] = ()) -> None:
    """Write the pictures of so many pairs, and `pairs.jsonl`, in which some pairs have no text."""
    lines = []
    for row in range(rows):
        (folder / f"{row}.jpg").write_bytes(draw_jpeg(row, (FIRST_WIDTH + row, 60)))
        text = {} if row in textless else {"text": f"{CAPTIONS[row % len(CAPTIONS)]} {row}"}
        lines.append(json.dumps({"id": str(row), "image": f"{row}.jpg"} | text))
    (folder / "pairs.jsonl").write_text("\n".join(lines))


def flagging(model_folder: Path, folder: Path, manipulated: float = 0) -> str:
    """Copy a model, with a policy that flags scores from `manipulated` on; return the folder."""
    copy = Path(shutil.copytree(model_folder, folder / "flagging", dirs_exist_ok=True))
    policy = Policy(manipulated=manipulated, review=manipulated)
    (copy / "policy.json").write_text(json.dumps(dataclasses.asdict(policy)))
    return str(copy)


def run_job(
    job: JobKind,
    folder: Path,
    model: str,
    captions: dict[str, Any] | None,
    watch: Callable[[ScanProgress], None] = lambda progress: None,
    **changes: Any,
) -> tuple[dict[str, Any], dict[int, dict[str, Any]], dict[int, Caption]]:
    """Run a job over the pairs of a folder; return its summary, its rows and their captions by row.

    Fails if a row is there twice. `changes` are further settings.
    """
    values = {"input": str(folder / "pairs.jsonl"), "captions": captions, "batch_size": 2, "device": "cpu"} | changes
    if job == "annotate":
        summary = annotate(AnnotateSettings(out=str(folder / "annotate"), **values), watch)
    else:
        about = {"out": str(folder), "job": f"scan-{job}", "model": model, "caption_pairs": job}
        summary = scan(ScanSettings(**(about | values)), watch)  # type: ignore[arg-type]
    table = pq.read_table(Path(summary["folder"]) / ("annotations" if job == "annotate" else "results"))
    rows = {row["row_id"]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows
    return summary, rows, {row_id: _caption(row) for row_id, row in sorted(rows.items())}


def _caption(row: dict[str, Any]) -> Caption:
    error = row["caption_error"]
    if isinstance(error, dict):  # of a scan
        return Caption(row["caption"], error["kind"], error["retryable"])
    if error is None:
        return Caption(row["caption"])
    return Caption(row["caption"], error, row["retryable"])
