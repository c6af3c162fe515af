"""A job of annotations from the command to its files, with Ray and a real endpoint."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from asap.corpus.reader import read_corpus
from asap.errors import ConfigError
from asap.job_records.status import read_status
from jobs.annotate.rows import ANNOTATION_SCHEMA
from jobs.annotate.run import annotate
from jobs.annotate.settings import AnnotateSettings
from jobs.control.restart import annotate_settings
from jobs.control.result_query import Results, RowFilter, count_errors
from jobs.errors import JobDiffers
from jobs.scan.passes import ScanProgress
from tests.support.description_jobs import write_pairs
from tests.support.endpoint import Handler, completion, endpoint
from tests.support.tiny_captioners import WORDS, save_encoder_decoder
from tests.support.waiting import HANG_S


@pytest.fixture
def corpus(tmp_path: Path, jpeg: Callable[..., bytes]) -> Path:
    """Write a corpus of seven pairs: five addresses with four different pictures, and three different texts."""
    folder = tmp_path / "corpus"
    (folder / "metadata").mkdir(parents=True)
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    (folder / "copy.jpg").write_bytes(jpeg(0))
    shown = [("0", "t"), ("0", "u"), ("1", "t"), ("2", "v"), ("copy", "t")], [("3", "v"), ("2", "t")]
    for split, pairs in zip(("train", "test"), shown, strict=True):
        rows = [
            {"id": f"{split}{number}", "image": f"{image}.jpg", "text": f"text {text}", "fake_cls": "orig"}
            for number, (image, text) in enumerate(pairs)
        ]
        (folder / f"metadata/{split}.json").write_text(json.dumps(rows))
    return folder


def _settings(corpus: Path, address: str, *kinds: str, **changes: Any) -> AnnotateSettings:
    way = {"address": address, "key_env": None, "timeout_s": HANG_S, "deadline_s": HANG_S, "retries": 0}
    engine = {"engine": "openai", "source": "tiny", "endpoint": way}
    values: dict[str, Any] = {"input": str(corpus), "out": str(corpus.parent / "out"), "batch_size": 2}
    return AnnotateSettings(**(values | dict.fromkeys(kinds, engine) | changes))


class _Endpoint:
    """An endpoint that numbers what it writes, counts what it is asked, and fails for some requests."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.fails: Callable[[str], bool] = lambda _: False

    def __call__(self, handler: Handler, body: dict[str, Any]) -> None:
        content = body["messages"][0]["content"]
        key = content if isinstance(content, str) else content[0]["image_url"]["url"]
        with handler.server.lock:
            self.asked[key] += 1
            number = len(self.asked)
        if self.fails(key):
            handler.send(500, "oops")
        else:
            handler.send(200, json.dumps(completion(f"sentence {number} of the endpoint")))


def _rows(folder: str) -> list[dict[str, Any]]:
    table = pq.read_table(Path(folder) / "annotations")
    assert table.schema.equals(ANNOTATION_SCHEMA)
    return sorted(table.to_pylist(), key=lambda row: int(row["row_id"]))


@pytest.mark.slow
def test_each_picture_and_each_text_is_described_once_and_training_reads_the_result(
    ray_here: None, corpus: Path
) -> None:
    answer = _Endpoint()
    with endpoint(answer) as (address, seen):
        settings = _settings(corpus, address, "captions", "explanations")
        summary = annotate(settings)
        asked = len(seen.bodies)
        steps: list[ScanProgress] = []
        assert annotate(settings, steps.append) == summary
        assert "the job is finished" in steps[-1].stage
        assert len(seen.bodies) == asked, "a job that is done asks nothing"
    # A gray picture, four pictures, a short text, three texts.
    assert len(answer.asked) == 1 + 4 + 1 + 3
    assert set(answer.asked.values()) == {1}
    rows = _rows(summary["folder"])
    assert [row["status"] for row in rows] == ["ok"] * 7
    assert rows[0]["caption"] == rows[1]["caption"] == rows[4]["caption"] != rows[2]["caption"]
    assert rows[0]["explanation"] == rows[2]["explanation"] == rows[6]["explanation"] != rows[1]["explanation"]
    assert sum(row["caption_is_new"] for row in rows) == 4
    assert (summary["captions"]["new"], summary["captions"]["repeated"]) == (4, 3)
    assert (summary["explanations"]["new"], summary["explanations"]["output_tokens"]) == (3, 21)
    record = json.loads((Path(summary["folder"]) / "job.json").read_text())
    assert (record["kind"], record["state"], record["counts"]["done"]) == ("annotate", "completed", 7)
    assert record["engines"]["caption"]["prompt"] == "Give the caption of this picture"
    files = {path.name for path in Path(summary["folder"]).iterdir()}
    assert files == {"job.json", "manifest", "annotations", "captions.json", "explanations.json", "annotations.json",
                     "errors.jsonl", "_SUCCESS"}  # fmt: skip

    read = read_corpus(corpus, "train", captions=[summary["folder"]], explanations=[summary["folder"]])
    assert [record.caption for record in read.records] == [row["caption"] for row in rows[:5]]
    assert [record.explanation for record in read.records] == [row["explanation"] for row in rows[:5]]
    published = {name: [str(Path(summary["folder"]) / f"{name}.json")] for name in ("captions", "explanations")}
    again = read_corpus(corpus, "test", **published)  # type: ignore[arg-type]
    assert [record.caption for record in again.records] == [row["caption"] for row in rows[5:]]


