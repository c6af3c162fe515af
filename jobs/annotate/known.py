"""The actor that knows which pictures and texts are described, so that none is described twice.

A stage claims the keys of a batch before it asks its engine. It gets the descriptions that exist, and the claims of
those that it must write. A key that another process has claimed is waited for. A claim that nobody renews ends after a
while, because its process has died.

The stages of vLLM claim nothing. A batch leaves out what is known when it comes to them, and waits for no other batch,
which might be behind it. So a picture of two batches that are under way at once is described twice.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from asap.job_records.rows import results_file, results_files
from asap.storage.location import Location
from jobs.descriptions.engine import Failure, Outcome, Reply
from jobs.scan.input.manifest import readable_text

CLAIMED, AWAITED = "claimed", "awaited"
"""Answers to a claim: the caller describes it; another process does."""
_LEASE_S = 60.0
"""Seconds without a renewal after which a claim ends."""
_RENEW_S = 10.0
_ROWS_AT_ONCE = 2**14


class Known:
    """The class of the actor. Its memory is one description for each picture and text that differ."""

    def __init__(self, described: Mapping[str, Outcome]) -> None:
        self._outcomes = dict(described)
        self._claims: dict[str, str] = {}
        self._renewed: dict[str, float] = {}

    def claim(self, owner: str, keys: Sequence[str]) -> list[Outcome | str]:
        """Return for each key its description, `CLAIMED` or `AWAITED`. A claim is also a renewal."""
        self.renew(owner)
        return [self._outcomes.get(key) or self._claim(owner, key) for key in keys]

    def lookup(self, keys: Sequence[str]) -> list[Outcome | None]:
        """Return for each key its description, as far as it is known. Nothing is claimed."""
        return [self._outcomes.get(key) for key in keys]

    def renew(self, owner: str) -> None:
        """Keep the claims of a process."""
        self._renewed[owner] = time.monotonic()

    def tell(self, owner: str, outcomes: Mapping[str, Outcome]) -> None:
        """Take outcomes over, and end their claims. A failure that may pass is not kept: the next row tries again."""
        for key, outcome in outcomes.items():
            self._claims.pop(key, None)
            if not isinstance(outcome, Failure) or not outcome.is_retryable:
                self._outcomes[key] = outcome
        self.renew(owner)

    def release(self) -> None:
        """End all claims: another pipeline starts, and the processes of the one before are gone."""
        self._claims.clear()

    def _claim(self, owner: str, key: str) -> str:
        holder = self._claims.setdefault(key, owner)
        if holder != owner and time.monotonic() - self._renewed[holder] > _LEASE_S:
            self._claims[key] = holder = owner
        return CLAIMED if holder == owner else AWAITED


def start_known(described: Mapping[str, Outcome]) -> Any:
    """Start the actor, pinned to the driver's node, so that losing another node does not lose it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(scheduling_strategy=here, **options)(Known).remote(dict(described))


@contextmanager
def renewed(known: Any, owner: str) -> Iterator[None]:
    """Renew the claims of a process in the background while it describes."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(_RENEW_S):
            known.renew.remote(owner)

    thread = threading.Thread(target=renew, name="renew", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def key_of(kind: str, row: Mapping[str, Any], *, with_text: bool = False) -> str:
    """Return the key of a description: of the bytes of the picture, or of the text.

    Args:
        kind: `caption` or `explanation`.
        row: A row with `image_sha256`, `text` and `text_escapes`.
        with_text: True for a caption whose prompt holds the text, which then decides the caption too.
    """
    text = "" if row["text"] is None else readable_text(row["text"], row["text_escapes"])
    text_key = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    if kind == "explanation":
        return text_key
    return f"{row['image_sha256']} {text_key}" if with_text else str(row["image_sha256"])


def read_known(annotations: Location, kind: str, *, with_text: bool = False) -> dict[str, Outcome]:
    """Return the descriptions that the rows of a job hold already, by key. `with_text` is as in `key_of`."""
    columns = [kind, f"{kind}_is_cut", "image_sha256", "text", "text_escapes"]
    known: dict[str, Outcome] = {}
    for location in results_files(annotations):
        with results_file(location) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                for row in batch.to_pylist():
                    if row[kind] is not None:
                        reply = Reply(row[kind], bool(row[f"{kind}_is_cut"]))
                        known[key_of(kind, row, with_text=with_text)] = reply
    return known
