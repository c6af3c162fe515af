"""An evaluation as one self-contained HTML page: the paper's table, the pictures, and the worst pairs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from asap.evaluation.table import CLASS_COLUMNS, class_rows, task_rows
from asap.finding import Finding, Word
from asap.labels import TYPES, is_manipulated, types_of
from asap.preprocessing.words import split_words
from asap.render import LEVEL_EDGES, level, segments
from asap.training.dataset import Record
from asap.training.targets import face_box
from jobs.pages.page import read_picture, render_page
from jobs.scan.output.report import TEXT_SHOWN, label


@dataclass(frozen=True)
class WorstPair:
    """A pair whose score is far from the truth."""

    record: Record
    finding: Finding
    """What the model saw in it."""
    score: float
    """The probability of manipulated by which it was judged."""


def evaluation_page(report: dict[str, Any], pictures: Mapping[str, str], worst: Sequence[WorstPair]) -> str:
    """The page. `report`: as `jobs.evaluate.run` writes it; `pictures`: SVG by file name, put into the page.

    A picture of a pair that cannot be read leaves a note in its place.
    """
    about = report["about"]
    page = {
        "title": f"{about['model_id']} on {Path(about['corpus']).name}/{about['split']}",
        "facts": _facts(report),
        "tasks": task_rows(report),
        "columns": CLASS_COLUMNS,
        "classes": class_rows(report),
        "pictures": [(name, _data_uri(svg)) for name, svg in pictures.items()],
        "worst": [_card(pair) for pair in worst],
        "levels": [(1, f"below {LEVEL_EDGES[0]}")] + [(level(edge), f"from {edge}") for edge in LEVEL_EDGES],
    }
    return render_page("evaluation.html.j2", ["report.css", "evaluation.css"], page)


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    about, of = report["about"], report["about"]["pairs_in_split"]
    judged = (
        f"all {of:,} of the split, each once" if report["pairs"] == of else f"the first {report['pairs']:,} of {of:,}"
    )
    return [
        ("Model", about["model_id"]),
        ("Corpus", about["corpus"]),
        ("Split", about["split"]),
        ("Pairs judged", judged),
        ("Finished", about["finished"]),
    ]


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _card(pair: WorstPair) -> dict[str, Any]:
    record, finding = pair.record, pair.finding
    true_types = types_of(record.fake_cls, record.labels)
    row = {"image_uri": str(record.image), "image_offset": None, "image_length": None}
    picture = read_picture(row | {"image_sha256": finding.image_sha256})
    width, height = finding.width or picture.width, finding.height or picture.height
    true_box = (
        face_box(record.fake_cls, record.fake_image_box, width, height, record.labels) if picture.data_uri else None
    )
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
        "boxes": [(kind, _rectangle(box)) for kind, box in boxes.items() if box is not None],
        "text": _marked(record, finding),
        "types": [
            (label(kind), value, kind in true_types)
            for kind in TYPES
            if (value := (finding.types or {}).get(kind)) is not None
        ],
        "problem": str(finding.error) if finding.error else "",
    }


def _rectangle(box: Sequence[float]) -> dict[str, float]:
    x0, y0, x1, y1 = box
    return {"x": x0, "y": y0, "width": max(x1 - x0, 0), "height": max(y1 - y0, 0)}


def _marked(record: Record, finding: Finding) -> Markup:
    """The text: what the model flagged marked by its score, what was manipulated underlined."""
    flagged = {word.index: word for word in finding.words or ()}
    true = set(record.fake_text_pos)
    told = [
        flagged.get(span.index, Word(span.index, span.start, span.end, span.word, 0.0))
        for span in split_words(record.text)
        if span.index in true or span.index in flagged
    ]
    pieces = (_piece(piece, word, flagged, true) for piece, word in segments(record.text[:TEXT_SHOWN], told))
    return Markup("").join(pieces)


def _piece(piece: str, word: Word | None, flagged: Mapping[int, Word], true: set[int]) -> Markup:
    if word is None:
        return Markup.escape(piece)
    html = Markup.escape(piece)
    if word.index in flagged:
        html = Markup('<mark data-level="{}" title="manipulated: {:.2f}">{}</mark>').format(
            level(word.score), word.score, html
        )
    return Markup('<u title="truly manipulated">{}</u>').format(html) if word.index in true else html
