"""The shape of the rows that a job writes, one for each row of its manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class RowShape:
    """The rows of a kind of job. The passes, their comparison with the manifest and retries need to know no more."""

    folder: str
    """Name of the folder of the rows, in that of the job."""
    schema: pa.Schema
    """The columns. All kinds have `row_id`, `status`, `error_code`, `error_detail`, `retryable` and `judged_run`."""
    work: str
    """The work on a row, as a person reads it while it is done."""
    counted: tuple[str, ...]
    """Counts of rows that the progress shows, beside that of finished rows."""
    lost: Callable[[pa.Table, str, dict[str, Any]], pa.Table]
    """Returns the rows of pairs whose processes died, from their rows of the manifest, the reason and `job.json`."""
    code_columns: tuple[str, ...] = ("error_code",)
    """Columns with the error codes of a row that failed. A row is tried again if any of its codes is asked for."""

    kept: Callable[[pa.Table, pa.Table], pa.Table] | None = None
    """Returns the new rows of a retry with what is kept of the former ones, such as their cost. None: nothing is."""

    def with_all_columns(self, rows: pa.Table) -> pa.Table:
        """Return rows with the columns of later versions added, filled with nulls, in the order of the schema."""
        for name in self.schema.names:
            if name not in rows.column_names:
                rows = rows.append_column(name, pa.nulls(len(rows), self.schema.field(name).type))
        return rows.select(self.schema.names).cast(self.schema)
