"""The report page is one file, true to the results, and inert whatever the corpus holds."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tarfile
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from asap.errors import StorageError
from asap.limits import Limits, limits_sentences
from jobs.pages.page import PICTURE_BYTES, PICTURE_SIDE, TEXT_SHOWN, Picture
from jobs.scan.output.report import write_report
from jobs.scan.stages.result_rows import RESULT_SCHEMA

VOID = {"meta", "img", "input", "br"}
HOSTILE = "</p></style><script>alert(1)</script><img src=http://evil.test/x onerror=alert(2)>\"'&amp;"


class Page(HTMLParser):
    """A parsed page: elements with their attributes and their text. Every tag must be closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(html)
        self.close()
        assert [tag for tag, _, _ in self._open] == []

    def handle_starttag(self, tag, attrs):
        element = (tag, {name: value or "" for name, value in attrs}, [])
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, text in self._open:
            text.append(data)

    def all(self, tag: str, css_class: str = "") -> list[dict[str, str]]:
        """Return the attributes of the elements of a tag that have a class, with their text under `text`."""
        return [
            attrs | {"text": " ".join(" ".join(text).split())}
            for name, attrs, text in self.elements
            if name == tag and (not css_class or css_class in attrs.get("class", "").split())
        ]

    @property
    def text(self) -> str:
        return self.all("body")[0]["text"]


def picture(folder: Path, name: str = "picture.png", size: tuple[int, int] = (640, 400), **options: Any) -> str:
    path = folder / name
    Image.new("RGB", size, "teal").save(path, **options)
    return str(path)


def flagged(row_id: int = 0, **changes: Any) -> dict[str, Any]:
    row = {
        "row_id": row_id, "custom_id": f"pair-{row_id}", "image_uri": "/nowhere/picture.png", "status": "ok",
        "text": "A gleeful mayor opens the bridge", "verdict": "manipulated", "score": 0.975, "schema_version": 1,
        "types": {"face_swap": 0.91, "face_attribute": 0.12, "text_swap": 0.04, "text_attribute": 0.88},
        "flagged_types": ["face_swap", "text_attribute"], "box_px": {"x0": 100.0, "y0": 80.0, "x1": 180.0, "y1": 190.0},
        "words": [{"index": 1, "start": 2, "end": 9, "word": "gleeful", "score": 0.93}], "warnings": [],
        "width": 640, "height": 400, "model_id": "demo@0", "policy_id": "p0",
    }  # fmt: skip
    return row | changes


def stranger(row_id: int = 0, **changes: Any) -> dict[str, Any]:
    fields = {"verdict": "unfamiliar", "flagged_types": [], "box_px": None, "words": [], "familiarity": 0.004,
              "familiarity_image": 0.0004, "familiarity_text": 0.631}  # fmt: skip
    return flagged(row_id, **(fields | changes))


def authentic(row_id: int) -> dict[str, Any]:
    return flagged(row_id, verdict="authentic", score=0.1, flagged_types=[], box_px=None, words=[])


def failed(row_id: int, code: str = "not_found", **changes: Any) -> dict[str, Any]:
    row = {"row_id": row_id, "custom_id": f"pair-{row_id}", "status": "error", "schema_version": 1,
           "error_code": code, "error_detail": f"{code}: no luck with {row_id}", "retryable": False}  # fmt: skip
    return row | changes


def report(folder: Path, rows: list[dict[str, Any]], top: int = 60, **job: Any) -> Page:
    results = folder / "job-1" / "results"
    results.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, RESULT_SCHEMA), results / "0.parquet")
    (folder / "job-1" / "job.json").write_text(json.dumps({"job_id": "job-1", "state": "completed"} | job))
    return Page(Path(write_report(str(folder / "job-1"), top)).read_text("utf-8"))


def embedded(page: Page) -> Image.Image:
    uri = page.all("img")[0]["src"]
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/webp;base64,"))))


# The page is one file, and inert.


