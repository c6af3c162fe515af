"""Answers of one machine about the paths of a job, and which paths are asked about."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import ray

from jobs import reach
from jobs.descriptions.settings import DescriptionSettings
from jobs.errors import PathNotShared
from jobs.reach import (
    PathUse,
    check_cluster,
    check_shared,
    engine_use,
    late_machines_asked,
    look,
    model_use,
    note_unasked,
    pictures_use,
)
from jobs.settings import ClusterSettings
from tests.support.waiting import wait_until

_Look = reach._Look


def test_a_file_and_a_folder_that_are_there_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "marker").touch()
    looks = [_Look(str(tmp_path / "a"), 3), _Look(str(tmp_path)), _Look(str(tmp_path), marker="marker")]
    assert look(looks) == [None, None, None]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "marker"}


def test_each_obstacle_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abcd")
    looks = [
        _Look(str(tmp_path / "b"), 3),
        _Look(str(tmp_path / "a"), 3),
        _Look(str(tmp_path / "a/b")),
        _Look(str(tmp_path), marker="marker"),
    ]
    assert look(looks) == [
        "no such file or directory",
        "it is another file there, of 4 bytes for 3",
        "not a directory",
        "it is another folder there",
    ]


def test_only_local_paths_are_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_use("demo") == []
    assert model_use("/m") == [PathUse("--model", "/m/model.safetensors")]
    assert pictures_use("INPUT", [None, "s3://b/a.jpg", Path("/a.jpg"), "/b.jpg", "/c.jpg", "/d.jpg"]) == [
        PathUse("INPUT", path) for path in ("/a.jpg", "/b.jpg", "/c.jpg")
    ]
    assert engine_use("--captioner", None) == []
    assert engine_use("--captioner", DescriptionSettings(engine="transformers", source="some/name")) == []
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)  # `demo` is the captioner that ships, also beside a folder of this name
    assert engine_use("--captioner", DescriptionSettings(engine="transformers", source="demo")) == []
    (tmp_path / "blip").mkdir()
    folder, file = str(tmp_path / "blip"), str(tmp_path / "c.json")
    assert engine_use("--captioner", DescriptionSettings(engine="transformers", source=folder)) == [
        PathUse("--captioner", f"{folder}/config.json")
    ]
    assert engine_use("--captioner", DescriptionSettings(engine="precomputed", source=file)) == [
        PathUse("--captioner", file)
    ]


def test_no_cluster_is_joined_where_there_is_none_or_nothing_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "ray_running", lambda _: pytest.fail("Ray was started"))
    check_cluster(ClusterSettings(), [PathUse("OUT", "/out", writes=True)])
    check_cluster(ClusterSettings(address="auto"), [PathUse("OUT", "s3://b/out", writes=True)])


def test_everything_that_is_demanded_must_be_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, int]] = []
    monkeypatch.setattr(reach, "ray_running", lambda _: nullcontext())
    monkeypatch.setattr(reach, "check_possible", lambda needs, workers, *_, **__: asked.append((needs, workers)))
    monkeypatch.setattr(reach, "check_shared", lambda _: None)
    demands = [({"CPU": 0.5, "GPU": 0.5}, 3), ({"GPU": 0.5}, 1)]
    check_cluster(ClusterSettings(address="auto"), [], demands)
    assert asked == demands


@pytest.mark.parametrize(("machine", "is_said"), [({"memory": 1.0}, True), ({"CPU": 4.0}, False)])
def test_a_cluster_without_machines_for_work_is_asked_later_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, float], *, is_said: bool
) -> None:
    monkeypatch.setattr(reach, "machines_alive", lambda: [machine])
    notes: list[str] = []
    note_unasked([PathUse("--model", "s3://b/m"), PathUse("OUT", "/out", writes=True), PathUse("INPUT", "/a")],
                 notes.append)  # fmt: skip
    assert bool(notes) == is_said
    if is_said:
        assert notes[0].startswith("OUT /out and 1 more paths on the disk of this machine: the cluster has no machine")
    note_unasked([PathUse("--model", "s3://b/m")], pytest.fail)


def test_machines_that_come_during_the_work_are_asked(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ray.nodes()[0]
    present: list[dict[str, object]] = []
    monkeypatch.setattr(reach, "_other_machines", lambda: list(present))
    monkeypatch.setattr(reach, "_LOOK_S", 0.0)
    (tmp_path / "a").write_bytes(b"abc")
    uses = [PathUse("INPUT", str(tmp_path / "a")), PathUse("OUT", str(tmp_path / "out"), writes=True)]

    with late_machines_asked(uses) as check:
        check()
        present.append(here)  # stands for another machine, which sees the same files
        check()
        markers = [path.name for path in tmp_path.iterdir() if path.name != "a"]
        assert len(markers) == 1
        wait_until(lambda: check() or [path.name for path in tmp_path.iterdir()] == ["a"])
        check()  # it is asked once

    def fail(looks: list[object]) -> list[str | None]:
        return ["no such file or directory", None]

    present.clear()
    monkeypatch.setattr(reach, "look", fail)
    with late_machines_asked(uses) as check:
        present.append(here)
        with pytest.raises(PathNotShared, match=r"INPUT .*/a cannot be read on 1 .* of 2 machines: no such file"):
            wait_until(lambda: check() or False)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    present.clear()
    with late_machines_asked(uses) as check:
        present.append(here)
        check()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]  # the work ended before the machine answered


def test_one_machine_is_not_asked(ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "_ask", lambda *_: pytest.fail("a machine was asked"))
    check_shared([PathUse("OUT", str(tmp_path / "out"), writes=True)])
    assert list(tmp_path.iterdir()) == []
