"""The rows of a job on their way through the stages of vLLM, and what came out for them.

Ray's stages take one row for each request, and give its columns types of their own. So a row of theirs holds the rows
of the job whole, as bytes, beside the request. Rows of the job that need the same description travel together.

    batch of a job --ask()--> rows of vLLM's stages --Ray's stages--> rows with texts --Written.read()--> the batch
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.descriptions.engine import Failure, FailureKind, Outcome, Reply, Request, Usage
from jobs.descriptions.replies import read_reply
from jobs.descriptions.settings import DescriptionSettings

ROWS, PROMPT, PICTURE, KNOWN = "rows", "prompt", "picture", "known"
"""Columns of a row of vLLM's stages: rows of the job, the words and the JPEG of the request, and an outcome that is
known. Without a prompt, nothing is asked."""
ERROR = "__inference_error__"
"""Column in which Ray reports the failure of a row; empty for the others. Ray's stages pass over rows that have one."""
NOT_ASKED = "nothing is asked for this row"
"""Error of rows that take no part: Ray's stages pass over them."""
_WRITTEN = ("generated_text", "num_input_tokens", "num_generated_tokens", ERROR)


@dataclass(frozen=True)
class Asked:
    """Rows of a batch that get one description: an outcome that is known, one that is asked for, or none at all."""

    positions: Sequence[int]
    prompt: str | None = None
    """The words of the request. None: nothing is asked."""
    picture: bytes | None = None
    """The JPEG of the picture to caption."""
    known: Outcome | None = None


def ask(batch: pa.Table, asked: Sequence[Asked]) -> pa.Table:
    """Return the rows that travel through vLLM's stages, in which each row of a batch occurs once.

    The thumbnails of the batch are left out: the pictures that are needed are in the requests.
    """
    if "thumbnail" in batch.column_names:
        position = batch.schema.get_field_index("thumbnail")
        batch = batch.set_column(position, batch.schema.field(position), pa.nulls(len(batch), pa.binary()))
    return pa.table(
        {
            ROWS: pa.array([_to_bytes(batch.take(list(each.positions))) for each in asked], pa.binary()),
            PROMPT: pa.array([each.prompt for each in asked], pa.string()),
            PICTURE: pa.array([each.picture for each in asked], pa.binary()),
            KNOWN: pa.array([_to_json(each.known) for each in asked], pa.string()),
        }
    )


class Written:
    """The engine (`jobs.descriptions.engine.Engine`) in the place of vLLM, whose stages have described already.

    It hands on what came out of them for the batch that was read last.
    """

    def __init__(self, settings: DescriptionSettings) -> None:
        self._settings = settings
        self._outcomes: dict[str, Outcome] = {}
        self._new: set[str] = set()

    def read(self, batch: pa.Table) -> pa.Table:
        """Take over what came out of vLLM's stages, and return the rows of the job."""
        self._outcomes, self._new, tables = {}, set(), []
        columns = [name for name in (ROWS, KNOWN, *_WRITTEN) if name in batch.column_names]
        for row in batch.select(columns).to_pylist():
            with pa.ipc.open_stream(row[ROWS]) as stream:
                table = stream.read_all()
            tables.append(table)
            names = table["custom_id"].to_pylist()
            if row[ERROR] != NOT_ASKED:
                self._outcomes |= dict.fromkeys(names, outcome_of(self._settings, row))
                self._new.add(names[0])
            elif row[KNOWN] is not None:
                self._outcomes |= dict.fromkeys(names, _from_json(row[KNOWN]))
        return pa.concat_tables(tables).combine_chunks()

    def is_new(self, request: Request) -> bool:
        """Return True for the one of the rows with a description for which vLLM was asked."""
        return request.custom_id in self._new

    def describe(self, requests: Sequence[Request]) -> list[Outcome]:
        """Return what came out for each request."""
        return [self._outcomes[request.custom_id] for request in requests]

    def record(self) -> dict[str, Any]:
        """Return nothing: the record is made at the trial."""
        return {}

    def close(self) -> None:
        """Do nothing: nothing is held."""


def outcome_of(settings: DescriptionSettings, row: Mapping[str, Any]) -> Outcome:
    """Return the description or the failure in a row that has been through vLLM's stages."""
    usage = Usage(row.get("num_input_tokens") or 0, row.get("num_generated_tokens") or 0)
    if error := row[ERROR]:
        kind: FailureKind = "out_of_memory" if "OutOfMemory" in error else "model_error"
        return Failure(kind, " ".join(error.split())[:300], usage)
    # Ray hands on no reason for the end, but a model that was stopped has used all its tokens. vLLM leaves special
    # tokens out of the text; one alone is the end.
    return read_reply(
        row["generated_text"],
        is_cut=usage.output_tokens >= settings.max_new_tokens,
        wrote_special=not row["generated_text"] and usage.output_tokens > 1,
        usage=usage,
    )


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def _to_json(outcome: Outcome | None) -> str | None:
    if outcome is None:
        return None
    if isinstance(outcome, Failure):
        return json.dumps({"kind": outcome.kind, "detail": outcome.detail})
    return json.dumps({"text": outcome.text, "is_cut": outcome.is_cut})


def _from_json(text: str) -> Outcome:
    values = json.loads(text)
    return Failure(**values) if "kind" in values else Reply(**values)
