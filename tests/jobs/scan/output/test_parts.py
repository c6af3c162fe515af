"""Lists and counts made part by part: by tasks as by this process, and no finished part a second time."""

from __future__ import annotations

from pathlib import Path

import pytest

from asap.errors import StorageError
from asap.storage.files import list_files
from asap.storage.location import Location
from jobs.scan.output import parts as parts_module
from jobs.scan.output.parts import FOLDER, LISTS, write_lists
from jobs.scan.output.tally import Tally
from tests.support.job_folders import failed, scored, write_results, write_scan

FILES = 6


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    folder = Location(str(tmp_path / "job"))
    write_scan(folder)
    for number in range(FILES):
        rows = [
            scored(4 * number, 0.5 + number / 20, "manipulated", "face_swap", words=[], metadata='{"n": 1}'),
            scored(4 * number + 1, 0.1, "authentic"),
            failed(4 * number + 2, f"code{number % 2}", retryable=number < 3),
            scored(4 * number + 3, 0.9, "unfamiliar", familiarity=number / 10, caption="a dog"),
        ]
        write_results(folder, f"{number}", rows)
    write_results(folder, "6", [scored(99, 0.2, "authentic")])
    return folder


def _lists(folder: Location) -> dict[str, bytes]:
    return {name: Path(f"{folder}/{name}.jsonl").read_bytes() for name in LISTS}


def _everything(tally: Tally) -> dict[str, object]:
    assert tally.pairs == 4 * FILES + 1
    return tally.counts()


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a part of every file, and tasks for any number of parts."""
    monkeypatch.setattr(parts_module, "_PART_BYTES", 1)
    monkeypatch.setattr(parts_module, "_FEW_PARTS", 0)


def test_tasks_write_the_lists_and_counts_that_this_process_writes(
    folder: Location, ray_here: None, request: pytest.FixtureRequest
) -> None:
    alone = _everything(write_lists(folder, 3, 2)), _lists(folder)
    assert alone[1]["flagged"].count(b"\n") == FILES
    request.getfixturevalue("many")
    assert (_everything(write_lists(folder, 3, 2)), _lists(folder)) == alone
    assert list(list_files(folder / FOLDER)) == []


def test_a_finished_part_is_not_made_again_unless_its_files_have_changed(folder: Location, many: None) -> None:
    made = list(parts_module._parts(list_files(folder / "results"), 1))
    assert len(made) == FILES + 1
    parts_module._list_part((folder, 3, 2), made[0])
    flagged = Path(f"{folder}/{FOLDER}/{made[0].name}/flagged.jsonl")
    flagged.write_bytes(b"")
    parts_module._list_part((folder, 3, 2), made[0])
    assert flagged.read_bytes() == b""
    write_results(folder, "0", [scored(0, 0.7, "manipulated")])
    changed = next(parts_module._parts(list_files(folder / "results"), 1))
    assert changed.name != made[0].name
    parts_module._list_part((folder, 3, 2), changed)
    assert Path(f"{folder}/{FOLDER}/{changed.name}/flagged.jsonl").read_bytes().count(b"\n") == 1


def test_a_part_that_was_stopped_before_its_counts_is_made_again(
    folder: Location, many: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = next(parts_module._parts(list_files(folder / "results"), 1))

    def refuse(location: Location, data: bytes) -> None:
        raise StorageError(f"{location} cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr(parts_module, "write_bytes", refuse)
        with pytest.raises(StorageError, match="cannot be written"):
            parts_module._list_part((folder, 3, 2), part)
    Path(f"{folder}/{FOLDER}/{part.name}/flagged.jsonl").write_bytes(b"")
    parts_module._list_part((folder, 3, 2), part)
    assert Path(f"{folder}/{FOLDER}/{part.name}/flagged.jsonl").read_bytes().count(b"\n") == 1


def test_files_that_follow_each_other_make_parts_of_a_size(folder: Location) -> None:
    files = list(list_files(folder / "results"))
    size = files[0].size + files[1].size
    found = list(parts_module._parts(files, size))
    assert [info for part in found for info in part.files] == files
    assert all(sum(info.size for info in part.files) >= size for part in found[:-1])
    assert all(sum(info.size for info in part.files[:-1]) < size for part in found)


def test_a_stop_is_noticed_between_two_files(folder: Location) -> None:
    looks = iter(range(2))
    with pytest.raises(StopIteration):
        write_lists(folder, check=lambda: next(looks) and None)
    assert not Path(f"{folder}/flagged.jsonl").exists()
