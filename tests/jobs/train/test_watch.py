"""The watch over a training run: real heartbeats in a folder, without a training."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from asap.errors import StorageError
from asap.job_records.record import CANCEL, SIGN, read_sign
from asap.job_records.status import read_status
from asap.storage.location import Location
from jobs.control.follow import cancel_job
from jobs.control.removal import check_deletable
from jobs.errors import JobError, JobFailed, JobInUse
from jobs.states import JobStates, job_states
from jobs.stops import Background, in_background, what_is_kept
from jobs.train import watch as watch_module
from jobs.train.run_folder import folder as folder_module
from jobs.train.run_folder.folder import RunFolder
from jobs.train.run_folder.record import read_record, start_record
from jobs.train.settings import TrainSettings
from jobs.train.watch import RunWatch, phase_of, wait_until_idle
from tests.support.waiting import wait_until

FAST = {"heartbeat_s": 0.02, "stale_after_s": 0.5, "stall_after_s": 0.05}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.json").write_text(json.dumps({"corpus": "corpus", "recipe": "asap-ray"}))
    return RunFolder(tmp_path / "run")


@pytest.fixture
def settings(folder: RunFolder) -> TrainSettings:
    return TrainSettings(corpus="corpus", out=str(folder.path), **FAST)


@pytest.fixture
def states(settings: TrainSettings, folder: RunFolder) -> Iterator[JobStates]:
    with job_states(settings, "train", "run", folder.location) as states:
        yield states


@pytest.fixture
def watch(folder: RunFolder, settings: TrainSettings, states: JobStates) -> RunWatch:
    watch = RunWatch(folder, settings, states, lambda event: None)
    start_record(folder, settings, {}, watch.run_id)
    return watch


def last_start(folder: RunFolder) -> dict[str, Any]:
    return dict(read_record(folder)["starts"][-1])


def work(folder: RunFolder, watch: RunWatch, during: Callable[[], object] = lambda: None) -> None:
    """Work on a run until somebody stops it."""
    with watch.stops_recorded(), watch, in_background(lambda is_stopped: is_stopped.wait()) as fitting:
        during()
        watch.await_end(fitting)


def test_a_run_is_cancelled_through_its_folder(folder: RunFolder, watch: RunWatch) -> None:
    asked: list[Background[Any]] = []

    def ask() -> None:
        wait_until(lambda: read_status(folder.location).can_be_cancelled)
        with pytest.raises(JobInUse, match=r"is in use: process \d+ on .* works on it\. `asap cancel .*` stops it"):
            check_deletable(folder.location)
        cancelling = Background(lambda _: cancel_job(folder.location))
        cancelling.start()
        asked.append(cancelling)

    with pytest.raises(KeyboardInterrupt):
        work(folder, watch, ask)
    assert asked[0].result.state == "cancelled"
    assert last_start(folder)["state"] == "cancelled"
    assert not (folder.path / CANCEL).exists()
    check_deletable(folder.location)


def test_a_sign_of_life_has_the_work_under_way(folder: RunFolder, watch: RunWatch) -> None:
    watch.report({"phase": "reading the corpus"})
    with watch:
        assert read_status(folder.location).phase == "reading the corpus"
        watch.report({"note": "the losses have another scale"})
        watch.report({"stage": "decoding train pictures", "done": 12, "total": 60})
        wait_until(lambda: read_status(folder.location).phase_counts == {"done": 12, "total": 60})
        watch.report({"pairs": 8, "of": 64, "losses": {"total": 1.0}})
        wait_until(lambda: read_status(folder.location).phase_text == "training")
    assert read_sign(folder.location)["phase"] == "training"


@pytest.mark.parametrize(
    ("event", "phase"),
    [
        ({"phase": "stopping Ray"}, {"phase": "stopping Ray"}),
        ({"pairs": 8, "of": 64, "validation": {"AUC": 0.5}}, {"phase": "training"}),
        ({"pairs": 8, "of": 64, "run_stage": {"number": 1, "of": 1, "ends": 64}}, {"phase": "training"}),
        ({"pairs": 8, "of": 64, "run_stage": {"number": 2, "of": 3, "ends": 64}},
         {"phase": "training, stage 2 of 3"}),
        ({"note": "one GPU is free"}, {}),
        ({"start": "demo", "report": "all weights fit"}, {}),
        ({"corpus": ["60 pairs"], "ingest": "cache"}, {}),
    ],
)  # fmt: skip
def test_the_work_follows_from_the_events(event: dict[str, Any], phase: dict[str, Any]) -> None:
    assert phase_of(event) == phase


def test_a_request_for_an_earlier_start_stops_no_later_one(folder: RunFolder, watch: RunWatch) -> None:
    (folder.path / CANCEL).write_text("{}")
    with watch:
        beats = read_sign(folder.location)["beats"]
        wait_until(lambda: read_sign(folder.location)["beats"] > beats + 1)
        with in_background(lambda _: None) as fitting:
            watch.await_end(fitting)


def test_a_second_process_leaves_a_run_alone_that_another_works_on(folder: RunFolder, watch: RunWatch) -> None:
    notes: list[str] = []
    with watch, pytest.raises(JobInUse, match="is in use: another process works on it"):
        wait_until_idle(folder.location, 60, notes.append)
    assert "not ended properly; waiting 60 s" in notes[0]
    # The process died: its last sign stays.
    wait_until_idle(folder.location, 0.3, notes.append)
    assert len(notes) == 2


@pytest.mark.parametrize("starts", [[{"state": "cancelled", "run_id": "r"}], [{"state": "failed"}]])
def test_a_run_that_ended_is_taken_up_at_once(folder: RunFolder, starts: list[dict[str, Any]]) -> None:
    folder.record.write_text(json.dumps({"starts": starts}))
    (folder.path / SIGN).write_text(json.dumps({"run_id": "r", "beats": 1}))
    wait_until_idle(folder.location, 60, pytest.fail)


def test_a_run_of_an_earlier_version_is_taken_up_at_once(folder: RunFolder) -> None:
    folder.record.write_text(json.dumps({"starts": [{"started": "2026-01-01T00:00:00+00:00", "state": "running"}]}))
    wait_until_idle(folder.location, 60, pytest.fail)


def test_a_new_folder_is_taken_up_at_once(tmp_path: Path) -> None:
    wait_until_idle(Location(str(tmp_path / "new")), 60, pytest.fail)


def test_a_broken_record_is_named_before_the_run_is_taken_up(folder: RunFolder) -> None:
    (folder.path / SIGN).write_text(json.dumps({"run_id": "r", "beats": 1}))
    folder.record.write_text("{")
    with pytest.raises(StorageError, match=r"run\.json is broken: .*Choose another folder"):
        wait_until_idle(folder.location, 60, pytest.fail)


def test_a_stop_is_recorded_once_and_not_for_the_start_of_another_process(
    folder: RunFolder, settings: TrainSettings, watch: RunWatch
) -> None:
    @contextmanager
    def ray_running() -> Iterator[None]:
        try:
            yield
        finally:
            # While Ray ends here, another process resumes the run, and somebody cancels that.
            start_record(folder, settings, {}, "another")
            (folder.path / CANCEL).write_text("{}")

    with pytest.raises(KeyboardInterrupt), watch.stops_recorded(), watch, ray_running(), watch.stops_recorded():
        raise KeyboardInterrupt
    assert [start["state"] for start in read_record(folder)["starts"]] == ["cancelled", "running"]
    assert (folder.path / CANCEL).exists()


def test_a_store_that_is_away_hides_no_error(
    folder: RunFolder, watch: RunWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise StorageError("away")

    monkeypatch.setattr(watch_module, "exists", fail)
    with pytest.raises(ValueError, match="the reason"), watch.stops_recorded():
        raise ValueError("the reason")


def test_a_run_that_cannot_give_its_first_sign_fails_with_the_reason(
    folder: RunFolder, watch: RunWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(watch_module, "write_bytes", fail)
    with pytest.raises(StorageError, match="the disk is full"), watch.stops_recorded(), watch:
        pytest.fail("the run went on")
    assert (last_start(folder)["state"], last_start(folder)["error"]) == ("failed", "the disk is full")


def test_a_run_that_was_taken_over_stops_and_records_nothing(folder: RunFolder, watch: RunWatch) -> None:
    taken = threading.Event()

    def take_over() -> None:
        def write() -> bool:  # again, since a heartbeat between its read and its write may overwrite it
            (folder.path / SIGN).write_text(json.dumps({"run_id": "another"}))
            return watch._lost

        wait_until(write, every_s=0.01)
        taken.set()

    with pytest.raises(JobInUse, match="was taken over by another process"):
        work(folder, watch, take_over)
    assert taken.is_set()
    assert last_start(folder)["state"] == "running"
    assert read_sign(folder.location) == {"run_id": "another"}


def test_a_run_whose_folder_is_deleted_stops_and_writes_nothing_into_it(folder: RunFolder, watch: RunWatch) -> None:
    with pytest.raises(JobFailed, match=r"was deleted while the run worked on it\..*to start anew"):
        work(folder, watch, lambda: shutil.rmtree(folder.path, ignore_errors=True))  # beside signs of life
    assert not (folder.path / SIGN).exists()
    assert not folder.record.exists()


def test_a_store_that_is_away_for_a_moment_does_not_stop_a_run(
    folder: RunFolder, watch: RunWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, away = watch_module.write_bytes, threading.Event()

    def write(location: Location, content: bytes) -> None:
        if away.is_set():
            away.clear()
            raise StorageError("away")
        real(location, content)

    monkeypatch.setattr(watch_module, "write_bytes", write)
    with watch:
        away.set()
        wait_until(lambda: not away.is_set(), every_s=0.01)
        beats = read_sign(folder.location)["beats"]
        wait_until(lambda: read_sign(folder.location)["beats"] > beats, every_s=0.01)


def test_a_stall_is_named_and_its_end_too(
    folder: RunFolder, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "describe_waits", lambda: "1 worker waits for 1 GPU")
    monkeypatch.setattr(watch_module, "_POLL_S", 0.01)
    log, events = folder.path / "log.jsonl", list[dict[str, Any]]()

    def changes() -> list[dict[str, Any]]:
        return [json.loads(line) for line in log.read_text().splitlines()]

    with job_states(settings.model_copy(update={"log_file": str(log)}), "train", "run", folder.location) as states:
        states.change({"state": "running"})
        watch = RunWatch(folder, settings, states, events.append)

        def train(_: threading.Event) -> None:
            wait_until(lambda: len(changes()) == 2, every_s=0.01)
            watch.report({"pairs": 8, "of": 64})
            wait_until(lambda: len(changes()) == 3, every_s=0.01)

        with watch, in_background(train) as fitting:
            watch.await_end(fitting)
    note = next(event["note"] for event in events if "note" in event)
    assert "no step has finished for" in note
    assert "while training: 1 worker waits for 1 GPU" in note
    lines = changes()
    assert [line["state"] for line in lines][:3] == ["running", "stalled", "running"]
    assert lines[1]["error"] == note
    assert lines[2]["counts"] == {"done": 8, "total": 64}


def test_a_broken_sign_of_life_is_named(folder: RunFolder) -> None:
    (folder.path / SIGN).write_text("{")
    with pytest.raises(StorageError, match=r"heartbeat\.json is broken: .*Delete it"):
        read_sign(folder.location)


def test_a_run_that_died_is_not_cancelled(folder: RunFolder, watch: RunWatch) -> None:
    with watch:
        pass
    with pytest.raises(JobError, match="nothing works on it: no sign of life"):
        cancel_job(folder.location)
    assert not (folder.path / CANCEL).exists()


@pytest.mark.parametrize(
    ("latest", "kept"),
    [
        (None, "No checkpoint was written yet; the data that were prepared are kept."),
        ({"pairs": 1_600, "of": 6_400}, "The checkpoint after 1,600 of 6,400 pairs is kept."),
        ({"pairs": 6_400, "of": 6_400}, "The checkpoint after all 6,400 pairs is kept, and only the model folder is"),
    ],
)
def test_a_stop_says_what_is_kept_and_how_to_go_on(
    folder: RunFolder, watch: RunWatch, latest: dict[str, int] | None, kept: str
) -> None:
    if latest:
        (folder.path / "ray_train").mkdir()
        snapshot = {"latest_checkpoint_result": {"metrics": latest}}
        (folder.path / "ray_train" / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))
    with pytest.raises(KeyboardInterrupt) as caught, watch.stops_recorded():
        raise KeyboardInterrupt
    said = what_is_kept(caught.value)
    assert said.startswith(kept)
    assert said.endswith(f"Run the same command again, or `asap resume {folder.path}`, to go on.")


def test_a_stop_says_less_if_the_store_is_away(
    folder: RunFolder, watch: RunWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("away")

    monkeypatch.setattr(folder_module, "read_json", fail)
    with pytest.raises(KeyboardInterrupt) as caught, watch.stops_recorded():
        raise KeyboardInterrupt
    assert what_is_kept(caught.value).startswith("The last checkpoint is kept, if there is one.")
