"""The summary of a job's results, and lists of the rows that a person looks at, as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from asap.labels import FLAGGED, VERDICTS
from asap.storage.files import OutputStream, open_write, read_bytes, write_bytes
from asap.storage.location import Location
from jobs.scan.output.json_rows import row_json
from jobs.scan.output.tally import results_file, results_files, tally_results
from jobs.scan.stages.result_rows import SCHEMA_VERSION

_ERROR_COLUMNS = [
    "row_id", "custom_id", "given_id", "image_uri", "text", "metadata", "error_code", "error_detail", "retryable",
    "attempt",
]  # fmt: skip


def write_outcome(folder: Location, record: dict[str, Any]) -> dict[str, int]:
    """Write the lists and the summary of a job; return the counts for its record, which is `record` now."""
    write_lists(folder)
    about = {
        name: record.get(name)
        for name in ("job_id", "model_id", "policy_id", "familiarity_id", "limits", "pairs_per_s")
    }
    summary = write_summary(folder, about)
    counts = {name: summary[name] for name in ("pairs", "flagged", "unfamiliar", "errors")}
    return counts | {"done": summary["pairs"], "total": summary["pairs"]}


def write_lists(folder: Location) -> None:
    """Write `errors.jsonl`, `flagged.jsonl` (manipulated or for review) and `unfamiliar.jsonl`, a line for each row."""
    with ExitStack() as stack:
        errors = stack.enter_context(open_write(folder / "errors.jsonl"))
        flagged = stack.enter_context(open_write(folder / "flagged.jsonl"))
        unfamiliar = stack.enter_context(open_write(folder / "unfamiliar.jsonl"))
        for table in _tables(folder / "results"):
            failed = table.filter(pc.equal(table["status"], "error"))
            _write_lines(errors, failed.select([name for name in _ERROR_COLUMNS if name in failed.column_names]))
            findings = table.drop_columns(["word_scores"])
            _write_lines(flagged, findings.filter(pc.is_in(table["verdict"], pa.array(FLAGGED))))
            _write_lines(unfamiliar, findings.filter(pc.equal(table["verdict"], "unfamiliar")))


def _tables(results: Location) -> Iterator[pa.Table]:
    """Yield the result rows in small tables, whatever the size of the files."""
    for location in results_files(results):
        with results_file(location) as file:
            for batch in file.iter_batches(2**12):
                yield pa.Table.from_batches([batch])


def _write_lines(file: OutputStream, rows: pa.Table) -> None:
    for row in rows.to_pylist():
        fields = {name: value for name, value in row.items() if value is not None}
        file.write(row_json(fields) + b"\n")


def read_summary(folder: Location) -> dict[str, Any]:
    """Return the contents of `summary.json`, with the addresses of the job, its report and its lists."""
    addresses = {
        "folder": folder.uri,
        "report": (folder / "report" / "index.html").uri,
        "errors_file": (folder / "errors.jsonl").uri,
        "unfamiliar_file": (folder / "unfamiliar.jsonl").uri,
    }
    return dict(json.loads(read_bytes(folder / "summary.json"))) | addresses


def write_summary(folder: Location, about: dict[str, Any]) -> dict[str, Any]:
    """Write `summary.json` and return its contents: the entries `about` the job, and the counts of its results."""
    tally = tally_results(folder / "results", top=0)
    counts = {
        "pairs": tally.pairs,
        "flagged": tally.flagged,
        "unfamiliar": tally.verdicts["unfamiliar"],
        "errors": tally.errors.total(),
        "verdicts": {name: tally.verdicts[name] for name in VERDICTS},
        "flagged_types": dict(tally.types.most_common()),
        "error_codes": dict(tally.errors.most_common()),
        "retryable_errors": tally.retryable.total(),
        "reused": dict(tally.reused.most_common()),
        "captions": {"written": tally.captions, "failed": dict(tally.caption_errors.most_common())},
        "explanations": {"written": tally.explanations, "failed": dict(tally.explanation_errors.most_common())},
    }
    summary = about | counts | {"schema_version": SCHEMA_VERSION}
    write_bytes(folder / "summary.json", (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode())
    return summary