def test_the_report_is_written_into_the_job_folder(tmp_path):
    report(tmp_path, [flagged()])
    assert write_report(tmp_path / "job-1") == str(tmp_path / "job-1/report/index.html")


def test_the_same_job_gives_the_same_page(tmp_path):
    rows = [flagged(image_uri=picture(tmp_path)), failed(1)]
    assert report(tmp_path, rows).html == report(tmp_path, rows).html


def test_nothing_is_fetched_and_no_script_may_run(tmp_path):
    page = report(tmp_path, [flagged(image_uri=picture(tmp_path)), failed(1)])
    for tag, attrs, _ in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attrs if name.startswith("on") or name == "style"]
        for name in ("src", "href", "action", "poster", "srcset"):
            assert attrs.get(name, "#").startswith(("#", "data:image/webp;base64,"))
    assert "url(" not in page.html
    assert "@import" not in page.html


def test_the_content_security_policy_allows_its_one_style_sheet_and_embedded_pictures(tmp_path):
    page = report(tmp_path, [flagged()])
    digest = base64.b64encode(hashlib.sha256(re.search(r"<style>(.*?)</style>", page.html, re.S)[1].encode()).digest())
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.split("; ") == [
        "default-src 'none'", "img-src data:", f"style-src 'sha256-{digest.decode()}'", "base-uri 'none'",
        "form-action 'none'",
    ]  # fmt: skip


def test_hostile_data_is_shown_as_it_is_and_never_executed(tmp_path):
    hostile = dict.fromkeys(("custom_id", "image_uri", "text", "metadata", "caption", "explanation"), HOSTILE)
    hostile |= {"words": [{"index": 0, "start": 0, "end": len(HOSTILE), "word": HOSTILE, "score": 0.9}]}
    job = {"job_id": HOSTILE, "state": HOSTILE, "model_id": HOSTILE, "policy": {"calibration": {HOSTILE: HOSTILE}}}
    error = failed(1, HOSTILE, custom_id=HOSTILE, error_detail=HOSTILE)
    page = report(tmp_path, [flagged(**hostile, warnings=[HOSTILE]), error], **job)
    assert not page.all("script")
    assert not page.all("img")
    assert not [name for _, attrs, _ in page.elements for name in attrs if name.startswith("on")]
    assert page.all("p", "text")[0]["text"] == HOSTILE
    assert page.all("h1")[0]["text"] == HOSTILE
    assert page.text.count("<script>alert(1)</script>") >= 10


def test_a_lone_surrogate_in_the_record_of_the_job_is_replaced(tmp_path):
    assert report(tmp_path, [flagged()], job_id="job \ud800").all("h1")[0]["text"] == "job ?"


def test_headings_skip_no_level_and_every_picture_has_an_alternative_text(tmp_path):
    page = report(tmp_path, [flagged(image_uri=picture(tmp_path)), flagged(1), failed(2)])
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert "pair-0" in page.all("img")[0]["alt"]
    ids = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a")} <= set(ids)


# The numbers.


def test_the_headline_numbers_are_those_of_the_results(tmp_path):
    rows = [flagged(0), flagged(1, verdict="review", score=0.5), *(failed(i, "timeout") for i in (2, 3, 4))]
    rows += [flagged(i, verdict="authentic", score=0.1, flagged_types=[], box_px=None) for i in range(5, 1239)]
    page = report(tmp_path, rows)
    assert [dd["text"] for dd in page.all("dd", "count")] == ["1,239", "1", "1", "1,234", "3"]
    assert page.all("dd", "share")[0]["text"] == "under 0.1 % of all pairs"
    assert page.all("dd", "share")[2]["text"] == "99.6 % of all pairs"


def test_the_score_chart_has_a_bar_for_every_bin_that_has_pairs(tmp_path):
    rows = [flagged(i, score=0.99) for i in range(6)] + [flagged(6, score=0.01, verdict="authentic")]
    page = report(tmp_path, rows)
    assert [title["text"] for title in page.all("title")[1:]] == ["0.00 to 0.05: 1 pairs", "0.95 to 1.00: 6 pairs"]
    assert page.all("div", "ticks")[0]["text"] == "6 3 0"
    assert "logarithmic" not in page.text


