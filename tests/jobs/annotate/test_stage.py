"""The stage of one engine on prepared rows, without Ray's processes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from threading import Event
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from asap.storage.location import Location
from jobs.annotate import stage as stage_module
from jobs.annotate.known import Known
from jobs.annotate.rows import ANNOTATION_SCHEMA, ANNOTATIONS
from jobs.annotate.stage import DescribeStage, Order, name_below
from jobs.descriptions.engine import Failure, Outcome, Reply, Request, Usage
from jobs.descriptions.settings import DescriptionSettings
from jobs.scan.input.manifest import MANIFEST_SCHEMA
from jobs.scan.stages.prepare import PREPARED_FIELDS
from jobs.scan.stages.result_rows import CALLER_COLUMNS
from tests.support.waiting import HANG_S

INPUT = Location("/in")
GONE = {"error_code": "not_found", "error_detail": "gone", "retryable": True, "thumbnail": None, "image_sha256": None}


class _Echo:
    """An engine that names the pair, and fails for some."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def describe(self, requests: Sequence[Request]) -> list[Outcome]:
        self.asked += [request.custom_id for request in requests]
        return [self._outcome(request) for request in requests]

    def _outcome(self, request: Request) -> Outcome:
        if request.text == "bad":
            return Failure("throttled", "HTTP 429", Usage(5, 0))
        return Reply(f"of {request.custom_id}\ud800", is_cut=request.text == "long", usage=Usage(10, 2))

    def record(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> _Echo:
    engine = _Echo()
    monkeypatch.setattr(stage_module, "load_captioner", lambda *_: engine)
    return engine


def _stage(kind: str, known: Any = None, **changes: Any) -> DescribeStage:
    engine = changes.pop("engine", "transformers")
    settings = DescriptionSettings(engine=engine, source="m", kind=kind)  # type: ignore[arg-type]
    return DescribeStage(Order(settings, INPUT, run_id="r1", **changes), known)


def _prepared(*rows: dict[str, Any]) -> pa.Table:
    """Return a table as the stage of preparation makes it."""
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    kinds = {name: MANIFEST_SCHEMA.field(name).type for name in CALLER_COLUMNS} | dict(PREPARED_FIELDS)
    filled = [
        {"row_id": number, "custom_id": str(number), "image_uri": f"/in/p/{number}.jpg", "text": f"text {number}",
         "warnings": [], "thumbnail": buffer.getvalue(), "image_sha256": f"sha {number}"} | row
        for number, row in enumerate(rows)
    ]  # fmt: skip
    return pa.table({name: pa.array([row.get(name) for row in filled], kind) for name, kind in kinds.items()})


def test_pictures_of_the_same_bytes_are_captioned_once(engine: _Echo) -> None:
    rows = _stage("caption")(_prepared({"image_sha256": "x"}, {}, {"image_sha256": "x"}))
    assert rows.schema.equals(ANNOTATION_SCHEMA)
    assert engine.asked == ["0", "1"]
    assert rows["caption"].to_pylist() == ["of 0\ufffd", "of 1\ufffd", "of 0\ufffd"]
    assert rows["caption_is_new"].to_pylist() == [True, True, False]
    assert rows["caption_output_tokens"].to_pylist() == [2, 2, 0]
    assert rows["status"].to_pylist() == ["ok"] * 3
    assert rows["image_name"].to_pylist() == ["p/0.jpg", "p/1.jpg", "p/2.jpg"]
    assert rows["explanation"].null_count == 3
    assert set(rows["judged_run"].to_pylist()) == {"r1"}


def test_texts_are_explained_once_and_need_no_picture(engine: _Echo) -> None:
    rows = _stage("explanation")(_prepared({"text": "t"} | GONE, {"text": "t"}, {"text": " "}, {"text": None} | GONE))
    assert engine.asked == ["0"]
    assert rows["explanation"].to_pylist() == ["of 0\ufffd", "of 0\ufffd", None, None]
    assert rows["explanation_error"].to_pylist() == [None, None, "text_missing", "not_found"]
    assert rows["status"].to_pylist() == ["ok", "ok", "error", "error"]
    assert rows["error_detail"].to_pylist()[2:] == ["explanation: the pair has no text", "explanation: gone"]
    assert rows["retryable"].to_pylist()[2:] == [False, True]


def test_a_row_of_both_kinds_keeps_what_succeeded_and_names_what_failed(engine: _Echo) -> None:
    table = _prepared({"text": "long"}, {"text": "bad"}, GONE, {"error_code": "row_invalid", "error_detail": "no"})
    between = _stage("caption", is_last=False)(table)
    assert "thumbnail" not in between.column_names
    rows = _stage("explanation")(between)
    assert rows["caption_error"].to_pylist() == [None, "throttled", "not_found", "row_invalid"]
    assert rows["explanation_error"].to_pylist() == [None, "throttled", None, "row_invalid"]
    assert rows["error_code"].to_pylist() == [None, "throttled", "not_found", "row_invalid"]
    assert rows["error_detail"].to_pylist()[1:3] == ["caption: HTTP 429; explanation: HTTP 429", "caption: gone"]
    assert rows["retryable"].to_pylist() == [None, True, True, False]
    assert rows["explanation"].to_pylist()[2] == "of 2\ufffd"
    assert rows["caption_input_tokens"].to_pylist() == [10, 5, None, None]
    assert rows["warnings"].to_pylist()[0] == [
        "the caption is cut: its model reached max_new_tokens",
        "the explanation is cut: its model reached max_new_tokens",
    ]


def test_an_engine_that_is_left_out_costs_only_its_own_descriptions(engine: _Echo) -> None:
    between = _stage("caption", is_last=False)(_prepared({}))
    rows = _stage("explanation", is_left_out=True)(between)
    assert (rows["caption"].to_pylist(), rows["explanation"].to_pylist()) == (["of 0\ufffd"], [None])
    assert (rows["caption_error"].to_pylist(), rows["explanation_error"].to_pylist()) == ([None], ["process_died"])
    assert (rows["status"].to_pylist(), rows["error_code"].to_pylist()) == (["error"], ["process_died"])
    assert rows["error_detail"].to_pylist()[0].startswith("explanation: the process died each time")
    assert rows["retryable"].to_pylist() == [False]


def test_a_caption_whose_prompt_holds_the_text_is_one_for_each_text(engine: _Echo) -> None:
    settings = DescriptionSettings(engine="transformers", source="m", prompt="Describe this picture of {text}")
    table = _prepared({"image_sha256": "x"}, {"image_sha256": "x"}, {"image_sha256": "x", "text": "text 0"})
    DescribeStage(Order(settings, INPUT))(table)
    assert engine.asked == ["0", "1"]


def test_a_file_is_asked_for_every_pair(engine: _Echo) -> None:
    table = _prepared({"image_sha256": "x"}, {"image_sha256": "x"})
    rows = _stage("caption", engine="precomputed")(table)
    assert engine.asked == ["0", "1"]
    assert rows["caption_is_new"].to_pylist() == [False, False]


class _Handle:
    """An actor's handle whose calls are done at once."""

    def __init__(self, actor: object) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._actor, name)
        return type("Method", (), {"remote": staticmethod(method)})


