"""The page of an evaluation: one self-contained HTML file with the papers' table, the charts and the worst pairs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from asap.corpus.reader import Record
from asap.errors import AnnotationError
from asap.evaluation.table import CLASS_COLUMNS, LEGEND, class_rows, intervals_sentence, task_rows, words_sentence
from asap.finding import Finding, Word, score_text
from asap.labels import TYPES, is_manipulated, types_of
from asap.limits import NO_FAMILIARITY
from asap.preprocessing.images import BoxXyxy
from asap.preprocessing.words import split_words
from asap.render import LEVEL_EDGES, level, segments
from asap.training.targets import face_box
from jobs.pages.page import TEXT_SHOWN, embed_picture, render_page, type_label

_NOT_JUDGED = "The model does not judge this pair: it looks like nothing that the model was made from."


@dataclass(frozen=True)
class WorstPair:
    """A pair whose score is far from the truth."""

    record: Record
    finding: Finding
    """The evidence of the model."""
    score: float
    """The probability of manipulation in the evaluation."""


def evaluation_page(report: dict[str, Any], charts: Mapping[str, str], worst: Sequence[WorstPair]) -> str:
    """Return the page as HTML. A pair whose picture cannot be read gets a note instead.

    Args:
        report: The report that `jobs.evaluate.run` writes as `metrics.json`.
        charts: The charts as SVG, by file name. They are embedded in the page.
        worst: The pairs to show, worst first.
    """
    about, in_split = report["about"], report["about"]["pairs_in_split"]
    evaluated = f"the first {report['pairs']:,} of {in_split:,}"
    if report["pairs"] == in_split:
        evaluated = f"all {in_split:,} of the split, each once"
    page = {
        "title": f"{about['model_id']} on {Path(about['corpus']).name}/{about['split']}",
        "facts": [
            ("Model", about["model_id"]),
            ("Corpus", about["corpus"]),
            ("Split", about["split"]),
            ("Pairs evaluated", evaluated),
            ("Finished", about["finished"]),
        ],
        "sentence": report["sentence"],
        "limits": report["limits"],
        "familiarity": NO_FAMILIARITY if report["coverage"] is None else "",
        "legend": LEGEND,
        "tasks": task_rows(report),
        "intervals": intervals_sentence(report),
        "words": words_sentence(report),
        "columns": CLASS_COLUMNS,
        "classes": class_rows(report),
        "charts": [
            (name, f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}")
            for name, svg in charts.items()
        ],
        "worst": [_card(pair) for pair in worst],
        "levels": [(1, f"below {LEVEL_EDGES[0]}")] + [(level(edge), f"from {edge}") for edge in LEVEL_EDGES],
    }
    return render_page("evaluation.html.j2", ["report.css", "evaluation.css"], page)


def _card(pair: WorstPair) -> dict[str, Any]:
    """Return the card of a pair, as data for the template."""
    record, finding = pair.record, pair.finding
    true_types = types_of(record.fake_cls, record.labels)
    row = {"image_uri": str(record.image)}
    picture = embed_picture(row | {"image_sha256": finding.image_sha256})
    # Boxes are in pixels of the original image; the size of the embedded picture stands in for a failed finding.
    width, height = finding.width or picture.width, finding.height or picture.height
    true_box = _true_box(record, width, height) if picture.data_uri else None
    boxes = {"truth": true_box, "line": finding.box_px}
    return {
        "id": record.id,
        "image": str(record.image),
        "truth": "manipulated" if is_manipulated(record.fake_cls, record.labels) else "authentic",
        "fake_cls": record.fake_cls,
        "score": pair.score,
        "picture": picture,
        "alt": f"Picture of record {record.id[:80]}",
        "width": width,
        "height": height,
        "boxes": [
            (kind, {"x": box[0], "y": box[1], "width": max(box[2] - box[0], 0), "height": max(box[3] - box[1], 0)})
            for kind, box in boxes.items()
            if box is not None
        ],
        "text": _marked(record, finding),
        "types": [
            (type_label(kind), value, kind in true_types)
            for kind in TYPES
            if (value := (finding.types or {}).get(kind)) is not None
        ],
        "problem": str(finding.error) if finding.error else _NOT_JUDGED if finding.verdict == "unfamiliar" else "",
    }


def _true_box(record: Record, width: int, height: int) -> BoxXyxy | None:
    """Return the true box in the picture; None if there is none, or if it cannot be used (`bad_boxes`)."""
    try:
        return face_box(record.fake_cls, record.fake_image_box, width, height, record.labels)
    except AnnotationError:
        return None


def _marked(record: Record, finding: Finding) -> Markup:
    """Return the text as HTML: flagged words are marked by their score, manipulated words are underlined."""
    flagged = {word.index: word for word in finding.words or ()}
    true = set(record.fake_text_pos or ())
    # A manipulated word that the model missed has a place in the text too, with score 0.
    words = [
        flagged.get(span.index, Word(span.index, span.start, span.end, span.word, 0.0))
        for span in split_words(record.text)
        if span.index in true or span.index in flagged
    ]
    pieces = []
    for piece, word in segments(record.text[:TEXT_SHOWN], words):
        html = Markup.escape(piece)
        if word is not None and word.index in flagged:
            html = Markup('<mark data-level="{}" title="manipulated: {}">{}</mark>').format(
                level(word.score), score_text(word.score), html
            )
        if word is not None and word.index in true:
            html = Markup('<u title="truly manipulated">{}</u>').format(html)
        pieces.append(html)
    return Markup("").join(pieces)
