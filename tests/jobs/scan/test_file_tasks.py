"""Tasks over the files of a folder, in the processes of a real Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from asap.errors import ConfigError
from asap.storage.location import Location
from jobs.errors import JobFailed
from jobs.scan.file_tasks import TRIES, run_on_files
from jobs.sharing import Claim, shared
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def _sent_by_value(ray_here: None) -> Iterator[None]:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes cannot import the tests
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def files(tmp_path: Path) -> list[Location]:
    return [Location(str(tmp_path / f"{number}.parquet")) for number in range(6)]


class _Inside:
    """An actor that counts the tasks that are at work."""

    def __init__(self) -> None:
        self._now = self._most = 0

    def enter(self) -> None:
        self._now += 1
        self._most = max(self._most, self._now)

    def leave(self) -> None:
        self._now -= 1

    def most(self) -> int:
        return self._most


def _meet(inside: object, file: Location) -> None:
    """Wait until two tasks have been at work together, and leave a file."""
    ray.get(inside.enter.remote())  # type: ignore[attr-defined]
    wait_until(lambda: ray.get(inside.most.remote()) >= 2)  # type: ignore[attr-defined]
    Path(file.uri).touch()
    ray.get(inside.leave.remote())  # type: ignore[attr-defined]


def test_every_file_is_worked_on_and_no_more_at_a_time_than_there_are_cpus(files: list[Location]) -> None:
    inside = ray.remote(num_cpus=0)(_Inside).remote()
    run_on_files(_meet, inside, iter(files))
    assert all(Path(file.uri).exists() for file in files)
    assert ray.get(inside.most.remote()) == 2
    run_on_files(_meet, inside, [])


def test_on_a_cluster_a_task_asks_for_little_and_all_of_them_keep_to_the_share(files: list[Location]) -> None:
    inside = ray.remote(num_cpus=0)(_Inside).remote()
    with shared() as share:
        other = Claim({"CPU": 1.5}, {"CPU": 1.5})
        ray.get(ray.get_actor("claims", "asap").claim.remote("another", other))
        run_on_files(_meet, inside, iter(files))
        assert share.resources["CPU"] == pytest.approx(0.5)
        ray.get(ray.get_actor("claims", "asap").release.remote("another"))
    assert all(Path(file.uri).exists() for file in files)
    assert ray.get(inside.most.remote()) == 2


def _die_at_first(number: str, file: Location) -> None:
    tries = Path(f"{file.uri}.tries")
    tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    if file.name == f"{number}.parquet" and len(tries.read_text()) < 2:
        os._exit(1)
    Path(file.uri).touch()


def test_a_file_whose_process_dies_is_worked_on_again(files: list[Location]) -> None:
    run_on_files(_die_at_first, "3", files)
    assert all(Path(file.uri).exists() for file in files)
    assert Path(f"{files[3].uri}.tries").read_text() == "xx"


def _die(shared: None, file: Location) -> None:
    os._exit(1)


def test_a_file_whose_process_dies_each_time_is_an_error_that_says_how_to_resume(files: list[Location]) -> None:
    with pytest.raises(JobFailed, match=rf"{files[0].uri} died {TRIES} times: .*run the same command again to resume"):
        run_on_files(_die, None, files[:1])


def _refuse(shared: None, file: Location) -> None:
    raise ConfigError(f"{file.name} is refused") if file.name == "2.parquet" else ValueError("a defect")


def test_an_error_of_a_task_is_raised_as_it_is(files: list[Location]) -> None:
    with pytest.raises(ConfigError, match=r"\A2\.parquet is refused\Z"):
        run_on_files(_refuse, None, files[2:3])
    with pytest.raises(ValueError, match="a defect"):
        run_on_files(_refuse, None, files[:1])


def _stop() -> None:
    raise KeyboardInterrupt


def _wait_for_ever(shared: None, file: Location) -> None:
    wait_until(lambda: False)


def test_a_stop_ends_the_tasks_under_way(files: list[Location]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_on_files(_wait_for_ever, None, files, _stop)
    wait_until(lambda: ray.available_resources().get("CPU") == 2)