def test_a_score_chart_with_very_different_bars_is_logarithmic_and_says_so(tmp_path):
    rows = [flagged(i, score=0.01, verdict="authentic") for i in range(101)] + [flagged(101, score=0.99)]
    page = report(tmp_path, rows)
    assert "logarithmic above 1" in page.text
    assert page.all("div", "ticks")[0]["text"] == "1,000 100 10 1 0"
    heights = [float(bar["height"]) for bar in page.all("rect") if bar.get("width") == "0.86"]
    assert heights[1] == pytest.approx(1 / 4)
    assert heights[0] == pytest.approx((1 + np.log10(101)) / 4)


def test_types_are_counted_among_the_flagged_pairs(tmp_path):
    page = report(tmp_path, [flagged(0), flagged(1, flagged_types=["face_swap"])])
    assert [item["text"] for item in page.all("ul", "bars")] == [
        "Face swap 2 Face attribute 0 Text swap 0 Text attribute 1"
    ]


def test_each_error_code_has_a_count_an_example_and_whether_a_retry_helps(tmp_path):
    rows = [failed(0), failed(1, "throttled", retryable=True), failed(2, "throttled", retryable=True)]
    rows += [failed(3, "storage_error", retryable=True), failed(4, "storage_error")]
    cells = [cell["text"] for cell in report(tmp_path, rows).all("td")]
    assert [cells[i : i + 3] for i in range(0, len(cells), 4)] == [
        ["throttled", "2", "yes"], ["storage_error", "2", "1 of them"], ["not_found", "1", "no"],
    ]  # fmt: skip
    assert cells[3] == "pair-1 throttled: no luck with 1"


def test_a_job_that_is_finalizing_is_shown_as_completed(tmp_path):
    assert report(tmp_path, [flagged()], state="finalizing").all("span", "chip")[0]["text"] == "completed"
    assert report(tmp_path, [flagged()], state="failed").all("span", "chip")[0]["text"] == "failed"


def test_the_head_shows_input_model_time_and_speed(tmp_path):
    record = {
        "settings": {"input": "s3://news/pairs.jsonl"}, "model_id": "demo@0", "policy_id": "p0", "pairs_per_s": 1234.56,
        "heartbeat": "2025-11-23T15:02:03+01:00", "timings": {"judge_s": 60.2, "manifest_s": 1.4},
    }  # fmt: skip
    assert [dd["text"] for dd in report(tmp_path, [flagged()], **record).all("dl", "facts")] == [
        "Input s3://news/pairs.jsonl Model demo@0 Policy p0 Finished 2025-11-23 14:02 UTC Took 1 min 2 s "
        "Speed once started 1,234.6 pairs/s"
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1 min 0 s"), (3599.7, "1 h 0 min"), (93_784, "26 h 3 min")],
)  # fmt: skip
def test_durations_are_shown_in_units_that_a_person_uses(tmp_path, seconds, shown):
    page = report(tmp_path, [flagged()], timings={"judge_s": seconds}, runs=2)
    assert page.all("dl", "facts")[0]["text"] == f"Took, last of 2 runs {shown}"


def test_the_page_says_whether_the_scores_are_calibrated(tmp_path):
    assert "names no calibration" in report(tmp_path, [flagged()]).text
    page = report(tmp_path, [flagged()], policy={"calibration": {"target_precision": 0.9, "on": "newsroom 7"}})
    assert "were calibrated (target precision: 0.9; on: newsroom 7)" in page.text


# The flagged pairs.


