import json
from pathlib import Path
from typing import Any

import pytest

from jobs.train.run_folder import record as run_record
from jobs.train.run_folder.folder import RunFolder
from jobs.train.run_folder.record import code_version, finish_record, note_cluster, start_record
from jobs.train.settings import TrainSettings


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def read(folder: RunFolder) -> dict[str, Any]:
    return json.loads(folder.record.read_text())


def test_the_record_has_code_libraries_settings_data_seed_and_machines(folder: RunFolder) -> None:
    settings = TrainSettings(corpus="corpus", out="run", seed=7, init=("demo",))
    start_record(folder, settings, {"train": "abc"})
    note_cluster(folder, {"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 2.0, "node:10.0.0.1": 1.0})
    finish_record(folder, model={"pairs": 64})

    record = read(folder)
    assert record["settings"] == settings.model_dump(mode="json")
    assert (record["seeds"], record["data"]) == ({"seed": 7}, {"train": "abc"})
    start = record["starts"][0]
    assert {"torch", "timm", "ray"} <= set(start["libraries"])
    assert start["cluster"] == {"cpus": 8.0, "gpus": 2.0, "accelerators": {"H100": 2.0}}
    assert start["seconds"] >= 0
    assert start["finished"] >= start["started"]
    assert start["model"] == {"pairs": 64}


def test_a_resumed_run_keeps_the_record_of_its_former_start(folder: RunFolder) -> None:
    settings = TrainSettings(corpus="corpus", out="run")
    start_record(folder, settings, {"train": "abc"})
    start_record(folder, settings)
    record = read(folder)
    assert [start["finished"] for start in record["starts"]] == [None, None]
    assert record["data"] == {"train": "abc"}


def test_the_record_has_no_path_of_this_machine(folder: RunFolder, tmp_path: Path) -> None:
    start_record(folder, TrainSettings(corpus="corpus", out="run"))
    text = folder.record.read_text()
    assert str(tmp_path) not in text
    assert str(Path(run_record.__file__).parent) not in text
    assert str(Path.home()) not in text


def test_code_is_named_by_its_commit_or_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {"rev-parse": "0123abc", "ls-files": "record.py", "status": " M jobs/train/run.py"}
    monkeypatch.setattr(run_record, "_git", lambda folder, *words: outputs[words[0]])
    assert code_version() == {"version": "0.1.0", "commit": "0123abc", "changed": True}
    outputs["ls-files"] = ""  # an environment inside another repository
    assert code_version() == {"version": "0.1.0"}


def test_the_version_is_recorded_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert code_version() == {"version": "0.1.0"}
