"""Answers of one machine about the paths of a job, and which paths are asked about."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import reach
from jobs.descriptions.settings import DescriptionSettings
from jobs.reach import PathUse, check_cluster, check_shared, engine_use, look, model_use, pictures_use
from jobs.settings import ClusterSettings

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


def test_one_machine_is_not_asked(ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "_ask", lambda *_: pytest.fail("a machine was asked"))
    check_shared([PathUse("OUT", str(tmp_path / "out"), writes=True)])
    assert list(tmp_path.iterdir()) == []
