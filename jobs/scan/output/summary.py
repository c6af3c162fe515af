"""The summary of a job's results, made with the lists of the rows that a person looks at."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from asap.labels import VERDICTS
from asap.storage.files import read_bytes, write_bytes
from asap.storage.location import Location
from jobs.scan.output.parts import write_lists
from jobs.scan.output.tally import STRANGEST, TOP, Tally
from jobs.scan.stages.result_rows import SCHEMA_VERSION


class Outcome(NamedTuple):
    """The outcome of a job."""

    counts: dict[str, int]
    """The counts for its record."""
    tally: Tally
    """The counts over its results, with the rows that the report shows."""


def write_outcome(folder: Location, record: dict[str, Any], check: Callable[[], None] = lambda: None) -> Outcome:
    """Write the lists and the summary of a job, whose record is `record` now.

    The results are read once, for the report too. Ray tasks read many files, if Ray runs. `check` is called now and
    then; what it raises stops the work.
    """
    tally = write_lists(folder, TOP, STRANGEST, check)
    about = {
        name: record.get(name)
        for name in ("job_id", "model_id", "policy_id", "familiarity_id", "limits", "pairs_per_s")
    }
    summary = write_summary(folder, about, tally)
    counts = {name: summary[name] for name in ("pairs", "flagged", "unfamiliar", "errors")}
    return Outcome(counts | {"done": summary["pairs"], "total": summary["pairs"]}, tally)


def read_summary(folder: Location) -> dict[str, Any]:
    """Return the contents of `summary.json`, with the addresses of the job, its report and its lists."""
    addresses = {
        "folder": folder.uri,
        "report": (folder / "report" / "index.html").uri,
        "errors_file": (folder / "errors.jsonl").uri,
        "unfamiliar_file": (folder / "unfamiliar.jsonl").uri,
    }
    return dict(json.loads(read_bytes(folder / "summary.json"))) | addresses


def write_summary(folder: Location, about: dict[str, Any], tally: Tally) -> dict[str, Any]:
    """Write `summary.json` and return its contents: the entries `about` the job, and the counts of its results."""
    counts = {
        "pairs": tally.pairs,
        "flagged": tally.flagged,
        "unfamiliar": tally.verdicts["unfamiliar"],
        "errors": tally.errors.total(),
        "verdicts": {name: tally.verdicts[name] for name in VERDICTS},
        "flagged_types": dict(tally.types.most_common()),
        "error_codes": dict(tally.errors.most_common()),
        "retryable_errors": tally.retryable.total(),
        "captions": {"written": tally.captions, "failed": dict(tally.caption_errors.most_common())},
        "explanations": {"written": tally.explanations, "failed": dict(tally.explanation_errors.most_common())},
    }
    summary = about | counts | {"schema_version": SCHEMA_VERSION}
    write_bytes(folder / "summary.json", (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode())
    return summary