def test_flagged_pairs_are_sorted_by_score_and_authentic_pairs_come_later(tmp_path):
    rows = [flagged(i, score=score) for i, score in enumerate((0.7, 0.99, 0.8))]
    rows += [flagged(3, score=0.45, verdict="review"), flagged(4, score=0.1, verdict="authentic")]
    page = report(tmp_path, rows)
    assert [span["text"] for span in page.all("span", "score")] == [
        "score 0.990", "score 0.800", "score 0.700", "score 0.450", "score 0.100",
    ]  # fmt: skip
    assert "All 4, the highest score first." in page.text
    assert page.text.index("Pairs that were not flagged") < page.text.index("score 0.100")


def test_only_the_best_pairs_are_shown_and_the_page_counts_all(tmp_path):
    page = report(tmp_path, [flagged(i, score=0.6 + i / 100) for i in range(9)], top=3)
    assert [h3["text"] for h3 in page.all("h3")] == ["Pair pair-8", "Pair pair-7", "Pair pair-6"]
    assert "The 3 with the highest scores of 9; all of them are in flagged.jsonl" in page.text


def test_a_card_can_be_filtered_by_its_types_and_a_type_without_cards_cannot_be_chosen(tmp_path):
    page = report(tmp_path, [flagged()])
    assert page.all("article")[0]["class"].split() == ["card", "panel", "manipulated", "face_swap", "text_attribute"]
    disabled = [i["id"] for i in page.all("input") if "disabled" in i]
    assert disabled == ["type-face_attribute", "type-text_swap", "verdict-review"]


def test_a_sample_of_pairs_that_were_not_flagged_is_drawn_by_lot(tmp_path):
    rows = [authentic(i) for i in range(200)]
    page = report(tmp_path, rows)
    names = [h3["text"] for h3 in page.all("h3")]
    assert len(set(names)) == 12
    assert "12 of 200, drawn by lot" in page.text
    numbers = sorted(int(name.rpartition("-")[2]) for name in names)
    assert numbers[0] < 60
    assert numbers[-1] > 140
    assert report(tmp_path, rows[::-1]).html == page.html  # the lot is that of the row, not of its position


def test_the_speed_over_time_is_a_chart_of_its_own(tmp_path):
    timeline = {"points": [[10, 0], [20, 100], [30, 350], [40, 350], [100, 950]], "every_s": 8.0}
    page = report(tmp_path, [flagged()], timeline=timeline)
    bars = page.all("rect", "speed")
    assert [float(bar["height"]) * 40 for bar in bars] == pytest.approx([10, 25, 0, 10])
    assert [(float(bar["x"]), float(bar["width"])) for bar in bars] == [(10, 10), (20, 10), (30, 10), (40, 60)]
    assert "20.0 s to 30.0 s: 25.0 pairs/s" in page.html
    assert "Speed" in page.text
    short = report(tmp_path, [flagged()], timeline={"points": [[1, 0], [2, 9]], "every_s": 1.0})
    assert not short.all("rect", "speed")


def test_pictures_are_blurred_or_left_out_if_the_settings_or_the_caller_say_so(tmp_path):
    rows = [flagged(image_uri=picture(tmp_path))]
    shown = report(tmp_path, rows)
    blur = next(box for box in shown.all("input") if box["id"] == "blur")
    assert "checked" not in blur
    blurred = report(tmp_path, rows, settings={"report_pictures": "blurred"})
    assert "checked" in next(box for box in blurred.all("input") if box["id"] == "blur")
    for page in (
        report(tmp_path, rows, settings={"report_pictures": "none"}),
        Page(Path(write_report(tmp_path / "job-1", pictures="none")).read_text("utf-8")),
    ):
        assert not page.all("img")
        assert "The report was made without pictures." in page.text
        assert not [box for box in page.all("input") if box["id"] in ("blur", "boxes")]


