"""The watch over a training run: its heartbeat, requests that it stops, and stalls.

`heartbeat.json` in the run folder names the start of the run (`run_id`) that a process works on, and changes every
`heartbeat_s` seconds. A process that finds another `run_id` there, the file `_cancel`, or no `train.json`, stops. The
work under way stands there too, for those who follow the run from elsewhere.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from asap.errors import StorageError
from asap.job_records.record import CANCEL, ENDS, SIGN, read_sign
from asap.storage.files import delete_file, exists, read_json, write_bytes
from asap.storage.location import Location
from jobs.cluster import describe_waits
from jobs.errors import JobFailed, JobInUse
from jobs.heartbeat import Heartbeat, wait_until_still
from jobs.stall import StallWatch
from jobs.states import STALLED, JobStates, end_state, reason_of
from jobs.stops import Background
from jobs.train.events import OnEvent
from jobs.train.run_folder.folder import RunFolder
from jobs.train.run_folder.record import record_stop
from jobs.train.settings import TrainSettings

_POLL_S = 0.5


def wait_until_idle(folder: Location, stale_after_s: float, notify: Callable[[str], None]) -> None:
    """Return once no process works on a run. Raises `JobInUse` if one does.

    Args:
        folder: Folder of the run, which may not exist yet.
        stale_after_s: Seconds to watch the heartbeat of a run that was not ended properly.
        notify: Receives a sentence before the wait.
    """
    sign = read_sign(folder)
    if sign and _state(folder) not in ENDS:
        wait_until_still(folder, sign, lambda: read_sign(folder), stale_after_s, notify)


def _state(folder: Location) -> str | None:
    """Return the state of the last start; None if none is recorded."""
    starts = (read_json(folder / "run.json", "Choose another folder.") or {}).get("starts")
    return str(starts[-1].get("state")) if starts else None


class RunWatch:
    """The watch over a run that this process works on. Entering the context begins the heartbeat."""

    def __init__(self, folder: RunFolder, settings: TrainSettings, states: JobStates, progress: OnEvent) -> None:
        """Prepare the watch.

        Args:
            folder: The folder of the run.
            settings: The settings of the run.
            states: Receives stalls.
            progress: Receives the events of the run, and a note for each stall.
        """
        self.run_id = uuid.uuid4().hex
        self._folder, self._at = folder, folder.location
        self._states, self._progress = states, progress
        self._stalls = StallWatch("step", settings.stall_after_s, describe_waits, is_steady=False)
        self._done = 0
        self._phase: dict[str, Any] = {}
        self._heart = Heartbeat(self._beat, settings.heartbeat_s)
        self._beats, self._misses = 0, 0
        self._lost = self._deleted = self._is_recorded = False

    def report(self, event: dict[str, Any]) -> None:
        """Pass an event on, and keep the number of pairs that are done and the work under way."""
        if "pairs" in event:
            self._done = event["pairs"]
            self._states.note(done=event["pairs"], total=event["of"])
        # One assignment, because the thread of the heartbeat reads it.
        self._phase = phase_of(event) or self._phase
        self._progress(event)

    def __enter__(self) -> Self:
        delete_file(self._at / CANCEL)  # it was meant for an earlier start
        self._write()
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heart.stop()

    @contextmanager
    def stops_recorded(self) -> Iterator[None]:
        """Record an error or a stop that leaves the block: `failed` with the reason, or `cancelled`.

        Of blocks inside each other, the inner one does. Nothing is recorded if another process has taken the run over,
        which becomes a `JobInUse`, or if its folder was deleted, which becomes a `JobFailed`.
        """
        try:
            yield
        except BaseException as error:
            if not self._is_recorded:
                self._is_recorded = True
                self._record(error)
            raise

    def _record(self, error: BaseException) -> None:
        self._heart.stop()  # another process may resume the run as soon as its end is recorded
        if self._lost:
            raise JobInUse(f"{self._at} was taken over by another process. This one stopped.") from error
        # What stopped the run may also prevent its record. The reason is worth more than that failure.
        if isinstance(error, KeyboardInterrupt):
            error.add_note(f"{self._kept()} Run the same command again, or `asap resume {self._at}`, to go on.")
        with suppress(StorageError):
            if self._deleted or not exists(self._at / "train.json"):
                delete_file(self._at / SIGN)  # one may have been written during the deletion
                raise JobFailed(
                    f"{self._at} was deleted while the run worked on it. Delete what is left of it, and run the "
                    "command again to start anew."
                ) from error
            record_stop(self._folder, self.run_id, end_state(error), reason_of(error))
            delete_file(self._at / CANCEL)

    def _kept(self) -> str:
        """Say what a stop leaves of the training."""
        try:
            metrics = self._folder.last_metrics()
            done, total = metrics.get("pairs", 0), metrics.get("of", 0)
        except StorageError:
            return "The last checkpoint is kept, if there is one."
        if not done:
            return "No checkpoint was written yet; the data that were prepared are kept."
        if done == total:
            return f"The checkpoint after all {done:,} pairs is kept, and only the model folder is missing."
        return f"The checkpoint after {done:,} of {total:,} pairs is kept."

    def await_end(self, fitting: Background[Any]) -> None:
        """Wait for the end of the training, and name stalls. Raises `KeyboardInterrupt` if the run must stop."""
        said, was_stalled = None, False
        while not fitting.wait(_POLL_S):
            self._heart.check()
            sentence = self._stalls.look(self._done, "training")
            if sentence and sentence != said:
                self._progress({"note": sentence})
            said, is_stalled = sentence, self._stalls.since is not None
            if is_stalled != was_stalled:
                self._states.change({"state": STALLED if is_stalled else "running", "error": sentence})
            was_stalled = is_stalled

    def _beat(self) -> bool:
        """Give a sign of life, and return True if the run must stop."""
        # A folder that is gone is not made anew. It is looked for twice, because a store may have a hiccup.
        self._misses = 0 if exists(self._at / "train.json") else self._misses + 1
        self._deleted = self._misses > 1
        if self._misses:
            return self._deleted
        self._lost = read_sign(self._at).get("run_id") not in (self.run_id, None)
        if self._lost:
            return True
        self._write()
        return exists(self._at / CANCEL)

    def _write(self) -> None:
        self._beats += 1
        now = datetime.now(UTC).isoformat(timespec="seconds")
        sign = {"run_id": self.run_id, "beats": self._beats, "heartbeat": now} | self._phase
        write_bytes(self._at / SIGN, json.dumps(sign).encode())


def phase_of(event: dict[str, Any]) -> dict[str, Any]:
    """Return the work that an event of `jobs.train.events` shows: `phase` in words, and its `phase_counts`, if any.

    Empty for an event that says nothing about it, such as a note.
    """
    if "phase" in event:
        return {"phase": event["phase"]}
    if "stage" in event:
        return {"phase": event["stage"], "phase_counts": {"done": event["done"], "total": event["total"]}}
    if "pairs" not in event:
        return {}
    stage = event.get("run_stage") or {"of": 1}
    return {"phase": f"training, stage {stage['number']} of {stage['of']}" if stage["of"] > 1 else "training"}
