"""The plan of a job of annotations: counts, and a pilot with a real endpoint."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from jobs.annotate.preview import Preview, preview
from jobs.annotate.settings import AnnotateSettings
from jobs.cli.annotate_tables import preview_tables
from jobs.descriptions.loading import load_engine
from jobs.errors import JobError
from tests.jobs.annotate.test_corpus import pair, write_corpus
from tests.support.endpoint import Handler, completion, endpoint
from tests.support.tiny_captioners import WORDS, save_encoder_decoder
from tests.support.waiting import HANG_S


def _settings(tmp_path: Path, address: str, kinds: tuple[str, ...], **way: Any) -> AnnotateSettings:
    calm = {"address": address, "key_env": None, "timeout_s": HANG_S, "deadline_s": HANG_S, "retries": 0} | way
    engine = {"engine": "openai", "source": "tiny", "endpoint": calm}
    values: dict[str, Any] = {"input": str(tmp_path / "c"), "out": str(tmp_path / "out")} | dict.fromkeys(kinds, engine)
    return AnnotateSettings(**values)


def _shown(found: Preview) -> str:
    console = Console(file=StringIO(), width=100)
    console.print(preview_tables(found))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def _good(handler: Handler, body: dict[str, Any]) -> None:
    handler.send(200, json.dumps(completion("a crowd in the street")))


def test_a_plan_counts_what_differs_and_says_what_the_pilot_took(tmp_path: Path) -> None:
    write_corpus(
        tmp_path / "c",
        train=[pair(1), pair(1, text="another"), pair(2, "b"), pair(3, "c"), pair(4, "b", text=" ")],
    )
    with endpoint(_good) as (address, seen):
        settings = _settings(tmp_path, address, ("captions", "explanations"), input_price=1, output_price=10)
        found = preview(settings)
    assert (found.rows, found.distinct) == (5, {"caption": 3, "explanation": 2})
    assert found.missing == {"caption": 0, "explanation": 1}
    captions = found.pilots["caption"]
    assert (captions.requests, captions.failed, captions.wrote) == (5, 0, "a crowd in the street")
    assert captions.input_tokens == (100, 100, 100)
    assert captions.cost == pytest.approx((3 * 170e-6,) * 3)
    assert 0 < captions.hours[1] <= captions.hours[0] <= captions.hours[2]
    assert len(seen.bodies) == (5 + 1) + (4 + 1)
    assert not (tmp_path / "out").exists()
    shown = _shown(found)
    for words in ("pictures to describe", "tokens out", "a crowd in the street", "7 (7 to 7)", "1 rows have none"):
        assert words in shown


def test_a_small_model_is_tried_with_one_thread_as_a_process_of_the_job_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def load(*arguments: Any) -> Any:
        threads.append(torch.get_num_threads())
        return load_engine(*arguments)

    monkeypatch.setattr("jobs.annotate.preview.load_engine", load)
    write_corpus(tmp_path / "c", train=[pair(1), pair(2, "b")])
    captions = {"engine": "transformers", "source": save_encoder_decoder(tmp_path / "model"), "max_new_tokens": 4}
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = preview(AnnotateSettings(input=str(tmp_path / "c"), out=str(tmp_path / "out"), captions=captions))  # type: ignore[arg-type]
        assert (threads, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)
    assert set(found.pilots["caption"].wrote.split()) <= set(WORDS)
    assert "one for each CPU if the model is small" in " ".join(_shown(found).split())


def test_a_plan_whose_pilot_writes_nothing_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c", train=[pair(1)])
    nothing = "no caption was written in a pilot of 1: HTTP 500"
    with endpoint(lambda handler, _: handler.send(500, "oops")) as (address, _), pytest.raises(JobError, match=nothing):
        preview(_settings(tmp_path, address, ("captions",)))


def test_a_plan_whose_first_pairs_have_no_text_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c", train=[pair(1, text=" ")])
    with endpoint(_good) as (address, _), pytest.raises(JobError, match="the pilot has no text to describe"):
        preview(_settings(tmp_path, address, ("explanations",)))


def test_a_plan_counts_what_vllm_would_write_and_does_not_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.descriptions.loading.find_spec", lambda name: name)
    write_corpus(tmp_path / "c", train=[pair(1), pair(2, "b")])
    captions = {"engine": "vllm", "source": "some/name"}
    found = preview(AnnotateSettings(input=str(tmp_path / "c"), out=str(tmp_path / "out"), captions=captions))  # type: ignore[arg-type]
    assert (found.distinct, found.pilots, found.untried) == ({"caption": 2}, {}, ["caption"])
    assert "captions: a plan does not run vLLM" in " ".join(_shown(found).split())