def test_a_page_is_below_25_megabytes_whatever_its_pairs_hold(tmp_path, monkeypatch):
    full = Picture("data:image/webp;base64," + "A" * (PICTURE_BYTES * 4 // 3 + 4), PICTURE_SIDE, PICTURE_SIDE)
    monkeypatch.setattr("jobs.scan.output.report.embed_pictures", lambda rows, **_: {r["row_id"]: full for r in rows})
    text = "\u4e00 " * 6000
    words = [{"index": i, "start": 2 * i, "end": 2 * i + 1, "word": "\u4e00", "score": 0.9} for i in range(6000)]
    large = {"text": text, "words": words, "caption": text, "explanation": text, "metadata": text,
             "warnings": [text] * 20, "custom_id": text}  # fmt: skip
    rows = [flagged(i, **large) for i in range(70)]
    rows += [stranger(100 + i, **(large | {"words": []})) for i in range(20)]
    rows += [authentic(200 + i) | large for i in range(20)]
    rows += [failed(300 + i, f"code_{i}", custom_id=text, error_detail=text) for i in range(20)]
    page = report(tmp_path, rows)
    assert len(page.all("article")) == 60 + 12 + 12
    assert len(page.html.encode()) < 25_000_000


def test_the_box_lies_over_the_picture_in_pixels_of_the_original(tmp_path):
    page = report(tmp_path, [flagged(image_uri=picture(tmp_path))])
    assert 'viewBox="0 0 640 400"' in page.html
    line = page.all("rect", "line")[0]
    assert [float(line[name]) for name in ("x", "y", "width", "height")] == [100, 80, 80, 110]
    assert embedded(page).size == (PICTURE_SIDE, 300)
    assert "box around the flagged face" in page.all("img")[0]["alt"]


def test_a_box_of_a_row_without_a_size_is_in_pixels_of_the_embedded_picture(tmp_path):
    uri = picture(tmp_path, size=(300, 200))
    page = report(tmp_path, [flagged(image_uri=uri, width=None, height=None)])
    assert 'viewBox="0 0 300 200"' in page.html


def test_nothing_is_drawn_on_a_picture_without_a_box(tmp_path):
    page = report(tmp_path, [flagged(image_uri=picture(tmp_path), box_px=None)])
    assert len(page.all("img")) == 1
    assert not page.all("rect", "line")


def test_a_picture_is_shown_upright_as_the_model_saw_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    uri = picture(tmp_path, "turned.jpg", (640, 400), exif=exif)
    assert embedded(report(tmp_path, [flagged(image_uri=uri, width=400, height=640)])).size == (300, PICTURE_SIDE)


def test_a_picture_inside_a_tar_is_read_by_its_offset(tmp_path):
    path = picture(tmp_path, size=(123, 45))
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(path, "a.png")
        tar.add(path, "b.png")
    with tarfile.open(tmp_path / "shard.tar") as tar:
        member = tar.getmember("b.png")
    byte_range = {"image_offset": member.offset_data, "image_length": member.size}
    assert embedded(report(tmp_path, [flagged(image_uri=str(tmp_path / "shard.tar"), **byte_range)])).size == (123, 45)


def test_a_picture_that_resists_compression_is_still_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    page = report(tmp_path, [flagged(image_uri=str(tmp_path / "noise.png"))])
    assert len(page.all("img")[0]["src"]) < PICTURE_BYTES * 4 / 3 + 30


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (1, 1)])
def test_a_picture_of_any_shape_is_shown(tmp_path, size):
    assert len(report(tmp_path, [flagged(image_uri=picture(tmp_path, size=size))]).all("img")) == 1


