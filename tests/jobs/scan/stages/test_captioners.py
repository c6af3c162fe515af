import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from asap.errors import CorpusError, StorageError
from asap.storage.location import Location
from jobs.descriptions.engine import Failure, Outcome, Reply, Request, Usage
from jobs.descriptions.settings import DescriptionSettings
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import MANIFEST_SCHEMA
from jobs.scan.stages.captioners import check_captioner, load_captioner
from jobs.scan.stages.describe import DescriptionStage
from jobs.scan.stages.prepare import PREPARED_FIELDS
from tests.support.tiny_captioners import save_blip

INPUT = Location("/data/news/images")


def _precomputed(path: Path, input: Location = INPUT) -> Callable[[Sequence[Request]], list[str | Failure]]:
    """Return the lookup of a file of captions: a text for each request, or the failure."""
    captioner = load_captioner(DescriptionSettings(engine="precomputed", source=str(path)), input)

    def look_up(requests: Sequence[Request]) -> list[str | Failure]:
        return [found.text if isinstance(found, Reply) else found for found in captioner.describe(requests)]

    return look_up


def _request(name: str = "p", uri: str = "/data/news/images/a.jpg", seed: int = 0) -> Request:
    noise = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    return Request(name, uri, Image.fromarray(noise))


@pytest.mark.parametrize("key", ["p", "/data/news/images/a.jpg", "images/a.jpg", "a.jpg"])
def test_a_precomputed_caption_is_found_by_id_or_path(tmp_path: Path, key: str) -> None:
    (tmp_path / "captions.json").write_text(json.dumps({key: "a man smiles", "other": "x"}))
    assert _precomputed(tmp_path / "captions.json")([_request()]) == ["a man smiles"]


def test_an_id_takes_precedence_over_a_path_and_a_path_matches_whole_parts(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(json.dumps({"p": "by id", "images/a.jpg": "by path", "es/a.jpg": "wrong"}))
    captioner = _precomputed(tmp_path / "captions.json")
    assert captioner([_request(), _request("q"), _request("q", "/x/faces/a.jpg")])[:2] == ["by id", "by path"]
    assert isinstance(captioner([_request("q", "/x/faces/b.jpg")])[0], Failure)


def test_a_bare_file_name_matches_a_picture_at_the_top_of_the_input_only(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(json.dumps({"a.jpg": "at the top", "deep/a.jpg": "below"}))
    beside = _precomputed(tmp_path / "captions.json", Location("s3://bucket/news/pairs.jsonl"))
    top, below, elsewhere = beside(
        [
            _request("1", "s3://bucket/news/a.jpg"),
            _request("2", "s3://bucket/news/deep/a.jpg"),
            _request("3", "/x/a.jpg"),
        ]
    )
    assert (top, below) == ("at the top", "below")
    assert isinstance(elsewhere, Failure)


def test_precomputed_captions_may_be_lines(tmp_path: Path) -> None:
    lines = [{"id": 7, "caption": "seven"}, {"image": "images/a.jpg", "caption": "picture"}]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    captioner = _precomputed(tmp_path / "captions.jsonl")
    assert captioner([_request("7"), _request("8", "s3://bucket/images/a.jpg")]) == ["seven", "picture"]


ROWS = [
    {"custom_id": "7", "image_uri": None, "caption": "seven"},
    {"custom_id": None, "image_uri": "images/a.jpg", "caption": "picture"},
    {"custom_id": "9", "image_uri": None, "caption": None},
]


def _csv(path: Path) -> None:
    path.write_text("custom_id,image_uri,caption\n7,,seven\n,images/a.jpg,picture\n9,,\n")


def _gzipped_jsonl(path: Path) -> None:
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.parquet", lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path)),
        ("a.csv", _csv),
        ("a.jsonl.gz", _gzipped_jsonl),
        ("a.json", lambda path: path.write_text(json.dumps(ROWS))),
    ],
)
def test_precomputed_captions_may_be_a_table(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    captioner = _precomputed(tmp_path / name)
    seven, picture, nine = captioner([_request("7", "/b.jpg"), _request("8"), _request("9", "/b.jpg")])
    assert (seven, picture) == ("seven", "picture")
    assert isinstance(nine, Failure), "null means that there is no caption"


def test_a_caption_that_may_belong_to_another_picture_is_not_used(tmp_path: Path) -> None:
    lines = [{"id": 1, "image": "x/a.jpg", "caption": "of a"}, {"id": 1, "image": "x/b.jpg", "caption": "of b"},
             {"id": 2, "caption": "one"}, {"id": 2, "caption": "or another"}]  # fmt: skip
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    captioner = _precomputed(tmp_path / "captions.jsonl")
    found = captioner([_request("1", "/x/b.jpg"), _request("1", "/x/c.jpg"), _request("2", "/x/d.jpg")])
    assert found[0] == "of b"
    (renamed,) = captioner([Request("2#9", "/x/d.jpg", None, given_id="2")])
    assert isinstance(renamed, Failure), "an id that another row has identifies no picture"
    (renamed,) = captioner([Request("1#9", "/x/b.jpg", None, given_id="1")])
    assert renamed == "of b"
    assert "no caption that is certainly of '1'" in str(found[1])
    assert "no caption that is certainly of '2'" in str(found[2])


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", "{", "cannot be read as JSON"),
        ("a.json", "[1]", "is not a JSON object from record id"),
        ("a.json", '{"1": 5}', "has 5 for '1', which is no text"),
        ("a.jsonl", '{"id": 1}', "which is no text"),
        ("a.jsonl", '{"id": 1, "caption": ["x"]}', r"\['x'\] for 'entry 0'"),
        ("a.csv", "id,text\n1,x\n", "it needs a column 'caption'"),
        ("a.csv", "caption\nx\n", "it needs a column 'id' or 'custom_id' or 'image' or 'image_uri'"),
        ("a.csv", "id,image,caption\n,,lost\n", "entry 1 of .*a.csv has neither an id nor an image"),
        ("a.jsonl", '{"id": 1.5, "caption": "x"}', "has the id 1.5, which is neither"),
        ("a.csv", "id,caption\n1,x,y\n", "line 1 of .*a.csv: the line has 3 cells"),
        ("a.parquet", "PAR1", "cannot be read as parquet"),
        ("a.txt", "x", "Give a .json, .jsonl, .csv or .parquet file"),
    ],
)
def test_a_broken_file_of_captions_is_named_with_the_reason(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    settings = DescriptionSettings(engine="precomputed", source=str(tmp_path / name))
    with pytest.raises((InputNotFound, CorpusError), match=reason) as caught:
        check_captioner(settings)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.csv.gz"])
def test_a_truncated_file_of_captions_is_named(tmp_path: Path, name: str) -> None:
    whole = gzip.compress(b"id,caption\n" + b"1,x\n" * 50_000)
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises((StorageError, CorpusError), match=name):
        check_captioner(DescriptionSettings(engine="precomputed", source=str(tmp_path / name)))


def test_a_captioner_folder_is_found_by_its_bare_name(
    blip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(blip).parent)
    bare = DescriptionSettings(engine="transformers", source=Path(blip).name)
    assert check_captioner(bare) == check_captioner(bare.model_copy(update={"source": blip}))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputNotFound, match=r"no config\.json"):
        check_captioner(bare.model_copy(update={"source": "empty"}))
    for source in ("", "ftp://host/model"):
        with pytest.raises(InputNotFound, match="neither a folder of this machine, nor one at s3://, nor a name"):
            check_captioner(bare.model_copy(update={"source": source}))


