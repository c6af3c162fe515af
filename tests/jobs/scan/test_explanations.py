"""Scans whose texts are explained by an engine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from asap.errors import ConfigError
from jobs.errors import JobDiffers
from jobs.scan import captioning
from jobs.scan.passes import ScanProgress
from jobs.scan.run import scan
from jobs.scan.settings import ScanSettings
from tests.support.description_jobs import flagging, write_pairs
from tests.support.endpoint import Handler, completion, endpoint, refuse, respond
from tests.support.pictures import draw_jpeg
from tests.support.waiting import HANG_S

KEY = "sk-secret-0123456789"
REFUSED, AWAY, TEXTLESS, ROWS = 1, 2, 4, 5


def _engine(address: str, **changes: Any) -> dict[str, Any]:
    way = {"address": address, "key_env": None, "timeout_s": HANG_S, "deadline_s": HANG_S, "retries": 0}
    return {"engine": "openai", "source": "tiny", "endpoint": way | changes}


def _settings(folder: Path, model: str, **changes: Any) -> ScanSettings:
    values = {"input": str(folder / "pairs.jsonl"), "out": str(folder / "out"), "model": model, "device": "cpu"}
    return ScanSettings(**(values | {"batch_size": 2} | changes))


def _rows(summary: dict[str, Any]) -> dict[int, dict[str, Any]]:
    table = pq.read_table(Path(summary["folder"]) / "results")
    rows = {row["row_id"]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows
    return rows


class _Endpoint:
    """An endpoint that captions and explains. It fails at two texts until it `is_healed`."""

    def __init__(self) -> None:
        self.explained: list[int] = []
        self.captioned = 0
        self.is_healed = False

    def __call__(self, handler: Handler, body: dict[str, Any]) -> None:
        content = body["messages"][0]["content"]
        # The published prompt ends with the text in quotes, which ends with its row. The text of the trial does not.
        found = re.search(r" (\d+)\"$", content) if isinstance(content, str) else None
        row = int(found[1]) if found else None
        with handler.server.lock:
            self.captioned += not isinstance(content, str)
            if row is not None:
                self.explained.append(row)
        if row == REFUSED:
            refuse(handler, body)
        elif row == AWAY and not self.is_healed:
            handler.send(500, "oops")
        else:
            text = f"explained {row}" if isinstance(content, str) else "a crowd in the street"
            handler.send(200, json.dumps(completion(text)))


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [pytest.param("all", marks=pytest.mark.drill), "flagged"])
def test_texts_are_explained_beside_the_captions_and_a_fault_takes_neither_verdict_nor_caption(
    ray_here: None, tmp_path: Path, model_folder: Path, pairs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path, ROWS, textless=(TEXTLESS,))
    answer, seen = _Endpoint(), list[ScanProgress]()
    with endpoint(answer) as (address, _):
        settings = _settings(
            tmp_path, flagging(model_folder, tmp_path), captions=_engine(address), explanations=_engine(address),
            caption_pairs=pairs,
        )  # fmt: skip
        if pairs == "flagged":  # a first try is stopped while it publishes, and the next asks for nothing again
            with monkeypatch.context() as patch:
                patch.setattr(captioning, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    scan(settings)
            before = sorted(answer.explained)
        summary = scan(settings, seen.append)
        rows, page = _rows(summary), Path(summary["report"]).read_text()
        if pairs == "flagged":
            assert sorted(answer.explained) == before
        explained = sorted(answer.explained)
        answer.is_healed = True
        again = scan(settings.model_copy(update={"retry_errors": ("retryable",)}))
        with pytest.raises(JobDiffers, match=r"settings\.explanations"):
            scan(settings.model_copy(update={"explanations": None}))

    assert explained == [0, 1, 2, 3], "each text once"
    assert answer.explained[len(explained) :] == [AWAY], "only what failed and may succeed is asked for again"
    assert any("explained None" in progress.stage for progress in seen), "the trial shows what was written"
    assert {row["verdict"] for row in rows.values()} == {"manipulated"}
    assert {row["caption"] for row in rows.values()} == {"a crowd in the street"}
    assert {row: rows[row]["explanation"] for row in rows} == {
        0: "explained 0", REFUSED: None, AWAY: None, 3: "explained 3", TEXTLESS: None,
    }  # fmt: skip
    errors = {row: rows[row]["explanation_error"] for row in rows}
    assert errors[AWAY] == {"kind": "server_error", "detail": "HTTP 500: oops", "retryable": True}
    assert (errors[REFUSED]["kind"], errors[REFUSED]["retryable"]) == ("refusal", False)
    assert errors[0] is errors[3] is errors[TEXTLESS] is None
    assert (summary["pairs"], summary["errors"]) == (ROWS, 0)
    assert summary["explanations"] == {"written": 2, "failed": {"refusal": 1, "server_error": 1}}
    assert "explained 3" in page
    assert "server_error" in page

    record = json.loads((Path(summary["folder"]) / "job.json").read_text())
    assert (record["explainer"]["model"], record["explainer"]["wrote"]) == ("tiny", "explained None")
    assert record["explainer"]["prompt"].startswith("Refer to the following text")
    assert record["captioner"]["prompt"] == "Give the caption of this picture"

    after = _rows(again)
    assert again["explanations"] == {"written": 3, "failed": {"refusal": 1}}
    assert after[AWAY] | {"explanation": None, "explanation_error": errors[AWAY]} == rows[AWAY]
    assert {row for row in rows if after[row] != rows[row]} == {AWAY}


@pytest.mark.slow
@pytest.mark.parametrize("pairs", ["all", pytest.param("flagged", marks=pytest.mark.drill)])
def test_explanations_from_a_file_need_no_captioner_and_a_pair_without_a_text_has_none(
    ray_here: None, tmp_path: Path, model_folder: Path, pairs: str
) -> None:
    write_pairs(tmp_path, 4, textless=(3,))
    (tmp_path / "explanations.json").write_text(json.dumps({"0": "because", "1": "it is so", "3": "unread"}))
    explanations = {"engine": "precomputed", "source": str(tmp_path / "explanations.json")}
    model = flagging(model_folder, tmp_path)
    summary = scan(_settings(tmp_path, model, explanations=explanations, caption_pairs=pairs))
    rows = _rows(summary)
    assert [rows[row]["explanation"] for row in range(4)] == ["because", "it is so", None, None]
    assert [(rows[row]["explanation_error"] or {}).get("kind") for row in range(4)] == [None, None, "no_entry", None]
    assert [rows[row]["verdict"] for row in range(4)] == ["manipulated"] * 3 + [None]
    assert rows[3]["error_code"] == "text_missing"
    assert all(row["caption"] is None and row["caption_error"] is None for row in rows.values())
    record = json.loads((Path(summary["folder"]) / "job.json").read_text())
    assert record["explainer"]["file"] == str(tmp_path / "explanations.json")
    assert "captioner" not in record


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("pairs", [pytest.param("all", marks=pytest.mark.drill), "flagged"])
def test_an_explainer_that_is_killed_loses_and_doubles_no_row_and_takes_no_verdict(
    ray_here: None, deadly_describer: None, tmp_path: Path, model_folder: Path, pairs: str
) -> None:
    lines = []
    for row in range(8):
        (tmp_path / f"{row}.jpg").write_bytes(draw_jpeg(row))
        lines.append({"id": str(row), "image": f"{row}.jpg", "text": f"A team{' of poison' * (row == 5)}"})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = tmp_path / "explanations.json"
    source.write_text(json.dumps({str(row): f"explanation {row}" for row in range(8)}))
    explanations = {"engine": "precomputed", "source": str(source)}
    model = flagging(model_folder, tmp_path)
    rows = _rows(scan(_settings(tmp_path, model, explanations=explanations, caption_pairs=pairs)))
    assert Path(f"{source}.died").exists()
    assert sorted(rows) == list(range(8))
    assert {row["verdict"] for row in rows.values()} == {"manipulated"}
    assert [rows[row]["explanation"] for row in range(8)] == [
        None if row == 5 else f"explanation {row}" for row in range(8)
    ]
    assert rows[5]["explanation_error"]["kind"] == "process_died"
    assert "died each time" in rows[5]["explanation_error"]["detail"]


def test_a_wrong_key_of_the_explainer_is_found_before_a_job_folder_is_written(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path, 2)
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    with endpoint(respond(401, json.dumps({"error": {"message": f"Incorrect: {KEY}"}}))) as (address, _):
        explanations = _engine(address, key_env="TEST_ENDPOINT_KEY")
        settings = _settings(tmp_path, str(model_folder), explanations=explanations)
        with pytest.raises(ConfigError, match=r"HTTP 401.* Check the key .* TEST_ENDPOINT_KEY") as caught:
            scan(settings)
    assert KEY not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("explanations", "sentence"),
    [
        ({"engine": "transformers", "source": "m", "kind": "caption"}, "explanations cannot be made by an engine of"),
        ({"engine": "vllm", "source": "m"}, "device is 'cpu', and the engine vllm runs on GPUs only"),
        ({"engine": "transformers", "source": "m", "prompt": "Why?"}, "the prompt has no {text}"),
    ],
)
def test_an_explainer_that_a_scan_cannot_run_is_refused(explanations: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        ScanSettings(input="/a.csv", out="/out", device="cpu", explanations=explanations)  # type: ignore[arg-type]


def test_explanations_are_part_of_what_decides_the_rows_and_a_scan_without_them_resumes_as_before() -> None:
    def identity(**changes: Any) -> dict[str, Any]:
        return ScanSettings(input="/a.csv", out="/out", **changes).identity()

    assert identity().keys().isdisjoint({"explanations", "caption_pairs"})
    explained = identity(explanations={"engine": "transformers", "source": "m"}, caption_pairs="flagged")
    assert (explained["explanations"]["source"], explained["caption_pairs"]) == ("m", "flagged")
    assert explained["explanations"]["max_new_tokens"] == 160