def test_a_picture_that_cannot_be_read_again_is_replaced_by_a_note(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    uris = ["/nowhere/lost.png", str(tmp_path), str(tmp_path / "text.png"), str(tmp_path / "empty.png"),
            "https://evil.test/x.png", None, "\x00", picture(tmp_path)]  # fmt: skip
    page = report(tmp_path, [flagged(i, image_uri=uri) for i, uri in enumerate(uris)])
    notes = [note["text"] for note in page.all("div", "absent")]
    assert len(notes) == 7
    assert len(page.all("img")) == 1
    assert all(note.startswith("No picture here It could not be read again.") for note in notes)
    assert any("the pair has no image" in note for note in notes)


def test_a_picture_that_changed_since_the_scan_is_not_shown_under_an_old_box(tmp_path):
    uri = picture(tmp_path)
    unchanged = hashlib.sha256(Path(uri).read_bytes()).hexdigest()
    rows = [flagged(0, image_uri=uri, image_sha256=unchanged), flagged(1, image_uri=uri, image_sha256="0" * 64)]
    page = report(tmp_path, rows)
    assert len(page.all("img")) == 1
    assert "has changed since the scan" in page.all("div", "absent")[0]["text"]


def test_flagged_words_are_marked_in_the_text(tmp_path):
    page = report(tmp_path, [flagged()])
    assert page.all("p", "text")[0]["text"] == "A gleeful mayor opens the bridge"
    assert [mark["text"] for mark in page.all("mark") if "title" in mark] == ["gleeful"]


def test_words_are_marked_at_their_positions_in_a_text_with_escapes(tmp_path):
    word = {"index": 2, "start": 12, "end": 17, "word": "riots", "score": 0.9}
    page = report(tmp_path, [flagged(text=r"Calm\u0000 after riots", text_escapes=[4], words=[word])])
    assert page.all("p", "text")[0]["text"] == "Calm\ufffd after riots"
    assert [mark["text"] for mark in page.all("mark") if "title" in mark] == ["riots"]


def test_a_pair_scored_against_its_caption_shows_it_and_no_text_types(tmp_path):
    types = {"face_swap": 0.91, "face_attribute": 0.1, "text_swap": None, "text_attribute": None}
    warning = "no text; scored against the caption"
    page = report(tmp_path, [flagged(text=None, words=None, types=types, caption="A drawn bridge", warnings=[warning])])
    assert not page.all("p", "text")
    assert page.all("p", "quote")[0]["text"] == "Caption A drawn bridge"
    assert page.all("ul", "types")[0]["text"] == "Face swap 0.91 Face attribute 0.10"
    assert page.all("ul", "warnings")[0]["text"] == warning


def test_caption_and_agreement_stand_beside_the_text_of_a_flagged_pair(tmp_path):
    cosines = {"agreement_image_text": 0.213, "agreement_image_caption": 0.5, "agreement_text_caption": -0.071}
    error = {"kind": "refusal", "detail": "the model refused: no <b>", "retryable": False}
    rows = [flagged(0, caption="A drawn bridge", **cosines), flagged(1, score=0.9, caption_error=error)]
    described, refused = (article["text"] for article in report(tmp_path, rows).all("article"))
    assert "Caption A drawn bridge" in described
    assert "Agreement of picture and text 0.21, picture and caption 0.50, text and caption -0.07" in described
    assert "evidence, not a verdict" in described
    assert "No caption the model refused: no <b> (refusal)" in refused
    assert "Agreement" not in refused


def test_an_explanation_or_the_reason_why_there_is_none_stands_beside_a_flagged_pair(tmp_path):
    error = {"kind": "timeout", "detail": "no answer in <20> s", "retryable": True}
    rows = [flagged(0, explanation="A mayor opens a bridge"), flagged(1, score=0.9, explanation_error=error)]
    explained, failed = (article["text"] for article in report(tmp_path, rows).all("article"))
    assert "Explanation A mayor opens a bridge" in explained
    assert "No explanation no answer in <20> s (timeout)" in failed


def test_a_row_with_every_nullable_column_null_is_shown(tmp_path):
    kept = ("row_id", "custom_id", "status", "schema_version", "verdict", "score")
    nulls = {name: None for name in RESULT_SCHEMA.names if name not in kept}
    assert len(report(tmp_path, [flagged(**nulls)]).all("article")) == 1


def test_a_right_to_left_text_takes_its_direction_from_its_letters(tmp_path):
    text = "أعلن الرئيس الغاضب"
    words = [{"index": 1, "start": 5, "end": 11, "word": "الرئيس", "score": 0.9}]
    page = report(tmp_path, [flagged(text=text, words=words)])
    assert page.all("p", "text")[0] | {"text": text} == {"class": "text", "dir": "auto", "text": text}
    assert [mark["text"] for mark in page.all("mark") if "title" in mark] == ["الرئيس"]


def test_a_huge_text_is_cut_and_the_rest_is_counted(tmp_path):
    words = [{"index": i, "start": at, "end": at + 4, "word": "word", "score": 0.9}
             for i, at in enumerate((0, TEXT_SHOWN + 5, TEXT_SHOWN + 10))]  # fmt: skip
    page = report(tmp_path, [flagged(text="word " * 200_000, words=words, metadata="m" * 1_000_000)])
    assert len(page.html) < 60_000
    assert "998,000 more characters, 2 more flagged words." in page.text
    assert "(998,500 more characters)" in page.text
    assert "tabindex" in page.all("p", "text")[0]


def test_the_details_of_a_card_show_the_origin_of_the_pair(tmp_path):
    page = report(tmp_path, [flagged(image_uri="/data/p.png", image_sha256="ab" * 32, metadata='{"desk": "world"}')])
    details = page.all("details")[0]["text"]
    for part in ("pair-0", "/data/p.png", "ab" * 32, '{"desk": "world"}', "gleeful 0.93", "x0 100, y0 80"):
        assert part in details


def test_a_flagged_pair_without_type_word_or_box_says_so(tmp_path):
    bare = {"flagged_types": [], "words": [], "box_px": None}
    sentence = "No type, word or box supports this verdict."
    assert report(tmp_path, [flagged(**bare)]).text.count(sentence) == 1
    for name in bare:
        assert sentence not in report(tmp_path, [flagged(**{key: bare[key] for key in bare if key != name})]).text


# Unfamiliar pairs, and the limits of the model.

KNOWN = {"model_id": "asap-demo@0", "familiarity_id": "f1"}


def test_the_limits_of_the_model_come_before_the_numbers(tmp_path):
    limits = limits_sentences(Limits(made_from="drawn pictures", not_for="photographs"), "asap-demo@0")
    page = report(tmp_path, [flagged()], limits=limits, **KNOWN)
    assert page.all("p", "limits")[0]["text"] == limits
    assert page.text.index(limits) < page.text.index("The numbers")


def test_a_job_without_limits_or_familiarity_is_shown_without_them(tmp_path):
    page = report(tmp_path, [flagged()])
    assert not page.all("p", "limits")
    assert "Not judged" not in page.text


def test_a_model_without_a_familiarity_file_judges_every_pair_and_the_page_says_so(tmp_path):
    page = report(tmp_path, [flagged()], limits="Limits.", familiarity_id=None)
    assert "no record of what its own pairs look like, so it judged every pair" in page.all("p", "limits")[0]["text"]
    page = report(tmp_path, [flagged()], limits="Limits.", policy={"unfamiliar": 0}, **KNOWN)
    assert "policy judges every pair" in page.all("p", "limits")[0]["text"]


def test_unfamiliar_pairs_have_a_number_of_their_own_and_are_in_no_chart(tmp_path):
    page = report(tmp_path, [stranger(0), flagged(1), authentic(2), authentic(3)], **KNOWN)
    numbers = dict(zip((dt["text"] for dt in page.all("dt")), (dd["text"] for dd in page.all("dd")), strict=False))
    assert numbers["Pairs"] == "4"
    assert [dd["text"] for dd in page.all("dd", "count")] == ["4", "1", "0", "2", "1", "0"]
    assert "Not judged 1 25 % of all pairs" in page.text
    assert sum(int(title["text"].split(": ")[1].split()[0]) for title in page.all("title")[1:]) == 3
    assert [rect["width"] for rect in page.all("rect", "unfamiliar")] == ["1"]
    assert page.text.index("Flagged pairs All 1") < page.text.index("Unfamiliar pairs These pairs were not judged")


def test_the_least_familiar_pairs_are_shown_without_marks_and_with_what_is_strange(tmp_path):
    uri = picture(tmp_path)
    rows = [stranger(i, familiarity=0.004 - i / 1e4, image_uri=uri) for i in range(14)]
    rows[13] |= {"familiarity_text": None}
    page = report(tmp_path, [*rows, *(authentic(i) for i in range(20, 40))], **KNOWN)
    cards = page.all("article")
    assert len(cards) == 12 + 12
    assert "pair-13" in cards[0]["text"]
    assert "The 12 least familiar of 14 are shown; all of them are in unfamiliar.jsonl" in page.text
    assert not page.all("mark")
    assert not page.all("rect", "line")
    assert page.all("ul", "parts")[0]["text"] == "Picture strange (1 in 2,500)"
    assert page.all("ul", "parts")[1]["text"] == "Picture strange (1 in 2,500) Text not strange (63 %)"
    assert len(page.all("span", "score")) == 12  # those of the pairs that were not flagged


def test_a_page_whose_pairs_were_not_judged_begins_with_that_and_why(tmp_path):
    page = report(tmp_path, [stranger(i) for i in range(15)], **KNOWN)
    first = "None of the 15 pairs was judged, because asap-demo has seen nothing like them."
    assert page.text.index(first) < page.text.index("The numbers")
    assert "was flagged" not in page.text
    assert "No pair was judged, so none could be flagged. That does not make them authentic." in page.text
    assert not page.all("div", "plot")


def test_a_page_of_mostly_unfamiliar_pairs_says_so_first(tmp_path):
    page = report(tmp_path, [*(stranger(i) for i in range(3)), authentic(3)], **KNOWN)
    assert "3 of 4 pairs were not judged, because asap-demo has seen nothing like them." in page.text
    assert "None of the 1 judged pairs was flagged. 3 other pairs were not judged." in page.text
    half = report(tmp_path, [stranger(0), authentic(1)], **KNOWN)
    assert not half.all("div", "verdictless")


@pytest.mark.parametrize("state", ["finalizing", "unfamiliar"])
def test_a_scan_that_stopped_after_its_sample_says_how_to_scan_the_rest(tmp_path, state):
    rows = [stranger(i) for i in range(3)]
    page = report(tmp_path, rows, state=state, error="stopped", manifest={"rows": 5000}, **KNOWN)
    assert page.all("span", "chip")[0]["text"] == "unfamiliar"
    assert "They are a sample of the 5,000 pairs of the input." in page.text
    assert "--allow-unfamiliar scans the rest" in page.text


# Jobs with little in them.


def test_a_job_without_results_says_so(tmp_path):
    page = report(tmp_path, [])
    assert "there was no pair to scan" in page.text
    assert [dd["text"] for dd in page.all("dd", "count")] == ["0"] * 5


def test_a_job_that_flagged_nothing_says_so(tmp_path):
    page = report(tmp_path, [flagged(i, verdict="authentic", score=0.1) for i in range(3)])
    assert "None of the 3 judged pairs was flagged." in page.text
    assert len(page.all("article")) == 3
    assert "All 3: look here for what the model misses." in page.text


def test_a_job_with_only_errors_says_so(tmp_path):
    page = report(tmp_path, [failed(i) for i in range(3)])
    assert "No pair could be scored; see the errors." in page.text
    assert not page.all("div", "plot")


def test_a_folder_without_the_record_of_a_job_is_refused(tmp_path):
    with pytest.raises(StorageError, match=r"is not the folder of a job: it has no job\.json"):
        write_report(tmp_path)
    (tmp_path / "job.json").write_text('{"job_id": ')
    with pytest.raises(StorageError, match=r"job\.json is broken"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


def test_a_picture_outside_the_prefixes_of_the_job_is_not_shown(tmp_path):
    rows = [flagged(image_uri=picture(tmp_path))]
    assert report(tmp_path, rows).all("img")
    page = report(tmp_path, rows, settings={"fetch": {"only_below": ["s3://bucket/in/"]}})
    assert not page.all("img")
    assert "It could not be read again." in page.text