def test_changed_captions_have_another_fingerprint(tmp_path: Path, blip: str) -> None:
    path = tmp_path / "captions.json"
    settings = DescriptionSettings(engine="precomputed", source=str(path))
    path.write_text('{"1": "a man"}')
    first = check_captioner(settings)
    assert check_captioner(settings) == first
    path.write_text('{"1": "a cat"}')
    assert check_captioner(settings) != first

    model = tmp_path / "model"
    shutil.copytree(blip, model)
    settings = DescriptionSettings(engine="transformers", source=str(model))
    first = check_captioner(settings)
    assert check_captioner(settings) == first
    (model / "generation_config.json").write_text("{}")
    assert check_captioner(settings) != first


def test_a_missing_source_is_reported_before_work_starts(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="captions"):
        check_captioner(DescriptionSettings(engine="precomputed", source=str(tmp_path / "none.json")))
    with pytest.raises(InputNotFound, match=r"no config\.json"):
        check_captioner(DescriptionSettings(engine="transformers", source=str(tmp_path)))
    assert check_captioner(DescriptionSettings(engine="transformers", source="some/hub-name")) == "some/hub-name"


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_blip(tmp_path_factory.mktemp("blip"))


def _prepared(*rows: dict[str, Any]) -> pa.Table:
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    schema = MANIFEST_SCHEMA.remove(MANIFEST_SCHEMA.get_field_index("row_error"))
    for name, kind in PREPARED_FIELDS:
        if name not in schema.names:
            schema = schema.append(pa.field(name, kind))
    filled = [
        {"row_id": number, "custom_id": str(number), "image_uri": "/a.jpg", "warnings": [],
         "thumbnail": buffer.getvalue()} | row
        for number, row in enumerate(rows)
    ]  # fmt: skip
    return pa.Table.from_pylist(filled, schema)


