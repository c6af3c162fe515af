"""The JSON files of a job of annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asap.storage.location import Location
from jobs.annotate.outputs import read_summary, write_outputs
from jobs.descriptions.settings import DescriptionSettings
from tests.support.annotations import annotation, write_annotations

ENDPOINT = {"address": "http://host/v1", "input_price": 2, "output_price": 10}
ENGINES = {
    kind: DescriptionSettings(engine="openai", source="m", kind=kind, endpoint=ENDPOINT)  # type: ignore[arg-type]
    for kind in ("caption", "explanation")
}
RECORD = {
    "job_id": "job", "settings": {"input": "/in"}, "manifest": {"rows": 5, "kind": "corpus"},
    "engines": {"caption": {"model": "m", "prompt": "p"}, "explanation": {"model": "m"}},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    new = {"caption_is_new": True, "caption_input_tokens": 100, "caption_output_tokens": 7}
    rows = [
        annotation(0, custom_id="1", text="t", image_sha256="a", caption="a crowd", explanation="so", **new),
        annotation(1, custom_id="1#1", given_id="1", text="u", image_sha256="a", caption="a crowd", explanation="no",
                   caption_is_new=False),
        annotation(2, custom_id="2", image="/in/b.jpg", text="v", caption="a man", explanation="v it is", **new),
        annotation(3, custom_id="2#3", given_id="2", image="/in/c.jpg", text="v", caption="a dog",
                   caption_is_cut=True, explanation="v it is", **new),
        annotation(4, image="/in/d.jpg", text=None, status="error", error_code="refusal", error_detail="caption: no",
                   retryable=False, caption_error="refusal", explanation_error="text_missing"),
    ]  # fmt: skip
    write_annotations(Location(str(tmp_path)), rows)
    write_outputs(Location(str(tmp_path)), RECORD, ENGINES)
    return Location(str(tmp_path))


def _read(folder: Location, name: str) -> Any:
    return json.loads((Path(folder.uri) / name).read_text())


def test_a_caption_has_the_id_of_its_pair_or_the_path_of_its_picture_if_others_share_the_id(folder: Location) -> None:
    assert _read(folder, "captions.json") == {"1": "a crowd", "b.jpg": "a man", "c.jpg": "a dog"}


def test_explanations_of_pairs_that_share_an_id_and_not_a_text_are_left_out(folder: Location) -> None:
    assert _read(folder, "explanations.json") == {"2": "v it is"}
    assert _read(folder, "annotations.json")["explanations"]["left_out"] == 2


def test_the_summary_says_what_was_asked_how_often_and_at_what_price(folder: Location) -> None:
    summary = read_summary(folder)
    assert (summary["pairs"], summary["errors"], summary["error_codes"]) == (5, 1, {"refusal": 1})
    captions = summary["captions"]
    assert captions["engine"] == {"model": "m", "prompt": "p"}
    counted = ("described", "new", "repeated", "cut", "failed", "input_tokens", "output_tokens", "entries", "by_image")
    assert [captions[name] for name in counted] == [4, 3, 1, 1, 1, 300, 21, 3, 2]
    assert captions["cost"] == pytest.approx((300 * 2 + 21 * 10) / 1e6)
    assert set(summary["files"]) == {"captions", "explanations"}


def test_failed_rows_are_listed(folder: Location) -> None:
    (line,) = (Path(folder.uri) / "errors.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert (row["row_id"], row["error_code"], row["explanation_error"]) == (4, "refusal", "text_missing")
