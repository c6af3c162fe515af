"""Another policy for a finished scan. The rows keep the model's raw scores, so nothing is scanned again.

At every moment, the job's record and the folder of rows that it names (`job_folder.results_folder`) belong together,
and all rows of that folder are under one policy:

1. The rows under the new policy are written to `_repolicy/results`. A stop here leaves the job as it was.
2. The record is replaced in one write. It now names the new policy and those rows.
3. `results` is emptied, the rows are copied there, and the summary and the report are written anew. `_SUCCESS` is
   missing meanwhile, so that nobody takes `results` for complete.
4. `_SUCCESS` is written again, and the record names `results` again.

The same command resumes from wherever it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from asap.errors import ConfigError, StorageError
from asap.job_records.record import RESULTS_ENTRY, read_record, results_folder
from asap.job_records.rows import results_file, results_files
from asap.policy import Policy, apply_policy
from asap.storage.failures import storage_errors
from asap.storage.files import copy_file, delete_file, delete_folder, list_files, write_bytes
from asap.storage.location import Location
from asap.storage.s3 import filesystem
from jobs.errors import JobError
from jobs.policy.changes import Changes
from jobs.policy.files import read_policy
from jobs.scan.input.manifest import readable_text
from jobs.scan.output.completeness import count_rows
from jobs.scan.output.job_folder import Job, fail, is_finished, wait_until_free
from jobs.scan.output.report import write_report
from jobs.scan.output.summary import read_summary, write_outcome
from jobs.scan.stages.result_rows import RESULT_SCHEMA, RESULTS

Watch = Callable[[str, int, int], None]

_WORK = "_repolicy"
_COPIERS = 16
_ROWS_AT_ONCE = 2**13
_LATER_COLUMNS = {"given_id", "text_escapes", "text_read", "familiarity", "familiarity_image", "familiarity_text",
                  "familiarity_id", "judged_run", "image_group", "image_row", "image_column", "image_encoding",
                  "caption_error", "agreement_image_text", "agreement_image_caption",
                  "agreement_text_caption", "explanation_error"}  # fmt: skip
_FIRST_COLUMNS = set(RESULT_SCHEMA.names) - _LATER_COLUMNS
"""Columns of version 1 of the results, which every file of results has."""
_RAW = ["status", "score", "types", "raw_box_px", "text", "text_escapes", "word_scores", "familiarity"]
"""Columns from which a policy makes its verdict."""


def repolicy(
    job: str,
    policy: str,
    watch: Watch = lambda stage, done, total: None,
    *,
    heartbeat_s: float = 2,
    stale_after_s: float = 12,
) -> dict[str, Any]:
    """Apply a policy to a finished scan and return the scan's new summary.

    Its entry `changes` (`Changes.to_json`) compares the rows with those under the former policy; None if the scan never
    had another one. It comes from the record, so that a command that was stopped and resumed returns the same.

    Raises `ConfigError` if the file is not a policy or was calibrated on another model, `JobError` if the job is not
    finished, `JobInUse`, `StorageError`.

    Args:
        job: The job folder, local or s3://.
        policy: The policy file, local or s3://.
        watch: Receives the stage, the rows done and all rows.
        heartbeat_s: Seconds between heartbeats of this process.
        stale_after_s: Seconds without a heartbeat after which another process counts as dead.
    """
    folder, wanted = Location.parse(job), read_policy(Location.parse(policy))
    _check_model(wanted, _finished(folder))
    # The work folder has a record of its own, so that only one process gives the job a policy at a time.
    work = folder / _WORK
    former = read_record(work)
    if former:
        wait_until_free(work, former, stale_after_s, lambda line: watch(line, 0, 0))
    with Job(work, former or {"kind": "repolicy"}, heartbeat_s) as claim:
        record = _finished(folder)  # read again: another process may have finished meanwhile
        if RESULTS_ENTRY in record:  # an earlier command stopped between steps 2 and 4
            record = _publish(folder, record, watch)
        if Policy(**record["policy"]) != wanted:
            changes = _write_rows(folder, wanted, watch)
            record = _publish(folder, _commit(folder, record, wanted, changes), watch)
        claim.update(state="completed")
    delete_folder(work)
    former_policies = record.get("former_policies") or [{}]
    return read_summary(folder) | {"changes": former_policies[-1].get("changes")}


def _finished(folder: Location) -> dict[str, Any]:
    """Return the record of a finished scan, or of one whose new policy was being published when it was stopped."""
    record = read_record(folder)
    if record is None:
        raise StorageError(f"{folder} is not the folder of a job: it has no job.json. Give OUT/JOB.")
    if record.get("kind") != "scan":
        raise JobError(f"{folder} is the folder of a {record.get('kind')!r}, not of a scan, and has no verdicts")
    if RESULTS_ENTRY not in record and not is_finished(folder):
        raise JobError(
            f"{folder} is not finished: its state is {record.get('state')!r}. Let the scan end, or run its command "
            "again."
        )
    return record


def _check_model(policy: Policy, record: dict[str, Any]) -> None:
    calibrated = (policy.calibration or {}).get("model_id")
    if calibrated not in (None, record.get("model_id")):
        raise ConfigError(
            f"the policy was calibrated on {calibrated}, the job was scanned with {record.get('model_id')}, whose "
            "scores mean something else. Calibrate that model."
        )


def _write_rows(folder: Location, policy: Policy, watch: Watch) -> Changes:
    """Write every file of results again under the policy, into the work folder, and return what changed."""
    results, draft = folder / "results", folder / _WORK / "results"
    delete_folder(draft)
    total, done, changes = count_rows(results), 0, Changes()
    watch("applying the policy", done, total)
    for location in results_files(results):
        done += _write_file(location, draft / location.uri.removeprefix(f"{results}/"), policy, changes)
        watch("applying the policy", done, total)
    if count_rows(draft) != total:
        raise fail(f"{count_rows(draft)} of {total} rows were written under the policy")
    return changes


def _write_file(source: Location, target: Location, policy: Policy, changes: Changes) -> int:
    """Write one file of results under the policy, row group by row group; return its number of rows.

    What changes is added to `changes`.
    """
    system, path = filesystem(target)
    with storage_errors(target), results_file(source) as file:
        names = set(file.schema_arrow.names)
        if missing := sorted(_FIRST_COLUMNS - names):
            raise StorageError(f"{source} has no column {missing[0]}: it is not a file of results")
        if unknown := sorted(names - set(RESULT_SCHEMA.names)):
            raise StorageError(f"{source} has the column {unknown[0]} of a later version. Use that version.")
        system.create_dir(filesystem(target.parent)[1], recursive=True)
        with pq.ParquetWriter(path, RESULT_SCHEMA, filesystem=system) as writer:
            for group in range(file.num_row_groups):
                batches = file.iter_batches(_ROWS_AT_ONCE, row_groups=[group])
                tables = []
                for batch in batches:
                    former = RESULTS.with_all_columns(pa.Table.from_batches([batch]))
                    tables.append(reapply_policy(former, policy))
                    changes.add(former, tables[-1])
                if tables:
                    writer.write_table(pa.concat_tables(tables))
        return int(file.metadata.num_rows)


def reapply_policy(results: pa.Table, policy: Policy) -> pa.Table:
    """Return result rows under a policy: the columns that it decides are new, all others are unchanged."""
    outcomes = [_outcome(row, policy) for row in results.select(_RAW).to_pylist()]
    columns = {name: results[name] for name in RESULT_SCHEMA.names}
    for name in ("verdict", "flagged_types", "box_px", "words"):
        columns[name] = pa.array([outcome.get(name) for outcome in outcomes], RESULT_SCHEMA.field(name).type)
    columns["policy_id"] = pa.array([policy.policy_id] * len(outcomes), pa.string())
    return pa.table(columns).cast(RESULT_SCHEMA)


def _outcome(row: dict[str, Any], policy: Policy) -> dict[str, Any]:
    """Return verdict, flagged types, box and words of a row; nothing for a row that is an error."""
    if row["status"] != "ok":
        return {}
    outcome = apply_policy(
        policy,
        score=row["score"],
        types=row["types"],
        raw_box=row["raw_box_px"],
        text=readable_text(row["text"] or "", row["text_escapes"]),
        word_scores=row["word_scores"],
        familiarity=row["familiarity"],
    )
    return outcome | {"words": None if outcome["words"] is None else [asdict(word) for word in outcome["words"]]}


def _commit(folder: Location, record: dict[str, Any], policy: Policy, changes: Changes) -> dict[str, Any]:
    """Replace the record by one that names the policy and the rows under it.

    It lists the former policies too, each with what changed when it was replaced.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    former = {"policy": record["policy"], "policy_id": record["policy_id"], "until": now, "changes": changes.to_json()}
    record = record | {
        "state": "finalizing",
        "policy": asdict(policy),
        "policy_id": policy.policy_id,
        "identity": record["identity"] | {"policy_id": policy.policy_id},
        "former_policies": [*record.get("former_policies", []), former],
        RESULTS_ENTRY: f"{_WORK}/results",
    }
    _write_record(folder, record)
    return record


def _publish(folder: Location, record: dict[str, Any], watch: Watch) -> dict[str, Any]:
    """Move the rows that the record names into `results`. Every step can be repeated after a stop."""
    watch("putting the rows in place", 0, 0)
    source, results = results_folder(folder, record), folder / "results"
    # `_SUCCESS` goes first and comes back last, so that incomplete results are never taken for complete.
    delete_file(folder / "_SUCCESS")
    delete_folder(results)
    files = [info.location for info in list_files(source)]
    with ThreadPoolExecutor(_COPIERS) as copiers:
        list(copiers.map(lambda file: copy_file(file, results / file.uri.removeprefix(f"{source}/")), files))
    watch("writing the summary and the report", 0, 0)
    counts, tally = write_outcome(folder, record)
    record = record | {"counts": counts}
    write_report(folder, tally=tally)
    write_bytes(folder / "_SUCCESS", b"")
    published = {name: value for name, value in record.items() if name != RESULTS_ENTRY} | {"state": "completed"}
    _write_record(folder, published)
    return published


def _write_record(folder: Location, record: dict[str, Any]) -> None:
    write_bytes(folder / "job.json", json.dumps(record, indent=2).encode())
