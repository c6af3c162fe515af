"""The memory of the detectors of a scan, and the reuse store of many scans, so that nothing is judged twice.

The store gets the pairs that are in the results of a job, at its end and when it is stopped. The context of
their scores belongs to the run that judged them: the detectors give it to the memory, and the record of the job keeps
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from asap.errors import AsapError
from asap.storage.location import Location
from asap.storage.s3 import filesystem
from jobs.scan.output.job_folder import Job
from jobs.scan.output.kept_pairs import Adding, add_pairs
from jobs.scan.plan import ScanPlan
from jobs.scan.stages.pair_store import StoreIndex, folder_of, read_index
from jobs.scan.stages.pair_values import ReuseContext

if TYPE_CHECKING:
    from jobs.scan.stages.reuse import Reuse

_RUNS = "reuse_contexts"
"""Entry of the record: what decided the scores of each run."""
_ASK_S = 1.0
_STOP_S = 5.0
"""Seconds in which a job that is stopped adds pairs to the store. The next run adds the others."""


class Reusing:
    """The reuse of a job that this process works on."""

    def __init__(self, job: Job, plan: ScanPlan, notify: Callable[[str], None]) -> None:
        """Take over the job; `notify` receives sentences for a person."""
        self._job, self._plan, self._notify = job, plan, notify
        self._index: StoreIndex | None = None

    @property
    def _folder(self) -> Location | None:
        """The folder of the model in the store. None without a store."""
        store = self._plan.settings.reuse
        return folder_of(Location.parse(store), self._plan.model_id, self._plan.familiarity_id) if store else None

    @contextmanager
    def running(self) -> Iterator[Reuse]:
        """Yield where detectors find pairs that were judged before. Ray must run.

        Raises `StorageError` if the store cannot be listed.
        """
        import ray

        from jobs.scan.stages.reuse import Reuse, start_memory

        memory = start_memory(self._plan.settings.remember_bytes)
        store: dict[str, Any] = {}
        if (folder := self._folder) is not None:
            self._notify("reading the reuse store")
            self._index = read_index(folder, (self._plan.model_id, self._plan.familiarity_id), self._notify)
            self._notify(f"the reuse store has {len(self._index.hashes):,} pairs of this model")
            store = {"store": ray.put(self._index), "system": filesystem(folder, attempts=2)[0]}
        try:
            yield Reuse(memory, **store)
        finally:
            with suppress(ray.exceptions.RayError):
                contexts = ray.get(memory.contexts.remote(), timeout=_ASK_S)
                if len(contexts) == 1:  # of several, nobody knows which row is of which
                    runs = {self._job.record["run_id"]: next(iter(contexts))._asdict()}
                    self._job.note(**{_RUNS: self._job.record.get(_RUNS, {}) | runs})
                ray.kill(memory)

    def _adding(self) -> Adding | None:
        if (folder := self._folder) is None or self._index is None:
            return None
        contexts = {run: ReuseContext(**context) for run, context in self._job.record.get(_RUNS, {}).items()}
        return Adding(folder, contexts, self._index, self._plan.settings.captions_late)

    def add(self) -> None:
        """Add the pairs of the results to the store. A store that cannot be written costs the job nothing."""
        if (adding := self._adding()) is None:
            return
        self._notify("adding the new pairs to the reuse store")
        try:
            add_pairs(adding, self._plan.folder / "results", self._job.check)
        except AsapError as error:
            self._notify(f"the reuse store did not get the new pairs: {error}")
            self._job.note(reuse_error=str(error))
        self._index = None  # what comes now adds nothing once more

    def add_after_stop(self) -> None:
        """Add the pairs of a job that was stopped, as many as some seconds allow."""
        if (adding := self._adding()) is not None:
            with suppress(AsapError):
                add_pairs(adding, self._plan.folder / "results", seconds=_STOP_S)
