"""Local paths of a submitted command: which they are, and whether the machines of a cluster see them."""

from pathlib import Path
from typing import Any

import pytest

from asap.errors import ConfigError
from jobs.errors import JobError
from jobs.evaluate.settings import EvaluateSettings
from jobs.scan.settings import ScanSettings
from jobs.submit.shared_paths import check_shared, check_whole, local_paths
from jobs.train.settings import TrainSettings


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (ScanSettings(input="s3://b/p.jsonl", out="s3://b/o"), set()),
        (ScanSettings(input="/p.jsonl", out="file:///o", model="/m"), {"input", "out", "model"}),
        (
            ScanSettings(input="s3://b/p", out="s3://b/o", captions={"engine": "precomputed", "source": "/c.json"}),
            {"captions.source"},
        ),
        (
            ScanSettings(input="s3://b/p", out="s3://b/o", captions={"engine": "transformers", "source": "org/name"}),
            set(),
        ),
        (
            TrainSettings(
                corpus="/c", out="s3://b/o", test_corpus="/t", captions=["/a.json", "s3://b/c.json"],
                init=("/w.pth", "timm:vit_base_patch16_224", "bert:bert-base-uncased", "s3://b/w.pth", "demo"),
            ),
            {"corpus", "test_corpus", "captions[0]", "init[0]"},
        ),
        (EvaluateSettings(model="demo", corpus="s3://b/c", pictures="/p"), {"out", "pictures"}),
    ],
)  # fmt: skip
def test_local_paths_are_found_by_the_name_of_their_setting(settings: Any, names: set[str]) -> None:
    assert set(local_paths(dict(settings))) == names


@pytest.mark.parametrize(
    "values", [{"input": "a.jsonl"}, {"out": "./out"}, {"out": "evaluation"}, {"log_file": "log"}, {"init": ["w.pth"]}]
)
def test_relative_paths_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"is relative to a folder of this machine, .* Give s3://, or the whole path"):
        check_whole(values)


def test_whole_paths_and_addresses_are_not_refused() -> None:
    check_whole({"input": "/a.jsonl", "out": "s3://b/o", "corpus": "file:///c", "model": "demo", "log_file": "-"})


@pytest.mark.usefixtures("ray_here")
class TestMachines:
    def test_paths_that_every_machine_sees_are_taken_and_nothing_is_left(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").touch()
        check_shared({"input": str(tmp_path / "a.jsonl"), "out": str(tmp_path / "new/out")})
        assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]

    def test_a_path_that_a_machine_does_not_see_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(
            JobError, match=r"input /none is not a folder or file that .* 1 of 1 machines do not see it"
        ):
            check_shared({"input": "/none", "out": str(tmp_path)})
        assert list(tmp_path.iterdir()) == []

    def test_the_file_of_a_calibration_is_probed_in_its_folder(self, tmp_path: Path) -> None:
        (tmp_path / "policy.json").write_text("{}")
        check_shared({"out": str(tmp_path / "policy.json")})
        assert (tmp_path / "policy.json").read_text() == "{}"

    def test_an_out_that_cannot_be_written_to_is_refused(self) -> None:
        with pytest.raises(JobError, match=r"out /proc/none cannot be written to on .*No such file or directory"):
            check_shared({"out": "/proc/none"})