class _Named:
    """A captioner that names the row in its caption, and fails for two rows."""

    def describe(self, requests: Sequence[Request]) -> list[Outcome]:
        return [
            Failure("empty", "no idea", Usage(5, 1))
            if request.custom_id in ("1", "2")
            else Reply(f"caption {request.custom_id}\ud800", usage=Usage(10, 2))
            for request in requests
        ]

    def record(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> DescriptionStage:
    monkeypatch.setattr("jobs.scan.stages.describe.load_captioner", lambda *_: _Named())
    return DescriptionStage(DescriptionSettings(engine="precomputed", source="x"), INPUT)


def test_the_stage_captions_good_rows_and_gives_failures_their_code(stage: DescriptionStage) -> None:
    table = stage(_prepared(
        {"text": "t"}, {"text": "t"}, {"text": None}, {"text": None},
        {"text": None, "error_code": "not_found", "error_detail": "gone", "retryable": False, "thumbnail": None},
    ))  # fmt: skip
    assert table["caption"].to_pylist() == ["caption 0\ufffd", None, None, "caption 3\ufffd", None]
    assert table["error_code"].to_pylist() == [None, None, "caption_failed", None, "not_found"]
    assert table["retryable"].to_pylist()[2] is False
    error = {"kind": "empty", "detail": "no idea", "retryable": False}
    assert table["caption_error"].to_pylist() == [None, error, error, None, None]
    assert table["warnings"].to_pylist() == [[]] * 5
    assert table["error_detail"].to_pylist()[2] == "the captioner failed (empty): no idea"
    assert table["error_detail"].to_pylist()[4] == "gone"
    assert "thumbnail" not in table.column_names


def test_the_engine_receives_both_names_of_a_row(stage: DescriptionStage, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Request] = []

    class Recorder(_Named):
        def describe(self, requests: Sequence[Request]) -> list[Outcome]:
            received.extend(requests)
            return [Reply("x")] * len(requests)

    stage._engine = Recorder()
    stage(_prepared({"text": "t"}, {"text": "t", "custom_id": "0#1", "given_id": "0"}))
    assert [(request.custom_id, request.given_id) for request in received] == [("0", None), ("0#1", "0")]


def test_an_engine_that_needs_no_picture_gets_none(stage: DescriptionStage) -> None:
    assert stage(_prepared({"text": "t", "thumbnail": None}))["caption"].to_pylist() == ["caption 0\ufffd"]


def test_a_batch_of_failures_passes_through(stage: DescriptionStage) -> None:
    row = {"error_code": "not_found", "error_detail": "gone", "retryable": False, "thumbnail": None}
    assert stage(_prepared(row))["error_code"].to_pylist() == ["not_found"]


def test_a_failure_that_may_pass_is_retryable_and_a_caption_that_is_cut_is_used_with_a_warning(
    stage: DescriptionStage,
) -> None:
    class Endpoint(_Named):
        def describe(self, requests: Sequence[Request]) -> list[Outcome]:
            return [Failure("throttled", "HTTP 429"), Reply("a man in", is_cut=True)]

    stage._engine = Endpoint()
    table = stage(_prepared({"text": None}, {"text": None}))
    assert table["error_code"].to_pylist() == ["caption_failed", None]
    assert table["retryable"].to_pylist()[0] is True
    assert table["caption_error"].to_pylist()[0] == {"kind": "throttled", "detail": "HTTP 429", "retryable": True}
    assert table["caption"].to_pylist() == [None, "a man in"]
    assert table["warnings"].to_pylist()[1] == ["the caption is cut: its model reached max_new_tokens"]


def test_the_stage_explains_the_texts_of_good_rows_and_a_failure_is_no_error_of_its_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str | None, Any]] = []

    class Explainer(_Named):
        def describe(self, requests: Sequence[Request]) -> list[Outcome]:
            asked.extend((request.text, request.image) for request in requests)
            return [Reply("it is so"), Failure("throttled", "HTTP 429"), Reply("it is", is_cut=True)]

    monkeypatch.setattr("jobs.scan.stages.describe.load_captioner", lambda *_: Explainer())
    stage = DescriptionStage(DescriptionSettings(engine="precomputed", source="x", kind="explanation"), INPUT)
    table = stage(_prepared(
        {"text": "a"}, {"text": "b"}, {"text": None}, {"text": " "}, {"text": "c"},
        {"text": "d", "error_code": "not_found", "error_detail": "gone", "retryable": False, "thumbnail": None},
    ))  # fmt: skip
    assert asked == [("a", None), ("b", None), ("c", None)]
    assert table["explanation"].to_pylist() == ["it is so", None, None, None, "it is", None]
    error = {"kind": "throttled", "detail": "HTTP 429", "retryable": True}
    assert table["explanation_error"].to_pylist() == [None, error, None, None, None, None]
    assert table["error_code"].to_pylist() == [*[None] * 5, "not_found"]
    assert table["caption"].null_count == table["caption_error"].null_count == 6
    assert table["warnings"].to_pylist()[4] == ["the explanation is cut: its model reached max_new_tokens"]


def test_tokens_and_their_cost_are_counted_for_failures_too(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: dict[str, float] = {}
    monkeypatch.setattr("jobs.scan.stages.describe.load_captioner", lambda *_: _Named())
    monkeypatch.setattr(
        "jobs.scan.stages.describe.count",
        lambda name, value, **tags: counted.update({name + tags.get("direction", ""): value}),
    )
    prices = {"address": "http://127.0.0.1/v1", "input_price": 2, "output_price": 10}
    settings = DescriptionSettings(engine="openai", source="x", endpoint=prices)  # type: ignore[arg-type]
    DescriptionStage(settings, INPUT)(_prepared({"text": "t"}, {"text": "t"}))
    assert counted == {
        "asap_scan_caption_tokens_totalinput": 15,
        "asap_scan_caption_tokens_totaloutput": 3,
        "asap_scan_caption_cost_total": 60 / 1_000_000,
    }
