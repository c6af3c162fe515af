"""Local paths of a submitted command: which they are, and which are refused."""

from pathlib import Path
from typing import Any

import pytest

from asap.errors import ConfigError
from jobs.evaluate.settings import EvaluateSettings
from jobs.scan.settings import ScanSettings
from jobs.submit.shared_paths import check_whole, local_paths
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
    "values",
    [
        {"input": "a.jsonl"}, {"out": "./out"}, {"out": "evaluation"}, {"log_file": "log"}, {"init": ["w.pth"]},
        {"tokenizer": "./words"}, {"tokenizer": "../words"}, {"tokenizer": "~/words"}, {"tokenizer": "a/b/words"},
        {"files": {"train": ["a.json", "./b.json"]}}, {"files": {"val": ["../b.json"]}}, {"files": {"test": ["~/b"]}},
    ],
)  # fmt: skip
def test_relative_paths_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"is relative to a folder of this machine, .* Give s3://, or the whole path"):
        check_whole(values)


def test_whole_paths_and_addresses_are_not_refused() -> None:
    check_whole({"input": "/a.jsonl", "out": "s3://b/o", "corpus": "file:///c", "model": "demo", "log_file": "-"})
    for tokenizer in (None, "train", "bert-base-uncased", "org/name", "/words", "s3://b/words/of/bert"):
        check_whole({"tokenizer": tokenizer})
    check_whole({"files": {"train": ["a.json", "metadata/a.json", "/a.json", "s3://b/a.json"]}})


def test_a_folder_here_with_the_name_of_a_hub_is_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words").mkdir()
    with pytest.raises(ConfigError, match="tokenizer 'words' is relative to a folder of this machine"):
        check_whole({"tokenizer": "words"})