def test_another_process_describes_what_it_has_claimed(engine: _Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known({"sha 0": Reply("a known one")})
    known.claim("other", ["sha 1"])
    monkeypatch.setattr(stage_module.ray, "get", lambda value: value)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        known.tell("other", {"sha 1": Reply("of the other")})

    monkeypatch.setattr(stage_module.time, "sleep", sleep)
    rows = _stage("caption", _Handle(known))(_prepared({}, {}, {}))
    assert engine.asked == ["2"]
    assert rows["caption"].to_pylist() == ["a known one", "of the other", "of 2\ufffd"]
    assert rows["caption_is_new"].to_pylist() == [False, False, True]
    assert len(waits) == 1


def test_two_batches_of_one_process_describe_a_picture_once(engine: _Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    is_awaited = Event()
    describe = engine.describe

    def describe_once_awaited(requests: Sequence[Request]) -> list[Outcome]:
        assert is_awaited.wait(HANG_S)
        return describe(requests)

    monkeypatch.setattr(engine, "describe", describe_once_awaited)
    monkeypatch.setattr(stage_module.ray, "get", lambda value: value)
    monkeypatch.setattr(stage_module.time, "sleep", lambda seconds: is_awaited.set())
    stage = _stage("caption", _Handle(Known({})))
    with ThreadPoolExecutor(2) as pool:
        tables = list(pool.map(stage, [_prepared({}), _prepared({})]))
    assert engine.asked == ["0"]
    assert [table["caption"].to_pylist() for table in tables] == [["of 0\ufffd"]] * 2
    assert sorted(table["caption_is_new"][0].as_py() for table in tables) == [False, True]


def test_the_rows_of_dead_processes_are_errors_of_every_kind_that_was_asked(engine: _Echo) -> None:
    callers = _prepared({}, {}).select(CALLER_COLUMNS)
    rows = ANNOTATIONS.lost(callers, "it died", {"run_id": "r2", "engines": {"caption": {}}})
    assert rows["error_code"].to_pylist() == rows["caption_error"].to_pylist() == ["process_died"] * 2
    assert rows["explanation_error"].null_count == 2


@pytest.mark.parametrize(
    ("uri", "name"),
    [("/in/a/b.jpg", "a/b.jpg"), ("/b.jpg", None), (None, None), ("/other/b.jpg", None)],
)
def test_a_picture_is_named_below_the_input(uri: str | None, name: str | None) -> None:
    assert name_below(uri, Location("/in")) == name


def test_a_picture_of_a_table_is_named_below_the_folders_around_it() -> None:
    assert name_below("/x/c/origin/b.jpg", Location("/x/c/metadata/train.json")) == "origin/b.jpg"