@pytest.mark.slow
def test_failed_rows_are_tried_again_and_the_others_are_not(ray_here: None, corpus: Path) -> None:
    answer = _Endpoint()
    answer.fails = lambda key: "text u" in key
    with endpoint(answer) as (address, _):
        settings = _settings(corpus, address, "explanations")
        first = annotate(settings)
        status = read_status(settings.job_folder)
        errors = count_errors(Results(status), (), 5)
        answer.fails, before = lambda _: False, Counter(answer.asked)
        changes = annotate_settings(status, {"retry_errors": ("retryable",)})
        second = annotate(changes)
    assert (first["errors"], first["error_codes"]) == (1, {"server_error": 1})
    assert errors.codes == {"server_error": 1}
    assert (second["errors"], second["explanations"]["described"]) == (0, 7)
    asked = answer.asked - before
    assert [key.rpartition('"text ')[2] for key in asked if "text u" in key] == ['u"']
    assert len(asked) == 2, "the text that failed, and the short text of the trial"
    table = next(Results(read_status(settings.job_folder)).rows(["explanation"], RowFilter()))
    assert table["explanation"].null_count == 0
    with pytest.raises(ConfigError, match="there is no column 'verdict'"):
        next(Results(read_status(settings.job_folder)).rows(["explanation"], RowFilter(verdicts=("review",))))


@pytest.mark.slow
def test_a_model_captions_and_a_missing_picture_is_an_error_of_its_row(
    ray_here: None, tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    lines = [json.dumps({"id": name, "image": f"{name}.jpg", "text": "t"}) for name in ("0", "gone")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    captions = {"engine": "transformers", "source": save_encoder_decoder(tmp_path / "model"), "max_new_tokens": 4}
    summary = annotate(
        AnnotateSettings(input=str(tmp_path / "pairs.jsonl"), out=str(tmp_path / "out"), captions=captions)  # type: ignore[arg-type]
    )
    rows = _rows(summary["folder"])
    assert set(rows[0]["caption"].split()) <= set(WORDS)
    assert (rows[1]["caption"], rows[1]["caption_error"], rows[1]["error_code"]) == (None, "not_found", "not_found")
    assert summary["captions"]["engine"]["model_type"] == "vision-encoder-decoder"
    assert json.loads((tmp_path / "out/captions.json").read_text()) == {"0": rows[0]["caption"]}


def _pids_of_stages() -> list[int]:
    """Return the processes of this job that describe."""
    import ray
    from ray._private.state import actors

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    states = [state for state in actors(job_id=job).values() if "DescribeStage" in state["ActorClassName"]]
    return [state["Pid"] for state in states if state["State"] == "ALIVE"]


@pytest.mark.chaos
@pytest.mark.slow
def test_a_process_that_is_killed_while_the_endpoint_works_on_its_requests_loses_and_doubles_no_row(
    ray_here: None, tmp_path: Path
) -> None:
    rows, under_way = 12, 4
    write_pairs(tmp_path, rows)
    asked: Counter[int] = Counter()
    asked_again: Counter[int] = Counter()
    is_killed = threading.Event()

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        found = re.search(r" (\d+)\"$", body["messages"][0]["content"])
        if found and not is_killed.is_set():  # the text of the trial has no number
            with handler.server.lock:
                asked[int(found[1])] += 1
                is_last = asked.total() == under_way
            if is_last:
                for pid in _pids_of_stages():
                    os.kill(pid, signal.SIGKILL)
                is_killed.set()
            assert is_killed.wait(HANG_S)  # what is answered now, nobody hears
        elif found:
            with handler.server.lock:
                asked_again[int(found[1])] += 1
        handler.send(200, json.dumps(completion(f"explained {found[1] if found else 'the trial'}")))

    with endpoint(answer) as (address, _):
        summary = annotate(_settings(tmp_path, address, "explanations", input=str(tmp_path / "pairs.jsonl")))
    written = _rows(summary["folder"])
    assert [row["row_id"] for row in written] == list(range(rows))
    assert [row["explanation"] for row in written] == [f"explained {row}" for row in range(rows)]
    assert all(row["explanation_is_new"] for row in written)
    assert under_way <= asked.total() <= rows
    assert asked_again == Counter(range(rows)), "what was under way is asked for again, and everything once only"


def test_a_wrong_key_is_found_before_a_job_folder_is_written(corpus: Path) -> None:
    refuse = endpoint(lambda handler, _: handler.send(401, "{}"))
    with refuse as (address, _), pytest.raises(ConfigError, match="HTTP 401"):
        annotate(_settings(corpus, address, "captions"))
    assert not (corpus.parent / "out").exists()


def test_another_prompt_is_another_job(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    settings = _settings(corpus, "http://127.0.0.1:1/v1", "captions")
    identity = {"settings": settings.identity()}
    (tmp_path / "out/job.json").write_text(json.dumps({"job_id": "out", "state": "failed", "identity": identity}))
    assert settings.captions is not None
    other = settings.captions.model_copy(update={"prompt": "Say it."})
    with pytest.raises(JobDiffers, match=r"settings\.captions\.prompt was None and is 'Say it\.'"):
        annotate(settings.model_copy(update={"captions": other}))
