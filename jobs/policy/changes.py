"""The changes that another policy makes to the rows of a scan: counts before and after, and how many rows moved."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from asap.labels import FLAGGED, TYPES, VERDICTS


@dataclass
class Changes:
    """Counts of rows under two policies. Rows that are errors do not count."""

    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows by their verdict before and after."""
    types: Counter[tuple[str, bool, bool]] = field(default_factory=Counter)
    """Rows by a type, and whether it was flagged before and after; those where it never was are left out."""

    def add(self, before: pa.Table, after: pa.Table) -> None:
        """Count the same rows under both policies."""
        columns = [table[name].to_pylist() for name in ("verdict", "flagged_types") for table in (before, after)]
        for former, verdict, former_types, types in zip(*columns, strict=True):
            if verdict is None:
                continue
            self.verdicts[former, verdict] += 1
            old, new = set(former_types or ()), set(types or ())
            self.types.update((name, name in old, name in new) for name in old | new)

    def to_json(self) -> dict[str, Any]:
        """Return, for the flagged pairs, each verdict and each type: `before`, `after`, `added` and `removed`."""
        flagged = Counter[tuple[bool, bool]]()
        for (former, verdict), count in self.verdicts.items():
            flagged[former in FLAGGED, verdict in FLAGGED] += count
        return {
            "flagged": _moves(flagged),
            "verdicts": {name: _moves(_of_verdict(self.verdicts, name)) for name in VERDICTS},
            "types": {
                name: _moves(Counter({key[1:]: count for key, count in self.types.items() if key[0] == name}))
                for name in TYPES
            },
        }


def _of_verdict(verdicts: Counter[tuple[str, str]], name: str) -> Counter[tuple[bool, bool]]:
    counts = Counter[tuple[bool, bool]]()
    for (former, verdict), count in verdicts.items():
        counts[former == name, verdict == name] += count
    return counts


def _moves(counts: Counter[tuple[bool, bool]]) -> dict[str, int]:
    """Return the counts of rows that are in a group before and after, from those by both."""
    stayed, added, removed = counts[True, True], counts[False, True], counts[True, False]
    return {"before": stayed + removed, "after": stayed + added, "added": added, "removed": removed}
