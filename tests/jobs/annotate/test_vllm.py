"""Jobs of annotations through the stages of vLLM, with another model behind them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.annotate.run import annotate
from jobs.annotate.settings import AnnotateSettings
from jobs.scan.passes import ScanProgress
from tests.support.fake_vllm import INPUT_TOKENS, OUTPUT_TOKENS, SETTINGS, fake_vllm
from tests.support.pictures import draw_jpeg

BROKEN = 4
TEXTS = ["a crowd", "a crowd", "a bad one", "a hungry one", "a long one", "", "a crowd", "a team"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], list[str]]]:
    with fake_vllm(monkeypatch, tmp_path) as asked:
        yield asked


def _settings(folder: Path, *kinds: str, **changes: Any) -> AnnotateSettings:
    values: dict[str, Any] = {"input": str(folder / "pairs.jsonl"), "out": str(folder / "out"), "batch_size": 3}
    return AnnotateSettings(**(values | dict.fromkeys(kinds, SETTINGS) | changes))


def _write_pairs(folder: Path, texts: list[str]) -> None:
    """Write a pair for each text. Two pairs each have the same picture, and one picture is broken."""
    lines = []
    for row, text in enumerate(texts):
        picture = draw_jpeg(row // 2, (100 + row // 2, 60))
        (folder / f"{row}.jpg").write_bytes(picture if row != BROKEN else b"\xff\xd8 broken")
        lines.append(json.dumps({"id": str(row), "image": f"{row}.jpg", "text": text}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows = pq.read_table(folder / "out/annotations").to_pylist()
    return sorted(rows, key=lambda row: int(row["row_id"]))


@pytest.mark.slow
def test_the_stages_describe_what_is_not_known_and_a_fault_costs_one_description(
    ray_here: None, tmp_path: Path, asked: Callable[[], list[str]]
) -> None:
    _write_pairs(tmp_path, TEXTS)
    seen: list[ScanProgress] = []
    settings = _settings(tmp_path, "captions", "explanations")
    summary = annotate(settings, seen.append)
    rows, first = _rows(tmp_path), Counter(asked())
    trials = ["width 256", "A woman in a red coat waves to a crowd in front of the town hall."]
    assert [first.pop(trial) for trial in trials] == [1, 1]
    assert any("describes a gray picture (100 tokens in, 7 out): a picture of width 256" in one.stage for one in seen)

    widths = [100, 100, 101, 101, None, 102, 103, 103]
    assert [row["caption"] for row in rows] == [width and f"a picture of width {width}" for width in widths]
    assert [row["caption_error"] for row in rows] == [None] * 4 + ["unsupported_format"] + [None] * 3
    assert [row["explanation_error"] for row in rows] == [
        None, None, "model_error", "out_of_memory", None, "text_missing", None, None,
    ]  # fmt: skip
    assert [row["explanation"] for row in rows] == [
        None if row["explanation_error"] else f"this is about {text}" for row, text in zip(rows, TEXTS, strict=True)
    ]
    assert "ValueError: The prompt is longer than the model can read" in rows[2]["error_detail"]
    assert (rows[4]["explanation_is_cut"], rows[4]["explanation_output_tokens"]) == (True, 20)
    # A row is new if it was asked for. Rows of one batch with the same picture or text ask once.
    assert first.total() == sum(bool(row[f"{kind}_is_new"]) for row in rows for kind in ("caption", "explanation"))
    assert (rows[0]["caption_is_new"], rows[1]["caption_is_new"]) == (True, False)
    assert set(first) == {"width 100", "width 101", "width 102", "width 103", *filter(None, TEXTS)}
    new = sum(row["caption_is_new"] is True for row in rows)
    assert summary["captions"]["input_tokens"] == INPUT_TOKENS * new
    assert summary["captions"]["output_tokens"] == OUTPUT_TOKENS * new

    record = json.loads((tmp_path / "out/job.json").read_text())["engines"]["caption"]
    assert record["prompt"] == "Give the caption of this picture"
    assert (record["engine"], record["revision"], record["vllm"]) == ("vllm", "0123abc", "0.0")
    before = len(asked())
    assert annotate(settings) == summary
    assert len(asked()) == before, "a job that is done asks nothing"

    again = annotate(settings.model_copy(update={"retry_errors": ("model_error",)}))
    assert asked()[before:] == [*trials, "a bad one"], "the rest of the row is known"
    assert again["error_codes"] == summary["error_codes"]


@pytest.mark.chaos
@pytest.mark.drill
@pytest.mark.slow
def test_a_row_that_ends_the_process_of_the_model_costs_no_other_row(
    ray_here: None, tmp_path: Path, asked: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.scan.pipeline.TRIES", 2)
    texts = ["one", "two", "a deadly one", "three", "", "four"]
    _write_pairs(tmp_path, texts)
    annotate(_settings(tmp_path, "explanations"))
    rows = _rows(tmp_path)
    errors = [None, None, "process_died", None, "text_missing", None]
    assert [row["explanation_error"] for row in rows] == errors
    assert [row["explanation"] for row in rows] == [
        None if error else f"this is about {text}" for text, error in zip(texts, errors, strict=True)
    ]
