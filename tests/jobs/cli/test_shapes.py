"""One finding in results, in JSON lines, in `asap detect --json` and in the API: what is called alike looks alike.

There are two documents. A result row is the same in Parquet and in JSON lines. The API's response is the same from a
server and from `asap detect --json`, which adds columns of result rows. Boxes and words look the same in both; the
score of a type stands beside `flagged` in the response, where a row has the column `flagged_types`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.errors import DecodeFailed
from asap.finding import Finding, Word
from asap.storage.location import Location
from jobs.scan.output.parts import write_lists
from jobs.scan.stages.result_rows import CALLER_COLUMNS, RESULT_SCHEMA, result_table, write_table
from serve.schemas import Detection, detection
from tests.support.finding_rows import columns_of
from tests.support.job_folders import write_scan
from tests.support.pictures import draw_jpeg

FINDING = Finding(
    verdict="manipulated", score=0.75,
    types={"face_swap": 0.75, "face_attribute": 0.25, "text_swap": 0.5, "text_attribute": 0.125},
    flagged_types=["face_swap", "text_swap"], box_px=(1.0, 2.0, 33.5, 44.0), raw_box_px=(1.0, 2.0, 33.5, 44.0),
    words=[Word(index=1, start=2, end=6, word="team", score=0.5)], word_scores=[0.125, 0.5], text_read=1.0,
    familiarity=0.5, familiarity_image=0.5, familiarity_text=0.75, familiarity_id="f", width=64, height=48,
    image_sha256="ab", model_id="m@1", policy_id="p", warnings=["a word was cut"], limits="m was made from drawings.",
)  # fmt: skip
AUTHENTIC = Finding(
    verdict="authentic", score=0.25, types=FINDING.types, raw_box_px=FINDING.raw_box_px, word_scores=[0.125, 0.5],
    width=64, height=48, image_sha256="ab", model_id="m@1", policy_id="p",
)  # fmt: skip
FAILED = Finding(model_id="m@1", policy_id="p", image_sha256="ab", error=DecodeFailed("truncated JPEG"))
ONLY_ROWS = ("flagged_types", "raw_box_px", "word_scores", "error_code", "error_detail")


@pytest.fixture
def detect(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs `asap detect --json`, here or at a server, with the finding that it gets."""

    class Fixed:
        def __init__(self, finding: Finding) -> None:
            self._finding = finding

        def predict_prepared(self, images: object, texts: object) -> list[Finding]:
            return [self._finding]

    def call(finding: Finding, *, at_server: bool) -> dict[str, Any]:
        response = None if finding.error else detection("id-1", finding, {"total": 5.0}, None)
        monkeypatch.setattr("asap.predictor.Predictor.from_folder", lambda *_, **__: Fixed(finding))
        monkeypatch.setattr("serve.client.Client.detect", lambda *_: response)
        (tmp_path / "a.jpg").write_bytes(draw_jpeg(0))
        where = ("--url", "http://127.0.0.1:1") if at_server else ()
        fields: dict[str, Any] = json.loads(run("detect", tmp_path / "a.jpg", "--text", "A team", "--json", *where)[1])
        return fields

    return call


def _row(finding: Finding, folder: Path) -> dict[str, Any]:
    """Return the stored row of a finding, in a job folder with its lists."""
    fields = {"row_id": 0, "custom_id": "c0", "text": "A team"}
    callers = pa.Table.from_pylist([fields], pa.schema([RESULT_SCHEMA.field(name) for name in CALLER_COLUMNS]))
    write_scan(Location(str(folder)))
    write_table(result_table(callers, [columns_of(finding)]), Location(str(folder / "results/a.parquet")))
    write_lists(Location(str(folder)))
    (row,) = pq.read_table(folder / "results/a.parquet").to_pylist()
    return dict(row)


def test_a_row_is_the_same_in_parquet_and_in_json_lines(run: Any, tmp_path: Path) -> None:
    row = _row(FINDING, tmp_path)
    assert row["box_px"] == {"x0": 1.0, "y0": 2.0, "x1": 33.5, "y1": 44.0}
    assert json.loads(run("results", tmp_path)[1]) == row
    assert json.loads(run("results", tmp_path, "--json")[1]) == [row]
    (line,) = (tmp_path / "flagged.jsonl").read_text().splitlines()
    assert json.loads(line) == {name: row[name] for name in row if row[name] is not None and name != "word_scores"}


@pytest.mark.parametrize("finding", [FINDING, AUTHENTIC])
def test_boxes_types_and_words_look_the_same_in_rows_json_and_the_api(
    detect: Any, tmp_path: Path, finding: Finding
) -> None:
    row = _row(finding, tmp_path)
    response = detection("id-1", finding, {"total": 5.0}, None).model_dump(mode="json")
    here, there = detect(finding, at_server=False), detect(finding, at_server=True)
    for fields in (response, here, there):
        assert fields["evidence"]["box_px"] == row["box_px"]
        assert fields["evidence"]["words"] == row["words"]
        assert {name: entry["score"] for name, entry in fields["types"].items()} == row["types"]
        assert [name for name, entry in fields["types"].items() if entry["flagged"]] == row["flagged_types"]
    for name in ("verdict", "score", "text_read", "familiarity", "model_id", "policy_id", "warnings"):
        assert response[name] == here[name] == there[name] == row[name]
    for name in ONLY_ROWS:
        assert here[name] == row[name]


def test_detect_prints_the_same_document_here_and_at_a_server(detect: Any) -> None:
    here, there = detect(FINDING, at_server=False), detect(FINDING, at_server=True)
    assert set(here) == set(there) == {*Detection.model_fields, *ONLY_ROWS}
    assert (here["id"], here["timings"], there["id"], there["timings"]) == (None, {}, "id-1", {"total": 5.0})
    assert (there["raw_box_px"], there["word_scores"]) == (None, None)
    apart = ("id", "timings", "raw_box_px", "word_scores")
    assert {name: here[name] for name in here if name not in apart} == {
        name: there[name] for name in there if name not in apart
    }


def test_a_pair_that_failed_has_the_same_fields(detect: Any, tmp_path: Path) -> None:
    fields, row = detect(FAILED, at_server=False), _row(FAILED, tmp_path)
    assert set(fields) == {*Detection.model_fields, *ONLY_ROWS}
    assert (fields["error_code"], fields["error_detail"]) == (row["error_code"], row["error_detail"])
    assert fields["verdict"] is fields["types"] is fields["evidence"] is row["verdict"] is None
    assert fields["input"] == {"sha256": "ab", "width": None, "height": None}
