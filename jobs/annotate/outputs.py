"""The files that a job writes from its rows: the published JSON files, the summary, and the list of errors.

`captions.json` and `explanations.json` map an id to a sentence. Pairs of a corpus may share an id: an authentic pair
and those made from it do. If such pairs have several pictures, their captions are listed by the path of the picture.
If they have several texts, their explanations are left out, since no key of that form tells them apart: `annotations/`
has them, and `asap train` reads that.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from asap.job_records.json_rows import row_json
from asap.job_records.rows import results_file, results_files
from asap.storage.files import open_write, read_bytes, write_bytes
from asap.storage.location import Location
from jobs.annotate.known import key_of
from jobs.annotate.rows import ANNOTATIONS, SCHEMA_VERSION
from jobs.descriptions.settings import DescriptionSettings

SUMMARY = "annotations.json"
_ROWS_AT_ONCE = 2**12
_ERROR_COLUMNS = [
    "row_id", "custom_id", "given_id", "image_uri", "text", "error_code", "error_detail", "retryable", "attempt",
    "caption_error", "explanation_error",
]  # fmt: skip


def write_outputs(folder: Location, record: Mapping[str, Any], engines: Mapping[str, DescriptionSettings]) -> None:
    """Write all files of a job from its annotations; `annotations.json` comes last.

    Args:
        folder: Folder of the job.
        record: The record of the job, `job.json`.
        engines: Settings of the engines, by what they write.
    """
    about: dict[str, dict[str, Any]] = {kind: dict(_write_published(folder, kind)) for kind in engines}
    counts = _write_errors(folder)
    for kind, settings in engines.items():
        tokens = _count_kind(folder, kind)
        cost = settings.cost(tokens["input_tokens"], tokens["output_tokens"])
        about[kind] |= tokens | ({"cost": round(cost, 6)} if settings.endpoint else {})
        about[kind] |= {"engine": record["engines"][kind]}
    summary = {
        "job_id": record["job_id"],
        "input": record["settings"]["input"],
        "manifest": record["manifest"],
        "pairs_per_s": record.get("pairs_per_s"),
        **counts,
        **{f"{kind}s": found for kind, found in about.items()},
        "schema_version": SCHEMA_VERSION,
    }
    write_bytes(folder / SUMMARY, _json(summary))


def read_summary(folder: Location) -> dict[str, Any]:
    """Return the contents of `annotations.json`, with the addresses of the job and its files."""
    summary = dict(json.loads(read_bytes(folder / SUMMARY)))
    files = {kind: (folder / f"{kind}.json").uri for kind in ("captions", "explanations") if kind in summary}
    return summary | {"folder": folder.uri, "errors_file": (folder / "errors.jsonl").uri, "files": files}


def _write_published(folder: Location, kind: str) -> dict[str, int]:
    """Write `captions.json` or `explanations.json`; return the numbers of its entries by the kind of their key."""
    shared = _shared_ids(folder, kind)
    published: dict[str, str] = {}
    left_out = by_image = 0
    for row in _rows(folder, kind):
        if row[kind] is None:
            continue
        name = id_of(row)
        if name is not None and name not in shared:
            published[name] = row[kind]
        elif kind == "caption" and row["image_uri"] is not None:
            key = row["image_name"] or row["image_uri"]
            by_image += key not in published
            published[key] = row[kind]
        else:
            left_out += 1
    write_bytes(folder / f"{kind}s.json", _json(published))
    return {"entries": len(published), "by_image": by_image, "left_out": left_out}


def _shared_ids(folder: Location, kind: str) -> set[str]:
    """Return the ids that pairs with different pictures, or with different texts, share."""
    first: dict[str, str] = {}
    shared = set()
    for row in _rows(folder, kind):
        if (name := id_of(row)) is not None:
            key = key_of(kind, row) if kind == "explanation" else str(row["image_uri"])
            if first.setdefault(name, key) != key:
                shared.add(name)
    return shared


def id_of(row: Mapping[str, Any]) -> str | None:
    """Return the caller's name of a row; None for a row without one, which the manifest has called #row_id."""
    if row["given_id"] is not None:
        return str(row["given_id"])
    return None if row["custom_id"].startswith(f"#{row['row_id']}") else str(row["custom_id"])


def _rows(folder: Location, kind: str) -> Iterator[dict[str, Any]]:
    columns = ["row_id", "custom_id", "given_id", "image_uri", "image_name", "image_sha256", "text", "text_escapes"]
    for location in results_files(folder / ANNOTATIONS.folder):
        with results_file(location) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[*columns, kind]):
                yield from batch.to_pylist()


def _write_errors(folder: Location) -> dict[str, Any]:
    """Write `errors.jsonl`; return the counts of rows and of their errors."""
    pairs = retryable = 0
    codes: Counter[str] = Counter()
    with open_write(folder / "errors.jsonl") as errors:
        for location in results_files(folder / ANNOTATIONS.folder):
            with results_file(location) as file:
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=["status", *_ERROR_COLUMNS]):
                    pairs += len(batch)
                    for row in batch.to_pylist():
                        if row.pop("status") == "error":
                            codes[row["error_code"]] += 1
                            retryable += bool(row["retryable"])
                            fields = {name: value for name, value in row.items() if value is not None}
                            errors.write(row_json(fields) + b"\n")
    return {"pairs": pairs, "errors": codes.total(), "error_codes": dict(codes.most_common()),
            "retryable_errors": retryable}  # fmt: skip


def _count_kind(folder: Location, kind: str) -> dict[str, int]:
    """Return the numbers of descriptions of a kind, and the tokens that they took."""
    counts = dict.fromkeys(("described", "new", "repeated", "cut", "failed", "input_tokens", "output_tokens"), 0)
    names = [kind, *(f"{kind}_{name}" for name in ("error", "is_cut", "is_new", "input_tokens", "output_tokens"))]
    for location in results_files(folder / ANNOTATIONS.folder):
        with results_file(location) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=names):
                for row in batch.to_pylist():
                    is_there, is_new = row[kind] is not None, bool(row[f"{kind}_is_new"])
                    counts["described"] += is_there
                    counts["new"] += is_there and is_new
                    counts["repeated"] += is_there and not is_new
                    counts["cut"] += bool(row[f"{kind}_is_cut"])
                    counts["failed"] += row[f"{kind}_error"] is not None
                    for name in ("input_tokens", "output_tokens"):
                        counts[name] += row[f"{kind}_{name}"] or 0
    return counts


def _json(document: Any) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
