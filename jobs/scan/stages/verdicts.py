"""Verdicts and evidence of result rows from their raw scores, under any policy."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pyarrow as pa

from asap.policy import Policy, apply_policy
from jobs.scan.input.manifest import readable_text
from jobs.scan.stages.result_rows import RESULT_SCHEMA

_RAW = ["status", "score", "types", "raw_box_px", "text", "text_escapes", "word_scores", "familiarity"]
"""Columns from which a policy makes its verdict."""


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
