"""A scan whose captions come from an endpoint."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from asap.errors import ConfigError
from asap.finding import Pair
from asap.predictor import Predictor
from jobs.errors import JobDiffers
from jobs.scan import captioning
from jobs.scan.run import scan
from jobs.scan.settings import ScanSettings
from jobs.sharing import NOTHING, Claim, Share, held_share
from tests.support.description_jobs import flagging
from tests.support.endpoint import Handler, completion, endpoint
from tests.support.pictures import CAPTIONS
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


@pytest.mark.slow
def test_a_job_on_a_cluster_holds_one_share_from_the_trial_to_the_last_pass(
    ray_here: None, pictures: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims: list[Claim] = []

    class Noted(Share):
        def __init__(self, claim: Claim) -> None:
            claims.append(claim)
            super().__init__(claim)

        def replace(self, claim: Claim, *, is_awaited: bool = True) -> None:
            claims.append(claim)
            super().replace(claim, is_awaited=is_awaited)

    monkeypatch.setattr("jobs.sharing.Share", Noted)
    with endpoint(lambda handler, _: handler.send(200, json.dumps(completion("a crowd")))) as (address, _):
        settings = _settings(pictures, model_folder, address, key_env=None)
        # The test's Ray stands for the cluster: what runs in this process is joined, whatever the address.
        settings = settings.model_copy(update={"address": "the Ray of the tests"})
        assert [row["caption"] for row in _rows(scan(settings))] == ["a crowd"] * 4
    room = Claim.of_workers([{"CPU": 0.75}, {"CPU": 0.35}], is_at_work=False)  # what is waited for
    stages = [{"CPU": cpus, "GPU": 0} for cpus in (0.25, 0.1, 0.75)]
    work = Claim.of_workers(stages, {"CPU": math.inf, "GPU": 0}, is_at_work=True)
    # The share is made once, and asks for nothing before the machines are known, after the last row, and at the end.
    assert claims == [NOTHING, room, room, work, NOTHING, NOTHING]
    assert held_share() is None


def _rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(Path(summary["folder"]) / "results").to_pylist()
    return rows


AGREEMENTS = ("agreement_image_text", "agreement_image_caption", "agreement_text_caption")


@pytest.fixture
def pairs(tmp_path: Path, jpeg: Callable[..., bytes]) -> Path:
    """Write six pairs, of which the last two have no text. The width of a picture names its row: 100 for row 0."""
    lines = []
    for row in range(6):
        (tmp_path / f"{row}.jpg").write_bytes(jpeg(row, (100 + row, 60)))
        text = {"text": CAPTIONS[row]} if row < 4 else {}
        lines.append(json.dumps({"id": str(row), "image": f"{row}.jpg"} | text))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    return tmp_path


@pytest.mark.slow
def test_flagged_pairs_are_captioned_after_they_are_judged_and_a_failure_is_a_field_of_the_row(
    ray_here: None, pairs: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.from_folder(model_folder, "cpu")
    findings = predictor.predict([Pair(pairs / f"{row}.jpg", CAPTIONS[row]) for row in range(4)])
    *_, below, refused, best = sorted(range(4), key=lambda row: findings[row].score or 0)
    threshold = sum(findings[row].score or 0 for row in (below, refused)) / 2
    asked: list[int] = []
    is_away = True

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        row = Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))).width - 100
        if row < 100:  # else the gray picture
            with handler.server.lock:
                asked.append(row)
        if row == refused and is_away:
            handler.send(500, "oops")
        else:
            handler.send(200, json.dumps(completion("a crowd in the street")))

    with endpoint(answer) as (address, _):
        settings = _settings(pairs, Path(flagging(model_folder, pairs, threshold)), address, key_env=None).model_copy(
            update={"input": str(pairs / "pairs.jsonl"), "caption_pairs": "flagged"}
        )
        # A first try is stopped while the captions are published. The next one asks for none again.
        with monkeypatch.context() as patch:
            patch.setattr(captioning, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                scan(settings)
        folder = Path(settings.job_folder.uri)
        record = json.loads((folder / "job.json").read_text())
        assert (record["state"], record["captioning"]["rows"]) == ("cancelled", 4)
        assert sorted(asked) == sorted([refused, best, 4, 5])
        summary = scan(settings)
        rows = {row["row_id"]: row for row in _rows(summary)}
        page = Path(summary["report"]).read_text()
        assert len(asked) == 4
        is_away = False
        again = scan(settings.model_copy(update={"retry_errors": ("retryable",)}))
        assert asked[4:] == [refused]
        with pytest.raises(JobDiffers, match=r"settings\.caption_pairs was 'flagged' and is 'all'"):
            scan(settings.model_copy(update={"caption_pairs": "all"}))

    assert (summary["pairs"], summary["errors"]) == (6, 0)
    assert summary["captions"] == {"written": 3, "failed": {"server_error": 1}}
    assert [row_id for row_id in sorted(rows) if rows[row_id]["caption"]] == sorted([best, 4, 5])
    assert all(rows[best][name] is not None for name in AGREEMENTS)
    assert [rows[4][name] is None for name in AGREEMENTS] == [True, False, True]
    assert rows[4]["words"] is None
    assert (rows[refused]["status"], rows[refused]["verdict"]) == ("ok", "manipulated")
    error = rows[refused]["caption_error"]
    assert (error["kind"], error["detail"], error["retryable"]) == ("server_error", "HTTP 500: oops", True)
    assert "server_error" in page

    assert again["captions"] == {"written": 4, "failed": {}}
    after = {row["row_id"]: row for row in _rows(again)}
    assert {row_id for row_id in after if after[row_id] != rows[row_id]} == {refused}
    unchanged = {"caption": None, "caption_error": error} | dict.fromkeys(AGREEMENTS[1:])
    assert after[refused] | unchanged == rows[refused]
    assert not (folder / "_captions").exists()
    assert (folder / "_SUCCESS").exists()


@pytest.mark.chaos
@pytest.mark.slow
def test_a_captioner_that_is_killed_loses_and_doubles_no_row_and_takes_no_verdict(
    ray_here: None, deadly_describer: None, tmp_path: Path, jpeg: Callable[..., bytes], model_folder: Path
) -> None:
    lines = []
    for row in range(8):
        (tmp_path / f"{row}.jpg").write_bytes(jpeg(row))
        lines.append({"id": str(row), "image": f"{row}.jpg", "text": f"A team{' of poison' * (row == 5)}"})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "captions.json").write_text(json.dumps({str(row): f"caption {row}" for row in range(8)}))
    summary = scan(
        ScanSettings(
            input=str(tmp_path / "pairs.jsonl"), out=str(tmp_path / "out"), model=flagging(model_folder, tmp_path),
            batch_size=2, caption_pairs="flagged",
            captions={"engine": "precomputed", "source": str(tmp_path / "captions.json")},  # type: ignore[arg-type]
        )
    )  # fmt: skip
    assert (tmp_path / "captions.json.died").exists()
    rows = sorted(_rows(summary), key=lambda row: row["row_id"])
    assert [row["row_id"] for row in rows] == list(range(8))
    assert {row["verdict"] for row in rows} == {"manipulated"}
    assert [row["caption"] for row in rows] == [None if row == 5 else f"caption {row}" for row in range(8)]
    assert rows[5]["caption_error"]["kind"] == "process_died"
    assert "died each time" in rows[5]["caption_error"]["detail"]


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
        ({"engine": "vllm", "source": "m"}, "device is 'cpu', and the engine vllm runs on GPUs only"),
        (
            {"engine": "transformers", "source": "m", "kind": "explanation"},
            "captions cannot be made by an engine of the kind",
        ),
    ],
)
def test_an_engine_that_a_scan_cannot_run_is_refused(captions: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(sentence)):
        ScanSettings(input="/a.csv", out="/out", device="cpu", captions=captions)  # type: ignore[arg-type]


def test_flagged_pairs_cannot_be_captioned_without_a_captioner() -> None:
    with pytest.raises(
        ValidationError, match=r"caption_pairs is 'flagged', and there is neither a captioner nor an explainer"
    ):
        ScanSettings(input="/a.csv", out="/out", caption_pairs="flagged")
