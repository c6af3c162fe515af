"""A scan whose captions come from an endpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from asap.errors import ConfigError
from jobs.scan.run import scan
from jobs.scan.settings import ScanSettings
from tests.support.endpoint import Handler, completion, endpoint
from tests.support.waiting import HANG_S

KEY = "sk-secret-0123456789"


def _settings(tmp_path: Path, model: Path, address: str, key_env: str | None = "TEST_ENDPOINT_KEY") -> ScanSettings:
    way = {"address": address, "key_env": key_env, "timeout_s": HANG_S, "deadline_s": HANG_S, "retries": 0}
    captions = {"engine": "openai", "source": "tiny", "endpoint": way}
    values = {"input": str(tmp_path / "pictures"), "out": str(tmp_path / "out"), "model": str(model)}
    return ScanSettings(**values, captions=captions)  # type: ignore[arg-type]


@pytest.fixture
def pictures(tmp_path: Path, jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        (tmp_path / "pictures" / f"{number}.jpg").write_bytes(jpeg(number))
    return tmp_path


@pytest.mark.slow
def test_a_scan_asks_the_endpoint_and_a_fault_costs_one_row_which_is_tried_again(
    ray_here: None, pictures: Path, model_folder: Path
) -> None:
    asked: list[str] = []

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        with handler.server.lock:
            asked.append(body["model"])
            number = len(asked)
        if number == 3:  # the first is the gray picture
            handler.send(500, "oops")
        else:
            handler.send(200, json.dumps(completion("a crowd in the street")))

    with endpoint(answer) as (address, _):
        # The test's Ray runs already, without a key in its environment.
        settings = _settings(pictures, model_folder, address, key_env=None)
        summary = scan(settings)
        first = _rows(summary)
        again = scan(settings.model_copy(update={"retry_errors": ("retryable",)}))
    assert sorted(row["error_code"] or "" for row in first) == ["", "", "", "caption_failed"]
    (failed,) = [row for row in first if row["error_code"]]
    assert failed["retryable"]
    assert "HTTP 500: oops" in failed["error_detail"]
    assert [row["caption"] for row in _rows(again)] == ["a crowd in the street"] * 4
    record = json.loads((Path(summary["folder"]) / "job.json").read_text())
    assert (record["captioner"]["model"], record["captioner"]["wrote"]) == ("tiny", "a crowd in the street")
    assert record["captioner"]["prompt"] == "Give the caption of this picture"


def _rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(Path(summary["folder"]) / "results").to_pylist()
    return rows


def test_a_wrong_key_is_found_before_a_job_folder_is_written(pictures: Path, model_folder: Path) -> None:
    with endpoint(lambda handler, _: handler.send(401, "{}")) as (address, _):
        settings = _settings(pictures, model_folder, address)
        with pytest.raises(
            ConfigError, match=r"HTTP 401.* Check the key in the environment variable TEST_ENDPOINT_KEY"
        ):
            scan(settings)
    assert not (Path(settings.job_folder.uri) / "job.json").exists()
    assert not (Path(settings.job_folder.uri) / "manifest").exists()


def test_a_missing_key_is_found_with_the_rest_of_the_command(
    pictures: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEST_ENDPOINT_KEY")
    with pytest.raises(ConfigError, match="TEST_ENDPOINT_KEY is not set"):
        scan(_settings(pictures, model_folder, "http://127.0.0.1:1/v1"))


@pytest.mark.parametrize(
    ("captions", "sentence"),
    [
        ({"engine": "vllm", "source": "m"}, "a scan cannot run the engine vllm"),
        ({"engine": "transformers", "source": "m", "kind": "explanation"}, "a scan needs captions, not explanations"),
    ],
)
def test_an_engine_that_a_scan_cannot_run_is_refused(captions: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        ScanSettings(input="/a.csv", out="/out", captions=captions)  # type: ignore[arg-type]
