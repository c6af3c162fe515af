"""The page of an evaluation."""

import base64
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from asap.corpus.reader import Record
from asap.errors import TextMissing
from asap.evaluation.table import LEGEND
from asap.finding import Finding, Word
from asap.limits import NO_FAMILIARITY
from jobs.evaluate.page import WorstPair, evaluation_page
from tests.asap.evaluation.test_table import report

TEXT = "A calm crowd <b>waits</b> for the angry minister"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(path)
    return path


def worst(picture: Path, **changes: Any) -> WorstPair:
    record = Record(
        id="17", image=picture, text=TEXT, fake_cls="face_swap&text_attribute", fake_image_box=(10, 20, 30, 50),
        fake_text_pos=(1, 6), caption=TEXT, explanation=TEXT,
    )  # fmt: skip
    words = [Word(3, 13, 25, "<b>waits</b>", 0.7), Word(6, 34, 39, "angry", 0.95)]
    fields: dict[str, Any] = {
        "verdict": "authentic", "score": 0.1, "model_id": "m@1", "policy_id": "p", "width": 80, "height": 60,
        "types": {"face_swap": 0.6, "face_attribute": 0.1, "text_swap": 0.2, "text_attribute": 0.05},
        "flagged_types": ["face_swap"], "box_px": (12, 22, 32, 52), "words": words,
    }  # fmt: skip
    return WorstPair(record, Finding(**(fields | changes)), 0.0625)


SENTENCES = {
    "sentence": "Of 100 manipulated pairs this model finds 96.",
    "limits": "m was made from <drawn> pictures. Do not use it for photographs.",
}


def page(*pairs: WorstPair, coverage: float | None = 0.75, **about: Any) -> str:
    defaults = {"model_id": "m@1", "corpus": "/data/dgm4", "split": "test", "pairs_in_split": 3, "finished": "today"}
    metrics = report("orig", "face_swap", "text_swap") | SENTENCES
    metrics |= {"coverage": coverage, "AUC_covered": 0.5, "ACC_covered": None}
    return evaluation_page({"about": defaults | about, **metrics}, {"roc.svg": "<svg>roc</svg>"}, pairs)


def test_the_page_has_the_table_the_classes_and_the_charts() -> None:
    html = page()
    assert "<h1><bdi>m@1 on dgm4/test</bdi></h1>" in html
    assert html.index("AUC</span>100.00") < html.index("mAP</span>") < html.index("IoUmean</span>33.33")
    assert "<td>face_swap</td><td>1</td>" in html
    assert f"data:image/svg+xml;base64,{base64.b64encode(b'<svg>roc</svg>').decode()}" in html


def test_the_page_begins_with_a_sentence_for_anyone_and_the_limits_of_the_model() -> None:
    header = page().partition("<header>")[2].partition("</header>")[0]
    assert SENTENCES["sentence"] in header
    assert "m was made from &lt;drawn&gt; pictures. Do not use it for photographs." in header
    assert header.index("finds 96") < header.index("was made from") < header.index("<dl")
    assert "no familiarity file" not in page()
    assert escape(NO_FAMILIARITY) in page(coverage=None)


def test_a_legend_explains_every_figure_of_the_page() -> None:
    legend = page().partition('<dl class="legend">')[2].partition("</dl>")[0]
    for term in ("AUC", "ACC", "EER", "mAP", "CF1", "OF1", "IoU", "precision", "recall", "F1", "coverage"):
        assert term in re.sub(r"<dd>.*?</dd>", "", legend)
    assert max(len(meaning) for _, meaning in LEGEND) <= 120


def test_the_pairs_that_the_model_judges_have_figures_of_their_own() -> None:
    assert "coverage</span>75.00" in page()
    assert "coverage</span>" not in page(coverage=None)


def test_a_worst_pair_that_is_not_judged_says_so(picture: Path) -> None:
    strange = worst(picture, verdict="unfamiliar", words=[], flagged_types=[], box_px=None)
    assert "The model does not judge this pair" in page(strange)
    assert "does not judge" not in page(worst(picture))


@pytest.mark.parametrize(
    ("in_split", "sentence"), [(3, "all 3 of the split, each once"), (50_705, "the first 3 of 50,705")]
)
def test_the_page_says_how_much_of_the_split_was_evaluated(in_split: int, sentence: str) -> None:
    assert sentence in page(pairs_in_split=in_split)


def test_a_worst_pair_shows_the_evidence_of_the_model_and_the_truth(picture: Path) -> None:
    html = page(worst(picture))
    assert "data:image/webp;base64," in html
    assert "truly manipulated" in html
    assert "0.062" in html
    assert '<rect class="truth" x="10.0" y="20.0" width="20.0" height="30.0"/>' in html
    assert '<rect class="line" x="12" y="22" width="20" height="30"/>' in html
    assert '<u title="truly manipulated">calm</u>' in html
    assert re.search(r'<u [^>]+><mark data-level="4" [^>]+>angry</mark></u>', html)
    assert re.search(r'<mark data-level="2" [^>]+>&lt;b&gt;waits&lt;/b&gt;</mark>', html)
    assert "<b>waits" not in html


def test_a_pair_whose_face_is_not_flagged_has_only_the_true_box(picture: Path) -> None:
    html = page(worst(picture, box_px=None, flagged_types=[]))
    assert 'class="truth" x=' in html
    assert 'class="line"' not in html


@pytest.mark.parametrize("box", [(), (200, 200, 300, 300)])
def test_a_worst_pair_without_a_usable_box_or_word_positions_is_shown_without_them(
    picture: Path, box: tuple[float, ...]
) -> None:
    pair = worst(picture)
    record = replace(pair.record, fake_image_box=box, fake_text_pos=None)
    html = page(replace(pair, record=record))
    assert 'class="truth" x=' not in html
    assert "<u title=" not in html
    assert "manipulated: 0.95" in html


def test_the_page_says_that_a_corpus_has_no_word_positions() -> None:
    metrics = report("orig", "text_swap") | SENTENCES | {"coverage": None, "word_labeled_pairs": 0}
    about = {"model_id": "m@1", "corpus": "/data/mdsm", "split": "test", "pairs_in_split": 2, "finished": "today"}
    assert "There are no figures of words" in evaluation_page({"about": about, **metrics}, {}, [])
    assert "There are no figures of words" not in page()


def test_a_missing_picture_leaves_a_note(tmp_path: Path) -> None:
    html = page(worst(tmp_path / "gone.png"))
    assert "No picture here" in html
    assert 'class="truth" x=' not in html


def test_a_pair_without_a_finding_shows_the_error(picture: Path) -> None:
    failed = Finding(model_id="m@1", policy_id="p", error=TextMissing("the text is blank"))
    html = page(WorstPair(worst(picture).record, failed, 0.5))
    assert "the text is blank" in html
    assert "data:image/webp" in html


def test_the_page_runs_no_script_and_fetches_nothing(picture: Path) -> None:
    html = page(worst(picture), corpus="/data/<script>alert(1)</script>")
    assert "default-src 'none'" in html
    assert "<script" not in html
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)
